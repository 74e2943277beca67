r"""The noise ε that perturbs the scores: s_j = z_j + scale · ε_j, with cdf F and density f.

Each distribution is standard (location 0, unit scale parameter). The threshold engine asks it for log f and log F, both
differentiable, and for the first two derivatives of both, with which it finds where the integrand lives. Where a
formula without an integral exists, ``closed_form_log_probs`` gives it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lossmith.errors import near
from lossmith.special import SQRT_2, inverse_mills, log_ndtr

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Noise(ABC):
    """A standard distribution of the perturbation; subclasses are stateless, so one instance serves everywhere.

    The engine requires that log f and log F are concave, and that their derivatives are convex (both hold for normal
    and Gumbel noise): then the threshold integrand has one mode, and Newton's method reaches it from the left.
    """

    name: str
    mode: float  # of the density f

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the density, log f(x), same shape and dtype as ``x``."""

    @abstractmethod
    def log_cdf(self, x: Tensor) -> Tensor:
        """Logarithm of the distribution function, log F(x), same shape and dtype as ``x``; accurate in both tails."""

    @abstractmethod
    def icdf(self, p: Tensor) -> Tensor:
        """Quantile F⁻¹(p) for p in (0, 1), same shape and dtype as ``p``."""

    @abstractmethod
    def score(self, x: Tensor) -> Tensor:
        """First derivative of log f."""

    @abstractmethod
    def score_slope(self, x: Tensor) -> Tensor:
        """Second derivative of log f."""

    @abstractmethod
    def hazard(self, x: Tensor) -> Tensor:
        """First derivative of log F, the reversed hazard rate f/F; 0 at +inf."""

    @abstractmethod
    def hazard_slope(self, x: Tensor) -> Tensor:
        """Second derivative of log F; 0 at +inf."""

    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function F(x), same shape and dtype as ``x``."""
        return self.log_cdf(x).exp()

    def sample(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Independent draws of the given shape, with the dtype and device of ``like``, from torch's global generator."""
        tiny = torch.finfo(like.dtype).tiny
        uniform = torch.rand(tuple(shape), dtype=like.dtype, device=like.device).clamp_min(tiny)
        return self.icdf(uniform)

    def closed_form_log_probs(self, scores: Tensor) -> Tensor | None:
        """log P(argmax_j (scores_j + ε_j) = k) for every class k, (…, C), where a formula is known; otherwise None."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Normal(Noise):
    r"""Standard normal noise: the multinomial probit. For two classes, P(k wins) = Φ((z_k − z_l)/√2).

    >>> Normal().log_cdf(torch.tensor([0.0]))
    tensor([-0.6931])
    """

    name = "normal"
    mode = 0.0

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x * x - LOG_SQRT_2PI

    def log_cdf(self, x: Tensor) -> Tensor:
        return log_ndtr(x)

    def icdf(self, p: Tensor) -> Tensor:
        return torch.special.ndtri(p)

    def score(self, x: Tensor) -> Tensor:
        return -x

    def score_slope(self, x: Tensor) -> Tensor:
        return -torch.ones_like(x)

    def hazard(self, x: Tensor) -> Tensor:
        return inverse_mills(x)

    def hazard_slope(self, x: Tensor) -> Tensor:
        hazard = inverse_mills(x)
        slope = torch.where(hazard == 0, 0.0, -hazard * (x + hazard))
        return torch.where(x < -1e4, -1.0, slope)  # its limit, where x + hazard ≈ 1/|x| would be rounding error

    def sample(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)

    def closed_form_log_probs(self, scores: Tensor) -> Tensor | None:
        if scores.shape[-1] != 2:
            return None
        lead = (scores - scores.flip(-1)) / SQRT_2
        return log_ndtr(torch.where(lead.isinf(), lead.detach(), lead))  # a removed class has no gradient


class Gumbel(Noise):
    r"""Standard Gumbel noise, F(x) = exp(−exp(−x)): P(k wins) = softmax(z)_k, so q = 1 is cross-entropy.

    >>> Gumbel().closed_form_log_probs(torch.tensor([0.0, 0.0]))
    tensor([-0.6931, -0.6931])
    """

    name = "gumbel"
    mode = 0.0

    def log_prob(self, x: Tensor) -> Tensor:
        return -x - torch.exp(-x)

    def log_cdf(self, x: Tensor) -> Tensor:
        return -torch.exp(-x)

    def icdf(self, p: Tensor) -> Tensor:
        return -torch.log(-torch.log(p))

    def score(self, x: Tensor) -> Tensor:
        return torch.expm1(-x)

    def score_slope(self, x: Tensor) -> Tensor:
        return -torch.exp(-x)

    def hazard(self, x: Tensor) -> Tensor:
        return torch.exp(-x)

    def hazard_slope(self, x: Tensor) -> Tensor:
        return -torch.exp(-x)

    def closed_form_log_probs(self, scores: Tensor) -> Tensor | None:
        return torch.log_softmax(scores, dim=-1)


NOISES: dict[str, Noise] = {noise.name: noise for noise in (Normal(), Gumbel())}


def get(noise: str | Noise) -> Noise:
    """The distribution of that name, or the given one.

    Raises:
        ValueError: the name is unknown; the message lists the near ones.
        TypeError: neither a name nor a ``Noise``.

    >>> get("gumbel")
    Gumbel()
    """
    if isinstance(noise, Noise):
        return noise
    if not isinstance(noise, str):
        raise TypeError(f"noise: expected a name or a lossmith.noise.Noise, got {type(noise).__name__}")
    if noise not in NOISES:
        raise ValueError(f"noise: unknown name {noise!r}; {near(noise, NOISES)}")
    return NOISES[noise]
