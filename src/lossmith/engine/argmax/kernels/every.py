r"""log P of every class and its gradient for float32 rows on the CPU: one fused numba kernel each way.

With S(u) = Σ_j log F(u − x_j) over all classes, r = f/F, and A_q = h e^{S(u_q)} at thresholds u_q = q h (A24), (A26),

    p_k = Σ_q A_q r(u_q − x_k),    ∂/∂x_j = g_j Σ_q A_q R_q r(u_q − x_j) − Σ_q A_q T_q r(u_q − x_j),
    R_q = Σ_k r(u_q − x_k),  T_q = Σ_k g_k r(u_q − x_k)   for upstream g_k on p_k.

All sums over classes go through cells. A p of any size keeps its relative precision, since all terms are positive. A p above ½
follows from the sum of its rivals (N4), (N5). Classes are followed down to a floor, where p is about 1e-32. Below the floor,
log p is a straight line with the slope of log p at the floor. Its gradient lies in the class and in the strongest class.

Words that the arguments share, beside those of ``cells`` and ``cpu``:

* floor: float64, the lowest lead of a class that is followed, in scales, ≤ 0.
* lines: (B · 2,) float32, for each row the floor, and the slope of log p at the floor in nats per scale. −inf and 0 if no class
  is below the floor.
* sums: (MOST_THRESHOLDS,) float32, S at the thresholds, in nats. In ``backward``: R, in nats per scale.
* log_cdf, log_prob, slope, slope_by_cell: float32, tables of ``flat_tables``; log_cdf and log_prob in nats, slopes in nats per
  scale. All are ordered by cells, but slope is ordered by thresholds.
* n: int64, occupied cells. occupied: (MAX_CELLS,) int32, the n cells. slots: (MAX_CELLS,) int32, their places in the moments.
* stride: int64, places from one moment, or coefficient, of a cell to the next.
* upstream: (B · C,) float32, the derivative of the loss in log p, per nat.
* factor: (C,) float32, g of each class, upstream / p; 0 below the floor.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cells import (
    FINE,
    INFINITY,
    MINUS_INFINITY,
    add_function,
    clear,
    gather_fine,
    interleave,
    locate,
    number,
    padded,
    pieces_of,
    read_off,
    read_off_fine,
    slope_at,
    spread_fine,
    sum_of,
    sum_pieces,
)
from lossmith.engine.argmax.kernels.cpu import (
    BEND,
    BLOCK,
    FINE_FROM,
    LARGEST_INVERSE,
    LN2_HIGH,
    LN2_LOW,
    MOST_THRESHOLDS,
    NARROW,
    _exp_into,
    cell_scratch,
    class_scratch,
    exact,
    row_moments,
    strongest,
)
from lossmith.engine.argmax.kernels.record import (
    CELLS,
    COUNT,
    DONE,
    LEVEL,
    MAX_CELLS,
    SINGLE_CLASSES,
    START,
    STATUS,
    TOP,
    UNSERVED,
)
from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE, STEPS
from lossmith.engine.runtime.arrays import empty, release, zeros
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.engine.runtime.simd import WHOLE, bits_of, float_of

LEAST = np.float32(1e-33)  # p of the lowest class that is followed, far above SMALL: the terms of its sum keep their digits
RAISE = 0.5  # scales by which the floor rises at a time: p there grows by about e^4 for normal noise, and stays below 1e-30
ACCEPTED = 1.3  # roughness that a row may have at the finest level: the conditions (A7), (A8) are sufficient, not necessary
DROP = 17.0  # nats below the highest integrand at which a threshold is left out: e^−17 is below the rounding of float32
SQRT_HALF = np.int32(0x3F3504F3)  # the bits of √½
SMALL = np.float32(1e-37)  # least argument of a logarithm: just above the smallest float32 with all its digits, 1.2e-38


@exact
def _log_in_place(x, first, count):
    """x[first + j] = log(max(x[first + j], SMALL)) for j < count, with an error of 1e-7.

    x is (n,) float32. x = 2^e (1 + y) with √½ ≤ 1 + y < √2. No libm, since the loop has to become vector instructions.
    Source of the polynomial: ``logf`` of Cephes (Moshier).
    """
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        bits = bits_of(max(x[start + j], SMALL))
        e = (bits - SQRT_HALF) >> np.int32(23)
        y = float_of(bits - (e << np.int32(23))) - np.float32(1)  # from √½ − 1 to √2 − 1
        z = y * y
        p = np.float32(7.0376836292e-2)
        p = p * y - np.float32(1.1514610310e-1)
        p = p * y + np.float32(1.1676998740e-1)
        p = p * y - np.float32(1.2420140846e-1)
        p = p * y + np.float32(1.4249322787e-1)
        p = p * y - np.float32(1.6668057665e-1)
        p = p * y + np.float32(2.0000714765e-1)
        p = p * y - np.float32(2.4999993993e-1)
        p = p * y + np.float32(3.3333331174e-1)
        n = np.float32(e)
        x[start + j] = ((p * z * y + n * LN2_LOW) - np.float32(0.5) * z) + y + n * LN2_HIGH


@jit
def _place_of(x, first, count, bound):
    """The j < count with x[first + j] > bound, int64; −1 without one. x: (n,) float32, at most one such number."""
    start, found = np.uint64(first), np.int64(-1)
    for j in range(np.uint64(0), np.uint64(count)):
        found = np.int64(j) if x[start + j] > bound else found
    return found


@jit
def highest(x, y, out, count):
    """out = x + y, all (≥ count,) in nats, float32 or float64. Returns the highest of out, and its place, int64."""
    best, at = np.float32(-np.inf), 0
    for q in range(count):
        out[q] = x[q] + y[q]
        if out[q] > best:
            best, at = out[q], q
    return best, at


@jit
def most_bend(sums, exponent, best, at, begin, end, count):
    """The left side of (A8): the highest second difference of S from ``begin`` to ``end``, in nats.

    exponent: the log integrand of the hindmost class, ``best`` at its highest, in the place ``at``. All float32 or float64.
    """
    bend = np.float32(0)
    for q in range(max(begin, 1), min(end, count - 2) + 1):
        weight = np.float32(1)
        if q < at:
            weight = max(np.float32(1) + (exponent[q] - best) * np.float32(1 / 32), np.float32(0))
            weight *= weight
            weight *= weight
            weight *= weight  # (1 + x/32)^8, in place of the fourth root (A8)
        bend = max(bend, abs(sums[q - 1] + sums[q + 1] - np.float32(2) * sums[q]) * weight)
    return bend


@inlined
def _thresholds(sums, log_cdf, log_prob, floor, level, start, count, steepness, occupied, slots, n, moments, stride, exponent, logs, powers):  # fmt: skip  # noqa: E501
    """Thresholds for the integrals of all classes from ``floor`` up, with S at the thresholds in ``sums``.

    The integrand of the hindmost class, S + log r(u − floor), begins lowest. The integrand of the strongest class ends highest.

    Args:
        sums, exponent, logs, powers: written to.
        level, start, count: the first thresholds; count ≤ MOST_THRESHOLDS, a multiple of WHOLE.

    Returns:
        level, start: int64, of the thresholds in ``sums``.
        begin, end: int64, the first and the last place in ``sums`` that counts.
        rough: float64, how many times too wide the step is (A7), (A8). 2 if a finer step would need too many thresholds.
    """
    while True:
        sum_pieces(sums, log_cdf, level, start, count, occupied, slots, n, moments, stride)
        clear(logs, 0, count)
        add_function(logs, log_prob, np.float32(1), 0.0, level, start, count, powers)
        best, at = highest(sums, logs, exponent, count)
        end = count - 1
        while end > at and exponent[end] < best - np.float32(DROP):
            end -= 1
        clear(logs, 0, count)
        add_function(logs, log_prob, np.float32(1), floor, level, start, count, powers)
        add_function(logs, log_cdf, np.float32(-1), floor, level, start, count, powers)  # S includes the hindmost class
        best, at = highest(sums, logs, exponent, count)
        begin = 0
        while begin < at and exponent[begin] < best - np.float32(DROP):
            begin += 1
        h = 1.0 / (STEPS << level)
        bend = most_bend(sums, exponent, best, at, begin, end, count)
        rough = min(np.sqrt(float(bend)) / BEND, h * steepness * np.sqrt(max(-float(sums[at]), 1.0)) / NARROW)
        if rough <= 1 or level == LEVELS - 1:
            return level, start, begin, end, rough
        finer = 1
        while rough > 2.0**finer and level + finer < LEVELS - 1:
            finer += 1
        first, last = max(begin - 1, 0), min(end + 1, count - 1)
        level, start = level + finer, (start + first) << finer
        count = padded(((last - first) << finer) + 1)
        if count > MOST_THRESHOLDS:
            return level, start, 0, count, 2.0


@jit
def _at_lead(slope_by_cell, level, start, count, weights, first, lead):
    """p of a class at ``lead``, float32 (A24). weights[first …]: A_q; lead: float64, ≤ 0, in scales."""
    cell = np.int64(np.floor(-lead / CELL))
    s = np.float32(2 * (cell + lead / CELL) + 1)
    return slope_at(slope_by_cell, level, start, count, weights, first, cell, s)


@inlined
def every_scratch():
    """Scratch for ``forward``, float32: logs, exponent, powers, and pieces, zeros."""
    logs, exponent = empty(MOST_THRESHOLDS, np.float32), empty(MOST_THRESHOLDS, np.float32)
    return logs, exponent, empty(MOMENTS, np.float32), zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32)


@inlined
def every_gradient_scratch(C):
    """Scratch for ``backward``: weighted moments, two of pieces, sums, two of weights, a factor a class, two blocks, fine."""
    size = (MAX_CELLS + WHOLE) * MOMENTS
    return (
        zeros(size, np.float32), empty(size, np.float32), empty(size, np.float32),
        empty(MOST_THRESHOLDS, np.float32), empty(MOST_THRESHOLDS + WHOLE, np.float32),
        empty(MOST_THRESHOLDS + WHOLE, np.float32), empty(C, np.float32), empty(BLOCK, np.float32),
        empty(BLOCK, np.float32), zeros((MAX_CELLS + WHOLE) * FINE * 3 if C >= FINE_FROM else 1, np.float32),
    )  # fmt: skip


@jit
def forward(
    scores, bits, scale, log_cdf, log_prob, slope_by_cell, slope, lowest, depth, high, least, coarsest, guess, steepness, C,
    log_p, weights, capacity, records, lines, first_row, last_row,
):  # fmt: skip
    """Rows first_row … last_row: log p of every class, and what ``backward`` needs.

    Args:
        scores: (B · C,) float32. bits: the scores as int32. scale: (B,) or (1,) float32, in units of the scores.
        lowest, depth, high, coarsest: of ``Tables``. guess: float64, the quantile 1 − 1/C of the noise, in scales.
        least: float64, the lowest floor that a row may have, in scales, < 0.
        log_p: (B · C,) float32, in nats, written to.
        weights: (B · capacity,) float32, zeros; A_q is written. records, lines: written to.

    Returns:
        Whether a row is bad: NaN, +inf, or nothing but −inf. Whether a row is UNSERVED. Both bool.
    """
    scratch = class_scratch(C) + cell_scratch() + every_scratch()
    fine, cell_of, offset, blocks, sums, occupied, slots, moments, logs, exponent, powers, pieces = scratch
    bad, unserved = False, False
    many = C >= FINE_FROM
    for b in range(first_row, last_row):
        base = b * C
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        high_key, low_key = strongest(bits, base, C, -1, blocks)
        top = number(high_key)
        if high_key >= INFINITY or low_key < MINUS_INFINITY or top == -np.inf:
            bad = True
            continue
        bottom = (float(number(low_key)) - float(top)) * inverse
        floor = max(bottom, least)
        records[b, STATUS] = UNSERVED
        if not inverse < LARGEST_INVERSE:
            unserved = True
            continue
        pace = np.int64((floor + FARTHEST) / PACE)
        level = coarsest
        start = np.int64(np.floor(lowest[pace] * (STEPS << level)))
        count = min(padded(np.int64(np.ceil((high + max(guess, 0.0)) * (STEPS << level))) - start + 1), MOST_THRESHOLDS)
        cells = min(max(depth[pace], depth[pace + 1], np.int64(np.ceil(-floor / CELL)) + 1), MAX_CELLS)
        cells = np.int64(min(-bottom / CELL + 1, cells))
        n, used, stride = row_moments(
            scores, base, C, -1, top, inverse, cells, fine, cell_of, offset, blocks, moments, occupied, slots
        )
        level, start, begin, end, rough = _thresholds(
            sums, log_cdf, log_prob, floor, level, start, count, steepness, occupied, slots, n, moments, stride, exponent, logs,
            powers,
        )  # fmt: skip
        clear(moments, 0, MOMENTS * stride)
        count = end - begin + 1
        if count > capacity or rough > ACCEPTED:
            unserved = True
            continue
        start += begin
        w = b * capacity
        h = np.float32(1.0 / (STEPS << level))
        for q in range(count):
            exponent[q] = sums[begin + q]
        _exp_into(exponent, logs, count)
        for q in range(count):
            weights[w + q] = h * logs[q]
        records[b, LEVEL], records[b, START], records[b, COUNT], records[b, STATUS] = level, start, count, DONE
        records[b, CELLS], records[b, TOP] = used, high_key
        # The line below the floor goes through log p at the floor and half a cell above, since p itself may underflow below
        line, tilt = np.float32(0), np.float32(0)
        at_floor = _at_lead(slope_by_cell, level, start, count, weights, w, floor)
        below = bottom < floor or at_floor < LEAST
        if below:
            while at_floor < LEAST and floor < -RAISE:
                floor += RAISE
                at_floor = _at_lead(slope_by_cell, level, start, count, weights, w, floor)
            above = _at_lead(slope_by_cell, level, start, count, weights, w, floor + CELL / 2)
            line = np.float32(np.log(max(at_floor, SMALL)))
            tilt = np.float32(np.log(max(above, SMALL)) - line) / np.float32(CELL / 2)
        lines[2 * b], lines[2 * b + 1] = np.float32(floor if below else -np.inf), tilt
        floor = float(lines[2 * b])
        limit, per_cell = used * FINE if many else used, np.float32(inverse / CELL * (FINE if many else 1))
        if C > SINGLE_CLASSES:
            stride = padded(used + 1)
            pieces_of(weights, w, slope, level, start, count, np.float32(1), used, pieces, stride)
            if many:
                spread_fine(pieces, fine, stride)
        for first in range(0, C, BLOCK):
            last = min(first + BLOCK, C)
            locate(scores, base + first, base + last, top, per_cell, limit, cell_of, offset)
            if C <= SINGLE_CLASSES:
                for j in range(C):
                    log_p[base + j] = np.float32(0)
                    if cell_of[j] < used:
                        log_p[base + j] = slope_at(slope_by_cell, level, start, count, weights, w, cell_of[j], offset[j])
            elif many:
                interleave(last - first, cell_of, limit, stride)
                read_off_fine(log_p, base + first, last - first, cell_of, offset, fine, stride)
            else:
                read_off(log_p, base + first, last - first, cell_of, offset, pieces, stride)
        if many:
            clear(fine, 0, 3 * FINE * stride)
        at = _place_of(log_p, base, C, np.float32(0.5))
        rest = sum_of(log_p, base, base + at) + sum_of(log_p, base + at + 1, base + C) if at >= 0 else 0.0
        _log_in_place(log_p, base, C)
        if at >= 0:
            log_p[base + at] = np.log1p(-rest)
        if below:
            for j in range(C):
                x = (float(scores[base + j]) - float(top)) * inverse
                if x < floor:
                    log_p[base + j] = line + tilt * np.float32(x - floor) if x > -np.inf else np.float32(-np.inf)
    release(scratch)
    return bad, unserved


@jit
def _deposit_weighted(count, cell_of, offset, factor, first, moments, stride):
    """As ``deposit`` with factors: adds Σ_j g_j s_j^m for m < MOMENTS, g_j = factor[first + j], s_j = offset[j], j < count."""
    w, start = np.uint64(stride), np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        s, g = offset[j], factor[start + j]
        at = np.uint64(cell_of[j])
        moments[at] += g
        at += w
        g *= s
        moments[at] += g
        at += w
        g *= s
        moments[at] += g
        at += w
        g *= s
        moments[at] += g
        at += w
        g *= s
        moments[at] += g
        at += w
        g *= s
        moments[at] += g


@jit
def _deposit_each_weighted(count, offset, factor, first, moments, stride):
    """As ``deposit_each`` with factors: moments g_j s_j^m of class j < count, g_j = factor[first + j], s_j = offset[j]."""
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        s, g, at = offset[j], factor[start + j], np.uint64(j)
        for _ in range(MOMENTS):
            moments[at] = g
            g *= s
            at += np.uint64(stride)


@jit
def _deposit_fine_weighted(count, cell_of, offset, factor, first, fine, stride):
    """As ``deposit_fine`` with factors: adds Σ_j g_j s_j^m for m < 3, g_j = factor[first + j], s_j = offset[j], j < count."""
    w, start = np.uint64(FINE * stride), np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        s, g = offset[j], factor[start + j]
        at = np.uint64(cell_of[j])
        fine[at] += g
        at += w
        fine[at] += g * s
        at += w
        fine[at] += g * s * s


@jit
def _per_p(log_p, upstream, first, count, out):
    """out[j] = upstream / p of class first + j, float32, for j < count. log_p: (B · C,) float32, in nats."""
    for j in range(np.uint64(0), np.uint64(count)):
        i = np.uint64(first) + j
        out[j] = max(-log_p[i], np.float32(0))
    _exp_into(out, out, count)
    for j in range(np.uint64(0), np.uint64(count)):
        out[j] *= upstream[np.uint64(first) + j]


@jit
def backward(
    scores, bits, scale, slope_by_cell, slope, upstream, log_p, weights, capacity, records, lines, grad, C, first_row, last_row
):  # fmt: skip
    """Rows first_row … last_row of Σ_k upstream_k log p_k differentiated in the scores (A26); zeros where not DONE.

    Args:
        grad: (B · C,) float32, per unit of the scores, written to.
        others: as for ``forward``, which wrote log_p, weights, records and lines.
    """
    scratch = class_scratch(C) + cell_scratch() + every_gradient_scratch(C)
    (
        fine, cell_of, offset, blocks, sums, occupied, slots, moments, weighted, one_pieces, two_pieces, upstream_sums,
        one_weights, two_weights, factor, one, two, fine_two,
    ) = scratch  # fmt: skip
    many = C >= FINE_FROM
    for b in range(first_row, last_row):
        base = b * C
        if records[b, STATUS] != DONE:
            clear(grad, base, base + C)
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        level, start, count, used = (
            np.int64(records[b, LEVEL]),
            np.int64(records[b, START]),
            np.int64(records[b, COUNT]),
            np.int64(records[b, CELLS]),
        )
        top, w = number(records[b, TOP]), b * capacity
        strongest(bits, base, C, -1, blocks)
        n, used, stride = row_moments(
            scores, base, C, -1, top, inverse, used, fine, cell_of, offset, blocks, moments, occupied, slots
        )
        # g is 0 below the floor, since the line gives the gradient of those classes
        floor, tilt, tops = float(lines[2 * b]), lines[2 * b + 1], np.float32(0)
        _per_p(log_p, upstream, base, C, factor)
        for j in range(C):
            x = (float(scores[base + j]) - float(top)) * inverse
            if x < floor:
                factor[j] = np.float32(0)
        limit, per_cell = used * FINE if many else used, np.float32(inverse / CELL * (FINE if many else 1))
        if C <= SINGLE_CLASSES:
            locate(scores, base, base + C, top, per_cell, used, cell_of, offset)
            _deposit_each_weighted(C, offset, factor, 0, weighted, stride)
        else:
            for first in range(0, C, BLOCK):
                last = min(first + BLOCK, C)
                locate(scores, base + first, base + last, top, per_cell, limit, cell_of, offset)
                if many:
                    interleave(last - first, cell_of, limit, stride)
                    _deposit_fine_weighted(last - first, cell_of, offset, factor, first, fine, stride)
                else:
                    _deposit_weighted(last - first, cell_of, offset, factor, first, weighted, stride)
            if many:
                gather_fine(fine, weighted, stride)
        length = padded(count)
        sum_pieces(sums, slope_by_cell, level, start, length, occupied, slots, n, moments, stride)
        sum_pieces(upstream_sums, slope_by_cell, level, start, length, occupied, slots, n, weighted, stride)
        clear(moments, 0, MOMENTS * stride)
        clear(weighted, 0, MOMENTS * stride)
        for q in range(count):
            one_weights[q], two_weights[q] = weights[w + q] * sums[q], weights[w + q] * upstream_sums[q]
        clear(one_weights, count, length + WHOLE)
        clear(two_weights, count, length + WHOLE)
        scaled = np.float32(inverse)
        if C <= SINGLE_CLASSES:
            for j in range(C):
                found = np.float32(0)
                if cell_of[j] < used:
                    found = factor[j] * slope_at(slope_by_cell, level, start, count, one_weights, 0, cell_of[j], offset[j])
                    found -= slope_at(slope_by_cell, level, start, count, two_weights, 0, cell_of[j], offset[j])
                grad[base + j] = scaled * found
        else:
            stride = padded(used + 1)
            pieces_of(one_weights, 0, slope, level, start, count, scaled, used, one_pieces, stride)
            pieces_of(two_weights, 0, slope, level, start, count, scaled, used, two_pieces, stride)
            if many:
                spread_fine(one_pieces, fine, stride)
                spread_fine(two_pieces, fine_two, stride)
            for first in range(0, C, BLOCK):
                last = min(first + BLOCK, C)
                locate(scores, base + first, base + last, top, per_cell, limit, cell_of, offset)
                if many:
                    interleave(last - first, cell_of, limit, stride)
                    read_off_fine(one, 0, last - first, cell_of, offset, fine, stride)
                    read_off_fine(two, 0, last - first, cell_of, offset, fine_two, stride)
                else:
                    read_off(one, 0, last - first, cell_of, offset, one_pieces, stride)
                    read_off(two, 0, last - first, cell_of, offset, two_pieces, stride)
                _combine(grad, base + first, factor, first, one, two, last - first)
            if many:
                clear(fine, 0, 3 * FINE * stride)
                clear(fine_two, 0, 3 * FINE * stride)
        if tilt != 0:
            strongest_at = -1
            for j in range(C):
                if scores[base + j] == top and strongest_at < 0:
                    strongest_at = j
                x = (float(scores[base + j]) - float(top)) * inverse
                if x < floor and scores[base + j] > -np.inf:
                    change = upstream[base + j] * tilt * scaled
                    grad[base + j] += change
                    tops += change
            grad[base + strongest_at] -= tops
    release(scratch)


@jit
def _combine(out, at, factor, first, one, two, count):
    """out[at + j] = factor[first + j] · one[j] − two[j] for j < count: the two sums of (A26).

    out: (B · C,) float32, per unit of the scores. one, two: (BLOCK,) float32, the sums over thresholds with A R and with A T.
    """
    i, k = np.uint64(at), np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        out[i + j] = factor[k + j] * one[j] - two[j]
