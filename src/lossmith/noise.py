r"""The noise ε that perturbs the scores: s_j = z_j + scale · ε_j, with cdf F and density f.

Each distribution is standard (as in SciPy, location 0 and unit scale). Three functions define one: log f, log F and the
quantile F⁻¹; the threshold integral needs nothing else. Where a formula without an integral exists,
``closed_form_log_probs`` gives it.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

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
PROBABILITIES = (0.03, 0.21, 0.43, 0.61, 0.83, 0.97)  # where ``Custom`` is checked; not where symmetric noises have a kink
CLOSENESS = 1e-5  # how well F⁻¹ inverts F (absolute) and f is the derivative of F (relative); rounding alone is far below


OPEN = ("Noise", "Custom")  # the classes of this module that may be subclassed
_numbers = itertools.count()
_own: WeakValueDictionary[str, Noise] = WeakValueDictionary()  # by their keys; whoever uses a noise keeps it alive


class Noise(ABC):
    """A standard distribution of the perturbation; stateless, so one instance serves everywhere.

    A noise of one's own subclasses this and gives ``log_prob``, ``log_cdf`` and ``icdf`` (or passes them to ``Custom``). The
    built-in noises are final: the engine knows formulas for them, which would be wrong for a changed one.
    Both logarithms must be differentiable twice, hold in the tails (the threshold integral visits F far below 1e-300), be
    −inf or 0 outside the support and at ±inf, and keep the relative accuracy of log F near 0, as in log1p(−survival).

    Attributes:
        name: what ``get`` and ``repr`` call it.
        kinks: the points where f or F is not smooth, ends of the support included: no panel of nodes may straddle one.
        unimodal: whether f has a single peak, about as wide as the middle half of the distribution. If not, more nodes look for
            peaks; one with less than 2 % of the mass far from the others may still be missed.
        closed_form_classes: up to how many classes ``closed_form_log_probs`` serves.
        key: a string that stands for the noise where only strings can go; ``by_key`` is the way back while the noise is alive.
            Equal for equal built-in distributions, different for any two others. Whoever keeps the key keeps the noise as well.
    """

    name: str = "custom"
    closed_form_classes: float = 0
    kinks: tuple[float, ...] = ()
    unimodal: bool = False
    key: str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        built_in = next((base for base in cls.__mro__[1:] if base.__module__ == __name__ and base.__name__ not in OPEN), None)
        if built_in is not None:
            raise TypeError(
                f"{cls.__name__}: expected a subclass of lossmith.noise.Noise, got one of the built-in {built_in.__name__}, "
                "whose formulas it would inherit; subclass Noise, or use Custom"
            )

    def __new__(cls, *args: Any, **options: Any) -> Noise:
        noise = super().__new__(cls)
        built_in = cls.__module__ == __name__ and cls.__name__ not in OPEN
        noise.key = cls.name if built_in else f"own:{next(_numbers)}"
        if not built_in:
            _own[noise.key] = noise
        return noise

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("key", "_key")}  # a copy has its own

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
        """Logarithm of the survival function, log(1 − F(x)), same shape and dtype as ``x``; from log F by (N2)."""
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
        return classes <= self.closed_form_classes

    def closed_form_log_probs(self, scores: Tensor) -> Tensor:
        """log P(argmax_j (scores_j + ε_j) = k) for every class k, (…, C), by a formula."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Custom(Noise):
    """A noise from three functions; see ``Noise`` for what they must hold.

    They are called once when the noise is made, at some quantiles on the CPU, and refused if they contradict each other.

    Args:
        log_prob: tensor to tensor, log f.
        log_cdf: tensor to tensor, log F.
        icdf: tensor of probabilities to tensor, F⁻¹.
        kinks: where f or F is not smooth.
        name: for messages.

    Raises:
        ValueError: a function raises, changes shape or dtype of a float32 or float64 tensor, gives NaN, cannot be
            differentiated (log F), or contradicts the others: F(F⁻¹(p)) is not p, or f is not the derivative of F. The message
            names the function.

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
        _check_functions(self)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._log_prob(x)

    def log_cdf(self, x: Tensor) -> Tensor:
        return self._log_cdf(x)

    def icdf(self, p: Tensor) -> Tensor:
        return self._icdf(p)

    def __repr__(self) -> str:
        """Name and quartiles, which tell most noises apart."""
        quartiles = self.icdf(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device="cpu")).tolist()
        return f"Custom(name={self.name!r}, quartiles=({', '.join(f'{x + 0.0:.4g}' for x in quartiles)}))"


def _check_functions(noise: Custom) -> None:
    """Refuse functions that are no distribution's, at ``PROBABILITIES``; see ``Custom``."""

    def values(function: str, x: Tensor, given: str) -> Tensor:
        """Of one of the three functions, checked for shape, dtype and NaN."""
        where = f"noise {noise.name!r}: {function}"
        try:
            found: Tensor = getattr(noise, function)(x)
        except Exception as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{where}: expected values at {given}, got {type(error).__name__}: {text}") from error
        if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype != x.dtype:
            got = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{where}: expected {x.dtype} of shape {tuple(x.shape)} as its input, got {got}")
        if bool(found.isnan().any()):
            raise ValueError(f"{where}: expected numbers at {given}, got nan")
        return found

    with torch.inference_mode(False), torch.enable_grad():
        p = torch.tensor(PROBABILITIES, dtype=torch.float64, device="cpu")
        for narrow in (p.float().view(2, 3), p.view(2, 3)):
            quantile = values("icdf", narrow, "probabilities in (0, 1)")
            for function in ("log_prob", "log_cdf"):
                values(function, quantile.detach(), "quantiles")
        x = values("icdf", p, "probabilities in (0, 1)").detach().requires_grad_()
        log_cdf = values("log_cdf", x, "quantiles")
        found = log_cdf.detach().exp()
        wrong = int((found - p).abs().argmax())
        if not abs(float(found[wrong] - p[wrong])) <= CLOSENESS:
            raise ValueError(
                f"noise {noise.name!r}: icdf: expected the inverse of exp(log_cdf), but F(F⁻¹({float(p[wrong]):g})) is "
                f"{float(found[wrong]):.6g}; correct icdf or log_cdf"
            )
        if not log_cdf.requires_grad:
            raise ValueError(f"noise {noise.name!r}: log_cdf: expected a function that torch.autograd can differentiate")
        (slope,) = torch.autograd.grad(log_cdf.sum(), x)
        density, derivative = values("log_prob", x, "quantiles").detach().exp(), found * slope
        kinks = torch.tensor(noise.kinks, dtype=torch.float64, device="cpu")
        smooth = ((x.detach().unsqueeze(-1) - kinks).abs() > 1e-9 * (1 + x.detach().abs().unsqueeze(-1))).all(-1)
        bad = smooth & ~((density - derivative).abs() <= CLOSENESS * torch.maximum(density, derivative))
        if bool(bad.any()):
            wrong = int(bad.int().argmax())
            got = f"exp(log_prob) is {float(density[wrong]):.6g} and the derivative {float(derivative[wrong]):.6g}"
            raise ValueError(
                f"noise {noise.name!r}: log_prob: expected the logarithm of the derivative of exp(log_cdf), but at "
                f"{float(x.detach()[wrong]):.6g} {got}; correct log_prob or log_cdf"
            )


