r"""float64 rows on the CPU: log P(the target wins) with its gradient in one pass, log P of every class, and its gradient.

The sums are those of ``cpu`` and ``every``, with pieces of eleven coefficients (``tables.DOUBLE``) and finer steps. Classes are
kept more simply: the cells that are occupied have slots, in the order in which classes meet them, whatever the number of
classes. Sums over thresholds, and sums over classes, go once over the slots. See docs/how/argmax.md, section 11.

Words that the arguments share, beside those of ``cells`` and ``cpu`` (here all numbers are float64):

* slot_of: (MAX_CELLS,) int32, −1 before and after a row: the slot of a cell. occupied: (MAX_CELLS,) int32, the cell of a slot.
* places: (C,) int32, the slot of each class; −1 for the target, and for classes too far below to count.
* offset: (C,), the place of each class in its cell, in [−1, 1].
* moments, pieces: (MAX_CELLS · COEFFICIENTS,): of each slot.
* n: int64, the slots of a row. level, start, count: int64, its thresholds, count ≤ MOST_THRESHOLDS.
* factor: (C,), of each class in the moments.
"""

from __future__ import annotations

import math

import numpy as np

from lossmith.engine.argmax.kernels.cells import by_cell, clear, padded, row_length
from lossmith.engine.argmax.kernels.cpu import (
    ABOUT_HALF,
    BEND,
    LARGEST_INVERSE,
    MOST_THRESHOLDS,
    NARROW,
    even_and_odd,
    exact,
    first_thresholds,
    roughness,
)
from lossmith.engine.argmax.kernels.every import ACCEPTED, highest, most_bend
from lossmith.engine.argmax.kernels.record import (
    COMPLEMENT,
    COUNT,
    DIRECT,
    DONE,
    LEVEL,
    LOST,
    MAX_CELLS,
    OPEN,
    START,
    STATUS,
    SURE,
    UNSERVED,
)
from lossmith.engine.argmax.kernels.tables import CELL, DOUBLE, FARTHEST, LEVELS, PACE, STEPS
from lossmith.engine.runtime.arrays import empty, release
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.engine.runtime.simd import WHOLE, add_multiples, bits_of, double_of

COEFFICIENTS = DOUBLE.moments
FINER = 1.7  # by how much finer a step has to be than in float32 (A7), (A8)
RESOLVED = 1e-4  # as ``cpu.RESOLVED``
NEGLIGIBLE = 1e-13  # as ``record.NEGLIGIBLE``
DROP = 32.0  # nats below the highest integrand at which a threshold is left out
LEAST_P = 1e-280  # of a class that is not removed, in rows that are served: the terms of its sum have all their digits
TINY = 1e-300  # beside the smallest float64: a divisor or a logarithm needs more than 0

LOG2_E = math.log2(math.e)
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # n LN2_HIGH is exact; the sum is log 2
ROUND = 1.5 * 2**52  # added and taken away, it leaves the nearest integer, which then stands in the lowest bits
EXPONENT_BIAS, MANTISSA_BITS = np.int64(1023), np.int64(52)  # of a float64
LEAST_EXPONENT = -700.0  # e^−700 is a float64 with all its digits
NEAR_ZERO = -0.69  # from here to 0, 1 − e^x is a series
INVERSE_FACTORIALS = tuple(1 / math.factorial(n) for n in range(15))


@inlined
def _exp_series(r):
    """(e^r − 1) / r for |r| ≤ 0.35, to 1e-17."""
    s = INVERSE_FACTORIALS[14]
    s = s * r + INVERSE_FACTORIALS[13]
    s = s * r + INVERSE_FACTORIALS[12]
    s = s * r + INVERSE_FACTORIALS[11]
    s = s * r + INVERSE_FACTORIALS[10]
    s = s * r + INVERSE_FACTORIALS[9]
    s = s * r + INVERSE_FACTORIALS[8]
    s = s * r + INVERSE_FACTORIALS[7]
    s = s * r + INVERSE_FACTORIALS[6]
    s = s * r + INVERSE_FACTORIALS[5]
    s = s * r + INVERSE_FACTORIALS[4]
    s = s * r + INVERSE_FACTORIALS[3]
    s = s * r + INVERSE_FACTORIALS[2]
    return s * r + INVERSE_FACTORIALS[1]


