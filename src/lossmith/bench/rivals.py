"""Other ways to the probability that a class has the highest noisy score, each as its users would run it.

All take a case of one target and groups of equal rivals, and give p. They say ``None`` where they do not apply: another
noise, or so many classes that one value takes minutes.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate, stats

from lossmith.bench.values import Case

Array = NDArray[np.float64]


class _Negative:
    """The distribution of −X."""

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution

    def pdf(self, x: Array) -> Array:
        return np.asarray(self.distribution.pdf(-x))

    def cdf(self, x: Array) -> Array:
        return np.asarray(self.distribution.sf(-x))

    def ppf(self, p: Array) -> Array:
        return np.asarray(-self.distribution.isf(p))


SCIPY_NOISE: dict[str, Any] = {
    "normal": stats.norm(),
    "gumbel": stats.gumbel_r(),
    "logistic": stats.logistic(),
    "laplace": stats.laplace(),
    "studentt:1": stats.t(1),
    "studentt:3": stats.t(3),
    "uniform": stats.uniform(),
    "exponential": _Negative(stats.expon()),
}
# SciPy's orthant probability takes 0.1 s at 9 dimensions, 11 s at 49 and 91 s at 99; BoTorch's matrix is C × C.
MOST_CLASSES = {"scipy mvn": 10, "botorch": 100}
QUANTILES = 64


def _product_of_cdfs(case: Case, u: Array) -> Array:
    """Π F(u − z_j) over the rivals, in plain arithmetic, as each of these methods has it."""
    noise = SCIPY_NOISE[case.noise]
    with np.errstate(over="ignore"):  # exp(−x) in the Gumbel cdf
        return np.asarray(np.prod([noise.cdf(u - score) ** count for score, count in case.rivals], axis=0))


def scipy_quad(case: Case) -> float:
    """The one-dimensional integral by ``scipy.integrate.quad`` with its defaults."""
    noise = SCIPY_NOISE[case.noise]

    def integrand(u: float) -> float:
        return float(noise.pdf(u - case.target) * _product_of_cdfs(case, np.asarray(u)))

    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("ignore", integrate.IntegrationWarning)
        return float(integrate.quad(integrand, -np.inf, np.inf)[0])


def scipy_mvn(case: Case) -> float | None:
    """The (C − 1)-dimensional orthant probability by ``scipy.stats.multivariate_normal.cdf`` with its defaults."""
    if case.noise != "normal" or case.classes > MOST_CLASSES["scipy mvn"]:
        return None
    lead = _leads(case)
    return float(stats.multivariate_normal(cov=np.eye(len(lead)) + 1.0, seed=0).cdf(lead))


def botorch_mvnxpb(case: Case) -> float | None:
    """BoTorch's bivariate conditioning, ``MVNXPB``, of the same orthant."""
    if case.noise != "normal" or case.classes > MOST_CLASSES["botorch"]:
        return None
    lead = torch.from_numpy(_leads(case))
    bounds = torch.stack([torch.full_like(lead, -math.inf), lead], -1)
    covariance = torch.eye(len(lead), dtype=torch.float64) + 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns too
        from botorch.utils.probability.mvnxpb import MVNXPB

        return float(MVNXPB(covariance, bounds).solve().exp())


def quantile_rule(case: Case) -> float:
    """The mean over 64 noises at the quantiles i/65: the rule of the blog post on perturbed argmax."""
    noise = SCIPY_NOISE[case.noise]
    nodes = noise.ppf(np.arange(1, QUANTILES + 1) / (QUANTILES + 1))
    return float(_product_of_cdfs(case, case.target + nodes).mean())


def gauss_hermite(nodes: int) -> Callable[[Case], float | None]:
    """Gauss–Hermite quadrature with so many nodes, centred on the target: GPflow's way, without its clamps."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)

    def method(case: Case) -> float | None:
        if case.noise != "normal":
            return None
        return float((weights * _product_of_cdfs(case, case.target + points)).sum() / weights.sum())

    return method


def _leads(case: Case) -> Array:
    return np.repeat([case.target - score for score, _ in case.rivals], [count for _, count in case.rivals])


def available() -> dict[str, Callable[[Case], float | None]]:
    """The methods whose packages are here, by the name they are shown under."""
    methods: dict[str, Callable[[Case], float | None]] = {
        "scipy quad": scipy_quad,
        "scipy mvn": scipy_mvn,
        "botorch": botorch_mvnxpb,
        "k/(K+1), K=64": quantile_rule,
        **{f"Hermite {n}": gauss_hermite(n) for n in (16, 32, 64)},
    }
    if importlib.util.find_spec("botorch") is None:
        del methods["botorch"]
    return methods
