"""ZLPR and the F1-weighted cross-entropy against sums written out."""

import math
import re
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lossmith.surrogates import F1WeightedCrossEntropyLoss, ZLPRLoss

ROUNDING = 1e-13
Array = np.ndarray[Any, Any]
SCORES = torch.tensor([[0.3, -0.4, 1.2, 0.0], [2.0, 1.8, -1.0, 1.4], [0.1, -3.0, 0.05, 0.2]], dtype=torch.float64)
LABELS = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
SOFT = torch.tensor([[0.9, 0.1, 0.5, 0.0], [0.3, 0.2, 0.01, 1.0], [1.0, 0.0, 0.25, 0.75]], dtype=torch.float64)
EACH = pytest.mark.parametrize("make", [ZLPRLoss, F1WeightedCrossEntropyLoss])


def slopes_of(loss: Any, scores: Tensor, target: Tensor) -> Tensor:
    z = scores.clone().requires_grad_()
    return torch.autograd.grad(loss(z, target).sum(), z)[0]


def zlpr(s: Array, t: Array) -> Array:
    return np.log(1 + (t * np.exp(-s)).sum(-1)) + np.log(1 + ((1 - t) * np.exp(s)).sum(-1))


def smooth_f1(z: Tensor, y: Tensor) -> Tensor:
    p = 1 / (1 + torch.exp(-z))
    return 2 * (y * p).sum() / (y + p).sum()


# --- ZLPR


@pytest.mark.parametrize("target", [LABELS, LABELS.bool(), LABELS.byte(), LABELS.double(), SOFT])
def test_zlpr_is_its_formula(target: Tensor) -> None:
    expected = zlpr(SCORES.numpy(), target.double().numpy())
    np.testing.assert_allclose(ZLPRLoss(reduction="none")(SCORES, target), expected, rtol=ROUNDING)
    assert ZLPRLoss()(SCORES, target).item() == pytest.approx(expected.mean(), rel=ROUNDING)
    assert ZLPRLoss(reduction="sum")(SCORES, target).item() == pytest.approx(expected.sum(), rel=ROUNDING)
    assert ZLPRLoss()(SCORES[0], target[0]).item() == pytest.approx(expected[0], rel=ROUNDING)  # (L,)
    images = SCORES.T[None], target.T[None]  # (N, L, d)
    np.testing.assert_allclose(ZLPRLoss(reduction="none")(*images), expected[None], rtol=ROUNDING)


def test_zlpr_of_one_label_is_cross_entropy_with_the_threshold_as_a_class() -> None:
    # One label on: log(1 + e^−s_y) + log(1 + Σ e^s_j), each a cross-entropy against a class of score 0.
    zero = torch.zeros(3, 1).double()
    target = torch.tensor([2, 0, 1])
    on = cross_entropy(torch.cat([zero, SCORES.gather(1, target[:, None])], 1), torch.ones(3).long(), reduction="none")
    rivals = SCORES.scatter(1, target[:, None], -torch.inf)
    off = cross_entropy(torch.cat([zero, rivals], 1), torch.zeros(3).long(), reduction="none")
    labels = torch.nn.functional.one_hot(target, 4)
    torch.testing.assert_close(ZLPRLoss(reduction="none")(SCORES, labels), on + off, rtol=ROUNDING, atol=0)


def test_zlpr_of_a_single_label_is_binary_cross_entropy() -> None:
    scores, labels = SCORES.reshape(-1, 1), LABELS.reshape(-1, 1)
    expected = binary_cross_entropy_with_logits(scores, labels.double())
    torch.testing.assert_close(ZLPRLoss()(scores, labels), expected, rtol=ROUNDING, atol=0)


def test_soft_labels_are_met_at_half_their_log_odds() -> None:
    target = torch.sigmoid(2 * SCORES)
    assert slopes_of(ZLPRLoss(), SCORES, target).abs().max() < 1e-15
    assert slopes_of(ZLPRLoss(), 2 * SCORES, target).abs().max() > 0.01  # where t = sigmoid(s)


def test_zlpr_leaves_ignored_entries_out() -> None:
    target = LABELS.clone()
    target[0, 1] = target[2, 0] = target[2, 3] = -100
    target[1] = -100
    scores = SCORES.masked_fill(target == -100, math.nan)
    expected = [zlpr(SCORES.numpy()[0, [0, 2, 3]], np.array([1, 1, 0])), 0.0, zlpr(SCORES.numpy()[2, 1:3], np.array([1, 1]))]
    np.testing.assert_allclose(ZLPRLoss(reduction="none")(scores, target), expected, rtol=ROUNDING)
    assert ZLPRLoss()(scores, target).item() == pytest.approx(sum(expected) / 2, rel=ROUNDING)  # one row has no entry
    slopes = slopes_of(ZLPRLoss(), scores, target)
    assert slopes[target == -100].eq(0).all()
    assert slopes[target != -100].ne(0).all()
    other = torch.where(target == -100, 7, target)
    assert ZLPRLoss(ignore_index=7)(scores, other) == ZLPRLoss()(scores, target)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("score", [-300.0, -40.0, -21.0, -1.0, 40.0, 300.0])
