"""LightGBM's classifier with a metric loss: classes and probabilities instead of raw scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lossmith.errors import need
from lossmith.functional import argmax_log_probs
from lossmith.integrations.boosting import BoostingObjective

need("lightgbm", "boosting")
from lightgbm import LGBMClassifier  # noqa: E402


class MetricLGBMClassifier(LGBMClassifier):
    """``LGBMClassifier`` whose ``objective`` is a ``BoostingObjective``; arguments and attributes are that class's.

    ``predict`` gives classes, ``predict_proba`` the probability that the noisy classifier predicts each: under Gumbel noise the
    softmax of the raw scores.
    """

    def predict(self, X: Any, raw_score: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Classes (n,); or raw scores, leaves and contributions as ``LGBMClassifier``."""
        if raw_score or not self._plain(**kwargs):
            return super().predict(X, raw_score, *args, **kwargs)
        scores: Any = super().predict(X, True, *args, **kwargs)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_proba(self, X: Any, raw_score: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Probabilities (n, C)."""
        if raw_score or not self._plain(**kwargs):
            return super().predict_proba(X, raw_score, *args, **kwargs)
        scores: Any = super().predict(X, True, *args, **kwargs)
        columns = np.column_stack([np.zeros_like(scores), scores]) if scores.ndim == 1 else scores
        objective: Any = self.objective
        loss = objective.loss
        return argmax_log_probs(torch.from_numpy(columns), noise=loss.noise, scale=loss.scale).exp().numpy()

    def _plain(self, pred_leaf: bool = False, pred_contrib: bool = False, **others: Any) -> bool:
        return isinstance(self.objective, BoostingObjective) and not pred_leaf and not pred_contrib
