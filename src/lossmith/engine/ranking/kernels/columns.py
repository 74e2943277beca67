"""log AUC and log average precision of every column of scores, with their gradients in one pass, as loops for numba.

docs/how/ranking.md, section 6, has the equations. Thresholds are u_q = q h. Scores fall into cells of width WIDTH, in scales.
Over a cell, the survival function S, the density f and its derivative are polynomials of the place in the cell. So the samples
of a cell are COEFFICIENTS moments, however many they are.

Words that the arguments share; all numbers are float64:

* z: (n · C,), the scores, a row after the other. state: (n · C,) uint8: 0 does not count, 1 negative, 2 positive.
* ratio: int64, thresholds a cell, WIDTH / h. first: int64, the lowest threshold seen from a cell, counted from the cell's lower
  end, at which S is not 1. span: int64, thresholds from there on to where S and f are 0, a multiple of WHOLE.
* survival, density, slope: (COEFFICIENTS · span,), coefficients of S, f and f' at these thresholds.
* n, cells: int64, samples of the column that count, and cells that hold some. x: (n,), their places in scales.
* slot: (n,) int64, and cell: (n,) int64: the cell of each sample in the order of first use, and the cells in that order.
* offset: (n,), of each sample in its cell, in [−1, 1].
* size: int64, thresholds of the column. start: int64, the first of them.
* negatives, positives: (size,), sums over samples at the thresholds.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.ranking.kernels.record import ABSENT, COEFFICIENTS, MOST_THRESHOLDS, SERVED, UNSERVED, WIDTH
from lossmith.engine.runtime.arrays import empty, release
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.engine.runtime.simd import WHOLE, add_multiples

LEAST_LOST = 1e-36  # 1 − AUC below which it counts as 0
LEAST_WON = 1e-9  # an AUC below which the digits of 1 − (1 − AUC) are too few


@jit
def _clear(x, first, last):
    for i in range(np.uint64(first), np.uint64(last)):
        x[i] = 0.0


@jit
def _add_cell(out, at, table, span, moments, k):
    """Add to out[at …] the function of a cell's samples at the thresholds of its span; their moments are moments[k …]."""
    m = moments
    factors = (m[k], m[k + 1], m[k + 2], m[k + 3], m[k + 4], m[k + 5], m[k + 6], m[k + 7], m[k + 8], m[k + 9])
    for q in range(0, span, WHOLE):
        i, w = q, span
        places = (i, i + w, i + 2 * w, i + 3 * w, i + 4 * w, i + 5 * w, i + 6 * w, i + 7 * w, i + 8 * w, i + 9 * w)
        add_multiples(out, at + q, table, places, factors)


@jit
def _gather(z, state, C, column, inverse, x, sign, place):
    """Write the scores of the samples that count, in scales from the first positive's, their states, and their rows.

    Returns:
        How many count, how many of them are positive, and whether all are finite.
    """
    n, positives, finite, origin = 0, 0, True, 0.0
    for i in range(len(place)):
        if state[i * C + column] == 2:
            origin = z[i * C + column]
            break
    for i in range(len(place)):
        kind = state[i * C + column]
        if kind > 0:
            value = (z[i * C + column] - origin) * inverse
            finite &= value - value == 0
            x[n], sign[n], place[n] = value, kind, i
            n += 1
            positives += kind == 2
    return n, positives, finite


@inlined
def _cells(n, x, sign, ratio, first, span, slot_of, cell, slot, offset, moments):
    """Put the samples into cells, and write the moments of the negatives and the positives of each.

    Returns:
        cells; start and size: the thresholds at which a positive's density counts, and a span more on either side, size 0 if
        they are too many; how many negatives lie above all these. Samples beyond have no cell: slot −1.
    """
    low, high = np.inf, -np.inf
    for i in range(n):
        if sign[i] == 2:
            low, high = min(low, x[i]), max(high, x[i])
    if not high - low < MOST_THRESHOLDS * WIDTH / ratio:
        return 0, 0, 0, 0
    lowest, highest = np.int64(np.floor(low / WIDTH)), np.int64(np.floor(high / WIDTH))
    start = lowest * ratio + first - span
    size = (highest - lowest) * ratio + 3 * span
    if size > MOST_THRESHOLDS:
        return 0, 0, 0, 0
    bottom = np.int64(np.floor((start - first) / ratio)) + 1  # cells whose spans lie in the thresholds
    top = np.int64(np.floor((start + size - span - first) / ratio))
    for c in range(top - bottom + 1):
        slot_of[c] = -1
    cells, above = 0, 0
    for i in range(n):
        c = np.floor(x[i] / WIDTH)
        if c > top or c < bottom:
            slot[i] = -1
            above += c > top  # no positive is
            continue
        place = np.int64(c) - bottom
        k = slot_of[place]
        if k < 0:
            k = cells
            slot_of[place], cell[k] = k, np.int64(c)
            for m in range(2 * COEFFICIENTS):
                moments[2 * k * COEFFICIENTS + m] = 0.0
            cells += 1
        slot[i] = k
        s = 2 * (x[i] / WIDTH - c) - 1
        offset[i] = s
        at, power = (2 * k + (1 if sign[i] == 2 else 0)) * COEFFICIENTS, 1.0
        for m in range(COEFFICIENTS):
            moments[at + m] += power
            power *= s
    return cells, start, size, above


