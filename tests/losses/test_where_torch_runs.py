"""Losses under autocast and GradScaler, torch.compile, torch.func, and what they keep between steps."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import lossmith
from lossmith import AccuracyLoss, AUCLoss, BalancedAccuracyLoss, CostLoss, FBetaLoss, SubsetAccuracyLoss, TopKAccuracyLoss
from support.cases import IGNORED, LOSSES, NEW_TORCH, Case, gradient, random_scores, target_of, tensor

N, CLASSES = 9, 4
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
EACH = pytest.mark.parametrize("case", LOSSES, ids=lambda case: f"{case.name} {case.options.keys() and list(case.options)}")
# The first and the last of each class, and what remembers.
WITH_MEMORY = [case for case in LOSSES if "memory" in case.options]
FIRST = {case.name: case for case in reversed(LOSSES)}
LAST = {case.name: case for case in LOSSES}
SOME = {id(case): case for case in (*FIRST.values(), *LAST.values(), *WITH_MEMORY)}.values()
COMPILING = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
FEW = pytest.mark.parametrize("case", SOME, ids=lambda case: f"{case.name} {list(case.options)}")


def batch(case: Case, seed: int = 0, ignored: float = 0.0) -> tuple[Tensor, Tensor]:
    """Scores and targets, the first of which is ignored and has the scores given."""
    scores = random_scores(*((N,) if case.kind == "binary" else (N, CLASSES)), seed=seed)
    target = target_of(case.kind, N, CLASSES, seed)
    target[0], scores[0] = IGNORED, ignored
    return scores, target


def slopes(loss: nn.Module, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients in scores and scale."""
    leaf = scores.clone().requires_grad_()
    value = loss(leaf, target)
    return value.detach(), *torch.autograd.grad(value, (leaf, loss.scale))


# Half types


@HALF
@EACH
def test_half_types_compute_in_float32(case: Case, dtype: torch.dtype) -> None:
    """The loss is that of the same scores in float32, rounded once; under autocast not even that."""
    scores, target = batch(case)
    half = scores.to(dtype)
    value, slope, in_scale = slopes(case.loss(), half.float(), target)
    rounded, slope_of_half, scale_of_half = slopes(case.loss(), half, target)
    assert rounded.dtype == slope_of_half.dtype == dtype
    assert torch.equal(rounded, value.to(dtype))
    torch.testing.assert_close(slope_of_half, slope.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(scale_of_half, in_scale, rtol=1e-6, atol=1e-9)
    for given in (half, half.float()):
        with torch.autocast("cpu", dtype):
            inside, slope_inside, _ = slopes(case.loss(), given, target)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, value)
        assert torch.equal(slope_inside, slope.to(given.dtype))


def test_autocast_as_with_cross_entropy() -> None:
    """Model and loss under autocast: the same dtypes and nearly the same numbers."""
    scores, target = batch(LOSSES[0])
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            outputs = nn.functional.linear(scores.float(), torch.eye(CLASSES))
            assert outputs.dtype == dtype
            found, known = AccuracyLoss(q=1.0)(outputs, target), nn.functional.cross_entropy(outputs, target)
        assert found.dtype == known.dtype == torch.float32
        torch.testing.assert_close(found, known, rtol=1e-6, atol=0)
        assert AccuracyLoss("gumbel")(outputs, target).dtype == nn.functional.cross_entropy(outputs, target).dtype == dtype


def test_sums_in_half_types_neither_overflow_nor_lose_counts() -> None:
    scores = torch.zeros(100_000, 2, dtype=torch.float16)
    scores[:, 1] = 4.0
    target = torch.zeros(100_000, dtype=torch.int64)
    torch.testing.assert_close(AccuracyLoss(q=1.0)(scores, target), torch.tensor(4.0181, dtype=torch.float16))
    target[:1000] = 1  # beyond 256, bfloat16 does not count by ones
    found = BalancedAccuracyLoss("gumbel", q=0.0)(scores.bfloat16(), target)
    torch.testing.assert_close(found, torch.tensor(0.5, dtype=torch.bfloat16))


