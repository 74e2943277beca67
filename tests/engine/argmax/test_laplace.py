"""The kernel for Laplace noise against the reference and mpmath."""

import math

import mpmath
import pytest
import torch
from torch import Tensor

import lossmith
from lossmith import AccuracyLoss
from lossmith.engine.argmax import fused, reference
from lossmith.functional import argmax_log_prob
from lossmith.noise import Laplace

NOISE = Laplace()


def scores_of(rows: int, classes: int, spread: float) -> Tensor:
    return spread * torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)


def assert_right(scores: Tensor, target: Tensor, scale: float = 1.0, tolerance: float = 1e-12) -> None:
    leaf, other = scores.clone().requires_grad_(), scores.double().requires_grad_()
    log_p = argmax_log_prob(leaf, target, noise=NOISE, scale=scale)
    assert lossmith.last_kernel() == "cpu"
    expected = reference.log_prob(other / scale, target, NOISE)
    torch.testing.assert_close(log_p.double(), expected, rtol=tolerance, atol=1e-250)
    (grad,), (slope,) = torch.autograd.grad(log_p.sum(), leaf), torch.autograd.grad(expected.sum(), other)
    assert ((grad.double() - slope).norm(dim=-1) <= 10 * tolerance * slope.norm(dim=-1)).all()


@pytest.mark.parametrize("classes", [2, 3, 10, 40, 100, 1000])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 10.0])
def test_leads_over_rivals_of_every_spread(classes: int, spread: float) -> None:
    scores = scores_of(9, classes, spread)
    scores[:, 0] = scores[:, 1:].amax(-1) + torch.linspace(-40, 40, 9)
    assert_right(scores, torch.zeros(9, dtype=torch.int64))


def test_float32_and_scales() -> None:
    scores = scores_of(20, 12, 2.0)
    for scale in (1e-6, 1.0, 1e4):
        assert_right((scale * scores).float(), torch.arange(20) % 12, scale, 1e-5)


def test_trained_scores_and_ties() -> None:
    scores, target = 2 * scores_of(30, 50, 1.0), torch.arange(30)
    scores[target, target] += 20
    scores[:, 40:45] = scores[:, 39:40]
    scores[0, 1], scores[1] = scores[0, 0], 0.0
    assert_right(scores, target)


def test_against_mpmath() -> None:
    row = [0.3, -1.2, 2.0, 0.0, -4.0]
    with mpmath.workdps(25):

        def cdf(x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.exp(x) / 2 if x < 0 else 1 - mpmath.exp(-x) / 2

        def integrand(u: mpmath.mpf) -> mpmath.mpf:
            return mpmath.exp(-abs(u - row[0])) / 2 * mpmath.fprod(cdf(u - x) for x in row[1:])

        expected = float(mpmath.log(mpmath.quad(integrand, [-30, *sorted(row), 5, 10, 40])))
    found = argmax_log_prob(torch.tensor([row], dtype=torch.float64), torch.tensor([0]), noise=NOISE)
    assert found.item() == pytest.approx(expected, rel=1e-13)


def test_derivatives() -> None:
    scores, target = scores_of(4, 6, 1.0).requires_grad_(), torch.tensor([0, 1, 5, 5])
    scale = torch.tensor([[0.5], [1.0], [2.0], [4.0]], dtype=torch.float64, requires_grad=True)

    def value(z: Tensor, s: Tensor) -> Tensor:
        return argmax_log_prob(z, target, noise=NOISE, scale=s)

    torch.autograd.gradcheck(value, (scores, scale))
    torch.autograd.gradgradcheck(value, (scores, scale))


def test_removed_lost_ignored_and_bad_rows() -> None:
    scores = scores_of(4, 5, 1.0)
    scores[0, 1], scores[1, 2], scores[2] = -math.inf, -math.inf, math.nan
    target = torch.tensor([0, 2, -100, 4])
    leaf = scores.clone().requires_grad_()
    log_p = argmax_log_prob(leaf, target, noise=NOISE, ignore_index=-100)
    (grad,) = torch.autograd.grad(log_p[[0, 2, 3]].sum(), leaf)
    assert log_p[1:3].tolist() == [-math.inf, 0.0]
    assert grad[0, 1] == grad[2].abs().max() == 0
    kept = scores[0, [0, 2, 3, 4]]
    torch.testing.assert_close(log_p[0], reference.log_prob(kept[None], torch.tensor([0]), NOISE)[0])
    with pytest.raises(ValueError, match="got nan in row 2"):
        argmax_log_prob(scores, target.clamp_min(0), noise=NOISE)


def test_no_row_that_training_meets_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("a row is left to plain torch")

    monkeypatch.setattr(fused, "_by_plain_torch", fails)
    for classes in (2, 10, 300, 20_000):
        for spread in (0.0, 0.01, 1.0, 50.0):
            AccuracyLoss("laplace")(scores_of(6, classes, spread).float(), torch.arange(6) % classes)


def test_the_bits_do_not_depend_on_threads() -> None:
    scores, target = scores_of(300, 40, 2.0).float(), torch.arange(300) % 40
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = scores.clone().requires_grad_()
            log_p = argmax_log_prob(leaf, target, noise=NOISE)
            found.append((log_p.detach(), torch.autograd.grad(log_p.sum(), leaf)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
