"""Expected AUC against the double sum over all pairs, in closed form or by scipy's quadrature, and against scikit-learn."""

import itertools
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.metrics import roc_auc_score
from torch.autograd import gradcheck, gradgradcheck

from lossmith import noise as noises
from lossmith.functional.ranking import expected_auc

Array = NDArray[np.float64]


def by_symmetry(tail: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """H from H(−δ) for δ ≥ 0."""
    return lambda d: np.where(d < 0, tail(np.abs(d)), 1 - tail(np.abs(d)))


@cache
def win_by_quadrature(name: str, d: float) -> float:
    """∫ f(u) F(u + d) du, by Gauss–Legendre in panels that grow from both places where it bends."""
    pdf, cdf, far = {
        "logistic": (lambda x: special.expit(x) * special.expit(-x), special.expit, 64.0),
        "studentt": (stats.t(3).pdf, lambda x: special.stdtr(3, x), 2.0**20),
    }[name]
    around = {sign * 2.0**k for k in range(-1, 21) for sign in (-1, 1)} | {0.0}
    edges = np.unique(np.clip([x - c for x in around for c in (0.0, d)], -far, far))
    place, weight = np.polynomial.legendre.leggauss(30)
    half = np.diff(edges)[:, None] / 2
    u = edges[:-1, None] + half * (1 + place)
    return float((pdf(u) * cdf(u + d) * half * weight).sum())


# H(δ), the probability that a lead of δ wins, and its derivative, the density of the difference of two ε.
WIN: dict[str, Callable[[Array], Array]] = {
    "normal": lambda d: special.ndtr(d / math.sqrt(2)),
    "gumbel": special.expit,
    "cauchy": lambda d: 0.5 + np.arctan(d / 2) / math.pi,
    "laplace": by_symmetry(lambda a: np.exp(-a) * (1 + a / 2) / 2),
    "exponential": by_symmetry(lambda a: np.exp(-a) / 2),
    "uniform": by_symmetry(lambda a: np.clip(1 - a, 0, 1) ** 2 / 2),
    "logistic": np.vectorize(lambda d: win_by_quadrature("logistic", float(d))),
    "studentt": np.vectorize(lambda d: win_by_quadrature("studentt", float(d))),
}
SLOPE: dict[str, Callable[[Array], Array]] = {
    "normal": lambda d: stats.norm.pdf(d, scale=math.sqrt(2)),
    "gumbel": lambda d: special.expit(d) * special.expit(-d),
    "cauchy": lambda d: stats.cauchy.pdf(d, scale=2),
    "laplace": lambda d: np.exp(-np.abs(d)) * (1 + np.abs(d)) / 4,
    "exponential": lambda d: np.exp(-np.abs(d)) / 2,
    "uniform": lambda d: np.clip(1 - np.abs(d), 0, 1),
}
CAUCHY = noises.StudentT(1)


def noise_of(name: str) -> str | noises.Noise:
    return CAUCHY if name == "cauchy" else name


def auc_by_pairs(scores: Array, target: NDArray[np.bool_], name: str, weight: Array | None = None) -> float:
    w = np.ones(len(scores)) if weight is None else weight
    pairs = w[target][:, None] * w[~target]
    return float((pairs * WIN[name](scores[target][:, None] - scores[~target])).sum() / pairs.sum())


def gradient_by_pairs(scores: Array, target: NDArray[np.bool_], name: str) -> Array:
    slope = SLOPE[name](scores[target][:, None] - scores[~target]) / (target.sum() * (~target).sum())
    gradient = np.empty_like(scores)
    gradient[target], gradient[~target] = slope.sum(1), -slope.sum(0)
    return gradient


def layout(name: str, n: int) -> tuple[Array, NDArray[np.bool_], Array]:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(n)
    scores = {
        "random": 2 * normal,
        "spread": 40 * normal,
        "clustered": np.round(50 * normal) + 0.01 * rng.standard_normal(n),
        "tied": np.round(3 * normal),
        "equal": np.full(n, 0.3),
        "wide": 1e6 * normal,
        "all sizes": np.sinh(8 * normal),
        "huge": 1e12 * normal,
        "offset": 1e5 + np.round(normal * 1024) / 1024,
    }[name]
    target = rng.random(n) < 0.4
    target[:2] = [True, False]
    return scores, target, rng.random(n)


LAYOUTS = ["random", "spread", "clustered", "tied", "equal", "wide", "all sizes", "huge", "offset"]


# Tables of H for scores far apart take seconds; those of Student's t, below, go to 1e6 scales.
FAR = [("cauchy", arrangement) for arrangement in ("wide", "all sizes", "huge")]


@pytest.mark.parametrize(
    ("name", "arrangement"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair in FAR else ()) for pair in itertools.product(sorted(SLOPE), LAYOUTS)],
)
def test_equals_the_double_sum(name: str, arrangement: str) -> None:
    scores, target, weight = layout(arrangement, 250)
    z = torch.tensor(scores, requires_grad=True)
    value = expected_auc(z, torch.tensor(target), noise=noise_of(name))
    assert value.item() == pytest.approx(auc_by_pairs(scores, target, name), abs=3e-15)
    (gradient,) = torch.autograd.grad(value, z)
    expected = gradient_by_pairs(scores, target, name)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-11 / min(target.sum(), (~target).sum()))
    weighted = expected_auc(z, torch.tensor(target), noise=noise_of(name), weight=torch.tensor(weight))
    assert weighted.item() == pytest.approx(auc_by_pairs(scores, target, name, weight), abs=3e-15)


