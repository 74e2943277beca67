r"""log P(the target wins) and its gradient for float32 rows on a GPU: one Triton kernel each way, one program a row.

The integral and the choice between p and 1 − p are those of ``cpu``; what differs is the sum over classes,

    G(u_q) = Σ_{j≠y} log F(u_q − x_j),        g_j = −(upstream / σ) Σ_q w_q r(u_q − x_j),

evaluated for each threshold and class from the pieces of ``tables``, a tile of both at a time. A GPU has arithmetic to spare,
but no cheap way for many threads to add to the moments of a cell. Neighbouring thresholds are neighbours in a table, so that
the threads of a warp read neighbouring words; all tables of a noise take under a megabyte each, what a row reads of them a few
kilobytes. A tile is summed in float32, and tiles in float64 (N20): the digits of a sum do not depend on the number of classes.
Nothing is added atomically, so that equal calls give equal bits.

**Reads.** Forward reads a row's scores twice: for its strongest rival, and for G. The step starts at 1/8, or more
where the range is wide or the classes few; rows whose even and odd thresholds disagree (RESOLVED) read once more for each finer
step. Backward reads once and writes once. Classes so far below that F is 1 at all thresholds are passed over, and so are blocks
of nothing else. Rows of ignored targets are not read.

**Waits.** Rows that the tables cannot serve (UNSERVED) go to the reference: leads below ``least_lead`` (A22), for normal noise
−100.78 scales; leads from ``most_lead`` (A23) on that are not sure; rows of too many thresholds. The host has to know whether
there are such rows: forward waits for the device once. Under torch.compile backward waits once more. A CUDA graph cannot be
captured: the graph would leave such rows wrong.

**Bad values.** A row that holds NaN, +inf or nothing but −inf, or whose target is no class, gives NaN and a gradient of NaN.

**Measured.** Under Triton's interpreter, on the CPU, against the reference in float64 (``test_cuda.py``). Compiled for compute
capability 9.0 they spill no registers; they have not run on a GPU yet, and nothing is known of their speed. So the first call
on a device compares a few rows with the reference (``check``).

The equations (N…) are in ``docs/how/numbers.md``.
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
from lossmith.engine.argmax import reference
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
    NEGLIGIBLE,
    START,
    STATUS,
    SURE,
    TOP,
    UNSERVED,
)
from lossmith.engine.argmax.kernels.tables import ABOVE, CELL, FARTHEST, LEVELS, MOMENTS, PACE, Table, tables_of

WIDE = 512  # classes that are passed over, or not, together
TILE = 16  # classes of a tile; at 16 elements of one a thread, registers do not spill
RESOLVED = 5e-4  # difference of even and odd thresholds, whose square is below float32's rounding

# What stands in kernels has to be known when they are compiled. Triton 3.7's interpreter wants constants right of tensors.
_CELL, _FARTHEST, _PACE, _FINEST = (tl.constexpr(x) for x in (CELL, FARTHEST, PACE, LEVELS - 1))
_WIDTH = tl.constexpr(round((FARTHEST + ABOVE) / CELL))  # entries of a table whose step is a cell
_ORIGIN, _MAX_CELLS = tl.constexpr(int(FARTHEST)), tl.constexpr(MAX_CELLS)
_SIZE = tl.constexpr(MOMENTS * round((FARTHEST + ABOVE) / CELL))
_RESOLVED, _NEGLIGIBLE = tl.constexpr(RESOLVED), tl.constexpr(NEGLIGIBLE)
_DONE, _SURE, _LOST, _UNSERVED, _BAD = (tl.constexpr(x) for x in (DONE, SURE, LOST, UNSERVED, BAD))
_LEVEL, _START, _COUNT, _CELLS, _TOP, _STATUS, _COLUMNS = (
    tl.constexpr(x) for x in (LEVEL, START, COUNT, CELLS, TOP, STATUS, COLUMNS)
)


class _OnDevice(NamedTuple):
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


def forward(
    scores: Tensor, target: Tensor, scale: Tensor, noise: str, ignored: int, log_p: Tensor, weights: Tensor, records: Tensor
) -> tuple[bool, bool]:
    """log p of each row, the thresholds' weights for ``backward``, and what became of it.

    Args:
        scores: (rows, C) float32, any strides.
        target: (rows,) int64.
        scale: (1,) or (rows,) float32.
        noise: a ``Noise.key`` that has tables.
        ignored: the target that nothing is asked of.
        log_p: (rows,) float32, written to, as are the next two; all three contiguous.
        weights: (rows, capacity) float32.
        records: (rows, COLUMNS) int32.

    Returns:
        Whether a row is BAD, and whether one is UNSERVED. Waits for the device.

    Cost: some 100 evaluations of a quintic a class that counts.
    """
    rows, classes = scores.shape
    if rows == 0:
        return False, False
    made, scores = _on_device(noise, scores.device), _rows_contiguous(scores)
    with _on(scores):
        _forward[(rows,)](
            scores,
            scores.stride(0),
            target.contiguous(),
            scale.contiguous(),
            int(len(scale) > 1),
            made.log_cdf,
            made.log_prob,
            made.lowest,
            made.depth,
            made.high,
            _highest_of_equals(noise, classes),
            made.least_lead,
            made.most_lead,
            made.sure_lead,
            ignored,
            log_p,
            weights,
            records,
            records.view(torch.float32),
            weights.shape[1],
            classes,
            **_options(classes, weights.shape[1]),
        )
    status = records[:, STATUS]
    bad, unserved = torch.stack([(status == BAD).any(), (status == UNSERVED).any()]).tolist()
    return bad, unserved


def backward(
    scores: Tensor, target: Tensor, scale: Tensor, noise: str, upstream: Tensor, weights: Tensor, records: Tensor, grad: Tensor
) -> None:
    """Σ upstream · log p differentiated in the scores, into ``grad``, (rows, C) and contiguous; zeros where nothing is DONE.

    The other arguments are those of ``forward``, or what it wrote; ``upstream`` is (rows,).
    """
    rows, classes = scores.shape
    if rows == 0:
        return
    scores = _rows_contiguous(scores)
    with _on(scores):
        _backward[(rows,)](
            scores,
            scores.stride(0),
            target.contiguous(),
            scale.contiguous(),
            int(len(scale) > 1),
            _on_device(noise, scores.device).slope,
            upstream.contiguous(),
            weights.contiguous(),
            records.contiguous(),
            records.contiguous().view(torch.float32),
            grad,
            weights.shape[1],
            classes,
            **_options(classes, weights.shape[1]),
        )


@lru_cache(maxsize=64)
def check(device: torch.device) -> None:
    """Compare a few rows with the reference, once for each device.

    Raises:
        RuntimeError: they differ.
    """
    scores, target = torch.linspace(-3, 3, 24).cos().mul(4).view(4, 6), torch.tensor([0, 2, 5, 3])
    log_p, weights, records = torch.empty(4), torch.zeros(4, KEPT_NORMAL), torch.zeros(4, COLUMNS, dtype=torch.int32)
    outputs = [x.to(device) for x in (log_p, weights, records)]
    forward(scores.to(device), target.to(device), torch.ones(1, device=device), "normal", -1, *outputs)
    exact = reference.log_prob(scores.double(), target, noises.by_key("normal"))
    error = float((outputs[0].cpu().double() - exact).abs().max())
    if not error < 1e-4:
        raise RuntimeError(f"expected log p within 1e-4 of the reference on {device}, got {error:.1g} from it")


def _rows_contiguous(scores: Tensor) -> Tensor:
    return scores if scores.stride(1) == 1 else scores.contiguous()


def _on(tensor: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _options(classes: int, capacity: int) -> dict[str, int | bool]:
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
def _highest_of_equals(noise: str, classes: int) -> float:
    return float(noises.by_key(noise).icdf(torch.tensor(1 - 1 / classes, dtype=torch.float64, device="cpu")))


@lru_cache(maxsize=64)
def _on_device(noise: str, device: torch.device) -> _OnDevice:
    made = tables_of(noise)
    assert made is not None

    def joined(levels: tuple[Table, ...]) -> Tensor:
        return torch.cat([torch.from_numpy(pieces).flatten() for pieces in levels]).to(device)

    return _OnDevice(
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
def _width(level):
    """Entries of a table's row at a level."""
    return ((1 << level) * _WIDTH) >> 2


