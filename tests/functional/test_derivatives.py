"""First and second derivatives of every function and noise, in the scores and in the scale, and that the bits repeat.

Where scores tie, densities that jump (uniform, exponential) have a first derivative and no second; nothing is asked there.
"""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lossmith import PerturbedArgmax
from lossmith.functional import argmax_log_prob, argmax_log_probs, standardize_scores, topk_log_prob
from lossmith.noise import Noise
from support.cases import BY_NAME, EACH, JUMPS, gradient, random_scores, tensor

PLAIN = [[0.3, -0.4, 0.55, 0.1], [0.75, 0.6, -0.05, 0.2]]
TIES = [[0.25, 0.25, -0.3, 0.5], [0.5, 0.5, 0.5, 0.0]]
TARGET = torch.tensor([1, 0])
# Each is a function of scores and scale.
Function = Callable[[Tensor, Tensor | float, Noise], Tensor]
FUNCTIONS: dict[str, Function] = {
    "log_prob": lambda z, s, n: argmax_log_prob(z, TARGET, noise=n, scale=s),
    "with a margin": lambda z, s, n: argmax_log_prob(z, TARGET, noise=n, scale=s, margin=0.17),
    "log_probs": lambda z, s, n: argmax_log_probs(z, noise=n, scale=s),
    "top 2": lambda z, s, n: topk_log_prob(z, TARGET, 2, noise=n, scale=s),
    "top 3": lambda z, s, n: topk_log_prob(z, TARGET, 3, noise=n, scale=s),
    "entropy": lambda z, s, n: PerturbedArgmax(z, n, s).entropy(),
}


def of_each(*slow: str) -> pytest.MarkDecorator:
    """Every function, some of them in make test-all alone."""
    marked = [pytest.param(f, id=name, marks=pytest.mark.slow if name in slow else ()) for name, f in FUNCTIONS.items()]
    return pytest.mark.parametrize("function", marked)


SMOOTH = pytest.mark.parametrize("noise", [n for name, n in BY_NAME.items() if name not in JUMPS], ids=str)


@of_each("with a margin", "top 3")
@EACH
def test_in_scores_and_a_scale_for_each_row(noise: Noise, function: Function) -> None:
    inputs = tensor(PLAIN, requires_grad=True), tensor([[1.2], [1.7]], requires_grad=True)
    assert gradcheck(lambda z, s: function(z, s, noise), inputs, fast_mode=True)
    assert gradgradcheck(lambda z, s: function(z, s, noise), inputs, fast_mode=True)


@of_each("log_prob", "with a margin", "top 3", "entropy")
@EACH
def test_in_one_scale_for_all(noise: Noise, function: Function) -> None:
    scale = tensor(1.3, requires_grad=True)
    scores = tensor(PLAIN)
    assert gradcheck(lambda s: function(scores, s, noise), scale, fast_mode=True)
    assert gradgradcheck(lambda s: function(scores, s, noise), scale, fast_mode=True)


def test_twice_where_the_cdf_underflows() -> None:
    """Gumbel's log F falls like −exp(−x), beyond the range of floats at nodes that matter for the tails of N."""
    scores = tensor([PLAIN[0]], requires_grad=True)
    assert gradgradcheck(lambda z: topk_log_prob(z, TARGET[:1], 2, noise="gumbel", scale=0.8), scores)


@pytest.mark.parametrize("lead", [20.0, 35.0])
def test_twice_where_1_minus_p_is_nearly_no_float(lead: float) -> None:
    """log p ≈ −(1 − p) of the second of two rivals, e^(−δ²/4 …): its second derivative is about its square slope."""
    scores = tensor([[lead, 0.0, 1.0]], requires_grad=True)
    log_p = topk_log_prob(scores, torch.tensor([0]), 2)
    first = gradient(log_p.sum(), scores, create_graph=True)
    second = gradient(first[0, 0], scores)[0, 0]
    assert first[0, 0] > 0
    # 1 − p = A exp(−g(δ)), so that −(log p)'' / (log p)' = g' − g''/g', and g' ≥ δ/2.
    assert 0.4 * lead < -second / first[0, 0] < lead


@pytest.mark.parametrize("k", [1, 2, 3])
@EACH
def test_the_second_derivative_is_a_number(noise: Noise, k: int) -> None:
    scores = random_scores(40, 5, spread=0.7).requires_grad_()
    log_p = topk_log_prob(scores, torch.arange(40) % 5, k, noise=noise)
    slopes = gradient(log_p[log_p.isfinite()].sum(), scores, create_graph=True)
    assert slopes.isfinite().all()
    assert gradient(slopes.square().sum(), scores).isfinite().all()


@pytest.mark.parametrize("name", ["log_prob", "log_probs", "top 2", "entropy"])
@EACH
def test_at_ties(noise: Noise, name: str) -> None:
    scores = tensor(TIES, requires_grad=True)
    assert gradcheck(lambda z: FUNCTIONS[name](z, 1.0, noise), scores, fast_mode=True)


