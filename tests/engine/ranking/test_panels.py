"""Panels of moments by themselves: each loop against the sum that its docstring states, in NumPy."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lossmith.engine.ranking.kernels import panels
from lossmith.engine.ranking.kernels.record import POWERS

Array = NDArray[np.float64]
START, COUNT, NEAR = -3, 9, 1  # a lattice that begins left of 0, at an odd panel


def made(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def moments(count: int, seed: int) -> Array:
    """Of panels, two of them without weight."""
    rows = made(count, POWERS, seed=seed)
    rows[[1, 4]] = 0.0
    return rows


def test_add_product_adds_a_row_times_a_matrix() -> None:
    out, rows, matrices = made(3, POWERS, seed=1), made(4, POWERS, seed=2), made(2, POWERS, POWERS, seed=3)
    expected = out.copy()
    expected[1] += rows[3] @ matrices[1]
    panels.add_product(out, 1, rows, 3, matrices, 1)
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-13)


def test_transform_adds_every_row_times_the_matrix() -> None:
    out, rows, matrix = made(6, POWERS, seed=1), moments(6, 2), made(1, POWERS, POWERS, seed=3)
    expected = out + rows @ matrix[0]
    panels.transform(out, rows, matrix)
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("distances", [[0], [1, -1], [2, 3, -2, -3]])
def test_interact_adds_the_derivatives_over_pairs_at_each_distance(distances: list[int]) -> None:
    high, low = moments(COUNT, 1), moments(COUNT, 2)[::-1].copy()
    by_high, by_low = made(COUNT, POWERS, seed=3), made(COUNT, POWERS, seed=4)
    matrices = made(len(distances), POWERS, POWERS, seed=5)
    expected = by_high.copy(), by_low.copy()
    for i in range(COUNT):
        for j in range(COUNT):
            parents = abs((START + i) // 2 - (START + j) // 2)
            if i - j in distances and parents <= NEAR:
                matrix = matrices[distances.index(i - j)]
                expected[0][i] += matrix @ low[j]
                expected[1][j] += high[i] @ matrix
    transposed = np.ascontiguousarray(matrices.transpose(0, 2, 1))
    panels.interact(high, low, by_high, by_low, START, NEAR, np.array(distances), matrices, transposed)
    np.testing.assert_allclose(by_high, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(by_low, expected[1], rtol=1e-12, atol=1e-12)


@pytest.fixture
def family() -> dict[str, Any]:
    """Fine panels and the parents of all of them."""
    parents = (START + COUNT - 1) // 2 - START // 2 + 1
    return {
        "fine": moments(COUNT, 1),
        "coarse": made(parents, POWERS, seed=2),
        "halves": made(2, POWERS, POWERS, seed=3),
        "parent": [(START + i) // 2 - START // 2 for i in range(COUNT)],
    }


def test_gather_adds_panels_to_their_parents(family: dict[str, Any]) -> None:
    expected = family["coarse"].copy()
    for i, parent in enumerate(family["parent"]):
        expected[parent] += family["fine"][i] @ family["halves"][(START + i) % 2]
    panels.gather(family["coarse"], family["fine"], START, family["halves"])
    np.testing.assert_allclose(family["coarse"], expected, rtol=1e-12, atol=1e-12)


def test_scatter_is_the_adjoint_of_gather(family: dict[str, Any]) -> None:
    """⟨gather(fine), coarse⟩ = ⟨fine, scatter(coarse)⟩, and each panel gets its parent's row times its half, transposed."""
    gathered, scattered = np.zeros_like(family["coarse"]), np.zeros_like(family["fine"])
    transposed = np.ascontiguousarray(family["halves"].transpose(0, 2, 1))
    panels.gather(gathered, family["fine"], START, family["halves"])
    panels.scatter(scattered, family["coarse"], START, transposed)
    assert (gathered * family["coarse"]).sum() == pytest.approx((family["fine"] * scattered).sum(), rel=1e-12)
    for i, parent in enumerate(family["parent"]):
        expected = family["coarse"][parent] @ transposed[(START + i) % 2]
        np.testing.assert_allclose(scattered[i], expected, rtol=1e-12, atol=1e-12)