@exact
def _exp_into(x, out, count):
    """out = e^x for x ≤ 700; 0 below LEAST_EXPONENT. No libm, so that the loop becomes vector instructions."""
    for q in range(np.uint64(0), np.uint64(count)):
        y = max(x[q], LEAST_EXPONENT)
        shifted = y * LOG2_E + ROUND
        n = shifted - ROUND
        r = (y - n * LN2_HIGH) - n * LN2_LOW
        power = double_of((bits_of(shifted) << MANTISSA_BITS) + (EXPONENT_BIAS << MANTISSA_BITS))
        out[q] = (1.0 + r * _exp_series(r)) * power if x[q] > LEAST_EXPONENT else 0.0


@jit
def _times_one_minus_exp(x, exp_x, out, count):
    """out ·= 1 − e^x for x ≤ 0, with its digits near 0; ``exp_x`` is e^x."""
    for q in range(np.uint64(0), np.uint64(count)):
        half = max(x[q], NEAR_ZERO) / 2
        m = half * _exp_series(half)  # e^(x/2) − 1
        out[q] *= -m * (m + 2) if x[q] > NEAR_ZERO else 1 - exp_x[q]


@jit
def extremes_but(scores, first, last, own):
    """Highest and lowest of scores[first … last] but the one at ``own`` and those that are −inf, and whether one is NaN."""
    high, low, strange = -np.inf, np.inf, False
    for j in range(np.uint64(first), np.uint64(last)):
        x = scores[j]
        strange |= x != x
        if j != np.uint64(own):
            high = x if x > high else high
            low = x if x < low and x > -np.inf else low
    return high, low, strange


@jit
def _slots(scores, base, C, own, top, inverse, cells, slot_of, occupied, places, offset):
    """Give each class of a row its slot; returns n. own: the class without one, or −1; cells: how many count."""
    per_cell, limit, n = inverse / CELL, float(cells), np.int32(0)
    for j in range(C):
        y = (top - scores[base + j]) * per_cell
        places[j] = -1
        if j != own and y < limit:
            c = np.int32(y)
            k = slot_of[c]
            if k < 0:
                k = n
                slot_of[c], occupied[k] = k, c
                n += np.int32(1)
            places[j], offset[j] = k, 2 * (c - y) + 1
    for k in range(n):
        slot_of[occupied[k]] = -1
    return np.int64(n)


@jit
def _deposit(C, places, offset, factor, moments, n):
    """moments = Σ factor · s^m over the classes of each slot; factor: (C,), or None for ones."""
    clear(moments, 0, n * COEFFICIENTS)
    for j in range(C):
        if places[j] >= 0:
            at, power = np.uint64(places[j]) * np.uint64(COEFFICIENTS), 1.0 if factor is None else factor[j]
            for m in range(np.uint64(COEFFICIENTS)):
                moments[at + m] += power
                power *= offset[j]


@jit
def _add_slot(out, table, cell, level, start, count, m, k):
    """out_q += Σ_i m_i · table_i(u_q − x_cell), with the coefficients m[k], m[k + 1], …"""
    at, w = by_cell(cell, level, COEFFICIENTS) + start, row_length(level)
    factors = (
        m[k], m[k + 1], m[k + 2], m[k + 3], m[k + 4], m[k + 5], m[k + 6], m[k + 7], m[k + 8], m[k + 9], m[k + 10]
    )  # fmt: skip
    for q in range(0, count, WHOLE):
        i = at + q
        places = (
            i, i + w, i + 2 * w, i + 3 * w, i + 4 * w, i + 5 * w, i + 6 * w, i + 7 * w, i + 8 * w, i + 9 * w, i + 10 * w
        )  # fmt: skip
        add_multiples(out, q, table, places, factors)


