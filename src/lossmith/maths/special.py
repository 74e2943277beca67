r"""Special functions whose value and derivatives hold in the tails.

``torch.special.log_ndtr`` has the right value far out. Torch forms the derivative as exp(log φ − log Φ), which cancels: in
float32 the derivative is 4 % off at −1000. Here the derivative is the inverse Mills ratio (N1). The equations (N…) are in
``docs/how/numbers.md``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SQRT_2 = math.sqrt(2.0)
SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
LOG_2 = math.log(2.0)


class _OfOne(torch.autograd.Function):
    """A function of one tensor, element by element, which is what its backward needs, as ``torch.func`` can transform it."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _InverseMills(_OfOne):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return SQRT_2_OVER_PI / torch.special.erfcx(x / -SQRT_2)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return inverse_mills(x), in_dims[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        m = inverse_mills(x)
        # r′ of (N1). At +inf the product would be 0 · inf, and the ratio is flat.
        return -grad * m * torch.where(m == 0, 0.0, x + m)


class _LogNdtr(_OfOne):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.special.log_ndtr(x)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return log_ndtr(x), in_dims[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * inverse_mills(x)


def log_ndtr(x: Tensor) -> Tensor:
    r"""Logarithm of the standard normal distribution function, log Φ(x).

    Args:
        x: float32 or float64, any shape; ±inf allowed.

    Returns:
        log Φ(x), same shape and dtype, twice differentiable. The derivative φ(x)/Φ(x) is good to a few units in the last
        place for every x; the second derivative loses x² units of rounding as x → −∞.

    Source: Abramowitz & Stegun 7.1 (erfcx, as in ``torch.special.erfcx``).

    >>> log_ndtr(torch.tensor([-40.0], dtype=torch.float64))
    tensor([-804.6084], dtype=torch.float64)
    """
    return _LogNdtr.apply(x)  # type: ignore[no-untyped-call]


def inverse_mills(x: Tensor) -> Tensor:
    r"""Inverse Mills ratio φ(x)/Φ(x) = √(2/π) / erfcx(−x/√2), the derivative of log Φ (N1).

    Args:
        x: float32 or float64, any shape; ±inf allowed.

    Returns:
        φ(x)/Φ(x), same shape and dtype, differentiable: −x as x → −∞, and 0 once φ(x) underflows.

    >>> inverse_mills(torch.tensor([0.0], dtype=torch.float64))
    tensor([0.7979], dtype=torch.float64)
    """
    return _InverseMills.apply(x)  # type: ignore[no-untyped-call]


def log1mexp(x: Tensor) -> Tensor:
    r"""log(1 − eˣ) for x ≤ 0, with no digits lost at either end (N2).

    Args:
        x: ≤ 0, any floating type and shape.

    Returns:
        Same shape and dtype, twice differentiable; −inf where x = 0, with derivative 0 there.

    Source: Mächler, "Accurately computing log(1 − exp(−|a|))", R package Rmpfr, 2012.

    >>> log1mexp(torch.tensor([-1e-30, -50.0], dtype=torch.float64))
    tensor([-6.9078e+01, -1.9287e-22], dtype=torch.float64)
    """
    zero = x >= 0
    safe = torch.where(zero, -1.0, x)
    near = safe > -LOG_2
    log = torch.where(
        near, torch.log(-torch.expm1(torch.where(near, safe, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, safe)))
    )
    return torch.where(zero, -math.inf, log)


class _LogStudentCdf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, df: float) -> Tensor:
        log_cdf = torch.from_numpy(_log_student_cdf(x.detach().double().cpu().numpy(), df)).to(x)
        ctx.save_for_backward(x, log_cdf)
        ctx.df = df
        return log_cdf

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, log_cdf = ctx.saved_tensors
        return grad * torch.exp(log_student_pdf(x, ctx.df) - log_cdf), None


def _log_student_cdf(x: NDArray[np.float64], df: float) -> NDArray[np.float64]:
    import scipy.special  # a tenth of a second, which only Student's t needs

    far = np.abs(np.atleast_1d(x))
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        tail = np.arctan2(1.0, far) / math.pi if df == 1 else scipy.special.stdtr(df, -far)
        log_tail = np.log(tail)
        lost = (tail < 1e-290) & np.isfinite(far)  # near underflow; the series of the incomplete beta function goes on
        if lost.any():
            a, w = df / 2, 1 / (1 + far[lost] * far[lost] / df)
            log_w = math.log(df) - 2 * np.log(far[lost]) - np.log1p(df / far[lost] / far[lost])
            series = np.log(scipy.special.hyp2f1(a + 0.5, 1.0, a + 1.0, w)) + 0.5 * np.log1p(-w)
            log_tail[lost] = a * log_w + series - math.log(2 * a) - scipy.special.betaln(a, 0.5)
        return np.where(np.atleast_1d(x) < 0, log_tail, np.log1p(-tail)).reshape(x.shape)


def log_student_cdf(x: Tensor, df: float) -> Tensor:
    r"""Logarithm of the distribution function of Student's t.

    Args:
        x: float32 or float64, any shape; ±inf allowed. It is computed on the CPU in float64 wherever it lies.
        df: degrees of freedom > 0; 1 is the Cauchy distribution.

    Returns:
        log F(x), same shape, dtype and device; twice differentiable.

    Source: ``scipy.special.stdtr``; where that underflows, Abramowitz & Stegun 26.5.4.

    >>> log_student_cdf(torch.tensor([0.0, 1e6]), 1.0)
    tensor([-6.9315e-01, -3.1831e-07])
    """
    return _LogStudentCdf.apply(x, df)  # type: ignore[no-untyped-call]


def student_icdf(p: Tensor, df: float) -> Tensor:
    """Quantile of Student's t, same shape, dtype and device as ``p``; not differentiable. Source: ``scipy.special.stdtrit``."""
    import scipy.special

    return torch.from_numpy(np.asarray(scipy.special.stdtrit(df, p.detach().double().cpu().numpy()))).to(p)


def log_student_pdf(x: Tensor, df: float) -> Tensor:
    r"""Logarithm of the density of Student's t, −(df+1)/2 · log(1 + x²/df) − log(√df · B(df/2, 1/2)).

    >>> log_student_pdf(torch.tensor([0.0]), 1.0).exp()
    tensor([0.3183])
    """
    constant = 0.5 * math.log(df * math.pi) + math.lgamma(df / 2) - math.lgamma((df + 1) / 2)
    # x² would overflow where the tail of a small df still counts.
    return -(df + 1) * torch.hypot(torch.ones_like(x), x / math.sqrt(df)).log() - constant


def leader_from_rivals(log_p: Tensor) -> Tensor:
    """Log-probabilities (…, C), a class above one half from the sum of its rivals (N4), (N5), lest p → 1 lose digits."""
    leader = log_p.detach().argmax(-1, keepdim=True)
    is_leader = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, leader, True)
    rivals = torch.where(is_leader, -math.inf, log_p)
    peak = rivals.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(log_p.dtype).min)
    # The sum of (N4) is 1 or more. If every rival is removed, the bound keeps the logarithm and its gradient finite.
    rest = (rivals - peak).exp().sum(-1, keepdim=True).clamp_min(0.5).log() + peak
    sure = is_leader & (rest < -LOG_2)
    return torch.where(sure, log1mexp(torch.where(sure, rest, -1.0)), log_p)
