"""The metric that a comparison reports: that of the training, or any scorer of scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer, get_scorer_names

from lossmith.errors import InputError, near
from lossmith.estimators.metrics import metric_of
from lossmith.estimators.metrics.trained_metric import Codes, Floats, Rows, both_classes, predicted


class Unit(NamedTuple):
    """How a metric is printed: multiplied by ``factor``, with so many ``digits``, ``name`` behind it."""

    factor: float
    digits: int
    name: str


PERCENT, PLAIN = Unit(100, 2, "%"), Unit(1, 4, "")


class Scored(ClassifierMixin, BaseEstimator):
    """A fitted classifier that is nothing but its scores for the rows to judge, for scikit-learn's scorers.

    Args:
        scores: (n, K), as in ``estimators.metrics.trained_metric``.
    """

    def __init__(self, scores: Floats) -> None:
        self.scores = scores
        self.classes_ = np.arange(max(scores.shape[1], 2))

    def predict(self, X: Any) -> Codes:
        """Class codes (n,)."""
        return predicted(self.scores)

    def predict_proba(self, X: Any) -> Floats:
        """softmax of the scores, (n, C)."""
        return np.asarray(np.exp(log_softmax(both_classes(self.scores), axis=1)))

    def decision_function(self, X: Any) -> Floats:
        """The scores; (n,) for two classes."""
        return self.scores[:, 0] if self.scores.shape[1] == 1 else self.scores


def check_judge(name: str) -> None:
    """Refuse what is no scorer.

    Raises:
        InputError: with the names that are near.
    """
    if name not in get_scorer_names():
        raise InputError(f"--judge: there is no scorer {name!r}; {near(name, get_scorer_names())}")


def evaluate(metric: Any, judge: str | None, target: Codes, scores: Floats, classes: int) -> float:
    """The scorer ``judge`` of scores (n, K) against class codes (n,), or without one the trained metric; better when higher."""
    if judge is None:
        return metric_of(metric, classes).counted(scores, Rows(target, np.ones(len(target)), classes))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # a class that a small held-out part lacks
        return float(get_scorer(judge)(Scored(scores), np.zeros((len(target), 1)), target))


def unit_of(metric: Any, judge: str | None) -> Unit:
    """Percent, except for what has no upper end at 1."""
    name = judge or (metric if isinstance(metric, str) else "cost")
    return PLAIN if name in ("log_loss", "cost", "d2_log_loss_score", "d2_brier_score") or name.startswith("neg_") else PERCENT
