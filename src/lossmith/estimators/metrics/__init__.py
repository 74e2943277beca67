"""The metrics that estimators train and judge by, each by its name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lossmith.errors import near
from lossmith.estimators.metrics.counts import Counted, Own
from lossmith.estimators.metrics.means import Accuracy, BalancedAccuracy, Cost, LogLoss, TopKAccuracy
from lossmith.estimators.metrics.rankings import Ranking
from lossmith.estimators.metrics.trained_metric import TrainedMetric
from lossmith.losses.confusion_matrix import ConfusionLoss
from lossmith.losses.own_metric import Metric

AVERAGES = ("macro", "micro", "weighted")
F_BETA = re.compile(rf"f(\d+(?:\.\d+)?)(?:_({'|'.join(AVERAGES)}))?")
TOP_K = re.compile(r"top_(\d+)_accuracy")
METRICS: dict[str, TrainedMetric] = {
    metric.name: metric
    for metric in (
        Accuracy(),
        BalancedAccuracy(),
        LogLoss(),
        *(Counted(kind, average) for kind in ("f", "jaccard") for average in ("binary", *AVERAGES)),
        *(Ranking(kind, average) for kind in ("roc_auc", "average_precision") for average in ("", "ovr")),
    )
}


def named(name: str) -> TrainedMetric:
    """The metric of a name in METRICS, of "f2" or "f0.5_macro" (F-beta), or of "top_3_accuracy"; hyphens count as "_".

    Raises:
        ValueError: no metric has the name.
    """
    plain = name.replace("-", "_")
    if plain in METRICS:
        return METRICS[plain]
    if (f := F_BETA.fullmatch(plain)) and float(f[1]) > 0:
        return Counted("f", f[2] or "binary", float(f[1]))
    if top := TOP_K.fullmatch(plain):
        return TopKAccuracy(int(top[1]))
    raise ValueError(f"metric: unknown name {name!r}; {near(plain, METRICS)} (F-beta: 'f2'; top-k: 'top_3_accuracy')")


def metric_of(given: Any, classes: int) -> TrainedMetric:
    """The metric that a name, a loss of counts, what ``lossmith.metric`` made, or a cost matrix stands for.

    Raises:
        ValueError: an unknown name; a metric that is not for so many classes.
        TypeError: none of these.
    """
    if isinstance(given, str):
        found = named(given)
    elif isinstance(given, ConfusionLoss):
        found = Own(given)
    elif isinstance(given, Metric):
        found = Own(given.loss)
    elif isinstance(given, np.ndarray | list | tuple):
        found = Cost(given)
    else:
        raise TypeError(f"metric: expected a name, a cost matrix or what lossmith.metric makes, got {type(given).__name__}")
    found.check(classes)
    return found
