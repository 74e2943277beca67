"""Metrics of a confusion matrix, taken of expected counts, as losses: F-beta, Jaccard, and one's own in a line."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lossmith import functional
from lossmith.functional.argmax import log_outcomes
from lossmith.inputs import (
    check_choice,
    check_positive,
    check_smoothing,
    check_tensors,
    checked_scale,
    divisor,
    has_values,
    in_full_precision,
    labels_of,
    one_hot,
    samples_of,
    smoothed,
)
from lossmith.losses.base import MetricLoss
from lossmith.losses.memory import ScoreMemory
from lossmith.noise import Noise
from lossmith.parallel import samples as groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Average = Literal["binary", "macro", "micro", "weighted", "none"]
Task = Literal["multiclass", "multilabel"]
AVERAGES, TASKS = ("binary", "macro", "micro", "weighted", "none"), ("multiclass", "multilabel")
OfCounts = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LEAST = 1e-148  # of a probability in one's own metric: a product of two is not 0, where a root would have no slope
SLACK = 1e-9  # of a metric above 1, by rounding


class Counts(NamedTuple):
    """Expected or counted entries of one confusion matrix a class, (C,) float64."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


class _Rows(NamedTuple):
    """Samples one a row, whether of classes or of labels."""

    scores: Tensor  # (n, C)
    target: Tensor  # (n,) class indices, or (n, C): its share in each class, of labels whether each is there
    weight: Tensor  # (n, 1); of labels (n, L)
    scale: float | Tensor  # a number or (n, 1)
    of_labels: bool  # a score for each label; else for each class

    @property
    def share(self) -> Tensor:
        """The target's share in each class, (n, C)."""
        return self.target if self.target.dim() == 2 else one_hot(self.target, self.scores.shape[-1]).to(self.scores)


def _sums(rows: _Rows, p: Tensor, other: Tensor) -> Tensor:
    """tp, fp, fn, tn as (4, C), from the probabilities that each class is predicted, and that it is not, (n, C) float64."""
    w = rows.weight.double()
    if rows.target.dim() == 2:
        t = rows.target.double()
        parts = [w * t * p, w * (1 - t) * p, w * t * other, w * (1 - t) * other]
        return torch.stack([part.sum(0) for part in parts])
    y, w = rows.target, w.squeeze(-1)  # most of segmentation's time is spent here: no (n, C) but these four

    def of_targets(x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[1]).index_add(0, y, w * x.gather(1, y.unsqueeze(1)).squeeze(1))

    def of_others(x: Tensor) -> Tensor:
        return w @ x.scatter(1, y.unsqueeze(1), 0.0)

    return torch.stack([of_targets(p), of_others(p), of_targets(other), of_others(other)])


def _log_tp(rows: _Rows, log_p: Tensor, group: ProcessGroup | None) -> Tensor:
    """log Σ_i w_i t_ik p_ik (C,) of all ranks, also where it underflows; −inf where there is no target."""
    if rows.target.dim() == 2:
        terms = log_p + (rows.weight.double() * rows.target.double()).log()
        own = terms.detach().amax(0) if len(terms) else terms.new_full(terms.shape[1:], -torch.inf)
    else:
        y = rows.target
        terms = log_p.gather(1, y.unsqueeze(1)).squeeze(1) + rows.weight.squeeze(-1).double().log()
        own = log_p.new_full(log_p.shape[1:], -torch.inf).scatter_reduce(0, y, terms.detach(), "amax")
    top = groups.highest(own, group)
    top = torch.where(top.isneginf(), 0.0, top)
    if rows.target.dim() == 2:
        found = (terms - top).exp().sum(0)
    else:
        found = torch.zeros_like(top).index_add(0, y, (terms - top.index_select(0, y)).exp())
    found = groups.total(found, group)
    return torch.where(found > 0, top + torch.where(found > 0, found, 1.0).log(), -torch.inf)


