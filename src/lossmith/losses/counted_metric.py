"""The metric behind a loss as a ``torchmetrics.Metric``, to watch and to report."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from lossmith.inputs import NO_SAMPLE_WEIGHT

_NUMBERS = count()


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
    sums: Tensor  # (statistics, classes), or (statistics, 1); () before the first batch
    number: Tensor
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, loss: Any, **kwargs: Any) -> None:
        if loss.counts_sums:
            kwargs.setdefault("dist_sync_fn", _gathered)
        super().__init__(**kwargs)
        kept = copy.copy(loss)
        kept.process_group = None
        self._kept = (kept,)  # a tuple: a module of its own would add the loss's entries to checkpoints
        # A collection lets metrics share a state that is equal after the first batch; these differ from then on.
        self.add_state("number", torch.tensor(next(_NUMBERS)), "max")
        if loss.counts_sums:
            self.add_state("sums", torch.zeros((), dtype=torch.float64), "sum")
        else:
            self.add_state("scores", [], "cat")
            self.add_state("targets", [], "cat")

    @property
    def loss(self) -> Any:
        """The loss whose metric it is."""
        return self._kept[0]

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Weights and costs of the loss go along to another device."""
        self.loss._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    @property
    def higher_is_better(self) -> bool:
        """Not of costs."""
        return bool(self.loss.higher_is_better)

    def update(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> None:
        """Count a batch along; ``sample_weight`` as in ``MetricLoss.counted``."""
        if self.loss.counts_sums:
            with torch.no_grad():
                sums = self.loss.counted_sums(scores, target, sample_weight)
                self.sums = self.sums + sums.reshape(len(sums), -1)
        else:
            if sample_weight is not None:
                raise ValueError(NO_SAMPLE_WEIGHT)
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
        if not self.sums.dim():
            return self.sums
        return self.loss.counted_of(self.sums if self.loss.counts_classes else self.sums.squeeze(1))


def _gathered(sums: Tensor, group: Any = None) -> list[Tensor]:
    """The sums of every rank, all of one shape: zeros where a rank has seen no batch."""
    if not sums.is_floating_point():  # the number
        return gather_all_tensors(sums, group)
    found = gather_all_tensors(sums if sums.dim() else sums.new_zeros(0, 0), group)
    most = max(found, key=torch.Tensor.numel)
    return [x if x.numel() else torch.zeros_like(most) for x in found]
