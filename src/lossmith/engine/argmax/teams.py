"""Calls of the kernels for rows on the CPU: jobs, the threads that do them, and what the functions of autograd here share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith.engine.argmax.autograd import TURNS
from lossmith.engine.argmax.kernels.record import CLASSES_PER_THREAD
from lossmith.engine.argmax.kernels.tables import DOUBLE, SINGLE, Precision
from lossmith.engine.runtime.compiling import announced
from lossmith.engine.runtime.threads import run_team

GUMBEL, SOFTMAX = "gumbel", "softmax"  # the noise, and what its kernels compute


def flat_scale(scale: float | Tensor, scores: Tensor) -> Tensor:
    """The scale as ``log_probs`` and ``target_log_prob`` take it, (1,) or (rows,), from a number or a tensor (…, 1)."""
    return scale.reshape(-1) if isinstance(scale, Tensor) else scores.new_full((1,), scale)


@lru_cache(maxsize=3)
def kernels_of(precision: Precision | None) -> Any:
    """The module with its team functions, None: those by panels. Each is compiled at its first use, and kept on disk."""
    with announced():
        if precision is None:
            from lossmith.engine.argmax.kernels import panels_entry

            return panels_entry
        if precision is DOUBLE:
            from lossmith.engine.argmax.kernels import double_entry

            return double_entry
        from lossmith.engine.argmax.kernels import every_entry
    return every_entry


def precision_of(scores: Tensor) -> Precision:
    """The one whose kernels take these scores."""
    return DOUBLE if scores.dtype == torch.float64 else SINGLE


@lru_cache(maxsize=256)
def tail_of(
    precision: Precision | None, layout: str, make: Callable[..., dict[str, NDArray[Any]]], *call: Any
) -> tuple[NDArray[np.int64], Any]:
    """The last part of a job of that layout, and the arrays to keep alive for it, which ``make`` gives for the call."""
    arrays = make(*call, precision) if precision is DOUBLE else make(*call)
    return getattr(kernels_of(precision), layout).tail(arrays), arrays


def run(
    function: Any, layout: Any, rows: int, classes: int, ignored: int, arrays: dict[str, Tensor], tail: Any = None
) -> tuple[bool, bool]:
    """Run a team function on all rows: whether a row was bad, and whether one is left to the reference."""
    size = max(1, min(torch.get_num_threads(), rows, rows * (classes + 64) // CLASSES_PER_THREAD))
    numbers = {"turn": -(-rows // (TURNS * size)), "rows": rows, "classes": classes, "ignored": ignored}
    job = layout.job(numbers, arrays, tail)
    run_team(function.ctypes, function.address, job.ctypes.data, size)
    return bool(job[layout.numbers.bad]), bool(job[layout.numbers.unserved])


def rows_of(mask: Tensor, scores: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The rows under ``mask`` of scores, and of a scale that has a number for each row."""
    return scores[mask], scale[mask] if len(scale) > 1 else scale


def differentiated(value: Tensor, leaves: tuple[Tensor, ...], upstream: Tensor, needed: tuple[bool, ...]) -> tuple[Any, ...]:
    """upstream · value differentiated in the leaves that need it, with a graph."""
    asked = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
    parts = iter(torch.autograd.grad(value, asked, upstream, create_graph=True))
    return tuple(next(parts) if need else None for need in needed)
