"""Kernels for every class, and for Gumbel noise: against the reference in float64, and what stands around them."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import lossmith
from lossmith import AccuracyLoss
from lossmith.engine.argmax import fused, reference
from lossmith.engine.argmax.kernels import every
from lossmith.engine.runtime import select
from lossmith.functional import argmax_log_prob, argmax_log_probs
from lossmith.noise import Gumbel, Logistic, Noise, Normal

SLOW = pytest.mark.slow
SMOOTH = pytest.mark.parametrize("noise", [Normal(), Logistic()], ids=lambda n: n.name)
EACH = pytest.mark.parametrize("noise", [Normal(), Logistic(), Gumbel()], ids=lambda n: n.name)
P, LOG_P, GRADIENT = 1e-6, 1e-5, 1e-5  # p absolute, log p relative, the gradient relative to the norms of it and of upstream
NEAR = -69.0  # log p of 1e-30


def exact(scores: Tensor, upstream: Tensor, noise: Noise, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """log p of every class and the gradient of Σ upstream · log p, in float64 by the reference."""
    leaf = scores.double().requires_grad_()
    log_p = noise.closed_form_log_probs(leaf / scale) if noise.name == "gumbel" else reference.log_probs(leaf / scale, noise)
    (grad,) = torch.autograd.grad(torch.where(upstream == 0, 0.0, upstream * log_p).sum(), leaf)
    return log_p.detach(), grad


def assert_right(scores: Tensor, noise: Noise, scale: float = 1.0) -> None:
    weights = torch.rand(scores.shape, generator=torch.Generator().manual_seed(5))
    log_q = exact(scores, weights * 0, noise, scale)[0]
    near = log_q > (NEAR if noise.name != "gumbel" else -math.inf)
    upstream = torch.where(near, weights, 0.0)
    slope = exact(scores, upstream, noise, scale)[1]
    leaf = scores.clone().requires_grad_()
    log_p = argmax_log_probs(leaf, noise=noise, scale=scale)
    assert lossmith.last_kernel() == ("closed form" if noise.name == "gumbel" else "cpu")
    (grad,) = torch.autograd.grad(torch.where(near, upstream * log_p, 0.0).sum(), leaf)
    found = log_p.detach().double()
    torch.testing.assert_close(found.exp(), log_q.exp(), rtol=0, atol=P)
    told = near & (log_q.abs() > 1e-30)  # beside the smallest float32
    torch.testing.assert_close(torch.where(told, found, 0.0), torch.where(told, log_q, 0.0), rtol=LOG_P, atol=0)
    error = (grad.double() - slope).norm(dim=-1)
    assert (error <= GRADIENT * (slope.norm(dim=-1) + upstream.norm(dim=-1) / 10)).all(), error.max()


def scores_of(rows: int, classes: int, spread: float, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


# Numbers


@EACH
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0])
@pytest.mark.parametrize(
    "classes",
    [3, pytest.param(10, marks=SLOW), 48, 49, pytest.param(200, marks=SLOW), every.FINE_FROM - 1, every.FINE_FROM, 3000],
)
def test_random_rows(classes: int, spread: float, noise: Noise) -> None:
    assert_right(scores_of(3, classes, spread), noise)


@EACH
@pytest.mark.parametrize("classes", [3, 60, 1000])
def test_one_class_ahead_or_behind(classes: int, noise: Noise) -> None:
    leads = torch.tensor([-14.0, -8.0, -3.0, 0.5, 3.0, 8.0, 14.0, 25.0])
    scores = torch.zeros(len(leads), classes)
    scores[:, 1] = leads
    assert_right(scores, noise)


@EACH
@pytest.mark.parametrize("scale", [1e-3, 0.37, 40.0])
def test_scales(scale: float, noise: Noise) -> None:
    assert_right(scores_of(4, 30, scale) + 1000 * scale, noise, scale)


@EACH
def test_probabilities_sum_to_one_and_gradients_to_zero(noise: Noise) -> None:
    leaf = scores_of(5, 700, 2.0).requires_grad_()
    log_p = argmax_log_probs(leaf, noise=noise)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(5), rtol=0, atol=2e-6)
    (grad,) = torch.autograd.grad(log_p[:, :50].sum(), leaf)
    assert (grad.sum(-1).abs() < 1e-4 * grad.abs().sum(-1)).all()


@EACH
def test_removed_classes(noise: Noise) -> None:
    scores = scores_of(3, 9, 1.0)
    leaf = torch.cat([scores, torch.full((3, 2), -math.inf)], -1).requires_grad_()
    log_p = argmax_log_probs(leaf, noise=noise)
    torch.testing.assert_close(log_p[:, :9], argmax_log_probs(scores, noise=noise), rtol=1e-6, atol=1e-7)
    assert (log_p[:, 9:] == -math.inf).all()
    (grad,) = torch.autograd.grad(log_p[:, :9].sum(), leaf)
    assert (grad[:, 9:] == 0).all()
    assert grad.isfinite().all()


def test_below_the_floor_log_p_goes_on_as_a_line_with_its_gradient() -> None:
    below = torch.tensor([-18.0, -22.0, -200.0])
    leaf = torch.cat([torch.zeros(1), below]).unsqueeze(0).requires_grad_()
    log_p = argmax_log_probs(leaf)
    slopes = log_p[0, 1:].diff() / below.diff()
    assert slopes[0].item() == pytest.approx(slopes[1].item(), rel=1e-3)  # one line
    exact_slope = 16.5 / 2 + 0.1  # of log Φ(x/√2) where it is log 1e-32
    assert slopes[0].item() == pytest.approx(exact_slope, rel=0.05)
    assert -85 < log_p[0, 1] < -75
    (grad,) = torch.autograd.grad(log_p[0, 3], leaf)
    assert grad[0, 3].item() == pytest.approx(slopes[0].item(), rel=1e-3)
    assert grad[0, 0] == -grad[0, 3]
    crowd = torch.cat([torch.zeros(1, 5000), torch.tensor([[-12.0, -15.0, -40.0]])], -1).requires_grad_()
    log_p = argmax_log_probs(crowd)
    assert (log_p[0, -3:].diff() < -10).all()
    assert torch.autograd.grad(log_p[0, -1], crowd)[0].isfinite().all()


def test_gumbel_noise_keeps_the_digits_of_a_sure_target_and_its_gradient() -> None:
    leads = torch.tensor([0.0, 5.0, 20.0, 60.0, 80.0])
    leaf = torch.stack([leads, torch.zeros(5), torch.zeros(5)], -1).requires_grad_()
    log_p = argmax_log_prob(leaf, torch.zeros(5, dtype=torch.int64), noise="gumbel")
    rest = 2 * torch.exp(-leads.double())
    torch.testing.assert_close(log_p.detach().double(), -torch.log1p(rest), rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(log_p.sum(), leaf)
    torch.testing.assert_close(grad[:, 0].double(), rest / (1 + rest), rtol=1e-5, atol=0)


# What stands around them


@EACH
def test_a_scale_for_each_row_its_gradient_and_second_derivatives(noise: Noise) -> None:
    scores = scores_of(4, 6, 1.0)
    found = []
    for dtype, kernel in ((torch.float32, "cpu"), (torch.float64, "reference")):
        z, sigma = scores.to(dtype).requires_grad_(), torch.linspace(0.5, 2, 4, dtype=dtype).unsqueeze(-1).requires_grad_()
        with lossmith.use_kernel(kernel):
            log_p = argmax_log_probs(z, noise=noise, scale=sigma)
            grads = torch.autograd.grad(log_p[:, 0].sum(), (z, sigma), create_graph=True)
            found.append([log_p, *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (z, sigma))])
            target = torch.tensor([0, 1, 2, 5])
            chosen = argmax_log_prob(z, target, noise=noise, scale=sigma)
            grads = torch.autograd.grad(chosen.sum(), (z, sigma), create_graph=True)
            found[-1] += [chosen, *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (z, sigma))]
    for ours, exact_one in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact_one, rtol=5e-5, atol=5e-5)


@EACH
def test_bad_rows_are_named(noise: Noise) -> None:
    for bad, message in ((math.nan, "got nan in row 1"), (math.inf, "got inf in row 1"), (-math.inf, "every class of row 1")):
        scores = scores_of(3, 5, 1.0)
        scores[1, 2] = bad
        if bad == -math.inf:
            scores[1] = bad
        with pytest.raises(ValueError, match=message):
            argmax_log_probs(scores, noise=noise)
        if noise.name == "gumbel":
            with pytest.raises(ValueError, match=message):
                argmax_log_prob(scores, torch.zeros(3, dtype=torch.int64), noise=noise)


def test_under_gumbel_noise_ignored_rows_may_hold_anything() -> None:
    scores = scores_of(4, 5, 1.0)
    scores[2] = math.nan
    leaf, target = scores.requires_grad_(), torch.tensor([0, 4, -100, 1])
    log_p = argmax_log_prob(leaf, target, noise="gumbel", ignore_index=-100)
    (grad,) = torch.autograd.grad(log_p.sum(), leaf)
    assert log_p[2] == 0
    assert (grad[2] == 0).all()
    assert grad.isfinite().all()
    with pytest.raises(ValueError, match="class indices from 0 to 4, got 0 to 9"):
        argmax_log_prob(leaf.detach(), torch.tensor([0, 9, -100, 1]), noise="gumbel", ignore_index=-100)


@EACH
def test_layouts_give_the_same_bits(noise: Noise) -> None:
    scores = scores_of(6, 60, 1.0)
    expected = argmax_log_probs(scores, noise=noise)
    wide = torch.zeros(6, 120)
    wide[:, ::2] = scores
    for laid_out in (scores.T.contiguous().T, wide[:, ::2], scores.view(2, 3, 60)):
        assert torch.equal(argmax_log_probs(laid_out, noise=noise).reshape(6, 60), expected)


THREADS = """
import torch
from lossmith.functional import argmax_log_prob, argmax_log_probs
made = torch.Generator().manual_seed(0)
found = []
for noise in ("normal", "gumbel"):
    for rows, classes in ((64, 300), (7, 4000)):
        leaf = torch.randn(rows, classes, generator=made).requires_grad_()
        log_p = argmax_log_probs(leaf, noise=noise)
        log_p.square().sum().backward()
        found += [log_p.double().sum().item().hex(), leaf.grad.double().abs().sum().item().hex()]
