r"""Which point of a path is taken: inner folds, and the rule that stays with likelihood unless a gain exceeds its error.

With d_j = metric of a point − metric of likelihood's point on held-out fold j of J, and s² their variance, the corrected
standard error of the mean is √((1/J + ρ) s²), ρ = rows held out / rows trained on: the folds' trainings overlap. Source:
Nadeau & Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from sklearn.model_selection import RepeatedStratifiedKFold, check_cv
from sklearn.utils import check_random_state

from lossmith.estimators.metrics.trained_metric import Codes, Floats

REPEATS = 2
CLOSE = 1e-12  # metrics that differ by less are ties

Fold = tuple[Codes, Codes]


class Candidate(Protocol):
    """A point of a path: of a linear classifier's, or an epoch of a network's training."""

    @property
    def is_likelihood(self) -> bool:
        """Whether it was trained by likelihood alone."""


AnyPoint = TypeVar("AnyPoint", bound=Candidate)


@dataclass(frozen=True)
class Selection(Generic[AnyPoint]):
    """What was taken, and why.

    Attributes:
        point: the point that was taken.
        index: its place among all points.
        base: the place of the likelihood point that the metric's points had to beat.
        gain: mean over the inner folds of the metric of the best metric point minus that of the base; 0 if there is no metric
            point.
        error: the corrected standard error of the gain.
        reason: in words.
    """

    point: AnyPoint
    index: int
    base: int
    gain: float
    error: float
    reason: str

    @property
    def took_metric(self) -> bool:
        """Whether a point trained for the metric was taken."""
        return not self.point.is_likelihood


def folds_of(
    cv: Any,
    X: Any,
    y: Codes,
    random_state: Any,
    params: dict[str, Any],
    repeats: int = REPEATS,
    fold_rows: int | None = None,
) -> list[Fold]:
    """Rows to train on and rows to hold out.

    Args:
        cv: an integer k: k stratified folds, repeated; else a splitter or an iterable of folds, taken as they are.
        X, y: features (n, d) and class codes (n,).
        random_state: of an integer's folds.
        params: for the splitter.
        repeats: of an integer's folds.
        fold_rows: the rows that an integer's folds divide, at most; of more, a stratified draw.
    """
    if isinstance(cv, Integral):
        if fold_rows is not None and len(y) > fold_rows:
            drawn = _stratified_draw(y, fold_rows, random_state)
            folds = folds_of(cv, drawn, y[drawn], random_state, params, repeats)
            return [(drawn[train], drawn[held]) for train, held in folds]
        most = int(np.bincount(y).max())
        parts = max(2, min(cv, most))
        if len(y) < 2 or most < 2:
            raise ValueError(f"cv: expected two rows of one class or more, got {len(y)} rows; pass more rows")
        splitter: Any = RepeatedStratifiedKFold(n_splits=parts, n_repeats=repeats, random_state=random_state)
    else:
        splitter = check_cv(cv, y, classifier=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y")
        return [(train, held) for train, held in splitter.split(X, y, **params)]


def _stratified_draw(y: Codes, rows: int, random_state: Any) -> Codes:
    """The places of so many rows, ascending, with the classes in the shares that they have; each class has one at least."""
    order = check_random_state(random_state).permutation(len(y))
    by_class = order[np.argsort(y[order], kind="stable")]
    counts = np.bincount(y)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # where the rows of its class begin
    share = (np.arange(len(y)) - first) / np.repeat(counts, counts)
    return np.sort(by_class[np.argsort(share, kind="stable")[:rows]])


def ratio_of(folds: list[Fold]) -> float:
    """Rows held out / rows trained on, the mean over the folds."""
    return float(np.mean([len(held) / len(train) for train, held in folds]))


def corrected_error(differences: Floats, ratio: float) -> float:
    """The standard error of the mean of paired differences (J,); ``ratio``: rows held out / rows trained on."""
    if len(differences) < 2:
        return float("inf")
    return float(np.sqrt((1 / len(differences) + ratio) * differences.var(ddof=1)))


def choose(
    points: Sequence[AnyPoint], scores: Floats, ratio: float, caution: float, base: int | None = None
) -> Selection[AnyPoint]:
    """The point to take.

    Args:
        points: those of the path. Of equals the first is taken, so stronger penalties and earlier epochs come first.
        scores: (J, points), the counted metric on held-out rows.
        ratio: rows held out / rows trained on.
        caution: standard errors that a gain has to exceed.
        base: the place of the likelihood point to beat; None: the one of the highest mean metric.
    """
    mean = scores.mean(0)
    kinds = np.array([point.is_likelihood for point in points])
    if base is None:
        base = first_of_best(mean, np.flatnonzero(kinds))
    others = np.flatnonzero(~kinds)
    if len(others) == 0:
        return Selection(points[base], base, base, 0.0, 0.0, "training for the metric was not tried, so likelihood stays")
    best = first_of_best(mean, others)
    differences = scores[:, best] - scores[:, base]
    gain, error = float(differences.mean()), corrected_error(differences, ratio)
    told = f"on {len(scores)} inner folds the metric point gains {gain:+.4f}, with a standard error of {error:.4f}"
    if gain > CLOSE and (caution == 0 or gain > caution * error):
        return Selection(points[best], best, base, gain, error, f"{told}: more than {caution:g} × that error")
    return Selection(
        points[base], base, base, gain, error, f"{told}: no more than {caution:g} × that error, so likelihood stays"
    )


def first_of_best(mean: Floats, among: Codes) -> int:
    """The first of the places ``among`` whose mean is the highest but for rounding."""
    return int(among[np.flatnonzero(mean[among] >= mean[among].max() - CLOSE)[0]])
