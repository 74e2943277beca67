"""DTensors as scores: what plain tensors give, with the placements of the scores. Two ranks and seven rows: uneven shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossmith
from lossmith.functional import argmax_log_prob, argmax_log_probs, topk_log_prob
from support.ranks import Ranks

pytest.importorskip("torch.distributed.tensor")
BOTH = (0, 1)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with Ranks(Path(tmp_path_factory.mktemp("group")) / "store", 2) as group:
        yield group


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 5, generator=generator), torch.tensor([0, 3, -100, 1, 4, 2, 2])


def positives(scores: Tensor, target: Tensor) -> Tensor:
    return lossmith.AUCLoss()(scores[:, 0], (target > 2).long())


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lossmith.AccuracyLoss("normal", q=1.0),
    "margin": lossmith.AccuracyLoss("normal", q=1.0, margin=1.0, reduction="sum"),
    "gumbel": lossmith.AccuracyLoss("gumbel"),
    "laplace": lossmith.AccuracyLoss("laplace", q=0.5, reduction="none"),
    "batch": lossmith.AccuracyLoss("normal", q=1.0, over="batch"),
    "log_prob": lambda z, y: argmax_log_prob(z, y, ignore_index=-100),
    "log_probs": lambda z, y: argmax_log_probs(z),
    "topk": lambda z, y: topk_log_prob(z, y.clamp_min(0), 2),
    "auc": positives,
}
KEEPS_ROWS = ("laplace", "log_prob", "log_probs", "topk")


def on_plain_tensors(name: str) -> tuple[Tensor, Tensor]:
    scores, target = batch()
    scores.requires_grad_()
    value = CALLS[name](scores, target)
    value.sum().backward()
    assert scores.grad is not None
    return value.detach(), scores.grad


def on_dtensors(group: Any, name: str, sharded: bool, to_sum: bool) -> tuple[Any, ...]:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    placements = [Shard(0) if sharded else Replicate()]
    scores, target = batch()
    if to_sum:
        given: Any = DTensor.from_local(scores / 2, mesh, [Partial()])
    else:
        given = distribute_tensor(scores, mesh, placements)
    given.requires_grad_()
    value: Any = CALLS[name](given, distribute_tensor(target, mesh, placements))
    value.sum().backward()
    kept = tuple(value.placements) == tuple(placements)
    return value.full_tensor().detach(), given.grad.full_tensor(), kept


@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "replicated"])
@pytest.mark.parametrize("name", CALLS)
def test_values_gradients_and_placements(ranks: Ranks, name: str, sharded: bool) -> None:
    expected = on_plain_tensors(name)
    for value, grad, kept in ranks(BOTH, on_dtensors, name, sharded, False):
        torch.testing.assert_close((value, grad), expected, rtol=1e-5, atol=1e-6)
        assert kept or name not in KEEPS_ROWS


def test_scores_still_to_be_summed_are_summed(ranks: Ranks) -> None:
    expected = on_plain_tensors("mean")
    for value, grad, _ in ranks(BOTH, on_dtensors, "mean", False, True):
        torch.testing.assert_close((value, grad), expected, rtol=1e-5, atol=1e-6)


def with_a_scale(group: Any) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    scale = nn.Parameter(torch.tensor([0.7]))
    scores, target = (distribute_tensor(x, mesh, [Shard(0)]) for x in batch())
    loss: Any = lossmith.AccuracyLoss("normal", q=1.0, scale=scale)(scores, target)
    loss.backward()
    assert scale.grad is not None
    return scale.grad


def test_a_plain_scale_gets_the_gradient_of_the_whole_batch(ranks: Ranks) -> None:
    scale = nn.Parameter(torch.tensor([0.7]))
    lossmith.AccuracyLoss("normal", q=1.0, scale=scale)(*batch()).backward()
    assert scale.grad is not None
    for grad in ranks(BOTH, with_a_scale):
        torch.testing.assert_close(grad, scale.grad)


def with_plain_targets(group: Any) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    scores, target = batch()
    log_p: Any = argmax_log_prob(
        distribute_tensor(scores, init_device_mesh("cpu", (2,)), [Shard(0)]), target, ignore_index=-100
    )
    return log_p.full_tensor()


def test_plain_targets_are_those_of_all_rows(ranks: Ranks) -> None:
    for log_p in ranks(BOTH, with_plain_targets):
        torch.testing.assert_close(log_p, argmax_log_prob(*batch(), ignore_index=-100))


def sharded_over_classes(group: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    scores, target = batch()
    lossmith.AccuracyLoss("normal", q=1.0)(
        distribute_tensor(scores, mesh, [Shard(1)]), distribute_tensor(target, mesh, [Replicate()])
    )


def test_classes_sharded_over_ranks_are_refused_in_one_line(ranks: Ranks) -> None:
    for error, message in ranks(BOTH, sharded_over_classes):
        assert error == "ValueError"
        assert message.startswith("scores: expected a DTensor sharded over the batch or replicated, got (Shard(dim=1),)")
        assert message.endswith("class_group")
