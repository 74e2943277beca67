r"""log P of every class and its gradient for float32 rows on a GPU: one Triton kernel each way, one program a row.

The sums are those of ``every``: with A_q = h e^{S(u_q)} and r_jq = r(u_q − x_j), p_j = Σ_q A_q r_jq (A24). A class of more than
one half gets log p from the sum of the others (N5). Backward makes R_q = Σ_k r_kq and T_q = Σ_k g_k r_kq, g = upstream / p, in
one pass over the classes, and in the next dz_j = (g_j Σ_q A_q R_q r_jq − Σ_q A_q T_q r_jq) / σ (A26).

**The step.** The trapezoidal rule errs by the Fourier component of the integrand at the frequency of the thresholds. The
component at 0.4 of that frequency is watched, for the integrands of the highest and of the hindmost class. Where the component
is WATCHED of the integral, the error is its sixth power if the component falls as a Gaussian does, and about 1e-7 if it falls
as an exponential.

**Far behind.** Below the floor, where p is LEAST, log p follows the line through the floor and half a cell above, as in
``every``.

**Reads.** Forward reads a row three times: for its extremes, for S (once more for a finer step), for p. Backward reads twice.
A row of too many thresholds is UNSERVED; forward waits for the device once, to know of such rows, and of BAD ones.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lossmith.engine.argmax.kernels.record import BAD, STATUS, UNSERVED
from lossmith.engine.argmax.kernels.tables import every_arrays
from lossmith.engine.argmax.kernels.tiles import (
    T_BAD,
    T_CELL,
    T_CELLS,
    T_COLUMNS,
    T_COUNT,
    T_DONE,
    T_FARTHEST,
    T_FINEST,
    T_LEVEL,
    T_MAX_CELLS,
    T_PACE,
    T_START,
    T_STATUS,
    T_TOP,
    T_UNSERVED,
    current,
    entry,
    highest_of_equals,
    launch_options,
    locate,
    log_one_minus,
    quintic,
    rivals,
    row_width,
    rows_contiguous,
    sum_log_cdf,
    tables_on,
)

CAPACITY = 256  # the most thresholds of a row
LEAST = 1e-33  # p of the lowest class that is followed, as in ``every``
RAISE = 0.5  # scales by which the floor rises at a time, as in ``every``
DROP = math.exp(-17.0)  # beside the highest integrand, what a threshold has that is left out
WATCHED = 2e-3

_LEAST, _RAISE, _DROP, _WATCHED = (tl.constexpr(x) for x in (LEAST, RAISE, DROP, WATCHED))
_FREQUENCY = tl.constexpr(0.8 * math.pi)  # of the component, a threshold
_SMALL = tl.constexpr(1e-37)  # least argument of a logarithm
_FARTHEST = tl.constexpr(-1e30)  # scales: a place for removed classes, and a floor that none is below
_NOBODY = tl.constexpr(-1)  # the target of a row that has none


def forward(
    scores: Tensor, scale: Tensor, noise: str, log_p: Tensor, weights: Tensor, records: Tensor, lines: Tensor
) -> tuple[bool, bool]:
    """log p of every class, and what ``backward`` needs.

    Args:
        scores: (rows, C) float32, any strides.
        scale: (1,) or (rows,) float32.
        noise: a ``Noise.key`` that has tables.
        log_p: (rows, C) float32, written to, as are the next three; all contiguous.
        weights: (rows, CAPACITY) float32. records: (rows, COLUMNS) int32.
        lines: (rows, 2) float32: the floor in scales, −1e30 if no class is below it, and the tilt of the line.

    Returns:
        Whether a row is BAD, and whether one is UNSERVED. Waits for the device.
    """
    rows, classes = scores.shape
    if rows == 0:
        return False, False
    made, scores = tables_on(noise, scores.device), rows_contiguous(scores)
    with current(scores):
        _forward[(rows,)](
            scores,
            scores.stride(0),
            scale.contiguous(),
            int(len(scale) > 1),
            made.log_cdf,
            made.slope,
            made.lowest,
            made.depth,
            made.high,
            highest_of_equals(noise, classes),
            float(every_arrays(noise, classes)["numbers"][1]),
            log_p,
            weights,
            records,
            records.view(torch.float32),
            lines,
            classes,
            **launch_options(classes, CAPACITY),
        )
    status = records[:, STATUS]
    bad, unserved = torch.stack([(status == BAD).any(), (status == UNSERVED).any()]).tolist()
    return bad, unserved


def backward(
    scores: Tensor,
    scale: Tensor,
    noise: str,
    upstream: Tensor,
    log_p: Tensor,
    weights: Tensor,
    records: Tensor,
    lines: Tensor,
    grad: Tensor,
) -> None:
    """Σ upstream · log p differentiated in the scores, into ``grad``, (rows, C) and contiguous; zeros where nothing is DONE.

    The other arguments are those of ``forward``, or what it wrote; ``upstream`` is (rows, C).
    """
    rows, classes = scores.shape
    if rows == 0:
        return
    scores = rows_contiguous(scores)
    with current(scores):
        _backward[(rows,)](
            scores,
            scores.stride(0),
            scale.contiguous(),
            int(len(scale) > 1),
            tables_on(noise, scores.device).slope,
            upstream.contiguous(),
            log_p.contiguous(),
            weights,
            records,
            records.view(torch.float32),
            lines,
            grad,
            classes,
            **launch_options(classes, CAPACITY),
        )


# In kernels. ``x`` points to a row's scores; ``a`` are the weights A_q, (Q,) float32.


@triton.jit
def _slope_at_lead(slope, lead, level, start, count, Q: tl.constexpr):
    """r at the thresholds for one class at ``lead`` ≤ 0 scales, (Q,); 0 beyond the last threshold."""
    cell = tl.floor(-lead / T_CELL).to(tl.int32)
    s = (2 * (cell + lead / T_CELL) + 1).to(tl.float32)
    q = tl.arange(0, Q)
    return quintic(slope, entry(cell, level) + start + q, row_width(level), s, q < count)


@triton.jit
def _component(terms, Q: tl.constexpr):
    """The watched component of terms ≥ 0, as a share of their sum."""
    angle = tl.arange(0, Q).to(tl.float32) * _FREQUENCY
    real, imaginary = tl.sum(terms * tl.cos(angle), 0), tl.sum(terms * tl.sin(angle), 0)
    return tl.sqrt(real * real + imaginary * imaginary) / tl.maximum(tl.sum(terms, 0), 1e-37)


@triton.jit
def _forward(
    scores, stride, scale, scale_stride, log_cdf, slope, lowest, depth, high, guess, least, out, weights, records, tops, lines,
    C, Q: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x, log_p = scores + row * stride, out + row * C
    inverse = 1.0 / tl.load(scale + row * scale_stride).to(tl.float64)
    q = tl.arange(0, Q)

    # Extremes
    highest, hindmost = tl.full([WIDE], float("-inf"), tl.float32), tl.full([WIDE], float("inf"), tl.float32)
    bad_value = tl.zeros([WIDE], tl.int32)
    for first in range(0, C, WIDE):
        z = rivals(x, _NOBODY, first + tl.arange(0, WIDE), C)
        bad_value |= ((z != z) | (z == float("inf"))).to(tl.int32)
        highest = tl.maximum(highest, tl.where(z < float("inf"), z, float("-inf")))
        hindmost = tl.minimum(hindmost, tl.where(z > float("-inf"), z, float("inf")))
    top, low = tl.max(highest, 0), tl.min(hindmost, 0)
    bad = (tl.max(bad_value, 0) > 0) | (top == float("-inf"))
    status = tl.where(bad, T_BAD, tl.where(inverse >= 1e30, T_UNSERVED, T_DONE))
    going, a = status == T_DONE, tl.zeros([Q], tl.float32)

    # Thresholds
    bottom = tl.where(going, (low.to(tl.float64) - top.to(tl.float64)) * inverse, 0.0)
    floor = tl.maximum(bottom, least)
    pace = ((floor + T_FARTHEST) / T_PACE).to(tl.int32)
    edge = tl.load(lowest + pace).to(tl.float64)
    cells = tl.maximum(tl.load(depth + pace), tl.load(depth + pace + 1))
    cells = tl.maximum(cells, tl.ceil(-floor / T_CELL).to(tl.int32) + 1)
    cells = tl.minimum(cells.to(tl.float64), -bottom / T_CELL + 1).to(tl.int32)
    cells = tl.minimum(cells, T_MAX_CELLS)
    per_cell = (inverse / T_CELL).to(tl.float32)
    reach = tl.maximum(guess, 0.0) + high - edge
    level = tl.where(8 * reach + 4 < Q, 2, tl.where(4 * reach + 4 < Q, 1, 0))
    start = tl.floor(edge * (2 << level)).to(tl.int32)
    count = tl.ceil(reach * (2 << level)).to(tl.int32) + 2
    if going & (count > Q):
        status, going = tl.full([], T_UNSERVED, tl.int32), going & False
    while going:
        sums = sum_log_cdf(x, _NOBODY, C, top, per_cell, cells, log_cdf, level, start, count, Q, WIDE, TILE)
        product = tl.where(q < count, tl.exp(sums), 0.0)
        upper = product * _slope_at_lead(slope, tl.zeros([], tl.float64), level, start, count, Q)
        lower = product * _slope_at_lead(slope, floor, level, start, count, Q)
        counts = (upper > tl.max(upper, 0) * _DROP) | (lower > tl.max(lower, 0) * _DROP)
        begin, end = tl.min(tl.where(counts, q, Q - 1), 0), tl.max(tl.where(counts, q, 0), 0)
        watched = tl.maximum(_component(upper, Q), _component(lower, Q))
        if watched > _WATCHED:
            finer = tl.minimum(tl.where(watched < 0.05, 1, 2), -level + T_FINEST)
            begin, end = tl.maximum(begin - 1, 0), tl.minimum(end + 1, count - 1)
            start, count = (start + begin) << finer, ((end - begin) << finer) + 1
            level += finer
            if (finer == 0) | (count > Q):
                status, going = tl.full([], T_UNSERVED, tl.int32), going & False
        else:
            going = going & False
            h = 0.5 / (1 << level).to(tl.float64)
            a = tl.where((q >= begin) & (q <= end), h * product, 0.0).to(tl.float32)
    if status == T_DONE:
        tl.store(weights + row * Q + q, a)
        at_floor = tl.sum(a * _slope_at_lead(slope, floor, level, start, count, Q), 0)
        below = (bottom < floor) | (at_floor < _LEAST)
        while below & (at_floor < _LEAST) & (floor < -_RAISE):
            floor += _RAISE
            at_floor = tl.sum(a * _slope_at_lead(slope, floor, level, start, count, Q), 0)
        above = tl.sum(a * _slope_at_lead(slope, floor + T_CELL / 2, level, start, count, Q), 0)
        line = tl.log(tl.maximum(at_floor, _SMALL))
        tilt = tl.where(below, (tl.log(tl.maximum(above, _SMALL)) - line) / (T_CELL / 2), 0.0)
        limit = tl.where(below, floor, _FARTHEST).to(tl.float32)
        tl.store(lines + 2 * row, limit)
        tl.store(lines + 2 * row + 1, tilt)
        leader, rest = tl.full([], -1, tl.int32), tl.zeros([], tl.float64)
        for begin in range(0, C, TILE):
            j = begin + tl.arange(0, TILE)
            z = rivals(x, _NOBODY, j, C)
            c, s = locate(z, top, per_cell, cells)
            needed = (c < cells)[:, None] & (q < count)[None, :]
            at = entry(c, level)[:, None] + (start + q)[None, :]
            p = tl.sum(a[None, :] * quintic(slope, at, row_width(level), s[:, None], needed), 1)
            place = tl.maximum((z - top) * inverse.to(tl.float32), _FARTHEST)
            log = tl.where(place < limit, line + tilt * (place - limit), tl.log(tl.maximum(p, _SMALL)))
            tl.store(log_p + j, tl.where(z == float("-inf"), float("-inf"), log), mask=j < C)
            leads = (p > 0.5) & (j < C)
            leader = tl.maximum(leader, tl.max(tl.where(leads, j, -1), 0))
            rest += tl.sum(tl.where(leads, 0.0, p), 0).to(tl.float64)
        tl.debug_barrier()
        if leader >= 0:
            tl.store(log_p + leader, log_one_minus(rest).to(tl.float32))
        tl.store(records + row * T_COLUMNS + T_LEVEL, level)
        tl.store(records + row * T_COLUMNS + T_START, start)
        tl.store(records + row * T_COLUMNS + T_COUNT, count)
        tl.store(records + row * T_COLUMNS + T_CELLS, cells)
        tl.store(tops + row * T_COLUMNS + T_TOP, top)
    else:
        for first in range(0, C, WIDE):
            block = first + tl.arange(0, WIDE)
            tl.store(log_p + block, tl.full([WIDE], float("nan"), tl.float32), mask=block < C)
    tl.store(records + row * T_COLUMNS + T_STATUS, status)


@triton.jit
def _factor(upstream, log_p, j, place, limit, C):
    """g = upstream / p of classes j; 0 below the floor, whose gradient is the line's, and beyond the last class."""
    log = tl.load(log_p + j, mask=j < C, other=0.0)
    g = tl.load(upstream + j, mask=j < C, other=0.0) * tl.exp(tl.minimum(-log, 80.0))
    return tl.where((place < limit) | (log == float("-inf")), 0.0, g)


