"""What the metric losses share: their dials, and the mean over samples of a smoothed per-sample metric."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lossmith import functional
from lossmith import noise as noises
from lossmith.inputs import has_values
from lossmith.layout import ClassificationLoss, Reduction, classes_last, in_full_precision, one_hot, over_something
from lossmith.noise import Noise
from lossmith.parallel import samples as groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Over = Literal["sample", "batch"]


class MetricLoss(ClassificationLoss):
    """The dials of a smoothed metric: noise, scale and q.

    Args:
        noise: a name (see ``lossmith.noise``), or a ``lossmith.noise.Noise``.
        scale: σ > 0, a number or a tensor.
        q: from metric to loss, ≥ 0.
        process_group: a ``torch.distributed.ProcessGroup`` whose ranks' batches together are the batch; "sum", too, is that of
            all ranks' samples, and DDP's averaged gradient is the whole sum's. ``torch.distributed.group.WORLD`` is None before
            ``init_process_group``, and then means no group. A loss with a group cannot be pickled or deep-copied.
        weight, ignore_index, reduction: as in ``ClassificationLoss``.

    Raises:
        TypeError, ValueError: an argument out of range.

    Half types compute in float32 and give a loss of their own type; under autocast it is float32, as with cross-entropy.
    ``torch.compile(fullgraph=True)`` and ``torch.func`` take every loss; vmap evaluates what has no formula and no kernel one
    after the other. Under ``torch.func`` a ``process_group``, a memory in training, and second derivatives but those of
    ``AccuracyLoss`` and of closed forms raise NotImplementedError.
    """

    def __init__(
        self,
        noise: str | Noise,
        scale: float | Tensor,
        q: float,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)
        # Each function below checks its own argument; asking now puts the error at the constructor.
        functional.neg_log_q(torch.zeros(()), q)
        number = 1.0 if isinstance(scale, Tensor) else scale  # a tensor is checked against the scores it comes with
        functional.argmax_log_prob(torch.zeros(2), torch.tensor(0), noise="gumbel", scale=number)
        if process_group is not None:
            groups.check_group(process_group, "process_group")
        self.noise = noises.get(noise)
        self.scale = scale
        self.q = q
        self.process_group = process_group

    def total(self, x: Tensor) -> Tensor:
        """The sum over the process group."""
        return groups.total(x, self.process_group)

    def reduce(self, losses: Tensor, total_weight: Tensor) -> Tensor:
        """As without a group; "sum" and "mean" are those of all ranks' samples."""
        if self.process_group is None or self.reduction == "none":
            return super().reduce(losses, total_weight)
        together = self.total(losses.sum())
        return together if self.reduction == "sum" else together / over_something(self.total(total_weight))

    def extra_repr(self) -> str:
        """The dials, as they stand in the constructor."""
        return f"noise={self.noise.name!r}, scale={self.scale}, q={self.q}"


