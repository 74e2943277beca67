"""Metrics of the order of the rows: the area under the ROC curve and average precision."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from lossmith import noise as noises
from lossmith.estimators.metrics.trained_metric import TINY, Floats, Rows, TrainedMetric, power
from lossmith.functional import expected_auc
from lossmith.functional.columns import log_auc_of_columns, log_precision_of_columns


class Ranking(TrainedMetric):
    """Area under the ROC curve or average precision; one against the rest, averaged, for more than two classes."""

    def __init__(self, kind: str, average: str = "") -> None:
        self.kind, self.average = kind, average
        self.name = kind + (f"_{average}" if average else "")

    def check(self, classes: int) -> None:
        """Refuse more than two classes without an average."""
        if not self.average and classes > 2:
            raise ValueError(f"metric: {self.name!r} is for two classes, got {classes}; take {self.name + '_ovr'!r}")

    def counted(self, scores: Floats, rows: Rows) -> float:
        """By scikit-learn; 0.5 where a class is absent."""
        one = roc_auc_score if self.kind == "roc_auc" else average_precision_score
        found = []
        for _, column, positive in self._columns(scores, rows):
            if _both_present(positive, rows.weight):
                found.append(one(positive, column, sample_weight=rows.weight))
        return float(np.mean(found)) if found else 0.5

    def loss(self, scores: Floats, rows: Rows, noise: str, q: float) -> tuple[float, Floats]:
        """See ``TrainedMetric``."""
        leaf, weight = torch.from_numpy(np.ascontiguousarray(scores)).requires_grad_(), torch.from_numpy(rows.weight)
        found = []
        for k, _, positive in self._columns(scores, rows):
            if _both_present(positive, rows.weight):
                found.append(self._smooth(leaf[:, k], torch.from_numpy(positive), weight, noise))
        if not found:
            return 0.0, np.zeros_like(scores)
        m = torch.stack(found).mean()
        (grad,) = torch.autograd.grad(m, leaf)
        value = max(m.item(), TINY)
        loss, slope = power(np.asarray(math.log(value)), q)
        return float(loss), grad.numpy() * (-float(slope) / value)

    def _smooth(self, scores: Tensor, positive: Tensor, weight: Tensor, noise: str) -> Tensor:
        """The metric of one column; average precision weighs all rows of weight above 0 equally."""
        present = weight > 0
        equal = bool((weight[present] == weight[present][0]).all())
        if self.kind == "roc_auc" and not equal:
            return expected_auc(scores, positive, noise=noise, weight=weight)
        of_columns = log_auc_of_columns if self.kind == "roc_auc" else log_precision_of_columns  # which have a kernel
        column, keep = scores[present, None], torch.ones(int(present.sum()), 1, dtype=torch.bool)
        log_metric: Tensor = of_columns((column, positive[present, None], keep, scores.new_ones(())), noises.get(noise), 1.0)
        return log_metric[0].exp()

    def _columns(self, scores: Floats, rows: Rows) -> list[tuple[int, Floats, npt.NDArray[np.bool_]]]:
        if scores.shape[1] == 1:
            return [(0, scores[:, 0], rows.y == 1)]
        return [(k, scores[:, k], rows.y == k) for k in range(scores.shape[1])]


def _both_present(positive: npt.NDArray[np.bool_], weight: Floats) -> bool:
    """Whether rows of weight above 0 are on both sides."""
    seen = positive[weight > 0]
    return bool(seen.any() and not seen.all())
