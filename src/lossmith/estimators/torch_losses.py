r"""The loss of ``lossmith.losses`` that trains each metric of ``estimators.metrics``: for networks, on batches, by autograd.

A loss takes scores (n, C), also for two classes, class indices (n,) and a weight for each sample (n,), and is what
``TrainedMetric.loss`` is in NumPy:

    accuracy, balanced, top-k, cost:     Σ_i w_i v_i l_i / Σ_i w_i v_i,  l_i = −log_q(p_i), v_i = 1 or 1 / (weight of class y_i)
    F-beta, Jaccard, own metrics:        −log_q(m) of the counts that w_i weighs
    AUC, average precision:              −log_q(m); for more than two classes each score against the rest, averaged

Each is the loss of its batch. That of a mean of rows that weigh the same is an unbiased estimate of the loss of all rows;
weighted means, counts and rankings are not, and needs batches that hold tens of rows of each class.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lossmith import AccuracyLoss, AUCLoss, AveragePrecisionLoss, CostLoss, FBetaLoss, JaccardLoss, TopKAccuracyLoss
from lossmith.estimators.metrics import metric_of
from lossmith.estimators.metrics.counts import Counted, Own
from lossmith.estimators.metrics.means import Accuracy, BalancedAccuracy, Cost, LogLoss, TopKAccuracy
from lossmith.estimators.metrics.rankings import Ranking
from lossmith.functional import expected_auc, neg_log_q
from lossmith.inputs import divisor, one_hot
from lossmith.losses.base import MetricLoss
from lossmith.losses.confusion_matrix import ConfusionLoss
from lossmith.losses.memory import ScoreMemory
from lossmith.noise import Noise
from lossmith.parallel import samples as groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def torch_loss(
    metric: Any,
    classes: int,
    *,
    noise: str | Noise = "gumbel",
    q: float = 1.0,
    scale: float = 1.0,
    process_group: ProcessGroup | None = None,
) -> WeighedLoss:
    """The loss that trains a metric.

    Args:
        metric: what ``MetricClassifier`` takes.
        classes: C ≥ 2.
        noise, q, scale: of the loss, as in ``AccuracyLoss``; accuracy with Gumbel noise and q = 1 is cross-entropy.
        process_group: a ``torch.distributed.ProcessGroup`` whose ranks' batches together are the batch.

    Returns:
        A module of (scores, target, weight=None): scores (n, C) of any floating type, target (n,) int64, weight (n,) ≥ 0 of any
        floating type. It gives a scalar of the type of the scores, 0 where nothing weighs anything. ``q`` and ``scale`` may be
        set between steps, by ``training.QSchedule`` and ``ScaleSchedule``.

    Raises:
        ValueError, TypeError: those of ``metrics.metric_of``; a noise, q or scale out of range.

    Cost: that of the loss in ``lossmith.losses``; an AUC with weights, that of ``functional.expected_auc`` for each class.
    Log loss is cross-entropy whatever the dials.

    >>> loss = torch_loss("accuracy", 2)
    >>> loss(torch.tensor([[0.0, 0.0], [0.0, 20.0]]), torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
    tensor(0.1733)
    """
    found = metric_of(metric, classes)
    dials: dict[str, Any] = {"noise": noise, "q": q, "scale": scale, "process_group": process_group}
    if isinstance(found, Accuracy):
        return MeanLoss(AccuracyLoss(reduction="none", **dials), isinstance(found, BalancedAccuracy))
    if isinstance(found, TopKAccuracy):
        return MeanLoss(TopKAccuracyLoss(found.k, reduction="none", **dials), False)
    if isinstance(found, LogLoss):
        return MeanLoss(AccuracyLoss("gumbel", q=1.0, reduction="none", process_group=process_group), False)
    if isinstance(found, Cost):
        return MeanLoss(CostLoss(torch.from_numpy(found.cost), reduction="none", **dials), False)
    if isinstance(found, Counted):
        average: Any = found.average
        if found.kind == "f":
            return CountsLoss(FBetaLoss(found.beta, average, **dials))
        return CountsLoss(JaccardLoss(average, **dials))
    if isinstance(found, Own):
        return CountsLoss(_with_dials(found.given, dials))
    assert isinstance(found, Ranking)
    kind = AUCLoss if found.kind == "roc_auc" else AveragePrecisionLoss
    return RankingLoss(kind("binary" if classes == 2 else "multilabel", **dials))


class WeighedLoss(nn.Module):
    """A loss of (scores, target, weight), see ``torch_loss``; ``loss`` is the one of ``lossmith.losses``."""

    def __init__(self, loss: MetricLoss) -> None:
        super().__init__()
        self.loss = loss

    @property
    def q(self) -> float:
        """From metric to loss."""
        return self.loss.q

    @q.setter
    def q(self, value: float) -> None:
        self.loss.q = value

    @property
    def scale(self) -> float | Tensor:
        """The noise's multiplier, in units of the scores."""
        return self.loss.scale

    @scale.setter
    def scale(self, value: float | Tensor) -> None:
        self.loss.scale = value


class MeanLoss(WeighedLoss):
    """The weighted mean of the samples' losses; ``balanced`` makes it that of the classes' means."""

    def __init__(self, loss: MetricLoss, balanced: bool) -> None:
        super().__init__(loss)
        self.balanced = balanced

    def forward(self, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """See ``torch_loss``."""
        losses = self.loss(scores, target)
        weight = torch.ones_like(losses) if weight is None else weight.to(losses)
        if self.balanced:
            by_class = self.loss.total(weight.new_zeros(scores.shape[1]).index_add(0, target, weight))
            weight = weight / divisor(by_class)[target]
        sums = self.loss.total(torch.stack([weight @ losses, weight.sum()]))
        return sums[0] / divisor(sums[1])


class CountsLoss(WeighedLoss):
    """A loss of counts, weighed."""

    def forward(self, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """See ``torch_loss``."""
        return self.loss(scores, target, weight)


class RankingLoss(WeighedLoss):
    """AUC or average precision, of the lead of the second of two classes, else of each score against the rest."""

    def forward(self, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """See ``torch_loss``; average precision weighs all samples of weight above 0 equally."""
        two = scores.shape[1] == 2
        if weight is not None and isinstance(self.loss, AUCLoss):
            columns = (scores[:, 1] - scores[:, 0]).unsqueeze(1) if two else scores
            positive = target.unsqueeze(1) == 1 if two else one_hot(target, scores.shape[1])
            return self._weighted_auc(columns, positive, weight.to(scores))
        if weight is not None:
            scores, target = scores[weight > 0], target[weight > 0]
        if two:
            return self.loss(scores[:, 1] - scores[:, 0], target)
        return self.loss(scores, one_hot(target, scores.shape[1]).long())

    def _weighted_auc(self, columns: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
        """−log_q of the mean AUC of the columns (n, K) that have positives and negatives."""
        group = self.loss.process_group
        columns, weight = groups.gathered(columns, group), groups.gathered(weight, group)
        positive = groups.gathered(positive.to(torch.uint8), group).bool()
        found = [
            expected_auc(column, label, noise=self.loss.noise, scale=self.loss.scale, weight=weight)
            for column, label in zip(columns.unbind(1), positive.unbind(1), strict=True)
            if weight[label].any() and weight[~label].any()
        ]
        if not found:
            return 0.0 * columns.sum()
        return neg_log_q(torch.stack(found).mean().log(), self.loss.q)


def _with_dials(given: ConfusionLoss, dials: dict[str, Any]) -> ConfusionLoss:
    """A copy of a user's loss of counts with other dials, without what ``metrics.Own`` does not count."""
    made = copy.deepcopy(given)
    fresh = FBetaLoss(**dials)  # checks and completes them
    made.noise, made.q, made.scale, made.process_group = fresh.noise, fresh.q, fresh.scale, fresh.process_group
    made.weight, made.label_smoothing, made.memory = None, 0.0, ScoreMemory(0)
    return made
