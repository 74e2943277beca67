"""From rows to what they say: paired differences, with an interval that knows the folds overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lossmith.compare.methods import BASELINE, PATH
from lossmith.compare.store import Row


@dataclass(frozen=True)
class Difference:
    """How much higher one method's scores are than another's, split by split.

    Args:
        values: one a split.
        interval: 95 % of the mean; None for a single split, and for equal values.
        chance: probability that the mean is above 0; None where there is no interval.
    """

    values: tuple[float, ...]
    interval: tuple[float, float] | None
    chance: float | None

    @property
    def mean(self) -> float:
        """Of the values."""
        return float(np.mean(self.values))

    @property
    def verdict(self) -> str:
        """What the interval says: "better", "worse", or "" where it does not exclude zero."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "better" if self.interval[0] > 0 else "worse"


@dataclass(frozen=True)
class Summary:
    """One method over all splits; ``difference`` is from the baseline."""

    method: str
    scores: tuple[float, ...]
    difference: Difference
    seconds: float  # median of the fits, tuning included
    slowdown: float  # median over splits of the time relative to the baseline's
    diverged: int = 0  # trainings whose last loss was not finite
    taken: int | None = None  # splits in which a point trained for the metric was taken; None for other methods

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation of the scores over splits; nan for a single one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else math.nan


def corrected_interval(
    differences: Sequence[float], test_train_ratio: float, confidence: float = 0.95
) -> tuple[float, float] | None:
    r"""Confidence interval of a mean difference over J cross-validation splits.

    mean ± t_{J−1} · √((1/J + n_test/n_train) · s²), with s² the variance of the differences. The term n_test/n_train stands
    for the correlation of splits that share training rows; without it the interval is far too narrow.

    Args:
        differences: one a split, J of them.
        test_train_ratio: n_test / n_train.
        confidence: between 0 and 1.

    Returns:
        Lower and upper end, or None where the formula has nothing to go by: J < 2, or differences that are all equal, as
        happens with discrete scores on few splits.

    Source: Nadeau & Bengio, "Inference for the generalization error", Machine Learning 52 (2003).

    >>> low, high = corrected_interval([0.00, 0.01, 0.02, 0.01, 0.01], test_train_ratio=0.25)
    >>> round(low, 4), round(high, 4)
    (-0.0032, 0.0232)
    """
    count = len(differences)
    if count < 2 or np.ptp(differences) < 1e-12:
        return None
    mean = float(np.mean(differences))
    error = math.sqrt((1 / count + test_train_ratio) * float(np.var(differences, ddof=1)))
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return mean - half, mean + half


def difference(scores: Sequence[float], others: Sequence[float], test_train_ratio: float) -> Difference:
    r"""``scores`` minus ``others``, paired by split.

    The chance is that of the correlated Bayesian t-test: the posterior of the mean is a Student's t of J − 1 degrees of freedom
    around the mean difference, with the scale of ``corrected_interval``. Source: Corani & Benavoli, "A Bayesian approach for
    comparing cross-validated algorithms on multiple data sets", Machine Learning 100 (2015).
    """
    values = tuple(float(a - b) for a, b in zip(scores, others, strict=True))
    interval = corrected_interval(values, test_train_ratio)
    chance = None
    if interval is not None:
        error = math.sqrt((1 / len(values) + test_train_ratio) * float(np.var(values, ddof=1)))
        chance = float(stats.t.cdf(float(np.mean(values)) / error, len(values) - 1))
    return Difference(values, interval, chance)


def ratio_of(rows: Sequence[Row]) -> float:
    """n_test / n_train, the mean over rows."""
    return float(np.mean([row["test_rows"] / row["train_rows"] for row in rows]))


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """One summary a method, the baseline first, the others from best to worst; rows must cover the same splits for all."""
    by_method: dict[str, dict[tuple[int, int], Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["repeat"], row["fold"]] = row
    baseline, ratio = by_method[BASELINE], ratio_of(rows)
    summaries = []
    for method, splits in by_method.items():
        scores = tuple(row["score"] for row in splits.values())
        compared = difference(scores, [baseline[split]["score"] for split in splits], ratio)
        taken = [row["took_metric"] for row in splits.values() if "took_metric" in row]
        summaries.append(
            Summary(
                method=method,
                scores=scores,
                difference=compared,
                seconds=float(np.median([row["seconds"] for row in splits.values()])),
                slowdown=float(np.median([splits[s]["seconds"] / baseline[s]["seconds"] for s in splits])),
                diverged=sum(row["curve"][-1][0] is None for row in splits.values() if "curve" in row),
                taken=sum(taken) if method == PATH else None,
            )
        )
    return sorted(summaries, key=lambda s: (s.method != BASELINE, -s.mean))
