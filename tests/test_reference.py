"""The engine itself against adaptive integration in many digits, without the closed forms that hide it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from lossmith.noise import Gumbel, Normal
from lossmith.threshold import reference

INF = math.inf
GAPS = (-50.0, -40.0, -20.0, -5.0, -1.0, 0.0, 1.0, 5.0, 20.0, 50.0)
EQUAL = [(gap, ((0.0, C - 1),)) for C in (2, 3, 10, 100, 1000) for gap in GAPS]
HUGE = [(gap, ((0.0, 49_999),)) for gap in (-50.0, 5.0)]
MIXED = [  # (the target's score, (score, count) of its rivals)
    (0.0, ((5.0, 1), (0.0, 3), (-5.0, 5))),
    (-20.0, ((0.0, 1), (-1.0, 3), (-45.0, 95))),
    (-50.0, ((0.0, 2), (-0.5, 97))),
    (1.0, ((0.0, 1), (-50.0, 998))),
    (20.0, ((19.0, 2), (0.0, 97))),
    (-5.0, ((0.0, 1), (-30.0, 1), (-50.0, 7))),
    (50.0, ((49.5, 1), (0.0, 8))),
    (-40.0, ((-39.0, 900), (0.0, 1))),
]

# The promise of the library. Roundings of the scores' own gaps are no error: all scores here are exact in float32.
LOG_P_64 = 1e-9  # of max(1, |log p|)
GRADIENT_64 = 1e-7  # of the gradient's norm
P_32, LOG_P_32 = 1e-6, 1e-5
GRADIENT_32 = 2e-5  # of its norm; measured 5e-6, from the rounding of log F of each rival
GRADIENT_32_BEYOND = 5e-3  # past the stated range of ±50 it must only stay of use; measured 1e-3
# One set of nodes for all classes leaves d log p_k / d z_k with the rounding of 1 (stated in the docstring).
GRADIENT_ALL_CLASSES = 1e-12


def scores_of(own: float, rivals: oracles.Rivals, dtype: torch.dtype = torch.float64) -> Tensor:
    """(1, C) with the target last."""
    values = [z for z, count in rivals for _ in range(count)]
    return torch.tensor([[*values, own]], dtype=dtype, requires_grad=True)


def exact_gradient(own: float, rivals: oracles.Rivals) -> np.ndarray[Any, Any]:
    slopes = oracles.gradient_mp(own, rivals)
    each = np.repeat(slopes, [count for _, count in rivals])
    return np.append(each, -each.sum())


def gradient(value: Tensor, x: Tensor, **options: Any) -> Tensor:
    return torch.autograd.grad(value, x, **options)[0]


@pytest.mark.parametrize(("own", "rivals"), EQUAL + HUGE + MIXED)
def test_one_class_in_float64(own: float, rivals: oracles.Rivals) -> None:
    scores = scores_of(own, rivals)
    log_p = reference.log_prob(scores, torch.tensor([scores.shape[1] - 1]), Normal())
    expected = oracles.log_p_mp(own, rivals)
    assert abs(log_p.item() - expected) <= LOG_P_64 * max(1.0, abs(expected))
    exact = exact_gradient(own, rivals)
    error = gradient(log_p, scores).numpy()[0] - exact
    assert np.linalg.norm(error) <= GRADIENT_64 * np.linalg.norm(exact)


@pytest.mark.parametrize(("own", "rivals"), EQUAL + MIXED)
def test_all_classes_in_float64(own: float, rivals: oracles.Rivals) -> None:
    scores = scores_of(own, rivals)
    log_p = reference.log_probs(scores, Normal())[0, -1]
    expected = oracles.log_p_mp(own, rivals)
    assert abs(log_p.item() - expected) <= LOG_P_64 * max(1.0, abs(expected))
    exact = exact_gradient(own, rivals)
    error = gradient(log_p, scores).numpy()[0] - exact
    assert np.linalg.norm(error) <= GRADIENT_64 * np.linalg.norm(exact) + GRADIENT_ALL_CLASSES


@pytest.mark.parametrize(("own", "rivals"), EQUAL + HUGE + MIXED)
def test_one_class_in_float32(own: float, rivals: oracles.Rivals) -> None:
    scores = scores_of(own, rivals, torch.float32)
    log_p = reference.log_prob(scores, torch.tensor([scores.shape[1] - 1]), Normal())
    expected = oracles.log_p_mp(own, rivals)
    assert log_p.dtype == torch.float32
    assert abs(log_p.item() - expected) <= LOG_P_32 * max(1.0, abs(expected))
    assert abs(log_p.exp().item() - math.exp(expected)) <= P_32


@pytest.mark.parametrize(("own", "rivals"), EQUAL + MIXED)
def test_all_classes_in_float32(own: float, rivals: oracles.Rivals) -> None:
    log_p = reference.log_probs(scores_of(own, rivals, torch.float32), Normal())[0, -1]
    expected = oracles.log_p_mp(own, rivals)
    assert log_p.dtype == torch.float32
    assert abs(log_p.item() - expected) <= LOG_P_32 * max(1.0, abs(expected))
    assert abs(log_p.exp().item() - math.exp(expected)) <= P_32


@pytest.mark.parametrize("C", [2, 10, 1000])
@pytest.mark.parametrize("gap", [-5.0, -1.0, 0.0, 1.0, 5.0])
def test_gumbel_noise_through_the_engine_is_softmax(gap: float, C: int) -> None:
    scores = torch.cat([torch.linspace(-2, 0, C - 1), torch.tensor([gap])]).double().unsqueeze(0).requires_grad_()
    softmax = scores.log_softmax(-1)
    one = reference.log_prob(scores, torch.tensor([C - 1]), Gumbel())
    every = reference.log_probs(scores, Gumbel())
    torch.testing.assert_close(every, softmax, rtol=LOG_P_64, atol=LOG_P_64)
    torch.testing.assert_close(one, softmax[:, -1], rtol=LOG_P_64, atol=LOG_P_64)
    exact = gradient(softmax[0, -1], scores)
    assert (gradient(one, scores) - exact).norm() <= GRADIENT_64 * exact.norm()


@pytest.mark.parametrize("C", [3, 10, 100])
@pytest.mark.parametrize("lead", [-0.5, -5.0, -50.0, -400.0, -30_000.0])
def test_float32_follows_float64_however_far_behind(lead: float, C: int) -> None:
    """Random rivals: the curvature of their integrands is a small difference of large numbers."""
    double = torch.randn(100, C, generator=torch.Generator().manual_seed(C)).double()
    double[:, 0] = (double[:, 1:].amax(1) + lead).float().double()
    double.requires_grad_()
    single = double.detach().float().requires_grad_()
    target = torch.zeros(100, dtype=torch.int64)
    log_p, expected = (reference.log_prob(z, target, Normal()) for z in (single, double))
    slopes, exact = gradient(log_p.sum(), single), gradient(expected.sum(), double)
    assert ((log_p - expected).abs() <= LOG_P_32 * expected.abs().clamp_min(1)).all()
    tolerance = GRADIENT_32 if lead >= -50 else GRADIENT_32_BEYOND
    assert ((slopes - exact).norm(dim=1) <= tolerance * exact.norm(dim=1)).all()


SPREADS = {
    "near": [0.3, -0.7, 1.1, 0.0],
    "ties": [1.0, 1.0, -2.0, 1.0, -2.0],
    "spread out": [30.0, 0.0, -5.0, -45.0, 29.0, 2.5],
    "two far clusters": [0.0, 0.1, -50.0, -50.1, -49.0],
    "very far apart": [0.0, 0.2, -300.0, -300.4, -150.0],
    "two classes": [0.0, 12.0],
    "a class removed": [0.5, -INF, -1.0, -8.0],
    "one class left": [-INF, 0.5, -INF],
    "large and equal": [1e6, 1e6, 1e6],
}


# A Gumbel integrand falls off like exp(−exp(−x)): far gaps are left to its closed form.
PAIRS = [(Normal(), name) for name in SPREADS] + [
    (Gumbel(), name) for name in SPREADS if "far" not in name and "out" not in name
]


@pytest.mark.parametrize(("noise", "name"), PAIRS, ids=str)
def test_all_classes_agree_with_each_class_alone(noise: Normal | Gumbel, name: str) -> None:
    scores = torch.tensor([SPREADS[name]], dtype=torch.float64, requires_grad=True)
    every = reference.log_probs(scores, noise)[0]
    for k, log_p in enumerate(every):
        one = reference.log_prob(scores, torch.tensor([k]), noise)[0]
        torch.testing.assert_close(log_p, one, rtol=LOG_P_64, atol=LOG_P_64)
        slopes = [gradient(value, scores, retain_graph=True) for value in (log_p, one)]
        assert all(s.isfinite().all() for s in slopes)
        torch.testing.assert_close(*slopes, rtol=GRADIENT_64, atol=10 * GRADIENT_ALL_CLASSES)


def random_rows(rows: int, C: int = 5, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    scores = spread * torch.randn(rows, C, generator=generator, dtype=torch.float64)
    return scores.requires_grad_(), torch.randint(C, (rows,), generator=generator)


@pytest.mark.parametrize("rows_a_block", [1, 3])
@pytest.mark.parametrize("every_class", [False, True])
def test_cut_into_blocks_of_rows_nothing_changes(every_class: bool, rows_a_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, target = random_rows(10, spread=0.5)

    def run() -> list[Tensor]:
        log_p = reference.log_probs(scores, Normal()) if every_class else reference.log_prob(scores, target, Normal())
        weights = torch.linspace(-1, 2, log_p.numel(), dtype=torch.float64).view_as(log_p)
        first = gradient((log_p * weights).sum(), scores, create_graph=True)
        return [log_p, first, gradient(first.square().sum(), scores)]

    whole = run()
    blocks = []

    def counted(integral: Any, rows: Tensor, nodes: Tensor, **options: Any) -> Any:
        blocks.append(len(rows))
        return original(integral, rows, nodes, **options)

    original = reference.checkpoint
    monkeypatch.setattr(reference, "checkpoint", counted)
    # With every class the number of nodes depends on the scores: here it is between one and two times the rule's.
    monkeypatch.setattr(reference, "CHUNK", rows_a_block * (2 if every_class else 1) * 5 * reference.RULES[torch.float64].nodes)
    torch.testing.assert_close(run(), whole, rtol=1e-12, atol=1e-14)
    assert sum(blocks) >= 10
    assert max(blocks) >= rows_a_block
    assert len(blocks) > 1


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    scores, target = random_rows(rows)
    assert reference.log_prob(scores, target, Normal()).shape == (rows,)
    assert reference.log_probs(scores, Normal()).shape == (rows, 5)
    assert gradient(reference.log_probs(scores, Normal()).sum(), scores).shape == (rows, 5)
    assert gradient(reference.log_prob(scores, target, Normal()).sum(), scores).shape == (rows, 5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Beside a row with NaN, a hopeless one and a removed class, a plain row stays what it is alone."""
    plain = [0.2, -0.4, 1.0]
    mixed = torch.tensor([plain, [math.nan, 0.0, 1.0], [0.0, 50.0, -INF], plain], dtype=torch.float64)
    alone = mixed[:1]
    target = torch.tensor([0, 0, 0, 0])
    one, every = reference.log_prob(mixed, target, Normal()), reference.log_probs(mixed, Normal())
    assert one.isnan().tolist() == [False, True, False, False]
    assert every.isnan().all(-1).tolist() == [False, True, False, False]
    expected = reference.log_prob(alone, target[:1], Normal())
    torch.testing.assert_close(one[[0, 3]], expected.expand(2), rtol=1e-12, atol=0)
    torch.testing.assert_close(every[[0, 3]], reference.log_probs(alone, Normal()).expand(2, 3), rtol=1e-10, atol=0)