@pytest.mark.parametrize("arrangement", ["random", "spread", "tied", "wide"])
@pytest.mark.parametrize("name", ["logistic", "studentt"])
def test_equals_the_double_sum_of_quadratures(name: str, arrangement: str) -> None:
    scores, target, weight = layout(arrangement, 12)
    value = expected_auc(torch.tensor(scores), torch.tensor(target), noise=name, weight=torch.tensor(weight))
    assert value.item() == pytest.approx(auc_by_pairs(scores, target, name, weight), abs=1e-13)


@pytest.mark.parametrize("name", ["normal", "gumbel", "logistic", "laplace", "exponential", "uniform"])
@pytest.mark.parametrize("arrangement", ["random", "tied"])
def test_without_noise_it_is_the_auc_of_scikit_learn(name: str, arrangement: str) -> None:
    scores, target, weight = layout(arrangement, 500)
    z, y, w = torch.tensor(scores), torch.tensor(target), torch.tensor(weight)
    assert float(expected_auc(z, y, noise=name, scale=1e-12)) == pytest.approx(roc_auc_score(target, scores), abs=1e-13)
    expected = roc_auc_score(target, scores, sample_weight=weight)
    assert float(expected_auc(z, y.long(), noise=name, scale=1e-12, weight=w)) == pytest.approx(expected, abs=1e-13)


def test_many_scores_stay_exact() -> None:
    rng = np.random.default_rng(0)
    scores, target = rng.standard_normal(2000), rng.random(2000) < 0.5
    for name in ("normal", "laplace", "uniform"):
        value = expected_auc(torch.tensor(scores), torch.tensor(target), noise=name, scale=0.1)
        assert value.item() == pytest.approx(auc_by_pairs(10 * scores, target, name), abs=1e-14)
    equal = torch.full((100_000,), 0.7, dtype=torch.float64)
    labels = torch.arange(100_000) % 7 == 0
    for name in ("normal", "laplace", "uniform"):
        assert float(expected_auc(equal, labels, noise=name, scale=0.3)) == pytest.approx(0.5, abs=1e-14)


ALL = ["normal", "gumbel", "logistic", "studentt", "laplace", "exponential", "uniform"]


