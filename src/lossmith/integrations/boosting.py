"""The losses as objectives of gradient boosting: XGBoost, LightGBM and CatBoost, none of which is imported here."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossmith.engine.argmax.autograd import NO_TARGET
from lossmith.inputs import check_target_values
from lossmith.integrations.two_classes import columns, derivatives_of_counts, derivatives_of_rows, rows_of
from lossmith.losses import AccuracyLoss, BalancedAccuracyLoss
from lossmith.losses.base import MetricLoss
from lossmith.losses.confusion_matrix import ConfusionLoss
from lossmith.losses.ranking import RankingLoss
from lossmith.noise import Gumbel

Floats = npt.NDArray[np.floating[Any]]
LEAST = 1e-16  # of a second derivative, as in XGBoost's own objectives


class BoostingObjective:
    r"""A loss as a booster's objective: its gradient, and a second derivative > 0, in every raw score.

    ``XGBClassifier(objective=…)``, ``LGBMClassifier(objective=…)``, and the ``obj`` and ``objective`` of both ``train``
    functions take the object itself; ``CatBoostClassifier(loss_function=…)`` takes its ``catboost()``. LightGBM's classifier
    then predicts raw scores; ``integrations.lightgbm`` has one that predicts classes.

    With L the weighted sum of the rows' losses (for a metric of all rows the sum of the rows' weights times its loss) and
    g_i = ∂L/∂s_i exactly,

        h_i = max(c_i, abs(g_i) / (step · scale))

    c_i is ∂²L/∂s_i² for means over samples of two classes and for ``AccuracyLoss`` under Gumbel noise of more. For F-beta,
    Jaccard and metrics of one's own with average="binary" c_i leaves out what is of order 1/n: the metric's slope is held.
    Elsewhere (rankings, other metrics of several classes) c_i = 0, and step is 1 at most. So no leaf moves a score by more than
    ``step`` scales, also where the loss is flat or curved the other way; at step = ∞ ``AccuracyLoss(q=1)`` is log loss as the
    boosters have it.

    Args:
        loss: any metric loss with a number as ``scale``. Its reduction does not matter.
        step: the most that a leaf moves a score, in scales, > 0, before the learning rate.

    Shape:
        raw scores (n,) of two classes, which stand for (0, s), or (n, C); targets class codes 0, 1, …, of any number type.

    Raises:
        TypeError, ValueError: a loss with a ``process_group``, ``memory`` or a tensor as ``scale``; row weights beside a
            ranking; ``catboost`` of a metric of all rows, since CatBoost shows an objective a thousand rows at a time.

    Cost: for two classes closed forms, with Gumbel and normal noise a few passes over the rows; rankings and several classes
    cost what the loss costs.
    Source: Newton boosting: Friedman, Hastie & Tibshirani, Annals of Statistics 28 (2000). The floor is worked out above.

    >>> g, h = BoostingObjective(AccuracyLoss(q=1))(np.array([1.0, 0.0]), np.array([0.0, 2.0]))
    >>> g.round(4), h.round(4)
    (array([-0.5   ,  0.8808]), array([0.25  , 0.4404]))
    """

    def __init__(self, loss: MetricLoss, *, step: float = 2.0) -> None:
        if not isinstance(loss, MetricLoss):
            raise TypeError(f"loss: expected a metric loss such as AccuracyLoss(), got {type(loss).__name__}")
        if isinstance(loss.scale, Tensor):
            raise TypeError("scale: expected a number, got a tensor; a booster learns nothing but its trees")
        memory: Any = getattr(loss, "memory", None)
        if loss.process_group is not None or (memory is not None and memory.size):
            raise ValueError("process_group, memory: expected none, a booster's batch is all rows")
        if not step > 0:
            raise ValueError(f"step: expected a number > 0, got {step}")
        average = getattr(loss, "average", "")
        if average == "none":
            raise ValueError("average: expected one number for all classes, got 'none'; take 'macro'")
        if average == "binary" and loss.weight is not None:
            raise ValueError("weight: expected none with average='binary'; give the booster sample_weight or scale_pos_weight")
        self.loss = loss
        self.step = step

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Floats, Floats]:
        """Gradient and second derivatives: of (targets, raw scores), or of (raw scores, the booster's data set)."""
        raw, target, weight = _arguments(first, second, sample_weight)
        return self.derivatives(raw, target, weight)

    def derivatives(self, raw: Any, target: Any, sample_weight: Any = None) -> tuple[Floats, Floats]:
        """∂L/∂s and h, both of the shape and the float type of the raw scores."""
        scores, index, weight = _tensors(raw, target, sample_weight)
        loss = self._of_rows(scores, index, weight)
        gradient, curvature = self._derivatives(scores, index, weight, loss)
        if curvature is None:
            second = gradient.abs() / (min(self.step, 1.0) * loss.scale)
        else:
            second = torch.maximum(curvature, gradient.abs() / (self.step * loss.scale))
        return gradient.numpy(), second.clamp_min(LEAST).numpy()

    def _of_rows(self, scores: Tensor, target: Tensor, weight: Tensor | None) -> MetricLoss:
        """The loss; balanced accuracy as the accuracy whose classes weigh what they do among these rows."""
        loss = self.loss
        if not isinstance(loss, BalancedAccuracyLoss) or loss.over != "sample" or loss.label_smoothing:
            return loss
        ones = torch.ones(len(target)) if weight is None else weight
        counts = torch.bincount(target, ones.double(), minlength=2 if scores.dim() == 1 else scores.shape[1])
        return AccuracyLoss(loss.noise, loss.scale, loss.q, weight=loss.weights_of(counts, counts))

    def _derivatives(
        self, scores: Tensor, target: Tensor, weight: Tensor | None, loss: MetricLoss
    ) -> tuple[Tensor, Tensor | None]:
        """∂L/∂s, and c of the documentation where it is known."""
        if scores.dim() == 1:
            known = rows_of(loss, target)
            if known is not None:
                of_class, each = known[0], known[1].to(scores) if weight is None else known[1].to(scores) * weight
                first, second = derivatives_of_rows(scores, of_class, loss)
                return each * first, each * second
            if isinstance(loss, ConfusionLoss) and self._binary and not loss.label_smoothing:
                return derivatives_of_counts(scores, target, weight, loss)
        scores = scores.requires_grad_()
        (gradient,) = torch.autograd.grad(_sum(loss, self._as_taken(scores), target, weight), scores)
        return gradient, _curvature(loss, scores.detach(), target, weight)

    @property
    def _binary(self) -> bool:
        return isinstance(self.loss, ConfusionLoss) and self.loss.average == "binary"

    def _as_taken(self, scores: Tensor) -> Tensor:
        """Raw scores as the loss takes them: one score of two classes stays alone or gets a column for each."""
        alone = scores.dim() > 1 or isinstance(self.loss, RankingLoss) or self._binary
        return scores if alone else columns(scores)

    # What early stopping watches

    @property
    def name(self) -> str:
        """Of the counted metric, in a booster's log."""
        return type(self.loss).__name__.removesuffix("Loss")

    def counted(self, raw: Any, target: Any, sample_weight: Any = None) -> float:
        """The metric itself, of raw scores and class codes."""
        scores, index, weight = _tensors(raw, target, sample_weight)
        return float(self.loss.counted(self._as_taken(scores), index, weight))

    def lightgbm_metric(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[str, float, bool]:
        """For LightGBM's ``eval_metric`` and ``feval``: name, value, and whether higher is better."""
        return self.name, self.counted(*_arguments(first, second, sample_weight)), self.loss.higher_is_better

    def xgboost_metric(self, first: Any, second: Any, sample_weight: Any = None) -> Any:
        """For XGBoost's ``eval_metric`` (the value) and ``custom_metric`` (name and value), which go down: 1 − the metric."""
        value = self.counted(*_arguments(first, second, sample_weight))
        value = 1 - value if self.loss.higher_is_better else value
        native = hasattr(second, "get_label")
        return (f"1-{self.name}", value) if native else value  # a name without spaces, which end it there

    def catboost(self) -> CatBoostObjective:
        """For ``CatBoostClassifier(loss_function=…, class_names=…)``, which learns no classes from a metric of its user.

        Of more than two classes CatBoost asks row by row, which is slow; that there are more it knows by
        eval_metric="MultiClass".
        """
        if not self.loss.is_sample_mean:
            raise ValueError(
                f"catboost: {type(self.loss).__name__} is a metric of all rows, and CatBoost shows an objective some at a time;"
                " take XGBoost or LightGBM, or a mean over samples"
            )
        return CatBoostObjective(self)

    @property
    def catboost_metric(self) -> CatBoostMetric:
        """For ``CatBoostClassifier(eval_metric=…)`` of two classes."""
        return CatBoostMetric(self)


class _ForCatBoost:
    """What CatBoost keeps; a copy is the same object, since scikit-learn's ``clone`` compares what CatBoost has copied."""

    no_jit = True  # or CatBoost warns at each fit that numba cannot compile the methods of an object

    def __init__(self, objective: BoostingObjective) -> None:
        self.objective = objective

    def __deepcopy__(self, known: Any) -> _ForCatBoost:
        return self


class CatBoostObjective(_ForCatBoost):
    """What CatBoost asks of an objective of its user: derivatives of minus the loss."""

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> list[tuple[float, float]]:
        """(n,) raw scores of two classes."""
        given = None if weights is None else np.array(weights)
        gradient, second = self.objective.derivatives(np.array(approxes), np.array(targets), given)
        return list(zip(-gradient, -second, strict=True))

    def calc_ders_multi(self, approxes: Any, target: float, weight: float) -> tuple[list[float], list[list[float]]]:
        """(C,) raw scores of one row of more classes; of the second derivatives the diagonal."""
        gradient, second = self.objective.derivatives(np.array([approxes]), np.array([target]), np.array([weight]))
        return list(-gradient[0]), [list(row) for row in np.diag(-second[0])]


class CatBoostMetric(_ForCatBoost):
    """What CatBoost asks of a metric of its user."""

    def is_max_optimal(self) -> bool:
        """Whether higher is better."""
        return self.objective.loss.higher_is_better

    def evaluate(self, approxes: Any, target: Any, weight: Any) -> tuple[float, float]:
        """The counted metric, and a weight of 1."""
        raw, given = np.array(approxes), None if weight is None else np.array(weight)
        return self.objective.counted(raw[0] if len(raw) == 1 else raw.T, np.array(target), given), 1.0

    def get_final_error(self, error: float, weight: float) -> float:
        """The value itself."""
        return error


def _sum(loss: MetricLoss, scores: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The sum of the rows' losses, weighted; the sum of the weights times a metric of all rows."""
    if loss.is_sample_mean:
        of_rows: Any = copy.copy(loss)
        of_rows.reduction = "none"
        losses: Tensor = of_rows(scores, target)
        return losses.sum() if weight is None else (weight * losses).sum()
    if weight is None:
        return len(target) * loss(scores, target)
    if not isinstance(loss, ConfusionLoss):
        raise ValueError(f"sample_weight: {type(loss).__name__} of all rows takes none; leave the weights out")
    return weight.sum() * loss(scores, target, weight)


def _curvature(loss: MetricLoss, scores: Tensor, target: Tensor, weight: Tensor | None) -> Tensor | None:
    """c of several classes."""
    plain = isinstance(loss, AccuracyLoss) and loss.margin is None and not loss.label_smoothing
    if not (plain and loss.is_sample_mean and isinstance(loss.noise, Gumbel) and scores.dim() > 1):
        return None
    p = (scores / loss.scale).softmax(-1)
    own = torch.nn.functional.one_hot(target, scores.shape[-1]).to(p)
    slope = p.gather(-1, target.unsqueeze(-1)) ** (1 - loss.q) * loss.class_weight(scores)[target].unsqueeze(-1)
    slope = slope if weight is None else slope * weight.unsqueeze(-1)
    return slope * (p * (1 - p) - (1 - loss.q) * (own - p).square()) / loss.scale**2


def _arguments(first: Any, second: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Raw scores, targets and weights of (targets, raw scores, weights), or of (raw scores, the booster's data set)."""
    if not hasattr(second, "get_label"):
        return second, first, sample_weight
    weight = second.get_weight()
    return first, second.get_label(), weight if weight is not None and len(weight) else None


def _tensors(raw: Any, target: Any, sample_weight: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores, class codes and weights, checked."""
    scores, codes = np.asarray(raw), np.asarray(target)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    if not (np.mod(codes, 1) == 0).all():
        wrong = codes[np.mod(codes, 1) != 0][0]
        raise ValueError(f"target: expected class codes 0, 1, …, got {wrong}; a metric of decisions has no fractions of labels")
    z, index = torch.from_numpy(np.array(scores)), torch.from_numpy(codes.astype(np.int64))
    check_target_values(index, 2 if z.dim() == 1 else z.shape[1], NO_TARGET)
    return z, index, None if sample_weight is None else torch.as_tensor(np.asarray(sample_weight)).to(z)
