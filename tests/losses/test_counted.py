"""The counted metric of every loss, beside scikit-learn's, of whole sets and of batches."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor
from torchmetrics import MetricCollection

import lossmith

C = 4
COSTS = torch.tensor([[0.0, 1.0, 4.0, 1.0], [1.0, 0.0, 1.0, 2.0], [1.0, 2.0, 0.0, 3.0], [5.0, 1.0, 1.0, 0.0]])


def rows(kind: str) -> tuple[Tensor, Tensor]:
    """Scores with many ties, and targets, 90 of them."""
    generator = torch.Generator().manual_seed(3)
    shape = {"classes": (90, C), "labels": (90, 3), "binary": (90,)}[kind]
    scores = (2 * torch.randn(shape, generator=generator)).round() / 2
    if kind == "classes":
        scores += 1e-3 * torch.arange(C, 0, -1)  # of a row's equal scores the first is taken here, by some metrics the last
        return scores, torch.randint(C, (90,), generator=generator)
    return scores, (scores + torch.randn(shape, generator=generator) > 0.3).long()


def of_classes(metric: Callable[..., Any], **options: Any) -> Callable[[Any, Any], Any]:
    return lambda y, z: metric(y, z.argmax(-1), **options)


def cost(y: Any, z: Any) -> float:
    return float(COSTS.numpy()[y, z.argmax(-1)].mean(dtype=float))


def g_mean(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    return (tp / (tp + fn) * tn / (tn + fp)).sqrt()


def g_mean_of_arrays(y: Any, s: Any) -> float:
    tn, fp, fn, tp = metrics.confusion_matrix(y, s > 0).ravel()
    return float(np.sqrt(tp / (tp + fn) * tn / (tn + fp)))


CASES: dict[str, tuple[Any, str, Callable[[Any, Any], Any]]] = {
    "accuracy": (lossmith.AccuracyLoss(), "classes", of_classes(metrics.accuracy_score)),
    "standardized": (lossmith.AccuracyLoss("normal", standardize=True), "classes", of_classes(metrics.accuracy_score)),
    "top 2": (
        lossmith.TopKAccuracyLoss(2),
        "classes",
        lambda y, z: metrics.top_k_accuracy_score(y, z, k=2, labels=range(C)),
    ),
    "balanced": (lossmith.BalancedAccuracyLoss(), "classes", of_classes(metrics.balanced_accuracy_score)),
    "cost": (lossmith.CostLoss(COSTS), "classes", cost),
    "F2 macro": (lossmith.FBetaLoss(2.0), "classes", of_classes(metrics.fbeta_score, beta=2, average="macro")),
    "F1 binary": (lossmith.FBetaLoss(average="binary"), "binary", lambda y, s: metrics.f1_score(y, s > 0)),
    "Jaccard of labels": (
        lossmith.JaccardLoss("weighted", "multilabel"),
        "labels",
        lambda y, s: metrics.jaccard_score(y, s > 0, average="weighted"),
    ),
    "own": (lossmith.metric(g_mean, average="binary").loss, "binary", g_mean_of_arrays),
    "subset": (lossmith.SubsetAccuracyLoss(), "labels", lambda y, s: metrics.accuracy_score(y, s > 0)),
    "AUC": (lossmith.AUCLoss(), "binary", metrics.roc_auc_score),
    "AUC of labels": (
        lossmith.AUCLoss("multilabel", "weighted"),
        "labels",
        lambda y, s: metrics.roc_auc_score(y, s, average="weighted"),
    ),
    "AUC of classes": (
        lossmith.AUCLoss("multiclass"),
        "classes",
        lambda y, z: metrics.roc_auc_score(y, torch.tensor(z).double().softmax(-1).numpy(), multi_class="ovr"),
    ),
    "AP": (lossmith.AveragePrecisionLoss(), "binary", metrics.average_precision_score),
    "AP micro": (
        lossmith.AveragePrecisionLoss("multilabel", "micro"),
        "labels",
        lambda y, s: metrics.average_precision_score(y, s, average="micro"),
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", CASES)


@EACH
def test_it_is_scikit_learns(name: str) -> None:
    loss, kind, expected = CASES[name]
    scores, target = rows(kind)
    assert loss.counted(scores, target).item() == pytest.approx(float(expected(target.numpy(), scores.numpy())), rel=1e-9)
    assert loss.counted(scores.requires_grad_(), target).requires_grad is False


@EACH
def test_over_batches_it_is_that_of_all(name: str) -> None:
    """As a ``torchmetrics.Metric``: it adds up, starts anew, and can be copied and pickled."""
    loss, kind, _ = CASES[name]
    scores, target = rows(kind)
    metric = loss.counted_metric()
    for _ in range(2):
        for x, y in zip(scores.split(37), target.split(37), strict=True):
            batch = metric(x, y)
            assert batch.item() == pytest.approx(loss.counted(x, y).item(), rel=1e-12)
        assert metric.compute().item() == pytest.approx(loss.counted(scores, target).item(), rel=1e-12)
        metric.reset()
        assert metric.update_count == 0
    assert metric.higher_is_better is (name != "cost")
    again = copy.deepcopy(metric) if name == "own" else pickle.loads(pickle.dumps(metric))  # a function of one's own
    again.update(scores, target)
    assert again.compute().item() == pytest.approx(loss.counted(scores, target).item(), rel=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@EACH
def test_nothing_counts_as_0(name: str) -> None:
    assert CASES[name][0].counted_metric().compute().item() == 0


def test_a_partial_area_counts_the_highest_negatives() -> None:
    scores, target = rows("binary")
    scores = scores + 1e-6 * torch.arange(90)  # no ties, where the definitions part
    for rate in (0.07, 0.3, 0.5):
        standard = metrics.roc_auc_score(target, scores, max_fpr=rate)
        partial = (2 * standard - 1) * (1 - rate / 2) + rate / 2  # McClish's standardization, undone
        assert lossmith.AUCLoss(max_fpr=rate).counted(scores, target).item() == pytest.approx(partial, rel=1e-9)


def test_weights_and_targets_that_do_not_count() -> None:
    scores, target = rows("classes")
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0])
    left_out = torch.where(torch.arange(90) % 7 == 0, -100, target)
    keep = (left_out != -100).numpy()
    y, predicted = target.numpy()[keep], scores.argmax(-1).numpy()[keep]
    each = weight.numpy()[y]
    for loss, expected in (
        (lossmith.AccuracyLoss(weight=weight), metrics.accuracy_score(y, predicted, sample_weight=each)),
        (lossmith.FBetaLoss(weight=weight), metrics.f1_score(y, predicted, average="macro", sample_weight=each)),
        (lossmith.CostLoss(COSTS, weight=weight), np.average(COSTS.numpy()[y, predicted], weights=each)),
        (
            lossmith.BalancedAccuracyLoss(weight=weight),
            np.average(metrics.recall_score(y, predicted, average=None), weights=weight.numpy()),
        ),
    ):
        assert loss.counted(scores, left_out).item() == pytest.approx(float(expected), rel=1e-6)
    share = torch.nn.functional.one_hot(target, C).float()
    for loss in (lossmith.AccuracyLoss(), lossmith.BalancedAccuracyLoss(), lossmith.TopKAccuracyLoss(2)):
        torch.testing.assert_close(loss.counted(scores, share), loss.counted(scores, target))


@EACH
def test_a_row_of_weight_2_counts_twice(name: str) -> None:
    loss, kind, _ = CASES[name]
    scores, target = rows(kind)
    weight = torch.arange(90) % 3
    if not loss.counts_sums:
        for refused in (loss.counted, loss.counted_metric().update):
            with pytest.raises(ValueError, match=r"^sample_weight: expected none, a ranking counts all samples alike"):
                refused(scores, target, weight)
        return
    repeated = scores.repeat_interleave(weight, 0), target.repeat_interleave(weight, 0)
    metric = loss.counted_metric()
    metric.update(scores, target, weight)
    for found in (loss.counted(scores, target, weight), metric.compute()):
        assert found.item() == pytest.approx(loss.counted(*repeated).item(), rel=1e-12)
    with pytest.raises(ValueError, match=r"^sample_weight: expected one a sample, 90, got shape \(89,\)"):
        loss.counted(scores, target, weight[1:])


def test_costs_keep_their_digits_in_half_types() -> None:
    loss = lossmith.CostLoss(torch.tensor([[0.0, 257.0], [1.0, 0.0]]))
    scores, target = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16), torch.tensor([0])
    assert loss.counted(scores, target).item() == 257


def test_metrics_of_a_collection_do_not_share_what_they_count() -> None:
    """Whose first batches count the same: a collection takes such metrics for one, if it can."""
    made = {"first": lossmith.AccuracyLoss(), "two": lossmith.TopKAccuracyLoss(2), "cost": lossmith.CostLoss(1 - torch.eye(3))}
    together = MetricCollection({name: loss.counted_metric() for name, loss in made.items()})
    scores = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    for z in (torch.eye(3), scores):
        together.update(z, torch.arange(3))
    found = {name: value.item() for name, value in together.compute().items()}
    assert found == pytest.approx({"first": 0.5, "two": 1.0, "cost": 0.5})


def test_a_checkpoint_has_nothing_of_the_loss() -> None:
    loss = lossmith.FBetaLoss(weight=torch.ones(3))
    metric = loss.counted_metric()
    assert not metric.state_dict()
    metric.to("meta")
    assert metric.loss.weight.device.type == "meta"


def test_the_last_layer_is_taken_along() -> None:
    torch.manual_seed(0)
    loss = lossmith.LinearAccuracyLoss(5, 7, batch_chunk_size=4)
    x, target = torch.randn(3, 6, 5), torch.randint(7, (3, 6))
    expected = (loss.linear(x).argmax(-1) == target).double().mean()
    torch.testing.assert_close(loss.counted(x, target), expected)


def test_a_batch_that_does_not_fit_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"^target: expected the shape of the scores"):
        lossmith.AUCLoss().counted_metric().update(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"^target: [^\n]*; for a score a class take task='multiclass'$"):
        lossmith.AUCLoss()(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(TypeError, match=r"^cost: expected a matrix at the constructor to count by"):
        lossmith.CostLoss().counted(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