@pytest.mark.parametrize("name", ALL)
def test_first_and_second_derivatives(name: str) -> None:
    # No two leads at which the uniform density of differences bends: 0 and 1 scale.
    scores = torch.tensor([-1.3, 0.21, 0.5, -0.47, 1.9, 0.87, 40.0], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 0, 1, 1, 0, 0])
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 0.5, 2.0, 0.7, 1.0, 0.1, 0.4], dtype=torch.float64, requires_grad=True)

    def auc(s: torch.Tensor, sigma: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return expected_auc(s, target, noise=name, scale=sigma, weight=w)

    assert gradcheck(auc, (scores, scale, weight), atol=1e-8, rtol=1e-6)
    assert gradgradcheck(auc, (scores, scale, weight), atol=1e-7, rtol=1e-5, fast_mode=True)


def test_the_gradient_is_linear() -> None:
    scores, target, _ = layout("random", 200)
    for name in ALL:
        z = torch.tensor(scores, requires_grad=True)
        (once,) = torch.autograd.grad(expected_auc(z, torch.tensor(target), noise=name), z)
        (thrice,) = torch.autograd.grad(3 * expected_auc(z, torch.tensor(target), noise=name), z)
        torch.testing.assert_close(thrice, 3 * once, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform"])
def test_same_bits_on_any_number_of_threads(name: str) -> None:
    n = 50_000 if name == "laplace" else 200_000
    generator = torch.Generator().manual_seed(3)
    z = (200 * torch.randn(n, generator=generator, dtype=torch.float64)).round(decimals=2)
    y = torch.rand(n, generator=generator) < 0.3
    w = torch.rand(n, generator=generator, dtype=torch.float64)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            inputs = [x.clone().requires_grad_() for x in (z, torch.tensor(0.7, dtype=torch.float64), w)]
            value = expected_auc(inputs[0], y, noise=name, scale=inputs[1], weight=inputs[2])
            results.append([value, *torch.autograd.grad(value, inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_noise_of_ones_own() -> None:
    scores, target, _ = layout("spread", 200)
    z, y = torch.tensor(scores), torch.tensor(target)
    normal = noises.Normal()
    for size, centre in ((1.0, 0.0), (0.003, 0.0), (300.0, 0.0), (1.0, 1000.0)):
        own = noises.Custom(
            lambda x, s=size, c=centre: normal.log_prob((x - c) / s) - math.log(s),
            lambda x, s=size, c=centre: normal.log_cdf((x - c) / s),
            lambda p, s=size, c=centre: c + s * normal.icdf(p),
        )
        # The log of the survival function that Custom forms has lost digits below 1e-16, which H does not need.
        expected = auc_by_pairs(scores / size, target, "normal")
        assert float(expected_auc(z, y, noise=own)) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_compute_in_float64(dtype: torch.dtype) -> None:
    scores, target, _ = layout("random", 100)
    z = torch.tensor(scores).to(dtype).requires_grad_()
    value = expected_auc(z, torch.tensor(target))
    (gradient,) = torch.autograd.grad(value, z)
    assert value.dtype == gradient.dtype == dtype
    assert torch.equal(value, expected_auc(z.detach().double(), torch.tensor(target)).to(dtype))


finite = st.floats(-30, 30, allow_subnormal=False)
samples = st.lists(st.tuples(finite, st.booleans()), min_size=2, max_size=30).filter(lambda s: len({y for _, y in s}) == 2)


def tensors(sample: list[tuple[float, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([s for s, _ in sample], dtype=torch.float64), torch.tensor([y for _, y in sample])


@settings(max_examples=25, deadline=None)
@given(
    samples,
    st.sampled_from(["normal", "gumbel", "laplace", "exponential", "uniform"]),
    st.floats(-1e3, 1e3),
    st.floats(0.1, 10),
    st.randoms(),
)
def test_what_must_not_change_it(sample, name, shift, factor, random) -> None:  # type: ignore[no-untyped-def]
    z, y = tensors(sample)
    value = float(expected_auc(z, y, noise=name))
    order = random.sample(range(len(z)), len(z))
    assert float(expected_auc(z + shift, y, noise=name)) == pytest.approx(value, abs=1e-11)
    assert float(expected_auc(z * factor, y, noise=name, scale=factor)) == pytest.approx(value, abs=1e-12)
    assert float(expected_auc(z[order], y[order], noise=name)) == pytest.approx(value, abs=1e-14)
    assert float(expected_auc(-z, ~y, noise=name)) == pytest.approx(value, abs=1e-14)
    assert float(expected_auc(z, ~y, noise=name)) == pytest.approx(1 - value, abs=1e-14)


@settings(max_examples=25, deadline=None)
@given(samples, st.sampled_from(["normal", "gumbel", "laplace", "exponential", "uniform"]), st.floats(0, 5))
def test_raising_a_positive_raises_it(sample, name, rise) -> None:  # type: ignore[no-untyped-def]
    z, y = tensors(sample)
    raised = z.clone()
    raised[y.nonzero()[0]] += rise
    low, high = (float(expected_auc(s, y, noise=name)) for s in (z, raised))
    assert -1e-14 <= low <= high + 1e-14 <= 1 + 2e-14


def kinked() -> noises.Noise:
    laplace = noises.Laplace()
    return noises.Custom(laplace.log_prob, laplace.log_cdf, laplace.icdf, kinks=(0.0,), name="mine")


def two_peaks() -> noises.Noise:
    normal = noises.Normal()

    def mixed(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: torch.logaddexp(function(x - 1000), function(x + 1000)) - math.log(2)

    return noises.Custom(
        mixed(normal.log_prob),
        mixed(normal.log_cdf),
        lambda p: normal.icdf((2 * p) % 1) + torch.where(p < 0.5, -1000.0, 1000.0).to(p),
    )


Z, Y = torch.tensor([0.1, 0.4, 0.3]), torch.tensor([0, 1, 0])
BAD: list[tuple[type[Exception], str, dict[str, object]]] = [
    (TypeError, r"scores: expected a floating-point tensor, got torch.int64; pass", {"scores": torch.tensor([1, 2, 3])}),
    (ValueError, r"scores: expected shape \(n,\), .*got \(1, 3\); flatten", {"scores": Z.unsqueeze(0)}),
    (ValueError, r"scores: expected finite numbers, got nan at index 1; ", {"scores": torch.tensor([0.0, math.nan, 1.0])}),
    (ValueError, r"scores: expected finite numbers, got -inf at index 0; ", {"scores": torch.tensor([-math.inf, 0.0, 1.0])}),
    (TypeError, r"target: expected bool or integer, got torch.float32; ", {"target": Y.float()}),
    (ValueError, r"target: expected shape \(3,\).*got \(2,\); ", {"target": Y[:2]}),
    (ValueError, r"target: expected 0 or 1, got 2; ", {"target": torch.tensor([0, 1, 2])}),
    (ValueError, r"target: expected 0 or 1, got -1; ", {"target": torch.tensor([0, 1, -1])}),
    (ValueError, r"target: expected at least one 1 .*; ", {"target": torch.zeros(3, dtype=torch.bool)}),
    (ValueError, r"target: expected at least one 0 .*; ", {"target": torch.ones(3, dtype=torch.uint8)}),
    (ValueError, r"weight: expected finite numbers ≥ 0, got -1.0; ", {"weight": torch.tensor([1.0, -1.0, 1.0])}),
    (ValueError, r"weight: expected finite numbers ≥ 0, got nan; ", {"weight": torch.tensor([1.0, math.nan, 1.0])}),
    (ValueError, r"weight: expected shape \(3,\), got \(2,\); ", {"weight": torch.ones(2)}),
    (ValueError, r"weight: expected some weight > 0 among the positive .*; ", {"weight": torch.tensor([1, 0, 1])}),
    (ValueError, r"weight: expected some weight > 0 among the negative .*; ", {"weight": torch.tensor([0, 1, 0])}),
    (TypeError, r"weight: expected real numbers, got torch.complex64; ", {"weight": torch.ones(3, dtype=torch.complex64)}),
    (ValueError, r"scale: expected a finite number > 0, got 0.0; ", {"scale": 0}),
    (ValueError, r"scale: expected a finite number > 0, got nan; ", {"scale": math.nan}),
    (ValueError, r"scale: expected a finite number > 0, got -1.0; ", {"scale": torch.tensor(-1.0)}),
    (ValueError, r"scale: expected one number, got a tensor of shape \(3,\); ", {"scale": torch.ones(3)}),
    (ValueError, r"scale: expected at least 3e-16, 1e-15 of the range .*; ", {"scale": 1e-16}),
    (ValueError, r"noise: unknown name 'norml'; ", {"noise": "norml"}),
    (TypeError, r"noise: expected a name or a lossmith.noise.Noise, got int", {"noise": 3}),
    (ValueError, r"noise: expected a smooth one or one of .*name='mine'.* with kinks; ", {"noise": kinked()}),
    (ValueError, r"noise: expected a smooth density with one peak, .*; ", {"noise": two_peaks(), "scores": Z * 1e4}),
]


@pytest.mark.parametrize(("error", "message", "bad"), BAD)
def test_bad_input_is_one_line(error: type[Exception], message: str, bad: dict[str, object]) -> None:
    good: dict[str, object] = {"scores": Z, "target": Y}
    with pytest.raises(error, match=f"^{message}[^\n]*$"):
        expected_auc(**(good | bad))  # type: ignore[arg-type]
