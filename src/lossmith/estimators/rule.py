r"""The decision rule: an offset for each class, added to its score, that makes a metric highest on given scores.

The metric is the expected one: a row counts towards each class with the class's probability, in expected counts

    tp_k = Σ_{i decided k} w_i p_ik,      predicted_k = Σ_{i decided k} w_i,      support_k = Σ_i w_i p_ik.

p is that of the scores themselves, calibrated on rows whose classes are known. To count these classes is p = 0 or 1; where a
class is rare that follows the few rows which happen to be there, and on 100 tables cost 2 points of F1. Source: Ye et al.,
"Optimizing F-measures: a tale of two approaches", ICML 2012 (there for the rows to decide; here an offset for later rows).

For two classes the offset is a threshold on the lead of class 1. For more classes the offsets are moved one after the other,
each to the best of CANDIDATES places between the leads that its class has, until a sweep brings nothing.
"""

from __future__ import annotations

import numpy as np

from lossmith.estimators.calibration import calibrated
from lossmith.estimators.trained_metric import Codes, Floats, Rows, TrainedMetric, predicted

CANDIDATES = 200
SWEEPS = 3
CLOSE = 1e-12  # metrics that differ by less are equal but for rounding


def decision_rule(metric: TrainedMetric, scores: Floats, rows: Rows) -> Floats:
    """Offsets (K,) for scores (n, K), of the highest expected metric under probabilities that are calibrated on the rows."""
    if not rows.weight.any():
        return np.zeros(scores.shape[1])
    return best_offsets(metric, scores, calibrated(scores, rows), rows.weight)


def best_offsets(metric: TrainedMetric, scores: Floats, shares: Floats, weight: Floats) -> Floats:
    """Offsets (K,), the best found from 0 on; 0 where none is better.

    Args:
        metric: one that ``shifts``.
        scores: (n, K).
        shares: (n, C), the probability of each class; 0 and 1 where the class is known.
        weight: (n,), some above 0.
    """
    offsets = np.zeros(scores.shape[1])
    best = metric.of_decisions(predicted(scores), shares, weight)
    for _ in range(SWEEPS if scores.shape[1] > 1 else 1):
        before = best
        for k in range(scores.shape[1]):
            moved, reached = _moved(metric, scores, offsets, k, shares, weight)
            if reached > best + CLOSE:
                offsets[k], best = moved, reached
        if best <= before:
            break
    return offsets - offsets.mean() if scores.shape[1] > 1 else offsets


def _moved(
    metric: TrainedMetric, scores: Floats, offsets: Floats, k: int, shares: Floats, weight: Floats
) -> tuple[float, float]:
    """The best offset of class k beside the other offsets, and the metric there."""
    if scores.shape[1] == 1:
        rival, own, others = np.zeros(len(scores)), scores[:, 0], np.zeros(len(scores), dtype=np.int64)
        winner = 1
    else:
        shifted = scores + offsets
        shifted[:, k] = -np.inf
        others = shifted.argmax(1)
        rival, own, winner = shifted[np.arange(len(scores)), others], scores[:, k], k
    needed = rival - own  # the offset above which the row goes to class k
    edges = _between(needed)
    step = np.searchsorted(edges, needed, side="right")  # the first edge that is above; at none: len(edges)
    if metric.from_counts:
        found = metric.of_steps(*_counts(step, len(edges), others, winner, shares, weight))
    else:
        decided = (np.where(step <= at, winner, others) for at in range(len(edges)))
        found = np.array([metric.of_decisions(decisions, shares, weight) for decisions in decided])
    best = int(np.argmax(found))
    ties = np.flatnonzero(found >= found[best] - CLOSE)
    run = ties[: np.searchsorted(ties - np.arange(len(ties)), ties[0], side="right")]  # the first run of equals: its middle
    return float(edges[run[len(run) // 2]]), float(found[best])


def _between(needed: Floats) -> Floats:
    """Places between the distinct values, ascending, at most CANDIDATES, and one beyond each end."""
    distinct = np.unique(needed)
    if len(distinct) > CANDIDATES:
        distinct = distinct[np.linspace(0, len(distinct) - 1, CANDIDATES).astype(np.int64)]
    middle = (distinct[1:] + distinct[:-1]) / 2
    return np.concatenate([[distinct[0] - 1], middle, [distinct[-1] + 1]])


def _counts(step: Codes, steps: int, others: Codes, k: int, shares: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """tp, predicted (steps, C) and support (C,): a row is given to its other class below its step, to k from there on."""
    C = shares.shape[1]
    right = weight * shares[np.arange(len(others)), others]

    def moved(of: Floats) -> Floats:
        """Of weights (n,) the sums that have left each other class, (steps, C)."""
        summed = np.asarray(np.bincount(step * C + others, of, (steps + 1) * C), dtype=np.float64)
        return np.cumsum(summed.reshape(steps + 1, C), 0)[:-1]

    leaving = moved(weight)
    tp = np.bincount(others, right, C) - moved(right)
    predicted_others = np.bincount(others, weight, C) - leaving
    predicted_others[:, k] += leaving.sum(1)
    tp[:, k] += np.cumsum(np.bincount(step, weight * shares[:, k], steps + 1))[:-1]
    return tp, predicted_others, weight @ shares
