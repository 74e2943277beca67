"""The methods that ``compare`` fits: each a scikit-learn classifier, built for the metric asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from lossmith.estimators import MetricClassifierCV
from lossmith.estimators.metrics import metric_of
from lossmith.estimators.metrics.trained_metric import Codes, Floats, Rows
from lossmith.estimators.rule import decision_rule

BASELINE = "likelihood"
RULE = "decision-rule"
PATH = "metric-path"
WEIGHTS = "class-weights"
CEILING = "boosting"
INNER_FOLDS = 5


class BoostedTrees(ClassifierMixin, BaseEstimator):
    """scikit-learn's histogram gradient boosting; for a metric that has a decision rule, with offsets tuned on inner folds.

    Args:
        metric: as for ``MetricClassifierCV``.
        random_state: of the trees and the folds.
    """

    def __init__(self, metric: Any = "accuracy", random_state: int = 0) -> None:
        self.metric = metric
        self.random_state = random_state

    def fit(self, X: npt.NDArray[Any], y: Codes) -> BoostedTrees:
        """Fit to features (n, d) and class codes (n,), in one thread."""
        rarest = int(np.bincount(y).min())
        early: Any = "auto" if rarest > 2 else False  # it splits by class, and folds leave fewer rows
        trees = HistGradientBoostingClassifier(random_state=self.random_state, early_stopping=early)
        classes = int(y.max()) + 1
        metric = metric_of(self.metric, classes)
        with threadpool_limits(1):
            self.offset_ = np.zeros(1 if classes == 2 else classes)
            parts = min(INNER_FOLDS, rarest)
            if metric.shifts and parts > 1:  # a class of one row would be missing from a training
                folds = StratifiedKFold(parts, shuffle=True, random_state=self.random_state)
                held = cross_val_predict(trees, X, y, cv=folds, method="decision_function")
                self.offset_ = decision_rule(metric, columns(held), Rows(y, np.ones(len(y)), classes))
            self.model_ = trees.fit(X, y)
        return self

    def decision_function(self, X: npt.NDArray[Any]) -> Floats:
        """Scores (n, K), with the offsets."""
        return columns(self.model_.decision_function(X)) + self.offset_


def columns(scores: npt.NDArray[Any]) -> Floats:
    """(n, K): one column for the lead of the second of two classes."""
    return np.asarray(scores if scores.ndim == 2 else scores[:, None], dtype=np.float64)


@dataclass(frozen=True)
class Method:
    """What can be compared.

    ``build`` makes the classifier from a metric, as ``MetricClassifierCV`` takes it, and a seed. ``colour`` is that of its line
    in every figure.
    """

    summary: str
    colour: str
    build: Callable[[Any, int], Any]


def _likelihood(metric: Any, seed: int, **options: Any) -> MetricClassifierCV:
    return MetricClassifierCV(metric, caution=math.inf, random_state=seed, **options)


METHODS: dict[str, Method] = {
    BASELINE: Method(
        "logistic regression, its penalty tuned by the metric",
        "#3f7fbf",
        lambda metric, seed: _likelihood(metric, seed, decision_rule=False),
    ),
    RULE: Method("logistic regression with the offsets of the highest expected metric", "#7f6084", _likelihood),
    WEIGHTS: Method(
        "logistic regression with balanced class weights, its penalty tuned by the metric",
        "#e39b2f",
        lambda metric, seed: _likelihood(metric, seed, decision_rule=False, class_weight="balanced"),
    ),
    PATH: Method(
        "MetricClassifierCV: trained for the metric where the inner folds show a gain",
        "#2e8b57",
        lambda metric, seed: MetricClassifierCV(metric, random_state=seed),
    ),
    CEILING: Method("gradient boosted trees: what a richer model reaches", "#8a8a8a", BoostedTrees),
}
