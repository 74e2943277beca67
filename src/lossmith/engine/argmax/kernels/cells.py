"""Classes in cells, as vector loops for numba: their moments, what these give at a threshold, and the way back.

docs/how/argmax.md derives the sums (A…); (N…) are in docs/how/numbers.md. Words that the arguments share:

* bits: the float32 scores as int32. first, last: classes first … last − 1, places in the flat scores.
* cell_of: (n,) int32, the cell of each class, counted downwards from the strongest rival. Classes from ``limit`` cells on share
  the cell ``limit``, which counts nowhere.
* offset: (n,) float32, the place s of each class within its cell, from 1 at the upper end to −1 at the lower.
* moments: Σ_j s_j^m of each cell for m < MOMENTS, float32; moment m of cell c at c + m · stride. A class may be a cell.
* pieces: coefficients of s^m for each cell, float32, laid out as the moments are.
* fine: the same for fine cells, FINE in a cell, with three coefficients each. Fine cell k of cell c is at k · stride + c, and
  its coefficients are FINE · stride apart.
* level, start, count: thresholds start … start + count − 1, in multiples of the level's step (``tables.step``), measured from
  the strongest rival.
* table: the pieces of one function of the noise for all levels (``tables.flat_tables``), by cells or by thresholds.

Indices are unsigned where it matters: numba lets others count from the end, which keeps a loop from becoming vector
instructions.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST, MOMENTS, PHASES, SQUARE_LEVEL, STEPS, WIDTH
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.engine.runtime.simd import WHOLE, add_multiples, float_of

FINE_BITS = 3
FINE = 1 << FINE_BITS  # fine cells in a cell

INFINITY = np.int32(0x7F800000)
MINUS_INFINITY = np.int32(-0x7F800001)  # as an ordered key
_SIGN = np.int32(0x7FFFFFFF)


@jit
def key_of(bits):
    """An int32 with the order of the float32 whose bits are given; NaN lies outside the infinities.

    For numbers ≥ 0 the key is the bits. A maximum of integers becomes vector instructions, one of floats does not.
    """
    return np.int32(bits ^ ((bits >> np.int32(31)) & _SIGN))


@jit
def number(key):
    """The float32 of a key."""
    return float_of(key_of(key))


@jit
def extremes(bits, first, last):
    """Highest and lowest key of the classes first … last."""
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for j in range(np.uint64(first), np.uint64(last)):
        key = key_of(bits[j])
        high = key if key > high else high
        low = key if key < low else low
    return high, low


@jit
def extremes_without(bits, first, last, own):
    """As ``extremes``, without the class at ``own``, a place in the flat scores."""
    if not first <= own < last:
        return extremes(bits, first, last)
    high, low = extremes(bits, first, own)
    up, down = extremes(bits, own + 1, last)
    return max(high, up), min(low, down)


@jit
def padded(count):
    """``count`` rounded up to a multiple of WHOLE, since loops run over whole vectors."""
    return (count + (WHOLE - 1)) // WHOLE * WHOLE


@jit
def clear(out, first, last):
    """Write zeros to out[first … last]; a slice would cost more than the zeros do."""
    for j in range(np.uint64(first), np.uint64(last)):
        out[j] = np.float32(0)


@jit
def sum_of(x, first, last):
    """Σ x[first … last] in float64 (N20)."""
    total = 0.0
    for j in range(np.uint64(first), np.uint64(last)):
        total += float(x[j])
    return total


@jit
def locate(scores, first, last, top, per_cell, limit, cell_of, offset):
    """Write cell and offset of the classes first … last.

    Args:
        scores: (n,) float32. top: float32, the score of the strongest rival.
        per_cell: float32, cells a unit of the scores.
        limit: cells that count.
        cell_of, offset: written to, from place 0 on.
    """
    last_cell = np.float32(limit)
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(last - first)):
        y = min((top - scores[start + j]) * per_cell, last_cell)
        c = np.int32(y)
        cell_of[j] = c
        offset[j] = np.float32(2) * (np.float32(c) - y) + np.float32(1)


@jit
def interleave(count, cell_of, limit, stride):
    """From fine cells counted downwards to places in ``fine``: first fine cells of all cells, then second ones, and so on.

    ``limit`` is in fine cells. Classes at the limit, which may be nearly all, take the fine cells there in turn: sums in one
    place would wait for each other.
    """
    step, last = np.int32(stride), np.int32(limit)
    for j in range(np.uint64(0), np.uint64(count)):
        c = cell_of[j]
        c += np.int32(j & np.uint64(FINE - 1)) if c == last else np.int32(0)
        cell_of[j] = (c & np.int32(FINE - 1)) * step + (c >> np.int32(FINE_BITS))


@jit
def deposit(count, cell_of, offset, moments, stride):
    """Add the moments of ``count`` classes to their cells."""
    w = np.uint64(stride)
    for j in range(np.uint64(0), np.uint64(count)):
        s = offset[j]
        s2 = s * s
        at = np.uint64(cell_of[j])
        moments[at] += np.float32(1)
        at += w
        moments[at] += s
        at += w
        moments[at] += s2
        at += w
        moments[at] += s2 * s
        at += w
        moments[at] += s2 * s2
        at += w
        moments[at] += s2 * s2 * s


@jit
def deposit_each(count, offset, moments, stride):
    """Moments of ``count`` classes, each as a cell of its own."""
    w = np.uint64(stride)
    for j in range(np.uint64(0), np.uint64(count)):
        s = offset[j]
        s2 = s * s
        moments[j] = np.float32(1)
        moments[j + w] = s
        moments[j + w + w] = s2
        moments[j + w + w + w] = s2 * s
        moments[j + w + w + w + w] = s2 * s2
        moments[j + w + w + w + w + w] = s2 * s2 * s


@jit
def deposit_fine(count, cell_of, offset, fine, stride):
    """As ``deposit`` for fine cells: three moments."""
    w = np.uint64(FINE * stride)
    for j in range(np.uint64(0), np.uint64(count)):
        s = offset[j]
        at = np.uint64(cell_of[j])
        fine[at] += np.float32(1)
        at += w
        fine[at] += s
        at += w
        fine[at] += s * s


@jit
def gather_fine(fine, moments, stride):
    """Add the moments of fine cells to those of their cells, and empty the fine cells (A16), (A17)."""
    w = np.uint64(stride)
    plane = np.uint64(FINE) * w
    b = np.float32(1 / FINE)
    for k in range(FINE):
        a = np.float32(1) - np.float32(2 * k + 1) * b  # the fine cell's centre
        a2, at = a * a, np.uint64(k) * w
        for c in range(np.uint64(0), w):
            i = at + c
            n, s1, s2 = fine[i], b * fine[i + plane], b * b * fine[i + plane + plane]
            s3, s4 = b * b * np.float32(0.75) * s1, b * b * (s2 - n * (b * b * np.float32(0.125)))
            moments[c] += n
            moments[c + w] += a * n + s1
            moments[c + w + w] += a2 * n + np.float32(2) * a * s1 + s2
            moments[c + w + w + w] += a2 * a * n + np.float32(3) * (a2 * s1 + a * s2) + s3
            i = c + w + w + w + w
            moments[i] += a2 * a2 * n + np.float32(4) * (a2 * a * s1 + a * s3) + np.float32(6) * a2 * s2 + s4
            moments[i + w] += a * (a2 * a2 * n + np.float32(5) * (a2 * a * s1 + s4) + np.float32(10) * (a2 * s2 + a * s3))
    clear(fine, 0, 3 * FINE * stride)


@jit
def read_off(out, first, count, cell_of, offset, pieces, stride):
    """Write to out[first …] the polynomial of each class's cell at its offset; returns the sum, float64."""
    w = np.uint64(stride)
    total = np.float32(0)
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        s = offset[j]
        at = np.uint64(cell_of[j])
        i = at + w + w + w
        high = (pieces[i + w + w] * s + pieces[i + w]) * s + pieces[i]
        g = ((high * s + pieces[at + w + w]) * s + pieces[at + w]) * s + pieces[at]
        out[start + j] = g
        total += g
    return float(total)


