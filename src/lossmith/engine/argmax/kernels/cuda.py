r"""log P(the target wins) and its gradient for float32 rows on a GPU: one Triton kernel each way, one program a row.

The integral and the choice between p and 1 − p are those of ``cpu``; what differs is the sum over classes,

    G(u_q) = Σ_{j≠y} log F(u_q − x_j),        g_j = −(upstream / σ) Σ_q w_q r(u_q − x_j),

evaluated for each threshold and class (``tiles``).

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

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.argmax import reference
from lossmith.engine.argmax.kernels.record import BAD, COLUMNS, KEPT_NORMAL, NEGLIGIBLE, STATUS, UNSERVED
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
    T_LOST,
    T_MAX_CELLS,
    T_PACE,
    T_START,
    T_STATUS,
    T_SURE,
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

RESOLVED = 5e-4  # difference of even and odd thresholds, whose square is below float32's rounding

_RESOLVED, _NEGLIGIBLE = tl.constexpr(RESOLVED), tl.constexpr(NEGLIGIBLE)


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
    made, scores = tables_on(noise, scores.device), rows_contiguous(scores)
    with current(scores):
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
            highest_of_equals(noise, classes),
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
            **launch_options(classes, weights.shape[1]),
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
    scores = rows_contiguous(scores)
    with current(scores):
        _backward[(rows,)](
            scores,
            scores.stride(0),
            target.contiguous(),
            scale.contiguous(),
            int(len(scale) > 1),
            tables_on(noise, scores.device).slope,
            upstream.contiguous(),
            weights.contiguous(),
            records.contiguous(),
            records.contiguous().view(torch.float32),
            grad,
            weights.shape[1],
            classes,
            **launch_options(classes, weights.shape[1]),
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


@triton.jit
def _one_minus_exp(x, exp_x):
    """1 − e^x for x ≤ 0 in float64, with its digits near 0: what rounding does to e^x, the logarithm undoes."""
    near = x > -0.3
    exp_x = tl.where(near, exp_x, 0.5)
    by_ratio = (1.0 - exp_x) * (x / tl.log(tl.where(exp_x == 1.0, 0.5, exp_x)))
    return tl.where(near, tl.where(exp_x == 1.0, -x, by_ratio), 1.0 - tl.exp(x))


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
        z = rivals(x, y, first + tl.arange(0, WIDE), C)
        odd = (z != z) | (z == float("inf"))
        bad_value |= odd.to(tl.int32)
        highest = tl.maximum(highest, tl.where(odd, float("-inf"), z))
    top = tl.max(highest, 0)
    lost = own == float("-inf")
    bad = (tl.max(bad_value, 0) > 0) | (own != own) | (own == float("inf")) | (lost & (top == float("-inf")))

    t = (tl.where(lost | bad, 0.0, own).to(tl.float64) - top.to(tl.float64)) * inverse
    status = tl.where((t < least_lead) | (t >= most_lead) | (inverse >= 1e30), T_UNSERVED, T_DONE)
    status = tl.where(t >= sure_lead, T_SURE, status)
    status = tl.where(lost, T_LOST, status)
    status = tl.where(bad, T_BAD, status)
    status = tl.where(y == ignored, T_SURE, status)
    easy = tl.where(status == T_LOST, float("-inf"), tl.where(status == T_BAD, float("nan"), 0.0))
    tl.store(out + row, easy)

    # Thresholds
    going = status == T_DONE
    t = tl.where(going, t, 0.0)
    pace = ((t + T_FARTHEST) / T_PACE).to(tl.int32)
    bottom = tl.load(lowest + pace).to(tl.float64)
    cells = tl.maximum(tl.load(depth + pace), tl.load(depth + pace + 1))
    cells = tl.minimum(cells, T_MAX_CELLS)
    per_cell = (inverse / T_CELL).to(tl.float32)
    reach = tl.maximum(tl.maximum(t, guess), 0.0) + high - bottom
    few = (reach > 14) | (C <= 16)
    level = tl.where(few, tl.where((reach > 14) & (4 * reach + 2 > capacity), 0, 1), 2)
    start = tl.floor(bottom * (2 << level)).to(tl.int32)
    count = tl.ceil(reach * (2 << level)).to(tl.int32) + 2
    own_cell = tl.floor(-t / T_CELL).to(tl.int32)
    own_s = (2 * (own_cell + t / T_CELL) + 1).to(tl.float32)
    q = tl.arange(0, Q)
    complement = going & (t > 0)
    undecided = complement
    if going & (count > Q):
        status, going = tl.full([], T_UNSERVED, tl.int32), going & False
    while going:
        h = 0.5 / (1 << level).to(tl.float64)
        used = q < count
        sums = sum_log_cdf(x, y, C, top, per_cell, cells, log_cdf, level, start, count, Q, WIDE, TILE)
        logs = quintic(log_prob, entry(own_cell, level) + start + q, row_width(level), own_s, used).to(tl.float64)
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
            finer = tl.minimum(tl.where(difference < 0.02 * whole, 1, 2), -level + T_FINEST)
            begin, end = tl.maximum(begin - 1, 0), tl.minimum(end + 1, count - 1)
            start = (start + begin) << finer
            count = ((end - begin) << finer) + 1
            level += finer
            if (finer == 0) | (count > Q):
                status, going = tl.full([], T_UNSERVED, tl.int32), going & False
        elif end - begin >= capacity:
            status = tl.full([], T_UNSERVED, tl.int32)
        else:
            whole = h * whole
            if complement:
                log_p, share = log_one_minus(whole), h * tl.exp(peak) / (1.0 - whole)
            else:
                log_p, share = tl.log(whole) + peak, h / whole
            tl.store(out + row, log_p.to(tl.float32))
            tl.store(weights + row * capacity + q - begin, (product * share).to(tl.float32), mask=(q >= begin) & (q <= end))
            tl.store(records + row * T_COLUMNS + T_LEVEL, level)
            tl.store(records + row * T_COLUMNS + T_START, start + begin)
            tl.store(records + row * T_COLUMNS + T_COUNT, end - begin + 1)
            tl.store(records + row * T_COLUMNS + T_CELLS, cells)
            tl.store(tops + row * T_COLUMNS + T_TOP, top)
    tl.store(records + row * T_COLUMNS + T_STATUS, status)


@triton.jit
def _backward(
    scores, stride, target, scale, scale_stride, slope, upstream, weights, records, tops, grad, capacity, C,
    Q: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x, y, out = scores + row * stride, tl.load(target + row), grad + row * C
    inverse = 1.0 / tl.load(scale + row * scale_stride).to(tl.float64)
    above = tl.load(upstream + row)
    status = tl.load(records + row * T_COLUMNS + T_STATUS)
    done = (status == T_DONE) & (above != 0)
    easy = tl.where((status == T_BAD) & (above != 0), float("nan"), 0.0)
    level, start = tl.load(records + row * T_COLUMNS + T_LEVEL), tl.load(records + row * T_COLUMNS + T_START)
    count, cells = tl.where(done, tl.load(records + row * T_COLUMNS + T_COUNT), 0), tl.load(records + row * T_COLUMNS + T_CELLS)
    top = tl.load(tops + row * T_COLUMNS + T_TOP)
    per_cell = (inverse / T_CELL).to(tl.float32)
    factor = (-above.to(tl.float64) * inverse).to(tl.float32)
    q = tl.arange(0, Q)
    w = factor * tl.load(weights + row * capacity + q, mask=q < count, other=0.0)
    total = tl.zeros([], tl.float64)
    for first in range(0, C, WIDE):
        block = first + tl.arange(0, WIDE)
        highest = tl.max(rivals(x, y, block, tl.where(done, C, 0)), 0)  # nothing is read where nothing is asked
        if done & ((top - highest) * per_cell < cells):
            for begin in range(first, tl.minimum(first + WIDE, C), TILE):
                j = begin + tl.arange(0, TILE)
                c, s = locate(rivals(x, y, j, C), top, per_cell, cells)
                needed = (c < cells)[:, None] & (q < count)[None, :]
                at = entry(c, level)[:, None] + (start + q)[None, :]
                g = tl.sum(w[None, :] * quintic(slope, at, row_width(level), s[:, None], needed), 1)
                total += tl.sum(g, 0).to(tl.float64)
                tl.store(out + j, g, mask=(j < C) & (j != y))
        else:
            tl.store(out + block, tl.zeros([WIDE], tl.float32) + easy, mask=(block < C) & (block != y))
    if (y >= 0) & (y < C):
        tl.store(out + y, tl.where(done, -total, easy).to(tl.float32))