@triton.jit
def _backward(
    scores, stride, scale, scale_stride, slope, upstream, log_p, weights, records, tops, lines, grad, C,
    Q: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x, out, upstream, log_p = scores + row * stride, grad + row * C, upstream + row * C, log_p + row * C
    inverse = (1.0 / tl.load(scale + row * scale_stride).to(tl.float64)).to(tl.float32)
    status = tl.load(records + row * T_COLUMNS + T_STATUS)
    classes = tl.where(status == T_DONE, C, 0)  # nothing is read where nothing is asked
    level, start = tl.load(records + row * T_COLUMNS + T_LEVEL), tl.load(records + row * T_COLUMNS + T_START)
    count, cells = tl.load(records + row * T_COLUMNS + T_COUNT), tl.load(records + row * T_COLUMNS + T_CELLS)
    top, per_cell = tl.load(tops + row * T_COLUMNS + T_TOP), inverse / T_CELL
    limit, tilt = tl.load(lines + 2 * row), tl.load(lines + 2 * row + 1)
    q = tl.arange(0, Q)
    ones, twos = tl.zeros([Q], tl.float64), tl.zeros([Q], tl.float64)
    for begin in range(0, classes, TILE):
        j = begin + tl.arange(0, TILE)
        z = rivals(x, _NOBODY, j, C)
        c, s = locate(z, top, per_cell, cells)
        needed = (c < cells)[:, None] & (q < count)[None, :]
        r = quintic(slope, entry(c, level)[:, None] + (start + q)[None, :], row_width(level), s[:, None], needed)
        g = _factor(upstream, log_p, j, tl.maximum((z - top) * inverse, _FARTHEST), limit, C)
        ones += tl.sum(r, 0).to(tl.float64)
        twos += tl.sum(g[:, None] * r, 0).to(tl.float64)
    a = tl.load(weights + row * Q + q, mask=q < tl.where(status == T_DONE, count, 0), other=0.0)
    one, two = (a * ones).to(tl.float32), (a * twos).to(tl.float32)
    below, first_top = tl.zeros([], tl.float64), C + 0
    for begin in range(0, C, TILE):
        j = begin + tl.arange(0, TILE)
        z = rivals(x, _NOBODY, j, classes)
        c, s = locate(z, top, per_cell, cells)
        needed = (c < cells)[:, None] & (q < count)[None, :] & (j < classes)[:, None]
        r = quintic(slope, entry(c, level)[:, None] + (start + q)[None, :], row_width(level), s[:, None], needed)
        place = tl.maximum((z - top) * inverse, _FARTHEST)
        g = _factor(upstream, log_p, j, place, limit, classes)
        found = inverse * (g * tl.sum(one[None, :] * r, 1) - tl.sum(two[None, :] * r, 1))
        on_line = (place < limit) & (z > float("-inf")) & (j < classes)
        change = tl.where(on_line, inverse * tilt * tl.load(upstream + j, mask=on_line, other=0.0), 0.0)
        below += tl.sum(change, 0).to(tl.float64)
        first_top = tl.minimum(first_top, tl.min(tl.where((z == top) & (j < classes), j, C), 0))
        tl.store(out + j, found + change, mask=j < C)
    tl.debug_barrier()
    if (below != 0) & (first_top < C):
        tl.store(out + first_top, tl.load(out + first_top) - below.to(tl.float32))
