import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracles
from lossmith.functional import argmax_log_prob, argmax_log_probs, standardize_scores

EXACT = 1e-12  # float64: rounding
BY_INTEGRATION = 1e-9  # float64: the promised error of log p
BY_SCIPY = 1e-6  # the error asked of scipy's randomised orthant probabilities is 1e-8
STANDARD_ERRORS = 5  # a fresh seed would fail once in 1.7 million times a class
DELTA = (-0.5, 0.2, 0.5, 1.0, 2.0)
NOISES = pytest.mark.parametrize("noise", ["normal", "gumbel"])


def tensor(values: Any, **options: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, **options)


def p_of_lead(delta: Any, **options: Any) -> Tensor:
    """p of a target that leads its rivals by delta."""
    scores = torch.cat([tensor([0.0]), -torch.as_tensor(delta, dtype=torch.float64)])
    return argmax_log_prob(scores, torch.tensor(0), **options).exp()


@pytest.mark.parametrize("delta", [-30.0, -2.0, 0.0, 0.4, 6.0])
def test_two_classes_and_normal_noise_are_phi(delta: float) -> None:
    got = argmax_log_prob(tensor([delta, 0.0]), torch.tensor(0))
    assert got.item() == pytest.approx(oracles.log_ndtr_mp(delta / math.sqrt(2)), rel=EXACT)


@pytest.mark.parametrize(("delta", "log_p"), [(-20.0, -103.573), (-40.0, -404.262)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_deep_tails(delta: float, log_p: float, dtype: torch.dtype) -> None:
    scores = torch.tensor([delta, 0.0], dtype=dtype)
    removed = torch.tensor([delta, 0.0, -math.inf], dtype=dtype)  # three classes: by integration
    for case in (scores, removed):
        assert argmax_log_prob(case, torch.tensor(0)).item() == pytest.approx(log_p, abs=6e-4)


@NOISES
@pytest.mark.parametrize("C", [2, 3, 10, 1000])
def test_equal_scores_share_evenly(C: int, noise: str) -> None:
    every = argmax_log_probs(torch.full((C,), 3.7, dtype=torch.float64), noise=noise)
    torch.testing.assert_close(every, torch.full_like(every, -math.log(C)), rtol=BY_INTEGRATION, atol=0)


def test_gumbel_noise_is_softmax() -> None:
    scores = tensor([[0.3, -2.0, 40.0, 1.0], [0.0, 0.0, -5.0, 2.0]])
    got = argmax_log_probs(scores, noise="gumbel", scale=0.5).exp()
    np.testing.assert_allclose(got.numpy(), oracles.softmax(scores.numpy() / 0.5), rtol=1e-13)


@pytest.mark.parametrize("delta", [(0.3,), (-1.0, 0.5), (0.0, 0.0, 0.0), (1.0, -2.0, 0.1, 3.0), DELTA])
def test_orthant_probability_integral_and_frequency_are_one_number(delta: tuple[float, ...]) -> None:
    p = p_of_lead(delta).item()
    rivals = tuple((-d, 1) for d in delta)
    samples = 200_000
    counted = oracles.counted_frequencies([0.0, *(z for z, _ in rivals)], "normal", samples, seed=5)[0]
    assert p == pytest.approx(math.exp(oracles.log_p_mp(0.0, rivals)), rel=BY_INTEGRATION)
    assert p == pytest.approx(oracles.orthant_p(delta), abs=BY_SCIPY)
    assert abs(p - counted) < STANDARD_ERRORS * math.sqrt(p * (1 - p) / samples)


@NOISES
def test_probabilities_are_frequencies(noise: str) -> None:
    scores, samples = [0.0, 1.5, -1.0, 0.7, 0.7, -4.0], 400_000
    p = argmax_log_probs(tensor(scores), noise=noise).exp().numpy()
    counted = oracles.counted_frequencies(scores, noise, samples, seed=6)
    assert (abs(p - counted) < STANDARD_ERRORS * np.sqrt(p * (1 - p) / samples)).all()


@NOISES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_scale_counts_and_ties_share(noise: str, dtype: torch.dtype) -> None:
    scores = torch.tensor([[2.0, 1.0, 2.0, -9.0], [0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.0]], dtype=dtype)
    counted = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]], dtype=dtype)
    every = argmax_log_probs(scores, noise=noise, scale=0.01)
    torch.testing.assert_close(every.exp(), counted, rtol=0, atol=1e-6)
    for k in range(4):
        one = argmax_log_prob(scores, torch.full((3,), k), noise=noise, scale=0.01)
        torch.testing.assert_close(one.exp(), counted[:, k], rtol=0, atol=1e-6)


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


SCORES = st.lists(
    st.sampled_from([-30.0, -3.0, -1.5, 0.0, 0.25, 1.0, 20.0]) | st.floats(-8, 8, width=32), min_size=2, max_size=7
)
LAW = settings(max_examples=30, derandomize=True, database=None, deadline=None)


