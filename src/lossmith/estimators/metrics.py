"""The metrics that estimators train and judge by, each by its name."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from lossmith import noise as noises
from lossmith.errors import near
from lossmith.estimators.trained_metric import (
    TINY,
    Codes,
    Floats,
    Rows,
    TrainedMetric,
    both_classes,
    log_probabilities,
    power,
    predicted,
)
from lossmith.functional import argmax_log_prob, expected_auc, topk_log_prob
from lossmith.functional.columns import log_auc_of_columns, log_precision_of_columns
from lossmith.losses.confusion_matrix import ConfusionLoss, Counts
from lossmith.losses.own_metric import Metric


class Accuracy(TrainedMetric):
    """The weighted share of right predictions."""

    name = "accuracy"

    def counted(self, scores: Floats, rows: Rows) -> float:
        """The weighted accuracy."""
        weight = self._weight(rows)
        return float(weight @ (predicted(scores) == rows.y) / weight.sum())

    def loss(self, scores: Floats, rows: Rows, noise: str, q: float) -> tuple[float, Floats]:
        """See ``TrainedMetric``."""
        weight = self._weight(rows)
        weight = weight / weight.sum()
        if noise == "gumbel" and scores.shape[1] == 1:  # log p = −log(1 + e^−lead)
            sign = 2.0 * rows.y - 1
            lead = sign * scores[:, 0]
            log_p = -np.logaddexp(0.0, -lead)
            losses, slope = power(log_p, q)
            return float(weight @ losses), (-weight * slope * sign * -np.expm1(log_p))[:, None]
        if noise == "gumbel":
            log_p = log_softmax(scores, axis=1)
            at = np.arange(len(scores)), rows.y
            losses, slope = power(log_p[at], q)
            factor = weight * slope
            grad = np.exp(log_p) * factor[:, None]
            grad[at] -= factor
            return float(weight @ losses), grad
        leaf = torch.from_numpy(both_classes(scores)).requires_grad_()
        log_of_own = argmax_log_prob(leaf, torch.from_numpy(rows.y), noise=noise)
        losses, slope = power(log_of_own.detach().numpy(), q)
        (back,) = torch.autograd.grad(log_of_own, leaf, torch.from_numpy(-weight * slope))
        return float(weight @ losses), back.numpy()[:, 1:] if scores.shape[1] == 1 else back.numpy()

    def _weight(self, rows: Rows) -> Floats:
        return rows.weight


class BalancedAccuracy(Accuracy):
    """The mean over the classes of the share of right predictions."""

    name = "balanced_accuracy"
    shifts = True

    def of_steps(self, tp: Floats, predicted: Floats, support: Floats) -> Floats:
        """The mean recall of the classes that have rows."""
        present = support > 0
        return np.asarray((tp[:, present] / support[present]).mean(1))

    def _weight(self, rows: Rows) -> Floats:
        by_class = np.bincount(rows.y, rows.weight, rows.classes)
        return np.divide(rows.weight, by_class[rows.y], out=np.zeros_like(rows.weight), where=rows.weight > 0)


class TopKAccuracy(TrainedMetric):
    """The weighted share of rows whose class is among those of the k highest scores; of equal scores, the first count."""

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"top_{k}_accuracy"

    def check(self, classes: int) -> None:
        """Refuse a k that takes no class, or all."""
        if not 1 <= self.k < classes:
            raise ValueError(f"metric: expected k from 1 to {classes - 1} for {classes} classes, got {self.name!r}")

    def counted(self, scores: Floats, rows: Rows) -> float:
        """The weighted share."""
        highest = np.argsort(-both_classes(scores), axis=1, kind="stable")[:, : self.k]
        return float(rows.weight @ (highest == rows.y[:, None]).any(1) / rows.weight.sum())

    def loss(self, scores: Floats, rows: Rows, noise: str, q: float) -> tuple[float, Floats]:
        """See ``TrainedMetric``; in float32, for which there are kernels."""
        leaf = torch.from_numpy(both_classes(scores).astype(np.float32)).requires_grad_()
        log_p = topk_log_prob(leaf, torch.from_numpy(rows.y), self.k, noise=noise)
        weight = rows.weight / rows.weight.sum()
        losses, slope = power(log_p.detach().numpy().astype(np.float64), q)
        (back,) = torch.autograd.grad(log_p, leaf, torch.from_numpy((-weight * slope).astype(np.float32)))
        return float(weight @ losses), back.numpy().astype(np.float64)[:, -scores.shape[1] :]


class LogLoss(TrainedMetric):
    """Minus the mean cross-entropy of the probabilities, in nats: what likelihood itself trains."""

    name, likelihood, perfect = "log_loss", True, 0.0

    def counted(self, scores: Floats, rows: Rows) -> float:
        """Minus the weighted mean."""
        own = log_softmax(both_classes(scores), axis=1)[np.arange(len(scores)), rows.y]
        return float(rows.weight @ own / rows.weight.sum())

    def loss(self, scores: Floats, rows: Rows, noise: str, q: float) -> tuple[float, Floats]:
        """Cross-entropy whatever the noise and q."""
        return Accuracy().loss(scores, rows, "gumbel", 1.0)


class OfCounts(TrainedMetric):
    """A metric of each class's true positives, predictions and weight, averaged over the classes."""

    shifts, additive = True, False
    caution = 1.0  # where a class is rare, ten folds' differences are a few jumps

    @abstractmethod
    def with_slopes(self, tp: Floats, predicted: Floats, support: Floats) -> tuple[float, Floats, Floats]:
        """The metric of counts (C,), and its derivatives in tp and predicted, (C,)."""

    def counted(self, scores: Floats, rows: Rows) -> float:
        """From the counts of predictions."""
        found = predicted(scores)
        right = _sums(rows.y, rows.weight * (found == rows.y), rows.classes)
        return float(self.of_steps(right, _sums(found, rows.weight, rows.classes), _support(rows)))

    def loss(self, scores: Floats, rows: Rows, noise: str, q: float) -> tuple[float, Floats]:
        """See ``TrainedMetric``."""
        log_p, pull = log_probabilities(scores, noise)
        p, at = np.exp(log_p), (np.arange(len(log_p)), rows.y)
        tp = _sums(rows.y, rows.weight * p[at], rows.classes)
        m, of_tp, of_predicted = self.with_slopes(tp, rows.weight @ p, _support(rows))
        value = max(m, TINY)
        loss, slope = power(np.asarray(math.log(value)), q)
        grad = p * rows.weight[:, None] * of_predicted
        grad[at] += p[at] * rows.weight * of_tp[rows.y]
        return float(loss), pull(-float(slope) / value * grad)


