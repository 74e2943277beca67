"""Gamma cross-entropy, EMO, sparsemax, 1.5-entmax and smooth top-k against closed forms, counting, SciPy and mpmath."""

import copy
import itertools
import math
import pickle
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import entmax
import mpmath
import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lossmith.surrogates import EMOLoss, Entmax15Loss, GammaCrossEntropyLoss, SmoothTopKLoss, SparsemaxLoss
from support import oracles

ROUNDING = 1e-13
Array = np.ndarray[Any, Any]
SCORES = torch.tensor(
    [[0.3, -0.4, 1.2, 0.0, 0.9], [2.0, 1.8, -1.0, 1.5, 0.2], [0.1, -3.0, 0.05, 0.2, 0.7]], dtype=torch.float64
)
TARGET = torch.tensor([0, 1, 4])
EMBEDDINGS = torch.tensor([[1.0, 0.2, 0.0], [0.9, -0.3, 0.4], [-1.0, 0.5, 0.1], [0.1, 2.0, -3.0], [0.0, 0.0, 0.7]]).double()
SPARSE: list[Callable[..., Any]] = [SparsemaxLoss, Entmax15Loss]
SMOOTH: dict[str, Callable[..., Any]] = {
    "gamma": GammaCrossEntropyLoss,
    "emo": partial(EMOLoss, EMBEDDINGS),
    "topk": partial(SmoothTopKLoss, 2),
}
ALL = SMOOTH | {"sparsemax": SparsemaxLoss, "entmax15": Entmax15Loss}


def slopes_of(loss: Any, scores: Tensor, target: Tensor) -> Tensor:
    z = scores.clone().requires_grad_()
    return torch.autograd.grad(loss(z, target).sum(), z)[0]


# --- gamma cross-entropy


@pytest.mark.parametrize("gamma", [1e-7, 0.1, 0.5, 0.99])
def test_gamma_cross_entropy_is_its_formula(gamma: float) -> None:
    p = oracles.softmax(SCORES.numpy())[range(3), TARGET.numpy()]
    loss = GammaCrossEntropyLoss(gamma, reduction="none")
    np.testing.assert_allclose(loss(SCORES, TARGET), -np.log(gamma + (1 - gamma) * p) / (1 - gamma), rtol=1e-12)
    of_cross_entropy = slopes_of(partial(cross_entropy, reduction="none"), SCORES, TARGET).numpy()
    expected = of_cross_entropy * (p / (gamma + (1 - gamma) * p))[:, None]
    np.testing.assert_allclose(slopes_of(loss, SCORES, TARGET), expected, rtol=1e-12, atol=1e-16)


def test_the_ends_of_gamma_are_cross_entropy_and_smooth_error() -> None:
    torch.testing.assert_close(GammaCrossEntropyLoss(0.0)(SCORES, TARGET), cross_entropy(SCORES, TARGET), rtol=ROUNDING, atol=0)
    error = 1 - oracles.softmax(SCORES.numpy())[range(3), TARGET.numpy()].mean()
    assert GammaCrossEntropyLoss(1 - 2.0**-40)(SCORES, TARGET).item() == pytest.approx(error, rel=1e-11)