@jit
def _sum_slots(out, table, level, start, count, occupied, n, moments):
    """out_q = Σ over the classes of all slots of function(u_q − x) (A13)."""
    clear(out, 0, count)
    for k in range(n):
        _add_slot(out, table, occupied[k], level, start, count, moments, k * COEFFICIENTS)


@jit
def _add_function(out, table, sign, lead, level, start, count, powers):
    """out_q += sign · function(u_q − lead); powers: (COEFFICIENTS,) scratch."""
    cell = np.int64(np.floor(-lead / CELL))
    s, power = 2 * (cell + lead / CELL) + 1, sign
    for m in range(COEFFICIENTS):
        powers[m] = power
        power *= s
    _add_slot(out, table, cell, level, start, count, powers, 0)


@jit
def _pieces_of(weights, table, level, start, count, occupied, n, pieces):
    """pieces: Σ_q weight_q · table_m(u_q − x_c) of each slot (A19)."""
    w = np.uint64(row_length(level))
    for k in range(n):
        at = np.uint64(by_cell(occupied[k], level, COEFFICIENTS) + start)
        for m in range(COEFFICIENTS):
            total = 0.0
            for q in range(np.uint64(0), np.uint64(count)):
                total += weights[q] * table[at + q]
            pieces[k * COEFFICIENTS + m] = total
            at += w


@jit
def _read_off(C, places, offset, pieces, out, first):
    """out[first + j] = the polynomial of the slot of class j at its offset; 0 without a slot."""
    for j in range(C):
        total = 0.0
        if places[j] >= 0:
            at, s = np.uint64(places[j]) * np.uint64(COEFFICIENTS), offset[j]
            for m in range(np.uint64(COEFFICIENTS)):
                total = total * s + pieces[at + np.uint64(COEFFICIENTS - 1) - m]
        out[first + j] = total


@inlined
def _scratch(C):
    """Scratch of a thread: slot_of, occupied, places, offset, moments, pieces, powers, and five of thresholds."""
    slot_of, occupied = empty(MAX_CELLS, np.int32), empty(MAX_CELLS, np.int32)
    for c in range(MAX_CELLS):
        slot_of[c] = -1
    size = MAX_CELLS * COEFFICIENTS
    return (
        slot_of, occupied, empty(C, np.int32), empty(C, np.float64), empty(size, np.float64), empty(size, np.float64),
        empty(COEFFICIENTS, np.float64), empty(MOST_THRESHOLDS, np.float64), empty(MOST_THRESHOLDS, np.float64),
        empty(MOST_THRESHOLDS, np.float64), empty(MOST_THRESHOLDS, np.float64), empty(MOST_THRESHOLDS, np.float64),
    )  # fmt: skip


