"""The metric behind a loss as a ``torchmetrics.Metric``, to watch and to report."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class CountedMetric(Metric):
    """What ``MetricLoss.counted`` gives, of all batches since the last ``reset``, over all ranks.

    Args:
        loss: a ``MetricLoss``, whose metric it is. A copy without its ``process_group`` is kept: torchmetrics itself sums over
            ranks.
        **kwargs: of ``torchmetrics.Metric``.

    ``update`` takes the scores and the target of a batch. Metrics of samples and of counts keep a few sums, float64. Rankings
    need all scores at once and keep them, as torchmetrics' own do.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, loss: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss = copy.copy(loss)
        self.loss.process_group = None
        if loss.counts_sums:
            self.add_state("sums", torch.zeros((), dtype=torch.float64), "sum")  # takes the shape of the first batch's
        else:
            self.add_state("scores", [], "cat")
            self.add_state("targets", [], "cat")

    @property
    def higher_is_better(self) -> bool:
        """Not of costs."""
        return bool(self.loss.higher_is_better)

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count a batch along."""
        if self.loss.counts_sums:
            with torch.no_grad():
                self.sums = self.sums + self.loss.counted_sums(scores, target)
        else:
            self.loss.columns(scores, target)  # so that what does not fit is said now
            self.scores.append(scores.detach())
            self.targets.append(target)

    def compute(self) -> Tensor:
        """The metric of all, float64; 0 of nothing."""
        if not self.loss.counts_sums:
            if not len(self.scores):
                return torch.zeros((), dtype=torch.float64, device=self.device)
            found: Tensor = self.loss.counted(dim_zero_cat(self.scores), dim_zero_cat(self.targets))
            return found
        return self.loss.counted_of(self.sums) if self.sums.dim() else self.sums