class Counted(OfCounts):
    """F-beta or Jaccard from counts.

    Args:
        kind: "f" or "jaccard".
        average: "binary" (class 1), "macro", "micro" or "weighted".
        beta: of F-beta.
    """

    def __init__(self, kind: str, average: str, beta: float = 1.0) -> None:
        self.kind, self.average, self.beta = kind, average, beta
        self.name = kind + (f"{beta:g}" if kind == "f" else "") + ("" if average == "binary" else f"_{average}")

    def check(self, classes: int) -> None:
        """Refuse more than two classes for one class's metric."""
        if self.average == "binary" and classes > 2:
            raise ValueError(
                f"metric: {self.name!r} is for two classes, got {classes}; take {self.name + '_macro'!r}, "
                f"{self.name + '_micro'!r} or {self.name + '_weighted'!r}"
            )

    def of_steps(self, tp: Floats, predicted: Floats, support: Floats) -> Floats:
        """The metric of each step."""
        if self.average == "micro":
            return np.asarray(self._one(tp.sum(-1), predicted.sum(-1), support.sum())[0])
        if self.average == "binary":
            return np.asarray(self._one(tp[..., 1], predicted[..., 1], support[1])[0])
        return np.asarray(self._one(tp, predicted, support)[0] @ self._share(support))

    def _share(self, support: Floats) -> Floats:
        share = (support > 0).astype(float) if self.average == "macro" else support
        return share / share.sum()

    def with_slopes(self, tp: Floats, predicted: Floats, support: Floats) -> tuple[float, Floats, Floats]:
        """The metric, and its derivatives in tp and predicted, (C,)."""
        if self.average == "micro":
            m, a, b = self._one(tp.sum(), predicted.sum(), support.sum())
            return float(m), np.full_like(tp, a), np.full_like(tp, b)
        if self.average == "binary":
            m, a, b = self._one(tp[1], predicted[1], support[1])
            return float(m), np.array([0.0, a]), np.array([0.0, b])
        m, a, b = self._one(tp, predicted, support)
        share = self._share(support)
        return float(share @ m), share * a, share * b

    def _one(self, tp: Any, predicted: Any, support: Any) -> tuple[Any, Any, Any]:
        bb = self.beta**2
        if self.kind == "f":
            all_ = np.maximum(bb * support + predicted, TINY)
            m = (1 + bb) * tp / all_
            return m, (1 + bb) / all_, -m / all_
        union = np.maximum(support + predicted - tp, TINY)
        m = tp / union
        return m, (1 + m) / union, -m / union


