"""The expected confusion matrix of a batch, and the loss of a metric of its counts.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lossmith import functional
from lossmith.functional.argmax import log_outcomes
from lossmith.inputs import (
    check_choice,
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
from lossmith.losses.base import MetricLoss, weights_like
from lossmith.losses.memory import ScoreMemory
from lossmith.losses.sums import own_and_others
from lossmith.noise import Noise
from lossmith.parallel import samples as groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Average = Literal["binary", "macro", "micro", "weighted", "none"]
Task = Literal["multiclass", "multilabel"]
AVERAGES, TASKS = ("binary", "macro", "micro", "weighted", "none"), ("multiclass", "multilabel")


TINY = 1e-250  # tp below which log tp needs (N11)


class Counts(NamedTuple):
    """Expected or counted entries of confusion matrices, one matrix for each class; all float64 of one shape, (C,) or ()."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


class Rows(NamedTuple):
    """A batch as a matrix: one sample a row, one class or label a column."""

    scores: Tensor  # (n, C)
    target: Tensor  # (n,) class indices, or (n, C): its share in each class, or whether each label is there
    weight: Tensor  # (n, 1), a weight for each sample; (n, C) for labels
    scale: float | Tensor  # a number or (n, 1)
    multilabel: bool  # columns are labels, each predicted by itself; otherwise classes, of which one is predicted

    @property
    def share(self) -> Tensor:
        """The target's share in each class, (n, C)."""
        return self.target if self.target.dim() == 2 else one_hot(self.target, self.scores.shape[-1]).to(self.scores)


class Selection(NamedTuple):
    """The counts that an average takes: of each class (C,), or of one class or all together ()."""

    counts: Counts  # 1 where there is no target
    support: Tensor  # the weight of the targets, without a gradient
    has_target: Tensor  # bool


def counts_of_rows(rows: Rows, p: Tensor, p_not: Tensor) -> Tensor:
    """tp, fp, fn and tn of each class, (4, C) float64.

    Args:
        rows: the batch.
        p: the probability that each class is predicted, (n, C) float64.
        p_not: 1 − p, (n, C) float64, which may have more digits than p has.
    """
    w, t = rows.weight.double(), rows.share.double()
    parts = [w * t * p, w * (1 - t) * p, w * t * p_not, w * (1 - t) * p_not]
    return torch.stack([part.sum(0) for part in parts])


def counts_of_classes(rows: Rows, log_p: Tensor, needs_tn: bool) -> tuple[Tensor, Tensor]:
    """As ``counts_of_rows``, of class indices and log p (n, C) of any dtype; and log p of each row's class, (n,) float64.

    Segmentation spends most of its time here: sums are float64, matrices are not. needs_tn: whether tn keeps its digits next to
    0.
    """
    y, w = rows.target, rows.weight
    own, fp = own_and_others(log_p, y, w.squeeze(1))
    own, each = own.double(), w.squeeze(1).double()
    zero = own.new_zeros(log_p.shape[1])

    def sum_of_targets(x: Tensor) -> Tensor:
        return zero.index_add(0, y, x)

    tp, fn = sum_of_targets(each * own.exp()), sum_of_targets(-each * own.expm1())
    if needs_tn:
        tn = (-w * log_p.scatter(1, y.unsqueeze(1), 0.0).expm1()).sum(0, dtype=torch.float64)
    else:
        tn = each.sum() - sum_of_targets(each) - fp
    return torch.stack([tp, fp, fn, tn]), own


def log_true_positives(rows: Rows, log_p: Tensor, group: ProcessGroup | None) -> Tensor:
    """log tp of each class over all ranks, (C,) float64, by (N11) also where tp underflows; −inf where there is no target.

    log_p: (n, C) beside a share in each class, (n,) of each row's class beside class indices; float64.
    """
    if rows.target.dim() == 2:
        terms = log_p + (rows.weight.double() * rows.target.double()).log()
        top = terms.detach().amax(0) if len(terms) else terms.new_full(terms.shape[1:], -torch.inf)
    else:
        y = rows.target
        terms = log_p + rows.weight.squeeze(-1).double().log()
        top = terms.new_full(rows.scores.shape[1:], -torch.inf).scatter_reduce(0, y, terms.detach(), "amax")
    top = groups.highest(top, group)
    top = torch.where(top.isneginf(), 0.0, top)
    if rows.target.dim() == 2:
        scaled = (terms - top).exp().sum(0)  # tp / e^top
    else:
        scaled = torch.zeros_like(top).index_add(0, y, (terms - top.index_select(0, y)).exp())
    scaled = groups.total(scaled, group)
    return torch.where(scaled > 0, top + torch.where(scaled > 0, scaled, 1.0).log(), -torch.inf)


