"""The float64 kernels against the reference and mpmath, and what a solver asks of them."""

import math

import mpmath
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import lossmith
from lossmith import AccuracyLoss
from lossmith import noise as noises
from lossmith.engine.argmax import reference
from lossmith.functional import argmax_log_prob, argmax_log_probs
from lossmith.noise import Noise, StudentT

EACH = pytest.mark.parametrize("noise", [noises.get("normal"), noises.get("logistic")], ids=str)
VALUE, GRADIENT = 1e-9, 1e-7  # relative to max(1, |log p|), and to the norm


def scores_of(rows: int, classes: int, spread: float) -> Tensor:
    return spread * torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)


def assert_target_right(scores: Tensor, target: Tensor, noise: Noise, scale: float = 1.0) -> None:
    """log p relative to itself too: next to p = 1, where it is −(1 − p), and far below."""
    leaf, other = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    log_p = argmax_log_prob(leaf, target, noise=noise, scale=scale)
    assert lossmith.last_kernel() == "cpu"
    expected = reference.log_prob(other / scale, target, noise)
    torch.testing.assert_close(log_p, expected, rtol=VALUE, atol=1e-250)
    (grad,), (slope,) = torch.autograd.grad(log_p.sum(), leaf), torch.autograd.grad(expected.sum(), other)
    assert ((grad - slope).norm(dim=-1) <= GRADIENT * slope.norm(dim=-1)).all()


def assert_all_right(scores: Tensor, noise: Noise, scale: float = 1.0) -> None:
    upstream = torch.rand(scores.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    upstream = upstream.masked_fill(scores.isneginf(), 0.0)
    leaf, other = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    log_p, expected = argmax_log_probs(leaf, noise=noise, scale=scale), reference.log_probs(other / scale, noise)
    off = (log_p - expected).nan_to_num(nan=0.0).abs()  # −inf twice
    assert (off <= VALUE * expected.abs().clamp_min(1)).all()
    (grad,) = torch.autograd.grad(torch.where(upstream == 0, 0.0, upstream * log_p).sum(), leaf)
    (slope,) = torch.autograd.grad(torch.where(upstream == 0, 0.0, upstream * expected).sum(), other)
    assert ((grad - slope).norm(dim=-1) <= GRADIENT * slope.norm(dim=-1)).all()


@EACH
@pytest.mark.parametrize("classes", [3, 10, 49, 100, 600, 3000])
def test_leads_over_rivals_of_every_spread(classes: int, noise: Noise) -> None:
    for spread in (0.0, 0.5, 2.0, 8.0):
        scores = scores_of(11, classes, spread)
        scores[:, 0] = scores[:, 1:].amax(-1) + torch.linspace(-40, 40, 11)
        assert_target_right(scores, torch.zeros(11, dtype=torch.int64), noise)


@EACH
@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_scales(scale: float, noise: Noise) -> None:
    scores = scale * scores_of(8, 12, 2.0)
    assert_target_right(scores, torch.arange(8), noise, scale)
    assert_all_right(scores, noise, scale)
    assert lossmith.last_kernel() == "cpu"


@EACH
@pytest.mark.parametrize("classes", [3, 10, 49, 100, 600, 3000])
def test_every_class(classes: int, noise: Noise) -> None:
    for spread in (0.0, 0.5, 2.0):
        scores = scores_of(5, classes, spread)
        scores[0, :2] = torch.tensor([9.0, -math.inf])
        assert_all_right(scores, noise)
        assert lossmith.last_kernel() == "cpu"


@EACH
def test_two_classes_that_share_the_first_place(noise: Noise) -> None:
    """Both have p = ½, give or take a rounding, and a third is hopeless."""
    for third in (0.0, -20.0, -60.0):
        assert_all_right(torch.tensor([[third, 20.0, 20.0], [20.0, 20.0 - 1e-13, third]], dtype=torch.float64), noise)


@EACH
def test_rows_of_classes_that_hardly_ever_win_are_left_to_the_reference(noise: Noise) -> None:
    scores = scores_of(3, 200, 1.0)
    scores[1, 7] = -400.0
    argmax_log_probs(scores, noise=noise)
    assert lossmith.last_kernel() == "cpu, 1 row by reference"
    assert_all_right(scores, noise)


def test_against_mpmath() -> None:
    scores = torch.tensor([[0.3, -1.2, 2.0, 0.0], [14.0, 1.0, 0.5, -3.0], [-9.0, 1.0, 1.5, 2.0]], dtype=torch.float64)
    with mpmath.workdps(30):

        def log_p(row: list[float]) -> float:
            def integrand(u: mpmath.mpf) -> mpmath.mpf:
                return mpmath.npdf(u - row[0]) * mpmath.fprod(mpmath.ncdf(u - x) for x in row[1:])

            return float(mpmath.log(mpmath.quad(integrand, [-20, -5, -2, 0, 1, 2, 3, 5, 8, 14, 25])))

        expected = torch.tensor([log_p(row) for row in scores.tolist()], dtype=torch.float64)
    found = argmax_log_prob(scores, torch.zeros(3, dtype=torch.int64))
    assert lossmith.last_kernel() == "cpu"
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-16)


