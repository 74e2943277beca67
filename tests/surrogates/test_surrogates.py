import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossmith import surrogates
from lossmith.functional import standardize_scores
from lossmith.surrogates import BetaBernoulliLoss, HingeLoss, PolyLoss, PolynomialLoss, SigmoidLoss
from support import oracles

ROUNDING = 1e-13
Array = np.ndarray[Any, Any]
OF_LABELS = {"ZLPRLoss", "F1WeightedCrossEntropyLoss"}  # test_surrogates_labels.py
EMBEDDINGS = torch.tensor([[1.0, 0.2], [0.9, -0.3], [-1.0, 0.5], [0.1, 2.0]], dtype=torch.float64)
LOSSES: dict[str, Callable[..., Any]] = {
    name: getattr(surrogates, name) for name in surrogates.__all__ if name not in OF_LABELS
}
LOSSES["EMOLoss"] = partial(surrogates.EMOLoss, EMBEDDINGS)
LOSSES["SmoothTopKLoss"] = partial(surrogates.SmoothTopKLoss, 2)
EACH = pytest.mark.parametrize("name", LOSSES)
TWO = torch.tensor([[0.3, -0.4], [2.0, 1.5], [-0.7, 3.0]], dtype=torch.float64)
FOUR = torch.tensor([[0.3, -0.4, 1.2, 0.0], [2.0, 1.8, -1.0, 1.4], [0.1, -3.0, 0.05, 0.2]], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 0])
CLASS_WEIGHT = torch.tensor([1.5, 3.0, 0.7, 2.0], dtype=torch.float64)


def lead(scores: Tensor, target: Tensor) -> Array:
    z, y = scores.numpy(), target.numpy()
    return np.array([row[k] - np.delete(row, k).max() for row, k in zip(z, y, strict=True)])


def own_softmax(scores: Tensor, target: Tensor) -> Array:
    return oracles.softmax(scores.numpy())[np.arange(len(target)), target.numpy()]


def cubic(t: Array, scale: float) -> Array:
    d = np.clip(t / scale, -1, 1)
    return d**3 / 4 - 3 * d / 4 + 0.5


FORMULAS: list[tuple[Any, Callable[[Tensor, Tensor], Array]]] = [
    (HingeLoss(), lambda z, y: np.maximum(0, 1 - lead(z, y))),
    (HingeLoss(0.4), lambda z, y: np.maximum(0, 0.4 - lead(z, y))),
    (SigmoidLoss(), lambda z, y: 1 - 1 / (1 + np.exp(-lead(z, y)))),
    (SigmoidLoss(0.3), lambda z, y: 1 - 1 / (1 + np.exp(-lead(z, y) / 0.3))),
    (PolynomialLoss(), lambda z, y: cubic(lead(z, y), 1.0)),
    (PolynomialLoss(0.5), lambda z, y: cubic(lead(z, y), 0.5)),
    (BetaBernoulliLoss().double(), lambda z, y: -np.log(0.5 / z.shape[1] + 0.5 * own_softmax(z, y))),
    (BetaBernoulliLoss(scale=2.0).double(), lambda z, y: -np.log(0.5 / z.shape[1] + 0.5 * own_softmax(z / 2, y))),
    (PolyLoss(), lambda z, y: -np.log(own_softmax(z, y)) + 1 - own_softmax(z, y)),
    (PolyLoss(2.5), lambda z, y: -np.log(own_softmax(z, y)) + 2.5 * (1 - own_softmax(z, y))),
]


@pytest.mark.parametrize("scores", [TWO, FOUR], ids=["two classes", "four"])
@pytest.mark.parametrize(("loss", "formula"), FORMULAS)
def test_values_are_their_formulas(loss: Any, formula: Callable[[Tensor, Tensor], Array], scores: Tensor) -> None:
    assert loss(scores, TARGET).item() == pytest.approx(formula(scores, TARGET).mean(), rel=ROUNDING)
    assert loss(scores[1], TARGET[1]).item() == pytest.approx(formula(scores, TARGET)[1], rel=ROUNDING)  # (C,)


