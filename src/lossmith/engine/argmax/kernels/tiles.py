"""What the Triton kernels share: a noise's tables on the device, how rows are launched, and sums over tiles of classes.

A GPU has arithmetic to spare, but no cheap way for many threads to add to the moments of a cell. So each threshold and class
evaluates a piece of ``tables``, a tile of both at a time. Neighbouring thresholds are neighbours in a table: the threads of a
warp read neighbouring words. All tables of a noise take under a megabyte each, what a row reads of them a few kilobytes. A tile
is summed in float32, and tiles in float64 (N20): the digits of a sum do not depend on the number of classes. Nothing is added
atomically, so that equal calls give equal bits.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.argmax.kernels.record import (
    BAD,
    CELLS,
    COLUMNS,
    COUNT,
    DONE,
    KEPT_NORMAL,
    LEVEL,
    LOST,
    MAX_CELLS,
    START,
    STATUS,
    SURE,
    TOP,
    UNSERVED,
)
from lossmith.engine.argmax.kernels.tables import ABOVE, CELL, FARTHEST, LEVELS, MOMENTS, PACE, Table, tables_of

WIDE = 512  # classes that are passed over, or not, together
TILE = 16  # classes of a tile; at 16 elements of one a thread, registers do not spill

# What stands in kernels has to be known when they are compiled. Triton 3.7's interpreter wants constants right of tensors.
T_CELL, T_FARTHEST, T_PACE, T_FINEST = (tl.constexpr(x) for x in (CELL, FARTHEST, PACE, LEVELS - 1))
_WIDTH = tl.constexpr(round((FARTHEST + ABOVE) / CELL))  # entries of a table whose step is a cell
_ORIGIN, T_MAX_CELLS = tl.constexpr(int(FARTHEST)), tl.constexpr(MAX_CELLS)
_SIZE = tl.constexpr(MOMENTS * round((FARTHEST + ABOVE) / CELL))
T_DONE, T_SURE, T_LOST, T_UNSERVED, T_BAD = (tl.constexpr(x) for x in (DONE, SURE, LOST, UNSERVED, BAD))
T_LEVEL, T_START, T_COUNT, T_CELLS, T_TOP, T_STATUS, T_COLUMNS = (
    tl.constexpr(x) for x in (LEVEL, START, COUNT, CELLS, TOP, STATUS, COLUMNS)
)


class OnDevice(NamedTuple):
    """``Tables`` as tensors: the pieces of all levels one after the other."""

    log_cdf: Tensor
    slope: Tensor
    log_prob: Tensor
    lowest: Tensor
    depth: Tensor
    high: float
    least_lead: float
    most_lead: float
    sure_lead: float


def rows_contiguous(scores: Tensor) -> Tensor:
    """The scores, (rows, C), with neighbouring classes side by side."""
    return scores if scores.stride(1) == 1 else scores.contiguous()


def current(tensor: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch_options(classes: int, capacity: int) -> dict[str, int | bool]:
    """What a kernel is compiled for."""
    size, thresholds = max(2, triton.next_power_of_2(classes)), 128 if capacity <= KEPT_NORMAL else 256
    return {
        "Q": thresholds,
        "WIDE": min(WIDE, size),
        "TILE": min(TILE, size),
        "num_warps": thresholds // 32,
        "enable_fp_fusion": True,
    }


@lru_cache(maxsize=256)
def highest_of_equals(noise: str, classes: int) -> float:
    """The quantile 1 − 1/C, in scales: about the highest of as many equal scores."""
    return float(noises.by_key(noise).icdf(torch.tensor(1 - 1 / classes, dtype=torch.float64, device="cpu")))


@lru_cache(maxsize=64)
def tables_on(noise: str, device: torch.device) -> OnDevice:
    """The tables of the noise with that ``Noise.key``, on the device."""
    made = tables_of(noise)
    assert made is not None

    def joined(levels: tuple[Table, ...]) -> Tensor:
        return torch.cat([torch.from_numpy(pieces).flatten() for pieces in levels]).to(device)

    return OnDevice(
        joined(made.log_cdf),
        joined(made.slope_by_cell),
        joined(made.log_prob),
        torch.from_numpy(made.lowest).float().to(device),  # multiples of PACE
        torch.from_numpy(made.depth).to(device),
        made.high,
        made.least_lead,
        made.most_lead,
        made.sure_lead,
    )


# In kernels. ``x`` points to a row's scores, y is its target; a class lies c cells, and s within its own, below ``top``.


@triton.jit
def row_width(level):
    """Entries of a table's row at a level."""
    return ((1 << level) * _WIDTH) >> 2


@triton.jit
def entry(c, level):
    """Where in the joined tables the threshold 0 stands, seen from cell c: its level, its phase, its place."""
    coarse, fine = tl.maximum(2 - level, 0), tl.maximum(level - 2, 0)
    before = (tl.minimum(level, 2) + (1 << fine) - 1) * _SIZE
    phase = c & ((1 << coarse) - 1)
    return before + ((phase * _SIZE) >> coarse) + ((c >> coarse) << fine) + (2 << level) * _ORIGIN


@triton.jit
def quintic(table, at, width, s, needed):
    """The piece at an entry, at s; 0 where it is not needed."""
    value = tl.load(table + at + 5 * width, mask=needed, other=0.0)
    value = value * s + tl.load(table + at + 4 * width, mask=needed, other=0.0)
    value = value * s + tl.load(table + at + 3 * width, mask=needed, other=0.0)
    value = value * s + tl.load(table + at + 2 * width, mask=needed, other=0.0)
    value = value * s + tl.load(table + at + width, mask=needed, other=0.0)
    return value * s + tl.load(table + at, mask=needed, other=0.0)


@triton.jit
def rivals(x, y, j, C):
    """Scores of classes j; −inf for the target and beyond the last."""
    return tl.load(x + j, mask=(j < C) & (j != y), other=float("-inf"))


@triton.jit
def locate(z, top, per_cell, cells):
    """c and s; c = cells for classes that far down and farther."""
    below = tl.minimum((top - z) * per_cell, cells.to(tl.float32))
    c = below.to(tl.int32)
    return c, 2.0 * (c.to(tl.float32) - below) + 1.0


@triton.jit
def sum_log_cdf(x, y, C, top, per_cell, cells, table, level, start, count, Q: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip  # noqa: E501
    """G at thresholds start … start + count − 1, (Q,) float64."""
    q = tl.arange(0, Q)
    total = tl.zeros([Q], tl.float64)
    for first in range(0, C, WIDE):
        highest = tl.max(rivals(x, y, first + tl.arange(0, WIDE), C), 0)
        if (top - highest) * per_cell < cells:
            for begin in range(first, tl.minimum(first + WIDE, C), TILE):
                c, s = locate(rivals(x, y, begin + tl.arange(0, TILE), C), top, per_cell, cells)
                if tl.min(c, 0) < cells:
                    needed = (c < cells)[:, None] & (q < count)[None, :]
                    at = entry(c, level)[:, None] + (start + q)[None, :]
                    total += tl.sum(quintic(table, at, row_width(level), s[:, None], needed), 0).to(tl.float64)
    return total


@triton.jit
def log_one_minus(x):
    """log(1 − x) for 0 ≤ x < 1 in float64, with its digits near 0."""
    rest = 1.0 - x
    return tl.where(rest == 1.0, -x, tl.log(rest) * (x / tl.where(rest == 1.0, 1.0, 1.0 - rest)))