@jit
def read_off_fine(out, first, count, cell_of, offset, fine, stride):
    """As ``read_off`` for fine cells: three coefficients."""
    w = np.uint64(FINE * stride)
    total = np.float32(0)
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        s = offset[j]
        at = np.uint64(cell_of[j])
        g = (fine[at + w + w] * s + fine[at + w]) * s + fine[at]
        out[start + j] = g
        total += g
    return float(total)


@jit
def spread_fine(pieces, fine, stride):
    """Write the coefficients of fine cells, from those of their cells (A16)."""
    w = np.uint64(stride)
    plane = np.uint64(FINE) * w
    b = np.float32(1 / FINE)
    for k in range(FINE):
        a, at = np.float32(1) - np.float32(2 * k + 1) * b, np.uint64(k) * w
        for c in range(np.uint64(0), w):
            i = c + w + w
            p0, p1, p2, p3, p4, p5 = (
                pieces[c],
                pieces[c + w],
                pieces[i],
                pieces[i + w],
                pieces[i + w + w],
                pieces[i + w + w + w],
            )
            cubic = b * b * b * (p3 + a * (np.float32(4) * p4 + a * np.float32(10) * p5))
            quartic = b * b * b * b * (p4 + np.float32(5) * a * p5)
            i = at + c
            fine[i] = p0 + a * (p1 + a * (p2 + a * (p3 + a * (p4 + a * p5)))) - np.float32(0.125) * quartic
            slope = p1 + a * (np.float32(2) * p2 + a * (np.float32(3) * p3 + a * (np.float32(4) * p4 + a * np.float32(5) * p5)))
            fine[i + plane] = b * slope + np.float32(0.75) * cubic
            bend = p2 + a * (np.float32(3) * p3 + a * (np.float32(6) * p4 + a * np.float32(10) * p5))
            fine[i + plane + plane] = b * b * bend + quartic


