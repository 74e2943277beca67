import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

import lossmith
from lossmith import PerturbedArgmax, distribution, noise
from lossmith.functional import argmax_log_prob, argmax_log_probs, topk_log_prob
from lossmith.noise import Noise
from support import oracles
from support.cases import BY_NAME, EACH

INF = math.inf
STANDARD_ERRORS = 5  # a fresh seed would fail once in 1.7 million times a class


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_gumbel_is_the_categorical_of_torch() -> None:
    scores = batch(2, 3)
    ours, theirs = PerturbedArgmax(scores, "gumbel"), Categorical(logits=scores)
    value = torch.tensor([[0, 1, 2], [3, 2, 1]])
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    torch.testing.assert_close(ours.probs, theirs.probs)
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode, theirs.mode)
    assert torch.equal(ours.enumerate_support(), theirs.enumerate_support())
    assert torch.equal(ours.enumerate_support(expand=False), theirs.enumerate_support(expand=False))
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape
    assert ours.sample((7,)).shape == theirs.sample((7,)).shape


@EACH
def test_probabilities_are_those_of_the_functions(noise: Noise) -> None:
    scores, scale = batch(3), torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    choice = PerturbedArgmax(scores, noise, scale)
    expected = argmax_log_probs(scores, noise=noise, scale=scale)
    assert torch.equal(choice.log_probs, expected)
    assert torch.equal(choice.probs, expected.exp())
    value = torch.tensor([1, 0, 3])
    assert torch.equal(choice.log_prob(value), argmax_log_prob(scores, value, noise=noise, scale=scale))
    for k in (1, 3, 4):
        assert torch.equal(choice.topk_log_prob(value, k), topk_log_prob(scores, value, k, noise=noise, scale=scale))


@pytest.mark.parametrize("name", ["normal", "gumbel", "laplace"])
@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5), torch.tensor([[0.5], [1.5]])], ids=["number", "0-d", "(2, 1)"])
@pytest.mark.parametrize(
    "shape",
    [(), (2,), pytest.param((1,), marks=pytest.mark.slow), (5, 2), pytest.param((5, 1), marks=pytest.mark.slow), (3, 1, 2)],
)
def test_log_prob_broadcasts(shape: tuple[int, ...], scale: float | Tensor, name: str) -> None:
    scores = batch(2).requires_grad_()
    choice = PerturbedArgmax(scores, name, scale)
    value = torch.arange(math.prod(shape)).view(shape) % 4
    wide = torch.broadcast_shapes(shape, (2,))
    spread = choice.expand(wide)
    for method in (PerturbedArgmax.log_prob, lambda d, v: d.topk_log_prob(v, 2)):
        log_p = method(choice, value)
        assert log_p.shape == wide
        each = torch.stack([method(spread, torch.full(wide, k)) for k in range(4)], -1)
        expected = each.gather(-1, value.expand(wide).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(log_p, expected, rtol=1e-9, atol=1e-9)
        assert torch.autograd.grad(log_p.sum(), scores)[0].any()
    every = choice.log_probs.expand(*wide, 4).gather(-1, value.expand(wide).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(choice.log_prob(value), every, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("scale", [1.0, torch.tensor([[2.5]])], ids=["1", "tensor"])
def test_sample_frequencies(scale: float | Tensor, name: str) -> None:
    scores, samples = [0.0, 1.0, -2.0, 1.0, -INF], 200_000
    choice = PerturbedArgmax(torch.tensor([scores], dtype=torch.float64), BY_NAME[name], scale)
    torch.manual_seed(0)
    drawn = choice.sample((samples,))
    assert drawn.shape == (samples, 1)
    assert drawn.dtype == torch.int64
    frequency = torch.bincount(drawn.flatten(), minlength=5) / samples
    # From the oracle, so that sampler and probabilities are not merely wrong together.
    counted = oracles.counted_frequencies((np.array(scores) / float(scale)).tolist(), name, samples, seed=1)
    p = choice.probs[0].numpy()
    error = np.sqrt(p * (1 - p) / samples)
    assert (abs(frequency.numpy() - p) <= STANDARD_ERRORS * error).all()
    assert (abs(counted - p) <= STANDARD_ERRORS * error).all()


@EACH
def test_samples_shape_seed_and_gradient(noise: Noise) -> None:
    choice = PerturbedArgmax(batch(2, 3).requires_grad_(), noise, torch.ones(3, 1))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(choice.sample((5, 4)))
    assert draws[0].shape == (5, 4, 2, 3)
    assert choice.sample().shape == (2, 3)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not draws[0].requires_grad


def test_mode_is_the_highest_score() -> None:
    scores = torch.tensor([[0.0, 2.0, -INF], [1.0, -1.0, 0.5]])
    choice = PerturbedArgmax(scores, scale=torch.tensor([[0.1], [30.0]]))
    assert choice.mode.tolist() == [1, 0]
    assert torch.equal(choice.mode, choice.probs.argmax(-1))


@pytest.mark.parametrize("name", ["normal", "gumbel"])
@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [0.0, 1.0, -2.0], [0.0, 1.0, -INF], [0.0, 60.0, 1.0]])
def test_entropy_is_the_oracles(scores: list[float], name: str) -> None:
    entropy = PerturbedArgmax(torch.tensor(scores, dtype=torch.float64), name).entropy()
    rivals = [(k, tuple((s, 1) for j, s in enumerate(scores) if j != k and s > -INF)) for k in range(3) if scores[k] > -INF]
    if name == "gumbel":
        log_p = np.log(np.clip(oracles.softmax(np.array(scores)), 1e-300, None))
    else:
        log_p = np.array([oracles.log_p_mp(scores[k], others) for k, others in rivals])
    assert entropy.item() == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-9)


