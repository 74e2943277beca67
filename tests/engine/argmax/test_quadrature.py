"""Panels by themselves: integrals against closed forms and SciPy, edges and cuts against loops."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special
from torch import Tensor

from lossmith.engine.argmax import quadrature
from lossmith.engine.argmax.quadrature import Panels, Rule
from support.cases import random_scores, tensor

RULE = Rule(drop=45.0, error=1e-13)


def every(log: Tensor) -> Tensor:
    """Each integral to its own size."""
    return log


def listed(panels: Panels) -> list[tuple[float, ...]]:
    """(row, left, right) of each."""
    return list(zip(*(column.tolist() for column in panels), strict=True))


# Where panels lie


def test_between_edges_lie_panels_but_for_edges_too_near() -> None:
    edges = tensor([[0.0, 1.0, 1.05, 3.0], [-2.0, -1.0, 0.0, 0.01]])
    # The last edge of a row stays, however near.
    expected = [(0, 0.0, 1.0), (0, 1.0, 3.0), (1, -2.0, -1.0), (1, -1.0, 0.0), (1, 0.0, 0.01)]
    assert listed(quadrature.between(edges, 0.1)) == expected


def test_cut_breaks_panels_at_the_points_inside_a_row() -> None:
    panels = quadrature.between(tensor([[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]]), 0.0)
    at = tensor([[0.5, 1.0, 2.5], [6.25, 6.75, 0.5]])  # one is an edge already, two lie outside their row
    expected = [(0, 0.0, 0.5), (0, 0.5, 1.0), (0, 1.0, 2.0), (1, 5.0, 6.0), (1, 6.0, 6.25), (1, 6.25, 6.75), (1, 6.75, 7.0)]
    assert listed(quadrature.cut(panels, at)) == expected


def test_screen_leaves_out_panels_whose_ends_are_both_far_below_the_highest() -> None:
    panels = quadrature.between(torch.linspace(-20, 20, 21, dtype=torch.float64).expand(2, 21), 0.0)

    def log(row: Tensor, u: Tensor) -> Tensor:
        return (-(u - 10.0 * row.unsqueeze(-1)).square() / 2).unsqueeze(-1)

    kept = listed(quadrature.screen(panels, 2, log, RULE))
    reach = math.sqrt(4 * RULE.drop)  # where u² / 2 = 2 · drop
    expected = [
        (row, left, right)
        for row, left, right in listed(panels)
        if min(abs(left - 10 * row), abs(right - 10 * row)) < reach - 0.1
    ]
    assert kept == expected
    assert len(kept) < len(panels.row)


def test_nodes_of_gives_each_row_its_panels_and_gauss_their_weights() -> None:
    panels = Panels(torch.tensor([0, 2, 2, 2]), tensor([0.0, -1.0, 2.0, 3.0]), tensor([2.0, 1.0, 3.0, 7.0]))
    ends, exists = quadrature.nodes_of(panels, 3)
    assert exists.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert ends[0, 0].tolist() == [0.0, 2.0]
    assert ends[2].tolist() == [[-1.0, 1.0], [2.0, 3.0], [3.0, 7.0]]
    nodes, log_weight = quadrature.gauss(ends, exists)
    powers = np.arange(2 * quadrature.NODES)
    for row in range(3):
        u, w = nodes[row].numpy(), log_weight[row].exp().numpy()
        found = (w[:, None] * (u[:, None] / 7) ** powers).sum(0)
        exact = sum(
            (
                (((right / 7) ** (powers + 1)) - (left / 7) ** (powers + 1)) * 7 / (powers + 1)
                for k, left, right in listed(panels)
                if k == row
            ),
            start=np.zeros(len(powers)),
        )
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-14)  # exact up to degree 31


# What they integrate


def test_peaks_of_any_width_are_resolved() -> None:
    """Two integrands a row: exp(−x²) and the logistic density, both ``width`` wide, beside each other."""
    widths, at = tensor([1e-5, 1e-2, 1.0, 30.0]), tensor([0.3, -7.7, 2.0, 11.0])

    def log(row: Tensor, u: Tensor) -> Tensor:
        x = (u - at[row].unsqueeze(-1)) / widths[row].unsqueeze(-1)
        return torch.stack([-x.square(), torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)], -1)

    edges = torch.stack([at - 60 * widths, at, at + 60 * widths], -1)
    panels, total = quadrature.refine(quadrature.between(edges, 0.0), 4, log, every, RULE)
    exact = torch.stack([widths.log() + math.log(math.pi) / 2, widths.log()], -1)
    torch.testing.assert_close(total, exact, rtol=0, atol=1e-12)
    # The nodes of the panels give the same integrals.
    nodes, log_weight = quadrature.gauss(*quadrature.nodes_of(panels, 4))
    by_nodes = (log(torch.arange(4), nodes) + log_weight.unsqueeze(-1)).logsumexp(1)
    torch.testing.assert_close(by_nodes, exact, rtol=0, atol=1e-11)
    assert (panels.row.diff() >= 0).all()


def test_a_peak_between_the_outermost_node_and_an_end_is_found() -> None:
    """1 + n x^n on 0 … 1 is 1 but for the last 1/n: ∫ = 1 + n / (n + 1), to the rounding of n log x."""
    powers = tensor([10.0, 1e3, 1e5, 1e7])

    def log(row: Tensor, u: Tensor) -> Tensor:
        n = powers[row].unsqueeze(-1)
        return torch.logaddexp(torch.zeros_like(u), n.log() + n * u.log()).unsqueeze(-1)

    panels = quadrature.between(tensor([[0.0, 1.0]]).expand(4, 2), 0.0)
    total = quadrature.refine(panels, 4, log, every, RULE)[1]
    rounding = powers * torch.finfo(torch.float64).eps
    assert ((total[:, 0] - (1 + powers / (powers + 1)).log()).abs() <= 1e-12 + rounding).all()


@pytest.mark.parametrize("shift", [0.0, -1e4, -1e7])
def test_products_of_cdfs_are_as_scipy_has_them_however_small(shift: float) -> None:
    rivals = random_scores(3, 6, seed=2, spread=2.0)

    def log(row: Tensor, u: Tensor) -> Tensor:
        inside = torch.special.log_ndtr(u.unsqueeze(-1) - rivals[row].unsqueeze(1)).sum(-1) - u.square() / 2
        return (inside + shift).unsqueeze(-1)

    edges = torch.linspace(-12, 12, 9, dtype=torch.float64).expand(3, 9)
    total = quadrature.refine(quadrature.between(edges, 0.0), 3, log, every, RULE)[1][:, 0] - shift
    for row in range(3):
        z = rivals[row].numpy()
        area = integrate.quad(
            lambda u, z=z: special.ndtr(u - z).prod() * math.exp(-u * u / 2), -12, 12, epsabs=0, epsrel=1e-12
        )[0]
        assert total[row].item() == pytest.approx(math.log(area), abs=max(1e-11, 1e-15 * abs(shift)))


def test_integrals_that_are_not_wanted_are_not_refined() -> None:
    calls: list[int] = []

    def log(row: Tensor, u: Tensor) -> Tensor:
        calls.append(len(row))
        return (-(u / 1e-4).square()).unsqueeze(-1)

    panels = quadrature.between(tensor([[-1.0, 0.0, 1.0]]), 0.0)
    quadrature.refine(panels, 1, log, lambda total: torch.full_like(total, math.inf), RULE)
    assert calls == [2]
    quadrature.refine(panels, 1, log, every, RULE)
    assert len(calls) > 5
