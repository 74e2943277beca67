"""torch.func and torch.compile of the functions, without a loss around them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossmith.functional import (
    argmax_log_prob,
    argmax_log_probs,
    expected_auc,
    expected_average_precision,
    neg_log_q,
    standardize_scores,
    topk_log_prob,
)
from support.cases import NEW_TORCH

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(6, 4, generator=GENERATOR)
TARGET = torch.tensor([0, 3, 1, 2, 2, 0])
SIDE = TARGET.repeat_interleave(4) > 1
WEIGHT = torch.rand(24, generator=GENERATOR)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax_log_prob": lambda z: argmax_log_prob(z, TARGET).sum(),
    "argmax_log_probs": lambda z: argmax_log_probs(z)[:, 0].sum(),
    "topk_log_prob": lambda z: topk_log_prob(z, TARGET, 2).sum(),
    "expected_auc": lambda z: expected_auc(z.flatten(), SIDE, weight=WEIGHT),
    "expected_auc, laplace": lambda z: expected_auc(z.flatten(), SIDE, noise="laplace", scale=0.5),
    "expected_average_precision": lambda z: expected_average_precision(z.flatten(), SIDE),
    "neg_log_q": lambda z: neg_log_q(-z.abs(), 0.5).sum(),
    "standardize_scores": lambda z: standardize_scores(z).square()[0].sum(),
}
# torch's own forward mode warns of torch's own torch.jit.script when it is loaded.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
EACH = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def in_eager_mode(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    scores = SCORES.clone().requires_grad_()
    value = function(scores)
    return value.detach(), torch.autograd.grad(value, scores)[0]


@EACH
def test_func_grad(function: Callable[[Tensor], Tensor]) -> None:
    grad, value = torch.func.grad_and_value(function)(SCORES)
    torch.testing.assert_close((value, grad), in_eager_mode(function), rtol=1e-5, atol=1e-6)


@NEW_TORCH
@EACH
def test_compile(function: Callable[[Tensor], Tensor]) -> None:
    scores = SCORES.clone().requires_grad_()
    value = torch.compile(function, fullgraph=True, backend="aot_eager")(scores)
    value.backward()
    assert scores.grad is not None
    torch.testing.assert_close((value.detach(), scores.grad), in_eager_mode(function), rtol=1e-5, atol=1e-6)


@FORWARD_MODE
@pytest.mark.parametrize("noise", ["uniform", "laplace", "exponential"])
def test_auc_with_kinks_is_differentiated_any_number_of_times(noise: str) -> None:
    """By torch's own operations: against double backward, and in forward mode against the gradient."""
    scores, side = SCORES.flatten()[:8].double(), SIDE[:8] | (torch.arange(8) == 0)

    def auc(z: Tensor) -> Tensor:
        return expected_auc(z, side, noise=noise)

    expected = torch.autograd.functional.hessian(auc, scores)
    for hessian in (torch.func.hessian(auc), torch.func.jacrev(torch.func.grad(auc))):
        torch.testing.assert_close(hessian(scores), expected, rtol=1e-10, atol=1e-13)
    direction = torch.linspace(-1, 1, 8, dtype=torch.float64)
    tangent = torch.func.jvp(auc, (scores,), (direction,))[1]
    torch.testing.assert_close(tangent, torch.func.grad(auc)(scores) @ direction, rtol=1e-10, atol=1e-13)


@NEW_TORCH
@FORWARD_MODE
@pytest.mark.parametrize("noise", ["uniform", "laplace", "exponential"])
def test_average_precision_with_kinks_in_forward_mode(noise: str) -> None:
    scores, side = SCORES.flatten()[:8].double(), SIDE[:8] | (torch.arange(8) == 0)

    def precision(z: Tensor) -> Tensor:
        return expected_average_precision(z, side, noise=noise)

    direction = torch.linspace(-1, 1, 8, dtype=torch.float64)
    tangent = torch.func.jvp(precision, (scores,), (direction,))[1]
    torch.testing.assert_close(tangent, torch.func.grad(precision)(scores) @ direction, rtol=1e-9, atol=1e-12)


@FORWARD_MODE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(), (6, 1)], ids=["one scale", "a scale a row"])
def test_log_prob_in_forward_mode_and_its_hessian(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """Against backward mode and double backward, in the scores and in the scale."""
    scores, scale = SCORES.to(dtype), torch.linspace(0.5, 0.9, 6 if size else 1, dtype=dtype).reshape(size)

    def squares(z: Tensor, s: Tensor) -> Tensor:
        return argmax_log_prob(z, TARGET, scale=s).square().sum()

    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(scores.shape, generator=generator).to(dtype), torch.randn(size, generator=generator).to(dtype)
    exactness = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    gradient = torch.func.grad(squares, (0, 1))(scores, scale)
    expected = sum((g * d).sum() for g, d in zip(gradient, directions, strict=True))
    torch.testing.assert_close(torch.func.jvp(squares, (scores, scale), directions)[1], expected, **exactness)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, d) for x, d in zip((scores, scale), directions, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(squares(*duals)).tangent, expected, **exactness)
    hessian = torch.autograd.functional.hessian(squares, (scores, scale))
    both = torch.func.hessian(squares, (0, 1)), torch.func.jacrev(torch.func.grad(squares, (0, 1)), (0, 1))
    for found in both:
        torch.testing.assert_close(found(scores, scale), hessian, **exactness)