class Own(OfCounts):
    """The metric of a ``ConfusionLoss`` for several classes or "binary", such as ``lossmith.metric`` makes."""

    def __init__(self, loss: ConfusionLoss) -> None:
        self.given, self.of_counts, self.average, self.name = loss, loss.of_counts, loss.average, type(loss).__name__
        if loss.task != "multiclass" or loss.average == "none":
            raise ValueError(f"metric: expected task='multiclass' and an average, got {loss.task!r} and {loss.average!r}")

    def check(self, classes: int) -> None:
        """Refuse more than two classes for one class's metric."""
        if self.average == "binary" and classes > 2:
            raise ValueError(f"metric: average='binary' is for two classes, got {classes}; take 'macro'")

    def of_steps(self, tp: Floats, predicted: Floats, support: Floats) -> Floats:
        """The metric of each step."""
        counts = torch.from_numpy(tp), torch.from_numpy(predicted), torch.from_numpy(support)
        return self._of(*counts, least=0.0).numpy()

    def with_slopes(self, tp: Floats, predicted: Floats, support: Floats) -> tuple[float, Floats, Floats]:
        """By torch's derivatives."""
        leaves = torch.from_numpy(tp).requires_grad_(), torch.from_numpy(predicted).requires_grad_()
        m = self._of(*leaves, torch.from_numpy(support))
        of_tp, of_predicted = torch.autograd.grad(m, leaves, allow_unused=True, materialize_grads=True)
        return m.item(), of_tp.numpy(), of_predicted.numpy()

    def _of(self, tp: Tensor, given: Tensor, support: Tensor, *, least: float | None = None) -> Tensor:
        """The metric (…) of counts (…, C), which are ``least`` where rounding makes them less."""
        support = support.expand_as(tp)
        counts = Counts(tp, given - tp, support - tp, support.sum(-1, keepdim=True) - support - given + tp)
        if least is not None:
            counts = Counts(*(x.clamp_min(least) for x in counts))
        if self.average == "micro":
            return self.of_counts(Counts(*(x.sum(-1) for x in counts)))
        if self.average == "binary":
            return self.of_counts(Counts(*(x[..., 1] for x in counts)))
        present = support > 0
        m = torch.where(present, self.of_counts(Counts(*(torch.where(present, x, 1.0) for x in counts))), 0.0)
        share = present.double() if self.average == "macro" else support
        return (share * m).sum(-1) / share.sum(-1)


class Cost(TrainedMetric):
    """Minus the mean cost of decisions, cost[y, k] for deciding k where y is true, trained as ``CostLoss``."""

    name, shifts = "cost", True
    perfect = math.inf

    def __init__(self, cost: npt.ArrayLike) -> None:
        self.cost = np.asarray(cost, dtype=np.float64)
        if self.cost.ndim != 2 or len(self.cost) != self.cost.shape[1] or not np.isfinite(self.cost).all():
            raise ValueError(f"metric: expected a finite cost matrix (C, C), got shape {self.cost.shape}")

    def check(self, classes: int) -> None:
        """Refuse a matrix of another size."""
        if len(self.cost) != classes:
            raise ValueError(f"metric: expected a cost matrix ({classes}, {classes}), got {self.cost.shape}")

    def counted(self, scores: Floats, rows: Rows) -> float:
        """Minus the mean cost of the predictions."""
        return float(-(rows.weight @ self.cost[rows.y, predicted(scores)]) / rows.weight.sum())

    def worth(self, shares: Floats) -> Floats:
        """Minus the expected costs."""
        return -shares @ self.cost

    def loss(self, scores: Floats, rows: Rows, noise: str, q: float) -> tuple[float, Floats]:
        """Σ_i w_i [l_i + r_i · −log_q(m_i)] / Σ_i w_i, see ``CostLoss``."""
        costs = self.cost[rows.y]
        least = costs.min(1)
        at_stake = costs.max(1) - least
        saved = 1 - (costs - least[:, None]) / np.where(at_stake > 0, at_stake, 1.0)[:, None]
        log_p, pull = log_probabilities(scores, noise)
        terms = np.exp(log_p) * saved
        m = np.clip(terms.sum(1), TINY, 1.0)
        losses, slope = power(np.log(m), q)
        share = rows.weight / rows.weight.sum()
        return float(share @ (least + at_stake * losses)), pull(-terms * (share * at_stake * slope / m)[:, None])


