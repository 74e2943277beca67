"""What must hold whatever the scores and the noise: laws of probability, limits, and known special cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossmith import PerturbedArgmax
from lossmith.functional import argmax_log_prob, argmax_log_probs, topk_log_prob
from lossmith.noise import Noise
from support import oracles
from support.cases import BY_NAME, EACH, copy_of, random_scores, tensor

INF = math.inf
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # the promised error of log p
LAW = settings(max_examples=5, derandomize=True, database=None, deadline=None)
# Ties, gaps at which a uniform noise starts and stops to matter, far gaps, and anything.
SCORE = st.sampled_from([-30.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 20.0]) | st.floats(-6, 6, width=32)
ROWS = st.integers(2, 5).flatmap(
    lambda C: st.lists(st.lists(SCORE, min_size=C, max_size=C), min_size=3, max_size=3).map(tensor)
)
TIED = [[2.0, 1.0, 2.0, -9.0], [0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.0], [4.0, 4.0, 4.0, 4.0]]


def each_topk(scores: Tensor, k: int, noise: Noise, scale: float = 1.0) -> Tensor:
    """(rows, C): topk_log_prob of every class."""
    rows, C = scores.shape
    target = torch.arange(C).expand(rows, C)
    return topk_log_prob(scores.unsqueeze(1).expand(rows, C, C), target, k, noise=noise, scale=scale)


def each_argmax(scores: Tensor, noise: Noise, scale: float = 1.0) -> Tensor:
    rows, C = scores.shape
    target = torch.arange(C).expand(rows, C)
    return argmax_log_prob(scores.unsqueeze(1).expand(rows, C, C), target, noise=noise, scale=scale)


@EACH
@LAW
@given(scores=ROWS)
def test_probabilities_sum_to_the_number_of_places(noise: Noise, scores: Tensor) -> None:
    every = argmax_log_probs(scores, noise=noise)
    assert (every <= 1e-15).all()
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(3).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(every, each_argmax(scores, noise), **CLOSE)
    for k in {2, scores.shape[1] - 1, scores.shape[1]} - {1}:
        log_p = each_topk(scores, k, noise)
        assert (log_p <= 1e-15).all()
        torch.testing.assert_close(log_p.exp().sum(-1), torch.full((3,), k).double(), rtol=1e-9, atol=0)


@EACH
@LAW
@given(scores=ROWS, shift=st.integers(-64, 64), scale=st.sampled_from([0.25, 0.5, 4.0]))
def test_shift_joint_scale_and_order_do_not_matter(noise: Noise, scores: Tensor, shift: int, scale: float) -> None:
    k = min(2, scores.shape[1] - 1)
    for function in (lambda z, s=1.0: argmax_log_probs(z, noise=noise, scale=s), lambda z, s=1.0: each_topk(z, k, noise, s)):
        expected = function(scores)
        torch.testing.assert_close(function(scores + shift), expected, **CLOSE)
        torch.testing.assert_close(function(scores * scale, scale), expected, **CLOSE)
        torch.testing.assert_close(function(scores.flip(-1)).flip(-1), expected, **CLOSE)


@EACH
@LAW
@given(scores=ROWS, place=st.integers(0, 2))
def test_minus_infinity_is_a_class_removed(noise: Noise, scores: Tensor, place: int) -> None:
    place = min(place, scores.shape[1])
    wide = torch.cat([scores[:, :place], torch.full((3, 1), -INF).double(), scores[:, place:]], -1)
    present = [j for j in range(wide.shape[1]) if j != place]
    pairs = [(argmax_log_probs(wide, noise=noise), argmax_log_probs(scores, noise=noise))]
    pairs += [(each_topk(wide, k, noise), each_topk(scores, k, noise)) for k in (1, scores.shape[1] - 1, scores.shape[1])]
    for got, expected in pairs:
        assert got[:, place].isneginf().all()
        torch.testing.assert_close(got[:, present], expected, **CLOSE)


@EACH
@LAW
@given(scores=ROWS)
def test_the_mode_is_the_most_probable_class(noise: Noise, scores: Tensor) -> None:
    choice = PerturbedArgmax(scores, noise)
    own = choice.log_probs.gather(-1, choice.mode.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(own, choice.log_probs.amax(-1), **CLOSE)


@EACH
@LAW
@given(scores=ROWS)
def test_entropy_is_its_sum(noise: Noise, scores: Tensor) -> None:
    log_p = argmax_log_probs(scores, noise=noise).numpy()
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(log_p), 0.0, -np.exp(log_p) * log_p)
    entropy = PerturbedArgmax(scores, noise).entropy()
    np.testing.assert_allclose(entropy.numpy(), terms.sum(-1), rtol=1e-12, atol=1e-300)
    assert (entropy.numpy() <= math.log(scores.shape[1]) + 1e-9).all()


@EACH
@pytest.mark.parametrize("C", [2, 3, 10, 200])
def test_at_ties_all_share_and_entropy_is_its_maximum(noise: Noise, C: int) -> None:
    choice = PerturbedArgmax(torch.full((C,), 3.75, dtype=torch.float64), noise)
    torch.testing.assert_close(choice.log_probs, torch.full((C,), -math.log(C), dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(choice.entropy(), tensor(math.log(C)), rtol=1e-9, atol=0)
    for k in {1, 2, min(C, 7)}:
        assert choice.topk_log_prob(torch.tensor(C - 1), k).item() == pytest.approx(math.log(k / C), rel=1e-9, abs=1e-15)


@EACH
@pytest.mark.parametrize("k", [1, 2])
def test_p_rises_with_the_own_score_and_falls_with_a_rivals(noise: Noise, k: int) -> None:
    scores = tensor([0.0, 0.5, 0.0]).repeat(25, 1)
    scores[:, 0] = torch.linspace(-20, 4, 25)  # further up p is 1 to rounding
    own, rival = (topk_log_prob(scores, torch.full((25,), j), k, noise=noise) for j in (0, 1))
    possible = own > -INF
    assert possible[20:].all()  # less than a scale behind it has a chance, whatever the noise
    assert not possible[:-1][~possible[1:]].any()
    certain = own > -1e-16
    assert (own[possible & ~certain].diff() > 0).all()
    assert (own[certain] <= 1e-15).all()
    assert (rival.diff()[rival.diff().isfinite()] <= 1e-15).all()
    assert rival[-1] < rival[0] - 0.05


def counted(scores: list[list[float]], k: int) -> Tensor:
    """The chance of each class of being among the top k without noise: those tied share the places that are left."""
    z = np.array(scores)
    above = (z[:, None, :] > z[:, :, None]).sum(-1)
    tied = (z[:, None, :] == z[:, :, None]).sum(-1)
    return tensor(np.clip((k - above) / tied, 0, 1))


@EACH
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_noise_it_counts_and_ties_share(noise: Noise, k: int, dtype: torch.dtype) -> None:
    scores = torch.tensor(TIED, dtype=dtype)
    expected = counted(TIED, k).to(dtype)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(each_topk(scores, k, noise, 1e-9).exp(), expected, rtol=0, atol=tolerance)
    if k == 1:
        torch.testing.assert_close(argmax_log_probs(scores, noise=noise, scale=1e-9).exp(), expected, rtol=0, atol=tolerance)


@EACH
def test_with_nothing_but_noise_all_share(noise: Noise) -> None:
    scores = tensor(TIED)
    even = torch.full((4, 4), 0.25).double()
    torch.testing.assert_close(argmax_log_probs(scores, noise=noise, scale=1e9).exp(), even, rtol=1e-7, atol=0)
    for k in (1, 2, 3):
        torch.testing.assert_close(each_topk(scores, k, noise, 1e9).exp(), k * even, rtol=1e-7, atol=0)


@EACH
def test_the_top_of_all_is_certain_and_the_top_one_is_the_argmax(noise: Noise) -> None:
    scores = random_scores(5, 4)
    target = torch.tensor([0, 1, 2, 3, 0])
    assert not topk_log_prob(scores, target, 4, noise=noise).any()
    assert torch.equal(topk_log_prob(scores, target, 1, noise=noise), argmax_log_prob(scores, target, noise=noise))
    removed = torch.cat([scores, torch.full((5, 1), -INF)], -1)
    assert topk_log_prob(removed, torch.full((5,), 4), 5, noise=noise).isneginf().all()
    torch.testing.assert_close(topk_log_prob(removed, target, 4, noise=noise), torch.zeros(5).double(), rtol=0, atol=1e-15)


def test_gumbel_is_softmax_and_a_pair_of_normals_is_phi() -> None:
    scores = tensor([[0.3, -2.0, 40.0, 1.0], [0.0, 0.0, -5.0, 2.0]])
    got = argmax_log_probs(scores, noise="gumbel", scale=0.5).exp()
    np.testing.assert_allclose(got.numpy(), oracles.softmax(scores.numpy() / 0.5), rtol=1e-13)
    for delta in (-30.0, -2.0, 0.0, 0.4, 6.0):
        log_p = argmax_log_prob(tensor([delta, 0.0]), torch.tensor(0))
        assert log_p.item() == pytest.approx(oracles.log_ndtr_mp(delta / math.sqrt(2)), rel=1e-12)


@EACH
def test_a_custom_noise_of_the_same_formulas_is_the_same(noise: Noise) -> None:
    """And so the closed forms, which a noise of one's own has not, are what the integral gives."""
    custom = copy_of(noise)
    scores = tensor([[0.3, -2.0, 0.25, 0.25], [0.0, 0.0, -5.0, 2.0], [0.5, -INF, -0.5, 0.0]])
    torch.testing.assert_close(each_argmax(scores, custom), each_argmax(scores, noise), rtol=1e-11, atol=1e-300)
    torch.testing.assert_close(
        argmax_log_probs(scores, noise=custom), argmax_log_probs(scores, noise=noise), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(each_topk(scores, 2, custom), each_topk(scores, 2, noise), rtol=1e-9, atol=1e-300)
    torch.manual_seed(0)
    drawn = PerturbedArgmax(scores, custom).sample((4000,))
    p = (drawn == 3).double().mean(0)
    expected = argmax_log_probs(scores, noise=noise).exp()[:, 3]
    assert (abs(p - expected) < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-12).all()


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("k", [1, 3])
def test_probabilities_are_frequencies(name: str, k: int) -> None:
    """SciPy's draws, counted: within 5 standard errors.

    With fresh seeds a class would fail once in 1.7 million times, and one of the 96 numbers here once in 18,000.
    """
    scores, samples = [0.0, 1.5, -1.0, 0.7, 0.7, -4.0], 200_000
    p = each_topk(tensor([scores]), k, BY_NAME[name])[0].exp().numpy()
    frequency = oracles.counted_frequencies(scores, name, samples, seed=6, k=k)
    assert (abs(p - frequency) <= 5 * np.sqrt(p * (1 - p) / samples)).all()
