"""F-beta and the Jaccard index of expected counts, as losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from lossmith.inputs import check_positive
from lossmith.losses.confusion_matrix import Average, ConfusionLoss, Counts, Task
from lossmith.losses.own_metric import Metric, OwnMetricLoss, metric
from lossmith.noise import Noise

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Pickles name this module for the last three too.
__all__ = ["FBetaLoss", "JaccardLoss", "Metric", "OwnMetricLoss", "metric"]


class FBetaLoss(ConfusionLoss):
    r"""F-beta of expected counts, as a loss: F_β = (1 + β²) tp / ((1 + β²) tp + β² fn + fp).

    Args:
        beta: weight of recall against precision, > 0; 1 is the F1 score.
        others: as in ``ConfusionLoss``.

    Shape:
        As ``AccuracyLoss``: scores (C,), (N, C) or (N, C, d1, …), class indices or class probabilities. task="multilabel":
        scores and targets (N, L) or (N, L, d1, …). average="binary" also takes scores and targets (N,) of any one shape.
        Output: a scalar; (C,) for average="none".

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.

    It is the metric of expectations, a ratio of expected counts, and not the expectation of the ratio. A batch's value is a
    biased estimate of the data set's, the more the fewer positives it has: let batches be large, use ``memory`` or a
    ``process_group``, or start from a model that was trained with another loss. A batch without any positive has loss 0 and no
    gradient. For scale → 0, q = 0 gives 1 − ``sklearn.metrics.fbeta_score`` with ``labels`` those that the targets have.

    Cost: see ``functional.argmax_log_probs``; with Gumbel noise that of a softmax in float64.

    >>> scores, target = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1, 1, 0, 0])
    >>> FBetaLoss(average="binary", scale=1e-3, q=0.0)(scores, target)
    tensor(0.5000)
    """

    DIALS = ("beta", *ConfusionLoss.DIALS)

    needs_tn = False

    def __init__(
        self,
        beta: float = 1.0,
        average: Average = "macro",
        task: Task = "multiclass",
        noise: str | Noise = "gumbel",
        scale: float | Tensor = 1.0,
        q: float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean"] = "mean",
        label_smoothing: float = 0.0,
        process_group: ProcessGroup | None = None,
        memory: int = 0,
    ) -> None:
        super().__init__(
            average,
            task,
            noise,
            scale,
            q,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            process_group=process_group,
            memory=memory,
        )
        check_positive("beta", beta)
        self.beta = beta

    def of_counts(self, counts: Counts) -> Tensor:
        """F-beta."""
        return (1 + self.beta**2) * counts.tp / self._all(counts)

    def log_of_counts(self, counts: Counts, log_tp: Tensor) -> Tensor:
        """log F-beta."""
        return math.log1p(self.beta**2) + log_tp - self._all(counts).log()

    def _all(self, counts: Counts) -> Tensor:
        return (1 + self.beta**2) * counts.tp + self.beta**2 * counts.fn + counts.fp


class JaccardLoss(ConfusionLoss):
    r"""The Jaccard index (intersection over union) of expected counts, as a loss: J = tp / (tp + fp + fn).

    Made for segmentation: scores (N, C, H, W) and targets (N, H, W), of which all pixels of the batch count together. All else
    is as in ``FBetaLoss``; for scale → 0, q = 0 gives 1 − ``sklearn.metrics.jaccard_score``.

    >>> scores, target = torch.tensor([[[2.0, -1.0]], [[0.0, 0.0]]]).movedim(0, 1), torch.tensor([[0, 0]])
    >>> JaccardLoss(scale=1e-3, q=0.0)(scores, target)
    tensor(0.5000)
    """

    needs_tn = False

    def of_counts(self, counts: Counts) -> Tensor:
        """Intersection over union."""
        return counts.tp / (counts.tp + counts.fp + counts.fn)

    def log_of_counts(self, counts: Counts, log_tp: Tensor) -> Tensor:
        """log of that."""
        return log_tp - (counts.tp + counts.fp + counts.fn).log()
