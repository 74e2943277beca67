"""Last layers that say how noisy their scores are."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["PerturbedHead"]


class PerturbedHead(nn.Module):
    r"""A last layer with a noise level of its own: scores μ(x) / σ(x), for a loss with scale=1.

    μ(x) = W x + b, and a class wins with probability P(argmax_j (μ_j + σ ε_j) = k) = P(argmax_j (μ_j / σ + ε_j) = k). Since
    σ > 0 is one number a sample, the predicted class is that of μ. Three kinds of σ:

    - "learned": softplus(a) + min_scale, one parameter a. W and b could say the same by their size, so it changes the path of a
      training, and what weight decay means, but not what the head can express.
    - "input": softplus(v·x + a) + min_scale: each sample has its own, which W and b cannot say.
    - a number: fixed.

    The first two start at σ = 1 for every x (v = 0) and stay above ``min_scale``, so nothing is divided by zero.

    Args:
        in_features: length of x, ≥ 1.
        num_classes: C ≥ 2.
        scale: "learned", "input", or a number > 0 in units of μ.
        bias: whether μ has a bias b; σ always has.
        min_scale: lower bound of a learned σ, in (0, 1), in units of μ.
        device, dtype: of the parameters, as in ``torch.nn.Linear``.

    Shape:
        x (…, in_features) to scores (…, C). Half types, under autocast or as the head's own, compute μ as ``torch.nn.Linear``
        does and σ and the quotient in float32, which is what comes out: μ / σ may leave the range of float16.

    Raises:
        ValueError: an argument out of range, or x of another length.
        TypeError: ``scale`` is neither a name nor a number; x is not floating point.

    Cost: ``torch.nn.Linear``'s with C (+ 1) outputs, and a division.
    Source: the stochastic classifier N(μ(x), σ(x)² I) of EXACT: Karpukhin, Dereka & Kolesnikov, 2022.

    >>> head = PerturbedHead(4, 3, scale="input")
    >>> x = torch.ones(2, 4)
    >>> mean, sigma = head.mean_and_scale(x)
    >>> sigma.shape
    torch.Size([2, 1])
    >>> torch.allclose(sigma, torch.ones(2, 1)), torch.equal(head(x), mean / sigma)
    (True, True)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        scale: Literal["learned", "input"] | float = "learned",
        *,
        bias: bool = True,
        min_scale: float = 1e-3,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("in_features", in_features, 1), ("num_classes", num_classes, 2)):
            if value < least:
                raise ValueError(f"{name}: expected a whole number ≥ {least}, got {value}")
        if not 0 < min_scale < 1:
            raise ValueError(f"min_scale: expected a number between 0 and 1, where σ starts, got {min_scale}")
        if isinstance(scale, str):
            if scale not in ("learned", "input"):
                raise ValueError(f"scale: expected 'learned', 'input' or a number > 0, got {scale!r}")
        elif not isinstance(scale, Real) or isinstance(scale, bool):
            raise TypeError(f"scale: expected 'learned', 'input' or a number > 0, got {type(scale).__name__}")
        elif not 0 < scale < math.inf:
            raise ValueError(f"scale: expected 'learned', 'input' or a finite number > 0, got {scale}")
        self.in_features, self.num_classes = in_features, num_classes
        self.scale: str | float = scale if isinstance(scale, str) else float(scale)
        self.min_scale = min_scale
        self.mean = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        if scale == "learned":
            self.raw_scale = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        elif scale == "input":
            self.raw_scale_of = nn.Linear(in_features, 1, device=device, dtype=dtype)
        self._start_scale_at_one()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw W and b anew, as ``torch.nn.Linear`` does, and set σ back to 1."""
        self.mean.reset_parameters()
        self._start_scale_at_one()

    @torch.no_grad()
    def _start_scale_at_one(self) -> None:
        raw = math.log(math.expm1(1 - self.min_scale))  # softplus(raw) = 1 − min_scale
        if self.scale == "learned":
            self.raw_scale.fill_(raw)
        elif self.scale == "input":
            self.raw_scale_of.weight.zero_()
            self.raw_scale_of.bias.fill_(raw)

    def mean_and_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ (…, C) and σ (…, 1) of x (…, in_features), as ``PerturbedArgmax(mean, scale=sigma)`` takes them."""
        if not x.is_floating_point():
            raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected shape (…, {self.in_features}), got {tuple(x.shape)}")
        mean = self.mean(x)
        wide = torch.promote_types(mean.dtype, torch.float32)
        if isinstance(self.scale, float):
            return mean, mean.new_full((*mean.shape[:-1], 1), self.scale, dtype=wide)
        raw = self.raw_scale.expand(*mean.shape[:-1], 1) if self.scale == "learned" else self.raw_scale_of(x)
        return mean, nn.functional.softplus(raw.to(wide)) + self.min_scale

    def forward(self, x: Tensor) -> Tensor:
        """Scores μ / σ (…, C) of x (…, in_features)."""
        mean, sigma = self.mean_and_scale(x)
        return mean / sigma

    def extra_repr(self) -> str:
        """What the submodules do not show."""
        return f"scale={self.scale!r}, min_scale={self.min_scale}"
