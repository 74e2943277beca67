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
from lossmith.estimators.metrics.trained_metric import Codes, Floats, Rows, TrainedMetric

CANDIDATES = 200
SWEEPS = 3
CLOSE = 1e-12  # metrics that differ by less are equal but for rounding


def decision_rule(metric: TrainedMetric, scores: Floats, rows: Rows) -> Floats:
    """Offsets (K,) for scores (n, K), of the highest expected metric under probabilities that are calibrated on the rows."""
    used = rows.weight > 0
    if not used.any():
        return np.zeros(scores.shape[1])
    scores, rows = scores[used], rows.at(np.flatnonzero(used))
    return best_offsets(metric, scores, calibrated(scores, rows), rows.weight)


def best_offsets(metric: TrainedMetric, scores: Floats, shares: Floats, weight: Floats) -> Floats:
    """Offsets (K,), the best found from 0 on; 0 where none is better.

    Args:
        metric: one that ``shifts``.
        scores: (n, K).
        shares: (n, C), the probability of each class; 0 and 1 where the class is known.
        weight: (n,), some above 0.
    """
    worth = metric.worth(shares)
    offsets, best = np.zeros(scores.shape[1]), -np.inf
    for _ in range(SWEEPS if scores.shape[1] > 1 else 1):
        before = best
        for k in range(scores.shape[1]):
            rival, own, others, winner = _duel(scores + offsets, k)
            needed = rival - own  # how much the class lacks to win the row
            edges = _between(needed, CANDIDATES if scores.shape[1] > 1 else len(needed))
            still = np.searchsorted(edges, 0.0)  # the place at which no row moves
            edges = np.insert(edges, still, 0.0)
            step = np.searchsorted(edges, needed, side="right")  # the first edge that is above; at none: len(edges)
            if worth is None:
                found = metric.of_steps(*_counts(step, len(edges), others, winner, shares, weight))
            else:
                found = _worths(step, len(edges), others, winner, worth, weight)
            highest = found.max()
            if highest > found[still] + CLOSE:
                ties = np.flatnonzero(found >= highest - CLOSE)
                run = ties[: np.searchsorted(ties - np.arange(len(ties)), ties[0], side="right")]  # the first run of equals
                offsets[k] += edges[run[len(run) // 2]]  # its middle
            best = max(best, float(highest))
        if best <= before + CLOSE:
            break
    return offsets - offsets.mean() if scores.shape[1] > 1 else offsets


def _duel(scores: Floats, k: int) -> tuple[Floats, Floats, Codes, int]:
    """The highest score beside class k's, class k's own, the class of the first, all (n,), and k; k = 1 for one lead."""
    if scores.shape[1] == 1:
        return np.zeros(len(scores)), scores[:, 0], np.zeros(len(scores), dtype=np.int64), 1
    beside = scores.copy()
    beside[:, k] = -np.inf
    others = beside.argmax(1)
    return beside[np.arange(len(scores)), others], scores[:, k], others, k


def _between(needed: Floats, most: int) -> Floats:
    """Places between the distinct values, ascending, at most so many, and one beyond each end."""
    distinct = np.unique(needed)
    if len(distinct) > most:
        distinct = distinct[np.linspace(0, len(distinct) - 1, most).astype(np.int64)]
    middle = (distinct[1:] + distinct[:-1]) / 2
    return np.concatenate([[distinct[0] - 1], middle, [distinct[-1] + 1]])


def _worths(step: Codes, steps: int, others: Codes, k: int, worth: Floats, weight: Floats) -> Floats:
    """The mean worth at each step: a row is given to its other class below its step, to k from there on."""
    before = worth[np.arange(len(others)), others]
    gained = np.bincount(step, weight * (worth[:, k] - before), steps + 1)
    return np.asarray((weight @ before + np.cumsum(gained)[:-1]) / weight.sum())


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