# Places in the tables of one noise, which lie one after the other in a flat array, level by level. Below SQUARE_LEVEL there are
# PHASES >> level cells from one threshold to the next. From there on there are 1 << (level − SQUARE_LEVEL) thresholds a cell.


@jit
def _level_offset(level, moments):
    """Place of the first entry of a level. A level below SQUARE_LEVEL has as many entries as that level."""
    return moments * WIDTH * (level if level < SQUARE_LEVEL else (1 << (level - SQUARE_LEVEL)) + SQUARE_LEVEL - 1)


@jit
def by_cell(cell, level, moments=MOMENTS):
    """Place, in a table ordered by cells with so many moments, of the threshold 0 seen from a cell."""
    if level < SQUARE_LEVEL:
        phases = PHASES >> level
        phase = cell % phases
        return (
            _level_offset(level, moments)
            + phase * moments * row_length(level)
            + (cell - phase) // phases
            + np.int64(FARTHEST) * (STEPS << level)
        )
    return _level_offset(level, moments) + cell * (1 << (level - SQUARE_LEVEL)) + np.int64(FARTHEST) * (STEPS << level)


@jit
def row_length(level):
    """Entries of one moment in a table ordered by cells: thresholds of the level in the range of the tables."""
    return (WIDTH >> SQUARE_LEVEL) << level


@jit
def by_threshold(q, level):
    """Place, in a table ordered by thresholds, of the cell 0 seen from threshold q."""
    if level < SQUARE_LEVEL:
        return _level_offset(level, MOMENTS) + q * (PHASES >> level) + np.int64(FARTHEST / CELL)
    phases = 1 << (level - SQUARE_LEVEL)
    return _level_offset(level, MOMENTS) + (q % phases) * MOMENTS * WIDTH + q // phases + np.int64(FARTHEST / CELL)


@jit
def add_pieces(out, table, width, at, count, moments, c, stride):
    """out_q += Σ_m moment_m · table_m(at + q), for the moments of cell c and q < count; ``width``: entries of one moment."""
    m, p = moments, stride
    factors = (m[c], m[c + p], m[c + 2 * p], m[c + 3 * p], m[c + 4 * p], m[c + 5 * p])
    for q in range(0, count, WHOLE):
        i, w = at + q, width
        add_multiples(out, q, table, (i, i + w, i + 2 * w, i + 3 * w, i + 4 * w, i + 5 * w), factors)


@inlined
def add_function(out, table, sign, lead, level, start, count, powers):
    """out += sign · function(u − lead) at the thresholds.

    Args:
        out: (≥ padded(count),) float32, in the unit of the table.
        table: float32, the function's pieces, ordered by cells.
        sign: float32, 1 or −1. lead: float64, in scales over the strongest rival.
        powers: (MOMENTS,) float32, scratch: sign · s^m, with s the place of the lead in its cell.
    """
    cell = np.int32(np.floor(-lead / CELL))
    powers[0] = sign
    for m in range(1, MOMENTS):
        powers[m] = powers[m - 1] * np.float32(2 * (cell + lead / CELL) + 1)
    add_pieces(out, table, row_length(level), by_cell(cell, level) + start, count, powers, np.int32(0), np.int64(1))


