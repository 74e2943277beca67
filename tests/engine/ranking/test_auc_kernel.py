"""The kernels of expected AUC for the CPU: against the plain path, under what torch does to functions, and when they fail."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import lossmith
from lossmith import noise as noises
from lossmith.engine.ranking import autograd as auc
from lossmith.engine.runtime.select import broken
from lossmith.functional import expected_auc

SMOOTH = ["normal", "gumbel", "logistic", "studentt"]
KINKED = ["laplace", "exponential", "uniform"]


def sample(n: int, spread: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(n)
    scores = (spread * torch.randn(n, generator=made, dtype=torch.float64)).round(decimals=3).to(dtype)
    return scores, torch.rand(n, generator=made) < 0.3, torch.rand(n, generator=made, dtype=torch.float64)


def by(kernel: str, scores: Tensor, target: Tensor, weight: Tensor | None, noise: str, scale: float) -> list[Tensor]:
    """AUC and its gradients in scores, scale and weight."""
    inputs = [scores, torch.tensor(scale, dtype=torch.float64), *([] if weight is None else [weight])]
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    with lossmith.use_kernel(kernel):
        value = expected_auc(inputs[0], target, noise=noise, scale=inputs[1], weight=None if weight is None else inputs[2])
        assert lossmith.last_kernel() == kernel
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("noise", "n", "spread"),
    [
        # The plain path of the last takes seconds.
        pytest.param(noise, n, spread, marks=pytest.mark.slow if (noise, n) == ("laplace", 100_000) else ())
        for noise in SMOOTH + KINKED
        for n, spread in ((40, 0.1), (3000, 1.0), (3000, 300.0), (100_000, 5.0))
    ],
)
def test_equals_the_plain_path(noise: str, n: int, spread: float, weighted: bool) -> None:
    scores, target, weight = sample(n, spread)
    ours = by("cpu", scores, target, weight if weighted else None, noise, 0.7)
    plain = by("reference", scores, target, weight if weighted else None, noise, 0.7)
    share = 1 / min(int(target.sum()), int((~target).sum()))
    for mine, theirs, bound in zip(ours, plain, (1e-14, 1e-12 * share, 1e-11, 1e-12 * share), strict=False):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise", ["normal", "laplace", "uniform"])
def test_other_dtypes_are_those_of_float64_rounded(noise: str, dtype: torch.dtype) -> None:
    scores, target, _ = sample(2000, 2.0, dtype)
    ours, double = by("cpu", scores, target, None, noise, 0.7), by("cpu", scores.double(), target, None, noise, 0.7)
    for mine, theirs in zip(ours, double, strict=True):
        # Half types go through float32, and double rounding may show in the last digit.
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=torch.finfo(mine.dtype).eps, atol=1e-7)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int8, torch.int64])
def test_targets_of_every_kind_and_any_strides(kind: torch.dtype) -> None:
    scores, target, weight = sample(500, 2.0)
    expected = by("cpu", scores, target, weight, "normal", 1.0)[0]
    twice = [torch.stack([x, x], 1)[:, 0] for x in (scores, target.to(kind), weight)]
    assert not twice[0].is_contiguous()
    assert torch.equal(by("cpu", twice[0], twice[1], twice[2], "normal", 1.0)[0], expected)


@pytest.mark.parametrize("noise", SMOOTH + KINKED)
def test_many_equal_scores_round_no_worse(noise: str) -> None:
    # One place within a panel, not at its edge, a hundred thousand times: rounding of a plain sum would add up.
    scores = torch.full((200_000,), 0.7, dtype=torch.float64)
    scores[0] = 0.0
    target = torch.arange(200_000) % 7 == 0
    with lossmith.use_kernel("cpu"):
        value = float(expected_auc(scores, target, noise=noise, scale=0.3))
    with lossmith.use_kernel("reference"):
        lost = float(expected_auc(torch.tensor([0.0, 0.7], dtype=torch.float64), torch.tensor([1, 0]), noise=noise, scale=0.3))
    positives = int(target.sum())
    negatives = 200_000 - positives
    expected = ((positives - 1) * 0.5 + lost) / positives
    assert negatives > 0
    assert value == pytest.approx(expected, abs=5e-15)


@pytest.mark.parametrize("noise", SMOOTH + KINKED)
def test_same_bits_on_any_number_of_threads(noise: str) -> None:
    scores, target, weight = sample(150_000, 100.0)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(by("cpu", scores, target, weight, noise, 0.7))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


@pytest.mark.parametrize("noise", ["normal", "uniform", "exponential"])
def test_a_second_derivative_is_that_of_the_plain_path(noise: str) -> None:
    scores, target, weight = sample(60, 1.0)
    found = []
    for kernel in ("cpu", "reference"):
        z = scores.clone().requires_grad_()
        doubled = 2 * z  # not a leaf
        with lossmith.use_kernel(kernel):
            value = expected_auc(doubled, target, noise=noise, weight=weight)
        (gradient,) = torch.autograd.grad(value, z, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), z)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-13)


def test_only_what_is_asked_for_is_differentiated() -> None:
    scores, target, weight = sample(60, 1.0)
    expected = by("cpu", scores, target, weight, "laplace", 0.7)
    sigma = torch.tensor([0.7], requires_grad=True)  # float32, of one element: the gradient is as it is
    value = expected_auc(scores, target, noise="laplace", scale=sigma, weight=weight)
    (gradient,) = torch.autograd.grad(value, sigma)
    assert gradient.shape == (1,)
    assert float(gradient) == pytest.approx(float(expected[2]), rel=1e-6)
    light = weight.float().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_auc(scores, target, noise="laplace", scale=0.7, weight=light), light)
    torch.testing.assert_close(gradient, expected[3].float(), rtol=1e-4, atol=1e-8)


def test_weights_of_zero_and_a_class_of_one() -> None:
    scores, target, weight = sample(300, 2.0)
    weight[::3] = 0
    target[:] = False
    target[1] = True
    for noise in SMOOTH + KINKED:
        ours, plain = (by(kernel, scores, target, weight, noise, 0.7) for kernel in ("cpu", "reference"))
        for mine, theirs in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_scores_too_far_apart_for_a_lattice_go_by_the_plain_path() -> None:
    scores, target, _ = sample(300, 1e7)
    value = expected_auc(scores, target)
    assert lossmith.last_kernel() == "reference"
    assert 0 < float(value) < 1
    spread = r"^kernel: 'cpu' cannot serve this call of expected_auc \(the scores span .* panels\); expected one of: ref"
    with lossmith.use_kernel("cpu"), pytest.raises(ValueError, match=spread):
        expected_auc(scores, target)
    assert expected_auc(scores, target, noise="laplace").shape == ()  # which need none
    assert lossmith.last_kernel() == "cpu"


def test_in_inference_mode_and_then_with_a_gradient() -> None:
    scores, target, _ = sample(300, 2.0)
    auc._powers.cache_clear()
    for noise in ("normal", "uniform"):
        with torch.inference_mode():
            value = expected_auc(scores, target, noise=noise)
        assert lossmith.last_kernel() == "cpu"
        z = scores.clone().requires_grad_()
        again = expected_auc(z, target, noise=noise)
        again.backward()
        assert torch.equal(value, again.detach())
        assert z.grad is not None


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in forward mode
def test_transforms_go_by_the_plain_path() -> None:
    scores, target, _ = sample(50, 2.0)
    expected = by("cpu", scores, target, None, "exponential", 1.0)[1]
    found = torch.func.grad(lambda z: expected_auc(z, target, noise="exponential"))(scores)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert lossmith.last_kernel() == "reference"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scores, torch.ones_like(scores))
        tangent = forward_ad.unpack_dual(expected_auc(dual, target, noise="exponential")).tangent
    assert float(tangent) == pytest.approx(0, abs=1e-15)


@pytest.fixture
def _mended() -> Iterator[None]:
    yield
    broken.pop((auc.OPERATION, "cpu"), None)


@pytest.mark.usefixtures("_mended")
def test_a_kernel_that_fails_is_named_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, target, _ = sample(50, 2.0)
    expected = float(expected_auc(scores, target))

    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(auc, "run_team", fail)
    with pytest.warns(
        RuntimeWarning, match=r"^kernel 'cpu' of expected_auc failed .OSError: no room.; the reference runs instead"
    ):
        value = expected_auc(scores, target)
    assert float(value) == pytest.approx(expected, abs=1e-14)
    assert lossmith.last_kernel() == "reference"
    assert float(expected_auc(scores, target)) == float(value)  # without a second warning, which would be an error
    failed = r"cannot serve this call of expected_auc .it failed before: OSError: no room"
    with lossmith.use_kernel("cpu"), pytest.raises(ValueError, match=failed):
        expected_auc(scores, target)


def test_a_score_changed_in_place_is_noticed() -> None:
    z = sample(50, 2.0)[0].requires_grad_()
    target = sample(50, 2.0)[1]
    moved = z * 1
    value = expected_auc(moved, target)
    with torch.no_grad():
        moved += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_compiled() -> None:
    scores, target, _ = sample(50, 2.0)
    compiled = torch.compile(lambda z: expected_auc(z, target, noise="exponential"), backend="eager")
    assert float(compiled(scores)) == pytest.approx(float(expected_auc(scores, target, noise="exponential")), abs=1e-14)


def test_a_noise_that_no_panel_resolves_is_refused_by_all() -> None:
    normal = noises.Normal()
    rough = noises.Custom(
        lambda x: torch.logaddexp(normal.log_prob(x - 1000), normal.log_prob(x + 1000)) - math.log(2),
        lambda x: torch.logaddexp(normal.log_cdf(x - 1000), normal.log_cdf(x + 1000)) - math.log(2),
        lambda p: normal.icdf((2 * p) % 1) + torch.where(p < 0.5, -1000.0, 1000.0).to(p),
    )
    scores, target, _ = sample(50, 2e4)
    with pytest.raises(ValueError, match=r"^noise: expected a smooth density with one peak"):
        expected_auc(scores, target, noise=rough)
    assert (auc.OPERATION, "cpu") not in broken


def test_powers_are_chebyshev_polynomials() -> None:
    t = np.linspace(-1, 1, 9)
    expected = np.cos(np.arange(16)[:, None] * np.arccos(t))
    np.testing.assert_allclose(auc._powers() @ t[None, :] ** np.arange(16)[:, None], expected, atol=1e-11)
