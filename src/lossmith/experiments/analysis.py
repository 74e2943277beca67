"""What the studies' pages share: rows as a table, means over tasks with an interval, and their text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from lossmith.compare.over_sets import signed
from lossmith.compare.store import Row
from lossmith.experiments.study import Outcome

PROVENANCE = ("study", "protocol", "finished", "version", "machine")


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a line: what its cell says, and its values."""
    found = [{**row["cell"], **{name: value for name, value in row.items() if name not in PROVENANCE}} for row in rows]
    return pd.DataFrame(found).drop(columns="cell", errors="ignore")


class Mean(NamedTuple):
    """A mean, the half width of its 95 % interval by Student's t (nan for a single value), and over how many values."""

    value: float
    half: float
    over: int

    def __str__(self) -> str:
        width = f" ± {self.half:.2f}" if math.isfinite(self.half) else ""
        return f"{signed(self.value)}{width}"

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half


def mean_of(values: Iterable[float]) -> Mean:
    """The mean of independent values, such as differences of tasks."""
    found = np.array(list(values), dtype=float)
    if len(found) < 2:
        return Mean(float(found.mean()) if len(found) else math.nan, math.nan, len(found))
    return Mean(float(found.mean()), float(stats.t.ppf(0.975, len(found) - 1)) * standard_error(found), len(found))


def scores_by_method(means: pd.DataFrame) -> dict[str, dict[str, float]]:
    """What ``over_sets`` takes, of a table with data sets down and methods across."""
    return {str(method): {str(name): float(value) for name, value in means[method].items()} for method in means}


def standard_error(values: Iterable[float]) -> float:
    """Of the mean of independent values; nan for a single one."""
    found = np.array(list(values), dtype=float)
    return float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan


def exceeds(mean: Mean, bound: float = 0.0) -> Outcome:
    """Whether a mean lies above a bound: so if its whole interval does, not so if none of it does, else open."""
    held = None
    if math.isfinite(mean.half):
        held = True if mean.low > bound else False if mean.high <= bound else None
    return Outcome(held, f"{mean} points over {mean.over}")


def lowest(gain: pd.Series, holds: Callable[[float], bool]) -> Outcome:
    """Whether something holds of the lowest of several gains, and where that is."""
    if gain.empty:
        return Outcome(None, "no tables")
    return Outcome(bool(holds(gain.min())), f"lowest {signed(gain.min())} ({gain.idxmin()})")


def ties(mean: Mean, bound: float) -> bool | None:
    """Whether a mean is within ± ``bound``: so if its whole interval is, not so if none of it is, else open."""
    if not math.isfinite(mean.half):
        return None
    if -bound < mean.low and mean.high < bound:
        return True
    return False if mean.low > bound or mean.high < -bound else None


def all_of(parts: Iterable[bool | None]) -> bool | None:
    """Whether all hold: not so if one does not, open if one is."""
    found = list(parts)
    return False if False in found else None if None in found or not found else True


def paired(frame: pd.DataFrame, by: str, first: Any, second: Any, within: Sequence[str], value: str = "accuracy") -> pd.Series:
    """``value`` where ``by`` is ``first`` minus where it is ``second``, for each combination of ``within`` that has both."""
    means = frame.groupby([*within, by], observed=True)[value].mean().unstack(by)
    if first not in means or second not in means:
        return means.iloc[:0, 0]
    difference: pd.Series = (means[first] - means[second]).dropna()
    return difference
