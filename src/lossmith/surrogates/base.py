"""What the losses of class indices share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lossmith.functional import standardize_scores
from lossmith.inputs import Samples, check_number, in_full_precision, samples_of
from lossmith.losses.base import ClassificationLoss, Reduction

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
        return self.of_samples(samples_of(scores, target, self.ignore_index))

    def of_samples(self, samples: Samples) -> Tensor:
        """The weighted mean of the samples' losses."""
        if samples.fractional():
            name, dtype = type(self).__name__, samples.target.dtype
            raise ValueError(f"target: {name} takes class indices, not probabilities; got {dtype}")
        samples = samples.settled()
        scores = samples.scores
        if self.standardize:
            scores = standardize_scores(scores, samples.keep)
        weight = self.sample_weight(samples)
        losses = torch.where(weight == 0, 0.0, self.per_sample(scores, samples.target))  # a class without weight may cost inf
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