@inlined
def _evaluate(sums, log_prob, t, steepness, logs, exponent, product, terms, powers, log_p, records, b):
    """As ``cpu.evaluate``: log p, or finer thresholds, or UNSERVED. The weights w_q (A18) are left in ``product``.

    ``start`` and ``count`` of the record are then those of the weights that are not negligible, and ``product`` begins there.
    """
    level, start, count = np.int64(records[b, LEVEL]), np.int64(records[b, START]), np.int64(records[b, COUNT])
    h = 1.0 / (STEPS << level)
    clear(logs, 0, count)
    _add_function(logs, log_prob, 1.0, t, level, start, count, powers)
    peak, _ = highest(logs, sums, exponent, count)
    for q in range(count):
        exponent[q] -= peak
    _exp_into(exponent, product, count)  # f e^G, in units of its peak
    even, odd, biggest = even_and_odd(product, count)
    complement = records[b, STATUS] == COMPLEMENT
    if records[b, STATUS] == OPEN and t > 0:
        complement = np.log(h * (even + odd)) + peak > ABOUT_HALF
    chosen = product
    if complement:
        _exp_into(logs, terms, count)
        _exp_into(sums, logs, count)
        _times_one_minus_exp(sums, logs, terms, count)
        even, odd, biggest = even_and_odd(terms, count)
        chosen = terms
    total = even + odd
    difference = abs(even - odd) / total if total > 0 else 0.0
    least = NEGLIGIBLE * biggest
    begin, end = 0, count - 1
    while begin < end and chosen[begin] < least:
        begin += 1
    while end > begin and chosen[end] < least:
        end -= 1
    above = peak - np.log(max(biggest, TINY)) if complement else 0.0
    rough = FINER * roughness(sums, exponent, above, steepness, h, count)
    if not (rough <= 1 and difference <= RESOLVED):
        finer = 1
        while rough > 2.0**finer and finer < LEVELS:
            finer += 1
        wider = max(begin - 1, 0)
        records[b, LEVEL], records[b, START] = level + finer, (start + wider) << finer
        records[b, COUNT] = padded(((min(end + 1, count - 1) - wider) << finer) + 1)
        records[b, STATUS] = COMPLEMENT if complement else DIRECT
        if level + finer >= LEVELS or records[b, COUNT] > MOST_THRESHOLDS:
            records[b, STATUS] = UNSERVED
        return
    if complement:  # the gradient is that of e^G, which is nothing below its edge
        log_p[b] = np.log1p(-h * total)
        share = h * np.exp(peak) / (1 - h * total)
        least = NEGLIGIBLE * biggest * np.exp(-peak)
        while begin < end and product[begin] < least:
            begin += 1
    else:
        log_p[b] = np.log(h * total) + peak
        share = 1 / total
    records[b, START], records[b, COUNT], records[b, STATUS] = start + begin, end - begin + 1, DONE
    for q in range(begin, end + 1):
        product[q - begin] = product[q] * share


@jit
def target_rows(
    scores, target, scale, log_cdf, log_prob, slope, lowest, depth, high, least_lead, most_lead, sure_lead, coarsest, guess,
    steepness, ignored, C, log_p, records, grad, first_row, last_row,
):  # fmt: skip
    """Rows first_row … last_row: log p of the target and its gradient in the scores; see ``cpu.forward_and_backward``.

    Args:
        slope: ``slope_by_cell`` of ``flat_tables``. grad: (B · C,), or (0,) if it is not asked for; zeros where not DONE.
    """
    scratch = _scratch(C)
    slot_of, occupied, places, offset, moments, pieces, powers, sums, logs, exponent, product, terms = scratch
    bad, unserved = False, False
    for b in range(first_row, last_row):
        base, y = b * C, target[b]
        records[b, STATUS], log_p[b] = SURE, 0.0
        if len(grad) > 0:
            clear(grad, base, base + C)
        if y == ignored:
            continue
        if y < 0 or y >= C:
            bad = True
            continue
        top, bottom, strange = extremes_but(scores, base, base + C, base + y)
        own = scores[base + y]
        if strange or top == np.inf or own == np.inf or (top == -np.inf and own == -np.inf):
            bad = True
            continue
        inverse = 1.0 / scale[b if len(scale) > 1 else 0]
        t = (own - top) * inverse
        if own == -np.inf:
            log_p[b], records[b, STATUS] = -np.inf, LOST
            continue
        if t >= sure_lead:
            continue
        if not (least_lead <= t < most_lead and inverse < LARGEST_INVERSE):
            records[b, STATUS] = UNSERVED
            unserved = True
            continue
        cells = first_thresholds(t, lowest, depth, high, guess, coarsest, records, b)
        cells = np.int64(min((top - bottom) * inverse / CELL + 1, cells))
        n = _slots(scores, base, C, y, top, inverse, cells, slot_of, occupied, places, offset)
        _deposit(C, places, offset, None, moments, n)
        while records[b, STATUS] > UNSERVED:
            level, start, count = np.int64(records[b, LEVEL]), np.int64(records[b, START]), np.int64(records[b, COUNT])
            _sum_slots(sums, log_cdf, level, start, count, occupied, n, moments)
            _evaluate(sums, log_prob, t, steepness, logs, exponent, product, terms, powers, log_p, records, b)
        if records[b, STATUS] == UNSERVED:
            unserved = True
            continue
        if len(grad) > 0:
            start, count = np.int64(records[b, START]), np.int64(records[b, COUNT])
            _pieces_of(product, slope, level, start, count, occupied, n, pieces)
            _read_off(C, places, offset, pieces, grad, base)
            rest = 0.0
            for j in range(np.uint64(base), np.uint64(base + C)):
                grad[j] *= -inverse
                rest += grad[j]
            grad[base + y] = -rest
    release(scratch)
    return bad, unserved