class Ranking(TrainedMetric):
    """Area under the ROC curve or average precision; one against the rest, averaged, for more than two classes."""

    def __init__(self, kind: str, average: str = "") -> None:
        self.kind, self.average = kind, average
        self.name = kind + (f"_{average}" if average else "")

    def check(self, classes: int) -> None:
        """Refuse more than two classes without an average."""
        if not self.average and classes > 2:
            raise ValueError(f"metric: {self.name!r} is for two classes, got {classes}; take {self.name + '_ovr'!r}")

    def counted(self, scores: Floats, rows: Rows) -> float:
        """By scikit-learn; 0.5 where a class is absent."""
        one = roc_auc_score if self.kind == "roc_auc" else average_precision_score
        found = []
        for _, column, positive in self._columns(scores, rows):
            if _both_present(positive, rows.weight):
                found.append(one(positive, column, sample_weight=rows.weight))
        return float(np.mean(found)) if found else 0.5

    def loss(self, scores: Floats, rows: Rows, noise: str, q: float) -> tuple[float, Floats]:
        """See ``TrainedMetric``."""
        leaf, weight = torch.from_numpy(np.ascontiguousarray(scores)).requires_grad_(), torch.from_numpy(rows.weight)
        found = []
        for k, _, positive in self._columns(scores, rows):
            if _both_present(positive, rows.weight):
                found.append(self._smooth(leaf[:, k], torch.from_numpy(positive), weight, noise))
        if not found:
            return 0.0, np.zeros_like(scores)
        m = torch.stack(found).mean()
        (grad,) = torch.autograd.grad(m, leaf)
        value = max(m.item(), TINY)
        loss, slope = power(np.asarray(math.log(value)), q)
        return float(loss), grad.numpy() * (-float(slope) / value)

    def _smooth(self, scores: Tensor, positive: Tensor, weight: Tensor, noise: str) -> Tensor:
        """The metric of one column; average precision weighs all rows of weight above 0 equally."""
        present = weight > 0
        equal = bool((weight[present] == weight[present][0]).all())
        if self.kind == "roc_auc" and not equal:
            return expected_auc(scores, positive, noise=noise, weight=weight)
        of_columns = log_auc_of_columns if self.kind == "roc_auc" else log_precision_of_columns  # which have a kernel
        column, keep = scores[present, None], torch.ones(int(present.sum()), 1, dtype=torch.bool)
        log_metric: Tensor = of_columns((column, positive[present, None], keep, scores.new_ones(())), noises.get(noise), 1.0)
        return log_metric[0].exp()

    def _columns(self, scores: Floats, rows: Rows) -> list[tuple[int, Floats, npt.NDArray[np.bool_]]]:
        if scores.shape[1] == 1:
            return [(0, scores[:, 0], rows.y == 1)]
        return [(k, scores[:, k], rows.y == k) for k in range(scores.shape[1])]


def _both_present(positive: npt.NDArray[np.bool_], weight: Floats) -> bool:
    """Whether rows of weight above 0 are on both sides."""
    seen = positive[weight > 0]
    return bool(seen.any() and not seen.all())


def _sums(codes: Codes, weight: Floats, classes: int) -> Floats:
    """The weight of each class, (C,)."""
    return np.asarray(np.bincount(codes, weight, classes), dtype=np.float64)


def _support(rows: Rows) -> Floats:
    return _sums(rows.y, rows.weight, rows.classes)


AVERAGES = ("macro", "micro", "weighted")
F_BETA = re.compile(rf"f(\d+(?:\.\d+)?)(?:_({'|'.join(AVERAGES)}))?")
TOP_K = re.compile(r"top_(\d+)_accuracy")
METRICS: dict[str, TrainedMetric] = {
    metric.name: metric
    for metric in (
        Accuracy(),
        BalancedAccuracy(),
        LogLoss(),
        *(Counted(kind, average) for kind in ("f", "jaccard") for average in ("binary", *AVERAGES)),
        *(Ranking(kind, average) for kind in ("roc_auc", "average_precision") for average in ("", "ovr")),
    )
}


def named(name: str) -> TrainedMetric:
    """The metric of a name in METRICS, of "f2" or "f0.5_macro" (F-beta), or of "top_3_accuracy"; hyphens count as "_".

    Raises:
        ValueError: no metric has the name.
    """
    plain = name.replace("-", "_")
    if plain in METRICS:
        return METRICS[plain]
    if (f := F_BETA.fullmatch(plain)) and float(f[1]) > 0:
        return Counted("f", f[2] or "binary", float(f[1]))
    if top := TOP_K.fullmatch(plain):
        return TopKAccuracy(int(top[1]))
    raise ValueError(f"metric: unknown name {name!r}; {near(plain, METRICS)} (F-beta: 'f2'; top-k: 'top_3_accuracy')")


def metric_of(given: Any, classes: int) -> TrainedMetric:
    """The metric that a name, a loss of counts, what ``lossmith.metric`` made, or a cost matrix stands for.

    Raises:
        ValueError: an unknown name; a metric that is not for so many classes.
        TypeError: none of these.
    """
    if isinstance(given, str):
        found = named(given)
    elif isinstance(given, ConfusionLoss):
        found = Own(given)
    elif isinstance(given, Metric):
        found = Own(given.loss)
    elif isinstance(given, np.ndarray | list | tuple):
        found = Cost(given)
    else:
        raise TypeError(f"metric: expected a name, a cost matrix or what lossmith.metric makes, got {type(given).__name__}")
    found.check(classes)
    return found
