import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossmith.functional import argmax_log_prob, argmax_log_probs, standardize_scores, topk_log_prob
from lossmith.noise import Noise
from support import oracles
from support.cases import EACH, gradient, tensor

EXACT = 1e-12  # float64: rounding
BY_INTEGRATION = 1e-9  # float64: the promised error of log p
BY_SCIPY = 1e-6  # the error asked of scipy's randomised orthant probabilities is 1e-8
STANDARD_ERRORS = 5  # a fresh seed would fail once in 1.7 million times a class
DELTA = (-0.5, 0.2, 0.5, 1.0, 2.0)


def p_of_lead(delta: Any, **options: Any) -> Tensor:
    """p of a target that leads its rivals by delta."""
    scores = torch.cat([tensor([0.0]), -torch.as_tensor(delta, dtype=torch.float64)])
    return argmax_log_prob(scores, torch.tensor(0), **options).exp()


@pytest.mark.parametrize(("delta", "log_p"), [(-20.0, -103.573), (-40.0, -404.262)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_deep_tails(delta: float, log_p: float, dtype: torch.dtype) -> None:
    scores = torch.tensor([delta, 0.0], dtype=dtype)
    removed = torch.tensor([delta, 0.0, -math.inf], dtype=dtype)  # three classes: by integration
    for case in (scores, removed):
        assert argmax_log_prob(case, torch.tensor(0)).item() == pytest.approx(log_p, abs=6e-4)


@pytest.mark.parametrize("delta", [(0.3,), (-1.0, 0.5), (0.0, 0.0, 0.0), (1.0, -2.0, 0.1, 3.0), DELTA])
def test_orthant_probability_integral_and_frequency_are_one_number(delta: tuple[float, ...]) -> None:
    p = p_of_lead(delta).item()
    rivals = tuple((-d, 1) for d in delta)
    samples = 200_000
    counted = oracles.counted_frequencies([0.0, *(z for z, _ in rivals)], "normal", samples, seed=5)[0]
    assert p == pytest.approx(math.exp(oracles.log_p_mp(0.0, rivals)), rel=BY_INTEGRATION)
    assert p == pytest.approx(oracles.orthant_p(delta), abs=BY_SCIPY)
    assert abs(p - counted) < STANDARD_ERRORS * math.sqrt(p * (1 - p) / samples)


def test_worked_example() -> None:
    delta = tensor(DELTA, requires_grad=True)
    p = p_of_lead(delta)
    (slopes,) = torch.autograd.grad(p, delta)
    assert p.item() == pytest.approx(0.22985, abs=5e-6)
    np.testing.assert_allclose(slopes.numpy(), [0.12316, 0.05963, 0.04092, 0.01972, 0.00293], atol=5e-6)


def test_gradient_formula_autograd_and_differences_agree() -> None:
    delta = tensor(DELTA, requires_grad=True)
    (slopes,) = torch.autograd.grad(p_of_lead(delta), delta)
    h = 1e-4
    steps = h * torch.eye(5, dtype=torch.float64)
    differences = torch.stack([(p_of_lead(delta + s) - p_of_lead(delta - s)) / (2 * h) for s in steps])
    np.testing.assert_allclose(slopes.numpy(), oracles.orthant_gradient(DELTA), atol=BY_SCIPY)
    torch.testing.assert_close(slopes, differences, rtol=0, atol=h * h)


@pytest.mark.parametrize(
    ("C", "ratio", "ceiling"),
    [
        (10, 0.5, 0.199),
        (10, 1.0, 0.341),
        (10, 5.0, 0.998),
        (100, 0.5, 0.032),
        (100, 1.0, 0.083),
        (100, 5.0, 0.988),
        (7, 0.0, 1 / 7),
    ],
)
def test_margin_is_a_ceiling_without_gradient_above(C: int, ratio: float, ceiling: float) -> None:
    scores = torch.zeros(C, dtype=torch.float64)
    scores[0] = 1000.0
    scores.requires_grad_()
    p = argmax_log_prob(scores, torch.tensor(0), margin=2 * ratio, scale=2.0).exp()
    assert p.item() == pytest.approx(ceiling, abs=6e-4)
    assert torch.autograd.grad(p, scores)[0].abs().max().item() < 1e-15


@EACH
def test_margin_caps_the_lead_over_each_rival(noise: Noise) -> None:
    scores = tensor([1.0, 0.4, -2.0, 1.5], requires_grad=True)
    capped = tensor([1.0, 0.4, 0.3, 1.5], requires_grad=True)
    one = argmax_log_prob(scores, torch.tensor(0), noise=noise, margin=0.7)
    other = argmax_log_prob(capped, torch.tensor(0), noise=noise)
    assert one.item() == pytest.approx(other.item(), rel=BY_INTEGRATION)
    got, expected = torch.autograd.grad(one, scores)[0], torch.autograd.grad(other, capped)[0]
    assert got[2] == 0
    torch.testing.assert_close(got[[1, 3]], expected[[1, 3]])
    assert got.sum().item() == pytest.approx(0.0, abs=1e-14)


def test_standardized_scores_have_mean_zero_and_variance_one() -> None:
    scores = tensor(np.random.default_rng(0).normal(3.0, 5.0, (4, 3)))
    keep = torch.tensor([True, False, True, True])
    for got, rows in ((standardize_scores(scores), scores), (standardize_scores(scores, keep), scores[keep])):
        expected = (scores.numpy() - rows.numpy().mean()) / rows.numpy().std()
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)
    torch.testing.assert_close(standardize_scores(7 * scores), standardize_scores(scores))
    assert not standardize_scores(torch.full((2, 3), 0.5)).any()  # equal scores stay finite
    assert standardize_scores(scores, torch.zeros(4, dtype=torch.bool)).isfinite().all()
    assert standardize_scores(scores.half()).dtype == torch.float16


INF = math.inf
SCORES_3 = [[0.3, -0.4, 1.2], [2.0, 2.0, -1.0]]


def each(scores: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    one, every = argmax_log_prob(scores, target, **options), argmax_log_probs(scores, **options)
    return one, every, topk_log_prob(scores, target, 2, **options)


@EACH
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 1, 2), (0,), (2, 0)])
def test_any_leading_shape(shape: tuple[int, ...], noise: Noise) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(4, shape, generator=generator)
    scale = torch.rand(*shape, 1, generator=generator, dtype=torch.float64) + 0.5
    one, every, top = each(scores, target, noise=noise, scale=scale)
    assert one.shape == shape
    assert every.shape == (*shape, 4)
    assert top.shape == shape
    for row in np.ndindex(shape):
        alone, all_alone, top_alone = each(scores[row], target[row], noise=noise, scale=scale[row].item())
        torch.testing.assert_close(one[row], alone, rtol=BY_INTEGRATION, atol=EXACT)
        torch.testing.assert_close(top[row], top_alone, rtol=BY_INTEGRATION, atol=EXACT)
        torch.testing.assert_close(every[row], all_alone, rtol=BY_INTEGRATION, atol=BY_INTEGRATION)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("C", [2, 3])