def test_grad_scaler() -> None:
    """With its first factor of 65536 the unscaled gradient is right; an infinite one skips the step."""
    scores, target = batch(LOSSES[0])
    layer, scaler = nn.Linear(CLASSES, CLASSES), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.float16):
        loss = AccuracyLoss("normal", q=1.0)(layer(scores.float()), target)
        plain = AccuracyLoss("normal", q=1.0)(nn.functional.linear(scores.float(), layer.weight, layer.bias), target)
    expected = gradient(plain, layer.weight)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-2, atol=1e-4)
    before = layer.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(layer.weight, before)
    assert scaler.get_scale() == 65536
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = AccuracyLoss("normal", q=1.0)(layer(scores.float()), target)
    scaler.scale(loss * torch.inf).backward()
    before = layer.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 32768


# torch.compile


@NEW_TORCH
@COMPILING
@FEW
def test_compiled_in_one_graph_it_is_the_same(case: Case) -> None:
    """Ignored rows may hold anything there too. Traced and differentiated as for any backend."""
    assert_same_compiled(case, "aot_eager")


@NEW_TORCH
@COMPILING
@pytest.mark.parametrize("case", [LAST["AUCLoss"]], ids=lambda case: case.name)
def test_compiled_to_machine_code(case: Case) -> None:
    assert_same_compiled(case, "inductor")


def assert_same_compiled(case: Case, backend: str) -> None:
    torch._dynamo.reset()
    scores, target = batch(case, ignored=torch.nan)
    loss = case.loss()
    found = slopes_of(torch.compile(loss, fullgraph=True, backend=backend), loss.scale, scores, target)
    torch.testing.assert_close(found, slopes(case.loss(), scores, target), rtol=1e-10, atol=1e-13)
    assert not found[1][0].any()


