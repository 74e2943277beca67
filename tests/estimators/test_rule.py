"""The decision rule against all thresholds, a search over offsets, and the closed forms for known probabilities."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from lossmith.estimators.calibration import calibrated
from lossmith.estimators.metrics import METRICS, metric_of
from lossmith.estimators.metrics.trained_metric import Rows
from lossmith.estimators.rule import CANDIDATES, best_offsets, decision_rule

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
def test_a_row_of_several_classes_counts_as_copies_of_each(name: str, classes: int) -> None:
    if name in ("f1", "jaccard") and classes > 2:
        return
    made = np.random.default_rng(2)
    metric = metric_of(np.arange(1.0, classes**2 + 1).reshape(classes, -1) if name == "cost" else name, classes)
    quarters = made.multinomial(4, made.dirichlet(np.ones(classes), size=30))
    scores, weight = made.normal(size=(30, classes)), made.random(30)
    scores = scores[:, 1:] - scores[:, :1] if classes == 2 else scores
    place, y = np.repeat(np.arange(30), 4), np.concatenate([np.repeat(np.arange(classes), row) for row in quarters])
    expected = best_offsets(metric, scores[place], np.eye(classes)[y], weight[place] / 4)
    np.testing.assert_allclose(best_offsets(metric, scores, quarters / 4, weight), expected, atol=1e-12)


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


def test_the_scale_of_the_scores_does_not_matter() -> None:
    made = np.random.default_rng(6)
    lead = made.normal(size=1000) * 2 - 3
    y = (made.random(1000) < expit(lead)).astype(np.int64)
    rows, metric = Rows(y, np.ones(1000), 2), metric_of("f1", 2)
    expected = decision_rule(metric, lead[:, None], rows)[0]
    assert 0 < expected < 2
    for scale in (1e-9, 1e-4, 1e4, 1e9):
        assert decision_rule(metric, scale * lead[:, None], rows)[0] / scale == pytest.approx(expected, rel=1e-3)


def test_the_order_of_the_classes_does_not_matter() -> None:
    made = np.random.default_rng(7)
    y = made.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    scores = made.normal(size=(300, 4)) + 2 * np.eye(4)[y] - [4.0, 0.0, 0.0, 0.0]
    metric, turned = metric_of("f1_macro", 4), np.array([1, 2, 3, 0])
    p = calibrated(scores, Rows(y, np.ones(300), 4))
    moved = calibrated(scores[:, turned], Rows(np.argsort(turned)[y], np.ones(300), 4))
    np.testing.assert_allclose(moved, p[:, turned], atol=1e-4)
    assert metric.counted(scores + decision_rule(metric, scores, Rows(y, np.ones(300), 4)), Rows(y, np.ones(300), 4)) > 0.5


@pytest.mark.parametrize("name", ["balanced_accuracy", "f1_macro"])
def test_a_class_without_rows_is_not_decided_for(name: str) -> None:
    made = np.random.default_rng(8)
    y = made.integers(0, 2, 400)
    scores = np.column_stack([1.5 * np.eye(2)[y] + made.normal(size=(400, 2)), made.normal(size=400)])
    found = (scores + decision_rule(metric_of(name, 3), scores, Rows(y, np.ones(400), 3))).argmax(1)
    assert (found == 2).mean() < 0.01
    assert (found == y).mean() > 0.8


def test_rows_that_weigh_nothing_are_as_if_they_were_not_there() -> None:
    made = np.random.default_rng(9)
    y, scores = made.integers(0, 2, 60), made.normal(size=(60, 1))
    scores[:, 0] += y - 1
    metric, kept = metric_of("f1", 2), np.arange(60) < 40
    expected = decision_rule(metric, scores[kept], Rows(y[kept], np.ones(40), 2))
    assert decision_rule(metric, scores, Rows(y, kept.astype(float), 2)) == pytest.approx(expected, abs=1e-12)


def test_a_class_of_one_row_in_five_hundred_is_met_exactly() -> None:
    made = np.random.default_rng(10)
    lead = np.sort(made.normal(-8, 1.6, size=50_000))
    p, weight = expit(lead), np.ones(50_000)
    offset = best_offsets(metric_of("f1", 2), lead[:, None], np.column_stack([1 - p, p]), weight)[0]
    falling = np.sort(p)[::-1]
    every = 2 * falling.cumsum() / (np.arange(1, len(p) + 1) + p.sum())
    chosen = lead + offset > 0
    assert 2 * p[chosen].sum() / (chosen.sum() + p.sum()) == pytest.approx(every.max(), rel=1e-12)


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