def test_half_types_compute_in_float32(dtype: torch.dtype, C: int, noise: Noise) -> None:
    scores = (0.37 * torch.arange(6.0).view(-1, C)).to(dtype)
    target = torch.arange(6 // C) % C
    got = each(scores, target, noise=noise, scale=0.3)
    single = each(scores.float(), target, noise=noise, scale=0.3)
    for ours, theirs in zip(got, single, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs.to(dtype))


@EACH
def test_memory_layout_inputs_and_repetition(noise: Noise) -> None:
    scores = tensor([SCORES_3, [[0.0, 5.0, 1.0], [-1.0, 0.5, 0.0]]])  # (2, 2, 3)
    target = torch.tensor([[0, 1], [2, 2]])
    before = scores.clone(), target.clone()
    expected = each(scores, target, noise=noise)
    again = each(scores, target, noise=noise)
    strided = each(scores.mT.contiguous().mT, target.T.contiguous().T, noise=noise)
    expanded = argmax_log_probs(scores[:1].expand(5, 2, 3), noise=noise)
    assert torch.equal(scores, before[0])
    assert torch.equal(target, before[1])
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))  # the same bits
    torch.testing.assert_close(strided, expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(expanded, expected[1][:1].expand(5, 2, 3), rtol=EXACT, atol=EXACT)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(argmax_log_prob(scores, target.to(dtype), noise=noise), expected[0])


@EACH
@pytest.mark.parametrize("scores", [[0.5, -INF], [0.5, -INF, -1.0], [-INF, -INF, -1.0, -0.5]])
def test_a_removed_class_has_no_chance_and_leaves_gradients_finite(scores: list[float], noise: Noise) -> None:
    z = tensor([scores], requires_grad=True)
    present = z[0].isfinite()
    rest = z.detach()[:, present]
    one = torch.cat([argmax_log_prob(z, torch.tensor([k]), noise=noise) for k in range(len(scores))])
    for got in (one, argmax_log_probs(z, noise=noise)[0]):
        assert got[~present].isneginf().all()
        alone = argmax_log_probs(rest, noise=noise)[0] if rest.shape[1] > 1 else tensor([0.0])
        torch.testing.assert_close(got[present], alone, rtol=BY_INTEGRATION, atol=BY_INTEGRATION)
        for k in range(len(scores)):
            slopes = gradient(got[k], z, retain_graph=True)
            assert slopes.isfinite().all(), f"class {k}: {slopes}"


@EACH
def test_a_hopeless_class_is_less_likely_than_any_float(noise: Noise) -> None:
    """log p stays a number where p underflows, and is −inf only where the noise has ends."""
    z = tensor([[-2000.0, 0.0, 0.5]], requires_grad=True)
    for log_p in (argmax_log_prob(z, torch.tensor([0]), noise=noise)[0], argmax_log_probs(z, noise=noise)[0, 0]):
        slopes = gradient(log_p, z)
        assert slopes.isfinite().all()
        if noise.name == "uniform":
            assert log_p.isneginf()
            assert not slopes.any()
        else:
            assert -1e7 < log_p < -6
            assert slopes[0, 0] > 0


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 1)])
def test_scale_is_a_number_or_a_tensor_that_broadcasts(shape: tuple[int, ...]) -> None:
    scores, target = tensor(SCORES_3, requires_grad=True), torch.tensor([1, 0])
    scale = torch.full(shape, 0.7, dtype=torch.float64, requires_grad=True)
    log_p = argmax_log_prob(scores, target, scale=scale)
    torch.testing.assert_close(log_p, argmax_log_prob(scores, target, scale=0.7), rtol=EXACT, atol=0)
    by_score, by_scale = torch.autograd.grad(log_p.sum(), (scores, scale))
    # log p depends on scores / scale only.
    expected = -(scores * by_score).sum(-1, keepdim=True) / 0.7
    torch.testing.assert_close(by_scale, expected.sum_to_size(shape), rtol=1e-9, atol=0)