def slopes_of(call: Any, scale: Tensor, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = scores.clone().requires_grad_()
    value = call(leaf, target)
    return value.detach(), *torch.autograd.grad(value, (leaf, scale))


@NEW_TORCH
@COMPILING
def test_compiled_under_autocast() -> None:
    torch._dynamo.reset()
    scores, target = batch(LOSSES[0])
    compiled = torch.compile(AccuracyLoss("normal", q=1.0), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(scores.bfloat16(), target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, AccuracyLoss("normal", q=1.0)(scores.bfloat16().float(), target))


# torch.func


@EACH
def test_under_torch_func(case: Case) -> None:
    """A loss for each batch of a stack, and its gradients in scores and scale, against one call after the other."""
    stacks = [torch.stack(x) for x in zip(*(batch(case, seed) for seed in range(3)), strict=True)]
    loss = case.loss().eval()  # without memory

    def of_scale(scale: Tensor, scores: Tensor, target: Tensor) -> Tensor:
        return functional_call(loss, {"scale": scale}, (scores, target))

    expected = [slopes(loss, scores, target) for scores, target in zip(*stacks, strict=True)]
    values, in_scores, in_scale = (torch.stack(x) for x in zip(*expected, strict=True))
    torch.testing.assert_close(vmap(loss)(*stacks), values)
    torch.testing.assert_close(vmap(torch.func.grad(loss))(*stacks), in_scores)
    scale = loss.scale.detach()
    torch.testing.assert_close(vmap(torch.func.grad(of_scale), (None, 0, 0))(scale, *stacks), in_scale)
    torch.testing.assert_close(torch.func.grad(lambda s: vmap(of_scale, (None, 0, 0))(s, *stacks).sum())(scale), in_scale.sum())


@pytest.mark.parametrize("noise", ["laplace", "studentt"])
def test_noise_without_a_kernel_under_torch_func(noise: str) -> None:
    stacks = [torch.stack(x) for x in zip(*(batch(LOSSES[0], seed) for seed in range(2)), strict=True)]
    loss = AccuracyLoss(noise, nn.Parameter(tensor(1.0)))
    expected = torch.stack([slopes(loss, scores, target)[1] for scores, target in zip(*stacks, strict=True)])
    torch.testing.assert_close(vmap(torch.func.grad(loss))(*stacks), expected)


def test_what_torch_func_cannot_do_is_refused() -> None:
    scores, target = batch(LOSSES[0])
    for transformed in (vmap(FBetaLoss(memory=3)), torch.func.grad(FBetaLoss(memory=3))):
        with pytest.raises(
            NotImplementedError, match=r"^memory: expected a plain call in training, [^\n]+ call loss.eval\(\) first"
        ):
            transformed(scores, target)  # vmap takes them row by row
    twice = torch.func.grad(lambda z: torch.func.grad(TopKAccuracyLoss(2))(z, target).square().sum())
    with pytest.raises(NotImplementedError, match=r"^topk_log_prob: expected first derivatives only under torch.func; take"):
        twice(scores)


# Learned scales


@EACH
def test_the_gradient_of_a_learned_scale(case: Case) -> None:
    """Against the difference of two values; remembered samples are ranked with the same scale."""
    loss, (scores, target) = case.loss(), batch(case)
    loss(*batch(case, seed=5))
    h = 1e-4 * loss.scale.item()
    values = []
    for step in (h, -h):
        other = copy.deepcopy(loss)  # with the memory as it is now
        other.scale.data += step
        values.append(other(scores, target).item())
    _, _, slope = slopes(loss, scores, target)
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-9)
    assert slope.abs() > 1e-6


# What is kept between steps

MEMORY = pytest.mark.parametrize("case", WITH_MEMORY, ids=lambda case: case.name)


@MEMORY
def test_a_memory_goes_on_where_it_was_saved(case: Case) -> None:
    loss = case.loss()
    loss(*batch(case, seed=1))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    loaded = case.loss()
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    others = [loaded, pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)]
    fresh = case.loss()(*batch(case))
    expected = loss(*batch(case))
    assert (expected - fresh).abs() > 1e-4
    for other in others:  # the first call of each, whatever the others did since
        assert torch.equal(other(*batch(case)), expected)


def test_a_smaller_memory_takes_the_newest_of_a_larger_one() -> None:
    large, small = (AUCLoss(memory=size) for size in (6, 2))
    large(*ramp(0, 6))
    small.load_state_dict(large.state_dict())
    same = AUCLoss(memory=2)
    same(*ramp(4, 6))
    assert torch.equal(small(*ramp(6, 9)), same(*ramp(6, 9)))


def ramp(first: int, last: int) -> tuple[Tensor, Tensor]:
    """Scores first, first + 1, …, and targets that alternate."""
    scores = torch.arange(first, last, dtype=torch.float64)
    return scores, scores.long() % 2


def test_the_newest_are_remembered_in_order_and_only_in_training() -> None:
    loss = AUCLoss(memory=5)
    for first, last, kept in ((0, 2, [0, 1]), (2, 5, [0, 1, 2, 3, 4]), (5, 6, [1, 2, 3, 4, 5]), (6, 14, [9, 10, 11, 12, 13])):
        loss(*ramp(first, last))
        assert loss.memory.scores.flatten().tolist() == kept
    state = copy.deepcopy(loss.state_dict())
    loss.eval()
    assert torch.equal(loss(*ramp(20, 23)), AUCLoss()(*ramp(20, 23)))
    assert all(torch.equal(loss.state_dict()[name], x) for name, x in state.items())
    loss.train()
    together = torch.cat([torch.arange(9, 14), torch.arange(20, 23)]).double()
    torch.testing.assert_close(loss(*ramp(20, 23)), AUCLoss()(together, together.long() % 2))


