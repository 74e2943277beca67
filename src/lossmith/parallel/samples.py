"""The batch of all ranks: sums and samples over a process group, with gradients that are right once DDP has averaged them.

``DistributedDataParallel`` averages the ranks' gradients. A loss of the whole group's batch is the same number on every rank;
its gradient in a rank's own part, times the number of ranks, averages to the gradient that one process would have found.

That goes for "sum" as for "mean": with a group, "sum" is the sum over all ranks' samples, and the averaged gradient is that of
the sum, not of the sum divided by the number of ranks, as it is without a group. Only "none" stays with a rank's own samples: a
sum or a mean that the caller makes of it is averaged as any other.

DDP has to average over the ranks of this group. Every rank calls the loss as often as the others, be it with no sample; one
that raises leaves the others waiting, as in any step of DDP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossmith.inputs import is_wrapped

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_group(group: Any, name: str) -> None:
    """Refuse what is no process group of this process.

    Raises:
        TypeError: no process group.
        ValueError: torch.distributed is not built in or not initialised; this process is not in the group.
    """
    import torch.distributed as dist

    if not dist.is_available():
        raise ValueError(f"{name}: expected a PyTorch with torch.distributed, got one without; leave {name} out")
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{name}: expected a group that this process is in, got another; make the loss on its ranks only")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{name}: expected a torch.distributed.ProcessGroup, got {type(group).__name__}")
    if not dist.is_initialized():
        raise ValueError(f"{name}: torch.distributed is not initialised; call torch.distributed.init_process_group first")


def total(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of x over the ranks, on every rank the same; without a group x itself."""
    return x if group is None else _Total.apply(_plain(x), group)  # type: ignore[no-untyped-call]


def shared_total(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of x over the ranks, for what enters every rank's samples, such as their common mean; without a group x itself.

    Other ranks' samples depend on this rank's x, so the backward pass adds up the upstream gradients of all ranks. Every rank
    has to call backward.
    """
    return x if group is None else _SharedTotal.apply(_plain(x), group)  # type: ignore[no-untyped-call]


def highest(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The maximum of x over the ranks, without a gradient."""
    x = x.detach()
    if group is not None:
        import torch.distributed as dist

        x = _plain(x).clone()
        dist.all_reduce(x, dist.ReduceOp.MAX, group=group)
    return x


def gathered(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The samples x (n_r, …) of all ranks in rank order, (Σ n_r, …); the ranks' n_r may differ, some may be 0."""
    return x if group is None else _Gathered.apply(_plain(x), group)  # type: ignore[no-untyped-call]


def _plain(x: Tensor) -> Tensor:
    """x; refuses what torch.func transforms."""
    if is_wrapped(x):
        raise NotImplementedError(
            "process_group: expected a plain call, got one under torch.func, where no rank can wait for others; leave it out"
        )
    return x


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.ranks = group.size()
        return _sum_of_ranks(x, group)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks * upstream, None


class _SharedTotal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum_of_ranks(x, group)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return _sum_of_ranks(upstream, ctx.group), None


def _sum_of_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    import torch.distributed as dist

    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        import torch.distributed as dist

        ranks, rank = group.size(), group.rank()
        sizes = x.new_zeros(ranks, dtype=torch.int64)
        sizes[rank] = len(x)
        dist.all_reduce(sizes, group=group)
        each = [int(n) for n in sizes.tolist()]
        padded = x.new_zeros((max(each), *x.shape[1:]))
        padded[: len(x)] = x.detach()
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(parts, padded, group=group)
        ctx.ranks, ctx.first, ctx.own = ranks, sum(each[:rank]), len(x)
        return torch.cat([part[:n] for part, n in zip(parts, each, strict=True)])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks * upstream[ctx.first : ctx.first + ctx.own], None