@EACH
def test_gradients_are_those_of_the_values(noise: Noise) -> None:
    scores, target = scores_of(4, 6, 1.0).requires_grad_(), torch.tensor([0, 1, 5, 5])
    scale = torch.tensor([[0.5], [1.0], [2.0], [4.0]], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda z, s: argmax_log_prob(z, target, noise=noise, scale=s), (scores, scale))
    torch.autograd.gradcheck(lambda z, s: argmax_log_probs(z, noise=noise, scale=s), (scores, scale))
    torch.autograd.gradgradcheck(lambda z, s: argmax_log_prob(z, target, noise=noise, scale=s), (scores, scale))


def test_removed_lost_and_ignored() -> None:
    scores = scores_of(4, 5, 1.0)
    scores[0, 1], scores[1, 2], scores[2] = -math.inf, -math.inf, math.nan
    target = torch.tensor([0, 2, -100, 4])
    leaf = scores.clone().requires_grad_()
    log_p = argmax_log_prob(leaf, target, ignore_index=-100)
    (grad,) = torch.autograd.grad(log_p[[0, 2, 3]].sum(), leaf)
    assert log_p[1] == -math.inf
    assert log_p[2] == 0
    assert (grad[2] == 0).all()
    assert grad[0, 1] == 0
    kept = scores[0, [0, 2, 3, 4]]
    torch.testing.assert_close(log_p[0], reference.log_prob(kept[None], torch.tensor([0]), noises.get("normal"))[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_rows_are_named(value: float) -> None:
    scores = scores_of(3, 5, 1.0)
    scores[1, 3] = value
    for call in (lambda: argmax_log_prob(scores, torch.zeros(3, dtype=torch.int64)), lambda: argmax_log_probs(scores)):
        with pytest.raises(ValueError, match=f"got {value} in row 1"):
            call()


def test_the_bits_do_not_depend_on_threads() -> None:
    scores, target = scores_of(300, 40, 2.0), torch.arange(300) % 40
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = scores.clone().requires_grad_()
            log_p, every = argmax_log_prob(leaf, target), argmax_log_probs(leaf)
            upstream = torch.ones_like(log_p), torch.ones_like(every)
            found.append((log_p.detach(), every.detach(), *torch.autograd.grad((log_p, every), leaf, upstream)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_tails_that_the_tables_do_not_follow_go_to_the_reference() -> None:
    AccuracyLoss(StudentT(0.25))(scores_of(2, 4, 1.0), torch.tensor([0, 1]))
    assert lossmith.last_kernel() == "reference"


def test_a_solver_reaches_a_tolerance_that_float32_cannot() -> None:
    """The weights of a linear model under normal noise: BFGS gets as far as with a closed form, to where values round."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(4, 3, generator=generator, dtype=torch.float64) + x.new_tensor([0.0, 1.0, 0.5])).argmax(-1)
    y[:20] = torch.arange(20) % 3
    loss = AccuracyLoss("normal", q=1.0)

    def objective(w: object) -> tuple[float, object]:
        weight = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        value = loss(x @ weight.view(4, 3), y) + 1e-3 * weight.square().sum()
        value.backward()
        assert weight.grad is not None
        return float(value.detach()), weight.grad.numpy()

    start = torch.zeros(12, dtype=torch.float64).numpy()
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-12})
    assert abs(found.jac).max() < 1e-8
