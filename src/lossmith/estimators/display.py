"""The path of a ``MetricClassifierCV`` as a figure: the metric on held-out rows, and the point that was taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from lossmith.estimators.metrics import metric_of
from lossmith.estimators.metrics.trained_metric import Floats
from lossmith.estimators.path import Point

if TYPE_CHECKING:
    from lossmith.estimators.linear import MetricClassifierCV


class MetricPathDisplay:
    """The metric along the path, as scikit-learn's displays show curves.

    Args:
        points: those of the path.
        scores: (folds, points), the metric on held-out rows.
        taken: place of the point that was taken.
        error: the corrected standard error of its gain over likelihood.
        metric_name: for the axis.

    Attributes:
        ax_, figure_: where it is drawn.
        lines_: the mean metric of likelihood, and of each C's metric points.
        fill_between_: one standard deviation of likelihood's folds.
        errorbar_: the point taken, with ``error``.

    >>> MetricPathDisplay([Point(1.0, 1.0, 0.0)], np.array([[0.5], [0.7]]), 0, 0.1, "accuracy").scores.shape
    (2, 1)
    """

    def __init__(self, points: list[Point], scores: Floats, taken: int, error: float, metric_name: str) -> None:
        self.points = points
        self.scores = scores
        self.taken = taken
        self.error = error
        self.metric_name = metric_name

    @classmethod
    def from_estimator(cls, estimator: MetricClassifierCV, *, ax: Any = None) -> MetricPathDisplay:
        """Draw the path of a fitted ``MetricClassifierCV``, or of one that is the last step of a pipeline.

        Raises:
            NotFittedError: it is not fitted.
        """
        estimator = estimator[-1] if hasattr(estimator, "steps") else estimator
        check_is_fitted(estimator, "selection_")
        name = metric_of(estimator.metric, len(estimator.classes_)).name
        chosen = estimator.selection_
        return cls(estimator.points_, estimator.scores_, chosen.index, chosen.error, name).plot(ax)

    def plot(self, ax: Any = None) -> MetricPathDisplay:
        """Draw into ``ax``, or into a new figure."""
        from matplotlib import pyplot as plt

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        mean, spread = self.scores.mean(0), self.scores.std(0)
        likelihood = [i for i, point in enumerate(self.points) if point.is_likelihood]
        x = [self.points[i].C for i in likelihood]
        self.ax_, self.figure_ = ax, ax.figure
        self.fill_between_ = ax.fill_between(x, (mean - spread)[likelihood], (mean + spread)[likelihood], alpha=0.15)
        self.lines_ = ax.plot(x, mean[likelihood], marker="o", markersize=4, label="likelihood")
        for C, places in self._by_penalty().items():
            at = C * np.geomspace(1.15, 1.9, len(places))  # beside their C
            self.lines_ += ax.plot(at, mean[places], marker="s", markersize=4, label=f"metric, C = {C:.3g}")
            if self.taken in places:
                taken_at = at[places.index(self.taken)]
        if self.points[self.taken].is_likelihood:
            taken_at = self.points[self.taken].C
        self.errorbar_ = ax.errorbar(
            taken_at, mean[self.taken], yerr=self.error, fmt="*", markersize=13, capsize=4, color="black", label="taken"
        )
        ax.set(
            xscale="log",
            xlabel="C (metric points beside theirs, in the order of sharpness)",
            ylabel=f"{self.metric_name}, held out",
        )
        ax.legend(frameon=False)
        return self

    def _by_penalty(self) -> dict[float, list[int]]:
        """The metric points of each C."""
        found: dict[float, list[int]] = {}
        for i, point in enumerate(self.points):
            if not point.is_likelihood:
                found.setdefault(point.C, []).append(i)
        return found