@pytest.mark.parametrize("name", ["log_prob", "log_probs", "top 2", "entropy"])
@SMOOTH
def test_twice_at_ties(noise: Noise, name: str) -> None:
    scores = tensor(TIES, requires_grad=True)
    assert gradgradcheck(lambda z: FUNCTIONS[name](z, 1.0, noise), scores, fast_mode=True)


@pytest.mark.parametrize("name", ["log_prob", "log_probs", "top 2"])
@EACH
def test_beside_a_class_that_is_removed(noise: Noise, name: str) -> None:
    present = tensor(PLAIN, requires_grad=True)
    removed = torch.full((2, 1), -math.inf, dtype=torch.float64)

    def function(z: Tensor) -> Tensor:
        log_p = FUNCTIONS[name](torch.cat([z, removed], -1), 1.0, noise)
        return log_p[:, :-1] if log_p.dim() == 2 else log_p

    assert gradcheck(function, present, fast_mode=True)
    assert gradgradcheck(function, present, fast_mode=True)
    wide = torch.cat([present.detach(), removed], -1).requires_grad_()
    slopes = gradient(FUNCTIONS[name](wide, 1.0, noise).clamp_min(-1e3).sum(), wide)
    assert slopes.isfinite().all()
    assert not slopes[:, -1].any()


@of_each()
@EACH
def test_upstream_gradients_multiply_and_a_shift_changes_nothing(noise: Noise, function: Function) -> None:
    scores = tensor(PLAIN, requires_grad=True)
    value = function(scores, 1.0, noise)
    slopes = gradient(value.sum(), scores, retain_graph=True)
    torch.testing.assert_close(gradient(3 * value.sum(), scores), 3 * slopes, rtol=1e-14, atol=1e-15)
    assert slopes.any()
    assert slopes.sum(-1).abs().max() <= 1e-12


@pytest.mark.parametrize("k", [1, 2])
@EACH
def test_p_rises_with_the_own_score_only(noise: Noise, k: int) -> None:
    scores, target = random_scores(20, 5, spread=2.0).requires_grad_(), torch.arange(20) % 5
    slopes = gradient(topk_log_prob(scores, target, k, noise=noise).clamp_min(-1e9).sum(), scores)
    own = torch.nn.functional.one_hot(target, 5).bool()
    assert (slopes[own] >= 0).all()
    assert (slopes[~own] <= 1e-15).all()
    assert slopes.sum(-1).abs().max() <= 1e-12 * slopes.abs().max()


@EACH
def test_empty_batches_give_empty_gradients(noise: Noise) -> None:
    scores = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    for value, shape in (
        (argmax_log_prob(scores, target, noise=noise), (0,)),
        (argmax_log_probs(scores, noise=noise), (0, 3)),
        (topk_log_prob(scores, target, 2, noise=noise), (0,)),
        (PerturbedArgmax(scores, noise).entropy(), (0,)),
    ):
        assert value.shape == shape
        assert gradient(value.sum(), scores).shape == (0, 3)


def test_standardized_scores() -> None:
    scores = tensor(PLAIN, requires_grad=True)
    assert gradcheck(lambda z: standardize_scores(z, torch.tensor([True, False])), scores)
    assert gradgradcheck(lambda z: standardize_scores(z, torch.tensor([True, False])), scores)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# The first two are big enough to be split among threads.
SAME_BITS = [
    pytest.param("normal", 64, 1000, marks=pytest.mark.slow),
    ("logistic", 4, 20_000),
    *((name, 8, 20) for name in BY_NAME),
]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("name", "rows", "classes"), SAME_BITS)
def test_one_thread_or_two_give_the_same_bits(name: str, rows: int, classes: int) -> None:
    scores = random_scores(rows, classes).requires_grad_()
    target = torch.arange(rows) % classes
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        log_p = argmax_log_prob(scores, target, noise=BY_NAME[name])
        results.append((log_p, gradient(log_p[log_p.isfinite()].sum(), scores)))
    one, two = results
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rival_a_thousand_scales_ahead_has_no_slope(dtype: torch.dtype) -> None:
    """Among the two highest with a sure leader: log p = log sigmoid(z_0 − z_1), whatever the leader's score."""
    z = torch.tensor([[-1220.0, -108.0, 1608.0]], dtype=dtype, requires_grad=True)
    log_p = topk_log_prob(z, torch.tensor([0]), 2, noise="gumbel")
    assert log_p.item() == pytest.approx(-1112.0, rel=1e-6)
    (grad,) = torch.autograd.grad(log_p.sum(), z, create_graph=True)
    assert grad.tolist()[0] == pytest.approx([1.0, -1.0, 0.0], abs=1e-6)
    assert torch.autograd.grad(grad[0, 0], z)[0].abs().max() < 1e-6
