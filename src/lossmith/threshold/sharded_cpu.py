"""``cpu`` for classes on several ranks: what one rank adds to the sums at thresholds, what all make of them, and the way back.

The tables, cells and thresholds are those of ``cpu``, and so is the rule for halving the step; but between the sums and what
follows from them stands an exchange. Every rank measures from the strongest rival of all ranks, and does the part that needs
no scores for itself: B rows of a few dozen thresholds.
"""

from __future__ import annotations

import numpy as np

from lossmith.threshold.cells import (
    FINE,
    INFINITY,
    STRIDE,
    WHOLE,
    add_pieces,
    deposit,
    deposit_fine,
    extremes,
    gather_fine,
    jit,
    lattice,
    locate,
    number,
    pieces_of,
    read_off,
    read_off_fine,
    spread_fine,
)
from lossmith.threshold.cpu import (
    BLOCK,
    CELLS,
    COUNT,
    DONE,
    FLUSH,
    HARD,
    LEVEL,
    MANY,
    MAX_CELLS,
    MOST,
    NOTHING,
    RESOLVED,
    START,
    STATUS,
    _exp_into,
    _one_minus_exp_into,
)
from lossmith.threshold.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE

DEPTH, COMPLEMENT, PENDING, COLUMNS = 4, 6, 4, 7  # of ``where``, beside those of ``cpu``; DEPTH stands where that has TOP
# CELLS: how many cells this rank's own classes fill; DEPTH: how many count. PENDING: a status, of rows that need sums


@jit
def survey(bits, place, top, state, first_row, last_row):
    """The highest key of the rivals of each row, as float32, and whether the row holds NaN (2), +inf (1) or neither (0).

    bits: (B, C) int32 of the float32 scores; place: (B,) int64 of the target, −1 if it is none of these, −2 for a row to skip.
    """
    C = bits.shape[1]
    scratch = np.empty(1, np.int32)
    for b in range(first_row, last_row):
        y = place[b]
        top[b], state[b] = -np.inf, 0
        if y == -2:
            continue
        high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
        for side in range(2):
            start, stop = (0, y if y >= 0 else C) if side == 0 else (y + 1 if y >= 0 else C, C)
            if start < stop:
                up, down = extremes(bits[b], start, stop)
                high, low = max(high, up), min(low, down)
        if high > INFINITY or low < np.int32(-0x7F800001):
            state[b] = 2
        elif high == INFINITY:
            state[b] = 1
        elif high > np.int32(-0x80000000):
            top[b] = number(high, scratch)


@jit
def plan(lead, inverse, classes, lowest, depth, high, hopeless, guess, where):
    """The first thresholds of each pending row, from the target's lead over its strongest rival, in scales."""
    for b in range(len(lead)):
        if where[b, STATUS] != PENDING:
            continue
        t = lead[b]
        if t < hopeless or not inverse[b] < 1e30:
            where[b, STATUS] = HARD
            continue
        pace = int((t + FARTHEST) / PACE)
        bottom = lowest[pace]
        reach = max(t, guess, 0.0) + high - bottom
        level = 0 if reach > 14 else (1 if classes <= 16 else 2)
        where[b, LEVEL], where[b, START] = level, int(np.floor(bottom * (2 << level)))
        where[b, COUNT] = min(int(np.ceil(reach * (2 << level))) + 2, MOST)
        where[b, DEPTH] = min(max(depth[pace], depth[pace + 1]), MAX_CELLS)


@jit
def collect(scores, bits, place, top, inverse, rows, where, moments, first, last):
    """The moments of this rank's rivals of rows[first … last], (rows, cells · STRIDE), zeros before."""
    C = scores.shape[1]
    many = C >= MANY
    fine = np.zeros((MAX_CELLS * FINE + 1) * 4 if many else 1, np.float32)
    cell, within = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    one_key = np.empty(1, np.int32)
    for k in range(first, last):
        b = rows[k]
        row, y, cells, out = scores[b], place[b], where[b, DEPTH], moments[k]
        per_cell = np.float32(inverse[b] / CELL * (FINE if many else 1))
        cut = float(top[b]) - cells * CELL / inverse[b]
        since = 0
        for side in range(2):
            begin, stop = (0, y if y >= 0 else C) if side == 0 else (y + 1 if y >= 0 else C, C)
            for at in range(begin, stop, BLOCK):
                end = min(at + BLOCK, stop)
                if many:
                    up, _ = extremes(bits[b], at, end)
                    if float(number(up, one_key)) <= cut:
                        continue
                    locate(row, at, end, top[b], per_cell, cells * FINE, cell, within)
                    deposit_fine(end - at, cell, within, fine)
                    since += end - at
                    if since >= FLUSH:
                        gather_fine(fine, cells, out)
                        since = 0
                else:
                    locate(row, at, end, top[b], per_cell, cells, cell, within)
                    deposit(end - at, cell, within, out)
        if many:
            gather_fine(fine, cells, out)
        used = 0
        for c in range(cells):
            if out[c * STRIDE] > 0:
                used = c + 1
        where[b, CELLS] = used


@jit
def add_up(moments, waiting, log_cdf, rows, where, sums, first, last):
    """Σ_j log F(u − x_j) over this rank's rivals at thresholds; ``waiting``: places in ``rows``."""
    for i in range(first, last):
        k = waiting[i]
        b, out = rows[k], sums[i]
        level, start, count = where[b, LEVEL], where[b, START], where[b, COUNT]
        out[:] = 0
        width, flat = log_cdf[level].shape[2], log_cdf[level].reshape(-1)
        for c in range(where[b, CELLS]):
            if moments[k, c * STRIDE] > 0:
                phase, zero = lattice(c, level)
                at = phase * MOMENTS * width + zero + start
                add_pieces(out, flat, width, at, count, moments[k, c * STRIDE : c * STRIDE + STRIDE])


