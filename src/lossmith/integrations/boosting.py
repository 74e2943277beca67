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

    With L the weighted sum of the rows' losses (for a metric of all rows n times its loss), g_i = ∂L/∂s_i exactly, and

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
        self.loss = loss
        self.step = step
        if self._separable:
            self._of_rows: Any = copy.copy(loss)
            self._of_rows.reduction = "none"

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Floats, Floats]:
        """Gradient and second derivatives: of (targets, raw scores), or of (raw scores, the booster's data set)."""
        if not hasattr(second, "get_label"):
            return self.derivatives(second, first, sample_weight)
        weight = second.get_weight()
        return self.derivatives(first, second.get_label(), weight if weight is not None and len(weight) else None)

    def derivatives(self, raw: Any, target: Any, sample_weight: Any = None) -> tuple[Floats, Floats]:
        """∂L/∂s and h, both of the shape and the float type of the raw scores."""
        scores, index = _tensors(raw, target)
        weight = None if sample_weight is None else torch.as_tensor(np.asarray(sample_weight)).to(scores)
        gradient, curvature = self._derivatives(scores, index, weight)
        if curvature is None:
            second = gradient.abs() / (min(self.step, 1.0) * self.loss.scale)
        else:
            second = torch.maximum(curvature, gradient.abs() / (self.step * self.loss.scale))
        return gradient.numpy(), second.clamp_min(LEAST).numpy()

    def _derivatives(self, scores: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """∂L/∂s, and c of the documentation where it is known."""
        if scores.dim() == 1:
            check_target_values(target, 2, NO_TARGET)
            known = rows_of(self.loss, target)
            if known is not None:
                of_class, each = known[0], known[1].to(scores) if weight is None else known[1].to(scores) * weight
                first, second = derivatives_of_rows(scores, of_class, self.loss)
                return each * first, each * second
            if isinstance(self.loss, ConfusionLoss) and self._binary and not self.loss.label_smoothing:
                return derivatives_of_counts(scores, target, weight, self.loss)
        scores = scores.requires_grad_()
        (gradient,) = torch.autograd.grad(self._sum(self._as_taken(scores), target, weight), scores)
        return gradient, self._curvature(scores.detach(), target, weight)

    @property
    def _separable(self) -> bool:
        """Whether a row's derivatives depend on its own score alone: weights of classes depend on the targets only."""
        return self.loss.is_sample_mean or (isinstance(self.loss, BalancedAccuracyLoss) and self.loss.over == "sample")

    @property
    def _binary(self) -> bool:
        return isinstance(self.loss, ConfusionLoss) and self.loss.average == "binary"

    def _as_taken(self, scores: Tensor) -> Tensor:
        """Raw scores as the loss takes them: one score of two classes stays alone or gets a column for each."""
        alone = scores.dim() > 1 or isinstance(self.loss, RankingLoss) or self._binary
        return scores if alone else columns(scores)

    def _sum(self, scores: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The sum of the rows' losses, weighted; n times a metric of all rows."""
        if self._separable:
            losses: Tensor = self._of_rows(scores, target)
            return losses.sum() if weight is None else (weight * losses).sum()
        if weight is None:
            return len(target) * self.loss(scores, target)
        if not isinstance(self.loss, ConfusionLoss):
            raise ValueError(f"sample_weight: {type(self.loss).__name__} ranks all rows alike; leave the weights out")
        return len(target) * self.loss(scores, target, weight)

    def _curvature(self, scores: Tensor, target: Tensor, weight: Tensor | None) -> Tensor | None:
        """c of several classes."""
        loss, sigma = self.loss, self.loss.scale
        plain = isinstance(loss, AccuracyLoss) and loss.margin is None and not loss.label_smoothing
        if not (plain and loss.is_sample_mean and isinstance(loss.noise, Gumbel) and scores.dim() > 1):
            return None
        p = (scores / sigma).softmax(-1)
        own = torch.nn.functional.one_hot(target, scores.shape[-1]).to(p)
        slope = p.gather(-1, target.unsqueeze(-1)) ** (1 - loss.q) * loss.class_weight(scores)[target].unsqueeze(-1)
        slope = slope if weight is None else slope * weight.unsqueeze(-1)
        return slope * (p * (1 - p) - (1 - loss.q) * (own - p).square()) / sigma**2

    # What early stopping watches

    @property
    def name(self) -> str:
        """Of the counted metric, in a booster's log."""
        return type(self.loss).__name__.removesuffix("Loss")

    def counted(self, raw: Any, target: Any) -> float:
        """The metric itself, of raw scores and class codes."""
        scores, index = _tensors(raw, target)
        return float(self.loss.counted(self._as_taken(scores), index))

    def _watched(self, first: Any, second: Any) -> tuple[float, bool]:
        """``counted`` of a caller's arguments, and whether these are those of a function ``train``."""
        native = hasattr(second, "get_label")
        return self.counted(first, second.get_label()) if native else self.counted(second, first), native

    def lightgbm_metric(self, first: Any, second: Any) -> tuple[str, float, bool]:
        """For LightGBM's ``eval_metric`` and ``feval``: name, value, and whether higher is better."""
        value, _ = self._watched(first, second)
        return self.name, value, self.loss.higher_is_better

    def xgboost_metric(self, first: Any, second: Any) -> Any:
        """For XGBoost's ``eval_metric`` (the value) and ``custom_metric`` (name and value), which go down: 1 − the metric."""
        value, native = self._watched(first, second)
        value = 1 - value if self.loss.higher_is_better else value
        return (f"1-{self.name}", value) if native else value  # a name without spaces, which end it there

    def catboost(self, n_classes: int = 2) -> CatBoostObjective | CatBoostMultiObjective:
        """For ``CatBoostClassifier(loss_function=…)``.

        Of more than two classes CatBoost asks row by row, which is slow; that there are more it knows by
        eval_metric="MultiClass".
        """
        if not self.loss.is_sample_mean:
            raise ValueError(
                f"catboost: {type(self.loss).__name__} is a metric of all rows, and CatBoost shows an objective some at a time;"
                " take XGBoost or LightGBM, or a mean over samples"
            )
        return CatBoostObjective(self) if n_classes == 2 else CatBoostMultiObjective(self)

    @property
    def catboost_metric(self) -> CatBoostMetric:
        """For ``CatBoostClassifier(eval_metric=…)`` of two classes."""
        return CatBoostMetric(self)


class CatBoostObjective:
    """What CatBoost asks of an objective of its user for two classes: derivatives of minus the loss."""

    def __init__(self, objective: BoostingObjective) -> None:
        self.objective = objective

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> list[tuple[float, float]]:
        """(n,) raw scores of two classes."""
        gradient, second = self.objective.derivatives(np.array(approxes), np.array(targets), _given(weights))
        return list(zip(-gradient, -second, strict=True))


class CatBoostMultiObjective:
    """The same for more classes."""

    def __init__(self, objective: BoostingObjective) -> None:
        self.objective = objective

    def calc_ders_multi(self, approxes: Any, target: float, weight: float) -> tuple[list[float], list[list[float]]]:
        """(C,) raw scores of one row; of the second derivatives the diagonal."""
        gradient, second = self.objective.derivatives(np.array([approxes]), np.array([target]), np.array([weight]))
        return list(-gradient[0]), [list(row) for row in np.diag(-second[0])]


class CatBoostMetric:
    """What CatBoost asks of a metric of its user."""

    def __init__(self, objective: BoostingObjective) -> None:
        self.objective = objective

    def is_max_optimal(self) -> bool:
        """Whether higher is better."""
        return self.objective.loss.higher_is_better

    def evaluate(self, approxes: Any, target: Any, weight: Any) -> tuple[float, float]:
        """The counted metric, and a weight of 1."""
        raw = np.array(approxes)
        return self.objective.counted(raw[0] if len(raw) == 1 else raw.T, np.array(target)), 1.0

    def get_final_error(self, error: float, weight: float) -> float:
        """The value itself."""
        return error


def _given(weights: Any) -> Any:
    return None if weights is None else np.array(weights)


def _tensors(raw: Any, target: Any) -> tuple[Tensor, Tensor]:
    scores, index = np.asarray(raw), np.asarray(target)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    return torch.from_numpy(np.array(scores)), torch.from_numpy(index.astype(np.int64))
