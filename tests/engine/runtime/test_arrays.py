"""Arrays of a kernel's own memory, against NumPy's, and that the memory is given back."""

import resource

import numba
import numpy as np

from lossmith.engine.runtime.arrays import empty, release, zeros


@numba.njit
def reversed_sums(values):  # type: ignore[no-untyped-def]
    """The sums of values[i:], with memory of the function's own."""
    sums, ones = zeros(len(values) + 1, np.float64), empty(len(values), np.int32)
    for i in range(len(values) - 1, -1, -1):
        sums[i] = sums[i + 1] + values[i]
        ones[i] = np.int32(values[i] + 1)
    result = np.empty((2, len(values)))
    for i in range(len(values)):
        result[0, i], result[1, i] = sums[i], ones[i]
    release((sums, ones))
    return result


def test_own_arrays_hold_numbers_of_their_dtype() -> None:
    values = np.arange(7.0) / 2
    found = reversed_sums(values)
    np.testing.assert_array_equal(found[0], values[::-1].cumsum()[::-1])
    np.testing.assert_array_equal(found[1], (values + 1).astype(np.int32))


def test_own_arrays_are_given_back() -> None:
    values = np.zeros(1 << 20)  # 12 MB of own memory a call
    reversed_sums(values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB
    for _ in range(40):
        reversed_sums(values)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