print(found)
"""


def test_the_bits_do_not_depend_on_threads() -> None:
    outputs = set()
    for threads in ("1", "3"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True, env=environment)
        outputs.add(done.stdout)
    assert len(outputs) == 1


@SMOOTH
def test_a_request_for_the_reference_is_obeyed(noise: Noise) -> None:
    scores = scores_of(3, 6, 1.0)
    by_kernel = argmax_log_probs(scores, noise=noise)
    with lossmith.use_kernel("reference"):
        torch.testing.assert_close(argmax_log_probs(scores, noise=noise), by_kernel, rtol=1e-5, atol=1e-6)
        assert lossmith.last_kernel() == "reference"
    with lossmith.use_kernel("cpu"), pytest.raises(ValueError, match="tails of Student's t"):
        argmax_log_probs(scores, noise="studentt")


@EACH
def test_a_kernel_that_fails_leaves_its_work_to_plain_torch(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = scores_of(3, 6, 1.0)
    leaf = scores.clone().requires_grad_()
    expected = argmax_log_probs(leaf, noise=noise)
    (slope,) = torch.autograd.grad(expected[:, 0].sum(), leaf)

    def fails(*_: object) -> None:
        raise OSError("no such instruction")

    monkeypatch.setattr(select, "broken", dict[tuple[str, str], str]())
    monkeypatch.setattr(fused, "broken", select.broken)
    monkeypatch.setattr(fused, "run_team", fails)
    with pytest.warns(RuntimeWarning, match="no such instruction"):
        found = argmax_log_probs(leaf, noise=noise)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found[:, 0].sum(), leaf)[0], slope, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(argmax_log_probs(leaf, noise=noise), expected, rtol=1e-5, atol=1e-6)  # no second warning


@EACH
def test_a_kernel_that_fails_in_backward_leaves_its_work_to_plain_torch(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = scores_of(3, 6, 1.0).requires_grad_()
    log_p = argmax_log_probs(leaf, noise=noise)[:, 0].sum()
    (expected,) = torch.autograd.grad(log_p, leaf, retain_graph=True)

    def fails(*_: object) -> None:
        raise OSError("no such instruction")

    monkeypatch.setattr(select, "broken", dict[tuple[str, str], str]())
    monkeypatch.setattr(fused, "run_team", fails)
    with pytest.warns(RuntimeWarning, match="no such instruction"):
        (found,) = torch.autograd.grad(log_p, leaf)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_losses_of_all_classes_are_served() -> None:
    scores, target = scores_of(8, 12, 1.0), torch.arange(8)
    for loss in (
        AccuracyLoss("normal", q=1.0, label_smoothing=0.1),
        lossmith.FBetaLoss(noise="normal"),
        lossmith.CostLoss(1 - torch.eye(12), noise="normal"),
    ):
        loss(scores, target)
        assert lossmith.last_kernel() == "cpu"


# The loss of all rows in one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", ["normal", "gumbel"])
@pytest.mark.parametrize("q", [1.0, 0.5, 0.0, 1.5])
def test_the_mean_and_the_sum_are_made_of_each_rows_loss(q: float, noise: str, dtype: torch.dtype) -> None:
    scores = scores_of(20, 7, 2.0).to(dtype)
    target = torch.arange(20) % 7
    target[::3], scores[0] = -100, math.nan
    for reduction in ("mean", "sum"):
        found = []
        for way in (reduction, "none"):
            leaf, scale = scores.clone().requires_grad_(), torch.tensor(1.3, dtype=dtype, requires_grad=True)
            loss = AccuracyLoss(noise, scale=scale, q=q, reduction=way)(leaf, target)
            if way == "none":
                loss = loss.sum() / (1 if reduction == "sum" else (target >= 0).sum())
            first = torch.autograd.grad(3 * loss, (leaf, scale), retain_graph=True)
            twice = torch.autograd.grad(loss, leaf, create_graph=True)[0][1:]
            found.append((loss, *first, torch.autograd.grad(twice.square().sum(), leaf)[0][1:]))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_gradient_asked_for_twice_is_the_same() -> None:
    leaf, target = scores_of(5, 4, 1.0).requires_grad_(), torch.arange(5) % 4
    loss = AccuracyLoss("normal", q=1.0)(leaf, target)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    kept = first.clone()
    loss.backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, kept)


def test_the_mean_over_no_row_is_zero_with_a_gradient_of_zero() -> None:
    leaf = scores_of(3, 4, 1.0).requires_grad_()
    loss = AccuracyLoss("normal", q=1.0)(leaf, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert leaf.grad.abs().max() == 0


def test_smoothed_labels_cost_what_their_class_probabilities_cost() -> None:
    scores, target = scores_of(6, 5, 1.0), torch.tensor([0, 1, 2, 3, 4, -100])
    shares = 0.8 * torch.nn.functional.one_hot(target.clamp_min(0), 5).float() + 0.04
    for noise in ("normal", "gumbel"):
        for q in (1.0, 0.3):
            smoothed = AccuracyLoss(noise, q=q, label_smoothing=0.2)(scores, target)
            torch.testing.assert_close(smoothed, AccuracyLoss(noise, q=q)(scores[:5], shares[:5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_classes_are_those_of_the_formula(dtype: torch.dtype) -> None:
    scores = scores_of(500, 2, 30.0).to(dtype).requires_grad_()  # some leads are farther than the kernel's tables reach
    target = torch.arange(500) % 2
    log_p = argmax_log_prob(scores, target)
    assert lossmith.last_kernel() == "cpu"
    (grad,) = torch.autograd.grad(log_p.sum(), scores)
    leaf = scores.detach().double().requires_grad_()
    lead = leaf.gather(1, target[:, None]) - leaf.gather(1, 1 - target[:, None])
    expected = torch.special.log_ndtr(lead[:, 0] / math.sqrt(2))
    single = dtype == torch.float32
    torch.testing.assert_close(log_p.double(), expected, rtol=1e-6 if single else 1e-12, atol=1e-6 if single else 1e-12)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-5 if single else 1e-11, atol=1e-6 if single else 1e-12)


@pytest.mark.parametrize("q", [-9.0, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("classes", [2, 12])
def test_hopeless_rows_cost_no_reference(q: float, classes: int) -> None:
    """A target 150 scales behind: p is 0 in floating point, so the loss is 1 / (1 − q) and has no slope."""
    scores = torch.zeros(4, classes)
    scores[:, 1] = torch.tensor([150.0, 150.0, 2.0, 0.0])
    scores.requires_grad_()
    loss = AccuracyLoss("normal", q=q, reduction="sum")
    value = loss(scores, torch.zeros(4, dtype=torch.int64))
    assert lossmith.last_kernel() == "cpu"
    near = AccuracyLoss("normal", q=q, reduction="sum")(scores[2:], torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(value, near + 2 / (1 - q))
    (grad,) = torch.autograd.grad(value, scores)
    assert not grad[:2].any()
    assert grad[2:].any()


def test_hopeless_rows_are_the_references_where_their_logarithm_counts() -> None:
    scores = torch.zeros(2, 12)
    scores[:, 1] = 150.0
    scores.requires_grad_()
    value = AccuracyLoss("normal", q=1.0, reduction="sum")(scores, torch.zeros(2, dtype=torch.int64))
    assert lossmith.last_kernel() == "cpu, 2 rows by reference"
    expected = reference.log_prob(scores.detach().double(), torch.zeros(2, dtype=torch.int64), Normal())
    torch.testing.assert_close(value.double(), -expected.sum(), rtol=1e-6, atol=0)