@jit
def _sum_cells(out, table, counted, kind, cells, cell, moments, ratio, first, span, start, size, beyond):
    """out = Σ over samples of one kind (0 negative, 1 positive) of a function at the thresholds.

    counted: whether the function is 1 below its span, as S is; beyond: then, how many samples lie above all cells.
    """
    _clear(out, 0, size)
    if counted:
        out[size - 1] = beyond
        for k in range(cells):
            at = cell[k] * ratio + first - start - 1
            if at >= 0:
                out[at] += moments[(2 * k + kind) * COEFFICIENTS]
        total = 0.0
        for q in range(size - 1, -1, -1):
            total += out[q]
            out[q] = total
    for k in range(cells):
        if moments[(2 * k + kind) * COEFFICIENTS] > 0:
            at = cell[k] * ratio + first - start
            _add_cell(out, at, table, span, moments, (2 * k + kind) * COEFFICIENTS)


@jit
def _pieces(weights, table, kind, cells, cell, moments, ratio, first, span, start, pieces):
    """Σ_q weight_q function_m(u_q − x_c) of every cell that has samples of the kind."""
    for k in range(cells):
        if moments[(2 * k + kind) * COEFFICIENTS] > 0:
            at = np.uint64(cell[k] * ratio + first - start)
            for m in range(COEFFICIENTS):
                total, row = 0.0, np.uint64(m * span)
                for q in range(np.uint64(span)):
                    total += weights[at + q] * table[row + q]
                pieces[(2 * k + kind) * COEFFICIENTS + m] = total


@jit
def _read_off(i, kind, slot, offset, pieces):
    """The polynomial of sample i's cell at its offset; 0 without a cell."""
    if slot[i] < 0:
        return 0.0
    at, total = (2 * slot[i] + kind) * COEFFICIENTS, 0.0
    for m in range(COEFFICIENTS - 1, -1, -1):
        total = total * offset[i] + pieces[at + m]
    return total


@inlined
def _auc(
    n, count, sign, cells, cell, slot, offset, moments, ratio, first, span, start, size, above, survival, density, negatives,
    positives, weights, pieces, by_x,
):  # fmt: skip
    """log AUC and its derivatives in x (R22), (R23). Returns the value and the status."""
    h = WIDTH / ratio
    pairs = float(count) * float(n - count)
    _sum_cells(negatives, survival, True, 0, cells, cell, moments, ratio, first, span, start, size, float(above))
    _sum_cells(positives, density, False, 1, cells, cell, moments, ratio, first, span, start, size, 0.0)
    lost = 0.0
    for q in range(np.uint64(size)):
        lost += positives[q] * negatives[q]
    lost *= h / pairs
    if lost < LEAST_LOST:
        return 0.0, SERVED
    auc = 1 - lost
    if auc < LEAST_WON:
        return 0.0, UNSERVED
    factor = h / (pairs * auc)
    _sum_cells(weights, density, False, 0, cells, cell, moments, ratio, first, span, start, size, 0.0)
    _pieces(weights, density, 1, cells, cell, moments, ratio, first, span, start, pieces)
    _pieces(positives, density, 0, cells, cell, moments, ratio, first, span, start, pieces)
    for i in range(n):
        by_x[i] = (
            factor * _read_off(i, 1, slot, offset, pieces) if sign[i] == 2 else -factor * _read_off(i, 0, slot, offset, pieces)
        )
    return np.log1p(-lost), SERVED