class Normal(Noise):
    r"""Standard normal noise: the multinomial probit. For two classes, P(k wins) = Φ((z_k − z_l)/√2).

    >>> Normal().log_cdf(torch.tensor([0.0]))
    tensor([-0.6931])
    """

    name = "normal"
    closed_form_classes = 2
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

    def closed_form_log_probs(self, scores: Tensor) -> Tensor:
        lead = (scores - scores.flip(-1)) / SQRT_2
        return log_ndtr(torch.where(lead.isinf(), lead.detach(), lead))  # a removed class has no gradient


class Gumbel(Noise):
    r"""Standard Gumbel noise, F(x) = exp(−exp(−x)): P(k wins) = softmax(z)_k, so q = 1 is cross-entropy.

    >>> Gumbel().closed_form_log_probs(torch.tensor([0.0, 0.0]))
    tensor([-0.6931, -0.6931])
    """

    name = "gumbel"
    closed_form_classes = math.inf
    unimodal = True

    def log_prob(self, x: Tensor) -> Tensor:
        return -x - torch.exp(-x)

    def log_cdf(self, x: Tensor) -> Tensor:
        return -torch.exp(-x)

    def icdf(self, p: Tensor) -> Tensor:
        return -torch.log(-torch.log(p))

    def closed_form_log_probs(self, scores: Tensor) -> Tensor:
        # In float64: float32 sums of 50,000 classes are off by more than 1e-6. The leader follows from its rivals (N5).
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
    r"""Student's t noise: algebraic tails, F(x) ~ (−x)^(−df) for x → −∞.

    A far rival keeps a chance, and a far lead is never safe.

    Args:
        df: degrees of freedom > 0; 1 is Cauchy noise.

    F is computed on the CPU in float64, whatever the device (``special.log_student_cdf``).

    >>> StudentT(1).log_cdf(torch.tensor([0.0]))
    tensor([-0.6931])
    """

    name = "studentt"
    unimodal = True
    df: float

    def __init__(self, df: float = 3.0) -> None:
        if not (math.isfinite(df) and df > 0):
            raise ValueError(f"df: expected a finite number of degrees of freedom > 0, got {df}")
        self.__setstate__({"df": float(df)})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.key = f"{self.name}:{self.df!r}"

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
    closed_form_classes = math.inf
    unimodal = True
    kinks = (0.0,)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where(x <= 0, x, -math.inf)

    def log_cdf(self, x: Tensor) -> Tensor:
        return x.clamp_max(0.0)

    def icdf(self, p: Tensor) -> Tensor:
        return torch.log(p)

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
        log_p = torch.log(inverse - decayed_cumsum(share, log_g)) + log_g  # the sum over i < r is (N8)
        log_p = leader_from_rivals(torch.where(removed, -math.inf, log_p))
        return torch.zeros_like(log_p).scatter(-1, order, log_p).to(scores.dtype)


