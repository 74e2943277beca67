"""The decision rule against all thresholds, and a search over offsets."""

import numpy as np
import pytest

from lossmith.estimators.metrics import METRICS, metric_of
from lossmith.estimators.rule import CANDIDATES, best_offsets
from lossmith.estimators.trained_metric import Rows

SHIFTED = [name for name, metric in METRICS.items() if metric.shifts]


@pytest.mark.parametrize("name", SHIFTED)
def test_a_threshold_is_the_best_of_all(name: str) -> None:
    made = np.random.default_rng(0)
    for _ in range(10):
        y = (made.random(60) < 0.2).astype(np.int64)
        scores = (y + made.normal(size=60) - 2)[:, None]
        rows, metric = Rows(y, made.random(60), 2), metric_of(name, 2)
        offset = best_offsets(metric, scores, rows)
        every = [metric.counted(scores - x, rows) for x in [*(scores[:, 0] - 1e-9), *(scores[:, 0] + 1e-9)]]
        assert metric.counted(scores + offset, rows) == pytest.approx(max(*every, metric.counted(scores, rows)), rel=1e-12)


@pytest.mark.parametrize("name", ["f1_macro", "balanced_accuracy", "jaccard_weighted", "cost"])
def test_offsets_are_no_worse_than_a_random_search(name: str) -> None:
    made = np.random.default_rng(1)
    y = made.choice(3, 80, p=[0.7, 0.2, 0.1])
    scores = made.normal(size=(80, 3))
    scores[np.arange(80), y] += 1
    rows, metric = Rows(y, made.random(80), 3), metric_of(1 - np.eye(3) if name == "cost" else name, 3)
    offsets = best_offsets(metric, scores, rows)
    reached = metric.counted(scores + offsets, rows)
    assert reached >= metric.counted(scores, rows)
    found = np.array([metric.counted(scores + made.normal(size=3), rows) for _ in range(2000)])
    assert (found <= reached).mean() > 0.99  # one class is moved at a time


def test_many_rows_are_thinned() -> None:
    made = np.random.default_rng(2)
    y = (made.random(20 * CANDIDATES) < 0.1).astype(np.int64)
    scores = (2 * y + made.normal(size=len(y)) - 3)[:, None]
    rows, metric = Rows(y, np.ones(len(y)), 2), metric_of("f1", 2)
    offset = best_offsets(metric, scores, rows)
    every = [metric.counted(scores - x, rows) for x in np.linspace(-5, 3, 4000)]
    assert metric.counted(scores + offset, rows) > max(every) - 0.01


def test_nothing_to_gain_moves_nothing() -> None:
    y = np.array([0, 0, 1, 1])
    assert best_offsets(metric_of("f1", 2), np.array([[-1.0], [-2.0], [1.0], [2.0]]), Rows(y, np.ones(4), 2)).tolist() == [0.0]
    assert best_offsets(metric_of("f1", 2), np.zeros((0, 1)), Rows(y[:0], np.ones(0), 2)).tolist() == [0.0]