@inlined
def _integrand(
    scores, base, C, top, inverse, floor, log_cdf, log_prob, lowest, depth, high, coarsest, guess, steepness, slot_of, occupied,
    places, offset, moments, powers, sums, logs, exponent, product,
):  # fmt: skip
    """Thresholds for the integrals of all classes down to ``floor``, as ``every`` takes them, with A_q (A24) in ``product``.

    floor: of the hindmost class, in scales, ≤ 0.

    Returns:
        n, level, start, count. count is 0 if the row is UNSERVED.
    """
    pace = np.int64((floor + FARTHEST) / PACE)
    level, start = coarsest, np.int64(np.floor(lowest[pace] * (STEPS << coarsest)))
    count = min(padded(np.int64(np.ceil((high + max(guess, 0.0)) * (STEPS << level))) - start + 1), MOST_THRESHOLDS)
    cells = min(max(depth[pace], depth[pace + 1], np.int64(np.ceil(-floor / CELL)) + 1), MAX_CELLS)
    n = _slots(scores, base, C, -1, top, inverse, cells, slot_of, occupied, places, offset)
    _deposit(C, places, offset, None, moments, n)
    while True:
        _sum_slots(sums, log_cdf, level, start, count, occupied, n, moments)
        clear(logs, 0, count)
        _add_function(logs, log_prob, 1.0, 0.0, level, start, count, powers)
        best, at = highest(sums, logs, exponent, count)
        end = count - 1
        while end > at and exponent[end] < best - DROP:
            end -= 1
        clear(logs, 0, count)
        _add_function(logs, log_prob, 1.0, floor, level, start, count, powers)
        _add_function(logs, log_cdf, -1.0, floor, level, start, count, powers)  # S includes the hindmost class
        best, at = highest(sums, logs, exponent, count)
        begin = 0
        while begin < at and exponent[begin] < best - DROP:
            begin += 1
        h = 1.0 / (STEPS << level)
        bend = most_bend(sums, exponent, best, at, begin, end, count)
        rough = FINER * min(np.sqrt(bend) / BEND, h * steepness * np.sqrt(max(-sums[at], 1.0)) / NARROW)
        if rough <= 1 or level == LEVELS - 1:
            break
        finer = 1
        while rough > 2.0**finer and level + finer < LEVELS - 1:
            finer += 1
        first, last = max(begin - 1, 0), min(end + 1, count - 1)
        level, start = level + finer, (start + first) << finer
        count = padded(((last - first) << finer) + 1)
        if count > MOST_THRESHOLDS:
            return n, level, start, 0
    if rough > ACCEPTED:
        return n, level, start, 0
    count = end - begin + 1
    for q in range(count):
        exponent[q] = sums[begin + q]
    _exp_into(exponent, product, count)
    for q in range(count):
        product[q] *= h
    return n, level, start + begin, count


