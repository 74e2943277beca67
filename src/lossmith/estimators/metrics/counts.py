"""Metrics of counts, which are no mean over rows: F-beta, Jaccard, and one's own."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmith.estimators.metrics.trained_metric import (
    TINY,
    Codes,
    Floats,
    Rows,
    TrainedMetric,
    log_probabilities,
    power,
    predicted,
)
from lossmith.losses.confusion_matrix import ConfusionLoss, Counts


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
        return m.item(), of_tp.detach().numpy(), of_predicted.detach().numpy()

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


def _sums(codes: Codes, weight: Floats, classes: int) -> Floats:
    """The weight of each class, (C,)."""
    return np.asarray(np.bincount(codes, weight, classes), dtype=np.float64)


def _support(rows: Rows) -> Floats:
    return _sums(rows.y, rows.weight, rows.classes)
