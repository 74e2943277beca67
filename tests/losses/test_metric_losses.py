"""Every metric loss: a table against numpy, and its limit as scale → 0 against scikit-learn."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

import lossmith
from lossmith import functional
from support import metric_oracles as oracles
from support.cases import NEW_TORCH
from support.metric_oracles import IGNORED

PRECISION = {torch.float64: 1e-9, torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FLOATS = pytest.mark.parametrize("dtype", PRECISION, ids=lambda d: str(d).removeprefix("torch."))
EVERY, ONE = ("mean", "sum", "none"), ("mean",)
C = 4


class Case(NamedTuple):
    """A loss under Gumbel noise, what it should be, and what it takes."""

    make: Callable[..., torch.nn.Module]
    oracle: Callable[..., Any]
    kind: str = "classes"  # or "labels", "binary"
    reductions: tuple[str, ...] = EVERY


def made(loss: Callable[..., torch.nn.Module], *args: Any, **fixed: Any) -> Callable[..., torch.nn.Module]:
    return lambda **options: loss(*args, noise="gumbel", **fixed, **options)


CASES = {
    "accuracy": Case(made(lossmith.AccuracyLoss), oracles.accuracy),
    "accuracy of the batch": Case(made(lossmith.AccuracyLoss, over="batch"), oracles.accuracy_of_the_batch, reductions=ONE),
    "top two": Case(made(lossmith.TopKAccuracyLoss, 2), oracles.top_two),
    "balanced": Case(made(lossmith.BalancedAccuracyLoss), oracles.balanced),
    "cost": Case(made(lossmith.CostLoss, torch.tensor(oracles.COSTS)), oracles.cost),
    "F1 macro": Case(made(lossmith.FBetaLoss), oracles.of_counts(oracles.f_beta(1), "macro"), reductions=ONE),
    "F2 micro": Case(made(lossmith.FBetaLoss, 2.0, "micro"), oracles.of_counts(oracles.f_beta(2), "micro"), reductions=ONE),
    "F½ weighted": Case(
        made(lossmith.FBetaLoss, 0.5, "weighted"), oracles.of_counts(oracles.f_beta(0.5), "weighted"), reductions=ONE
    ),
    "F1 of labels": Case(made(lossmith.FBetaLoss, task="multilabel"), oracles.f_one_of_labels, "labels", ONE),
    "Jaccard": Case(made(lossmith.JaccardLoss), oracles.of_counts(oracles.jaccard, "macro"), reductions=ONE),
    "G-mean": Case(
        lambda **options: lossmith.metric(oracles.g_mean, noise="gumbel", average="micro", **options).loss,
        oracles.of_counts(oracles.g_mean, "micro"),
        reductions=ONE,
    ),
    "AUC": Case(made(lossmith.AUCLoss), oracles.auc, "binary", ONE),
    "AUC of classes": Case(made(lossmith.AUCLoss, "multiclass"), oracles.auc_of_classes, "classes", ONE),
    "average precision": Case(made(lossmith.AveragePrecisionLoss), oracles.average_precision, "binary", ONE),
    "subset": Case(made(lossmith.SubsetAccuracyLoss), oracles.subset, "labels"),
}
LAYOUTS = {"(C,)": (), "(N, C)": (6,), "(N, C, d1, d2)": (3, 2, 2)}


def inputs(kind: str, layout: str, ignored: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Any, Any]:
    """Scores and targets as the loss takes them, and flat, in float64, as the oracle does."""
    generator = torch.Generator().manual_seed(len(layout))
    outer = LAYOUTS[layout]
    shape = (*outer, 1 if kind == "binary" else C)
    flat = (1.5 * torch.randn(shape, generator=generator)).to(dtype).double().reshape(-1, shape[-1])
    size = len(flat) if kind == "classes" else flat.shape
    target = torch.randint(0, C if kind == "classes" else 2, (size,) if isinstance(size, int) else size, generator=generator)
    if ignored == "all":
        target[:] = IGNORED
    elif ignored == "some" and len(target) > 1:
        target[1] = IGNORED
        target.flatten()[-2] = IGNORED
    scores = flat.clone()
    if ignored != "none":
        lost = target == IGNORED
        scores[lost] = torch.nan  # nobody's business
        flat[lost] = 0.0
    scores = scores.reshape(shape).to(dtype)
    given = target.reshape(outer if kind == "classes" else shape)
    if kind == "binary":
        return scores.squeeze(-1), given.squeeze(-1), flat[:, 0].numpy(), target[:, 0].numpy()
    if len(outer):
        scores = scores.movedim(-1, 1)
        given = given.movedim(-1, 1) if kind == "labels" else given
    return scores, given, flat.numpy(), target.numpy()


@FLOATS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_every_loss_is_its_definition(name: str, layout: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for ignored, reduction, q in itertools.product(("none", "some", "all"), case.reductions, (1.0, 0.0, 0.5)):
        check(case, case.make(reduction=reduction, q=q), layout, ignored, dtype, reduction, q)


@pytest.fixture
def _many_graphs() -> Iterator[None]:
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch.compiler.reset()


@NEW_TORCH
@pytest.mark.slow  # test_compiled_in_one_graph_it_is_the_same traces each loss once
@pytest.mark.usefixtures("_many_graphs")
@pytest.mark.parametrize("name", CASES)
def test_every_loss_is_its_definition_compiled(name: str) -> None:
    """Traced as for any backend."""
    check_compiled(CASES[name], ["(N, C)"], torch.float32, "mean")


@NEW_TORCH
@pytest.mark.slow
@pytest.mark.usefixtures("_many_graphs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_every_loss_is_its_definition_compiled_for_each_layout_dtype_and_reduction(name: str, dtype: torch.dtype) -> None:
    """Every graph takes seconds, so that each dimension of the table goes with one of the others."""
    case = CASES[name]
    for reduction in case.reductions if dtype == torch.float32 else ONE:
        check_compiled(case, list(LAYOUTS) if reduction == "mean" and dtype == torch.float32 else ["(N, C)"], dtype, reduction)


def check_compiled(case: Case, layouts: list[str], dtype: torch.dtype, reduction: str) -> None:
    compiled = torch.compile(case.make(reduction=reduction, q=1.0), fullgraph=True, backend="aot_eager")
    for layout, ignored in itertools.product(layouts, ("none", "some", "all")):
        check(case, compiled, layout, ignored, dtype, reduction, 1.0)


def check(
    case: Case, loss: Callable[..., Tensor], layout: str, ignored: str, dtype: torch.dtype, reduction: str, q: float
) -> None:
    scores, target, z, y = inputs(case.kind, layout, ignored, dtype)
    scores.requires_grad_()
    found = loss(scores, target)
    wanted = torch.as_tensor(case.oracle(z, y, q, reduction))
    assert found.dtype == dtype
    tolerance = PRECISION[dtype]
    torch.testing.assert_close(found.double().flatten(), wanted.double().flatten(), rtol=tolerance, atol=tolerance)
    (grad,) = torch.autograd.grad(found.sum(), scores)
    assert grad.isfinite().all()
    if ignored == "all":
        assert not grad.any()


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_definition(name: str) -> None:
    case = CASES[name]
    scores, target, z, y = inputs(case.kind, "(N, C)", "some", torch.float64)
    scores = scores.nan_to_num().requires_grad_()
    (grad,) = torch.autograd.grad(case.make(q=1.0)(scores, target), scores)
    step = 1e-5
    for i, j in [(0, 0), (2, z.shape[-1] - 1), (3, 0)] if z.ndim == 2 else [(0, None), (2, None), (3, None)]:
        place = (i,) if j is None else (i, j)
        ends = []
        for sign in (1, -1):
            moved = z.copy()
            moved[place] += sign * step
            ends.append(float(case.oracle(moved, y, 1.0, "mean")))
        assert grad[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)


# The limit: as scale → 0, with q = 0, each loss is one minus what is counted


@pytest.fixture
def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(0, C, (60,), generator=generator)
    scores = torch.randn(60, C, generator=generator, dtype=torch.float64)
    scores[torch.arange(60), target] += 0.7
    return scores, target


@pytest.fixture
def labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    target = torch.randint(0, 2, (50, 3), generator=generator)
    return torch.randn(50, 3, generator=generator, dtype=torch.float64) + target, target


SHARP: dict[str, Any] = {"scale": 1e-9, "q": 0.0}
F_BETA: dict[str, Any] = {"beta": 2.0}


def test_limits_of_the_accuracies(sample: tuple[Tensor, Tensor]) -> None:
    scores, target = sample
    y, predicted = target.numpy(), scores.argmax(-1).numpy()
    for over in ("sample", "batch"):
        for noise in ("normal", "gumbel", "uniform"):
            options = {"noise": noise, "over": over, **SHARP}
            found = lossmith.AccuracyLoss(**options)(scores, target)
            assert found.item() == pytest.approx(1 - metrics.accuracy_score(y, predicted))
            found = lossmith.BalancedAccuracyLoss(**options)(scores, target)
            assert found.item() == pytest.approx(1 - metrics.balanced_accuracy_score(y, predicted))
            for k in (1, 2, 3):
                found = lossmith.TopKAccuracyLoss(k, **options)(scores, target)
                assert found.item() == pytest.approx(1 - metrics.top_k_accuracy_score(y, scores.numpy(), k=k))


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_limit_of_the_cost(sample: tuple[Tensor, Tensor], over: Any) -> None:
    scores, target = sample
    found = lossmith.CostLoss(torch.tensor(oracles.COSTS), over=over, **SHARP)(scores, target)
    counts = metrics.confusion_matrix(target.numpy(), scores.argmax(-1).numpy())
    assert found.item() == pytest.approx((counts * oracles.COSTS).sum() / 60)


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
def test_limits_of_the_confusion_matrix(sample: Any, labels: Any, average: Any, noise: str) -> None:
    asked = None if average == "none" else average
    for (scores, target), task in ((sample, "multiclass"), (labels, "multilabel")):
        y = target.numpy()
        predicted = scores.argmax(-1).numpy() if task == "multiclass" else (scores > 0).numpy()
        for loss, counted in (
            (
                lossmith.FBetaLoss(2.0, average, task, noise=noise, **SHARP),
                metrics.fbeta_score(y, predicted, beta=2, average=asked),
            ),
            (lossmith.JaccardLoss(average, task, noise=noise, **SHARP), metrics.jaccard_score(y, predicted, average=asked)),
        ):
            np.testing.assert_allclose(loss(scores, target), 1 - counted, rtol=1e-9)
            np.testing.assert_allclose(loss.counted(scores, target), counted, rtol=1e-9)


def test_binary_limits_of_one_score_and_of_two(labels: tuple[Tensor, Tensor]) -> None:
    scores, target = labels[0][:, 0], labels[1][:, 0]
    counted = metrics.fbeta_score(target.numpy(), (scores > 0).numpy(), beta=0.5)
    loss = lossmith.FBetaLoss(0.5, "binary", **SHARP)
    assert loss(scores, target).item() == pytest.approx(1 - counted)
    assert loss(scores.view(10, 5), target.view(10, 5)).item() == pytest.approx(1 - counted)
    assert loss(torch.stack([-scores, scores], -1), target).item() == pytest.approx(1 - counted)


def test_limits_of_the_rankings(sample: Any, labels: Any) -> None:
    scores, target = labels
    y, s = target.numpy(), scores.numpy()
    for k in range(3):
        one = scores[:, k], target[:, k]
        assert lossmith.AUCLoss(**SHARP)(*one).item() == pytest.approx(1 - metrics.roc_auc_score(y[:, k], s[:, k]))
        found = lossmith.AveragePrecisionLoss(**SHARP)(*one).item()
        assert found == pytest.approx(1 - metrics.average_precision_score(y[:, k], s[:, k]))
        for rate in (0.07, 0.3, 1.0):
            least = rate / 2  # McClish's standardization, undone
            standard = metrics.roc_auc_score(y[:, k], s[:, k], max_fpr=rate)
            partial = (2 * standard - 1) * (1 - least) + least if rate < 1 else standard
            assert lossmith.AUCLoss(max_fpr=rate, **SHARP)(*one).item() == pytest.approx(1 - partial)
    for average in ("macro", "micro", "weighted"):
        for loss, metric in (
            (lossmith.AUCLoss, metrics.roc_auc_score),
            (lossmith.AveragePrecisionLoss, metrics.average_precision_score),
        ):
            found = loss("multilabel", average, **SHARP)(scores, target).item()  # type: ignore[arg-type]
            assert found == pytest.approx(1 - metric(y, s, average=average))
    z, classes = sample
    shares = z.softmax(-1).numpy()
    for average in ("macro", "weighted"):
        counted = metrics.roc_auc_score(classes.numpy(), shares, multi_class="ovr", average=average)
        found = lossmith.AUCLoss("multiclass", average, **SHARP)(z, classes)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(1 - counted)


def test_limit_of_the_subset(labels: tuple[Tensor, Tensor]) -> None:
    scores, target = labels
    counted = metrics.accuracy_score(target.numpy(), (scores > 0).numpy())
    for over in ("sample", "batch"):
        assert lossmith.SubsetAccuracyLoss(over=over, **SHARP)(scores, target).item() == pytest.approx(1 - counted)  # type: ignore[arg-type]


# What the table does not have


def test_class_weights_and_probabilities_of_the_confusion_matrix(sample: tuple[Tensor, Tensor]) -> None:
    scores, target = sample
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    hard = lossmith.FBetaLoss(weight=weight, **SHARP)(scores, target)
    predicted, y = scores.argmax(-1).numpy(), target.numpy()
    counted = metrics.f1_score(y, predicted, average="macro", sample_weight=weight[target].numpy())
    assert hard.item() == pytest.approx(1 - counted)
    for smoothing in (0.0, 0.2):
        loss = lossmith.FBetaLoss(label_smoothing=smoothing)
        share = (1 - smoothing) * torch.nn.functional.one_hot(target, C).double() + smoothing / C
        wanted = oracles.of_counts(oracles.f_beta(1), "macro").averaged(oracles.softmax(scores.numpy()), share.numpy(), 1.0)  # type: ignore[attr-defined]
        assert loss(scores, target).item() == pytest.approx(wanted)
        assert lossmith.FBetaLoss()(scores, share).item() == pytest.approx(wanted)


def test_weights_and_probabilities_of_balanced_accuracy(sample: tuple[Tensor, Tensor]) -> None:
    scores, target = sample
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    recall = metrics.recall_score(target.numpy(), scores.argmax(-1).numpy(), average=None)
    for over in ("sample", "batch"):
        loss = lossmith.BalancedAccuracyLoss(over=over, weight=weight, **SHARP)  # type: ignore[arg-type]
        wanted = 1 - (weight.numpy() * recall).sum() / 6
        assert loss(scores, target).item() == pytest.approx(wanted)
        share = torch.nn.functional.one_hot(target, C).double()
        assert loss(scores, share).item() == pytest.approx(wanted)
        smooth = lossmith.BalancedAccuracyLoss(over=over, label_smoothing=1e-12, weight=weight, **SHARP)  # type: ignore[arg-type]
        assert smooth(scores, target).item() == pytest.approx(wanted, rel=1e-6)


def test_costs_of_each_sample(sample: tuple[Tensor, Tensor]) -> None:
    scores, target = sample
    loss = lossmith.CostLoss(torch.tensor(oracles.COSTS), q=1.0)
    rows = torch.tensor(oracles.COSTS)[target]
    assert torch.equal(lossmith.CostLoss()(scores, cost=rows), loss(scores, target))
    zero_one = lossmith.CostLoss(1 - torch.eye(C, dtype=torch.float64), noise="normal", q=0.7)
    other = lossmith.AccuracyLoss("normal", q=0.7)
    torch.testing.assert_close(zero_one(scores, target), other(scores, target))
    grid = scores.view(5, 12, C).movedim(-1, 1)
    torch.testing.assert_close(loss(grid, cost=rows.view(5, 12, C).movedim(-1, 1)), loss(scores, target))


def test_a_sure_wrong_decision_still_pulls() -> None:
    """All wrong by far, in float32: the loss grows with the lead, and its gradient is there."""
    for lead in (20.0, 60.0):
        z = torch.tensor([[0.0, lead]] * 3 + [[lead, 0.0]] * 3, requires_grad=True)
        y = torch.tensor([0, 0, 0, 1, 1, 1])
        for loss in (
            lossmith.AccuracyLoss(q=1.0), lossmith.BalancedAccuracyLoss(q=1.0), lossmith.CostLoss(1 - torch.eye(2)),
            lossmith.FBetaLoss(), lossmith.JaccardLoss(), lossmith.FBetaLoss(average="micro"),
        ):  # fmt: skip
            value = loss(z, y)
            assert value.item() == pytest.approx(lead, rel=0.06)  # F1 is about 2 e^−lead / 2, Jaccard half of it
            (grad,) = torch.autograd.grad(value, z)
            assert grad.abs().sum() > 0.5
        s = (z[:, 1] - z[:, 0]) / 2
        value = lossmith.AUCLoss(noise="gumbel")(s, y)
        assert value.item() == pytest.approx(lead, rel=1e-5)
        assert torch.autograd.grad(value, z)[0].abs().sum() > 0.5


def test_auc_in_log_space_agrees_with_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (40,), generator=generator)
    scores = torch.randn(40, generator=generator, dtype=torch.float64) - 30 * target
    found = lossmith.AUCLoss()(scores, target)
    one, other = scores[target == 1], scores[target == 0]
    pairs = torch.stack(torch.broadcast_tensors(one.unsqueeze(-1), other), -1)
    log_p = functional.argmax_log_prob(pairs, torch.zeros(pairs.shape[:-1], dtype=torch.int64))
    assert found.item() == pytest.approx(-(log_p.logsumexp((0, 1)) - np.log(log_p.numel())).item())


def test_an_own_metric_outside_its_range_is_refused() -> None:
    loss, counted = lossmith.metric(lambda tp, fp, fn, tn: 3 * tp / (tp + fn + fp), average="binary")
    scores, target = torch.tensor([2.0, -1.0]), torch.tensor([1, 0])
    for function in (loss, counted):
        with pytest.raises(ValueError, match=r"^metric: expected values from 0 to 1, got \d.*; rescale it$"):
            function(scores, target)
    with pytest.raises(TypeError, match=r"^metric: expected a function"):
        lossmith.metric("f1")  # type: ignore[arg-type]
