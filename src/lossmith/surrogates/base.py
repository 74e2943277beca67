"""What the losses of class indices share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lossmith.functional import standardize_scores
from lossmith.inputs import check_number, classes_last, has_values
from lossmith.losses.base import ClassificationLoss, Reduction, in_full_precision

# Stands for −inf where terms are left out of a log-sum-exp: the gradient of one over nothing but −inf is nan, this one's is 0.
ABSENT = -1e30


class IndexLoss(ClassificationLoss):
    """A weighted mean, over samples, of a loss of scores (…, C) and class indices (…)."""

    def __init__(
        self,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)
        self.standardize = standardize

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores (C,), (N, C) or (N, C, d1, …) against class indices without C."""
        scores, target = classes_last(scores, target)
        if target.is_floating_point():
            raise ValueError(f"target: {type(self).__name__} takes class indices, not probabilities; got {target.dtype}")
        index, keep = self.split_ignored(scores, target)
        if not (has_values(keep) and keep.all()):
            scores = scores.masked_fill(
                ~keep.unsqueeze(-1), 0.0
            )  # what stands in an ignored row, be it NaN, must not reach the loss
        if self.standardize:
            scores = standardize_scores(scores, keep)
        weight = self.sample_weight(index, keep, scores)
        losses = torch.where(weight == 0, 0.0, self.per_sample(scores, index))  # a class without weight may cost inf
        return self.reduce(losses * weight, weight.sum())

    @abstractmethod
    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        """Losses (…) of scores (…, C), float32 or float64, and class indices (…)."""


def own_log_prob(scores: Tensor, index: Tensor) -> Tensor:
    """Log softmax probability (…) of the class that each sample names, from its lead over all rivals: exact near 0 too."""
    own = index.unsqueeze(-1)
    lead = scores.gather(-1, own).squeeze(-1) - scores.scatter(-1, own, ABSENT).logsumexp(-1)
    return torch.nn.functional.logsigmoid(lead)


def positive(name: str, value: float) -> float:
    """The value, if it is > 0."""
    check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name}: expected a number > 0 in units of the scores, got {value}")
    return value
