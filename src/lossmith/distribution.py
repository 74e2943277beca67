"""The noisy argmax as a probability distribution over classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from lossmith import functional
from lossmith import noise as noises
from lossmith.inputs import check_score_values, check_scores, checked_scale, compute_type
from lossmith.noise import Noise


class PerturbedArgmax(Distribution):
    r"""Distribution of argmax_j (z_j + scale · ε_j), ε_j independent noise.

    With Gumbel noise it is the softmax, with normal noise the multinomial probit. Probabilities are exact (see
    ``lossmith.functional.argmax_log_prob`` for range, error and cost), not sampled.

    Args:
        scores: (…, C), C ≥ 2 raw scores; −inf removes a class.
        noise: a name, or a ``lossmith.noise.Noise``.
        scale: σ > 0: a number, or a tensor that broadcasts to ``scores[..., :1]``.
        validate_args: as in ``torch.distributions``.

    Raises:
        TypeError, ValueError: as ``lossmith.functional.argmax_log_prob``.

    >>> choice = PerturbedArgmax(torch.tensor([0.0, 1.0]))
    >>> choice.probs
    tensor([0.2398, 0.7602])
    >>> choice.log_prob(torch.tensor(1)), choice.mode
    (tensor(-0.2741), tensor(1))
    """

    has_enumerate_support = True

    def __init__(
        self,
        scores: Tensor,
        noise: str | Noise = "normal",
        scale: float | Tensor = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.noise = noises.get(noise)
        check_scores(scores)
        # In the type that is computed in: a half type would round the scale.
        self.scale = checked_scale(scale, compute_type(scores))
        check_score_values(scores)
        self.scores = scores
        super().__init__(scores.shape[:-1], validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Nothing for the base class to check: the constructor has, and it lets −inf through."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """The class indices 0 … C − 1."""
        return constraints.integer_interval(0, self.scores.shape[-1] - 1)

    @property
    def log_probs(self) -> Tensor:
        """Log-probability of each class, (…, C)."""
        return functional.argmax_log_probs(self.scores, noise=self.noise, scale=self.scale)

    @property
    def probs(self) -> Tensor:
        """Probability of each class, (…, C)."""
        return self.log_probs.exp()

    @property
    def mode(self) -> Tensor:
        """The most probable class, (…): that of the highest score."""
        return self.scores.argmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the class indices ``value``, whose shape broadcasts with the batch shape."""
        wide, index = self._broadcast(value)
        return functional.argmax_log_prob(wide.scores, index, noise=self.noise, scale=wide.scale)

    def topk_log_prob(self, value: Tensor, k: int) -> Tensor:
        """Log-probability that the class indices ``value`` are among the k highest, as ``log_prob`` is for k = 1."""
        wide, index = self._broadcast(value)
        return functional.topk_log_prob(wide.scores, index, k, noise=self.noise, scale=wide.scale)

    def _broadcast(self, value: Tensor) -> tuple[PerturbedArgmax, Tensor]:
        """The distribution and the class indices, both of the batch shape that they have together."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return self.expand(shape), value.expand(shape)

    def entropy(self) -> Tensor:
        """−Σ_k p_k log p_k in nats, (…)."""
        log_p = self.log_probs
        bounded = log_p.clamp_min(torch.finfo(log_p.dtype).min)  # 0 · log 0 is 0, with a finite gradient
        return -(log_p.exp() * bounded).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Class indices of shape ``sample_shape + (…)``: the argmax of freshly perturbed scores."""
        shape = self._extended_shape(torch.Size(sample_shape)) + self.scores.shape[-1:]
        with torch.no_grad():
            scores = compute_type(self.scores)
            noisy = scores + self.scale * self.noise.sample(shape, like=scores)
            return noisy.argmax(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All class indices, (C, …), as ``torch.distributions`` defines it."""
        classes = torch.arange(self.scores.shape[-1], device=self.scores.device)
        classes = classes.view(-1, *[1] * len(self.batch_shape))
        return classes.expand(-1, *self.batch_shape) if expand else classes

    def expand(self, batch_shape: Any, _instance: PerturbedArgmax | None = None) -> PerturbedArgmax:
        """The same distribution over a larger batch shape."""
        wide: PerturbedArgmax = self._get_checked_instance(PerturbedArgmax, _instance)  # type: ignore[no-untyped-call]
        shape = torch.Size(batch_shape)
        wide.noise = self.noise
        wide.scale = self.scale.expand(*shape, 1) if isinstance(self.scale, Tensor) else self.scale
        wide.scores = self.scores.expand(*shape, -1)  # checked when this distribution was made
        super(PerturbedArgmax, wide).__init__(shape, validate_args=False)
        wide._validate_args = self._validate_args
        return wide