@pytest.mark.parametrize("label", [0.0, 1e-6, 0.5, 1.0])
def test_zlpr_keeps_its_digits(score: float, label: float, dtype: torch.dtype, tolerance: float) -> None:
    t = float(torch.tensor(label, dtype=dtype))  # as the type has it
    with mpmath.workdps(300):
        s = mpmath.mpf(score)
        pull, push = t * mpmath.exp(-s), (1 - mpmath.mpf(t)) * mpmath.exp(s)
        expected = float(mpmath.log(1 + pull) + mpmath.log(1 + push))
        slope = float(-pull / (1 + pull) + push / (1 + push))
    scores, target = torch.tensor([[score]], dtype=dtype), torch.tensor([[label]], dtype=dtype)
    assert ZLPRLoss()(scores, target).item() == pytest.approx(expected, rel=tolerance, abs=1e-37)
    assert slopes_of(ZLPRLoss(), scores, target).item() == pytest.approx(slope, rel=2 * tolerance, abs=tolerance)


def test_zlpr_gradcheck() -> None:
    z, upstream = SCORES.clone().requires_grad_(), torch.tensor([2.0, -0.5, 3.0]).double()
    loss = ZLPRLoss(reduction="none")
    for target in (LABELS, SOFT):
        assert torch.autograd.gradcheck(lambda z, target=target: loss(z, target) * upstream, z)
        assert torch.autograd.gradgradcheck(lambda z, target=target: loss(z, target) * upstream, z)


# --- F1-weighted cross-entropy


def f1_weighted(z: Tensor, y: Tensor) -> Array:
    s, t, half = z.numpy(), y.double().numpy(), smooth_f1(z, y.double()).item() / 2
    return -(t * (1 - half) * np.log(1 / (1 + np.exp(-s))) + (1 - t) * half * np.log(1 / (1 + np.exp(s))))


@pytest.mark.parametrize("target", [LABELS, LABELS.bool(), LABELS.byte(), LABELS.double(), SOFT])
def test_f1_weighted_is_its_formula(target: Tensor) -> None:
    expected = f1_weighted(SCORES, target)
    np.testing.assert_allclose(F1WeightedCrossEntropyLoss(reduction="none")(SCORES, target), expected, rtol=1e-12)
    assert F1WeightedCrossEntropyLoss()(SCORES, target).item() == pytest.approx(expected.mean(), rel=1e-12)
    assert F1WeightedCrossEntropyLoss(reduction="sum")(SCORES, target).item() == pytest.approx(expected.sum(), rel=1e-12)
    images = SCORES.T[None], target.T[None]
    np.testing.assert_allclose(F1WeightedCrossEntropyLoss(reduction="none")(*images), expected.T[None], rtol=1e-12)
    flat = F1WeightedCrossEntropyLoss()(SCORES.flatten(), target.flatten())
    assert flat.item() == pytest.approx(expected.mean(), rel=1e-12)


def test_f1_weights_are_those_of_the_gradient_of_f1() -> None:
    # In p: the loss's slope is that of −F1, times S/2 with S = Σ (y + p), over the chance of being right.
    z, y = SCORES.clone().requires_grad_(), LABELS.double()
    of_f1 = torch.autograd.grad(-smooth_f1(z, y), z)[0]
    p = torch.sigmoid(SCORES)
    expected = of_f1 * (y + p).sum() / 2 / torch.where(LABELS == 1, p, 1 - p)
    loss = F1WeightedCrossEntropyLoss(reduction="sum")
    torch.testing.assert_close(slopes_of(loss, SCORES, LABELS), expected, rtol=1e-12, atol=0)


def test_f1_is_that_of_the_entries_that_count() -> None:
    target = LABELS.clone()
    target[1, :3] = target[0, 0] = -100
    keep = target != -100
    scores = SCORES.masked_fill(~keep, math.nan)
    expected = f1_weighted(SCORES[keep], LABELS[keep])
    assert F1WeightedCrossEntropyLoss()(scores, target).item() == pytest.approx(expected.mean(), rel=1e-12)
    each = F1WeightedCrossEntropyLoss(reduction="none")(scores, target)
    np.testing.assert_allclose(each[keep], expected, rtol=1e-12)
    assert each[~keep].eq(0).all()
    assert slopes_of(F1WeightedCrossEntropyLoss(), scores, target)[~keep].eq(0).all()


