"""Classes on several ranks: real gloo groups, against the unsharded loss of the same scores."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import lossmith
from lossmith import AccuracyLoss
from lossmith.engine.argmax.sharded import exchange as sharded_rows
from lossmith.functional import argmax_log_prob
from lossmith.noise import Custom, StudentT
from support.ranks import Ranks

WORLD, PAIR, ALONE = (0, 1, 2, 3), (1, 2), (0,)  # the ranks of the groups
INF, NAN = float("inf"), float("nan")
P = {torch.float32: 1e-6, torch.float64: 1e-9}
LOG_P = {torch.float32: 1e-5, torch.float64: 1e-9}
GRADIENT = {torch.float32: 2e-5, torch.float64: 1e-7}

# In the worker processes


def shard(group: Any, scores: Tensor, sizes: list[int], dim: int = -1) -> Tensor:
    """This rank's classes."""
    return scores.split(sizes, dim)[dist.get_rank(group)].clone().requires_grad_()


def many_values(group: Any, cases: list[tuple[Tensor, Tensor, list[int], dict[str, Any]]]) -> list[tuple[Tensor, ...]]:
    return [value(group, *case) for case in cases]


def value(
    group: Any, scores: Tensor, target: Tensor, sizes: list[int], options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None, str | None]:
    """log p, its gradient in this rank's scores and in a scale that is a tensor, and what computed it."""
    mine, scale = shard(group, scores, sizes), options.get("scale")
    if isinstance(scale, Tensor):
        options["scale"] = scale = scale.clone().requires_grad_()
    log_p = argmax_log_prob(mine, target, class_group=group, **options)
    log_p[log_p.isfinite()].sum().backward()
    assert mine.grad is not None
    return log_p.detach(), mine.grad, scale.grad if isinstance(scale, Tensor) else None, lossmith.last_kernel()


def loss(
    group: Any, scores: Tensor, target: Tensor, sizes: list[int], options: dict[str, Any], upstream: Tensor
) -> tuple[Tensor, Tensor]:
    mine = shard(group, scores, sizes, 1)
    found = AccuracyLoss(class_group=group, **options)(mine, target)
    found.backward(upstream)
    assert mine.grad is not None
    return found.detach(), mine.grad


# The parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    sharded_rows.kernels()  # compiles, once for all ranks
    with Ranks(tmp_path_factory.mktemp("store") / "store", len(WORLD), (PAIR, ALONE)) as made:
        yield made