@EACH
@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [0.0, 1.0, -INF], [0.0, 60.0, 1.0], [0.0, 1000.0, 1.0]])
def test_entropy_has_a_finite_gradient(scores: list[float], noise: Noise) -> None:
    z = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    entropy = PerturbedArgmax(z, noise).entropy()
    assert -1e-12 <= entropy.item() <= math.log(3) + 1e-9
    assert torch.autograd.grad(entropy, z)[0].isfinite().all()


@pytest.mark.parametrize("scale", [0.5, torch.tensor([[0.5], [2.0]], dtype=torch.float64)], ids=["number", "tensor"])
def test_expand(scale: float | Tensor) -> None:
    choice = PerturbedArgmax(batch(2), "gumbel", scale, validate_args=False)
    wide = choice.expand((3, 2))
    assert isinstance(wide, PerturbedArgmax)
    assert wide.batch_shape == (3, 2)
    torch.testing.assert_close(wide.probs, choice.probs.expand(3, 2, 4))
    assert wide.sample((6,)).shape == (6, 3, 2)
    assert wide.noise is choice.noise
    assert wide._validate_args is False


def test_enumerate_support_covers_everything() -> None:
    choice = PerturbedArgmax(batch(2))
    classes = choice.enumerate_support()
    assert classes.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert choice.enumerate_support(expand=False).tolist() == [[0], [1], [2], [3]]
    torch.testing.assert_close(choice.log_prob(classes).exp().sum(0), torch.ones(2, dtype=torch.float64), rtol=1e-9, atol=0)
    assert choice.has_enumerate_support
    assert choice.support.check(torch.tensor([-1, 0, 3, 4])).tolist() == [False, True, True, False]


def test_validation_follows_torch() -> None:
    checked = PerturbedArgmax(batch(2), validate_args=True)
    for value, message in ((torch.tensor([0, 4]), "support"), (torch.zeros(3, dtype=torch.int64), "batch|broadcast|size")):
        for method in (checked.log_prob, lambda v: checked.topk_log_prob(v, 2)):
            with pytest.raises(ValueError, match=message):
                method(value)
    unchecked = PerturbedArgmax(batch(2), validate_args=False)
    with pytest.raises(ValueError, match=r"^target: expected class indices from 0 to 3, got 0 to 4$"):
        unchecked.log_prob(torch.tensor([0, 4]))
    assert "PerturbedArgmax" in repr(checked)


def test_noise_may_be_an_object() -> None:
    own = noise.Gumbel()
    assert PerturbedArgmax(batch(2), own).noise is own


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 0.3), (torch.float16, 1e-5)])
def test_the_scale_is_not_rounded_to_a_half_type(dtype: torch.dtype, scale: float) -> None:
    scores, value = (batch(2) * scale).to(dtype), torch.tensor([1, 0])
    choice = PerturbedArgmax(scores, scale=scale)
    assert choice.scale == scale
    assert torch.equal(choice.log_prob(value), argmax_log_prob(scores, value, scale=scale))


def test_the_scores_are_checked_once_when_made_and_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    for module in (distribution, lossmith.inputs, lossmith.functional.argmax):
        if hasattr(module, "check_score_values"):
            check = module.check_score_values
            monkeypatch.setattr(module, "check_score_values", lambda *x, f=check, **y: (checks.append(1), f(*x, **y))[1])
    choice = PerturbedArgmax(batch(2).double())
    assert len(checks) == 1
    choice.log_prob(torch.tensor([1, 0]))
    assert len(checks) <= 2
