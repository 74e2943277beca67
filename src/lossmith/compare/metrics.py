"""The reported metrics: scikit-learn's, on predicted class codes, all from 0 to 1 and better when higher."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

Codes = npt.NDArray[np.int64]

METRICS: dict[str, Callable[[Codes, Codes], float]] = {
    "accuracy": accuracy_score,
    "balanced-accuracy": balanced_accuracy_score,
    "f1-macro": partial(f1_score, average="macro", zero_division=0.0),
}


def evaluate(metric: str, target: Codes, predicted: Codes) -> float:
    """The metric of predictions against the truth."""
    with warnings.catch_warnings():
        # A class that is predicted but absent from a small held-out part is no news here.
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        return float(METRICS[metric](target, predicted))