@jit
def conclude(sums, waiting, lead, log_prob, rows, where, weights, log_p, opening):
    """From the sums of all ranks: log p and the thresholds' weights of rows that are resolved, finer thresholds of others.

    As in ``cpu.forward``; ``opening``: these are the rows' first thresholds, which decide between p and 1 − p.
    """
    most = weights.shape[1]
    logs = np.empty(MOST, np.float32)
    exponent, product, terms, scratch = np.empty(MOST), np.empty(MOST), np.empty(MOST), np.empty(MOST)
    powers = np.empty(MOMENTS, np.float32)
    for i in range(len(waiting)):
        b = rows[waiting[i]]
        G, t = sums[i], lead[b]
        level, start, count = where[b, LEVEL], where[b, START], where[b, COUNT]
        h = 0.5 ** (1 + level)
        own_cell = int(np.floor(-t / CELL))
        powers[0] = 1
        for m in range(1, MOMENTS):
            powers[m] = powers[m - 1] * np.float32(2 * (own_cell + t / CELL) + 1)
        phase, zero = lattice(own_cell, level)
        width = log_prob[level].shape[2]
        logs[:count] = 0
        add_pieces(logs, log_prob[level].reshape(-1), width, phase * MOMENTS * width + zero + start, count, powers)
        peak = -np.inf
        for q in range(count):
            exponent[q] = float(logs[q]) + float(G[q])
            peak = max(peak, exponent[q])
        for q in range(count):
            exponent[q] -= peak
        _exp_into(exponent, product, scratch, count)
        if opening:
            where[b, COMPLEMENT] = 1 if t > 0 and np.log(h * product[:count].sum()) + peak > -0.6931 else 0
        complement = where[b, COMPLEMENT] == 1
        if complement:
            for q in range(count):
                exponent[q], terms[q] = float(G[q]), float(logs[q])
            _exp_into(exponent, exponent, scratch, count)
            _exp_into(terms, terms, scratch, count)
            _one_minus_exp_into(G, exponent, terms, count)
        else:
            terms[:count] = product[:count]
        even, odd, biggest = 0.0, 0.0, 0.0
        for q in range(count):
            if q % 2:
                odd += terms[q]
            else:
                even += terms[q]
            biggest = max(biggest, terms[q])
        whole = even + odd
        difference = abs(even - odd) / whole if whole > 0 else 0.0
        begin, end = 0, count - 1
        while begin < end and terms[begin] < NOTHING * biggest:
            begin += 1
        while end > begin and terms[end] < NOTHING * biggest:
            end -= 1
        if difference > RESOLVED:
            finer = min(1 if difference < 0.02 else 2, LEVELS - 1 - level)
            if finer == 0:
                where[b, STATUS] = HARD
                continue
            where[b, LEVEL], where[b, START] = level + finer, (start + max(begin - 1, 0)) << finer
            where[b, COUNT] = min(((min(end + 1, count - 1) - max(begin - 1, 0)) << finer) + 1, MOST)
            continue
        where[b, STATUS] = DONE if end - begin < most else HARD
        if where[b, STATUS] == HARD:
            continue
        if complement:
            log_p[b] = np.log1p(-h * whole)
            share = h * np.exp(peak) / (1 - h * whole)
        else:
            log_p[b] = np.log(h * whole) + peak
            share = 1 / whole
        for q in range(begin, end + 1):
            weights[b, q - begin] = product[q] * share
        where[b, START], where[b, COUNT] = start + begin, end - begin + 1


@jit
def backward(scores, bits, place, top, inverse, slope, upstream, weights, where, grad, rest, first_row, last_row):
    """The gradient in this rank's rivals, (B, C) float32, and its sum in each row, (B,) float64; zeros where not DONE."""
    C = scores.shape[1]
    many = C >= MANY
    pieces = np.zeros((MOMENTS, MAX_CELLS + WHOLE), np.float32)
    spots, share = np.zeros(8, np.int64), np.zeros(8, np.float32)
    fine = np.zeros((MAX_CELLS * FINE + 1) * 4 if many else 1, np.float32)
    cell, within = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    one_key = np.empty(1, np.int32)
    for b in range(first_row, last_row):
        row, out, y = scores[b], grad[b], place[b]
        rest[b] = 0
        if where[b, STATUS] != DONE or upstream[b] == 0:
            out[:] = 0
            continue
        level, start, count, cells = where[b, LEVEL], where[b, START], where[b, COUNT], where[b, CELLS]
        factor = np.float32(-float(upstream[b]) * inverse[b])
        per_cell = np.float32(inverse[b] / CELL * (FINE if many else 1))
        pieces_of(weights[b], slope[level], level, start, count, factor, cells, pieces, spots, share)
        pieces[:, cells] = 0
        if many:
            spread_fine(pieces, cells, fine)
        cut = float(top[b]) - cells * CELL / inverse[b]
        total = 0.0
        for side in range(2):
            begin, stop = (0, y if y >= 0 else C) if side == 0 else (y + 1 if y >= 0 else C, C)
            for at in range(begin, stop, BLOCK):
                end = min(at + BLOCK, stop)
                if many:
                    up, _ = extremes(bits[b], at, end)
                    if float(number(up, one_key)) <= cut:
                        out[at:end] = 0
                        continue
                    locate(row, at, end, top[b], per_cell, cells * FINE, cell, within)
                    total += read_off_fine(out, at, end - at, cell, within, fine)
                else:
                    locate(row, at, end, top[b], per_cell, cells, cell, within)
                    total += read_off(out, at, end - at, cell, within, pieces)
        if y >= 0:
            out[y] = 0
        rest[b] = total
