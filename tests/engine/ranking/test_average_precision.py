"""Expected average precision against scipy's quadrature of its formula, a plain grid, and scikit-learn."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, special
from sklearn.metrics import average_precision_score
from torch.autograd import gradcheck, gradgradcheck

from lossmith import noise as noises
from lossmith.functional.ranking import expected_average_precision

Array = NDArray[np.float64]
Labels = NDArray[np.bool_]

# Density, survival function, kinks, and how far the density reaches to the left and to the right.
NOISES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array], list[float], float, float]] = {
    "normal": (lambda x: np.exp(-x * x / 2) / math.sqrt(2 * math.pi), lambda x: special.ndtr(-x), [], 10, 10),
    "gumbel": (lambda x: np.exp(-x - np.exp(-x)), lambda x: -np.expm1(-np.exp(-x)), [], 5, 45),
    "logistic": (lambda x: special.expit(x) * special.expit(-x), lambda x: special.expit(-x), [], 45, 45),
    "studentt": (lambda x: 6 * math.sqrt(3) / math.pi / (3 + x * x) ** 2, lambda x: special.stdtr(3, -x), [], 2e5, 2e5),
    "laplace": (
        lambda x: np.exp(-np.abs(x)) / 2,
        lambda x: np.where(x > 0, np.exp(-np.abs(x)) / 2, 1 - np.exp(-np.abs(x)) / 2),
        [0],
        45,
        45,
    ),
    "exponential": (
        lambda x: np.where(x <= 0, np.exp(np.minimum(x, 0)), 0),
        lambda x: -np.expm1(np.minimum(x, 0)),
        [0],
        45,
        0,
    ),
    "uniform": (lambda x: ((x >= 0) & (x <= 1)) * 1.0, lambda x: np.clip(1 - x, 0, 1), [0, 1], 0, 1),
}


def by_quadrature(scores: Array, target: Labels, name: str) -> float:
    """The mean over positives i of ∫ f(u − s_i) (1 + N⁺_i) / (1 + N_i) du, piece by piece."""
    pdf, sf, kinks, left, right = NOISES[name]
    mean = []
    for i in np.flatnonzero(target):
        others, labels = np.delete(scores, i), np.delete(target, i)

        def integrand(u: float, i: int = i, others: Array = others, labels: Labels = labels) -> float:
            above = sf(u - others)
            return float(pdf(u - scores[i]) * (1 + above[labels].sum()) / (1 + above.sum()))

        low, high = scores[i] - left, scores[i] + right
        steps = [0.0, 1.0, 3.0, 8.0, 20.0, 1e2, 1e3, 1e4]
        edges = [x + k for x in scores for k in kinks] + [x + sign * step for x in scores for step in steps for sign in (-1, 1)]
        edges = np.unique(np.clip([low, *edges, high], low, high))
        pieces = pairwise(edges)
        mean.append(math.fsum(integrate.quad(integrand, a, b, epsabs=1e-14, epsrel=1e-11)[0] for a, b in pieces))
    return float(np.mean(mean))


def by_grid(scores: Array, target: Labels, step: float = 0.04) -> float:
    """The same for normal noise, by the trapezoidal rule on a grid that all positives share."""
    pdf, sf, *_ = NOISES["normal"]
    u = np.arange(scores.min() - 10, scores.max() + 10, step)
    negatives = sf(u[:, None] - scores[~target]).sum(1)
    positives = sf(u[:, None] - scores[target]).sum(1)
    e = u[:, None] - scores[target]
    precision = ((positives + special.ndtr(e.T)) / (positives + negatives + special.ndtr(e.T))).T
    return float((pdf(e) * precision).sum() * step / target.sum())


SMALL = {
    "near": [0.3, -0.2, 1.1, 0.8, -0.9, 0.1],
    "apart": [3.0, -7.0, 4.5, 60.0, 3.2, -1.0],
    "tied": [0.0, 1.0, 0.0, 2.0, 1.0, 0.0],
}
LABELS = np.array([True, False, False, True, True, False])


@pytest.mark.parametrize("arrangement", SMALL)
@pytest.mark.parametrize("name", NOISES)
def test_equals_the_quadrature(name: str, arrangement: str) -> None:
    scores = np.array(SMALL[arrangement])
    value = expected_average_precision(torch.tensor(scores), torch.tensor(LABELS), noise=name)
    assert value.item() == pytest.approx(by_quadrature(scores, LABELS, name), abs=1e-12)


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_many_scores(spread: float) -> None:
    rng = np.random.default_rng(2)
    target = rng.random(3000) < 0.2
    scores = spread * (rng.standard_normal(3000) + target)  # of spread 1, they are condensed; of spread 30, they are not
    value = expected_average_precision(torch.tensor(scores), torch.tensor(target))
    assert value.item() == pytest.approx(by_grid(scores, target), abs=1e-13)


def test_many_negatives_far_below_few_positives() -> None:
    scores, target = np.append(np.zeros(5000), [4.0, 7.0]), np.append(np.zeros(5000, dtype=bool), [True, True])
    value = expected_average_precision(torch.tensor(scores), torch.tensor(target))
    assert value.item() == pytest.approx(by_grid(scores, target), abs=1e-13)


def test_counts_that_fall_steeply_to_a_kink() -> None:
    # n equal negatives at 0 and a positive at 0.3: 1 / (1 + n (1 − u)), with uniform noise, on the way to u = 1.
    n = 300
    scores = torch.cat([torch.zeros(n, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)])
    target = torch.arange(n + 1) == n
    fall = math.log1p(n) / n
    exponential = math.exp(-0.3) * fall - math.expm1(-0.3)
    assert expected_average_precision(scores, target, noise="exponential").item() == pytest.approx(exponential, abs=1e-13)
    uniform = math.log1p(0.7 * n) / n + 0.3
    assert expected_average_precision(scores, target, noise="uniform").item() == pytest.approx(uniform, abs=1e-13)


@pytest.mark.parametrize("name", [name for name in NOISES if name != "studentt"])
def test_without_noise_it_is_that_of_scikit_learn(name: str) -> None:
    rng = np.random.default_rng(0)
    scores, target = rng.standard_normal(60), rng.random(60) < 0.4
    value = expected_average_precision(torch.tensor(scores), torch.tensor(target), noise=name, scale=1e-9)
    assert value.item() == pytest.approx(average_precision_score(target, scores), abs=1e-12 if name != "uniform" else 1e-7)


def test_ends_of_the_range() -> None:
    z = torch.tensor([-90.0, 90.0, 91.0], dtype=torch.float64)
    for name in NOISES:
        assert expected_average_precision(z, torch.tensor([1, 1, 1]), noise=name).item() == pytest.approx(1, abs=1e-15)
        bound = 1e-4 if name == "studentt" else 1e-15
        assert expected_average_precision(z, torch.tensor([0, 1, 1]), noise=name).item() == pytest.approx(1, abs=bound)
        assert expected_average_precision(z, torch.tensor([1, 0, 0]), noise=name).item() == pytest.approx(1 / 3, abs=10 * bound)
    assert expected_average_precision(z[:1], torch.tensor([True])).item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("name", NOISES)
def test_first_and_second_derivatives(name: str) -> None:
    scores = torch.tensor([0.21, -0.47, 0.66, 1.53], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 0, 0, 1])

    def metric(s: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return expected_average_precision(s, target, noise=name, scale=sigma)

    assert gradcheck(metric, (scores, scale), atol=1e-8, rtol=1e-6, fast_mode=True)
    assert gradgradcheck(metric, (scores, scale), atol=1e-7, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("name", ["normal", "laplace", "exponential", "uniform"])
def test_first_derivative_at_ties(name: str) -> None:
    # Between equal scores of both labels, and where the noise of one ends and that of another begins.
    scores = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.4], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 0, 1, 1, 0, 0])
    assert gradcheck(lambda s: expected_average_precision(s, target, noise=name), (scores,), atol=2e-6, rtol=1e-5)


def test_gradient_of_condensed_scores() -> None:
    rng = np.random.default_rng(4)
    scores, target = rng.standard_normal(2500), rng.random(2500) < 0.3
    z = torch.tensor(scores, requires_grad=True)
    (gradient,) = torch.autograd.grad(3 * expected_average_precision(z, torch.tensor(target)), z)
    for i in (0, 1, 2):
        moved = [scores + sign * 1e-3 * (np.arange(2500) == i) for sign in (1, -1)]
        slope = (by_grid(moved[0], target, 0.1) - by_grid(moved[1], target, 0.1)) / 2e-3
        assert gradient[i].item() == pytest.approx(3 * slope, abs=1e-9)


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform"])
def test_same_bits_on_any_number_of_threads(name: str) -> None:
    n = 15_000 if name == "normal" else 100
    generator = torch.Generator().manual_seed(3)
    z = 20 * torch.randn(n, generator=generator, dtype=torch.float64)
    y = torch.rand(n, generator=generator) < 0.3
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            inputs = [x.clone().requires_grad_() for x in (z, torch.tensor(0.7, dtype=torch.float64))]
            value = expected_average_precision(inputs[0], y, noise=name, scale=inputs[1])
            results.append([value, *torch.autograd.grad(value, inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def own(noise: noises.Noise, centre: float = 0.0) -> noises.Noise:
    return noises.Custom(
        lambda x: noise.log_prob(x - centre),
        lambda x: noise.log_cdf(x - centre),
        lambda p: noise.icdf(p) + centre,
        kinks=[kink + centre for kink in noise.kinks],
    )


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform"])
@pytest.mark.parametrize("centre", [0.0, 100.0])
def test_a_noise_of_ones_own(name: str, centre: float) -> None:
    z, y = torch.tensor(SMALL["near"], dtype=torch.float64), torch.tensor(LABELS)
    value = expected_average_precision(z, y, noise=own(noises.get(name), centre))
    torch.testing.assert_close(value, expected_average_precision(z, y, noise=name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_compute_in_float64(dtype: torch.dtype) -> None:
    z, y = torch.tensor(SMALL["near"]).to(dtype).requires_grad_(), torch.tensor(LABELS)
    value = expected_average_precision(z, y)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.dtype == gradient.dtype == dtype
    assert torch.equal(value, expected_average_precision(z.detach().double(), y).to(dtype))


samples = st.lists(st.tuples(st.floats(-20, 20, allow_subnormal=False), st.booleans()), min_size=1, max_size=12)
with_positive = samples.filter(lambda sample: any(y for _, y in sample))
some_noise = st.sampled_from(["normal", "laplace", "uniform"])


@settings(max_examples=10, deadline=None)
@given(with_positive, some_noise, st.floats(-1e3, 1e3), st.floats(0.1, 10), st.floats(0, 5), st.randoms())
def test_what_must_not_change_it_and_what_raises_it(sample, name, shift, factor, rise, random) -> None:  # type: ignore[no-untyped-def]
    z = torch.tensor([s for s, _ in sample], dtype=torch.float64)
    y = torch.tensor([label for _, label in sample])
    value = expected_average_precision(z, y, noise=name).item()
    order = random.sample(range(len(z)), len(z))
    assert 0 < value <= 1 + 1e-14
    assert expected_average_precision(z + shift, y, noise=name).item() == pytest.approx(value, abs=1e-11)
    assert expected_average_precision(z * factor, y, noise=name, scale=factor).item() == pytest.approx(value, abs=1e-12)
    assert expected_average_precision(z[order], y[order], noise=name).item() == pytest.approx(value, abs=1e-13)
    lowered = torch.where(y, z, z - rise)
    assert expected_average_precision(lowered, y, noise=name).item() >= value - 1e-13


Z, Y = torch.tensor([0.1, 0.4, 0.3]), torch.tensor([0, 1, 0])
BAD: list[tuple[type[Exception], str, dict[str, object]]] = [
    (TypeError, r"scores: expected a floating-point tensor, got torch.int64; ", {"scores": torch.tensor([1, 2, 3])}),
    (ValueError, r"scores: expected shape \(n,\), .*got \(1, 3\); ", {"scores": Z.unsqueeze(0)}),
    (ValueError, r"scores: expected finite numbers, got nan at index 1; ", {"scores": torch.tensor([0.0, math.nan, 1.0])}),
    (TypeError, r"target: expected bool or integer, got torch.float32; ", {"target": Y.float()}),
    (ValueError, r"target: expected 0 or 1, got 2; ", {"target": torch.tensor([0, 1, 2])}),
    (ValueError, r"target: expected at least one 1 .*; ", {"target": torch.zeros(3, dtype=torch.bool)}),
    (
        ValueError,
        r"target: expected at least one 1 .*; ",
        {"scores": torch.zeros(0), "target": torch.zeros(0, dtype=torch.bool)},
    ),
    (ValueError, r"scale: expected a finite number > 0, got 0.0; ", {"scale": 0}),
    (ValueError, r"noise: unknown name 'norml'; ", {"noise": "norml"}),
]


@pytest.mark.parametrize(("error", "message", "bad"), BAD)
def test_bad_input_is_one_line(error: type[Exception], message: str, bad: dict[str, object]) -> None:
    good: dict[str, object] = {"scores": Z, "target": Y}
    with pytest.raises(error, match=f"^{message}[^\n]*$"):
        expected_average_precision(**(good | bad))  # type: ignore[arg-type]
