"""The decision rule against all thresholds, a search over offsets, and the closed forms for known probabilities."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from lossmith.estimators.metrics import METRICS, metric_of
from lossmith.estimators.rule import CANDIDATES, best_offsets, decision_rule
from lossmith.estimators.trained_metric import Rows

SHIFTED = [name for name, metric in METRICS.items() if metric.shifts]


@pytest.mark.parametrize("name", SHIFTED)
def test_a_threshold_is_the_best_of_all(name: str) -> None:
    made = np.random.default_rng(0)
    for _ in range(10):
        y = (made.random(60) < 0.2).astype(np.int64)
        scores = (y + made.normal(size=60) - 2)[:, None]
        rows, metric = Rows(y, made.random(60), 2), metric_of(name, 2)
        offset = best_offsets(metric, scores, np.eye(2)[y], rows.weight)
        every = [metric.counted(scores - x, rows) for x in [*(scores[:, 0] - 1e-9), *(scores[:, 0] + 1e-9)]]
        assert metric.counted(scores + offset, rows) == pytest.approx(max(*every, metric.counted(scores, rows)), rel=1e-12)


@pytest.mark.parametrize("name", ["f1_macro", "balanced_accuracy", "jaccard_weighted", "cost"])
def test_offsets_are_no_worse_than_a_random_search(name: str) -> None:
    made = np.random.default_rng(1)
    y = made.choice(3, 80, p=[0.7, 0.2, 0.1])
    scores = made.normal(size=(80, 3))
    scores[np.arange(80), y] += 1
    rows, metric = Rows(y, made.random(80), 3), metric_of(1 - np.eye(3) if name == "cost" else name, 3)
    offsets = best_offsets(metric, scores, np.eye(3)[y], rows.weight)
    reached = metric.counted(scores + offsets, rows)
    assert reached >= metric.counted(scores, rows)
    found = np.array([metric.counted(scores + made.normal(size=3), rows) for _ in range(2000)])
    assert (found <= reached).mean() > 0.99  # one class is moved at a time


@pytest.mark.parametrize("name", [*SHIFTED, "cost"])
@pytest.mark.parametrize("classes", [2, 3])
def test_decisions_are_worth_what_copies_of_the_rows_are(name: str, classes: int) -> None:
    """A row of class k by a quarter is one copy of four."""
    if name in ("f1", "jaccard") and classes > 2:
        return
    made = np.random.default_rng(2)
    metric = metric_of(np.arange(1.0, classes**2 + 1).reshape(classes, -1) if name == "cost" else name, classes)
    quarters = made.multinomial(4, np.full(classes, 1 / classes), size=30)
    scores, weight = made.normal(size=(30, classes)), made.random(30)
    place, y = np.repeat(np.arange(30), 4), np.concatenate([np.repeat(np.arange(classes), row) for row in quarters])
    expected = metric.counted(scores[place], Rows(y, weight[place] / 4, classes))
    assert metric.of_decisions(scores.argmax(1), quarters / 4, weight) == pytest.approx(expected, rel=1e-12)


def test_known_probabilities_give_the_closed_forms() -> None:
    """Balanced accuracy: the share of the class; cost: its ratio; F1: half of the F1 that is reached."""
    made = np.random.default_rng(3)
    scores = np.sort(made.normal(-2, 1.5, size=(150, 1)), axis=0)
    p, weight = expit(scores[:, 0]), np.ones(150)
    shares = np.column_stack([1 - p, p])

    def decided(metric: object) -> np.ndarray:
        return (scores + best_offsets(metric_of(metric, 2), scores, shares, weight))[:, 0] > 0

    assert (decided("balanced_accuracy") == (p > p.mean())).all()
    assert (decided([[0, 1], [9, 0]]) == (p > 0.1)).all()
    chosen = decided("f1")
    reached = 2 * p[chosen].sum() / (chosen.sum() + p.sum())
    assert (chosen == (p > reached / 2)).all()


def test_the_rule_does_not_follow_a_single_row() -> None:
    """One early positive of four among two hundred: counted, the threshold goes below it; by probabilities it stays."""
    made = np.random.default_rng(4)
    scores = np.concatenate([made.normal(-4, 1, 196), [1.0, 1.5, 2.0, 0.8]])[:, None]
    y = np.r_[np.zeros(196, dtype=np.int64), 1, 1, 1, 1]
    rows, metric = Rows(y, np.ones(200), 2), metric_of("f1", 2)
    first = decision_rule(metric, scores, rows)[0]
    moved = scores.copy()
    moved[-1] = -1.5
    counted = [best_offsets(metric, z, np.eye(2)[y], rows.weight)[0] for z in (scores, moved)]
    assert abs(decision_rule(metric, moved, rows)[0] - first) < abs(counted[1] - counted[0])


def test_class_weights_and_temperature_are_seen_through() -> None:
    """Scores of another temperature, with an offset for each class, get the rule of the probabilities that they stand for."""
    made = np.random.default_rng(5)
    scores = made.normal(size=(4000, 3)) * 2 + [1.0, 0.0, -1.0]
    p = softmax(scores, axis=1)
    y = (p.cumsum(1) < made.random((4000, 1))).sum(1)
    rows, metric = Rows(y, np.ones(4000), 3), metric_of("f1_macro", 3)
    plain = scores + decision_rule(metric, scores, rows)
    shifted = 3 * scores + [-2.0, 1.0, 4.0]
    assert (plain.argmax(1) == (shifted + decision_rule(metric, shifted, rows)).argmax(1)).mean() > 0.99


def test_many_rows_are_thinned() -> None:
    made = np.random.default_rng(2)
    y = (made.random(20 * CANDIDATES) < 0.1).astype(np.int64)
    scores = (2 * y + made.normal(size=len(y)) - 3)[:, None]
    rows, metric = Rows(y, np.ones(len(y)), 2), metric_of("f1", 2)
    every = [metric.counted(scores - x, rows) for x in np.linspace(-5, 3, 4000)]
    for offset in (best_offsets(metric, scores, np.eye(2)[y], rows.weight), decision_rule(metric, scores, rows)):
        assert metric.counted(scores + offset, rows) > max(every) - 0.01


def test_nothing_to_gain_moves_nothing() -> None:
    y, metric = np.array([0, 0, 1, 1]), metric_of("f1", 2)
    scores = np.array([[-1.0], [-2.0], [1.0], [2.0]])
    assert best_offsets(metric, scores, np.eye(2)[y], np.ones(4)).tolist() == [0.0]
    assert decision_rule(metric, scores, Rows(y, np.zeros(4), 2)).tolist() == [0.0]
    assert decision_rule(metric, np.zeros((0, 1)), Rows(y[:0], np.ones(0), 2)).tolist() == [0.0]