@NOISES
@LAW
@given(values=SCORES, shift=st.integers(-64, 64), scale=st.sampled_from([0.25, 0.5, 4.0]))
def test_laws(noise: str, values: list[float], shift: int, scale: float) -> None:
    scores = tensor(values, requires_grad=True)
    every = argmax_log_probs(scores, noise=noise)
    torch.testing.assert_close(every.exp().sum(), tensor(1.0), rtol=BY_INTEGRATION, atol=0)
    same = {"rtol": BY_INTEGRATION, "atol": BY_INTEGRATION}
    torch.testing.assert_close(argmax_log_probs(scores + shift, noise=noise), every, **same)
    torch.testing.assert_close(argmax_log_probs(scores * scale, noise=noise, scale=scale), every, **same)
    torch.testing.assert_close(argmax_log_probs(scores.flip(0), noise=noise).flip(0), every, **same)
    log_p = argmax_log_prob(scores, torch.tensor(0), noise=noise)
    torch.testing.assert_close(log_p, every[0], **same)
    (slopes,) = torch.autograd.grad(log_p, scores)
    assert abs(slopes.sum().item()) <= 1e-12 * max(1.0, slopes.abs().max().item())
    assert slopes[0] >= 0
    assert (slopes[1:] <= 0).all()


@NOISES
def test_p_rises_with_the_own_score_and_falls_with_a_rivals(noise: str) -> None:
    scores = tensor([0.0, 0.5, -1.0]).repeat(25, 1)
    scores[:, 0] = torch.linspace(-20, 4, 25)  # further up p is 1 to rounding
    own, rival = (argmax_log_prob(scores, torch.full((25,), k), noise=noise) for k in (0, 1))
    assert (own.diff() > 0).all()
    assert (rival.diff() <= 1e-15).all()
    assert (rival[15:].diff() < 0).all()  # from a lead of −5 on; before, p of the rival hardly moves


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


@NOISES
def test_margin_caps_the_lead_over_each_rival(noise: str) -> None:
    scores = tensor([1.0, 0.4, -2.0, 3.0], requires_grad=True)
    capped = tensor([1.0, 0.4, 0.3, 3.0], requires_grad=True)
    one = argmax_log_prob(scores, torch.tensor(0), noise=noise, margin=0.7)
    other = argmax_log_prob(capped, torch.tensor(0), noise=noise)
    assert one.item() == pytest.approx(other.item(), rel=EXACT)
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


INF, NAN = math.inf, math.nan
SCORES_3 = [[0.3, -0.4, 1.2], [2.0, 2.0, -1.0]]


