"""What the losses share: class weights and reductions, the dials of a smoothed metric, and the mean over samples.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lossmith import noise as noises
from lossmith.inputs import Samples, at, check_choice, check_order, check_scale, check_smoothing, check_tensors, divisor
from lossmith.maths.qlog import neg_log_q
from lossmith.noise import Noise
from lossmith.parallel import samples as groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lossmith.losses.counted_metric import CountedMetric

Reduction = Literal["mean", "sum", "none"]
Over = Literal["sample", "batch"]
REDUCTIONS, OVERS = ("mean", "sum", "none"), ("sample", "batch")


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

    @property
    def is_sample_mean(self) -> bool:
        """Whether the loss of a batch is the mean of its samples' own losses, so that batches can be put together."""
        return not getattr(self, "standardize", False)

    def class_weight(self, scores: Tensor) -> Tensor:
        """Weight of each class for scores (…, C), checked; ones where none was given."""
        if self.weight is None:
            return scores.new_ones(scores.shape[-1])
        if self.weight.shape != scores.shape[-1:]:
            raise ValueError(f"weight: expected shape ({scores.shape[-1]},), one a class, got {tuple(self.weight.shape)}")
        return self.weight.to(scores)

    def sample_weight(self, samples: Samples) -> Tensor:
        """Weight (…) of each settled sample: its class's, or its share in each class's; 0 where it does not count."""
        if samples.fractional():
            return (samples.target.to(samples.scores) * self.class_weight(samples.scores)).sum(-1)
        if self.weight is None:
            return samples.keep.to(samples.scores)
        return samples.keep * at(self.class_weight(samples.scores), samples.target)

    def class_mass(self, samples: Samples, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """Weighted share (…, C) of each class in each settled sample, and the weight of all samples that a mean divides by."""
        mass = samples.share(label_smoothing) * self.class_weight(samples.scores)
        # The mean over class probabilities is one over samples, whatever their classes weigh.
        return mass, samples.keep.sum() if samples.fractional() else self.sample_weight(samples).sum()

    def reduce(self, losses: Tensor, total_weight: Tensor) -> Tensor:
        """Weighted losses of the samples to the module's output; "mean" divides by ``total_weight``."""
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() / divisor(total_weight)


class MetricLoss(ClassificationLoss):
    """The dials of a smoothed metric: noise, scale and q.

    Args:
        noise: a name (see ``lossmith.noise``), or a ``lossmith.noise.Noise``.
        scale: σ > 0, a number or a tensor.
        q: from metric to loss, a finite number.
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

    counts_sums: ClassVar[bool] = True  # whether the metric is made of sums over samples
    counts_classes: ClassVar[bool] = False  # whether these are sums for each class
    higher_is_better: ClassVar[bool] = True  # of the metric
    DIALS: ClassVar[tuple[str, ...]] = ("noise", "scale", "q", "over")  # what the module's text shows
    OPTIONAL: ClassVar[tuple[str, ...]] = ()

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

    @property
    def is_sample_mean(self) -> bool:
        """Whether the loss of a batch is the mean of its samples' own losses; metrics of counts and of rankings are none."""
        return super().is_sample_mean and getattr(self, "over", "batch") == "sample"

    @torch.no_grad()
    def counted(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The metric itself, of the classifier without noise, in float64: what 1 − loss tends to for scale → 0 and q = 0.

        Of the batches of all ranks, where there is a ``process_group``. Equal scores go to the first class. A sum over nothing
        is 0. ``sample_weight``: a number ≥ 0 a sample; rankings take none.
        """
        return self.counted_of(self.total(self.counted_sums(scores, target, sample_weight)))

    def counted_sums(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """What ``counted`` needs of a batch, float64, if the loss ``counts_sums``: statistics that add up over batches."""
        raise NotImplementedError(f"{type(self).__name__}: its metric needs all scores at once; call counted with them")

    def counted_metric(self, **kwargs: Any) -> CountedMetric:
        """``counted`` as a ``torchmetrics.Metric``, over many batches and all ranks; ``kwargs`` are those of that class.

        Raises:
            ImportError: torchmetrics is not installed.
        """
        try:
            from lossmith.losses.counted_metric import CountedMetric
        except ModuleNotFoundError:
            raise ImportError("counted_metric: needs torchmetrics; pip install torchmetrics") from None
        return CountedMetric(self, **kwargs)

    def counted_of(self, sums: Tensor) -> Tensor:
        """The metric of such sums: by default of the weight of what is right, and of all."""
        return sums[0] / divisor(sums[1])

    def total(self, x: Tensor) -> Tensor:
        """The sum over the process group."""
        return groups.total(x, self.process_group)

    def reduce(self, losses: Tensor, total_weight: Tensor) -> Tensor:
        """As without a group; "sum" and "mean" are those of all ranks' samples."""
        if self.process_group is None or self.reduction == "none":
            return super().reduce(losses, total_weight)
        sum_of_ranks = self.total(losses.sum())
        return sum_of_ranks if self.reduction == "sum" else sum_of_ranks / divisor(self.total(total_weight))

    def extra_repr(self) -> str:
        """The dials, as they stand in the constructor; those of ``OPTIONAL`` only where they are set."""
        dials = [(name, getattr(self, name)) for name in self.DIALS]
        dials += [(name, getattr(self, name)) for name in self.OPTIONAL if getattr(self, name)]
        shown = [(name, value.name if isinstance(value, Noise) else value) for name, value in dials]
        return ", ".join(f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}" for name, value in shown)


def check_mean(over: Over, reduction: Reduction, label_smoothing: float = 0.0) -> None:
    """Refuse what no mean over samples can be: see ``mean_of_samples``."""
    check_choice("over", over, OVERS)
    if over == "batch" and reduction != "mean":
        raise ValueError(f"reduction: over='batch' gives one number a batch and takes 'mean' only, got {reduction!r}")
    check_smoothing(label_smoothing)


def mean_of_samples(loss: MetricLoss, over: Over, log_p: Tensor, weight: Tensor) -> Tensor:
    """mean_i −log_q(p_i) (N6), or −log_q(mean_i p_i) for over="batch", of log p (…) and weights (…), reduced by ``loss``."""
    if over == "batch":
        return log_q_of_mean(loss, log_p, weight)
    return loss.reduce(weight * neg_log_q(torch.where(weight == 0, 0.0, log_p), loss.q), weight.sum())


def mean_of_shares(loss: MetricLoss, over: Over, log_p: Tensor, mass: Tensor, total_weight: Tensor) -> Tensor:
    """As ``mean_of_samples``, each class (…, C) of a sample with a mass of its own."""
    if over == "batch":
        return log_q_of_mean(loss, log_p, mass)
    # What weighs nothing must not reach the loss: where that is infinite, 0 times its gradient is nan.
    log_p = torch.where(mass == 0, 0.0, log_p)
    return loss.reduce((mass * neg_log_q(log_p, loss.q)).sum(-1), total_weight)


def sums_of_hits(loss: ClassificationLoss, samples: Samples, hits: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Σ weight · the target's share in the classes that are hit, and Σ weight, (2,) float64.

    Args:
        loss: which has the weights of classes.
        samples: settled.
        hits: (…, C) bool: the classes whose samples would be right.
        sample_weight: see ``weights_like``.
    """
    given = weights_like(sample_weight, samples.keep)
    if samples.fractional():
        mass, _ = loss.class_mass(samples, 0.0)
        return torch.stack([(given * (mass * hits).sum(-1)).sum(), (given * samples.keep).sum()])
    weight = given * loss.sample_weight(samples)
    return torch.stack([(weight * hits.gather(-1, samples.target.unsqueeze(-1)).squeeze(-1)).sum(), weight.sum()])


def weights_like(sample_weight: Tensor | None, like: Tensor) -> Tensor:
    """The weights of samples, one for each entry of ``like`` (…), in its shape and float64; ones where none are given.

    Raises:
        ValueError: another number of weights.
    """
    if sample_weight is None:
        return torch.ones_like(like, dtype=torch.float64)
    check_tensors(sample_weight=sample_weight)
    if sample_weight.numel() != like.numel():
        raise ValueError(f"sample_weight: expected one a sample, {like.numel()}, got shape {tuple(sample_weight.shape)}")
    return sample_weight.reshape(like.shape).to(like.device, torch.float64)


def log_q_of_mean(loss: MetricLoss, log_p: Tensor, mass: Tensor) -> Tensor:
    """−log_q (N6) of the mean p over all ranks, weighted by ``mass``; the sum is (N11), since each p may underflow."""
    log_p = torch.where(mass > 0, log_p, -torch.inf).flatten()
    top = groups.highest(log_p.amax() if log_p.numel() else log_p.new_full((), -torch.inf), loss.process_group)
    top = torch.where(top.isneginf(), 0.0, top)
    sums = loss.total(torch.stack([(mass.flatten() * (log_p - top).exp()).sum(), mass.sum()]))
    weighty = sums[1] > 0
    log_mean = top + torch.where(weighty, sums[0], 1.0).log() - torch.where(weighty, sums[1], 1.0).log()
    return neg_log_q(torch.where(weighty, log_mean, 0.0), loss.q)
