"""The engine itself: against adaptive integration in many digits, closed forms that it does not use, and itself in other cuts.

How it stands with every noise and thousands of classes is in test_values.py.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossmith.engine.argmax import reference
from lossmith.noise import Exponential, Noise, Normal
from support import oracles
from support.cases import BY_NAME, EACH, gradient, random_scores, tensor

INF = math.inf
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


@pytest.mark.parametrize(("own", "rivals"), MIXED)
def test_one_class_in_float64(own: float, rivals: oracles.Rivals) -> None:
    scores = scores_of(own, rivals)
    log_p = reference.log_prob(scores, torch.tensor([scores.shape[1] - 1]), Normal())
    expected = oracles.log_p_mp(own, rivals)
    assert abs(log_p.item() - expected) <= LOG_P_64 * max(1.0, abs(expected))
    exact = exact_gradient(own, rivals)
    error = gradient(log_p, scores).numpy()[0] - exact
    assert np.linalg.norm(error) <= GRADIENT_64 * np.linalg.norm(exact)


@pytest.mark.parametrize(("own", "rivals"), MIXED)
def test_all_classes_in_float64(own: float, rivals: oracles.Rivals) -> None:
    scores = scores_of(own, rivals)
    log_p = reference.log_probs(scores, Normal())[0, -1]
    expected = oracles.log_p_mp(own, rivals)
    assert abs(log_p.item() - expected) <= LOG_P_64 * max(1.0, abs(expected))
    exact = exact_gradient(own, rivals)
    error = gradient(log_p, scores).numpy()[0] - exact
    assert np.linalg.norm(error) <= GRADIENT_64 * np.linalg.norm(exact) + GRADIENT_ALL_CLASSES


@pytest.mark.parametrize(("own", "rivals"), MIXED)
def test_one_class_in_float32(own: float, rivals: oracles.Rivals) -> None:
    scores = scores_of(own, rivals, torch.float32)
    log_p = reference.log_prob(scores, torch.tensor([scores.shape[1] - 1]), Normal())
    expected = oracles.log_p_mp(own, rivals)
    assert log_p.dtype == torch.float32
    assert abs(log_p.item() - expected) <= LOG_P_32 * max(1.0, abs(expected))
    assert abs(log_p.exp().item() - math.exp(expected)) <= P_32


@pytest.mark.parametrize(("own", "rivals"), MIXED)
def test_all_classes_in_float32(own: float, rivals: oracles.Rivals) -> None:
    log_p = reference.log_probs(scores_of(own, rivals, torch.float32), Normal())[0, -1]
    expected = oracles.log_p_mp(own, rivals)
    assert log_p.dtype == torch.float32
    assert abs(log_p.item() - expected) <= LOG_P_32 * max(1.0, abs(expected))
    assert abs(log_p.exp().item() - math.exp(expected)) <= P_32


CLOSED: dict[str, Any] = {  # log p of the last class
    "gumbel": lambda z: -torch.log1p((z[:, :-1] - z[:, -1:]).exp().sum(-1)),
    "exponential": lambda z: Exponential().closed_form_log_probs(z)[:, -1],  # held against the tables in test_values.py
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("C", [2, 10, 200])
@pytest.mark.parametrize("gap", [-5.0, -1.0, 0.0, 1.0, 5.0, 30.0])
def test_the_engine_gives_what_closed_forms_give(name: str, gap: float, C: int) -> None:
    scores = torch.cat([torch.linspace(-2, 0, C - 1), torch.tensor([gap])]).double().unsqueeze(0).requires_grad_()
    expected = CLOSED[name](scores)
    one = reference.log_prob(scores, torch.tensor([C - 1]), BY_NAME[name])
    every = reference.log_probs(scores, BY_NAME[name])[:, -1]
    for log_p in (one, every):
        torch.testing.assert_close(log_p, expected, rtol=LOG_P_64, atol=0)
    exact = gradient(expected, scores)
    assert (gradient(one, scores) - exact).norm() <= GRADIENT_64 * exact.norm()


@pytest.mark.parametrize("gap", [-300.0, -30.0, -1.0, 0.0, 1.0, 30.0, 35.0])
def test_a_pair_of_normals_through_the_engine_is_phi(gap: float) -> None:
    log_p = reference.log_prob(tensor([[0.0, gap]]), torch.tensor([1]), Normal())
    assert log_p.item() == pytest.approx(oracles.log_ndtr_mp(gap / math.sqrt(2)), rel=LOG_P_64, abs=0)


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


@EACH
@pytest.mark.parametrize("name", SPREADS)
def test_all_classes_agree_with_each_class_alone(noise: Noise, name: str) -> None:
    scores = torch.tensor([SPREADS[name]], dtype=torch.float64, requires_grad=True)
    every = reference.log_probs(scores, noise)[0]
    for k, log_p in enumerate(every):
        one = reference.log_prob(scores, torch.tensor([k]), noise)[0]
        torch.testing.assert_close(log_p, one, rtol=LOG_P_64, atol=LOG_P_64)
        slopes = [gradient(value, scores, retain_graph=True) for value in (log_p, one)]
        assert all(s.isfinite().all() for s in slopes)
        torch.testing.assert_close(*slopes, rtol=GRADIENT_64, atol=10 * GRADIENT_ALL_CLASSES)


def random_rows(rows: int, C: int = 5, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Near scores, so that no class is out of a uniform's reach."""
    return random_scores(rows, C, spread=spread).clamp(-0.45, 0.45).requires_grad_(), torch.arange(rows) % C


