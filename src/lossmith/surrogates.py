"""The classical losses that metric losses are compared with, each right by its own definition.

Four of them are binary losses φ(t) of the lead t that the target has. With more than two classes the lead is taken over the
strongest rival, t = z_y − max_{j≠y} z_j: the sample is right exactly if t > 0, so φ still stands for the 0-1 loss, and its
slope does not depend on the number of classes. (The code that came with EXACT takes the sum over all rivals of φ, which
is a union bound and reaches C − 1, or for the hinge the mean, whose slope shrinks with C.) Ties share the gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lossmith.functional import standardize_scores
from lossmith.layout import ClassificationLoss, classes_last
from lossmith.qlog import neg_log_q

__all__ = ["BetaBernoulliLoss", "HingeLoss", "PolyLoss", "PolynomialLoss", "SigmoidLoss"]


class _IndexLoss(ClassificationLoss):
    """A weighted mean, over samples, of a loss of scores (…, C) and class indices (…)."""

    def __init__(self, *, standardize: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.standardize = standardize

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores (C,), (N, C) or (N, C, d1, …) against class indices without C."""
        scores, target = classes_last(scores, target)
        if target.is_floating_point():
            raise ValueError(f"target: {type(self).__name__} takes class indices, not probabilities; got {target.dtype}")
        index, keep = self.split_ignored(scores, target)
        if self.standardize:
            scores = standardize_scores(scores, keep)
        weight = self.sample_weight(index, keep, scores)
        return self.reduce(self.per_sample(scores, index) * weight, weight.sum())

    @abstractmethod
    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        """Losses (…) of scores (…, C) and class indices (…)."""


class _LeadLoss(_IndexLoss):
    """A loss φ of the lead over the strongest rival."""

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        own = index.unsqueeze(-1)
        rival = scores.scatter(-1, own, -torch.inf).amax(-1)
        return self.of_lead(scores.gather(-1, own).squeeze(-1) - rival)

    @abstractmethod
    def of_lead(self, lead: Tensor) -> Tensor:
        """φ(t), element by element."""


class HingeLoss(_LeadLoss):
    r"""Multi-class hinge: max(0, margin − t), t the lead over the strongest rival.

    An upper bound of margin · (0-1 loss). Differs from EXACT's baseline, a mean over rivals as in
    ``torch.nn.MultiMarginLoss``, whose gradient shrinks as 1/(C − 1).

    Args:
        margin: the lead from which on nothing is charged, > 0.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Crammer & Singer, JMLR 2 (2001).

    >>> HingeLoss()(torch.tensor([[0.5, 0.0, -1.0]]), torch.tensor([0]))
    tensor(0.5000)
    """

    def __init__(self, margin: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.margin = _positive("margin", margin)

    def of_lead(self, lead: Tensor) -> Tensor:
        return (self.margin - lead).clamp_min(0)


class SigmoidLoss(_LeadLoss):
    r"""Sigmoid relaxation of the 0-1 loss: 1 − sigmoid(t / scale), t the lead over the strongest rival.

    It tends to the 0-1 loss as scale → 0. EXACT's baseline sums it over rivals.

    Args:
        scale: > 0, in units of the scores; ``training.ScaleSchedule`` may lower it.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Nguyen & Sanner, "Algorithms for direct 0-1 loss optimization in binary classification", ICML 2013.

    >>> SigmoidLoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.5000)
    """

    def __init__(self, scale: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.scale = _positive("scale", scale)

    def of_lead(self, lead: Tensor) -> Tensor:
        return torch.sigmoid(-lead / self.scale)


class PolynomialLoss(_LeadLoss):
    r"""Cubic relaxation of the 0-1 loss: d³/4 − 3d/4 + 1/2 with d = clip(t / scale, −1, 1).

    t is the lead over the strongest rival. 1 for t ≤ −scale, 0 for t ≥ scale, with a continuous slope; no gradient outside.
    EXACT's baseline sums it over rivals.

    Args:
        scale: > 0, in units of the scores; ``training.ScaleSchedule`` may lower it.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Nguyen & Sanner, ICML 2013.

    >>> PolynomialLoss()(torch.tensor([[0.5, 0.0]]), torch.tensor([0]))
    tensor(0.1562)
    """

    def __init__(self, scale: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.scale = _positive("scale", scale)

    def of_lead(self, lead: Tensor) -> Tensor:
        d = (lead / self.scale).clamp(-1, 1)
        return d**3 / 4 - 3 * d / 4 + 0.5


class BetaBernoulliLoss(_IndexLoss):
    r"""Beta-Bernoulli loss: −log(w · θ_y + (1 − w) · softmax(z / scale)_y), with w and θ trained along with the model.

    The model's probability is shrunk toward a prior mean θ, so that no sample costs more than −log(w θ_y). θ is a
    distribution over the classes, which makes the mixture a likelihood: then w and θ can be learnt. **Give the loss's
    parameters to the optimiser** beside the model's. EXACT's baseline has the same value at its start (two classes, w = θ = ½)
    but never trains either, uses one θ for all labels, with which the optimum is the trivial w = θ = 1, and sums over rivals.

    Args:
        num_classes: C, to learn θ as a (C,) distribution; None keeps θ uniform.
        scale: > 0, in units of the scores; ``training.ScaleSchedule`` may lower it.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Hasan & Pal, "A new smooth approximation to the zero one loss with a probabilistic interpretation", ACM TKDD 14
    (2020), for two classes; the Dirichlet mean in place of the Beta's is the step to more.

    >>> BetaBernoulliLoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.6931, grad_fn=<DivBackward0>)
    """

    def __init__(self, num_classes: int | None = None, scale: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.scale = _positive("scale", scale)
        self.mix_logit = nn.Parameter(torch.zeros(()))
        self.prior_logits = None if num_classes is None else nn.Parameter(torch.zeros(num_classes))

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        own = index.unsqueeze(-1)
        log_p = (scores / self.scale).log_softmax(-1).gather(-1, own).squeeze(-1)
        prior_logits = scores.new_zeros(scores.shape[-1]) if self.prior_logits is None else self.prior_logits
        log_prior = prior_logits.log_softmax(-1)[index]
        log_w, log_rest = nn.functional.logsigmoid(self.mix_logit), nn.functional.logsigmoid(-self.mix_logit)
        return -torch.logaddexp(log_w + log_prior, log_rest + log_p)


class PolyLoss(_IndexLoss):
    r"""Poly-1: cross-entropy + ε · (1 − p), p = softmax(z)_y.

    Args:
        epsilon: weight of the linear term, ≥ −1 (below that a right answer is punished).
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Leng et al., "PolyLoss: a polynomial expansion perspective of classification loss functions", ICLR 2022.

    >>> PolyLoss(epsilon=2.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(1.6931)
    """

    def __init__(self, epsilon: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if not epsilon >= -1:
            raise ValueError(f"epsilon: expected a number ≥ -1, got {epsilon}")
        self.epsilon = epsilon

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        log_p = scores.log_softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return -log_p + self.epsilon * neg_log_q(log_p, 0.0)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name}: expected a number > 0 in units of the scores, got {value}")
    return value