@jit
def add_two_pieces(out, table, width, at, second_at, count, moments, c, d, stride):
    """As ``add_pieces``, for the cells c and d, whose places in the table are ``at`` and ``second_at``."""
    m, p = moments, stride
    factors = (
        m[c], m[c + p], m[c + 2 * p], m[c + 3 * p], m[c + 4 * p], m[c + 5 * p],
        m[d], m[d + p], m[d + 2 * p], m[d + 3 * p], m[d + 4 * p], m[d + 5 * p],
    )  # fmt: skip
    for q in range(0, count, WHOLE):
        i, j, w = at + q, second_at + q, width
        places = (
            i, i + w, i + 2 * w, i + 3 * w, i + 4 * w, i + 5 * w,
            j, j + w, j + 2 * w, j + 3 * w, j + 4 * w, j + 5 * w,
        )  # fmt: skip
        add_multiples(out, q, table, places, factors)


@jit
def sum_pieces(out, table, level, start, count, occupied, slots, n, moments, stride):
    """out_q = Σ_c Σ_m moment_m of c · table_m(u_q − x_c), over n cells (A13).

    Args:
        out: (≥ padded(count),) float32, written to.
        occupied: (n,) int32, the cells, counted downwards. slots: (n,) int32, their places in the moments.
    """
    clear(out, 0, count)
    width = row_length(level)
    for k in range(0, n - 1, 2):
        at, second_at = by_cell(occupied[k], level) + start, by_cell(occupied[k + 1], level) + start
        add_two_pieces(out, table, width, at, second_at, count, moments, slots[k], slots[k + 1], stride)
    if n % 2:
        at = by_cell(occupied[n - 1], level) + start
        add_pieces(out, table, width, at, count, moments, slots[n - 1], stride)


@jit
def slope_at(table, level, start, count, weights, first, cell, s):
    """Σ_q weight_q r(u_q − x) for one class, at s in a cell; weights[first …] are 0 from ``count`` to ``padded(count)``."""
    w, at, f = np.uint64(row_length(level)), np.uint64(by_cell(cell, level) + start), np.uint64(first)
    s2 = s * s
    total = np.float32(0)
    for q in range(np.uint64(0), np.uint64(padded(count))):
        i = at + q
        low = table[i] + s * table[i + w] + s2 * table[i + w + w]
        i += w + w + w
        total += weights[f + q] * (low + s * s2 * (table[i] + s * table[i + w] + s2 * table[i + w + w]))
    return total


@jit
def pieces_of(weights, first, table, level, start, count, factor, cells, pieces, stride):
    """Write pieces: Σ_q factor · weight_q · table_m(u_q − x_c) for each cell c < cells, 0 beyond (A19).

    The table is ordered by thresholds, of which eight go at a time: weights[first …] are 0 from ``count`` to the next eight.
    """
    clear(pieces, 0, MOMENTS * stride)
    for k in range(0, count, 8):
        q, w, f = start + k, first + k, factor
        shares = (
            f * weights[w], f * weights[w + 1], f * weights[w + 2], f * weights[w + 3],
            f * weights[w + 4], f * weights[w + 5], f * weights[w + 6], f * weights[w + 7],
        )  # fmt: skip
        p0, p1, p2, p3 = (
            by_threshold(q, level),
            by_threshold(q + 1, level),
            by_threshold(q + 2, level),
            by_threshold(q + 3, level),
        )
        q += 4
        p4, p5, p6, p7 = (
            by_threshold(q, level),
            by_threshold(q + 1, level),
            by_threshold(q + 2, level),
            by_threshold(q + 3, level),
        )
        for m in range(MOMENTS):
            for x in range(0, stride, WHOLE):
                y = m * WIDTH + x
                places = (p0 + y, p1 + y, p2 + y, p3 + y, p4 + y, p5 + y, p6 + y, p7 + y)
                add_multiples(pieces, m * stride + x, table, places, shares)
    for m in range(MOMENTS):
        clear(pieces, m * stride + cells, (m + 1) * stride)