class MeanLoss(MetricLoss):
    r"""mean_i −log_q(m_i), or −log_q(mean_i m_i), for a metric m_i of each sample.

    Args:
        over: where the mean over samples stands, "sample" or "batch"; "batch" gives one number a batch and takes
            reduction="mean" only.
        label_smoothing: as in ``torch.nn.CrossEntropyLoss``, in [0, 1].
        others: as for ``MetricLoss``.
    """

    def __init__(
        self,
        noise: str | Noise,
        scale: float | Tensor,
        q: float,
        over: Over,
        *,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(noise, scale, q, reduction=reduction, **options)
        if over not in ("sample", "batch"):
            raise ValueError(f"over: expected 'sample' or 'batch', got {over!r}")
        if over == "batch" and reduction != "mean":
            raise ValueError(f"reduction: over='batch' gives one number a batch and takes 'mean' only, got {reduction!r}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing: expected a number from 0 to 1, got {label_smoothing}")
        self.over = over
        self.label_smoothing = label_smoothing

    def weighted(self, log_p: Tensor, weight: Tensor) -> Tensor:
        """The loss of samples (…) that weigh (…)."""
        if self.over == "batch":
            return self.of_the_batch(log_p, weight)
        log_p = torch.where(weight == 0, 0.0, log_p)
        return self.reduce(weight * functional.neg_log_q(log_p, self.q), weight.sum())

    def of_the_batch(self, log_p: Tensor, mass: Tensor) -> Tensor:
        """−log_q of the mean p, weighted by ``mass``."""
        log_p = torch.where(mass > 0, log_p, -torch.inf).flatten()
        top = groups.highest(log_p.amax() if log_p.numel() else log_p.new_full((), -torch.inf), self.process_group)
        top = torch.where(top.isneginf(), 0.0, top)
        together = self.total(torch.stack([(mass.flatten() * (log_p - top).exp()).sum(), mass.sum()]))
        some = together[1] > 0
        log_mean = top + torch.where(some, together[0], 1.0).log() - torch.where(some, together[1], 1.0).log()
        return functional.neg_log_q(torch.where(some, log_mean, 0.0), self.q)

    def extra_repr(self) -> str:
        """The dials, as they stand in the constructor."""
        return f"{super().extra_repr()}, over={self.over!r}"


class SampleLoss(MeanLoss):
    """A mean of −log_q p_i, p_i the probability that sample i is counted as right; takes the place of cross-entropy."""

    @abstractmethod
    def log_prob(self, scores: Tensor, target: Tensor) -> Tensor:
        """log p (…) of scores (…, C) and class indices (…), 0 where the target is ``ignore_index``."""

    @abstractmethod
    def log_probs(self, scores: Tensor) -> Tensor:
        """log p (…, C) with each class as the target."""

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores against class indices or class probabilities."""
        scores, target = classes_last(scores, target)
        if target.is_floating_point() or self.label_smoothing:
            return self._of_probabilities(scores, target)
        return self._of_indices(scores, target)

    def _of_indices(self, scores: Tensor, target: Tensor) -> Tensor:
        keep = target != self.ignore_index
        scores = self.prepared(scores, keep)
        log_p = self.log_prob(scores, target)
        if self.over == "sample" and not self.weighs:
            return self.reduce(functional.neg_log_q(log_p, self.q), keep.sum())
        return self.weighted(log_p, self.sample_weight(torch.where(keep, target, 0).long(), keep, scores))

    def _of_probabilities(self, scores: Tensor, target: Tensor) -> Tensor:
        if target.is_floating_point():
            keep = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
            weight = keep  # the mean over class probabilities is one over samples, whatever their classes weigh
        else:
            target, keep = self.split_ignored(scores, target)
            weight = self.sample_weight(target, keep, scores)
        if not (has_values(keep) and keep.all()):
            scores = scores.masked_fill(~keep.unsqueeze(-1), 0.0)  # what stands there, be it NaN, is nobody's business
        scores = self.prepared(scores, keep)
        mass = self.class_mass(target, keep, scores)
        log_p = self.log_probs(scores)
        if self.over == "batch":
            return self.of_the_batch(log_p, mass)
        # What weighs nothing must not reach the loss: where that is infinite, 0 times its gradient is nan.
        log_p = torch.where(mass == 0, 0.0, log_p)
        losses = (mass * functional.neg_log_q(log_p, self.q)).sum(-1)
        return self.reduce(losses, weight.sum())

    @property
    def weighs(self) -> bool:
        """Whether samples may count differently."""
        return self.weight is not None

    def prepared(self, scores: Tensor, keep: Tensor) -> Tensor:
        """Scores (…, C) as they enter; ``keep`` (…) says which samples count."""
        return scores

    def class_share(self, target: Tensor, keep: Tensor, scores: Tensor) -> Tensor:
        """The probability of each class for each sample, (…, C), smoothed; 0 where it is ignored."""
        classes = scores.shape[-1]
        share = target if target.is_floating_point() else one_hot(target, classes)
        share = share.to(scores.dtype) * (1 - self.label_smoothing) + self.label_smoothing / classes
        return share * keep.unsqueeze(-1)

    def class_mass(self, target: Tensor, keep: Tensor, scores: Tensor) -> Tensor:
        """What each class of each sample weighs, (…, C)."""
        return self.class_share(target, keep, scores) * self.class_weight(scores)
