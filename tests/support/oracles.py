"""What the numbers must be, by other means: adaptive integration in many digits, orthant probabilities, counting.

Nothing here imports the library or torch. Rivals are (score, count) pairs, so that thousands of equal ones cost as much as
one. Every integrand below is log-concave: it is integrated from where it has fallen by 60 nats on one side of its mode to
where it has on the other, in panels, so that a gap of 50 is as good as none.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mpmath
import numpy as np
from mpmath import mp, mpf
from numpy.typing import NDArray
from scipy import optimize, special, stats

Rivals = tuple[tuple[float, int], ...]
Array = NDArray[np.float64]

# The noises by name, as the tables of stored values call them.
SCIPY: dict[str, Any] = {
    "normal": stats.norm(),
    "gumbel": stats.gumbel_r(),
    "logistic": stats.logistic(),
    "laplace": stats.laplace(),
    "uniform": stats.uniform(),
    "exponential": stats.weibull_max(1),
    **{f"studentt:{df}": stats.t(df) for df in (1, 3, 30)},
}

DIGITS = 17
DROP = 60.0  # nats: e⁻⁶⁰ ≈ 1e-26 of the peak is left out on either side
PANELS = 5


def _log_ndtr_mp(x: mpf) -> mpf:
    return mp.log(mp.erfc(-x / mp.sqrt(2)) / 2) if x < 5 else mp.log1p(-mp.erfc(x / mp.sqrt(2)) / 2)


_LOG_DENSITY: dict[str, tuple[Callable[[Array], Array], Callable[[mpf], mpf]]] = {
    "normal": (stats.norm.logpdf, lambda x: -x * x / 2 - mp.log(2 * mp.pi) / 2),
    "gumbel": (lambda x: -x - np.exp(-x), lambda x: -x - mp.exp(-x)),
}
_LOG_CDF: dict[str, tuple[Callable[[Array], Array], Callable[[mpf], mpf]]] = {
    "normal": (special.log_ndtr, _log_ndtr_mp),
    "gumbel": (lambda x: -np.exp(-x), lambda x: -mp.exp(-x)),
}


@cache
def _log_integral(densities: tuple[float, ...], rivals: Rivals, noise: str, dps: int) -> mpf:
    """log ∫ Π_d f(u − d) Π_(z, n) F(u − z)^n du."""
    rough_pdf, exact_pdf = _LOG_DENSITY[noise]
    rough_cdf, exact_cdf = _LOG_CDF[noise]

    def rough(u: float) -> float:
        total = sum(rough_pdf(u - d) for d in densities) + sum(n * rough_cdf(u - z) for z, n in rivals)
        return float(max(total, -1e290))

    def log_integrand(u: mpf) -> mpf:
        density = mp.fsum(exact_pdf(u - d) for d in densities)
        return density + mp.fsum(n * exact_cdf(u - z) for z, n in rivals if n)

    with mp.workdps(dps), np.errstate(over="ignore"):
        centres = [*densities, *(z for z, _ in rivals)]
        low, high = min(centres) - 10.0, max(centres) + 20.0
        mode = optimize.minimize_scalar(lambda u: -rough(u), bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x
        level = rough(mode) - DROP
        first = optimize.brentq(lambda u: rough(u) - level, mode - 200.0, mode, xtol=1e-3)
        last = optimize.brentq(lambda u: rough(u) - level, mode, mode + 200.0, xtol=1e-3)
        peak = log_integrand(mpf(mode))
        panels = [mpf(x) for x in np.linspace(first, last, PANELS + 1)]
        area, error = mp.quad(
            lambda u: mp.exp(log_integrand(u) - peak), panels, method="gauss-legendre", maxdegree=5, error=True
        )
        assert error < 1e-12 * area
        return mp.log(area) + peak


def log_p_mp(own: float, rivals: Rivals, noise: str = "normal", dps: int = DIGITS) -> float:
    """log P(own + ε wins): log ∫ f(u − own) Π F(u − z)^n du."""
    return float(_log_integral((own,), rivals, noise, dps))


@cache
def gradient_mp(own: float, rivals: Rivals, noise: str = "normal", dps: int = DIGITS) -> tuple[float, ...]:
    """d log p of one class of each rival pair, in its own score: −∫ f(u − own) f(u − z_i) Π_{j≠i} F(u − z_j) du / p."""
    log_p = _log_integral((own,), rivals, noise, dps)
    slopes = []
    for i, (z, n) in enumerate(rivals):
        others = (*rivals[:i], (z, n - 1), *rivals[i + 1 :])
        slopes.append(-float(mp.exp(_log_integral((own, z), others, noise, dps) - log_p)))
    return tuple(slopes)


def log_ndtr_mp(x: float) -> float:
    """log Φ(x) in 50 digits."""
    with mpmath.workdps(50):
        return float(_log_ndtr_mp(mpf(x)))


def inverse_mills_mp(x: float) -> float:
    """φ(x)/Φ(x) in 50 digits."""
    with mpmath.workdps(50):
        return float(mp.npdf(mpf(x)) / (mp.erfc(-mpf(x) / mp.sqrt(2)) / 2))


def orthant_p(delta: Sequence[float]) -> float:
    """P(X > 0), X ~ N(delta, I + 11ᵀ), by scipy's multivariate normal: for up to five rivals."""
    d = len(delta)
    covariance = np.eye(d) + 1.0
    return float(stats.multivariate_normal.cdf(np.asarray(delta), cov=covariance, abseps=1e-8, releps=1e-8, maxpts=10**6))


