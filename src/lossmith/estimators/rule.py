"""The decision rule: an offset for each class, added to its score, that makes a metric highest on given scores.

For two classes the offset is a threshold on the lead of class 1. For more classes the offsets are moved one after the other,
each to the best of CANDIDATES places between the leads that its class has, until a sweep brings nothing.
"""

from __future__ import annotations

import numpy as np

from lossmith.estimators.trained_metric import Codes, Floats, Rows, TrainedMetric

CANDIDATES = 200
SWEEPS = 3
CLOSE = 1e-12  # metrics that differ by less are equal but for rounding


def best_offsets(metric: TrainedMetric, scores: Floats, rows: Rows) -> Floats:
    """Offsets (K,) for scores (n, K): the best found from 0 on; 0 where none is better."""
    offsets = np.zeros(scores.shape[1])
    if len(scores) == 0:
        return offsets
    best = metric.counted(scores, rows)
    for _ in range(SWEEPS if scores.shape[1] > 1 else 1):
        before = best
        for k in range(scores.shape[1]):
            moved, reached = _moved(metric, scores, offsets, k, rows)
            if reached > best + CLOSE:
                offsets[k], best = moved, reached
        if best <= before:
            break
    return offsets - offsets.mean() if scores.shape[1] > 1 else offsets


def _moved(metric: TrainedMetric, scores: Floats, offsets: Floats, k: int, rows: Rows) -> tuple[float, float]:
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
        found = metric.of_steps(*_counts(step, len(edges), others, winner, rows))
    else:
        unit = np.eye(scores.shape[1])[k]
        found = np.array([metric.counted(scores + offsets * (1 - unit) + edge * unit, rows) for edge in edges])
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


def _counts(step: Codes, steps: int, others: Codes, k: int, rows: Rows) -> tuple[Floats, Floats, Floats]:
    """tp, predicted (steps, C) and support (C,): a row is given to its other class below its step, to k from there on."""
    C, y, w = rows.classes, rows.y, rows.weight
    support = np.asarray(np.bincount(y, w, C), dtype=np.float64)

    def by_step(of: Codes, weight: Floats) -> Floats:
        summed = np.bincount(step * C + of, weight, (steps + 1) * C)
        return np.asarray(summed, dtype=np.float64).reshape(steps + 1, C)

    leaving = np.cumsum(by_step(others, w), 0)[:-1]
    leaving_right = np.cumsum(by_step(others, w * (others == y)), 0)[:-1]
    predicted_others = np.bincount(others, w, C) - leaving
    tp = np.bincount(others, w * (others == y), C) - leaving_right
    predicted_others[:, k] += leaving.sum(1)
    tp[:, k] += np.cumsum(by_step(y, w), 0)[:-1, k]
    return tp, predicted_others, support
