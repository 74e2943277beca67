"""The expected cost of a decision as a loss.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lossmith import functional
from lossmith.inputs import Samples, at, check_tensors, divisor, has_values, in_full_precision, samples_of
from lossmith.losses.base import MetricLoss, Over, Reduction, check_mean, log_q_of_mean, weights_like
from lossmith.losses.sums import lost_and_saved
from lossmith.maths.qlog import neg_log_q
from lossmith.noise import Noise

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TINY = 1e-30  # m below which the p of its terms lack digits in float32


class CostLoss(MetricLoss):
    r"""The cost of the noisy classifier's decisions, as a loss: deciding k where y is true costs cost[y, k].

    With p_ik = P(argmax_j (z_ij + scale · ε_j) = k), a sample's costs c_ik = cost[y_i, k], the least of them l_i and the rest
    r_i = max_k c_ik − l_i, its metric is the share that is saved of what could be lost, m_i = 1 − Σ_k p_ik (c_ik − l_i) / r_i:

        over="sample":  mean_i [l_i + r_i · (−log_q m_i)]
        over="batch":   mean_i l_i + mean_i r_i · (−log_q of Σ_i r_i m_i / Σ_i r_i)

    −log_q is (N6). q = 0 is the expected cost itself, in the units of ``cost``. Every q has the slope of q = 0 where the
    cheapest decision is sure. q ≥ 1 grows without bound where the dearest decision is sure. With cost 1 for every wrong class
    and 0 for the right class, the loss is ``AccuracyLoss``.

    Args:
        cost: (C, C), finite; row y has the costs of each decision where y is true. Gains are negative costs. None where every
            call brings its samples' own.
        noise, scale, q, over: as in ``AccuracyLoss``, but Gumbel noise by default: every class's p is needed, and it has a
            closed form then.
        weight, ignore_index, reduction, label_smoothing, process_group: as in ``AccuracyLoss``; class probabilities average
            the rows of ``cost``.

    Shape:
        As ``AccuracyLoss``; the call may bring ``cost`` of the shape of the scores, the costs of each sample's decisions, and
        then needs no target.

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.

    The metric is linear in p: its expectation is exact, and a batch's value an unbiased estimate of the data set's. For
    scale → 0, q = 0 gives the mean cost of the decisions, as counted from ``sklearn.metrics.confusion_matrix``.

    Cost: see ``functional.argmax_log_probs``; with Gumbel noise that of a softmax.
    Source: q as in ``functional.neg_log_q``; the rest is the definition.

    >>> loss = CostLoss(torch.tensor([[0.0, 1.0], [10.0, 0.0]]), q=0.0)
    >>> loss(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    tensor(2.7500)
    """

    higher_is_better = False
    cost: Tensor | None

    def __init__(
        self,
        cost: Tensor | None = None,
        noise: str | Noise = "gumbel",
        scale: float | Tensor = 1.0,
        q: float = 1.0,
        over: Over = "sample",
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
        check_mean(over, reduction, label_smoothing)
        self.over = over
        self.label_smoothing = label_smoothing
        if cost is not None:
            cost = torch.as_tensor(cost)
            if cost.dim() != 2 or cost.shape[0] != cost.shape[1] or len(cost) < 2:
                raise ValueError(f"cost: expected shape (C, C) with C ≥ 2, got {tuple(cost.shape)}")
            _check_costs(cost)
            cost = cost if cost.is_floating_point() else cost.to(torch.get_default_dtype())
        self.register_buffer("cost", cost)

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor | None = None, cost: Tensor | None = None) -> Tensor:
        """The loss of scores against class indices, class probabilities, or each sample's own costs."""
        if cost is None and self.cost is None:
            raise TypeError("cost: expected a matrix at the constructor or each sample's costs at the call, got neither")
        given = {"scores": scores, "target": target, "cost": cost}
        check_tensors(**{name: value for name, value in given.items() if value is not None})
        if cost is not None and cost.shape != scores.shape:
            raise ValueError(f"cost: expected the shape of the scores {tuple(scores.shape)}, got {tuple(cost.shape)}")
        if target is None:
            if cost is None or self.weight is not None:
                raise TypeError(
                    "target: expected class indices or probabilities, got None; only cost= without weight= needs none"
                )
            target = torch.zeros_like(scores.select(1 if scores.dim() > 1 else 0, 0), dtype=torch.int64)
        samples = samples_of(scores, target, self.ignore_index).settled()
        z, weight = samples.scores, self.sample_weight(samples)
        if cost is None:
            return self._of_costs(z, self._rows(samples), weight)
        costs = cost.movedim(1 if cost.dim() > 1 else 0, -1).to(z).masked_fill(~samples.keep.unsqueeze(-1), 0.0)
        _check_costs(costs)
        return self._of_costs(z, costs, weight)

    def counted_sums(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The weighted cost of the decisions, and the weight of all, (2,). By ``cost`` of the constructor."""
        if self.cost is None:
            raise TypeError("cost: expected a matrix at the constructor to count by, got none")
        wide = scores.double() if scores.is_floating_point() else scores  # a half type would round the costs
        samples = samples_of(wide, target, self.ignore_index).settled()
        decision = samples.scores.argmax(-1, keepdim=True)
        weight = weights_like(sample_weight, samples.keep) * self.sample_weight(samples)
        return torch.stack([(weight * self._rows(samples).gather(-1, decision).squeeze(-1)).sum(), weight.sum()])

    def _rows(self, samples: Samples) -> Tensor:
        """The costs of each sample's decisions, (…, C)."""
        classes = samples.scores.shape[-1]
        assert self.cost is not None
        if len(self.cost) != classes:
            raise ValueError(f"cost: expected shape ({classes}, {classes}) for {classes} classes, got {tuple(self.cost.shape)}")
        matrix = self.cost.to(samples.scores)
        if not samples.fractional() and not self.label_smoothing:
            return at(matrix, samples.target)
        return samples.share(self.label_smoothing) @ matrix

    def _of_costs(self, scores: Tensor, costs: Tensor, weight: Tensor) -> Tensor:
        least = costs.amin(-1)
        at_stake = costs.amax(-1) - least
        lost = (costs - least.unsqueeze(-1)) / divisor(at_stake).unsqueeze(-1)
        log_p = functional.argmax_log_probs(scores, noise=self.noise, scale=self.scale)
        error, rest = lost_and_saved(log_p, lost)
        # From 1 − m where 1 − m is small (N3), else from m; where m is next to underflow, from the sum of logarithms (N11).
        tiny = rest < TINY
        saved = torch.where(error < 0.5, torch.log1p(-error.clamp_max(0.5)), torch.where(tiny, 1.0, rest).log())
        if not has_values(tiny) or tiny.any():
            saved = torch.where(tiny, (log_p + (1 - lost).log()).logsumexp(-1), saved)
        if self.over == "sample":
            return self.reduce(weight * (least + at_stake * neg_log_q(saved, self.q)), weight.sum())
        sums = self.total(torch.stack([(weight * least).sum(), (weight * at_stake).sum(), weight.sum()]))
        return (sums[0] + sums[1] * log_q_of_mean(self, saved, weight * at_stake)) / divisor(sums[2])


def _check_costs(cost: Tensor) -> None:
    if has_values(cost) and not cost.isfinite().all():
        raise ValueError("cost: expected finite numbers, got some that are not")
