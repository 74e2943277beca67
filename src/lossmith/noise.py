r"""The noise ε that perturbs the scores: s_j = z_j + scale · ε_j, with cdf F and density f.

Each distribution is standard (as in SciPy, location 0 and unit scale). Three functions define one: log f, log F and the
quantile F⁻¹; the threshold integral needs nothing else. Where a formula without an integral exists,
``closed_form_log_probs`` gives it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lossmith.errors import near
from lossmith.maths.scan import decayed_cumsum
from lossmith.maths.special import (
    LOG_2,
    SQRT_2,
    leader_from_rivals,
    log1mexp,
    log_ndtr,
    log_student_cdf,
    log_student_pdf,
    student_icdf,
)

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Noise(ABC):
    """A standard distribution of the perturbation; stateless, so one instance serves everywhere.

    A noise of one's own subclasses this and gives ``log_prob``, ``log_cdf`` and ``icdf`` (or passes them to ``Custom``).
    Both logarithms must be differentiable twice, hold in the tails (the threshold integral visits F far below 1e-300), be
    −inf or 0 outside the support and at ±inf, and keep the relative accuracy of log F near 0, as in log1p(−survival).

    Attributes:
        name: what ``get`` and ``repr`` call it.
        kinks: the points where f or F is not smooth, ends of the support included: no panel of nodes may straddle one.
        unimodal: whether f has a single peak, about as wide as the middle half of the distribution. If not, more nodes look for
            peaks; one with less than 2 % of the mass far from the others may still be missed.
    """

    name: str = "custom"
    kinks: tuple[float, ...] = ()
    unimodal: bool = False

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the density, log f(x), same shape and dtype as ``x``."""

    @abstractmethod
    def log_cdf(self, x: Tensor) -> Tensor:
        """Logarithm of the distribution function, log F(x), same shape and dtype as ``x``; accurate in both tails."""

    @abstractmethod
    def icdf(self, p: Tensor) -> Tensor:
        """Quantile F⁻¹(p) for p in (0, 1), same shape and dtype as ``p``."""

    def log_sf(self, x: Tensor) -> Tensor:
        """Logarithm of the survival function, log(1 − F(x)), same shape and dtype as ``x``."""
        return log1mexp(self.log_cdf(x))

    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function F(x), same shape and dtype as ``x``."""
        return self.log_cdf(x).exp()

    def sample(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Independent draws of the given shape, with the dtype and device of ``like``, from torch's global generator."""
        # In float64: a float32 uniform has no values below 6e-8, and so no tails.
        uniform = torch.rand(tuple(shape), dtype=torch.float64, device=like.device)
        return self.icdf(uniform.clamp_min(2.0**-54)).to(like)

    def has_closed_form(self, classes: int) -> bool:
        """Whether ``closed_form_log_probs`` serves that many classes."""
        return False

    def closed_form_log_probs(self, scores: Tensor) -> Tensor:
        """log P(argmax_j (scores_j + ε_j) = k) for every class k, (…, C), by a formula."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Custom(Noise):
    """A noise from three functions; see ``Noise`` for what they must hold.

    Args:
        log_prob: tensor to tensor, log f.
        log_cdf: tensor to tensor, log F.
        icdf: tensor of probabilities to tensor, F⁻¹.
        kinks: where f or F is not smooth.
        name: for messages.

    >>> softplus = torch.nn.functional.softplus
    >>> logistic = Custom(lambda x: x - 2 * softplus(x), lambda x: -softplus(-x), torch.logit)
    >>> logistic.cdf(torch.tensor([0.0]))
    tensor([0.5000])
    """

    def __init__(
        self,
        log_prob: Callable[[Tensor], Tensor],
        log_cdf: Callable[[Tensor], Tensor],
        icdf: Callable[[Tensor], Tensor],
        *,
        kinks: Sequence[float] = (),
        name: str = "custom",
    ) -> None:
        self._log_prob, self._log_cdf, self._icdf = log_prob, log_cdf, icdf
        self.kinks, self.name = tuple(kinks), name

    def log_prob(self, x: Tensor) -> Tensor:
        return self._log_prob(x)

    def log_cdf(self, x: Tensor) -> Tensor:
        return self._log_cdf(x)

    def icdf(self, p: Tensor) -> Tensor:
        return self._icdf(p)

    def __repr__(self) -> str:
        return f"Custom(name={self.name!r})"


class Normal(Noise):
    r"""Standard normal noise: the multinomial probit. For two classes, P(k wins) = Φ((z_k − z_l)/√2).

    >>> Normal().log_cdf(torch.tensor([0.0]))
    tensor([-0.6931])
    """

    name = "normal"
    unimodal = True

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x * x - LOG_SQRT_2PI

    def log_cdf(self, x: Tensor) -> Tensor:
        return log_ndtr(x)

    def log_sf(self, x: Tensor) -> Tensor:
        return log_ndtr(-x)

    def icdf(self, p: Tensor) -> Tensor:
        return torch.special.ndtri(p)

    def sample(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)

    def has_closed_form(self, classes: int) -> bool:
        return classes == 2

    def closed_form_log_probs(self, scores: Tensor) -> Tensor:
        lead = (scores - scores.flip(-1)) / SQRT_2
        return log_ndtr(torch.where(lead.isinf(), lead.detach(), lead))  # a removed class has no gradient


class Gumbel(Noise):
    r"""Standard Gumbel noise, F(x) = exp(−exp(−x)): P(k wins) = softmax(z)_k, so q = 1 is cross-entropy.

    >>> Gumbel().closed_form_log_probs(torch.tensor([0.0, 0.0]))
    tensor([-0.6931, -0.6931])
    """

    name = "gumbel"
    unimodal = True

    def log_prob(self, x: Tensor) -> Tensor:
        return -x - torch.exp(-x)

    def log_cdf(self, x: Tensor) -> Tensor:
        return -torch.exp(-x)

    def icdf(self, p: Tensor) -> Tensor:
        return -torch.log(-torch.log(p))

    def has_closed_form(self, classes: int) -> bool:
        return True

    def closed_form_log_probs(self, scores: Tensor) -> Tensor:
        # In float64: float32 sums of 50,000 classes are off by more than 1e-6.
        return leader_from_rivals(torch.log_softmax(scores.double(), dim=-1)).to(scores.dtype)


class Logistic(Noise):
    r"""Standard logistic noise, F(x) = 1/(1 + exp(−x)); its variance is π²/3.

    >>> Logistic().log_cdf(torch.tensor([0.0]))
    tensor([-0.6931])
    """

    name = "logistic"
    unimodal = True

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_cdf(x) + self.log_cdf(-x)

    def log_cdf(self, x: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(x)

    def log_sf(self, x: Tensor) -> Tensor:
        return self.log_cdf(-x)

    def icdf(self, p: Tensor) -> Tensor:
        return torch.logit(p)


class Laplace(Noise):
    r"""Standard Laplace noise, f(x) = exp(−|x|)/2; its variance is 2.

    >>> Laplace().log_cdf(torch.tensor([0.0]))
    tensor([-0.6931])
    """

    name = "laplace"
    unimodal = True
    kinks = (0.0,)

    def log_prob(self, x: Tensor) -> Tensor:
        return -x.abs() - LOG_2

    def log_cdf(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, x - LOG_2, torch.log1p(-0.5 * torch.exp(-x.abs())))

    def log_sf(self, x: Tensor) -> Tensor:
        return self.log_cdf(-x)

    def icdf(self, p: Tensor) -> Tensor:
        return torch.where(p < 0.5, torch.log(2 * p), -torch.log(2 * (1 - p)))


class StudentT(Noise):
    r"""Student's t noise: algebraic tails, F(x) ~ |x|^(−df). A far rival keeps a chance, and a far lead is never safe.

    Args:
        df: degrees of freedom > 0; 1 is Cauchy noise.

    F is computed on the CPU in float64, whatever the device (``special.log_student_cdf``).

    >>> StudentT(1).log_cdf(torch.tensor([0.0]))
    tensor([-0.6931])
    """

    name = "studentt"
    unimodal = True

    def __init__(self, df: float = 3.0) -> None:
        if not (math.isfinite(df) and df > 0):
            raise ValueError(f"df: expected a finite number of degrees of freedom > 0, got {df}")
        self.df = float(df)

    def log_prob(self, x: Tensor) -> Tensor:
        return log_student_pdf(x, self.df)

    def log_cdf(self, x: Tensor) -> Tensor:
        return log_student_cdf(x, self.df)

    def log_sf(self, x: Tensor) -> Tensor:
        return log_student_cdf(-x, self.df)

    def icdf(self, p: Tensor) -> Tensor:
        return student_icdf(p, self.df)

    def __repr__(self) -> str:
        return f"StudentT(df={self.df:g})"


class Uniform(Noise):
    r"""Uniform noise on [0, 1]: a class a whole scale behind the leader has probability 0, and log-probability −inf.

    >>> Uniform().log_cdf(torch.tensor([-1.0, 0.5, 2.0]))
    tensor([   -inf, -0.6931,  0.0000])
    """

    name = "uniform"
    unimodal = True
    kinks = (0.0, 1.0)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where((x >= 0) & (x <= 1), 0.0, -math.inf).to(x)

    def log_cdf(self, x: Tensor) -> Tensor:
        inside = (x > 0) & (x < 1)
        return torch.where(inside, torch.log(torch.where(inside, x, 1.0)), torch.where(x > 0, 0.0, -math.inf).to(x))

    def log_sf(self, x: Tensor) -> Tensor:
        return self.log_cdf(1 - x)

    def icdf(self, p: Tensor) -> Tensor:
        return p


class Exponential(Noise):
    r"""Minus an Exp(1) variable, F(x) = eˣ for x ≤ 0: the score is what a class reaches at best.

    P(k wins) has a closed form, the exponomial choice model. With the scores ascending, n_i = C − i + 1 of them from the
    i-th on, and g_i = exp(−Σ_{j≥i} (z_j − z_i)),

        P(r-th wins) = g_r / n_r − Σ_{i<r} g_i / (n_i (n_i − 1)),

    all relative to g_r, so that far tails keep their digits; O(C log C). Source: Alptekinoğlu & Semple, "The exponomial
    choice model", Operations Research 64(1), 2016.

    >>> Exponential().closed_form_log_probs(torch.tensor([0.0, 0.0])).exp()
    tensor([0.5000, 0.5000])
    """

    name = "exponential"
    unimodal = True
    kinks = (0.0,)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where(x <= 0, x, -math.inf)

    def log_cdf(self, x: Tensor) -> Tensor:
        return x.clamp_max(0.0)

    def icdf(self, p: Tensor) -> Tensor:
        return torch.log(p)

    def has_closed_form(self, classes: int) -> bool:
        return True

    def closed_form_log_probs(self, scores: Tensor) -> Tensor:
        classes = scores.shape[-1]
        z, order = scores.double().sort(-1)  # the difference below loses a factor C of the rounding error
        removed = z.isneginf()
        z = torch.where(removed, z.amax(-1, keepdim=True).detach() - 1e18, z)  # finite, and without a gradient
        n = torch.arange(classes, 0, -1, dtype=z.dtype, device=z.device)
        steps = n[1:] * z.diff(dim=-1)
        log_g = -torch.nn.functional.pad(steps.flip(-1).cumsum(-1).flip(-1), (0, 1))
        inverse = 1 / n
        share = torch.nn.functional.pad(1 / (n[:-1] * (n[:-1] - 1)), (0, 1)).expand_as(z)
        log_p = torch.log(inverse - decayed_cumsum(share, log_g)) + log_g
        log_p = leader_from_rivals(torch.where(removed, -math.inf, log_p))
        return torch.zeros_like(log_p).scatter(-1, order, log_p).to(scores.dtype)


NOISES: dict[str, Noise] = {
    noise.name: noise for noise in (Normal(), Gumbel(), Logistic(), Laplace(), StudentT(), Uniform(), Exponential())
}


def get(noise: str | Noise) -> Noise:
    """The distribution of that name, or the given one. "studentt" has 3 degrees of freedom.

    Raises:
        ValueError: the name is unknown; the message lists the near ones.
        TypeError: neither a name nor a ``Noise``.

    >>> get("gumbel")
    Gumbel()
    """
    if isinstance(noise, Noise):
        return noise
    if not isinstance(noise, str):
        got = f"the class {noise.__name__}; pass {noise.__name__}()" if isinstance(noise, type) else type(noise).__name__
        raise TypeError(f"noise: expected a name or a lossmith.noise.Noise, got {got}")
    if noise not in NOISES:
        raise ValueError(f"noise: unknown name {noise!r}; {near(noise, NOISES)}")
    return NOISES[noise]


_own: dict[str, Noise] = {}


def key(noise: Noise) -> str:
    """A string that stands for the noise where only strings can go; ``by_key`` is the way back.

    Equal for equal built-in distributions. A noise of one's own is kept alive from then on.
    """
    if type(noise).__module__ == __name__ and not isinstance(noise, Custom):
        return f"{noise.name}:{noise.df!r}" if isinstance(noise, StudentT) else noise.name
    name = f"own:{id(noise)}"
    _own[name] = noise
    return name


def by_key(key: str) -> Noise:
    """The noise that a ``key`` stands for."""
    if key in _own:
        return _own[key]
    name, _, df = key.partition(":")
    return StudentT(float(df)) if df else NOISES[name]