def both(scores: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return argmax_log_prob(scores, target, **options), argmax_log_probs(scores, **options)


@NOISES
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 1, 2), (0,), (2, 0)])
def test_any_leading_shape(shape: tuple[int, ...], noise: str) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(4, shape, generator=generator)
    scale = torch.rand(*shape, 1, generator=generator, dtype=torch.float64) + 0.5
    one, every = both(scores, target, noise=noise, scale=scale)
    assert one.shape == shape
    assert every.shape == (*shape, 4)
    for row in np.ndindex(shape):
        alone, all_alone = both(scores[row], target[row], noise=noise, scale=scale[row].item())
        torch.testing.assert_close(one[row], alone, rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(every[row], all_alone, rtol=BY_INTEGRATION, atol=BY_INTEGRATION)


@NOISES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("C", [2, 3])
def test_half_types_compute_in_float32(dtype: torch.dtype, C: int, noise: str) -> None:
    scores = (0.37 * torch.arange(6.0).view(-1, C)).to(dtype)
    target = torch.arange(6 // C) % C
    got = both(scores, target, noise=noise, scale=0.3)
    single = both(scores.float(), target, noise=noise, scale=0.3)
    for ours, theirs in zip(got, single, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs.to(dtype))


@NOISES
def test_memory_layout_inputs_and_repetition(noise: str) -> None:
    scores = tensor([SCORES_3, [[0.0, 5.0, 1.0], [-1.0, 0.5, 0.0]]])  # (2, 2, 3)
    target = torch.tensor([[0, 1], [2, 2]])
    before = scores.clone(), target.clone()
    expected = both(scores, target, noise=noise)
    again = both(scores, target, noise=noise)
    strided = both(scores.mT.contiguous().mT, target.T.contiguous().T, noise=noise)
    expanded = argmax_log_probs(scores[:1].expand(5, 2, 3), noise=noise)
    assert torch.equal(scores, before[0])
    assert torch.equal(target, before[1])
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))  # the same bits
    torch.testing.assert_close(strided, expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(expanded, expected[1][:1].expand(5, 2, 3), rtol=EXACT, atol=EXACT)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(argmax_log_prob(scores, target.to(dtype), noise=noise), expected[0])


@NOISES
@pytest.mark.parametrize("scores", [[0.5, -INF], [0.5, -INF, -1.0], [-INF, -INF, -1.0, 0.0]])
def test_minus_infinity_removes_a_class(scores: list[float], noise: str) -> None:
    z = tensor([scores], requires_grad=True)
    present = z[0].isfinite()
    rest = z.detach()[:, present]
    one = torch.cat([argmax_log_prob(z, torch.tensor([k]), noise=noise) for k in range(len(scores))])
    for got in (one, argmax_log_probs(z, noise=noise)[0]):
        assert got[~present].isneginf().all()
        alone = argmax_log_probs(rest, noise=noise)[0] if rest.shape[1] > 1 else tensor([0.0])
        torch.testing.assert_close(got[present], alone, rtol=BY_INTEGRATION, atol=BY_INTEGRATION)
        for k in range(len(scores)):
            (slopes,) = torch.autograd.grad(got[k], z, retain_graph=True)
            assert slopes.isfinite().all(), f"class {k}: {slopes}"


@NOISES
@pytest.mark.parametrize("C", [2, 3])
def test_nan_stays_in_its_row(C: int, noise: str) -> None:
    scores = torch.zeros(2, C)
    scores[0, 1] = NAN
    one, every = both(scores, torch.tensor([0, 0]), noise=noise)
    assert one.isnan().tolist() == [True, False]
    assert every.isnan().tolist() == [[True] * C, [False] * C]


@NOISES
@pytest.mark.parametrize("margin", [None, 0.9])
def test_gradcheck(noise: str, margin: float | None) -> None:
    scores, scale = tensor(SCORES_3, requires_grad=True), tensor([[0.8], [1.7]], requires_grad=True)
    target, upstream = torch.tensor([1, 0]), tensor([3.0, -0.5])

    def one(z: Tensor, s: Tensor) -> Tensor:
        return argmax_log_prob(z, target, noise=noise, scale=s, margin=margin) * upstream

    assert torch.autograd.gradcheck(one, (scores, scale))
    assert torch.autograd.gradcheck(lambda z: one(z, 0.5), scores[:, :2].detach().requires_grad_())
    assert torch.autograd.gradgradcheck(one, (scores, scale))
    if margin is None:
        assert torch.autograd.gradcheck(lambda z, s: argmax_log_probs(z, noise=noise, scale=s), (scores, scale))
        assert torch.autograd.gradgradcheck(lambda z, s: argmax_log_probs(z, noise=noise, scale=s), (scores, scale))
        assert torch.autograd.gradcheck(lambda z: standardize_scores(z, torch.tensor([True, False])), scores)


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


Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
REFUSED = [
    ((Z.long(), Y), {}, TypeError, r"^scores: expected a floating-point tensor, got torch.int64; .+$"),
    ((Z[:, :1], Y), {}, ValueError, r"^scores: expected shape \(…, C\) with C ≥ 2 classes, got \(4, 1\)$"),
    ((Z[0, 0], Y), {}, ValueError, r"^scores: expected shape .+, got \(\)$"),
    ((Z, Y.float()), {}, TypeError, r"^target: expected integer class indices, got torch.float32$"),
    ((Z, Y.bool()), {}, TypeError, r"^target: expected integer class indices, got torch.bool$"),
    ((Z, Y[:3]), {}, ValueError, r"^target: expected shape \(4,\) for scores \(4, 3\), got \(3,\)$"),
    ((Z, Y + 3), {}, ValueError, r"^target: expected class indices from 0 to 2, got 3 to 3$"),
    ((Z, Y - 1), {}, ValueError, r"^target: expected class indices from 0 to 2, got -1 to -1$"),
    ((Z, Y), {"noise": "gumble"}, ValueError, r"^noise: unknown name 'gumble'; did you mean 'gumbel'\?$"),
    ((Z, Y), {"noise": 1}, TypeError, r"^noise: expected a name or a .+, got int$"),
    ((Z, Y), {"scale": 0.0}, ValueError, r"^scale: expected positive numbers, got 0.0$"),
    ((Z, Y), {"scale": NAN}, ValueError, r"^scale: expected positive numbers, got nan$"),
    ((Z, Y), {"scale": -torch.ones(4, 1)}, ValueError, r"^scale: expected positive numbers, got [^\n]+$"),
    ((Z, Y), {"scale": torch.ones(4)}, ValueError, r"^scale: expected a shape that broadcasts to \(4, 1\), got \(4,\)$"),
    ((Z, Y), {"margin": -1.0}, ValueError, r"^margin: expected a number ≥ 0 in units of the scores, got -1.0$"),
    ((Z, Y), {"margin": NAN}, ValueError, r"^margin: expected .+, got nan$"),
]


@pytest.mark.parametrize(("inputs", "options", "error", "message"), REFUSED)
def test_refuses_in_one_line(inputs: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        argmax_log_prob(*inputs, **options)
    if inputs[1] is Y and "margin" not in options:
        with pytest.raises(error, match=message):
            argmax_log_probs(inputs[0], **options)
