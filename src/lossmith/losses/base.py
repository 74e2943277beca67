"""What the metric losses share: their dials, and the mean over samples of a smoothed per-sample metric."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from lossmith import functional
from lossmith import noise as noises
from lossmith.inputs import (
    at,
    check_choice,
    check_order,
    check_scale,
    check_smoothing,
    check_target,
    classes_last,
    has_values,
    one_hot,
    over_something,
)
from lossmith.noise import Noise
from lossmith.parallel import samples as groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reduction = Literal["mean", "sum", "none"]
Over = Literal["sample", "batch"]
REDUCTIONS, OVERS = ("mean", "sum", "none"), ("sample", "batch")
Forward = TypeVar("Forward", bound=Callable[..., Tensor])


def in_full_precision(forward: Forward) -> Forward:
    """A module's ``forward(scores, …)`` in float32 where the scores are of a half type, its loss then of their type.

    Under autocast nothing inside is cast, and the loss is float32: as with ``torch.nn.functional.cross_entropy``, and as
    ``torch.amp.GradScaler`` needs it, whose first factor of 65536 no float16 holds.
    """

    @wraps(forward)
    def wrapped(self: nn.Module, scores: Tensor, *others: Any, **options: Any) -> Tensor:
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            return forward(self, scores, *others, **options)  # which refuses it
        kind, half = scores.device.type, scores.dtype in (torch.bfloat16, torch.float16)
        entering = scores.float() if half else scores
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return forward(self, entering, *others, **options)
        loss = forward(self, entering, *others, **options)
        return loss.to(scores.dtype) if half else loss

    return cast(Forward, wrapped)


class ClassificationLoss(nn.Module):
    """What every loss here shares: class weights, ignored targets and the reduction over samples.

    Args:
        weight: (C,) weight of each class, or None.
        ignore_index: class index that marks samples to leave out.
        reduction: "mean" (weighted by the target's class weight), "sum" or "none". The mean over no sample at all is 0, with a
            gradient of 0 (in ``torch.nn.CrossEntropyLoss`` it is nan, which ends a training).

    Raises:
        TypeError, ValueError: an argument out of range.
    """

    weight: Tensor | None

    def __init__(self, *, weight: Tensor | None = None, ignore_index: int = -100, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight: expected a torch.Tensor of shape (C,), got {type(weight).__name__}")
        if weight is not None and weight.dim() != 1:
            raise ValueError(f"weight: expected shape (C,), one a class, got {tuple(weight.shape)}")
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise TypeError(f"ignore_index: expected an integer, got {type(ignore_index).__name__}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def split_ignored(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices, checked, with the ignored ones replaced by 0, and the mask of those that count."""
        check_target(target, scores, self.ignore_index)
        keep = target != self.ignore_index
        return torch.where(keep, target, 0).long(), keep  # torch takes an index of bytes for a mask

    def class_weight(self, scores: Tensor) -> Tensor:
        """Weight of each class for scores (…, C), checked; ones where none was given."""
        if self.weight is None:
            return scores.new_ones(scores.shape[-1])
        if self.weight.shape != scores.shape[-1:]:
            raise ValueError(f"weight: expected shape ({scores.shape[-1]},), one a class, got {tuple(self.weight.shape)}")
        return self.weight.to(scores)

    def sample_weight(self, index: Tensor, keep: Tensor, scores: Tensor) -> Tensor:
        """Weight of each sample: its class's, and 0 where it is ignored."""
        return keep.to(scores) if self.weight is None else keep * at(self.class_weight(scores), index)

    def reduce(self, losses: Tensor, total_weight: Tensor) -> Tensor:
        """Weighted losses of the samples to the module's output; "mean" divides by ``total_weight``."""
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() / over_something(total_weight)


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
        check_order(q)
        check_scale(scale)
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
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            noise, scale, q, weight=weight, ignore_index=ignore_index, reduction=reduction, process_group=process_group
        )
        check_choice("over", over, OVERS)
        if over == "batch" and reduction != "mean":
            raise ValueError(f"reduction: over='batch' gives one number a batch and takes 'mean' only, got {reduction!r}")
        check_smoothing(label_smoothing)
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
