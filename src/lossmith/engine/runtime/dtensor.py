"""DTensors (``torch.distributed.tensor``): what runs on plain tensors runs on each rank's shard of the rows.

A function of rows needs no exchange where the rows are sharded or replicated; one of all samples together gets all of them on
every rank. Scores that are still to be summed (Partial) are summed first. Classes sharded over ranks are for ``class_group``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors is a DTensor; there is none before the module of DTensors has been imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(x, module.DTensor) for x in tensors)


def on_each_rank(function: Callable[..., Tensor], tensors: Sequence[Tensor], by_rows: bool = True) -> Tensor:
    """``function(*tensors)`` of plain tensors on each rank, as a DTensor; the gradients are DTensors likewise.

    Args:
        function: of plain tensors; its result has the rows of the first, unless it is one of all rows together.
        tensors: the first a DTensor, whose first dimension are the rows, the last the classes. Others may be plain: the whole
            of them, the same on every rank.
        by_rows: whether the function takes each row by itself. Otherwise every rank computes all of it.

    Raises:
        TypeError: the first is no DTensor.
        ValueError: classes sharded over ranks, or other tensors on another mesh.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    first = tensors[0]
    if not isinstance(first, DTensor):
        raise TypeError("scores: expected a DTensor as the other arguments are, got a torch.Tensor; use distribute_tensor")
    mesh = first.device_mesh
    if by_rows and first.dim() > 1 and any(p.is_shard(first.dim() - 1) for p in first.placements):
        raise ValueError(
            f"scores: expected a DTensor sharded over the batch or replicated, got {first.placements} for shape "
            f"{tuple(first.shape)}, sharded over the classes; redistribute it, or pass to_local() of it and class_group"
        )
    rows = [p if by_rows and type(p) is Shard and p.dim == 0 else Replicate() for p in first.placements]
    whole = [Replicate() for _ in rows]
    to_sum = [Partial() if isinstance(p, Shard) else Replicate() for p in rows]  # gradients in what all rows share

    def local(x: Any) -> Tensor:
        has_rows = x.dim() > 0 and x.shape[0] == first.shape[0] and (x is first or x.shape[0] > 1)
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, whole, run_check=False)
        if x.device_mesh != mesh:
            raise ValueError(f"target, scale, weight: expected on the scores' {mesh}, got {x.device_mesh}; redistribute them")
        return x.redistribute(mesh, rows if has_rows else whole).to_local(grad_placements=rows if has_rows else to_sum)

    result = function(*(local(x) for x in tensors))
    if not by_rows:
        return DTensor.from_local(result, mesh, whole, run_check=False)
    shape = torch.Size((first.shape[0], *result.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(result.contiguous(), mesh, rows, run_check=False, shape=shape, stride=stride)
