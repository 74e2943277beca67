"""Samples on several ranks: real gloo groups and DDP, against one process that has the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lossmith
from lossmith import AccuracyLoss, AUCLoss
from support.cases import IGNORED, LOSSES, Case, gradient, random_scores, target_of
from support.ranks import Ranks

N, FEATURES, CLASSES = 12, 5, 4
# The ranks' batches, and the ranks whose samples are all ignored.
SPLITS: dict[int, list[tuple[list[int], tuple[int, ...]]]] = {
    1: [([12], ())],
    2: [([9, 3], ()), ([0, 12], ()), ([8, 4], (1,)), ([5, 7], (0, 1))],
    3: [([7, 0, 5], ()), ([5, 4, 3], (1,)), ([1, 1, 10], (0,)), ([0, 4, 8], (1,))],
}


class Model(nn.Module):
    """A linear layer and its loss."""

    def __init__(self, case: Case, group: Any = None) -> None:
        super().__init__()
        outputs = 1 if case.kind == "binary" else CLASSES
        self.linear = nn.Linear(FEATURES, outputs, bias=False, dtype=torch.float64)
        self.linear.weight.data = random_scores(outputs, FEATURES, seed=3)
        self.criterion = case.loss(group)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        scores = self.linear(features)
        return self.criterion(scores.squeeze(-1) if scores.shape[-1] == 1 else scores, target)


Batch = tuple[Tensor, Tensor]
Outcome = tuple[Tensor, list[Tensor]]


def batches(kind: str, sizes: list[int], ignored: tuple[int, ...]) -> list[Batch]:
    """Features and targets of all ranks for a step that fills a memory, and for one more."""
    found = []
    for step in range(2):
        target = target_of(kind, N, CLASSES, seed=step)
        target[0] = IGNORED
        for rank, part in enumerate(target.split(sizes)):
            if rank in ignored:
                part.fill_(IGNORED)
        found.append((random_scores(N, FEATURES, seed=10 + step), target))
    return found


def outcome(model: nn.Module, steps: list[Batch]) -> Outcome:
    """The loss of the last step, and the gradients in weights and scale."""
    with torch.no_grad():
        model(*steps[0])
    loss = model(*steps[1])
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


# In the worker processes


def outcomes(group: Any, cases: list[Case], splits: list[tuple[list[int], tuple[int, ...]]]) -> list[Outcome]:
    found, rank = [], dist.get_rank(group)
    for case in cases:
        for sizes, ignored in splits:
            model = DistributedDataParallel(Model(case, group), process_group=group)
            own = [tuple(x.split(sizes)[rank] for x in step) for step in batches(case.kind, sizes, ignored)]
            found.append(outcome(model, own))
    return found


def without_a_group(group: Any, sizes: list[int]) -> Outcome:
    """Each rank's own loss, as DDP averages it."""
    case, rank = Case("AUCLoss", {}, "binary"), dist.get_rank(group)
    own = [tuple(x.split(sizes)[rank] for x in step) for step in batches(case.kind, sizes, ())]
    return outcome(DistributedDataParallel(Model(case), process_group=group), own)


def memories(group: Any, sizes: list[int]) -> list[Tensor]:
    """What is remembered after each of two steps of scores 0, 1, 2, … 23."""
    loss, rank = AUCLoss(memory=15, process_group=group), dist.get_rank(group)
    found = []
    for first in (0, N):
        scores = torch.arange(first, first + N, dtype=torch.float64).split(sizes)[rank]
        loss(scores, scores.long() % 2)
        found.append(loss.memory.scores.flatten())
    return found


COUNTED = (lossmith.FBetaLoss, "multiclass"), (lossmith.BalancedAccuracyLoss, "multiclass"), (AUCLoss, "binary")


def counted(group: Any, sizes: list[int]) -> list[list[float]]:
    """Of each loss: what it counts over its group, and what a torchmetrics metric sums over ranks by itself, twice."""
    found = []
    for make, kind in COUNTED if min(sizes) else COUNTED[:2]:
        scores, target = scores_to_count(kind)
        own = scores.split(sizes)[dist.get_rank(group)], target.split(sizes)[dist.get_rank(group)]
        loss = make(process_group=group)
        metric = loss.counted_metric()
        for x, y in zip(own[0].split(2), own[1].split(2), strict=True):
            if len(y):  # a rank may have seen nothing, if the metric is one of sums
                metric.update(x, y)
        found.append([loss.counted(*own).item(), metric.compute().item(), metric.compute().item()])
    return found


def scores_to_count(kind: str) -> Batch:
    scores, target = random_scores(N, CLASSES, seed=4), target_of("classes", N, CLASSES, seed=4)
    return (scores[:, 0], target % 2) if kind == "binary" else (scores, target)


def refusals(group: Any) -> list[str]:
    """What losses with a group raise under torch.func."""
    found, scores, target = [], torch.zeros(2, 3), torch.tensor([0, 1])
    for options in ({"over": "batch"}, {"over": "sample"}):
        for transform in (torch.func.vmap, torch.func.grad):
            try:
                transform(AccuracyLoss(process_group=group, **options))(scores, target)
            except NotImplementedError as error:
                found.append(str(error))
    try:
        torch.func.grad(AUCLoss(process_group=group))(scores[0], target[[0, 1, 1]])
    except NotImplementedError as error:
        found.append(str(error))
    return found