@MEMORY
def test_what_is_remembered_gets_no_gradient(case: Case) -> None:
    """The loss is that of both batches together, the gradient that of the second alone: accumulated, one batch at a time."""
    before, now = batch(case, seed=1), batch(case, seed=2)
    options = {**case.options, "memory": N}
    loss, whole = Case(case.name, options, case.kind).loss(), Case(case.name, {**options, "memory": 0}, case.kind).loss()
    first = before[0].clone().requires_grad_()
    loss(first, before[1])
    assert not loss.memory.scores.requires_grad
    found = slopes(loss, *now)
    expected = slopes(whole, torch.cat([before[0], now[0]]), torch.cat([before[1], now[1]]))
    torch.testing.assert_close(found, (expected[0], expected[1][N:], expected[2]), rtol=1e-10, atol=1e-14)


def test_memory_of_another_task_is_refused() -> None:
    loss = FBetaLoss(memory=4)
    loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"^memory: expected samples of shape \(3,\) as before, got \(4,\); make a new loss"):
        loss(torch.zeros(2, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in LOSSES
        if case.name in ("AccuracyLoss", "TopKAccuracyLoss", "CostLoss", "SubsetAccuracyLoss")
        and "standardize" not in case.options  # a half has a mean of its own
    ],
    ids=lambda case: f"{case.name} {list(case.options)}",
)
def test_two_halves_of_a_sum_accumulate_to_the_whole(case: Case) -> None:
    if case.options.get("over") == "batch":
        case = Case(case.name, {name: x for name, x in case.options.items() if name != "over"}, case.kind)
    loss = Case(case.name, {**case.options, "reduction": "sum"}, case.kind).loss()
    scores, target = batch(case)
    leaf = scores.clone().requires_grad_()
    for half in (slice(0, 4), slice(4, N)):
        loss(leaf[half], target[half]).backward()
    _, slope, in_scale = slopes(loss, scores, target)
    torch.testing.assert_close((leaf.grad, loss.scale.grad), (slope, in_scale), rtol=1e-10, atol=1e-14)


def test_moved_with_its_model() -> None:
    loss = CostLoss(torch.eye(3), weight=torch.ones(3), scale=nn.Parameter(torch.tensor(2.0)))
    model = nn.ModuleDict({"layer": nn.Linear(3, 3), "loss": loss, "auc": AUCLoss(memory=4)})
    model["auc"](*ramp(0, 4))
    model.double()
    assert loss.cost.dtype == loss.weight.dtype == loss.scale.dtype == model["auc"].memory.scores.dtype == torch.float64
    scores, target = random_scores(5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert loss(scores.float(), target).dtype == torch.float32  # the scores' own
    model.half()
    assert model["auc"](*ramp(4, 6)).dtype == torch.float64
    assert model["auc"].memory.scores.flatten().tolist() == [2, 3, 4, 5]
    model.to("meta")
    assert all(x.is_meta for x in model.state_dict().values())


@pytest.mark.parametrize(
    "loss",
    [AccuracyLoss("gumbel"), BalancedAccuracyLoss("gumbel"), CostLoss(1 - torch.eye(3)), FBetaLoss(), lossmith.JaccardLoss()],
    ids=lambda loss: type(loss).__name__,
)
def test_shapes_alone(loss: nn.Module) -> None:
    """On the meta device, as for counting memory before there is any."""
    scores, target = torch.empty(5, 3, device="meta"), torch.empty(5, dtype=torch.int64, device="meta")
    assert loss.to("meta")(scores, target).shape == ()


def test_subset_accuracy_with_gumbel_noise_is_torchs_own_under_vmap() -> None:
    scores, target = random_scores(3, N, CLASSES), target_of("labels", 3 * N, CLASSES).view(3, N, CLASSES)
    found = vmap(SubsetAccuracyLoss("gumbel"))(scores, target)
    each = nn.functional.binary_cross_entropy_with_logits(scores, target.double(), reduction="none")
    torch.testing.assert_close(found, each.sum(-1).mean(-1))
