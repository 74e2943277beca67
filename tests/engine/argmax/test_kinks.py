"""Kinks by themselves: where they fall, how ends of panels follow them, and what is missing at ties, against formulas."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lossmith.engine.argmax import kinks
from lossmith.noise import Exponential, Laplace, Noise, Normal, Uniform
from support.cases import BY_NAME, JUMPS, copy_of, random_scores, tensor


@pytest.mark.parametrize("name", ["laplace", *JUMPS])
def test_positions_are_all_scores_with_all_kinks_in_order(name: str) -> None:
    noise, scores = BY_NAME[name], random_scores(3, 5)
    expected = [sorted(z + kink for z in row for kink in noise.kinks) for row in scores.tolist()]
    torch.testing.assert_close(kinks.positions(scores, noise), tensor(expected), rtol=0, atol=0)


def test_a_removed_class_repeats_the_lowest_of_the_others() -> None:
    scores = tensor([[0.5, -math.inf, -1.0], [-math.inf, -math.inf, 2.0]])
    assert kinks.positions(scores, Laplace()).tolist() == [[-1.0, -1.0, 0.5], [2.0, 2.0, 2.0]]


@pytest.mark.parametrize(
    ("noise", "expected"),
    [(Uniform(), [(0.0, -1.0), (1.0, 1.0)]), (Exponential(), [(0.0, 1.0)]), (Laplace(), []), (Normal(), [])],
    ids=str,
)
def test_jumps_are_where_the_density_falls_or_rises_at_once(noise: Noise, expected: list[tuple[float, float]]) -> None:
    for one in (noise, copy_of(noise)):
        found = kinks.jumps(one)
        assert [kink for kink, _ in found] == [kink for kink, _ in expected]
        assert [size for _, size in found] == pytest.approx([size for _, size in expected], abs=1e-9)


# Panels that move


ENDS = tensor([[[-1.5, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 3.0], [3.0, 4.0]]])
AT = [0.0, 1.0, 3.0]  # kinks


def test_ends_follow_the_kinks_on_either_side_of_their_panel() -> None:
    """Between two kinks as np.interp has it; beyond the outermost, in step with it."""
    exists = torch.ones(ENDS.shape[:-1], dtype=torch.bool)
    moved = [0.3, 0.9, 3.7]
    still = kinks.follow(ENDS, exists, tensor([AT]))
    torch.testing.assert_close(still, ENDS, rtol=0, atol=1e-15)
    derivative = torch.autograd.functional.jvp(
        lambda at: kinks.follow(ENDS, exists, at), tensor([AT]), tensor([np.subtract(moved, AT).tolist()])
    )[1]
    old, new = [-1 + AT[0], *AT, AT[-1] + 1], [-1 + moved[0], *moved, moved[-1] + 1]
    inside = np.interp(ENDS.numpy(), old, new)
    expected = torch.from_numpy(inside) - ENDS
    expected[0, 0, 0], expected[0, 4, 1] = moved[0] - AT[0], moved[2] - AT[2]
    torch.testing.assert_close(derivative, expected, rtol=0, atol=1e-14)


def test_a_panel_that_does_not_exist_stays() -> None:
    exists = torch.tensor([[True, False, True, False, True]])
    at = tensor([AT], requires_grad=True)
    for panel in (1, 3):
        slope = torch.autograd.grad(kinks.follow(ENDS, exists, at)[0, panel].sum(), at, allow_unused=True)[0]
        assert slope is None or not slope.any()


def test_no_gap_opens_between_panels_at_kinks_that_coincide() -> None:
    """The two ends that meet at a tie have one derivative, that of the first of the tied."""
    at = tensor([[0.0, 1.0, 1.0 + 1e-15, 3.0]], requires_grad=True)
    ends, exists = tensor([[[0.0, 1.0], [1.0, 3.0]]]), torch.ones(1, 2, dtype=torch.bool)
    slopes = [torch.autograd.grad(kinks.follow(ends, exists, at)[place], at)[0].tolist() for place in ((0, 0, 1), (0, 1, 0))]
    assert slopes == [[[0.0, 1.0, 0.0, 0.0]]] * 2


def test_what_coincides_with_the_targets_own_kinks_is_at_rest() -> None:
    at = tensor([[-0.4, 0.0, 1e-14, 1.0 - 1e-14, 1.3]], requires_grad=True)
    found = kinks.at_rest(at, Uniform())
    assert found.tolist() == [[-0.4, 0.0, 0.0, 1.0, 1.3]]
    assert torch.autograd.grad(found.sum(), at)[0].tolist() == [[1.0, 0.0, 0.0, 0.0, 1.0]]


# What is missing at ties


def jacobian(scores: list[float], log_p: Tensor, noise: Noise) -> Tensor:
    """Of ``own_jumps`` for one row, after a look that its value is 0."""
    row = tensor([scores])
    assert not kinks.own_jumps(row, row, log_p, noise).any()
    found: Tensor = torch.autograd.functional.jacobian(lambda z: kinks.own_jumps(z, z, log_p, noise)[0], row)
    return found[:, 0]


@pytest.mark.parametrize("noise", [Exponential(), Uniform()], ids=str)
def test_without_a_tie_nothing_is_missing(noise: Noise) -> None:
    assert not jacobian([0.25, -0.3, 0.4], tensor([[-1.0, -1.5, -1.2]]), noise).any()


@pytest.mark.parametrize(
    ("noise", "other", "product"),
    [
        (Exponential(), -0.3, 1.0),  # F(0) · F(0.55)
        (Exponential(), 0.75, math.exp(-0.5)),  # F(0) · F(0.25 − 0.75)
        (Uniform(), 0.75, 0.5),  # at 1, F(1) · F(1.25 − 0.75); at 0, where the density rises, F of the other tied class is 0
    ],
)
def test_at_a_tie_the_jump_times_the_others_cdf_is_missing(noise: Noise, other: float, product: float) -> None:
    """fall · Π_{j≠k} F(K_k − z_j) / p_k, in the class's own score and against the class that stands for the tie."""
    slopes = jacobian([0.25, 0.25, other], tensor([[-0.8, -0.8, -2.0]]), noise)
    rate = product * math.exp(0.8)
    one = 1 if slopes[0].any() else 0  # stands for the tie; which of the two does is as torch sorts them
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[1 - one, 1 - one], expected[1 - one, one] = rate, -rate
    torch.testing.assert_close(slopes, expected, rtol=1e-10, atol=0)
