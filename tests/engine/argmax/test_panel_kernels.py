"""The kernels by panels (Laplace, Student's t, exponential, uniform) against the reference and mpmath."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor

import lossmith
from lossmith import AccuracyLoss
from lossmith.engine.argmax import fused, reference
from lossmith.functional import argmax_log_prob
from lossmith.noise import Exponential, Laplace, Noise, StudentT, Uniform

NOISES: list[Noise] = [Laplace(), Exponential(), Uniform(), *map(StudentT, (0.5, 1.0, 3.0, 4.5, 15.0))]
QUICK = [*NOISES[:3], NOISES[4], NOISES[7]]  # heavier tails take more panels, the others go the way of these
CASES = [pytest.param(noise, marks=() if noise in QUICK else pytest.mark.slow) for noise in NOISES]
TOLERANCE = {noise: 1e-10 if isinstance(noise, StudentT) else 1e-12 for noise in NOISES}  # the reference's far tails
every_noise = pytest.mark.parametrize("noise", CASES, ids=str)


def scores_of(rows: int, classes: int, spread: float) -> Tensor:
    return spread * torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)


def targets(scores: Tensor, noise: Noise) -> Tensor:
    """Any class; for uniform noise one that can win."""
    rows, classes = scores.shape
    return scores.argmax(-1) if isinstance(noise, Uniform) else torch.arange(rows) % classes


def assert_right(scores: Tensor, target: Tensor, noise: Noise, scale: float = 1.0, tolerance: float | None = None) -> None:
    tolerance = tolerance or TOLERANCE[noise]
    leaf, other = scores.clone().requires_grad_(), scores.double().requires_grad_()
    log_p = argmax_log_prob(leaf, target, noise=noise, scale=scale)
    assert lossmith.last_kernel() == "cpu"
    expected = reference.log_prob(other / scale, target, noise)
    torch.testing.assert_close(log_p.double(), expected, rtol=tolerance, atol=1e-250)
    possible = expected > -math.inf
    (grad,) = torch.autograd.grad(log_p[possible].sum(), leaf)
    (slope,) = torch.autograd.grad(expected[possible].sum(), other)
    assert ((grad.double() - slope).norm(dim=-1) <= 100 * tolerance * slope.norm(dim=-1)).all()


@every_noise
@pytest.mark.parametrize(
    "classes", [2, 10, pytest.param(3, marks=pytest.mark.slow), pytest.param(40, marks=pytest.mark.slow), 300]
)
@pytest.mark.parametrize("spread", [pytest.param(0.1, marks=pytest.mark.slow), 1.0, 10.0])
def test_leads_over_rivals_of_every_spread(noise: Noise, classes: int, spread: float) -> None:
    scores = scores_of(9, classes, spread)
    leads = torch.linspace(-0.9, 0.9, 9) if isinstance(noise, Uniform) else torch.linspace(-40, 40, 9)
    scores[:, 0] = scores[:, 1:].amax(-1) + leads
    if isinstance(noise, Uniform) and classes >= 40:
        scores[:, 1:] *= 3  # else p is below the smallest float64
        scores[:, 0] = scores[:, 1:].amax(-1) + 0.1 * leads
    assert_right(scores, torch.zeros(9, dtype=torch.int64), noise)


@every_noise
def test_float32_and_scales(noise: Noise) -> None:
    scores = scores_of(20, 12, 2.0)
    for scale in (1e-6, 1.0, 1e4):
        assert_right((scale * scores).float(), targets(scores, noise), noise, scale, 1e-5)


@every_noise
def test_trained_scores_and_equal_rivals(noise: Noise) -> None:
    scores, target = 2 * scores_of(30, 50, 1.0), torch.arange(30)
    scores[target, target] += 20
    scores[:, 40:45] = scores[:, 39:40]
    assert_right(scores, target, noise)


@pytest.mark.parametrize("noise", NOISES[:1] + NOISES[3:], ids=str)
def test_ties(noise: Noise) -> None:
    scores = scores_of(2, 12, 1.0)
    scores[0, 1], scores[1] = scores[0, 0], 0.0
    assert_right(scores, torch.tensor([0, 1]), noise)


@pytest.mark.parametrize("noise", [Exponential(), Uniform()], ids=str)
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_equal_scores_share_all(noise: Noise, classes: int) -> None:
    log_p = argmax_log_prob(torch.full((1, classes), 3.0, dtype=torch.float64), torch.tensor([1]), noise=noise)
    assert log_p.item() == pytest.approx(-math.log(classes), rel=1e-12)
    assert lossmith.last_kernel() == "cpu"


def student(df: float) -> tuple[Callable[[mpmath.mpf], mpmath.mpf], Callable[[mpmath.mpf], mpmath.mpf]]:
    """Density and distribution function."""
    factor = mpmath.gamma(mpmath.mpf(df + 1) / 2) / mpmath.sqrt(df * mpmath.pi) / mpmath.gamma(mpmath.mpf(df) / 2)

    def cdf(x: mpmath.mpf) -> mpmath.mpf:
        tail = mpmath.betainc(mpmath.mpf(df) / 2, 0.5, 0, df / (df + x * x), regularized=True) / 2
        return tail if x < 0 else 1 - tail

    return lambda x: factor * (1 + x * x / df) ** (-mpmath.mpf(df + 1) / 2), cdf


LAWS = {
    "laplace": (lambda x: mpmath.exp(-abs(x)) / 2, lambda x: mpmath.exp(x) / 2 if x < 0 else 1 - mpmath.exp(-x) / 2),
    "exponential": (lambda x: mpmath.exp(x) if x <= 0 else mpmath.mpf(0), lambda x: mpmath.exp(min(x, 0))),
    "uniform": (lambda x: mpmath.mpf(0 <= x <= 1), lambda x: min(max(x, mpmath.mpf(0)), mpmath.mpf(1))),
}


@pytest.mark.parametrize("noise", [*QUICK, NOISES[3]], ids=str)
def test_against_mpmath(noise: Noise) -> None:
    row = [0.3, -1.2, 0.9, 0.0, -4.0]
    with mpmath.workdps(25):
        density, cdf = student(noise.df) if isinstance(noise, StudentT) else LAWS[noise.name]
        places = [-mpmath.inf, -1e6, -1e4, -300, -30, *sorted(row), 1, 1.3, 1.9, 5, 10, 40, 300, 1e4, 1e6, mpmath.inf]
        expected = mpmath.quad(lambda u: density(u - row[0]) * mpmath.fprod(cdf(u - x) for x in row[1:]), places)
    found = argmax_log_prob(torch.tensor([row], dtype=torch.float64), torch.tensor([0]), noise=noise)
    assert found.item() == pytest.approx(float(mpmath.log(expected)), rel=TOLERANCE[noise])


@pytest.mark.parametrize(
    ("df", "lead"),
    [(1.0, -5e4), (3.0, -3e3), (15.0, -300.0), (15.0, 5e4), pytest.param(0.5, 2e3, marks=pytest.mark.slow)],
)
def test_far_tails_against_mpmath(df: float, lead: float) -> None:
    """Where the panels of the reference do not always reach."""
    with mpmath.workdps(30):
        density, cdf = student(df)
        steps = [sign * mpmath.mpf(2) ** k for sign in (-1, 1) for k in range(-2, 40 if df > 1 else 110)]
        places = sorted({-mpmath.inf, mpmath.inf, *steps, *(abs(lead) + step for step in steps)})
        less = mpmath.quad(lambda u: density(u) * cdf(u - abs(lead)), places)  # the chance of the one behind
        expected = float(mpmath.log(less) if lead < 0 else mpmath.log1p(-less))
    found = argmax_log_prob(torch.tensor([[lead, 0.0]], dtype=torch.float64), torch.tensor([0]), noise=StudentT(df))
    assert found.item() == pytest.approx(expected, rel=1e-10)


@every_noise
def test_derivatives(noise: Noise) -> None:
    scores, target = scores_of(4, 6, 0.4).requires_grad_(), torch.tensor([0, 1, 5, 5])
    scale = torch.tensor([[0.8], [1.0], [2.0], [4.0]], dtype=torch.float64, requires_grad=True)

    def value(z: Tensor, s: Tensor) -> Tensor:
        return argmax_log_prob(z, target, noise=noise, scale=s)

    torch.autograd.gradcheck(value, (scores, scale))
    torch.autograd.gradgradcheck(value, (scores, scale))


@every_noise
def test_removed_lost_ignored_and_bad_rows(noise: Noise) -> None:
    scores = scores_of(5, 5, 0.3)
    scores[0, 1], scores[1, 2], scores[2], scores[4, :4] = -math.inf, -math.inf, math.nan, -math.inf
    target = torch.tensor([0, 2, -100, 4, 4])
    leaf = scores.clone().requires_grad_()
    log_p = argmax_log_prob(leaf, target, noise=noise, ignore_index=-100)
    (grad,) = torch.autograd.grad(log_p[[0, 2, 3, 4]].sum(), leaf)
    assert log_p[[1, 2, 4]].tolist() == [-math.inf, 0.0, 0.0]
    assert grad[0, 1] == grad[2].abs().max() == grad[4].abs().max() == 0
    kept = scores[0, [0, 2, 3, 4]]
    expected = reference.log_prob(kept[None], torch.tensor([0]), noise)[0]
    torch.testing.assert_close(log_p[0].detach(), expected, rtol=TOLERANCE[noise], atol=0)
    with pytest.raises(ValueError, match="got nan in row 2"):
        argmax_log_prob(scores, target.clamp_min(0), noise=noise)


@every_noise
def test_no_row_that_training_meets_is_left(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("a row is left to plain torch")

    monkeypatch.setattr(fused, "_by_plain_torch", fails)
    for classes in (2, 10, 300, 5_000):
        for spread in (0.0, 0.01, 1.0, 50.0):
            AccuracyLoss(noise)(scores_of(6, classes, spread).float(), torch.arange(6) % classes)


@every_noise
def test_the_bits_do_not_depend_on_threads(noise: Noise) -> None:
    scores = scores_of(300, 40, 2.0).float()
    target = targets(scores, noise)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = scores.clone().requires_grad_()
            log_p = argmax_log_prob(leaf, target, noise=noise)
            found.append((log_p.detach(), torch.autograd.grad(log_p.sum(), leaf)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
