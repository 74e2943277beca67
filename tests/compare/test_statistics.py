"""The statistics: the corrected interval by hand, and what a table of rows says."""

import math

import numpy as np
import pytest
from scipy import stats

from lossmith.compare.statistics import Difference, corrected_interval, summarize


def rows(method, scores, seconds=None, sizes=(80, 20), last_loss=0.5):
    seconds = seconds or [1.0] * len(scores)
    return [
        {
            "method": method,
            "repeat": fold // 2,
            "fold": fold % 2,
            "score": score,
            "seconds": time,
            "train_rows": sizes[0],
            "test_rows": sizes[1],
            "curve": [[0.9, 0.5, 0.5], [last_loss, 0.5, 0.5]],
        }
        for fold, (score, time) in enumerate(zip(scores, seconds, strict=True))
    ]


BASE = rows("likelihood", [0.80, 0.82, 0.78, 0.80], [1.0, 2.0, 4.0, 8.0])


# The interval


@pytest.mark.parametrize("count", [2, 5, 30])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_interval_is_the_formula(count, ratio, confidence):
    d = np.random.default_rng(count).normal(0.01, 0.02, count)
    variance = ((d - d.mean()) ** 2).sum() / (count - 1)
    expected = stats.t.interval(confidence, count - 1, d.mean(), math.sqrt(variance * (1 / count + ratio)))
    assert corrected_interval(d.tolist(), ratio, confidence) == pytest.approx(expected, rel=1e-12)


def test_worked_example():
    """Differences 2, 4, 0, 3, 1 points: mean 2, s² = 2.5; s²(1/5 + 1/4) = 1.125, t₄ = 2.7764, so 2 ± 2.945."""
    low, high = corrected_interval([0.02, 0.04, 0.00, 0.03, 0.01], test_train_ratio=0.25)
    assert (low, high) == pytest.approx((-0.00945, 0.04945), abs=5e-6)
    naive = corrected_interval([0.02, 0.04, 0.00, 0.03, 0.01], test_train_ratio=0.0)  # 2 ± 2.7764 · √0.5
    assert naive == pytest.approx((0.00037, 0.03963), abs=5e-6)  # without the correction it would exclude zero


def test_without_the_correction_it_is_the_t_test():
    d = [0.01, -0.02, 0.03, 0.00]
    theirs = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert corrected_interval(d, 0.0) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_a_single_split_has_no_interval():
    assert corrected_interval([0.1], 0.25) is None
    assert corrected_interval([], 0.25) is None


# The table


def test_baseline_first_then_from_best_to_worst():
    table = summarize([*rows("hinge", [0.7] * 4), *rows("exact", [0.9] * 4), *BASE, *rows("probit", [0.8] * 4)])
    assert [s.method for s in table] == ["likelihood", "exact", "probit", "hinge"]


def test_a_summary_in_numbers():
    base, other = summarize([*BASE, *rows("hinge", [0.82, 0.86, 0.78, 0.83], [2.0, 2.0, 2.0, 80.0])])
    assert base.mean == pytest.approx(0.80)
    assert base.spread == pytest.approx(math.sqrt(8e-4 / 3))
    assert (base.difference.mean, base.difference.interval, base.difference.verdict, base.slowdown) == (0, None, "", 1)
    assert base.seconds == 3.0  # the median of 1, 2, 4, 8
    assert other.difference.values == pytest.approx((0.02, 0.04, 0.00, 0.03))
    assert other.difference.mean == pytest.approx(0.0225)
    assert other.slowdown == 1.5  # the median of 2, 1, 0.5, 10
    variance = np.var([2, 4, 0, 3], ddof=1) * 1e-4
    half = stats.t.ppf(0.975, 3) * math.sqrt(variance * (1 / 4 + 20 / 80))
    assert other.difference.interval == pytest.approx((0.0225 - half, 0.0225 + half))
    assert other.difference.chance == pytest.approx(stats.t.sf(0, 3, 0.0225, half / stats.t.ppf(0.975, 3)))


def test_differences_pair_the_splits_whatever_the_order_of_the_rows():
    scores = [0.81, 0.85, 0.78, 0.80]
    in_order = summarize([*BASE, *rows("hinge", scores)])[1]
    shuffled = summarize([*rows("hinge", scores)[::-1], *BASE[2:], *BASE[:2]])[1]
    assert sorted(shuffled.difference.values) == pytest.approx(sorted(in_order.difference.values))
    assert shuffled.difference.interval == pytest.approx(in_order.difference.interval)


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [([5, 5, 6, 5], "better"), ([-5, -5, -6, -5], "worse"), ([5, -5, 6, -6], ""), ([1, 1, 1, 1], ""), ([0, 0, 0, 0], "")],
)
def test_verdict(gain, verdict):
    scores = [row["score"] + points / 100 for row, points in zip(BASE, gain, strict=True)]
    assert summarize([*BASE, *rows("hinge", scores)])[1].difference.verdict == verdict


def test_identical_scores_have_no_verdict():
    same = summarize([*BASE, *rows("hinge", [row["score"] for row in BASE])])[1]
    assert same.difference == Difference((0.0,) * 4, None, None)
    assert same.difference.verdict == ""


def test_the_ratio_is_that_of_the_rows():
    def width(sizes):
        base = rows("likelihood", [0.80, 0.82, 0.78, 0.80], sizes=sizes)
        low, high = summarize([*base, *rows("hinge", [0.82, 0.86, 0.78, 0.83], sizes=sizes)])[1].difference.interval
        return high - low

    assert width((50, 50)) / width((80, 20)) == pytest.approx(math.sqrt((1 / 4 + 1) / (1 / 4 + 1 / 4)))


def test_a_single_split_has_no_spread_and_no_verdict():
    base, other = summarize([BASE[0], *rows("hinge", [0.9])])
    assert math.isnan(base.spread)
    assert (other.difference.interval, other.difference.verdict) == (None, "")


def test_trainings_that_broke_are_counted():
    broken = rows("hinge", [0.5] * 4, last_loss=None)
    assert [s.diverged for s in summarize([*BASE, *broken[:2], *rows("hinge", [0.5] * 4)[2:]])] == [0, 2]


@pytest.mark.parametrize("value", [0.0, 0.05])
def test_equal_differences_have_no_interval(value):
    assert corrected_interval([value] * 3, 0.5) is None