@jit
def every_rows(
    scores, scale, log_cdf, log_prob, slope, lowest, depth, high, least, coarsest, guess, steepness, C, log_p, records,
    first_row, last_row,
):  # fmt: skip
    """Rows first_row … last_row: log p of every class.

    Args:
        least: the lowest lead of a class that is followed. log_p: (B · C,), written to. records: the status is written.
        others: as for ``target_rows`` and ``every.forward``.

    Returns:
        Whether a row is bad: NaN, +inf, or nothing but −inf. Whether a row is UNSERVED.
    """
    scratch = _scratch(C)
    slot_of, occupied, places, offset, moments, pieces, powers, sums, logs, exponent, product, _ = scratch
    bad, unserved = False, False
    for b in range(first_row, last_row):
        base = b * C
        top, bottom, strange = extremes_but(scores, base, base + C, -1)
        if strange or not abs(top) < np.inf:
            bad = True
            continue
        inverse = 1.0 / scale[b if len(scale) > 1 else 0]
        floor = (bottom - top) * inverse
        records[b, STATUS] = UNSERVED
        if not (floor >= least and inverse < LARGEST_INVERSE):
            unserved = True
            continue
        n, level, start, count = _integrand(
            scores, base, C, top, inverse, floor, log_cdf, log_prob, lowest, depth, high, coarsest, guess, steepness, slot_of,
            occupied, places, offset, moments, powers, sums, logs, exponent, product,
        )  # fmt: skip
        if count == 0:
            unserved = True
            continue
        _pieces_of(product, slope, level, start, count, occupied, n, pieces)
        _read_off(C, places, offset, pieces, log_p, base)
        leader, smallest, rest = 0, 1.0, 0.0
        for j in range(C):
            if places[j] >= 0:
                smallest = min(log_p[base + j], smallest)
            if log_p[base + j] > log_p[base + leader]:
                leader = j
        if smallest < LEAST_P:
            unserved = True
            continue
        records[b, STATUS] = DONE
        for j in range(C):
            rest += log_p[base + j] if j != leader else 0.0
        for j in range(np.uint64(base), np.uint64(base + C)):
            log_p[j] = np.log(log_p[j])
        log_p[base + leader] = np.log1p(-rest) if rest < 0.5 else log_p[base + leader]  # (N4), (N5)
    release(scratch)
    return bad, unserved


@jit
def every_gradient_rows(
    scores, scale, upstream, log_p, log_cdf, log_prob, slope, lowest, depth, high, coarsest, guess, steepness, C, records, grad,
    first_row, last_row,
):  # fmt: skip
    """Rows first_row … last_row of Σ_k upstream_k log p_k differentiated in the scores (A26); zeros where not DONE.

    The thresholds are found anew: they cost less than the memory in which ``every_rows`` could leave them.
    """
    scratch = _scratch(C)
    slot_of, occupied, places, offset, moments, pieces, powers, sums, logs, exponent, product, terms = scratch
    own = (empty(C, np.float64), empty(MAX_CELLS * COEFFICIENTS, np.float64))
    factor, more_pieces = own
    for b in range(first_row, last_row):
        base = b * C
        if records[b, STATUS] != DONE:
            clear(grad, base, base + C)
            continue
        top, bottom, _ = extremes_but(scores, base, base + C, -1)
        inverse = 1.0 / scale[b if len(scale) > 1 else 0]
        n, level, start, count = _integrand(
            scores, base, C, top, inverse, (bottom - top) * inverse, log_cdf, log_prob, lowest, depth, high, coarsest, guess,
            steepness, slot_of, occupied, places, offset, moments, powers, sums, logs, exponent, product,
        )  # fmt: skip
        for j in range(np.uint64(C)):
            factor[j] = -log_p[np.uint64(base) + j]
        _exp_into(factor, factor, C)
        for j in range(C):
            factor[j] = factor[j] * upstream[base + j] if places[j] >= 0 else 0.0
        length = padded(count)
        _sum_slots(sums, slope, level, start, length, occupied, n, moments)
        _deposit(C, places, offset, factor, moments, n)
        _sum_slots(logs, slope, level, start, length, occupied, n, moments)
        for q in range(count):
            exponent[q], terms[q] = product[q] * sums[q], product[q] * logs[q]
        _pieces_of(exponent, slope, level, start, count, occupied, n, pieces)
        _pieces_of(terms, slope, level, start, count, occupied, n, more_pieces)
        _read_off(C, places, offset, pieces, grad, base)
        for j in range(C):
            grad[base + j] *= factor[j]
        _read_off(C, places, offset, more_pieces, factor, 0)
        for j in range(np.uint64(C)):
            i = np.uint64(base) + j
            grad[i] = (grad[i] - factor[j]) * inverse
    release(own)
    release(scratch)
