"""Metrics that are means over rows: accuracy and its kin, costs, the log loss."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from lossmith.estimators.metrics.trained_metric import (
    TINY,
    Floats,
    Rows,
    TrainedMetric,
    both_classes,
    log_probabilities,
    power,
    predicted,
)
from lossmith.functional import argmax_log_prob, topk_log_prob


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