def test_gradcheck_twice() -> None:
    scores = torch.tensor([[0.3, -0.4, 1.2], [2.0, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 0])
    for noise in (Normal(), Gumbel()):
        for function in (lambda s, n=noise: reference.log_prob(s, target, n), lambda s, n=noise: reference.log_probs(s, n)):
            assert torch.autograd.gradcheck(function, scores)
            assert torch.autograd.gradgradcheck(function, scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1e5, 1e7, 2e8, 5e8, 1e9])
def test_far_beyond_the_range_it_stays_finite_and_near(dtype: torch.dtype, gap: float) -> None:
    """Two classes far above the target: −log p tends to the cost gap²/3 of lifting one score and lowering two."""
    scores = torch.tensor([[0.0, gap, gap]], dtype=dtype, requires_grad=True)
    log_p = reference.log_prob(scores, torch.tensor([0]), Normal())
    assert log_p.item() == pytest.approx(-(gap**2) / 3, rel=1e-4)
    (slopes,) = torch.autograd.grad(log_p, scores)
    assert slopes.numpy() == pytest.approx(np.array([[2, -1, -1]]) * gap / 3, rel=1e-2)


@pytest.mark.parametrize("top", [50.0, 1e3, 1e8])
def test_wide_spreads_take_bounded_work(top: float) -> None:
    scores = torch.tensor([[0.0, 1.0, top]], dtype=torch.float64)
    log_p = reference.log_probs(scores, Normal())
    each = [reference.log_prob(scores, torch.tensor([k]), Normal()) for k in range(3)]
    torch.testing.assert_close(log_p, torch.stack(each, -1), rtol=1e-9, atol=1e-9)