NOISES: dict[str, Noise] = {
    noise.name: noise for noise in (Normal(), Gumbel(), Logistic(), Laplace(), StudentT(), Uniform(), Exponential())
}
BUILT_IN = frozenset(type(noise) for noise in NOISES.values())


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


def by_key(key: str) -> Noise:
    """The noise that a ``key`` stands for.

    Raises:
        ValueError: it was the key of a noise of one's own that is no more, or of another process.
    """
    if key.startswith("own:"):
        noise = _own.get(key)
        if noise is None:
            raise ValueError(f"noise: expected one that is in use in this process, got the key {key!r}; keep a reference to it")
        return noise
    name, _, df = key.partition(":")
    return StudentT(float(df)) if df else NOISES[name]


def identity(noise: Noise) -> str:
    """A text that is equal for equal distributions, on every rank of a group; noises of one's own are told apart by values.

    >>> identity(StudentT(5))
    'studentt:5.0'
    """
    if type(noise) in BUILT_IN:
        return noise.key
    with torch.no_grad():
        x = noise.icdf(torch.tensor(PROBABILITIES, dtype=torch.float64, device="cpu"))
        values = [f"{float(value):.9g}" for value in torch.cat([x, noise.log_cdf(x), noise.log_prob(x)])]
    return f"{type(noise).__qualname__}:{noise.name}:{noise.kinks}:{','.join(values)}"
