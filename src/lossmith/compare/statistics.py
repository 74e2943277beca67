"""From rows to what they say: paired differences, with an interval that knows the folds overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lossmith.catalogue import BASELINE
from lossmith.compare.store import Row


@dataclass(frozen=True)
class Summary:
    """One loss over all splits. ``differences`` are its scores minus the baseline's, split by split."""

    loss: str
    scores: tuple[float, ...]
    differences: tuple[float, ...]
    interval: (
        tuple[float, float] | None
    )  # 95 % of the mean difference; None for the baseline, a single split, and equal differences
    seconds: float  # median of the trainings
    slowdown: float  # median over splits of the time relative to the baseline's
    diverged: int  # trainings whose last loss was not finite

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation of the scores over splits; nan for a single one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else math.nan

    @property
    def difference(self) -> float:
        """Mean difference from the baseline."""
        return float(np.mean(self.differences))

    @property
    def verdict(self) -> str:
        """What the interval says: "better", "worse", or "" where it does not exclude zero."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "better" if self.interval[0] > 0 else "worse"


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


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """One summary a loss, the baseline first, the others from best to worst; rows must cover the same splits for all."""
    by_loss: dict[str, dict[tuple[int, int], Row]] = {}
    for row in rows:
        by_loss.setdefault(row["loss"], {})[row["repeat"], row["fold"]] = row
    baseline = by_loss[BASELINE]
    ratio = float(np.mean([row["test_rows"] / row["train_rows"] for row in baseline.values()]))
    summaries = []
    for loss, splits in by_loss.items():
        differences = tuple(splits[split]["score"] - baseline[split]["score"] for split in splits)
        summaries.append(
            Summary(
                loss=loss,
                scores=tuple(row["score"] for row in splits.values()),
                differences=differences,
                interval=None if loss == BASELINE else corrected_interval(differences, ratio),
                seconds=float(np.median([row["train_seconds"] for row in splits.values()])),
                slowdown=float(np.median([splits[s]["train_seconds"] / baseline[s]["train_seconds"] for s in splits])),
                diverged=sum(row["curve"][-1][0] is None for row in splits.values()),
            )
        )
    return sorted(summaries, key=lambda s: (s.loss != BASELINE, -s.mean))