ENGINE: dict[str, Any] = {
    "one class": reference.log_prob,
    "the top 3": lambda scores, target, noise: reference.log_prob(scores, target, noise, rank=3),
    "all classes": lambda scores, target, noise: reference.log_probs(scores, noise),
}
EITHER = pytest.mark.parametrize("engine", ENGINE.values(), ids=ENGINE)


@pytest.mark.parametrize(
    ("engine", "noise"),
    [
        pytest.param(engine, noise, id=f"{of}-{name}", marks=() if of == "one class" or name == "laplace" else pytest.mark.slow)
        for (of, engine), (name, noise) in itertools.product(ENGINE.items(), BY_NAME.items())
    ],
)
def test_cut_into_blocks_of_rows_nothing_changes(noise: Noise, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, target = random_rows(2)

    def run() -> list[Tensor]:
        log_p = engine(scores, target, noise)
        weights = torch.linspace(-1, 2, log_p.numel(), dtype=torch.float64).view_as(log_p)
        first = gradient((log_p * weights).sum(), scores, create_graph=True)
        return [log_p, first, gradient(first.square().sum(), scores)]

    whole = run()
    blocks = []
    original = reference.checkpoint

    def counted(integral: Any, rows: Tensor, *others: Tensor, **options: Any) -> Any:
        blocks.append(len(rows))
        return original(integral, rows, *others, **options)

    monkeypatch.setattr(reference, "checkpoint", counted)
    monkeypatch.setattr(reference, "CHUNK", 1)
    torch.testing.assert_close(run(), whole, rtol=1e-11, atol=1e-13)
    assert min(blocks) == 1  # where each class goes alone, the rows for it come as one block more
    assert sum(blocks) >= 2


@EITHER
@EACH
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int, noise: Noise, engine: Any) -> None:
    scores, target = random_rows(rows)
    log_p = engine(scores, target, noise)
    assert log_p.shape[0] == rows
    assert gradient(log_p.sum(), scores).shape == (rows, 5)


@EITHER
@EACH
def test_a_row_does_not_depend_on_its_neighbours(noise: Noise, engine: Any) -> None:
    """Beside a hopeless row, a sure one and a removed class, a plain row stays what it is alone."""
    plain = [0.2, -0.4, 0.5, 0.1]
    mixed = tensor([plain, [0.0, 50.0, 1.0, 2.0], [0.0, -50.0, -math.inf, -60.0], [2000.0, 1.0, 0.0, -9.0], plain])
    target = torch.zeros(5, dtype=torch.int64)
    together, alone = engine(mixed, target, noise), engine(mixed[:1], target[:1], noise)
    torch.testing.assert_close(together[[0, 4]], alone.expand(2, *alone.shape[1:]), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1e5, 1e7, 2e8, 5e8, 1e9, 1e12, 1e18])
def test_far_beyond_the_range_it_stays_finite_and_near(dtype: torch.dtype, gap: float) -> None:
    """Two classes far above the target: −log p tends to the cost gap²/3 of lifting one score and lowering two."""
    scores = torch.tensor([[0.0, gap, gap]], dtype=dtype, requires_grad=True)
    log_p = reference.log_prob(scores, torch.tensor([0]), Normal())
    assert log_p.item() == pytest.approx(-(gap**2) / 3, rel=1e-4)
    (slopes,) = torch.autograd.grad(log_p, scores)
    assert slopes.numpy() == pytest.approx(np.array([[2, -1, -1]]) * gap / 3, rel=1e-2)