def test_two_class_beta_bernoulli_starts_as_exacts_baseline() -> None:
    t = TWO[:, 0] - TWO[:, 1]
    expected = -torch.log(0.25 + torch.sigmoid(t) / 2)
    for loss in (BetaBernoulliLoss(reduction="none"), BetaBernoulliLoss(2, reduction="none")):
        torch.testing.assert_close(loss.double()(TWO, torch.zeros(3, dtype=torch.int64)), expected, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
def test_hinge_is_crammer_and_singers(margin: float) -> None:
    z, y = FOUR.numpy(), TARGET.numpy()
    by_class = [max(max(0.0, margin + z[i, j] - z[i, k]) for j in range(4) if j != k) for i, k in enumerate(y)]
    assert HingeLoss(margin)(FOUR, TARGET).item() == pytest.approx(np.mean(by_class), rel=ROUNDING)


@pytest.mark.parametrize("C", [2, 10, 1000])
def test_the_slope_of_the_hinge_does_not_depend_on_the_number_of_classes(C: int) -> None:
    scores = torch.linspace(1, 0, C, dtype=torch.float64).unsqueeze(0).requires_grad_()
    (slopes,) = torch.autograd.grad(HingeLoss()(scores, torch.tensor([C - 1])), scores)
    assert slopes[0, -1].item() == -1.0
    assert slopes[0, 0].item() == 1.0
    assert slopes.abs().sum().item() == 2.0


@pytest.mark.parametrize("make", [HingeLoss, SigmoidLoss, PolynomialLoss])
def test_tied_rivals_share_the_gradient(make: Callable[..., Any]) -> None:
    scores = torch.tensor([[0.2, 0.5, 0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(make()(scores, torch.tensor([0])), scores)
    assert slopes[0, 1] == slopes[0, 2] == -slopes[0, 0] / 2 > 0
    assert slopes[0, 3] == 0


@pytest.mark.parametrize("make", [SigmoidLoss, PolynomialLoss])
def test_relaxations_tend_to_the_counted_error(make: Callable[..., Any]) -> None:
    error = (lead(FOUR, TARGET) < 0).astype(float)
    gaps = [abs(make(scale, reduction="none")(FOUR, TARGET).numpy() - error).max() for scale in (1.0, 0.1, 0.01, 0.001)]
    assert gaps[0] > 0.1
    assert all(after <= before for before, after in itertools.pairwise(gaps))
    assert gaps[-1] < 1e-9


@EACH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT], ids=["unweighted", "weighted"])
def test_weight_ignore_index_and_reduction(name: str, reduction: Any, weight: Tensor | None) -> None:
    classes = torch.tensor([3, 1, 2])
    plain = LOSSES[name](reduction="none")(FOUR, classes).detach()
    for ignore_index, target in ((-100, torch.tensor([3, -100, 2])), (1, classes)):
        of_sample = torch.tensor([1.0, 0.0, 1.0]).double()
        if weight is not None:
            of_sample = of_sample * weight[classes]
        weighted = plain * of_sample
        expected = {"mean": weighted.sum() / of_sample.sum(), "sum": weighted.sum(), "none": weighted}[reduction]
        loss = LOSSES[name](weight=weight, ignore_index=ignore_index, reduction=reduction)
        torch.testing.assert_close(loss(FOUR, target).detach(), expected, rtol=ROUNDING, atol=0)


@EACH
def test_all_ignored_is_zero(name: str) -> None:
    target = torch.full((3,), -100)
    assert LOSSES[name]()(FOUR, target) == 0
    assert LOSSES[name](reduction="sum")(FOUR, target).item() == 0.0


@EACH
def test_images_are_flattened(name: str) -> None:
    scores = FOUR.expand(2, 3, 4).permute(0, 2, 1)  # (N, C, d)
    per_pixel = LOSSES[name](reduction="none")(scores, TARGET.expand(2, 3))
    torch.testing.assert_close(per_pixel[1], LOSSES[name](reduction="none")(FOUR, TARGET), rtol=ROUNDING, atol=0)


@EACH
def test_gradcheck_with_an_upstream_gradient(name: str) -> None:
    upstream = torch.tensor([2.0, -0.5, 3.0], dtype=torch.float64)
    for options in ({}, {"standardize": True, "weight": CLASS_WEIGHT}):
        loss = LOSSES[name](reduction="none", **options).double()
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, TARGET) * upstream, FOUR.clone().requires_grad_())