@pytest.mark.parametrize("gamma", [0.0, 1e-30, 1e-7, 0.1, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("gap", [-80.0, -30.0, -5.0, -0.1, 0.0, 1.0, 17.0, 60.0, 300.0])  # how far the rival leads
def test_gamma_cross_entropy_keeps_its_digits_in_float32(gamma: float, gap: float) -> None:
    with mpmath.workdps(400):
        p, g = 1 / (1 + mpmath.exp(mpmath.mpf(gap))), mpmath.mpf(gamma)
        value = float(-mpmath.log(g + (1 - g) * p) / (1 - g))
        slope = float((1 - p) * p / (g + (1 - g) * p))
    loss, scores = GammaCrossEntropyLoss(gamma), torch.tensor([[0.0, gap]])
    assert loss(scores, torch.tensor([0])).item() == pytest.approx(value, rel=2e-6, abs=1e-37)
    assert slopes_of(loss, scores, torch.tensor([0]))[0, 1].item() == pytest.approx(slope, rel=2e-5, abs=1e-37)


# --- EMO


def cosine_costs() -> Array:
    rows = EMBEDDINGS.numpy()
    return np.array([[1 - a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for b in rows] for a in rows])


def test_emo_is_the_cost_of_the_only_plan() -> None:
    cost, p = cosine_costs(), oracles.softmax(SCORES.numpy())
    loss = EMOLoss(EMBEDDINGS, reduction="none")
    expected = np.array([p[n] @ cost[:, y] for n, y in enumerate(TARGET)])
    np.testing.assert_allclose(loss(SCORES, TARGET), expected, rtol=1e-12)
    slopes = p * (cost[:, TARGET].T - expected[:, None])
    np.testing.assert_allclose(slopes_of(loss, SCORES, TARGET), slopes, rtol=1e-11, atol=1e-15)


def cheapest_plan(p: Array, q: Array, cost: Array) -> float:
    """The earth mover's distance, as a linear programme."""
    rows = [np.kron(np.eye(len(p))[i], np.ones(len(q))) for i in range(len(p))]
    columns = [np.kron(np.ones(len(p)), np.eye(len(q))[j]) for j in range(len(q))]
    done = optimize.linprog(cost.ravel(), A_eq=np.array(rows + columns), b_eq=np.concatenate([p, q]))
    assert done.success
    return float(done.fun)


def test_emo_of_probabilities_is_an_upper_bound_and_exact_for_one_class() -> None:
    cost, p = cosine_costs(), oracles.softmax(SCORES.numpy())
    tau = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0, 0.0]]).double()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.1]).double()
    values = EMOLoss(EMBEDDINGS, reduction="none")(SCORES, tau).numpy()
    weighted = [sum(p[n, i] * tau[n, j] * weight[j] * cost[i, j] for i in range(5) for j in range(5)) for n in range(3)]
    np.testing.assert_allclose(values, np.einsum("ni,nj,ij->n", p, tau.numpy(), cost), rtol=1e-12)
    np.testing.assert_allclose(EMOLoss(EMBEDDINGS, weight=weight)(SCORES, tau), np.mean(weighted), rtol=1e-12)
    exact = [cheapest_plan(p[n], tau[n].numpy(), cost) for n in range(3)]
    assert values[0] > exact[0] + 0.05
    assert values[1] == pytest.approx(exact[1], rel=1e-8)
    assert values[2] > exact[2]


def test_emo_of_images_and_standardized_scores_takes_probabilities_too() -> None:
    images = SCORES.T[None]  # (N, C, d)
    for loss in (EMOLoss(EMBEDDINGS, reduction="none"), EMOLoss(EMBEDDINGS, reduction="none", standardize=True)):
        flat = loss(SCORES, TARGET)
        soft = one_hot(TARGET, 5).double()
        torch.testing.assert_close(loss(SCORES, soft), flat, rtol=1e-12, atol=0)
        torch.testing.assert_close(loss(images, soft.T[None])[0], flat, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda z, t: EMOLoss(EMBEDDINGS)(z, t), (SCORES.clone().requires_grad_(), soft))