@EACH
@pytest.mark.parametrize("top", [50.0, 1e3, 1e8])
def test_wide_spreads_take_bounded_work(noise: Noise, top: float) -> None:
    scores = tensor([[0.0, 1.0, top]])
    log_p = reference.log_probs(scores, noise)
    each = [reference.log_prob(scores, torch.tensor([k]), noise) for k in range(3)]
    torch.testing.assert_close(log_p, torch.stack(each, -1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("C", [1000, 5000, 50_000])
@pytest.mark.parametrize("name", ["uniform", "exponential"])
def test_a_peak_at_the_end_of_the_support_is_found(name: str, C: int) -> None:
    """Among equals the winner's noise is within 1/C of the end: between the end of a panel and its outermost node."""
    log_p = reference.log_prob(torch.zeros(1, C, dtype=torch.float64), torch.tensor([0]), BY_NAME[name])
    assert log_p.item() == pytest.approx(-math.log(C), rel=1e-9)


@pytest.mark.parametrize("n", [999, 49_999])
@pytest.mark.parametrize("lead", [0.125, 0.5, 0.875])
def test_a_peak_or_a_dip_where_many_kinks_coincide_is_found(lead: float, n: int) -> None:
    """Uniform noise, n rivals ``lead`` behind and one at 0.1: ∫ Π min(1, v + lead_j) dv over 0 … 1, piece by piece."""
    near = 0.1
    scores = torch.tensor([[-lead] * n + [-near, 0.0]], dtype=torch.float64, requires_grad=True)
    below = (1 - lead ** (n + 2)) / (n + 2) - (lead - near) * (1 - lead ** (n + 1)) / (n + 1)
    p = near + (1 - (1 - lead + near) ** 2) / 2 + below
    log_p = reference.log_prob(scores, torch.tensor([n + 1]), BY_NAME["uniform"])
    assert log_p.exp().item() == pytest.approx(p, rel=1e-12)
    slope = lead - near + (1 - lead ** (n + 1)) / (n + 1)  # dp / d near
    assert gradient(log_p, scores)[0, n].item() == pytest.approx(-slope / p, rel=1e-10)


@pytest.mark.parametrize("noise", [Normal(), *(BY_NAME[name] for name in ("logistic", "laplace"))], ids=str)
@pytest.mark.parametrize(("dtype", "lead"), [(torch.float32, 30.0), (torch.float64, 100.0), (torch.float64, 800.0)])
def test_where_1_minus_p_is_nearly_no_float_work_is_bounded(
    noise: Noise, dtype: torch.dtype, lead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers near the smallest have few digits: refining their stairs would never end."""
    thresholds = 0
    original = noise.log_cdf

    def counted(x: Tensor) -> Tensor:
        nonlocal thresholds
        thresholds += x.numel()
        return original(x)

    monkeypatch.setattr(noise, "log_cdf", counted)
    log_p = reference.log_prob(torch.tensor([[lead, 0.0, 0.0, 0.0]], dtype=dtype), torch.tensor([0]), noise)
    assert -1e-11 <= log_p.item() <= 0
    assert thresholds < 4 * 10_000


@pytest.mark.parametrize("name", ["laplace", "uniform", "studentt:3"])
@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_work_and_blocks_are_bounded_with_a_thousand_kinks(name: str, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kink costs nodes only where the integrand counts, and no block is larger than the budget, whatever a row's panels."""
    noise, sizes = BY_NAME[name], []
    original = type(noise).log_cdf

    def counted(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return original(noise, x)

    monkeypatch.setattr(noise, "log_cdf", counted)
    scores = random_scores(1, 1000, spread=spread)
    scores[0, 0] = scores.max() - 0.1
    scores.requires_grad_()
    log_p = reference.log_prob(scores, torch.tensor([0]), noise)
    assert gradient(log_p.sum(), scores).isfinite().all()
    assert max(sizes) <= reference.CHUNK
    kinks_that_count = 1000 if name == "uniform" and spread < 1 else 100
    assert sum(sizes) < 1000 * (4000 + 2 * 18 * kinks_that_count)
