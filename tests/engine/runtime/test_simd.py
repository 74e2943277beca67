"""The intrinsics by themselves, in compiled functions of a line each, against NumPy."""

import numba
import numpy as np
import pytest

from lossmith.engine.runtime import simd

EACH_COUNT = pytest.mark.parametrize("count", [2, 3, 8])


@numba.njit
def add_multiples(out, at, table, places, factors):  # type: ignore[no-untyped-def]
    simd.add_multiples(out, at, table, places, factors)


@numba.njit
def float_of(bits):  # type: ignore[no-untyped-def]
    return simd.float_of(bits)


@numba.njit
def bits_of(number):  # type: ignore[no-untyped-def]
    return simd.bits_of(number)


@EACH_COUNT
@pytest.mark.parametrize("at", [0, 3, 8])  # whatever the place in memory
def test_multiples_of_pieces_are_added_to_a_piece_and_nowhere_else(at: int, count: int) -> None:
    made = np.random.default_rng(count)
    out, table = (made.normal(size=size).astype(np.float32) for size in (simd.WHOLE + 11, 200))
    places = tuple(int(place) for place in made.integers(0, len(table) - simd.WHOLE, count))
    factors = tuple(np.float32(factor) for factor in made.normal(size=count))
    expected = out.astype(np.float64)
    for place, factor in zip(places, factors, strict=True):
        expected[at : at + simd.WHOLE] += float(factor) * table[place : place + simd.WHOLE]
    before = table.copy()
    add_multiples(out, at, table, places, factors)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=2e-6)
    inside = slice(at, at + simd.WHOLE)
    np.testing.assert_array_equal(np.delete(out, inside), np.delete(expected, inside).astype(np.float32))
    np.testing.assert_array_equal(table, before)


NUMBERS = np.array([0.0, -0.0, 1.0, -1.5, 1e-45, 1.1754944e-38, 3.4e38, np.inf, -np.inf, np.nan], np.float32)


def test_bits_are_those_of_numpys_view() -> None:
    bits = NUMBERS.view(np.int32)
    assert [bits_of(number) for number in NUMBERS] == bits.tolist()
    found = np.array([float_of(each) for each in bits], np.float32)
    np.testing.assert_array_equal(found.view(np.int32), bits)