def orthant_gradient(delta: Sequence[float]) -> list[float]:
    """dp/d delta_i = exp(−delta_i²/4)/(2√π) · P(Z > 0), Z ~ N(delta_{−i} − delta_i/2, I + ½ 11ᵀ)."""
    slopes = []
    for i, d in enumerate(delta):
        others = np.delete(np.asarray(delta), i) - d / 2
        covariance = np.eye(len(others)) + 0.5
        rest = stats.multivariate_normal.cdf(others, cov=covariance, abseps=1e-8, releps=1e-8, maxpts=10**6)
        slopes.append(float(np.exp(-d * d / 4) / (2 * np.sqrt(np.pi)) * rest))
    return slopes


def cdf_mp(name: str, x: mpf) -> mpf:
    """F(x) of the named noise, in mpmath's working precision."""
    kind, _, df = name.partition(":")
    if kind == "studentt":
        tail = mp.betainc(mpf(df) / 2, 0.5, 0, mpf(df) / (mpf(df) + x * x), regularized=True) / 2
        return tail if x < 0 else 1 - tail
    formulas: dict[str, Callable[[mpf], mpf]] = {
        "normal": lambda x: mp.erfc(-x / mp.sqrt(2)) / 2,
        "gumbel": lambda x: mp.exp(-mp.exp(-x)),
        "logistic": lambda x: 1 / (1 + mp.exp(-x)),
        "laplace": lambda x: mp.exp(x) / 2 if x < 0 else 1 - mp.exp(-x) / 2,
        "uniform": lambda x: min(max(x, mpf(0)), mpf(1)),
        "exponential": lambda x: mp.exp(min(x, mpf(0))),
    }
    return formulas[kind](x)


def log_cdf_mp(name: str, x: float, digits: int = 1000) -> float:
    """log F(x) of the named noise; digits enough to hold 1 − F in F."""
    with mpmath.workdps(digits):
        return float(mp.log(cdf_mp(name, mpf(x))))


def log_sf_mp(name: str, x: float, digits: int = 1000) -> float:
    """log(1 − F(x)) of the named noise."""
    with mpmath.workdps(digits):
        return float(mp.log(1 - cdf_mp(name, mpf(x))))


def noisy(scores: Sequence[float], noise: str, samples: int, seed: int) -> Array:
    """Draws of scores + ε with SciPy's generator, (samples, C)."""
    rng = np.random.default_rng(seed)
    return np.asarray(scores) + SCIPY[noise].rvs(size=(samples, len(scores)), random_state=rng)


def counted_frequencies(scores: Sequence[float], noise: str, samples: int, seed: int, k: int = 1) -> Array:
    """How often each class is among the k highest noisy scores."""
    drawn = noisy(scores, noise, samples, seed)
    winners = np.argpartition(-drawn, k - 1, axis=1)[:, :k]
    return np.bincount(winners.ravel(), minlength=len(scores)) / samples


def log_tails_mp(name: str, rivals: Sequence[float], u: float, most: int, digits: int = 400) -> tuple[float, float]:
    """log P(N ≤ most) and log P(N > most) for the number N of rivals + ε that exceed u, by convolution in many digits."""
    with mpmath.workdps(digits):
        law = [mpf(1)]
        for z in rivals:
            f = cdf_mp(name, mpf(u) - mpf(z))
            stay, step = [*(p * f for p in law), mpf(0)], [mpf(0), *(p * (1 - f) for p in law)]
            law = [a + b for a, b in zip(stay, step, strict=True)]
        return float(mp.log(mp.fsum(law[: most + 1]))), float(mp.log(mp.fsum(law[most + 1 :])))


def softmax(scores: Array) -> Array:
    """Softmax over the last axis."""
    return special.softmax(scores, axis=-1)


def neg_log_q(m: Array, q: float) -> Array:
    """−log_q(m) as its definition has it."""
    return -np.log(m) if q == 1 else (1 - m ** (1 - q)) / (1 - q)