def scores_of(rows: int, classes: int, spread: float, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(rows, classes, generator=made, dtype=torch.float64)
    return scores.to(dtype), torch.randint(0, classes, (rows,), generator=made)


def unsharded(scores: Tensor, target: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """In float64: the reference is the oracle of float32 too."""
    leaf = scores.double().clone().requires_grad_()
    options = dict(options)
    scale = options.get("scale")
    if isinstance(scale, Tensor):
        options["scale"] = scale = scale.double().clone().requires_grad_()
    log_p = argmax_log_prob(leaf, target, **options)
    log_p[log_p.isfinite()].sum().backward()
    assert leaf.grad is not None
    return log_p.detach(), leaf.grad, scale.grad if isinstance(scale, Tensor) else None


def assert_right(
    ranks: Ranks, group: tuple[int, ...], cases: list[tuple[Tensor, Tensor, list[int], dict[str, Any]]]
) -> list[str]:
    """Every case on every rank against the unsharded value; returns what computed each."""
    results = ranks(group, many_values, cases)
    assert not isinstance(results[0], tuple), results[0]
    for number, (scores, target, _, options) in enumerate(cases):
        here = [result[number] for result in results]
        expected, slope, in_scale = unsharded(scores, target, options)
        dtype = scores.dtype
        for log_p, _, scale_grad, _ in here:
            assert torch.equal(log_p, here[0][0])
            torch.testing.assert_close(log_p.double().exp(), expected.exp(), rtol=0, atol=P[dtype], equal_nan=True)
            tiny = expected.abs() < 1e-30  # beside the smallest float32
            found, known = (torch.where(tiny, 0.0, x.double()) for x in (log_p, expected))
            torch.testing.assert_close(found, known, rtol=LOG_P[dtype], atol=0)
            if in_scale is not None:
                torch.testing.assert_close(scale_grad.double(), in_scale, rtol=10 * GRADIENT[dtype], atol=GRADIENT[dtype])
        grad = torch.cat([result[1] for result in here], -1).double()
        error, norm = (grad - slope).norm(dim=-1), slope.norm(dim=-1)
        assert (error <= GRADIENT[dtype] * norm + 1e-30).all(), (number, options, error / norm)
    return [case[3] for case in results[0]]


EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
EACH_GROUP = pytest.mark.parametrize(
    ("group", "sizes"),
    [(WORLD, [1, 6, 2, 2]), (WORLD, [1, 1, 1, 1]), (PAIR, [1, 1]), (PAIR, [10, 1])],
    ids=["4: 1+6+2+2", "4: 1+1+1+1", "2: 1+1", "2: 10+1"],
)


@EACH_DTYPE
@EACH_GROUP
def test_flat_spread_and_peaked_rows(ranks: Ranks, group: Any, sizes: list[int], dtype: torch.dtype) -> None:
    cases, rows = [], 5 if dtype == torch.float32 else 2
    for noise in ("normal", "gumbel", "logistic"):
        for seed, spread in enumerate((0.0, 0.1, 2.0, 15.0)):
            cases.append((*scores_of(rows, sum(sizes), spread, dtype, seed), sizes, {"noise": noise}))
    ran = assert_right(ranks, group, cases)
    smooth = "cpu" if dtype == torch.float32 else "reference"
    assert ran == [smooth] * 4 + ["closed form"] * 4 + [smooth] * 4


@EACH_DTYPE
def test_many_classes(ranks: Ranks, dtype: torch.dtype) -> None:
    fast = dtype == torch.float32
    cases = [(*scores_of(4 if fast else 1, 1000, spread, dtype), [1, 500, 400, 99], {}) for spread in (0.0, 1.0, 4.0)]
    cases.append((*scores_of(1, 1000, 1.0, dtype), [250] * 4, {}))
    assert_right(ranks, WORLD, cases)
    assert_right(ranks, PAIR, [(*scores_of(2 if fast else 1, 5000, spread, dtype), [4500, 500], {}) for spread in (0.0, 1.0)])


@EACH_DTYPE
def test_leads_from_hopeless_to_sure(ranks: Ranks, dtype: torch.dtype) -> None:
    leads = torch.tensor([-500.0, -80.0, -50.0, -20.0, -5.0, -1.0, 0.0, 0.3, 3.0, 8.3, 12.0, 20.0, 50.0, 1e4])
    cases = []
    for noise in ("normal", "gumbel", "logistic"):
        scores, _ = scores_of(len(leads), 11, 0.3, dtype)
        scores[:, 4] = scores[:, [0, 1, 2, 3, *range(5, 11)]].amax(-1) + leads.to(dtype)
        cases.append((scores, torch.full((len(leads),), 4), [1, 6, 2, 2], {"noise": noise}))
    far = torch.tensor([[60.27, 0.0, -1.0, -2.0], [20.0, 0.0, -1.0, -2.0], [80.0, 0.0, -1.0, -2.0]], dtype=dtype)
    cases.append((far, torch.zeros(3, dtype=torch.int64), [1, 1, 1, 1], {"noise": StudentT(30)}))
    assert_right(ranks, WORLD, cases)


@EACH_DTYPE
def test_removed_classes_ties_and_rows_without_rivals(ranks: Ranks, dtype: torch.dtype) -> None:
    scores, target = scores_of(6, 11, 1.0, dtype)
    scores[:, 1:4] = -INF
    target[:] = torch.tensor([0, 4, 10, 2, 8, 9])  # that of row 3 is removed
    scores[1, 5:] = scores[1, 4]
    scores[4], scores[4, 8] = -INF, 2.5
    scores[5, 0] = -INF  # no class on rank 0
    cases = [(scores, target, [1, 6, 2, 2], {"noise": noise}) for noise in ("normal", "gumbel")]
    assert_right(ranks, WORLD, cases)


@EACH_DTYPE
def test_ignored_rows_are_not_looked_at(ranks: Ranks, dtype: torch.dtype) -> None:
    scores, target = scores_of(5, 11, 1.0, dtype)
    target[1], target[3] = -100, -100
    scores[1, 4], scores[3, 10] = NAN, INF
    clean = scores.clone()
    clean[[1, 3]] = 0.0
    for noise in ("normal", "gumbel"):
        options = {"noise": noise, "ignore_index": -100}
        here = ranks(WORLD, value, scores, target, [1, 6, 2, 2], options)
        expected, slope, _ = unsharded(clean, target, options)
        torch.testing.assert_close(here[3][0].double(), expected, rtol=LOG_P[dtype], atol=P[dtype])
        grad = torch.cat([result[1] for result in here], -1).double()
        torch.testing.assert_close(grad, slope, rtol=0, atol=GRADIENT[dtype])
        assert not grad[[1, 3]].any()
    all_ignored = ranks(WORLD, value, scores, torch.full((5,), -100), [1, 6, 2, 2], {"ignore_index": -100})
    assert not any(log_p.any() or grad.any() for log_p, grad, *_ in all_ignored)


@EACH_DTYPE
def test_margin_scale_and_their_gradients(ranks: Ranks, dtype: torch.dtype) -> None:
    scores, target = scores_of(8, 11, 2.0, dtype)
    scores[0] = scores[0].round()  # ties at the margin
    cases = []
    for noise in ("normal", "gumbel"):
        each = torch.linspace(0.4, 3.0, 8, dtype=dtype).unsqueeze(-1)
        for scale in (0.7, torch.tensor(1.3, dtype=dtype), each):
            for margin in (None, 0.0, 1.0):
                cases.append((scores, target, [1, 6, 2, 2], {"noise": noise, "scale": scale, "margin": margin}))
    scores = scores.clone()
    scores[2, target[2]] -= 500  # left to the reference
    cases.append((scores, target, [1, 6, 2, 2], {"scale": torch.tensor(0.9, dtype=dtype)}))
    assert_right(ranks, WORLD, cases)


def test_other_noise(ranks: Ranks) -> None:
    scores, target = scores_of(4, 11, 2.0, torch.float64)
    assert assert_right(ranks, WORLD, [(scores, target, [1, 6, 2, 2], {"noise": StudentT(3)})]) == ["reference"]
    scores, target = scores_of(4, 11, 2.0, torch.float32)
    own = Custom(log_logistic_density, torch.nn.functional.logsigmoid, torch.logit, name="normal")
    assert assert_right(ranks, WORLD, [(scores, target, [1, 6, 2, 2], {"noise": own})]) == ["cpu"]


def stretched_logistic(width: float) -> Custom:
    """The logistic distribution, ``width`` times as wide."""
    return Custom(
        lambda x: log_logistic_density(x / width) - math.log(width),
        lambda x: torch.nn.functional.logsigmoid(x / width),
        lambda p: width * torch.logit(p),
    )


def log_logistic_density(x: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)


def test_half_types_and_leading_dimensions(ranks: Ranks) -> None:
    scores, target = scores_of(6, 11, 1.0, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        half = scores.to(dtype)
        here = ranks(WORLD, value, half, target, [1, 6, 2, 2], {})
        expected, slope, _ = unsharded(half, target, {})
        assert here[0][0].dtype == here[0][1].dtype == dtype
        torch.testing.assert_close(here[0][0].double(), expected, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(torch.cat([r[1] for r in here], -1).double(), slope, rtol=1e-2, atol=1e-2)
    flat = ranks(WORLD, value, scores, target, [1, 6, 2, 2], {})
    shaped = ranks(WORLD, value, scores.view(2, 3, 11), target.view(2, 3), [1, 6, 2, 2], {})
    empty = ranks(WORLD, value, scores[:0], target[:0], [1, 6, 2, 2], {})
    for one, other, none in zip(flat, shaped, empty, strict=True):
        assert torch.equal(one[0].view(2, 3), other[0])
        assert torch.equal(one[1], other[1].flatten(0, 1))
        assert none[0].shape == (0,)


def test_a_group_of_one_is_no_group(ranks: Ranks) -> None:
    scores, target = scores_of(6, 11, 1.0, torch.float32)
    ((log_p, grad, *_),) = ranks(ALONE, value, scores, target, [11], {})
    leaf = scores.clone().requires_grad_()
    expected = argmax_log_prob(leaf, target)
    assert torch.equal(log_p, expected)
    assert torch.equal(grad, torch.autograd.grad(expected.sum(), leaf)[0])


# The loss


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_dials_of_the_loss(ranks: Ranks, reduction: Any) -> None:
    scores, target = scores_of(6, 11, 1.5, torch.float64)
    scores, target = scores.view(2, 3, 11).movedim(-1, 1).contiguous(), target.view(2, 3)
    target[0, 1] = -100
    weight = torch.linspace(0, 2, 11, dtype=torch.float64)
    dials: list[dict[str, Any]] = [{}, {"q": 1.0}, {"noise": "normal", "q": 1.0}]
    dials += [
        {"noise": "normal", **each} for each in ({"q": 0.0, "weight": weight}, {"q": 1.0, "weight": weight, "margin": 1.0})
    ]
    if reduction == "mean":
        dials += [
            {"noise": "normal", "q": 0.0, "over": "batch"},
            {"noise": "normal", "q": 1.0, "over": "batch", "weight": weight},
        ]
    for options in dials:
        upstream = (
            torch.linspace(-1, 2, 6, dtype=torch.float64).view(2, 3) if reduction == "none" else torch.tensor(1.5).double()
        )
        leaf = scores.clone().requires_grad_()
        expected = AccuracyLoss(reduction=reduction, **options)(leaf, target)
        expected.backward(upstream)
        here = ranks(WORLD, loss, scores, target, [1, 6, 2, 2], {"reduction": reduction, **options}, upstream)
        for found, _ in here:
            torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(torch.cat([grad for _, grad in here], 1), leaf.grad, rtol=1e-7, atol=1e-9)


def train(group: Any, features: Tensor, target: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    """Three steps of a last layer whose rows lie on the ranks; the weights of this rank."""
    mine = torch.nn.Parameter(shard(group, weight, sizes, 0).detach())
    criterion = AccuracyLoss("normal", q=1.0, class_group=group)
    for _ in range(3):
        mine.grad = None
        criterion(features @ mine.T, target).backward()
        assert mine.grad is not None
        mine.data -= 0.5 * mine.grad
    return mine.detach()


def test_a_tensor_parallel_head_learns_what_a_whole_one_does(ranks: Ranks) -> None:
    made = torch.Generator().manual_seed(5)
    features, weight = torch.randn(32, 7, generator=made), torch.randn(11, 7, generator=made)
    target = torch.randint(0, 11, (32,), generator=made)
    whole = weight.clone().requires_grad_()
    for _ in range(3):
        (grad,) = torch.autograd.grad(AccuracyLoss("normal", q=1.0)(features @ whole.T, target), whole)
        whole.data -= 0.5 * grad
    found = torch.cat(ranks(WORLD, train, features, target, weight, [1, 6, 2, 2]))
    torch.testing.assert_close(found, whole.detach(), rtol=1e-5, atol=1e-6)
    assert (found - weight).norm() > 0.1


# Bad input: every rank raises, none waits


def bad_calls(group: Any) -> dict[str, str]:
    """What each call raises on this rank; after each, a good call shows that all ranks are in step."""
    rank = dist.get_rank(group)
    zeros, target, dtype = torch.zeros(4, 3), torch.tensor([0, 5, 11, 2]), torch.float64

    def at(row: int, number: float) -> Tensor:
        scores = zeros.clone()
        if rank == 2:
            scores[row, 1] = number
        return scores

    def there(one: Any, other: Any) -> Any:
        return one if rank == 2 else other

    def call(scores: Any, index: Any = target, **options: Any) -> Tensor:
        return argmax_log_prob(scores, index, class_group=group, **options)

    def of_loss(scores: Any, index: Any = target, **options: Any) -> Tensor:
        return AccuracyLoss(class_group=group, **options)(scores, index)

    calls: dict[str, Callable[[], object]] = {
        "nan": lambda: call(at(3, NAN)),
        "nan float64": lambda: call(at(3, NAN).double()),
        "inf of the target": lambda: call(there(torch.full((4, 3), INF), zeros), target),
        "all removed": lambda: call(torch.full((4, 3), -INF)),
        "in dimensions": lambda: call(at(3, NAN).view(2, 2, 3), target.view(2, 2)),
        "target": lambda: call(zeros, torch.tensor([0, 5, 12, 2])),
        "negative target": lambda: of_loss(zeros, torch.tensor([0, 5, -1, 2])),
        "targets differ": lambda: call(zeros, there(torch.tensor([0, 5, 10, 2]), target)),
        "rows": lambda: call(there(zeros[:2], zeros), there(target[:2], target)),
        "shape": lambda: call(zeros, there(target[:2], target)),
        "dtype": lambda: call(there(zeros.double(), zeros)),
        "integers": lambda: call(there(zeros.long(), zeros)),
        "no tensor": lambda: call(there(None, zeros)),
        "no class": lambda: call(there(zeros[:, :0], zeros)),
        "scale": lambda: call(zeros, scale=there(-1.0, 1.0)),
        "scales differ": lambda: call(zeros, scale=there(2.0, 1.0)),
        "noises differ": lambda: call(zeros, noise=StudentT(there(5.0, 3.0))),
        "own noises differ": lambda: call(zeros, noise=stretched_logistic(there(2.001, 2.0))),
        "requires_grad": lambda: call(there(zeros.clone().requires_grad_(), zeros)),
        "weight": lambda: of_loss(zeros, weight=torch.ones(3)),
        "probabilities": lambda: of_loss(zeros, torch.ones(4, 3) / 3),
        "second derivatives": lambda: torch.autograd.grad(
            call(z := zeros.clone().requires_grad_()).sum(), z, create_graph=True
        ),
        "kernel": lambda: with_kernel("cpu", lambda: call(zeros.to(dtype))),
        "kinks": lambda: of_loss(zeros, noise="laplace"),
        "smoothing": lambda: of_loss(zeros, label_smoothing=0.1),
        "standardize": lambda: of_loss(zeros, standardize=True),
        "margin": lambda: call(zeros, margin=-1.0),
        "no group": lambda: AccuracyLoss(class_group="world"),  # type: ignore[arg-type]
    }
    found = {}
    for name, one in calls.items():
        found[name] = "nothing"
        try:
            one()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        expected = torch.full((4,), 12.0).log().neg()
        torch.testing.assert_close(call(zeros), expected, msg=lambda text, name=name: f"after {name}: {text}")
    return found


def with_kernel(name: str, call: Callable[[], object]) -> object:
    with lossmith.use_kernel(name):
        return call()


ON_2 = " (on rank 2 of class_group)"
FIRST = "of class_group, got"
MESSAGES = {
    "nan": "ValueError: scores: expected finite numbers or −inf, got nan in row 3; lower the learning rate",
    "nan float64": "ValueError: scores: expected finite numbers or −inf, got nan in row 3; lower the learning rate",
    "inf of the target": "ValueError: scores: expected finite numbers or −inf, got inf in row 0; use −inf to remove a class",
    "all removed": "ValueError: scores: expected a class that is not removed, got −inf for every class of row 0",
    "in dimensions": "ValueError: scores: expected finite numbers or −inf, got nan in row (1, 1); lower the learning rate",
    "target": "ValueError: target: expected class indices from 0 to 11, got 0 to 12",
    "negative target": "ValueError: target: expected class indices from 0 to 11, got -1 to 5",
    "targets differ": "ValueError: target: expected the same global class indices on every rank of class_group, got checksums",
    "rows": f"ValueError: scores: expected as many rows on every rank {FIRST} [4, 4, 2, 4]",
    "shape": f"ValueError: target: expected shape (4,) for scores (4, 3), got (2,){ON_2}",
    "dtype": "ValueError: scores: expected one dtype on every rank of class_group, got",
    "integers": f"TypeError: scores: expected a floating-point tensor, got torch.int64; pass raw model outputs{ON_2}",
    "no tensor": "TypeError: scores: expected a torch.Tensor, got NoneType",
    "no class": f"ValueError: scores: expected shape (…, C) with C ≥ 1 classes, got (4, 0){ON_2}",
    "scale": f"ValueError: scale: expected a positive number, got -1.0{ON_2}",
    **dict.fromkeys(
        ("scales differ", "noises differ", "own noises differ"),
        "ValueError: noise, scale, margin, ignore_index, weight: expected the same on every rank of class_group",
    ),
    "requires_grad": f"ValueError: scores, scale: expected requires_grad to be the same on every rank {FIRST} [0, 0, 1, 0]",
    "weight": "ValueError: weight: expected shape (12,), one a class of all ranks, got (3,)",
    "probabilities": "ValueError: target: expected class indices with class_group, got class probabilities; gather the scores",
    "second derivatives": "NotImplementedError: class_group: expected first derivatives only, got create_graph=True; gather",
    "kernel": "ValueError: kernel: 'cpu' cannot serve this call of argmax_log_prob (scores of torch.float64; pass float32",
    "kinks": "ValueError: noise: expected one without kinks for classes on several ranks, got 'laplace'",
    "smoothing": "ValueError: label_smoothing: not with class_group, got 0.1; leave it out, or gather the scores",
    "standardize": "ValueError: standardize: not with class_group, got True; leave it out, or gather the scores",
    "margin": "ValueError: margin: expected a number ≥ 0 in units of the scores, got -1.0",
    "no group": "TypeError: class_group: expected a torch.distributed.ProcessGroup, got str",
}


def test_bad_input_raises_on_every_rank(ranks: Ranks) -> None:
    for found in ranks(WORLD, bad_calls):
        assert not isinstance(found, tuple), found
        assert {name: message for name, message in found.items() if not message.startswith(MESSAGES[name])} == {}


def test_no_torch_distributed() -> None:
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match=r"^class_group: expected a group that this process is in, got another; "):
        AccuracyLoss(class_group=dist.GroupMember.NON_GROUP_MEMBER)
    store = dist.HashStore()
    with pytest.raises(ValueError, match=r"^class_group: torch.distributed is not initialised; call "):
        AccuracyLoss(class_group=dist.ProcessGroup(store, 0, 1))


def crossing(group: Any, scores: Tensor, target: Tensor, sizes: list[int]) -> tuple[list[int], list[int]]:
    """How many numbers each collective of a forward and of a backward pass carries."""
    carried: list[int] = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda x, *args, **options: (carried.append(x.numel()), all_reduce(x, *args, **options))
    try:
        log_p = argmax_log_prob(shard(group, scores, sizes), target, class_group=group)
        forward = carried.copy()
        log_p.sum().backward()
    finally:
        dist.all_reduce = all_reduce
    return forward, carried[len(forward) :]


def test_what_crosses_the_network(ranks: Ranks) -> None:
    scores, target = scores_of(64, 1000, 1.0, torch.float32)
    for forward, backward in ranks(WORLD, crossing, scores, target, [250] * 4):
        assert forward[0] == 3 * 64
        assert len(forward) <= 1 + 3
        assert sum(forward[1:]) < 130 * 64
        assert backward == [2 * 64]
