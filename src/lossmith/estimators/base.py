"""What the estimators share: checked input, predictions from scores, the temperature of probabilities."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, column_or_1d, compute_class_weight
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from lossmith.estimators.metrics import metric_of
from lossmith.estimators.metrics.trained_metric import Floats, Rows, both_classes, predicted


class ScoreClassifier(ClassifierMixin, BaseEstimator):
    """What the estimators share: checked input, the metric as ``score``, and predictions from scores.

    A subclass has the parameters ``metric`` and ``class_weight``, and ``_scores_of``.
    """

    accept_sparse: ClassVar[Any] = False  # the format of sparse features, where they may be sparse

    @abstractmethod
    def _scores_of(self, X: Any) -> Floats:
        """(n, K) of checked features (n, d), as ``metrics`` has them."""

    def _rows(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Rows, Floats]:
        """Checked features, rows weighted for training, and the weights (n,) to judge by; sets ``classes_``."""
        X, y = validate_data(
            self, X, y, accept_sparse=self.accept_sparse, dtype=[np.float64, np.float32], accept_large_sparse=False
        )
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y: expected samples of at least 2 classes, got only one class, {str(self.classes_[0])!r}; add rows of another"
            )
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weight.any():
            raise ValueError("sample_weight: expected some above 0, got sample weights that are all zero")
        if self.class_weight == "balanced":
            counts = np.bincount(codes, weight)
            by_class = np.divide(weight.sum() / len(counts), counts, out=np.zeros(len(counts)), where=counts > 0)
        else:
            by_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        trained = weight * by_class[codes]
        if not trained.any():
            raise ValueError("class_weight: expected some above 0, got class weights that leave no row")
        return X, Rows(codes, trained, len(self.classes_)), weight

    def _scores(self, X: Any) -> Floats:
        """(n, K), as ``metrics`` has them."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=self.accept_sparse, dtype=[np.float64, np.float32], reset=False)
        return self._scores_of(X)

    def decision_function(self, X: Any) -> Floats:
        """Scores (n, C), or the lead of the second of two classes, (n,)."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> Any:
        """The class of each row: that of the highest score, and of the highest probability."""
        at = predicted(self._scores(X))
        return self.classes_[at]

    def predict_proba(self, X: Any) -> Floats:
        """softmax of the scores, (n, C), whose temperature is that of the highest likelihood: on the training rows for a linear
        classifier, on held-out rows for a network.
        """
        return np.asarray(softmax(both_classes(self._scores(X)), axis=1))

    def predict_log_proba(self, X: Any) -> Floats:
        """The logarithm of ``predict_proba``."""
        return np.asarray(log_softmax(both_classes(self._scores(X)), axis=1))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """``metric``, counted on predictions for X."""
        scores, y = self._scores(X), column_or_1d(y)
        check_consistent_length(scores, y)
        codes = np.searchsorted(self.classes_, y)
        known = np.isin(y, self.classes_)
        if not known.all():
            raise ValueError(f"y: expected the classes {list(self.classes_)}, got {np.unique(y[~known]).tolist()}")
        weight = _check_sample_weight(sample_weight, scores, dtype=np.float64)
        return metric_of(self.metric, len(self.classes_)).counted(scores, Rows(codes, weight, len(self.classes_)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = bool(self.accept_sparse)
        return tags


class RoutesToSplitter(BaseEstimator):
    """``fit`` passes metadata, such as groups, on to the splitter ``cv``."""

    def get_metadata_routing(self) -> MetadataRouter:
        """What ``fit`` passes on: to the splitter, its groups."""
        router = MetadataRouter(owner=self).add_self_request(self)
        return router.add(splitter=self.cv, method_mapping=MethodMapping().add(caller="fit", callee="split"))

    def _split_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """What of ``params``, given to ``fit``, goes to the splitter."""
        return process_routing(self, "fit", **params).splitter.split if params else {}