@triton.jit
def _entry(c, level):
    """Where in the joined tables the threshold 0 stands, seen from cell c: its level, its phase, its place."""
    coarse, fine = tl.maximum(2 - level, 0), tl.maximum(level - 2, 0)
    before = (tl.minimum(level, 2) + (1 << fine) - 1) * _SIZE
    phase = c & ((1 << coarse) - 1)
    return before + ((phase * _SIZE) >> coarse) + ((c >> coarse) << fine) + (2 << level) * _ORIGIN


@triton.jit
def _quintic(table, at, width, s, needed):
    """The piece at an entry, at s; 0 where it is not needed."""
    value = tl.load(table + at + 5 * width, mask=needed, other=0.0)
    value = value * s + tl.load(table + at + 4 * width, mask=needed, other=0.0)
    value = value * s + tl.load(table + at + 3 * width, mask=needed, other=0.0)
    value = value * s + tl.load(table + at + 2 * width, mask=needed, other=0.0)
    value = value * s + tl.load(table + at + width, mask=needed, other=0.0)
    return value * s + tl.load(table + at, mask=needed, other=0.0)


@triton.jit
def _rivals(x, y, j, C):
    """Scores of classes j; −inf for the target and beyond the last."""
    return tl.load(x + j, mask=(j < C) & (j != y), other=float("-inf"))