class ConfusionLoss(MetricLoss):
    r"""−log_q (N6) of a metric m(tp, fp, fn, tn) of expected counts.

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
        memory: in training, so many recent samples count along with the batch, without a gradient (``ScoreMemory``); each of
            the d1 × … places is a sample.

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.
    """

    DIALS: ClassVar[tuple[str, ...]] = ("average", "task", "noise", "scale", "q")
    counts_classes = True
    needs_tn: ClassVar[bool] = True  # whether the metric depends on tn

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
    def forward(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of a batch of scores and targets; ``sample_weight``, one number ≥ 0 a target, of the target's shape."""
        rows = self._weighed(self._rows(scores, target), sample_weight)
        return self.loss_of_counts(*self._expected_counts(rows)).to(scores.dtype)

    def loss_of_counts(self, counts: Counts, log_tp: Tensor) -> Tensor:
        """The loss, float64, of expected counts (C,) and log tp (C,)."""
        if self.average == "micro":
            log_tp = log_tp.logsumexp(0)
        elif self.average == "binary":
            log_tp = log_tp[-1]
        counts, support, has_target = self._select(counts)
        log_m = self.log_of_counts(counts, torch.where(has_target, log_tp, 0.0))
        if self.average in ("macro", "weighted"):
            class_weight = has_target.to(log_m) if self.average == "macro" else support
            class_weight = torch.where(has_target, class_weight, 1.0) / divisor(class_weight.sum())
            terms = torch.where(has_target, log_m + class_weight.log(), -torch.inf)
            has_target = has_target.any()
            log_m = torch.where(has_target, terms, 0.0).logsumexp(0)
        loss = functional.neg_log_q(torch.where(has_target, log_m, 0.0), self.q)
        return torch.where(has_target, loss, 0.0)

    def counted_sums(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """tp, fp, fn and tn of each class, (4, C)."""
        rows = self._weighed(self._rows(scores, target), sample_weight)
        z = rows.scores
        predicted = z > 0 if rows.multilabel else one_hot(z.argmax(-1), z.shape[-1])
        if rows.target.dim() == 1:
            return counts_of_classes(rows, torch.where(predicted, 0.0, -math.inf).to(z), self.needs_tn)[0]
        return counts_of_rows(rows, predicted.double(), 1 - predicted.double())

    def counted_of(self, sums: Tensor) -> Tensor:
        """The metric of these counts; for average="none" 0 without a target."""
        counts, support, has_target = self._select(Counts(*sums))
        m = torch.where(has_target, self.of_counts(counts), 0.0)
        if self.average in ("macro", "weighted"):
            class_weight = has_target.to(m) if self.average == "macro" else support
            m = (class_weight * m).sum() / divisor(class_weight.sum())
        return m

    def _select(self, counts: Counts) -> Selection:
        """What ``average`` takes of the counts of each class."""
        if self.average == "micro":
            counts = Counts(*(x.sum() for x in counts))
        elif self.average == "binary":
            counts = Counts(*(x[-1] for x in counts))
        support = (counts.tp + counts.fn).detach()
        has_target = support > 0
        return Selection(Counts(*(torch.where(has_target, x, 1.0) for x in counts)), support, has_target)

    def _expected_counts(self, rows: Rows) -> tuple[Counts, Tensor]:
        """Expected counts of each class, over all ranks and the memory, and log tp, all (C,)."""
        group = self.process_group
        if self.memory.size:
            share = rows.share
            columns = torch.cat([share, rows.weight], -1).detach()
            z, columns = self.memory(groups.gathered(rows.scores, group), groups.gathered(columns, group))
            target, weight = columns.split([share.shape[-1], rows.weight.shape[-1]], -1)
            rows, group = rows._replace(scores=z, target=target, weight=weight), None
        if rows.multilabel:
            log_p_not, log_p = (log.double() for log in log_outcomes(rows.scores, self.noise, rows.scale))
            p, p_not = log_p.exp(), log_p_not.exp()
        else:
            log_p = functional.argmax_log_probs(rows.scores, noise=self.noise, scale=rows.scale)
            if rows.target.dim() == 1:
                found, own = counts_of_classes(rows, log_p, self.needs_tn)
                counts = Counts(*groups.total(found, group))
                if group is None and has_values(found) and not ((counts.tp < TINY) & (counts.fn > 0)).any():
                    has_target = counts.tp > 0
                    return counts, torch.where(has_target, torch.where(has_target, counts.tp, 1.0).log(), -torch.inf)
                return counts, log_true_positives(rows, own, group)
            log_p = log_p.double()
            p, p_not = log_p.exp(), -log_p.expm1()  # (N6) at q = 0: 1 − p keeps its digits
        return Counts(*groups.total(counts_of_rows(rows, p, p_not), group)), log_true_positives(rows, log_p, group)

    def _weighed(self, rows: Rows, sample_weight: Tensor | None) -> Rows:
        """The batch with the weights of its samples, if there are any."""
        if sample_weight is None:
            return rows
        given = weights_like(sample_weight, rows.weight[:, 0]).to(rows.weight)
        return rows._replace(weight=rows.weight * given.unsqueeze(1))

    def _rows(self, scores: Tensor, target: Tensor) -> Rows:
        """The batch, checked, as ``task`` and ``average`` read it."""
        check_tensors(scores=scores, target=target)
        single = self.average == "binary" and self.task == "multiclass" and target.shape == scores.shape
        if not single and self.task == "multiclass":
            return self._rows_of_classes(scores, target)
        if single and self.weight is not None:
            raise ValueError("weight: expected two scores a sample with it, got one; pass scores (N, 2), or leave it out")
        return self._rows_of_labels(*((scores.reshape(-1, 1), target.reshape(-1, 1)) if single else (scores, target)))

    def _rows_of_classes(self, scores: Tensor, target: Tensor) -> Rows:
        samples = samples_of(scores, target, self.ignore_index, of_one_score="use average='binary'").settled()
        z, classes = samples.scores, samples.scores.shape[-1]
        if self.average == "binary" and classes != 2:
            raise ValueError(f"average: 'binary' expects one score a sample or two classes, got {classes} classes; use 'macro'")
        weight = self.sample_weight(samples).reshape(-1, 1)
        if samples.fractional():
            target = samples.target.to(z).reshape(-1, classes)
            target = smoothed(target, self.label_smoothing, classes) if self.label_smoothing else target
        elif self.label_smoothing:
            target = smoothed(one_hot(samples.target.reshape(-1), classes).to(z), self.label_smoothing, classes)
        else:
            target = samples.target.reshape(-1)
        return Rows(z.reshape(-1, classes), target, weight, self._scale_by_row(z), False)

    def _rows_of_labels(self, scores: Tensor, target: Tensor) -> Rows:
        labels = labels_of(scores, target, self.ignore_index)
        share = smoothed(labels.share, self.label_smoothing, 2) if self.label_smoothing else labels.share
        columns = (labels.scores, share, labels.keep.to(labels.scores))
        z, share, weight = (x.reshape(-1, labels.scores.shape[-1]) for x in columns)
        return Rows(z, share, weight, self._scale_by_row(labels.scores), True)

    def _scale_by_row(self, scores: Tensor) -> float | Tensor:
        """The scale for scores (…, C) flattened to (n, C)."""
        scale = checked_scale(self.scale, scores)
        if not isinstance(scale, Tensor) or not isinstance(self.scale, Tensor):
            return scale
        return self.scale.reshape(()) if self.scale.numel() == 1 else scale.reshape(-1, 1)