class ConfusionLoss(MetricLoss):
    r"""−log_q of a metric m(tp, fp, fn, tn) of expected counts.

    With p_ik the probability that the noisy classifier predicts k for sample i, t_ik the target's share in k, w_i a weight:

        tp_k = Σ_i w_i t_ik p_ik         fp_k = Σ_i w_i (1 − t_ik) p_ik
        fn_k = Σ_i w_i t_ik (1 − p_ik)   tn_k = Σ_i w_i (1 − t_ik) (1 − p_ik)

    Args:
        average: over the classes: "macro", the mean of the metric of each class that has a target in the batch; "weighted", the
            same weighted by the targets; "micro", the metric of the summed counts; "binary", class 1 alone; "none", a loss for
            each class, 0 where it has no target.
        task: "multiclass", or "multilabel" with a score and a target for each label. For "binary" there may be two classes, or
            one score a sample and a target of its shape.
        noise: Gumbel by default: all p_ik are needed, and then they are a softmax. One score s stands for the scores (0, s).
        scale, q: as in ``AccuracyLoss``.
        weight: (C,) weights of the samples by their target's class; multiclass only.
        ignore_index, label_smoothing: as in ``torch.nn.CrossEntropyLoss``.
        reduction: "mean" only: the metric is one of the whole batch.
        process_group: a ``torch.distributed.ProcessGroup`` whose ranks' batches together are the batch; gradients are right
            once DDP has averaged them.
        memory: how many recent samples (with d1 × … places each, as many) count along with a batch in training, without a
            gradient (``ScoreMemory``).

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.
    """

    DIALS: ClassVar[tuple[str, ...]] = ("average", "task", "noise", "scale", "q")

    def __init__(
        self,
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
            noise, scale, q, weight=weight, ignore_index=ignore_index, reduction=reduction, process_group=process_group
        )
        check_choice("average", average, AVERAGES)
        check_choice("task", task, TASKS)
        if average == "binary" and task == "multilabel":
            raise ValueError("average: 'binary' is for one label, expected another with task='multilabel'; use 'macro'")
        if reduction != "mean":
            raise ValueError(f"reduction: the metric is one of the whole batch, expected 'mean', got {reduction!r}")
        check_smoothing(label_smoothing)
        if weight is not None and task == "multilabel":
            raise ValueError("weight: weighs samples by their class and needs task='multiclass'; leave it out")
        if isinstance(scale, Tensor) and scale.numel() > 1 and memory:
            raise ValueError("scale: expected one number beside memory, got a tensor with one for each sample")
        self.average = average
        self.task = task
        self.label_smoothing = label_smoothing
        self.memory = ScoreMemory(memory)

    @abstractmethod
    def of_counts(self, counts: Counts) -> Tensor:
        """The metric (…) of counts (…), in [0, 1]."""

    @abstractmethod
    def log_of_counts(self, counts: Counts, log_tp: Tensor) -> Tensor:
        """Its logarithm; ``log_tp`` is log tp, also where tp underflows."""

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch of scores and targets."""
        counts, log_tp = self._expected(self._samples(scores, target))
        if self.average == "micro":
            log_tp = log_tp.logsumexp(0)
        elif self.average == "binary":
            log_tp = log_tp[-1]
        counts, support, there = self._taken(counts)
        log_m = self.log_of_counts(counts, torch.where(there, log_tp, 0.0))
        if self.average in ("macro", "weighted"):
            share = there.to(log_m) if self.average == "macro" else support
            share = torch.where(there, share, 1.0) / divisor(share.sum())
            there, terms = there.any(), torch.where(there, log_m + share.log(), -torch.inf)
            log_m = torch.where(there, terms, 0.0).logsumexp(0)
        return torch.where(there, functional.neg_log_q(torch.where(there, log_m, 0.0), self.q), 0.0).to(scores.dtype)

    @torch.no_grad()
    def counted(self, scores: Tensor, target: Tensor) -> Tensor:
        """The metric itself of the classifier without noise, in float64; for average="none" 0 without a target."""
        samples = self._samples(scores, target)
        z = samples.scores
        p = z > 0 if samples.of_labels else one_hot(z.argmax(-1), z.shape[-1])
        counts, support, there = self._taken(Counts(*self.total(_sums(samples, p.double(), 1 - p.double()))))
        m = torch.where(there, self.of_counts(counts), 0.0)
        if self.average in ("macro", "weighted"):
            share = there.to(m) if self.average == "macro" else support
            m = (share * m).sum() / divisor(share.sum())
        return m

    def _taken(self, counts: Counts) -> tuple[Counts, Tensor, Tensor]:
        """The counts that the metric is of, 1 where there is no target; how many targets; whether there are any."""
        if self.average == "micro":
            counts = Counts(*(x.sum() for x in counts))
        elif self.average == "binary":
            counts = Counts(*(x[-1] for x in counts))
        support = (counts.tp + counts.fn).detach()
        there = support > 0
        return Counts(*(torch.where(there, x, 1.0) for x in counts)), support, there

    def _expected(self, rows: _Rows) -> tuple[Counts, Tensor]:
        """Expected counts, over all ranks and what is remembered, and log tp."""
        group = self.process_group
        if self.memory.size:
            share = rows.share
            columns = torch.cat([share, rows.weight], -1).detach()
            z, columns = self.memory(groups.gathered(rows.scores, group), groups.gathered(columns, group))
            target, weight = columns.split([share.shape[-1], rows.weight.shape[-1]], -1)
            rows, group = rows._replace(scores=z, target=target, weight=weight), None
        if rows.of_labels:
            absent, log_p = (log.double() for log in log_outcomes(rows.scores, self.noise, rows.scale))
            p, other = log_p.exp(), absent.exp()
        else:
            log_p = functional.argmax_log_probs(rows.scores, noise=self.noise, scale=rows.scale).double()
            p, other = log_p.exp(), -log_p.expm1()
        return Counts(*groups.total(_sums(rows, p, other), group)), _log_tp(rows, log_p, group)

    def _samples(self, scores: Tensor, target: Tensor) -> _Rows:
        check_tensors(scores=scores, target=target)
        single = self.average == "binary" and self.task == "multiclass" and target.shape == scores.shape
        if not single and self.task == "multiclass":
            return self._of_classes(scores, target)
        if single and self.weight is not None:
            raise ValueError("weight: expected two scores a sample with it, got one; pass scores (N, 2), or leave it out")
        return self._of_labels(*((scores.reshape(-1, 1), target.reshape(-1, 1)) if single else (scores, target)))

    def _of_classes(self, scores: Tensor, target: Tensor) -> _Rows:
        samples = samples_of(scores, target, self.ignore_index, of_one_score="use average='binary'").settled()
        z, classes = samples.scores, samples.scores.shape[-1]
        if self.average == "binary" and classes != 2:
            raise ValueError(f"average: 'binary' expects one score a sample or two classes, got {classes} classes; use 'macro'")
        weight = self.sample_weight(samples).reshape(-1, 1)
        if samples.fractional:
            target = samples.target.to(z).reshape(-1, classes)
            target = smoothed(target, self.label_smoothing, classes) if self.label_smoothing else target
        elif self.label_smoothing:
            target = smoothed(one_hot(samples.target.reshape(-1), classes).to(z), self.label_smoothing, classes)
        else:
            target = samples.target.reshape(-1)
        return _Rows(z.reshape(-1, classes), target, weight, self._scale_of_rows(z), False)

    def _of_labels(self, scores: Tensor, target: Tensor) -> _Rows:
        labels = labels_of(scores, target, self.ignore_index)
        share = smoothed(labels.share, self.label_smoothing, 2) if self.label_smoothing else labels.share
        columns = (labels.scores, share, labels.keep.to(labels.scores))
        z, share, weight = (x.reshape(-1, labels.scores.shape[-1]) for x in columns)
        return _Rows(z, share, weight, self._scale_of_rows(labels.scores), True)

    def _scale_of_rows(self, scores: Tensor) -> float | Tensor:
        """The scale for scores (…, C) flattened to (n, C)."""
        scale = checked_scale(self.scale, scores)
        if not isinstance(scale, Tensor) or not isinstance(self.scale, Tensor):
            return scale
        return self.scale.reshape(()) if self.scale.numel() == 1 else scale.reshape(-1, 1)


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

    def of_counts(self, counts: Counts) -> Tensor:
        """Intersection over union."""
        return counts.tp / (counts.tp + counts.fp + counts.fn)

    def log_of_counts(self, counts: Counts, log_tp: Tensor) -> Tensor:
        """log of that."""
        return log_tp - (counts.tp + counts.fp + counts.fn).log()


class Metric(NamedTuple):
    """A metric as a loss to train with and as the number to report."""

    loss: ConfusionLoss
    counted: Callable[[Tensor, Tensor], Tensor]


def metric(
    of_counts: OfCounts,
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
) -> Metric:
    r"""A metric of one's own, m(tp, fp, fn, tn), as a loss and as a counted metric.

    Args:
        of_counts: from four tensors (…) of one shape, float64, differentiably to values (…) in [0, 1], 1 being the best.
        others: as in ``ConfusionLoss``.

    Returns:
        ``loss``, a module of (scores, target), −log_q of the metric of expected counts; and ``counted``, a function of (scores,
        target), the metric of the classifier without noise, to which 1 − loss tends for scale → 0 and q = 0. No count and no m
        is taken for less than 1e-148: there the loss ends to grow.

    Raises:
        TypeError: ``of_counts`` cannot be called. ValueError: at the call, for values outside [0, 1].

    >>> loss, counted = metric(lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt(), average="binary")  # G-mean
    >>> scores, target = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1, 1, 0, 0])
    >>> counted(scores, target)
    tensor(0.5000, dtype=torch.float64)
    >>> loss(scores, target)
    tensor(0.4807)
    """
    if not callable(of_counts):
        raise TypeError(f"metric: expected a function of (tp, fp, fn, tn), got {type(of_counts).__name__}")
    made = OwnMetricLoss(
        of_counts,
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
    return Metric(made, made.counted)


class OwnMetricLoss(ConfusionLoss):
    """What ``metric`` makes."""

    def __init__(
        self,
        of_counts: OfCounts,
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
        self._of_counts = of_counts

    def of_counts(self, counts: Counts) -> Tensor:
        """The user's metric."""
        m = self._of_counts(*counts)
        if not isinstance(m, Tensor):
            raise TypeError(
                f"metric: expected a function that gives a torch.Tensor, got {type(m).__name__}; leave .item() and float() out"
            )
        if has_values(m) and not bool(((m >= 0) & (m <= 1 + SLACK)).all()):
            raise ValueError(f"metric: expected values from 0 to 1, got {float(m.detach().flatten()[0]):g}; rescale it")
        return m

    def log_of_counts(self, counts: Counts, log_tp: Tensor) -> Tensor:
        """Its logarithm."""
        return self.of_counts(Counts(*(x.clamp_min(LEAST) for x in counts))).clamp_min(LEAST).log()