def test_emo_with_orthogonal_embeddings_is_the_smooth_error() -> None:
    p = SCORES.softmax(-1)[range(3), TARGET]
    torch.testing.assert_close(EMOLoss(3 * torch.eye(5))(SCORES, TARGET), (1 - p).mean(), rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_small_emo_keeps_its_digits_in_float32(gap: float) -> None:
    scores, target = torch.tensor([[gap, 0.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
    expected = math.exp(-gap) / (1 + 4 * math.exp(-gap)) * cosine_costs()[0].sum()
    assert EMOLoss(EMBEDDINGS)(scores, target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_emo_takes_embeddings_of_any_length(factor: float) -> None:
    expected = EMOLoss(EMBEDDINGS.float())(SCORES.float(), TARGET)
    torch.testing.assert_close(EMOLoss(EMBEDDINGS.float() * factor)(SCORES.float(), TARGET), expected)


def test_emo_keeps_its_own_frozen_embeddings() -> None:
    weight = torch.nn.Parameter(EMBEDDINGS.clone())
    loss = EMOLoss(weight)
    before = loss(SCORES, TARGET)
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(loss(SCORES, TARGET), before)
    assert not before.requires_grad
    assert not list(loss.parameters())
    assert list(loss.state_dict()) == ["embeddings"]


# --- sparsemax and 1.5-entmax


def sparse_map(z: Array, power: float) -> Array:
    """p = max(0, z / power − τ)^power with sum 1, by root finding."""
    x = z / power
    tau = optimize.brentq(lambda t: np.sum(np.maximum(x - t, 0) ** power) - 1, x.max() - 1, x.max(), xtol=1e-16)
    return np.maximum(x - tau, 0) ** power


def entropy(p: Array, power: float) -> Any:
    return (1 - np.sum(p**2)) / 2 if power == 1 else (1 - np.sum(p**1.5)) * 4 / 3


@pytest.mark.parametrize(("make", "power"), [(SparsemaxLoss, 1), (Entmax15Loss, 2)])
@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_sparse_losses_are_their_definition(make: Callable[..., Any], power: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    scores, target = torch.from_numpy(rng.normal(scale=scale, size=(20, 7))), torch.from_numpy(rng.integers(7, size=20))
    loss = make(reduction="none")
    values, slopes = loss(scores, target).numpy(), slopes_of(loss, scores, target).numpy()
    for z, y, value, slope in zip(scores.numpy(), target.numpy(), values, slopes, strict=True):
        p = sparse_map(z, power)
        assert value == pytest.approx(p @ z + entropy(p, power) - z[y], rel=1e-12, abs=1e-14)
        np.testing.assert_allclose(slope, p - np.eye(7)[y], atol=1e-13)
    theirs = entmax.sparsemax_loss(scores, target) if power == 1 else entmax.entmax15_loss(scores, target)
    np.testing.assert_allclose(values, theirs, rtol=1e-12, atol=1e-13)


def test_sparsemax_of_two_classes_is_the_modified_huber_loss() -> None:
    lead = torch.tensor([-30.0, -1.5, -1.0, -0.3, 0.0, 0.4, 1.0, 1.1, 50.0], dtype=torch.float64)
    t = lead.numpy()
    expected = np.where(t >= 1, 0.0, np.where(t <= -1, -t, (1 - t) ** 2 / 4))
    values = SparsemaxLoss(reduction="none")(torch.stack([lead, torch.zeros_like(lead)], -1), torch.zeros(9).long())
    np.testing.assert_allclose(values, expected, rtol=ROUNDING, atol=1e-15)


@pytest.mark.parametrize(("make", "margin"), [(SparsemaxLoss, 1.0), (Entmax15Loss, 2.0)])
def test_sparse_losses_end_at_their_margin(make: Callable[..., Any], margin: float) -> None:
    scores, target = torch.tensor([[margin, 0.0, 0.0, -50.0]]), torch.tensor([0])
    assert make()(scores, target).item() == 0
    assert not slopes_of(make(), scores, target).any()
    scores[0, 0] -= 0.1
    assert make()(scores, target).item() > 1e-4
    slopes = slopes_of(make(), scores, target)[0]
    assert slopes[1] == slopes[2] > 0
    assert slopes[3] == 0


@pytest.mark.parametrize("make", SPARSE)
def test_sparse_losses_differentiate_twice(make: Callable[..., Any]) -> None:
    assert torch.autograd.gradgradcheck(lambda z: make(reduction="none")(z, TARGET), SCORES.clone().requires_grad_())


@pytest.mark.parametrize("make", SPARSE)
@pytest.mark.parametrize("depth", [0.5, 0.9, 1.9, 1.999, 2.1, 20.0])
def test_sparse_slopes_sum_to_nothing_with_many_classes(make: Callable[..., Any], depth: float) -> None:
    scores = torch.full((1, 100_000), -depth)
    scores[0, 0] = 0
    slopes = slopes_of(make(), scores, torch.tensor([7])).double()
    assert abs(slopes.sum().item()) < 1e-6
    p = sparse_map(scores.double().numpy()[0], 1 if make is SparsemaxLoss else 2)
    assert slopes[0, 0].item() == pytest.approx(p[0], rel=1e-6)


@pytest.mark.parametrize("make", SPARSE)
def test_sparse_losses_see_no_shift_and_no_removed_class(make: Callable[..., Any]) -> None:
    expected = make(reduction="none")(SCORES, TARGET)
    torch.testing.assert_close(make(reduction="none")(SCORES + 1e6, TARGET), expected, rtol=1e-9, atol=0)
    removed = torch.cat([SCORES, torch.full((3, 1), -torch.inf)], -1)
    torch.testing.assert_close(make(reduction="none")(removed, TARGET), expected, rtol=ROUNDING, atol=0)
    assert not slopes_of(make(), removed, TARGET)[:, -1].any()
    assert make()(removed, torch.tensor([5, 5, 5])).item() == math.inf
    far = torch.cat([SCORES, torch.full((3, 1), -1e200, dtype=torch.float64)], -1)  # its square overflows
    torch.testing.assert_close(make(reduction="none")(far, TARGET), expected, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("make", SPARSE)
def test_sparse_losses_say_how_to_install_what_they_need(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "entmax", None)
    with pytest.raises(ImportError, match=rf"^{make.__name__}: expected [^\n]+; pip install 'lossmith\[surrogates\]'$"):
        make()


@pytest.mark.parametrize("make", SPARSE)
def test_sparse_losses_travel(make: Callable[..., Any]) -> None:
    for twin in (pickle.loads(pickle.dumps(make())), copy.deepcopy(make())):
        assert twin(SCORES, TARGET) == make()(SCORES, TARGET)


@pytest.mark.parametrize("make", SPARSE)
def test_func_transforms_refuse_the_sparse_maps(make: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.vmap(make())(SCORES, TARGET)


# --- smooth top-k


def chance_by_counting(z: list[float], y: int, k: int) -> Any:
    """P(y ∈ S) over all sets of k classes, in many digits."""
    weights = {s: mpmath.exp(mpmath.fsum(z[j] for j in s)) for s in itertools.combinations(range(len(z)), k)}
    return mpmath.fsum(w for s, w in weights.items() if y in s) / mpmath.fsum(weights.values())


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("classes", [5, 6, 7, 8])
def test_smooth_top_k_counts_sets(classes: int, k: int) -> None:
    z = np.random.default_rng(classes).normal(scale=2, size=classes)
    scores, each = torch.from_numpy(z).expand(classes, -1), torch.arange(classes)
    values = SmoothTopKLoss(k, reduction="none")(scores, each)
    with mpmath.workdps(30):
        chances = [chance_by_counting(list(map(float, z)), y, k) for y in range(classes)]
        expected = [float(-mpmath.log(p)) for p in chances]
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)
    assert values.neg().exp().sum().item() == pytest.approx(k, rel=ROUNDING)


def test_smooth_top_1_is_cross_entropy_and_top_all_is_nothing() -> None:
    torch.testing.assert_close(SmoothTopKLoss(1)(SCORES, TARGET), cross_entropy(SCORES, TARGET), rtol=ROUNDING, atol=0)
    assert SmoothTopKLoss(5)(SCORES, TARGET).item() == 0
    assert not slopes_of(SmoothTopKLoss(5), SCORES, TARGET).any()


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("classes", [37, 1000])
def test_smooth_top_k_of_many_classes(classes: int, k: int) -> None:
    z = np.random.default_rng(k).normal(size=classes)

    def degree(m: int, factors: Array) -> Any:  # in exact decimals, one factor after the other
        law = [mpmath.mpf(1)] + [mpmath.mpf(0)] * m
        for x in factors:
            law = [law[0]] + [law[i] + law[i - 1] * mpmath.mpf(float(x)) for i in range(1, m + 1)]
        return law[m]

    with mpmath.workdps(30):
        factors = np.exp(z)
        p = mpmath.mpf(float(factors[3])) * degree(k - 1, np.delete(factors, 3)) / degree(k, factors)
        expected = float(-mpmath.log(p))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        value = SmoothTopKLoss(k)(torch.from_numpy(z).to(dtype), torch.tensor(3)).item()
        assert value == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("gap", [-200.0, -20.0, 20.0, 90.0, 500.0])
def test_smooth_top_k_in_deep_tails_of_float32(gap: float, k: int) -> None:
    z = [0.0, gap, gap / 2, gap + 1, -0.5]
    scores, target = torch.tensor([z]), torch.tensor([0])
    with mpmath.workdps(600):
        p = chance_by_counting(z, 0, k)
        expected = float(-mpmath.log(p))
        slope = float(-(1 - p))  # P(y ∈ S) is a logistic function of z_y
    loss = SmoothTopKLoss(k)
    assert loss(scores, target).item() == pytest.approx(expected, rel=1e-4, abs=1e-37)
    assert slopes_of(loss, scores, target)[0, 0].item() == pytest.approx(slope, rel=1e-4, abs=1e-37)


def test_smooth_top_k_differentiates_twice() -> None:
    loss = SmoothTopKLoss(3, reduction="none")
    assert torch.autograd.gradgradcheck(lambda z: loss(z, TARGET), SCORES.clone().requires_grad_())


def test_smooth_top_k_sees_no_shift_and_no_removed_class() -> None:
    loss = SmoothTopKLoss(3, reduction="none")
    torch.testing.assert_close(loss(SCORES - 1e6, TARGET), loss(SCORES, TARGET), rtol=1e-9, atol=0)
    removed = torch.cat([SCORES, torch.full((3, 2), -torch.inf)], -1)
    torch.testing.assert_close(loss(removed, TARGET), loss(SCORES, TARGET), rtol=ROUNDING, atol=0)
    assert slopes_of(loss, removed, TARGET)[:, 5:].eq(0).all()
    assert loss(removed, torch.tensor([5, 6, 5])).isinf().all()
    few = torch.tensor([0.0, 1.0, -torch.inf, -torch.inf, -torch.inf])  # three places for two classes
    assert loss(few, torch.tensor(0)).item() == 0


# --- all of them


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_compute_in_float32(name: str, dtype: torch.dtype) -> None:
    loss = ALL[name](reduction="none").float()
    scores = SCORES.to(dtype)
    expected = loss(scores.float(), TARGET)
    torch.testing.assert_close(loss(scores, TARGET), expected.to(dtype), rtol=0, atol=0)
    assert slopes_of(loss, scores, TARGET).dtype == dtype


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name: str) -> None:
    loss, scores = ALL[name]().float(), SCORES.float()
    value, slopes = loss(scores, TARGET), slopes_of(loss, scores, TARGET)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(scores, TARGET), value, rtol=0, atol=0)
        z = scores.clone().requires_grad_()
        under = loss(z, TARGET)
    torch.testing.assert_close(torch.autograd.grad(under, z)[0], slopes, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch tracing the map's Function
@pytest.mark.parametrize("name", ALL)
def test_compiles_into_one_graph(name: str) -> None:
    torch.compiler.reset()
    loss = ALL[name](weight=torch.arange(1.0, 6.0).double())
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    target = torch.tensor([0, -100, 4])
    torch.testing.assert_close(compiled(SCORES, target), loss(SCORES, target), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(
        slopes_of(compiled, SCORES, target), slopes_of(loss, SCORES, target), rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize("name", SMOOTH)
def test_vmap_is_a_loop(name: str) -> None:
    loss = SMOOTH[name]()
    scores, target = torch.stack([SCORES, -SCORES]), torch.stack([TARGET, TARGET.flip(0)])
    looped = torch.stack([loss(z, y) for z, y in zip(scores, target, strict=True)])
    torch.testing.assert_close(torch.func.vmap(loss)(scores, target), looped, rtol=ROUNDING, atol=0)
    slopes = torch.stack([slopes_of(loss, z, y) for z, y in zip(scores, target, strict=True)])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(scores, target), slopes, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ALL)
def test_what_stands_in_an_ignored_row_does_not_matter(name: str) -> None:
    scores, target = SCORES.clone(), torch.tensor([0, -100, 4])
    scores[1] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0])
    loss = ALL[name]()
    assert loss(scores, target).item() == loss(SCORES, target).item()
    assert torch.equal(slopes_of(loss, scores, target), slopes_of(loss, SCORES, target))


@pytest.mark.parametrize("name", ALL)
def test_a_class_without_weight_may_cost_inf(name: str) -> None:
    scores, weight = SCORES.clone(), torch.tensor([0.0, 1, 1, 1, 1])
    scores[0, 0] = -math.inf
    value = ALL[name](weight=weight)(scores, TARGET).item()
    assert value == pytest.approx(ALL[name]()(SCORES[1:], TARGET[1:]).item(), rel=ROUNDING)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GammaCrossEntropyLoss(1.0), ValueError, r"gamma: expected a number ≥ 0 and < 1, got 1.0; the limit 1 is .*"),
        (lambda: GammaCrossEntropyLoss(-0.1), ValueError, r"gamma: expected a number ≥ 0 and < 1, got -0.1; .*"),
        (lambda: GammaCrossEntropyLoss(math.nan), ValueError, r"gamma: expected [^\n]+, got nan; .*"),
        (lambda: SmoothTopKLoss(0), ValueError, "k: expected [^\n]+ 0"),
        (lambda: SmoothTopKLoss(2.0), TypeError, "k: expected an integer[^\n]*, got float"),
        (lambda: SmoothTopKLoss(True), TypeError, "k: expected an integer[^\n]*, got bool"),
        (lambda: SmoothTopKLoss(6)(SCORES, TARGET), ValueError, "k: expected an integer from 1 to the 5 classes, got 6"),
        (lambda: SmoothTopKLoss(2)(SCORES, SCORES), ValueError, r"target: SmoothTopKLoss takes class indices, .*"),
        (lambda: SparsemaxLoss()(SCORES, SCORES), ValueError, r"target: SparsemaxLoss takes class indices, .*"),
        (lambda: EMOLoss([[1.0]]), TypeError, r"embeddings: expected a floating-point tensor \(C, d\), got list"),
        (lambda: EMOLoss(torch.eye(3).long()), TypeError, r"embeddings: expected [^\n]+, got torch.int64"),
        (lambda: EMOLoss(torch.ones(3)), ValueError, r"embeddings: expected shape \(C, d\), got \(3,\)"),
        (lambda: EMOLoss(torch.tensor([[1.0], [0.0]])), ValueError, r"embeddings: expected finite rows [^\n]+ in row 1; .*"),
        (lambda: EMOLoss(torch.tensor([[math.nan], [1.0]])), ValueError, r"embeddings: expected [^\n]+ in row 0; .*"),
        (lambda: EMOLoss(torch.eye(4))(SCORES, TARGET), ValueError, "scores: expected 4 classes, one for each .*, got 5"),
        (lambda: EMOLoss(torch.eye(5))(SCORES, TARGET.double()), ValueError, r"target: expected class indices of shape .*"),
    ],
)
def test_refuses_in_one_line(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert re.fullmatch(message, str(caught.value))
