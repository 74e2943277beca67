"""Losses of the target's softmax probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lossmith.inputs import check_number
from lossmith.losses.base import Reduction
from lossmith.maths.qlog import neg_log_q
from lossmith.surrogates.base import IndexLoss, own_log_prob, positive


class BetaBernoulliLoss(IndexLoss):
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

    def __init__(
        self,
        num_classes: int | None = None,
        scale: float = 1.0,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        self.scale = positive("scale", scale)
        self.mix_logit = nn.Parameter(torch.zeros(()))
        self.prior_logits = None if num_classes is None else nn.Parameter(torch.zeros(num_classes))

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        log_p = own_log_prob(scores / self.scale, index)
        prior_logits = scores.new_zeros(scores.shape[-1]) if self.prior_logits is None else self.prior_logits
        log_prior = prior_logits.log_softmax(-1)[index]
        log_w, log_rest = nn.functional.logsigmoid(self.mix_logit), nn.functional.logsigmoid(-self.mix_logit)
        return -torch.logaddexp(log_w + log_prior, log_rest + log_p)


class PolyLoss(IndexLoss):
    r"""Poly-1: cross-entropy + ε · (1 − p), p = softmax(z)_y.

    Args:
        epsilon: weight of the linear term, ≥ −1 (below that a right answer is punished).
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Leng et al., "PolyLoss: a polynomial expansion perspective of classification loss functions", ICLR 2022.

    >>> PolyLoss(epsilon=2.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(1.6931)
    """

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        check_number("epsilon", epsilon)
        if not epsilon >= -1:
            raise ValueError(f"epsilon: expected a number ≥ -1, got {epsilon}")
        self.epsilon = epsilon

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        log_p = own_log_prob(scores, index)
        return -log_p + self.epsilon * neg_log_q(log_p, 0.0)


class GammaCrossEntropyLoss(IndexLoss):
    r"""Gamma cross-entropy: −log(γ + (1 − γ) · p) / (1 − γ), p = softmax(z)_y.

    It bounds what a sample can cost. γ = 0 is cross-entropy; γ → 1 tends to 1 − p, the smooth error. The gradient is that of
    cross-entropy times p / (γ + (1 − γ) · p): nearly whole where p ≫ γ, and fading where p ≪ γ. As few as γ = 1e-7 has
    been used for language models trained from scratch, 0.1 and more for fine-tuning.

    Args:
        gamma: γ, 0 ≤ γ < 1. For the limit 1 take ``lossmith.AccuracyLoss(noise="gumbel", q=0.0)``.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Raises:
        ValueError: γ out of range.

    Range: from 0 at p = 1 to −log γ / (1 − γ) at p = 0, or inf for γ = 0. From log p: the value keeps its digits where p
    underflows, as p → 1 and as γ → 1.
    Cost: that of cross-entropy.
    Source: Ji et al., "Tailoring language generation models under total variation distance", ICLR 2023, whose gradient this
    loss has.

    >>> GammaCrossEntropyLoss(0.5)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.5754)
    """

    def __init__(
        self,
        gamma: float = 0.1,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        check_number("gamma", gamma)
        if not 0 <= gamma < 1:
            raise ValueError(
                f"gamma: expected a number ≥ 0 and < 1, got {gamma}; the limit 1 is AccuracyLoss(noise='gumbel', q=0.0)"
            )
        self.gamma = gamma

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        log_p = own_log_prob(scores, index)
        if self.gamma == 0:
            return -log_p
        rest = 1 - self.gamma
        # γ + (1 − γ) p = 1 − miss. Near 1 its logarithm keeps its digits by log1p, far from 1 as the sum of two logarithms.
        miss = rest * neg_log_q(log_p, 0.0)
        near = -torch.log1p(-miss.clamp_max(0.5))
        far = -torch.logaddexp(log_p + math.log1p(-self.gamma), log_p.new_tensor(math.log(self.gamma)))
        return torch.where(miss < 0.5, near, far) / rest  # at ½ torch's versions differ in the slope of clamp_max