def test_beta_bernoulli_learns_its_own_parameters() -> None:
    loss = BetaBernoulliLoss(4).double()
    assert {name for name, _ in loss.named_parameters()} == {"mix_logit", "prior_logits"}
    slopes = torch.autograd.grad(loss(FOUR, TARGET), list(loss.parameters()))
    assert all(slope.abs().max() > 1e-3 for slope in slopes)
    before = loss(FOUR, TARGET).item()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        loss(FOUR, TARGET).backward()
        optimizer.step()
    assert loss(FOUR, TARGET).item() < before - 0.01
    assert loss.prior_logits is not None
    assert loss.prior_logits[:2].min() > loss.prior_logits[2:].max()  # the classes that occur


def test_beta_bernoulli_gradcheck_in_its_parameters() -> None:
    loss = BetaBernoulliLoss(4).double()
    names = [name for name, _ in loss.named_parameters()]
    start = [torch.tensor(0.3).double().requires_grad_(), torch.tensor([0.1, -0.2, 0.0, 0.5]).double().requires_grad_()]

    def value(*parameters: Tensor) -> Any:
        return torch.func.functional_call(loss, dict(zip(names, parameters, strict=True)), (FOUR, TARGET))

    assert torch.autograd.gradcheck(value, start)


def test_beta_bernoulli_bounds_what_one_sample_costs() -> None:
    hopeless = torch.tensor([[-1000.0, 0.0]], dtype=torch.float64)
    assert BetaBernoulliLoss().double()(hopeless, torch.tensor([0])).item() == pytest.approx(math.log(4), rel=ROUNDING)


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, 2.0])
def test_poly_is_cross_entropy_plus_a_linear_term(epsilon: float) -> None:
    p = FOUR.softmax(-1)[range(3), TARGET]
    expected = cross_entropy(FOUR, TARGET) + epsilon * (1 - p).mean()
    torch.testing.assert_close(PolyLoss(epsilon)(FOUR, TARGET), expected, rtol=ROUNDING, atol=0)


@EACH
def test_standardize_first(name: str) -> None:
    expected = LOSSES[name]()(standardize_scores(FOUR), TARGET)
    torch.testing.assert_close(LOSSES[name](standardize=True)(FOUR * 9 + 4, TARGET), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HingeLoss(0.0), r"^margin: expected a number > 0 in units of the scores, got 0.0$"),
        (lambda: HingeLoss(math.nan), r"^margin: expected [^\n]+, got nan$"),
        (lambda: SigmoidLoss(-1.0), r"^scale: expected a number > 0 in units of the scores, got -1.0$"),
        (lambda: PolynomialLoss(0.0), r"^scale: expected [^\n]+, got 0.0$"),
        (lambda: BetaBernoulliLoss(scale=0.0), r"^scale: expected [^\n]+, got 0.0$"),
        (lambda: PolyLoss(-1.5), r"^epsilon: expected a number ≥ -1, got -1.5$"),
        (lambda: HingeLoss(reduction="avg"), r"^reduction: expected 'mean', 'sum' or 'none', got 'avg'$"),
        (lambda: HingeLoss()(FOUR, FOUR), r"^target: HingeLoss takes class indices, not probabilities; got torch.float64$"),
        (lambda: HingeLoss()(FOUR, TARGET[:2]), r"^target: expected class indices of shape \(3,\) or [^\n]+ of shape \(2,\)$"),
        (lambda: HingeLoss()(FOUR, TARGET + 5), r"^target: expected class indices from 0 to 3, got 5 to 6$"),
        (lambda: PolyLoss(weight=CLASS_WEIGHT)(FOUR, TARGET - 1), r"^target: expected class indices from 0 to 3, got -1 to 0$"),
    ],
)
def test_refuses_in_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@EACH
def test_integer_scores_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"^scores: expected a floating-point tensor, got torch.int64[^\n]*$"):
        LOSSES[name]()(FOUR.long(), TARGET)