@triton.jit
def _locate(z, top, per_cell, cells):
    """c and s; c = cells for classes that far down and farther."""
    below = tl.minimum((top - z) * per_cell, cells.to(tl.float32))
    c = below.to(tl.int32)
    return c, 2.0 * (c.to(tl.float32) - below) + 1.0


@triton.jit
def _sum_log_cdf(x, y, C, top, per_cell, cells, table, level, start, count, Q: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip  # noqa: E501
    """G at thresholds start … start + count − 1, (Q,) float64."""
    q = tl.arange(0, Q)
    total = tl.zeros([Q], tl.float64)
    for first in range(0, C, WIDE):
        highest = tl.max(_rivals(x, y, first + tl.arange(0, WIDE), C), 0)
        if (top - highest) * per_cell < cells:
            for begin in range(first, tl.minimum(first + WIDE, C), TILE):
                c, s = _locate(_rivals(x, y, begin + tl.arange(0, TILE), C), top, per_cell, cells)
                if tl.min(c, 0) < cells:
                    needed = (c < cells)[:, None] & (q < count)[None, :]
                    at = _entry(c, level)[:, None] + (start + q)[None, :]
                    total += tl.sum(_quintic(table, at, _width(level), s[:, None], needed), 0).to(tl.float64)
    return total


@triton.jit
def _one_minus_exp(x, exp_x):
    """1 − e^x for x ≤ 0 in float64, with its digits near 0: what rounding does to e^x, the logarithm undoes."""
    near = x > -0.3
    exp_x = tl.where(near, exp_x, 0.5)
    by_ratio = (1.0 - exp_x) * (x / tl.log(tl.where(exp_x == 1.0, 0.5, exp_x)))
    return tl.where(near, tl.where(exp_x == 1.0, -x, by_ratio), 1.0 - tl.exp(x))


@triton.jit
def _log_one_minus(x):
    """log(1 − x) for 0 ≤ x < 1 in float64, with its digits near 0."""
    rest = 1.0 - x
    return tl.where(rest == 1.0, -x, tl.log(rest) * (x / tl.where(rest == 1.0, 1.0, 1.0 - rest)))


@triton.jit
def _forward(
    scores, stride, target, scale, scale_stride, log_cdf, log_prob, lowest, depth, high, guess, least_lead, most_lead,
    sure_lead, ignored, out, weights, records, tops, capacity, C, Q: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x, y = scores + row * stride, tl.load(target + row)
    inverse = 1.0 / tl.load(scale + row * scale_stride).to(tl.float64)
    own = tl.load(x + y, mask=(y >= 0) & (y < C), other=float("nan"))

    # The strongest rival
    highest, bad_value = tl.full([WIDE], float("-inf"), tl.float32), tl.zeros([WIDE], tl.int32)
    for first in range(0, tl.where(y == ignored, 0, C), WIDE):
        z = _rivals(x, y, first + tl.arange(0, WIDE), C)
        odd = (z != z) | (z == float("inf"))
        bad_value |= odd.to(tl.int32)
        highest = tl.maximum(highest, tl.where(odd, float("-inf"), z))
    top = tl.max(highest, 0)
    lost = own == float("-inf")
    bad = (tl.max(bad_value, 0) > 0) | (own != own) | (own == float("inf")) | (lost & (top == float("-inf")))

    t = (tl.where(lost | bad, 0.0, own).to(tl.float64) - top.to(tl.float64)) * inverse
    status = tl.where((t < least_lead) | (t >= most_lead) | (inverse >= 1e30), _UNSERVED, _DONE)
    status = tl.where(t >= sure_lead, _SURE, status)
    status = tl.where(lost, _LOST, status)
    status = tl.where(bad, _BAD, status)
    status = tl.where(y == ignored, _SURE, status)
    easy = tl.where(status == _LOST, float("-inf"), tl.where(status == _BAD, float("nan"), 0.0))
    tl.store(out + row, easy)

    # Thresholds
    going = status == _DONE
    t = tl.where(going, t, 0.0)
    pace = ((t + _FARTHEST) / _PACE).to(tl.int32)
    bottom = tl.load(lowest + pace).to(tl.float64)
    cells = tl.maximum(tl.load(depth + pace), tl.load(depth + pace + 1))
    cells = tl.minimum(cells, _MAX_CELLS)
    per_cell = (inverse / _CELL).to(tl.float32)
    reach = tl.maximum(tl.maximum(t, guess), 0.0) + high - bottom
    few = (reach > 14) | (C <= 16)
    level = tl.where(few, tl.where((reach > 14) & (4 * reach + 2 > capacity), 0, 1), 2)
    start = tl.floor(bottom * (2 << level)).to(tl.int32)
    count = tl.ceil(reach * (2 << level)).to(tl.int32) + 2
    own_cell = tl.floor(-t / _CELL).to(tl.int32)
    own_s = (2 * (own_cell + t / _CELL) + 1).to(tl.float32)
    q = tl.arange(0, Q)
    complement = going & (t > 0)
    undecided = complement
    if going & (count > Q):
        status, going = tl.full([], _UNSERVED, tl.int32), going & False
    while going:
        h = 0.5 / (1 << level).to(tl.float64)
        used = q < count
        sums = _sum_log_cdf(x, y, C, top, per_cell, cells, log_cdf, level, start, count, Q, WIDE, TILE)
        logs = _quintic(log_prob, _entry(own_cell, level) + start + q, _width(level), own_s, used).to(tl.float64)
        exponent = tl.where(used, logs + sums, float("-inf"))
        peak = tl.max(exponent, 0)
        product = tl.exp(exponent - peak)  # f e^G, in units of its peak
        if undecided:
            complement = tl.log(h * tl.sum(product, 0)) + peak > -0.6931
            undecided = undecided & False
        terms = product
        if complement:
            terms = tl.where(used, tl.exp(logs) * _one_minus_exp(sums, tl.exp(sums)), 0.0)
        even = tl.sum(tl.where(q % 2 == 0, terms, 0.0), 0)
        odd = tl.sum(tl.where(q % 2 == 1, terms, 0.0), 0)
        whole = even + odd
        counts = terms >= tl.max(terms, 0) * _NEGLIGIBLE
        begin, end = tl.min(tl.where(counts, q, Q), 0), tl.max(tl.where(counts, q, 0), 0)
        difference = tl.abs(even - odd)
        going = difference > whole * _RESOLVED
        if going:
            finer = tl.minimum(tl.where(difference < 0.02 * whole, 1, 2), -level + _FINEST)
            begin, end = tl.maximum(begin - 1, 0), tl.minimum(end + 1, count - 1)
            start = (start + begin) << finer
            count = ((end - begin) << finer) + 1
            level += finer
            if (finer == 0) | (count > Q):
                status, going = tl.full([], _UNSERVED, tl.int32), going & False
        elif end - begin >= capacity:
            status = tl.full([], _UNSERVED, tl.int32)
        else:
            whole = h * whole
            if complement:
                log_p, share = _log_one_minus(whole), h * tl.exp(peak) / (1.0 - whole)
            else:
                log_p, share = tl.log(whole) + peak, h / whole
            tl.store(out + row, log_p.to(tl.float32))
            tl.store(weights + row * capacity + q - begin, (product * share).to(tl.float32), mask=(q >= begin) & (q <= end))
            tl.store(records + row * _COLUMNS + _LEVEL, level)
            tl.store(records + row * _COLUMNS + _START, start + begin)
            tl.store(records + row * _COLUMNS + _COUNT, end - begin + 1)
            tl.store(records + row * _COLUMNS + _CELLS, cells)
            tl.store(tops + row * _COLUMNS + _TOP, top)
    tl.store(records + row * _COLUMNS + _STATUS, status)


@triton.jit
def _backward(
    scores, stride, target, scale, scale_stride, slope, upstream, weights, records, tops, grad, capacity, C,
    Q: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x, y, out = scores + row * stride, tl.load(target + row), grad + row * C
    inverse = 1.0 / tl.load(scale + row * scale_stride).to(tl.float64)
    above = tl.load(upstream + row)
    status = tl.load(records + row * _COLUMNS + _STATUS)
    done = (status == _DONE) & (above != 0)
    easy = tl.where((status == _BAD) & (above != 0), float("nan"), 0.0)
    level, start = tl.load(records + row * _COLUMNS + _LEVEL), tl.load(records + row * _COLUMNS + _START)
    count, cells = tl.where(done, tl.load(records + row * _COLUMNS + _COUNT), 0), tl.load(records + row * _COLUMNS + _CELLS)
    top = tl.load(tops + row * _COLUMNS + _TOP)
    per_cell = (inverse / _CELL).to(tl.float32)
    factor = (-above.to(tl.float64) * inverse).to(tl.float32)
    q = tl.arange(0, Q)
    w = factor * tl.load(weights + row * capacity + q, mask=q < count, other=0.0)
    total = tl.zeros([], tl.float64)
    for first in range(0, C, WIDE):
        block = first + tl.arange(0, WIDE)
        highest = tl.max(_rivals(x, y, block, tl.where(done, C, 0)), 0)  # nothing is read where nothing is asked
        if done & ((top - highest) * per_cell < cells):
            for begin in range(first, tl.minimum(first + WIDE, C), TILE):
                j = begin + tl.arange(0, TILE)
                c, s = _locate(_rivals(x, y, j, C), top, per_cell, cells)
                needed = (c < cells)[:, None] & (q < count)[None, :]
                at = _entry(c, level)[:, None] + (start + q)[None, :]
                g = tl.sum(w[None, :] * _quintic(slope, at, _width(level), s[:, None], needed), 1)
                total += tl.sum(g, 0).to(tl.float64)
                tl.store(out + j, g, mask=(j < C) & (j != y))
        else:
            tl.store(out + block, tl.zeros([WIDE], tl.float32) + easy, mask=(block < C) & (block != y))
    if (y >= 0) & (y < C):
        tl.store(out + y, tl.where(done, -total, easy).to(tl.float32))