@pytest.mark.parametrize("scores", [torch.tensor([1.0, -2.0, 0.3]), torch.full((3,), -1000.0), torch.full((3,), 1000.0)])
def test_without_positives_the_f1_weighted_loss_is_nothing(scores: Tensor) -> None:
    target = torch.zeros(3).long()
    assert F1WeightedCrossEntropyLoss()(scores, target).item() == 0
    assert slopes_of(F1WeightedCrossEntropyLoss(), scores, target).eq(0).all()


def test_f1_weighted_loss_pulls_where_p_underflows() -> None:
    scores, target = torch.tensor([-200.0, 3.0]), torch.tensor([1, 1])
    value = F1WeightedCrossEntropyLoss(reduction="none")(scores, target)
    half = torch.sigmoid(torch.tensor(3.0)) / (2 + torch.sigmoid(torch.tensor(3.0)))
    assert value[0].item() == pytest.approx((1 - half.item()) * 200, rel=1e-6)
    slopes = slopes_of(F1WeightedCrossEntropyLoss(reduction="sum"), scores, target)
    assert slopes[0].item() == pytest.approx(half.item() - 1, rel=1e-6)


# --- both


@EACH
@pytest.mark.parametrize("shape", [(0, 4), (2, 4), (0, 4, 3)])
def test_nothing_to_learn_from_is_zero_with_a_zero_gradient(make: Callable[..., Any], shape: tuple[int, ...]) -> None:
    scores = torch.full(shape, math.nan)  # −100 marks every entry
    target = torch.full(shape, -100)
    for reduction in ("mean", "sum"):
        assert make(reduction=reduction)(scores, target).item() == 0
        assert slopes_of(make(reduction=reduction), scores, target).eq(0).all()


def test_no_decision_is_an_empty_batch() -> None:
    scores, target = torch.empty(0), torch.empty(0).long()
    assert F1WeightedCrossEntropyLoss()(scores, target).item() == 0
    assert F1WeightedCrossEntropyLoss(reduction="none")(scores, target).shape == (0,)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [LABELS, SOFT])
def test_half_types_compute_in_float32(make: Callable[..., Any], dtype: torch.dtype, target: Tensor) -> None:
    scores = SCORES.to(dtype)
    expected = make()(scores.float(), target)
    assert make()(scores, target) == expected.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert make()(scores.float(), target) == expected
    assert slopes_of(make(), scores, target).dtype == dtype


@EACH
@pytest.mark.parametrize("target", [LABELS, LABELS.bool(), SOFT])
def test_compiles_into_one_graph(make: Callable[..., Any], target: Tensor) -> None:
    torch.compiler.reset()
    compiled = torch.compile(make(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(SCORES, target), make()(SCORES, target), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(
        slopes_of(compiled, SCORES, target), slopes_of(make(), SCORES, target), rtol=ROUNDING, atol=ROUNDING
    )


@EACH
def test_vmap_is_a_loop(make: Callable[..., Any]) -> None:
    scores, target = torch.stack([SCORES, -SCORES]), torch.stack([LABELS, LABELS.flip(0)])
    looped = torch.stack([make()(z, y) for z, y in zip(scores, target, strict=True)])
    torch.testing.assert_close(torch.func.vmap(make())(scores, target), looped, rtol=ROUNDING, atol=0)
    slopes = torch.stack([slopes_of(make(), z, y) for z, y in zip(scores, target, strict=True)])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(make()))(scores, target), slopes, rtol=1e-12, atol=1e-15)


@EACH
@pytest.mark.parametrize(
    ("scores", "target", "error", "message"),
    [
        (SCORES.long(), LABELS, TypeError, "scores: expected a floating-point tensor, got torch.int64; pass raw model outputs"),
        (SCORES.tolist(), LABELS, TypeError, "scores: expected a torch.Tensor, got list"),
        (SCORES, LABELS.tolist(), TypeError, "target: expected a torch.Tensor of labels, got list"),
        (SCORES, LABELS[:, 0], ValueError, r"target: expected the shape of the scores \(3, 4\), [^\n]+, got \(3,\)"),
        (SCORES, LABELS + 1, ValueError, "target: expected 0 or 1 for each label, got 2"),
        (SCORES, SOFT - 0.5, ValueError, r"target: expected 0 or 1 for each label, got -0.4"),
        (SCORES * math.nan, LABELS, ValueError, r"scores: expected finite numbers or −inf, got nan in row .*"),
        (SCORES, SOFT.clone().requires_grad_(), ValueError, r"target: expected labels without a gradient, .*target.detach\(\)"),
        (SCORES, SOFT * math.nan, ValueError, "target: expected 0 or 1 for each label, got nan"),
    ],
)
def test_refuses_in_one_line(make: Callable[..., Any], scores: Any, target: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()(scores, target)
    assert re.fullmatch(message, str(caught.value))


@EACH
def test_has_no_class_weight(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="weight"):
        make(weight=torch.ones(4))
    with pytest.raises(ValueError, match=r"^reduction: expected 'mean', 'sum' or 'none', got 'avg'$"):
        make(reduction="avg")
