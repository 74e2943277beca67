"""The metrics of estimators: counted as scikit-learn counts, smooth as the losses are, gradients by differences."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from sklearn import metrics as sk

import lossmith
from lossmith import AccuracyLoss, AUCLoss, BalancedAccuracyLoss, CostLoss, FBetaLoss, JaccardLoss
from lossmith.estimators.metrics import METRICS, metric_of
from lossmith.estimators.metrics.trained_metric import Floats, Rows, predicted
from lossmith.functional import expected_average_precision

N = 40
COST = np.array([[0.0, 1.0, 2.0], [3.0, -1.0, 1.0], [0.5, 0.5, 0.0]])
G_MEAN = lossmith.metric(lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt(), average="binary")


def case(classes: int, weighted: bool = True) -> tuple[Floats, Rows]:
    made = np.random.default_rng(classes)
    scores = made.normal(size=(N, 1 if classes == 2 else classes))
    weight = made.random(N) if weighted else np.ones(N)
    return scores, Rows(made.integers(0, classes, N), weight, classes)


def whole(scores: Floats) -> Floats:
    return np.concatenate([np.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores


COUNTED = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    **{f"f1_{a}": lambda y, p, a=a, **o: sk.f1_score(y, p, average=a, **o) for a in ("macro", "micro", "weighted")},
    **{f"jaccard_{a}": lambda y, p, a=a, **o: sk.jaccard_score(y, p, average=a, **o) for a in ("macro", "micro", "weighted")},
}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("classes", [2, 4])
def test_counted_as_scikit_learn_counts(name: str, classes: int) -> None:
    scores, rows = case(classes)
    expected = COUNTED[name](rows.y, predicted(scores), sample_weight=rows.weight)
    assert metric_of(name, classes).counted(scores, rows) == pytest.approx(expected, rel=1e-12)


def test_counted_of_two_classes() -> None:
    scores, rows = case(2)
    given: dict[str, Any] = {"sample_weight": rows.weight}
    for name, expected in (
        ("f1", sk.f1_score(rows.y, predicted(scores), **given)),
        ("jaccard", sk.jaccard_score(rows.y, predicted(scores), **given)),
        ("roc_auc", sk.roc_auc_score(rows.y, scores[:, 0], **given)),
        ("average_precision", sk.average_precision_score(rows.y, scores[:, 0], **given)),
    ):
        assert metric_of(name, 2).counted(scores, rows) == pytest.approx(expected, rel=1e-12)
    recalls = sk.recall_score(rows.y, predicted(scores), average=None, **given)
    assert metric_of(G_MEAN, 2).counted(scores, rows) == pytest.approx(np.sqrt(recalls.prod()), rel=1e-12)
    assert metric_of(FBetaLoss(2.0, "macro"), 2).counted(scores, rows) == pytest.approx(
        sk.fbeta_score(rows.y, predicted(scores), beta=2.0, average="macro", **given), rel=1e-12
    )


def test_counted_of_named_families() -> None:
    scores, rows = case(4)
    given: dict[str, Any] = {"sample_weight": rows.weight}
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert metric_of("log-loss", 4).counted(scores, rows) == pytest.approx(-sk.log_loss(rows.y, p, **given), rel=1e-12)
    for k in (1, 2, 3):
        expected = sk.top_k_accuracy_score(rows.y, scores, k=k, **given)
        assert metric_of(f"top_{k}_accuracy", 4).counted(scores, rows) == pytest.approx(expected, rel=1e-12)
    for beta, average in ((2.0, "macro"), (0.5, "weighted")):
        expected = sk.fbeta_score(rows.y, predicted(scores), beta=beta, average=average, **given)
        assert metric_of(f"f{beta:g}_{average}", 4).counted(scores, rows) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["top_4_accuracy", "top_0_accuracy", "f0", "f2_binary", "top_2", "fbeta"])
def test_names_that_stand_for_nothing(name: str) -> None:
    with pytest.raises(ValueError, match="metric: "):
        metric_of(name, 4)


def test_smooth_top_k_is_the_loss_and_its_gradient() -> None:
    scores, rows = case(4, weighted=False)
    for noise in ("gumbel", "normal"):
        leaf = torch.from_numpy(scores).requires_grad_()
        loss = lossmith.TopKAccuracyLoss(2, noise, q=0.5)(leaf, torch.from_numpy(rows.y))
        loss.backward()
        found, grad = metric_of("top_2_accuracy", 4).loss(scores, rows, noise, 0.5)
        assert found == pytest.approx(loss.item(), rel=1e-5)
        assert leaf.grad is not None
        np.testing.assert_allclose(grad, leaf.grad.numpy(), atol=1e-7)


def test_counted_costs() -> None:
    scores, rows = case(3)
    expected = -(sk.confusion_matrix(rows.y, predicted(scores), sample_weight=rows.weight) * COST).sum() / rows.weight.sum()
    assert metric_of(COST, 3).counted(scores, rows) == pytest.approx(expected, rel=1e-12)


LOSSES: list[tuple[Any, int, Any]] = [
    ("accuracy", 2, AccuracyLoss),
    ("accuracy", 3, AccuracyLoss),
    ("balanced_accuracy", 3, BalancedAccuracyLoss),
    ("f1_macro", 3, lambda noise, q: FBetaLoss(noise=noise, q=q)),
    ("f1", 2, lambda noise, q: FBetaLoss(average="binary", noise=noise, q=q)),
    ("jaccard_micro", 3, lambda noise, q: JaccardLoss("micro", noise=noise, q=q)),
    (FBetaLoss(0.5, "weighted"), 3, lambda noise, q: FBetaLoss(0.5, "weighted", noise=noise, q=q)),
    (COST, 3, lambda noise, q: CostLoss(torch.from_numpy(COST), noise, q=q)),
]


@pytest.mark.parametrize(("metric", "classes", "loss"), LOSSES, ids=lambda x: str(x)[:12])
@pytest.mark.parametrize("q", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("noise", ["gumbel", "normal"])
def test_smooth_as_the_losses_are(metric: Any, classes: int, loss: Any, noise: str, q: float) -> None:
    scores, rows = case(classes, weighted=False)
    module = loss(noise, q=q)
    expected = module(torch.from_numpy(whole(scores)), torch.from_numpy(rows.y)).item()
    assert metric_of(metric, classes).loss(scores, rows, noise, q)[0] == pytest.approx(expected, rel=1e-7)


def test_smooth_auc_is_the_loss() -> None:
    scores, rows = case(2, weighted=False)
    expected = AUCLoss(noise="normal", q=0.5)(torch.from_numpy(scores[:, 0]), torch.from_numpy(rows.y)).item()
    assert metric_of("roc_auc", 2).loss(scores, rows, "normal", 0.5)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_smooth_average_precision_is_the_functions_and_has_a_kernel(spread: float) -> None:
    """Far spread scores, which a line search tries, are served as well: the reference takes a hundred times as long."""
    scores, rows = case(2, weighted=False)
    leaf = torch.from_numpy(spread * scores[:, 0]).requires_grad_()
    expected = expected_average_precision(leaf, torch.from_numpy(rows.y), noise="gumbel")
    (slope,) = torch.autograd.grad(-expected, leaf)
    loss, grad = metric_of("average_precision", 2).loss(spread * scores, rows, "gumbel", 0.0)
    assert lossmith.last_kernel() == "cpu"
    assert loss == pytest.approx(1 - expected.item(), rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(grad[:, 0], slope.numpy(), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
@pytest.mark.parametrize("q", [1.0, 0.5])
@pytest.mark.parametrize("name", [*METRICS, "cost", "own"])
@pytest.mark.parametrize("classes", [2, 3])
def test_gradients(name: str, noise: str, q: float, classes: int) -> None:
    given: Any = {"cost": COST[:classes, :classes], "own": G_MEAN}.get(name, name)
    try:
        metric = metric_of(given, classes)
    except ValueError:
        pytest.skip("for two classes")
    scores, rows = case(classes, weighted=not name.startswith("average_precision"))
    if name.startswith("average_precision"):  # without a kernel for float64 it is slow
        scores, rows = scores[:12], Rows(rows.y[:12], rows.weight[:12], classes)
    error = check_grad(
        lambda x: metric.loss(x.reshape(scores.shape), rows, noise, q)[0],
        lambda x: metric.loss(x.reshape(scores.shape), rows, noise, q)[1].ravel(),
        scores.ravel(),
    )
    assert error < 2e-6


@pytest.mark.parametrize(
    ("given", "classes", "kind", "message"),
    [
        ("acuracy", 2, ValueError, "metric: unknown name 'acuracy'; .*accuracy"),
        ("f1", 3, ValueError, "metric: 'f1' is for two classes, got 3; take 'f1_macro'"),
        ("roc_auc", 3, ValueError, "metric: 'roc_auc' is for two classes, got 3; take 'roc_auc_ovr'"),
        (COST, 2, ValueError, r"metric: expected a cost matrix \(2, 2\), got \(3, 3\)"),
        ([[0, 1]], 2, ValueError, r"metric: expected a finite cost matrix \(C, C\), got shape \(1, 2\)"),
        (G_MEAN, 3, ValueError, "metric: average='binary' is for two classes, got 3"),
        (FBetaLoss(task="multilabel"), 3, ValueError, "metric: expected task='multiclass'"),
        (3, 2, TypeError, "metric: expected a name, a cost matrix or what lossmith.metric makes, got int"),
    ],
)
def test_refuses_in_words(given: Any, classes: int, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        metric_of(given, classes)


def test_hyphens_are_underscores() -> None:
    assert metric_of("balanced-accuracy", 2) is METRICS["balanced_accuracy"]