# The parent


WORLDS = [pytest.param(world, id=f"{world} ranks", marks=pytest.mark.slow if world > 2 else ()) for world in SPLITS]


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with Ranks(tmp_path_factory.mktemp("store") / "store", request.param) as made:
        yield made


def world_of(ranks: Ranks) -> tuple[int, ...]:
    return tuple(range(len(ranks.processes)))


def test_the_batch_is_that_of_all_ranks(ranks: Ranks) -> None:
    """Loss and averaged gradients, for every loss and every split, are those of one process."""
    world = world_of(ranks)
    splits = SPLITS[len(world)]
    results = ranks(world, outcomes, LOSSES, splits)
    for result in results:
        assert isinstance(result, list), result
    expected = iter(outcome(Model(case), batches(case.kind, *split)) for case in LOSSES for split in splits)
    asked = [(case, split) for case in LOSSES for split in splits]
    for what, known, *here in zip(asked, expected, *results, strict=True):
        for found in here:
            torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-12, msg=lambda text, what=what: f"{what}: {text}")


def test_the_answers_of_others(ranks: Ranks) -> None:
    """Cross-entropy of all samples together, and the AUC as a mean over all pairs."""
    world = world_of(ranks)
    split = SPLITS[len(world)][0]
    plain = Case("AccuracyLoss", {"scale": 1.0, "q": 1.0}), Case("AUCLoss", {"scale": 1.0, "q": 0.0}, "binary")
    for case, expected in zip(plain, (nn.functional.cross_entropy, one_minus_auc), strict=True):
        model, (features, target) = Model(case), batches(case.kind, *split)[1]
        value = expected(model.linear(features), target)
        slope = gradient(value, model.linear.weight)
        for result in ranks(world, outcomes, [case], [split]):
            ((loss, grads),) = result
            torch.testing.assert_close(loss, value.detach(), rtol=1e-9, atol=0)
            torch.testing.assert_close(grads[0], slope, rtol=1e-8, atol=1e-12)


def one_minus_auc(scores: Tensor, target: Tensor) -> Tensor:
    positive, negative = (scores[target == k, 0] for k in (1, 0))
    return 1 - torch.special.ndtr((positive.unsqueeze(-1) - negative) / 2**0.5).mean()


def test_without_a_group_each_rank_ranks_its_own(ranks: Ranks) -> None:
    """What the group is for: the test above would not notice if ranks' batches were all alike."""
    world = world_of(ranks)
    if len(world) == 1:
        pytest.skip("one rank has the whole batch")
    sizes = SPLITS[len(world)][0][0]
    whole = outcome(Model(Case("AUCLoss", {}, "binary")), batches("binary", sizes, ()))
    for result in ranks(world, without_a_group, sizes):
        assert (result[1][0] - whole[1][0]).norm() > 0.01 * whole[1][0].norm()


def test_every_rank_remembers_the_same_in_rank_order(ranks: Ranks) -> None:
    world = world_of(ranks)
    for sizes, _ in SPLITS[len(world)]:
        for first, second in ranks(world, memories, sizes):
            assert first.tolist() == list(range(12))
            assert second.tolist() == list(range(9, 24))


def test_what_is_counted_is_that_of_all_ranks(ranks: Ranks) -> None:
    world = world_of(ranks)
    expected = [make().counted(*scores_to_count(kind)).item() for make, kind in COUNTED]
    for sizes in {1: [[12]], 2: [[9, 3], [12, 0]], 3: [[7, 1, 4]]}[len(world)]:
        for found in ranks(world, counted, sizes):
            assert isinstance(found, list), found
            for value, each in zip(expected[: len(found)], found, strict=True):
                assert each == pytest.approx([value] * 3, rel=1e-12)


def test_torch_func_is_refused(ranks: Ranks) -> None:
    for found in ranks(world_of(ranks), refusals):
        assert len(found) == 5, found
        assert all(text.startswith("process_group: expected a plain call, got one under torch.func") for text in found)


def test_what_is_no_group_of_this_process_is_refused() -> None:
    assert not dist.is_initialized()
    with pytest.raises(TypeError, match=r"^process_group: expected a torch.distributed.ProcessGroup, got str$"):
        AUCLoss(process_group="world")
    with pytest.raises(
        ValueError, match=r"^process_group: expected a group that this process is in, got another; make the loss"
    ):
        AccuracyLoss(process_group=dist.GroupMember.NON_GROUP_MEMBER)
    with pytest.raises(ValueError, match=r"^process_group: torch.distributed is not initialised; call torch.distributed.init_"):
        lossmith.FBetaLoss(process_group=dist.ProcessGroup(dist.HashStore(), 0, 1))


def test_no_torch_distributed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^process_group: expected a PyTorch with torch.distributed, got one without; leave "):
        AccuracyLoss(process_group=object())  # type: ignore[arg-type]
