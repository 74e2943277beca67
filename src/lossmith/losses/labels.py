"""Subset accuracy, that all labels of a sample are right, as a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lossmith.functional.argmax import log_outcomes
from lossmith.inputs import in_full_precision, labels_of
from lossmith.losses.base import MetricLoss, Over, Reduction, check_mean, mean_of_samples, weights_like
from lossmith.noise import Noise

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SubsetAccuracyLoss(MetricLoss):
    r"""Subset accuracy (exact match) of a noisy multi-label classifier, as a loss: every label of a sample has to be right.

    A label is predicted where its noisy score beats a noisy zero: one score s stands for the two scores (0, s). With p_il the
    probability that label l of sample i comes out as its target, p_i = Π_l p_il, since the noise is independent:

        over="sample":  mean_i −log_q(p_i)            over="batch":  −log_q(mean_i p_i)

    q = 1 over samples is the sum of the labels' own losses; with Gumbel noise that is
    ``torch.nn.functional.binary_cross_entropy_with_logits``, summed over the labels.

    Args:
        noise, scale, q, over: as in ``AccuracyLoss``.
        ignore_index: an integer target that leaves its label out of its sample. A sample without any label is left out.
        reduction, process_group: as in ``AccuracyLoss``. ``weight`` and ``label_smoothing`` have no meaning here and are
            refused.

    Shape:
        scores (L,), (N, L) or (N, L, d1, …), any floating type, target the same, 0 or 1, of any type; a fraction stands for
        the probability that the label is there. Output: a scalar, or for reduction="none" the shape without L.

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.

    The expectation of the metric is exact, and a batch's value an unbiased estimate of the data set's. For scale → 0, q = 0
    gives 1 − ``sklearn.metrics.accuracy_score`` of the label indicators.

    Cost: closed forms for normal and Gumbel noise, else ``functional.argmax_log_probs`` with two classes a label.

    >>> scores = torch.tensor([[3.0, -2.0], [0.5, 0.5]])
    >>> SubsetAccuracyLoss(scale=1e-3, q=0.0)(scores, torch.tensor([[1, 0], [1, 0]]))
    tensor(0.5000)
    """

    def __init__(
        self,
        noise: str | Noise = "normal",
        scale: float | Tensor = 1.0,
        q: float = 1.0,
        over: Over = "sample",
        *,
        weight: None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        for name, given in (("weight", weight is not None), ("label_smoothing", label_smoothing != 0)):
            if given:
                raise ValueError(f"{name}: has no meaning for a subset of labels; leave it out")
        super().__init__(noise, scale, q, ignore_index=ignore_index, reduction=reduction, process_group=process_group)
        check_mean(over, reduction)
        self.over = over

    def counted_sums(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The samples whose labels are all right, and all, (2,)."""
        z, share, keep = labels_of(scores, target, self.ignore_index)
        share = share.double()
        right = torch.where(keep, torch.where(z > 0, share, 1 - share), 1.0).prod(-1)
        counts = weights_like(sample_weight, keep[..., 0]) * keep.any(-1)
        return torch.stack([(counts * right).sum(), counts.sum()])

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of a score and a target for each label."""
        z, share, keep = labels_of(scores, target, self.ignore_index)
        absent, present = log_outcomes(z, self.noise, self.scale)
        mixed = torch.logaddexp(present + share.log(), absent + torch.log1p(-share))
        right = torch.where(share == 0, absent, torch.where(share == 1, present, mixed))
        log_p = torch.where(keep, right, 0.0).sum(-1)
        return mean_of_samples(self, self.over, log_p, keep.any(-1).to(z))
