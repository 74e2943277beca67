"""Metrics of a ranking as losses: ROC AUC, also partial and one-vs-rest, and average precision.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lossmith.functional.columns import log_auc_of_columns, log_odds, log_precision_of_columns
from lossmith.inputs import (
    NO_SAMPLE_WEIGHT,
    check_choice,
    check_number,
    check_tensors,
    divisor,
    has_values,
    in_full_precision,
    labels_of,
    one_hot,
    samples_of,
)
from lossmith.losses.base import MetricLoss
from lossmith.losses.memory import ScoreMemory
from lossmith.maths.qlog import neg_log_q
from lossmith.noise import Noise
from lossmith.parallel import samples as groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Task = Literal["binary", "multiclass", "multilabel"]
Average = Literal["macro", "weighted", "micro", "none"]
TASKS, AVERAGES = ("binary", "multiclass", "multilabel"), ("macro", "weighted", "micro", "none")


class RankingLoss(MetricLoss):
    """−log_q (N6) of a metric that compares how scores rank positives and negatives.

    Args:
        task: "binary" has one score a sample. "multiclass" has one ranking for each class k, by the log-odds
            z_k − log Σ_{j≠k} e^{z_j}: log-odds order samples as the softmax does. "multilabel" has one ranking for each label,
            by the label's scores.
        average: over the classes or labels with positives and negatives in the batch. "macro" is the mean of the metric.
            "weighted" is the mean weighted by the number of positives. "micro" is the metric of one ranking of all classes or
            labels. "none" is a loss for each class or label, 0 without positives or without negatives.
        noise, scale, q: as in ``AccuracyLoss``, but the scale is a number or a tensor of one element.
        ignore_index: an integer target that leaves out the sample, or the label.
        process_group: a ``torch.distributed.ProcessGroup``. One ranking holds the batches of all ranks. Gradients are right
            after DDP has averaged the gradients of all ranks.
        memory: how many recent samples join the ranking of a batch in training, without a gradient (``ScoreMemory``).
        weight, reduction: None and "mean" only, since a ranking has no class weights and needs the whole batch.

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.
    """

    counts_sums = False
    DIALS = ("task", "average", "noise", "scale", "q")

    def __init__(
        self,
        task: Task = "binary",
        average: Average = "macro",
        noise: str | Noise = "normal",
        scale: float | Tensor = 1.0,
        q: float = 1.0,
        *,
        weight: None = None,
        ignore_index: int = -100,
        reduction: Literal["mean"] = "mean",
        process_group: ProcessGroup | None = None,
        memory: int = 0,
    ) -> None:
        super().__init__(noise, scale, q, ignore_index=ignore_index, reduction=reduction, process_group=process_group)
        check_choice("task", task, TASKS)
        check_choice("average", average, AVERAGES)
        if weight is not None:
            raise ValueError("weight: the metric does not depend on how much a class weighs; leave it out")
        if reduction != "mean":
            raise ValueError(f"reduction: the metric is one of the whole batch, expected 'mean', got {reduction!r}")
        if isinstance(scale, Tensor) and scale.numel() != 1:
            raise ValueError(f"scale: expected a number or a tensor of one element, got shape {tuple(scale.shape)}")
        self.task = task
        self.average = average
        self.memory = ScoreMemory(memory)

    @property
    @abstractmethod
    def of_columns(self) -> Callable[..., Tensor]:
        """The function from columns to log metrics (K,) float64, an operator of ``functional.columns``.

        Its arguments are a tuple, a noise and ``number``. The tuple has scores (n, K) float64, positive (n, K) bool, keep
        (n, K) bool, and the scale, () float64.
        """

    number = 0.0  # the third argument of ``of_columns``; average precision needs none

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch of scores and targets."""
        z, positive, keep = self.columns(scores, target)
        if self.process_group is not None or self.memory.size:
            z = groups.gathered(z, self.process_group)
            state = groups.gathered(torch.stack([positive, keep], -1).to(torch.uint8), self.process_group)
            z, state = self.memory(z, state)
            positive, keep = state.bool().unbind(-1)
        if self.average == "micro":
            z, positive, keep = z.reshape(-1, 1), positive.reshape(-1, 1), keep.reshape(-1, 1)
        scale = torch.as_tensor(self.scale, dtype=torch.float64, device=z.device).reshape(())
        # Positives of each column, (K,); 0 without negatives, since such a column has no metric
        count = torch.where((keep & ~positive).any(0), (keep & positive).sum(0), 0)
        log_m = self.of_columns((z.double(), positive, keep, scale), self.noise, self.number)
        zero = torch.zeros((), dtype=scores.dtype, device=z.device)
        if not log_m.requires_grad:
            # 0, whose gradient in scores and scale is 0: without a pair to rank, DDP still waits for both gradients
            zero = (0.0 * (torch.where(keep & z.isfinite(), z, 0.0).sum() + scale)).to(scores.dtype)
        if self.average == "none":
            return neg_log_q(log_m, self.q).to(scores.dtype) + zero
        valid = count > 0
        share = torch.where(valid, count, 1).double() if self.average == "weighted" else torch.ones_like(log_m)
        terms = torch.where(valid, log_m + (share / divisor((valid * share).sum())).log(), -math.inf)
        log_mean = torch.where(valid.any(), torch.where(valid.any(), terms, 0.0).logsumexp(0), 0.0)
        return neg_log_q(log_mean, self.q).to(scores.dtype) + zero

    @torch.no_grad()
    def counted(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The metric itself, of the scores without noise, in float64; equal scores rank as scikit-learn has it.

        Without ``memory``; of the batches of all ranks, where there is a ``process_group``. 0 where no ranking has both
        positives and negatives.
        """
        if sample_weight is not None:
            raise ValueError(NO_SAMPLE_WEIGHT)
        z, positive, keep = self.columns(scores, target)
        z = groups.gathered(z, self.process_group)
        positive, keep = (
            groups.gathered(torch.stack([positive, keep], -1).to(torch.uint8), self.process_group).bool().unbind(-1)
        )
        if self.average == "micro":
            z, positive, keep = z.reshape(-1, 1), positive.reshape(-1, 1), keep.reshape(-1, 1)
        values, support = [], []
        for scores_of, is_positive, counts in zip(z.double().T, positive.T, keep.T, strict=True):
            high, low = scores_of[counts & is_positive], scores_of[counts & ~is_positive]
            valid = len(high) > 0 and len(low) > 0
            values.append(self.counted_ranking(high, low) if valid else z.new_zeros((), dtype=torch.float64))
            support.append(len(high) if valid else 0)
        m, count = torch.stack(values), torch.tensor(support, dtype=torch.float64, device=z.device)
        if self.average == "none":
            return m
        share = count if self.average == "weighted" else (count > 0).double()
        return (share * m).sum() / divisor(share.sum())

    @abstractmethod
    def counted_ranking(self, high: Tensor, low: Tensor) -> Tensor:
        """The metric () of the scores of positives (P,) and of negatives (N,), both float64, P and N ≥ 1."""

    def columns(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (n, K), positives (n, K) bool, and the samples that count (n, K) bool; one column for each ranking."""
        if self.task == "multiclass":
            samples = samples_of(scores, target, self.ignore_index)
            if samples.fractional():
                raise ValueError(
                    "target: expected class indices, got class probabilities; a ranking has no fractions of samples"
                )
            samples = samples.settled()
            classes = samples.scores.shape[-1]
            z = log_odds(samples.scores.reshape(-1, classes))
            positive = one_hot(samples.target.reshape(-1), classes)
            return z, positive, samples.keep.reshape(-1, 1).expand(-1, classes)
        check_tensors(scores=scores, target=target)
        if self.task == "binary":
            if target.shape != scores.shape:
                text = f"target: expected the shape of the scores {tuple(scores.shape)}, got {tuple(target.shape)}"
                of_classes = scores.dim() == target.dim() + 1
                raise ValueError(f"{text}; for a score a class take task='multiclass'" if of_classes else text)
            scores, target = scores.reshape(-1, 1), target.reshape(-1, 1)
        z, share, keep = (x.reshape(-1, x.shape[-1]) for x in labels_of(scores, target, self.ignore_index))
        if target.is_floating_point() and has_values(share) and not bool(((share == 0) | (share == 1)).all()):
            raise ValueError("target: expected 0 or 1 for each label, got a fraction; a ranking takes whole samples")
        return z, share == 1, keep


class AUCLoss(RankingLoss):
    r"""Area under the ROC curve, expected under noise, as a loss: −log_q(AUC).

    AUC is the mean of P(the positive's noisy score is higher) over pairs of a positive and a negative; see
    ``functional.expected_auc``. With ``max_fpr`` = α the highest negatives count, a share α of all negatives; the last one may
    count in part. This is the partial area over false positive rates from 0 to α, divided by α. The scores without noise choose
    the negatives. The choice has no gradient.

    Args:
        max_fpr: α in (0, 1]; None or 1 is the whole area.
        others: as in ``RankingLoss``.

    Shape:
        "binary": scores and targets (N,) of any one shape, targets 0 or 1 of any type. "multiclass": as ``AccuracyLoss``, class
        indices only. "multilabel": scores and targets (N, L) or (N, L, d1, …). Output: a scalar; (C,) for average="none".

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.

    The expectation is exact for the batch's pairs. The AUC of a batch is an unbiased estimate of the data set's AUC; the
    partial AUC is biased. A batch has few pairs: use large batches, ``memory`` or a ``process_group``. A batch without
    positives, or without negatives, has loss 0 and a gradient of 0. For scale → 0, q = 0 gives 1 −
    ``sklearn.metrics.roc_auc_score``. For classes, that function takes the softmax and multi_class="ovr". For ``max_fpr``, the
    value is the one before that function's standardization, divided by α.

    Range: with normal, logistic or Gumbel noise on the CPU, 1 − AUC keeps its digits down to 1e-30. Otherwise, if AUC or
    1 − AUC is below 1e-8, only the 256 hardest positives and negatives are summed, as logarithms.
    Cost: with these noises on the CPU, O(n · C) for all classes together, some microseconds a class of a hundred samples; the
    log odds of classes cost as much again. Otherwise, and for ``max_fpr``, twice ``functional.expected_auc`` for each class.

    >>> AUCLoss(scale=1e-6, q=0.0)(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.2500)
    """

    OPTIONAL = ("max_fpr",)

    def __init__(
        self,
        task: Task = "binary",
        average: Average = "macro",
        noise: str | Noise = "normal",
        scale: float | Tensor = 1.0,
        q: float = 1.0,
        *,
        max_fpr: float | None = None,
        weight: None = None,
        ignore_index: int = -100,
        reduction: Literal["mean"] = "mean",
        process_group: ProcessGroup | None = None,
        memory: int = 0,
    ) -> None:
        super().__init__(
            task,
            average,
            noise,
            scale,
            q,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            process_group=process_group,
            memory=memory,
        )
        if max_fpr is not None:
            check_number("max_fpr", max_fpr, "a number or None")
            if not 0 < max_fpr <= 1:
                raise ValueError(f"max_fpr: expected a rate above 0 and at most 1, got {max_fpr}")
        self.max_fpr = max_fpr

    @property
    def of_columns(self) -> Callable[..., Tensor]:
        """log AUC."""
        return log_auc_of_columns

    def counted_ranking(self, high: Tensor, low: Tensor) -> Tensor:
        """The share of pairs in order, ties half, of the highest negatives, a share ``max_fpr`` of all."""
        hardest = low.sort(descending=True).values
        weight = (self.number * len(low) - torch.arange(len(low), dtype=low.dtype, device=low.device)).clamp(0, 1)
        below = torch.cat([weight.new_zeros(1), weight.flip(0).cumsum(0)])  # of the lowest so many
        ascending = hardest.flip(0).contiguous()
        won = below[torch.searchsorted(ascending, high)] + below[torch.searchsorted(ascending, high, right=True)]
        return won.mean() / 2 / below[-1]

    @property
    def number(self) -> float:  # type: ignore[override]
        """α, the share of the negatives that counts."""
        return 1.0 if self.max_fpr is None else float(self.max_fpr)


class AveragePrecisionLoss(RankingLoss):
    r"""Average precision, in expectation under noise, as a loss: −log_q(AP).

    AP is the mean precision at the noisy scores of positives; see ``functional.expected_average_precision``. Arguments, shapes
    and errors are those of ``AUCLoss``, without ``max_fpr``.

    The precision is a ratio of expected counts. The AP of a batch is a biased estimate of the data set's AP. The bias grows as
    positives become fewer: use large batches, ``memory`` or a ``process_group``. A batch without positives, or without
    negatives, has loss 0 and a gradient of 0. For scale → 0, q = 0 gives 1 − ``sklearn.metrics.average_precision_score`` of
    distinct scores. The precision is at least the share of positives, so the loss is bounded.

    Cost: with normal, logistic or Gumbel noise on the CPU as ``AUCLoss``, and some half a microsecond for every positive.
    Otherwise see ``functional.expected_average_precision``, for each class.

    >>> AveragePrecisionLoss(scale=1e-6, q=0.0)(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.1667)
    """

    @property
    def of_columns(self) -> Callable[..., Tensor]:
        """log AP."""
        return log_precision_of_columns

    def counted_ranking(self, high: Tensor, low: Tensor) -> Tensor:
        """The mean, over positives, of the precision among the scores that are at least the positive's."""
        positives, negatives = (len(x) - torch.searchsorted(x.sort().values, high) for x in (high, low))
        return (positives.double() / (positives + negatives)).mean()