@inlined
def _average_precision(
    n, count, sign, cells, cell, slot, offset, moments, ratio, first, span, start, size, above, survival, density, slope,
    negatives, positives, by_negative, by_positive, own, pieces, powers, by_x,
):  # fmt: skip
    """log AP and its derivatives in x (R24)–(R26). own: (3 · span,) scratch. Returns the value and the status."""
    h = WIDTH / ratio
    _sum_cells(negatives, survival, True, 0, cells, cell, moments, ratio, first, span, start, size, float(above))
    _sum_cells(positives, survival, True, 1, cells, cell, moments, ratio, first, span, start, size, 0.0)
    _clear(by_negative, 0, size)
    _clear(by_positive, 0, size)
    lost = 0.0
    for i in range(n):
        by_x[i] = 0.0
        if sign[i] == 2:
            power = 1.0
            for m in range(COEFFICIENTS):
                powers[m] = power
                power *= offset[i]
            _clear(own, 0, 3 * span)
            _add_cell(own, 0, survival, span, powers, 0)
            _add_cell(own, span, density, span, powers, 0)
            _add_cell(own, 2 * span, slope, span, powers, 0)
            at, two, three = np.uint64(cell[slot[i]] * ratio + first - start), np.uint64(span), np.uint64(2 * span)
            direct = 0.0
            for q in range(np.uint64(span)):
                higher, lower, f = 1 + positives[at + q] - own[q], negatives[at + q], own[two + q]
                inverse = 1 / (higher + lower)
                wrong = lower * inverse
                lost += f * wrong
                rate = f * inverse * inverse
                by_negative[at + q] -= rate * higher
                by_positive[at + q] += rate * lower
                direct += own[three + q] * wrong - f * rate * lower
            by_x[i] = direct
    lost *= h / count
    factor = h / (count * (1 - lost))
    _pieces(by_negative, density, 0, cells, cell, moments, ratio, first, span, start, pieces)
    _pieces(by_positive, density, 1, cells, cell, moments, ratio, first, span, start, pieces)
    for i in range(n):
        by_x[i] = factor * (by_x[i] + _read_off(i, 1 if sign[i] == 2 else 0, slot, offset, pieces))
    return np.log1p(-lost), SERVED


@jit
def columns(
    z, state, n, C, inverse, precision, ratio, first, span, survival, density, slope, log_m, status, grad, by_scale,
    first_column, last_column,
):  # fmt: skip
    """Columns first_column … last_column: log AUC, or log AP if ``precision``, with derivatives.

    Args:
        n: int64, rows. inverse: 1/σ.
        log_m: (C,), written to; 0 for a column without positives or without negatives.
        status: (C,) int32, written to: SERVED, ABSENT for such a column, UNSERVED.
        grad: (n · C,), the derivative of each column's log metric in its scores, written to where SERVED.
        by_scale: (C,), the same in σ, times σ.

    Returns:
        Whether a column is UNSERVED: scores not finite, positives spread too far, or an AUC that is nearly 0.
    """
    most = MOST_THRESHOLDS + span
    numbers = 2 * min(n, most) * COEFFICIENTS  # of all cells that may hold samples
    scratch = (
        empty(n, np.float64), empty(n, np.uint8), empty(n, np.int64), empty(most, np.int32), empty(n, np.int64),
        empty(n, np.int64), empty(n, np.float64), empty(numbers, np.float64), empty(numbers, np.float64),
        empty(most, np.float64), empty(most, np.float64), empty(most, np.float64),
        empty(most, np.float64), empty(3 * span, np.float64), empty(COEFFICIENTS, np.float64), empty(n, np.float64),
    )  # fmt: skip
    (
        x, sign, place, slot_of, cell, slot, offset, moments, pieces, negatives, positives, by_negative, by_positive, own,
        powers, by_x,
    ) = scratch  # fmt: skip
    unserved = False
    for column in range(first_column, last_column):
        log_m[column], by_scale[column], status[column] = 0.0, 0.0, ABSENT
        counted, count, finite = _gather(z, state, C, column, inverse, x, sign, place)
        if count == 0 or count == counted:
            continue
        status[column] = UNSERVED
        cells, start, size, above = 0, 0, 0, 0
        if finite:
            cells, start, size, above = _cells(counted, x, sign, ratio, first, span, slot_of, cell, slot, offset, moments)
        if size == 0:
            unserved = True
            continue
        if precision:
            value, found = _average_precision(
                counted, count, sign, cells, cell, slot, offset, moments, ratio, first, span, start, size, above, survival,
                density, slope, negatives, positives, by_negative, by_positive, own, pieces, powers, by_x,
            )  # fmt: skip
        else:
            for i in range(counted):
                by_x[i] = 0.0
            value, found = _auc(
                counted, count, sign, cells, cell, slot, offset, moments, ratio, first, span, start, size, above, survival,
                density, negatives, positives, by_negative, pieces, by_x,
            )  # fmt: skip
        log_m[column], status[column] = value, found
        unserved |= found == UNSERVED
        total = 0.0
        for i in range(counted):
            grad[place[i] * C + column] = by_x[i] * inverse
            total -= by_x[i] * x[i]
        by_scale[column] = total
    release(scratch)
    return unserved
