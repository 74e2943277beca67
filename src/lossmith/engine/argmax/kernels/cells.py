"""Classes in cells, as vector loops for numba: their moments, what these give at a threshold, and the way back.

Rows are float32; a class lies y = (top − z) / (σ · CELL) cells below the strongest rival, and at s = 1 − 2 (y − ⌊y⌋) within
its cell. Arrays are flat, a quantity of each cell beside the same of the next, quantities ``pitch`` apart. Indices are unsigned
where it matters: numba lets others count from the end, which keeps a loop from becoming vector instructions.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST, MOMENTS, WIDTH
from lossmith.engine.runtime.compiled import jit
from lossmith.engine.runtime.simd import WHOLE, add_multiples, float_of

FINE = 8  # fine cells a cell

INFINITY = np.int32(0x7F800000)
MINUS_INFINITY = np.int32(-0x7F800001)  # as an ordered key
_SIGN = np.int32(0x7FFFFFFF)


@jit
def key_of(bits):
    """Keys are ordered as the float32 whose bits they come from, NaN outside the infinities; of numbers ≥ 0 they are the bits.

    A maximum of integers becomes vector instructions; one of floats does not.
    """
    return np.int32(bits ^ ((bits >> np.int32(31)) & _SIGN))


@jit
def number(key):
    """The float32 of a key."""
    return float_of(key_of(key))


@jit
def extremes(bits, first, last):
    """Highest and lowest key of float32 bits."""
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for j in range(np.uint64(first), np.uint64(last)):
        key = key_of(bits[j])
        high = key if key > high else high
        low = key if key < low else low
    return high, low


@jit
def extremes_without(bits, first, last, own):
    """As ``extremes``, of all but the one at ``own``."""
    if not first <= own < last:
        return extremes(bits, first, last)
    high, low = extremes(bits, first, own)
    up, down = extremes(bits, own + 1, last)
    return max(high, up), min(low, down)


@jit
def whole(count):
    """``count`` rounded up to whole vectors."""
    return (count + (WHOLE - 1)) // WHOLE * WHOLE


@jit
def clear(out, first, last):
    """Zeros; a slice would cost more than they do."""
    for j in range(np.uint64(first), np.uint64(last)):
        out[j] = np.float32(0)


@jit
def locate(scores, first, last, top, per_cell, limit, place, within):
    """Cell of each class first … last, and its s within; those at ``limit`` cells and beyond share that one."""
    last_cell = np.float32(limit)
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(last - first)):
        y = min((top - scores[start + j]) * per_cell, last_cell)
        c = np.int32(y)
        place[j] = c
        within[j] = np.float32(2) * (np.float32(c) - y) + np.float32(1)


@jit
def interleave(count, place, limit, pitch):
    """From fine cells to where they stand: the first of every cell beside each other, then the second of every cell, …

    Classes at ``limit``, which may be most, take the fine cells there in turn: sums in one place would wait for each other.
    """
    step, last = np.int32(pitch), np.int32(limit)
    for j in range(np.uint64(0), np.uint64(count)):
        c = place[j]
        c += np.int32(j & np.uint64(FINE - 1)) if c == last else np.int32(0)
        place[j] = (c & np.int32(FINE - 1)) * step + (c >> np.int32(3))


@jit
def deposit(count, place, within, moments, pitch):
    """Add the moments of ``count`` classes to their cells."""
    w = np.uint64(pitch)
    for j in range(np.uint64(0), np.uint64(count)):
        s = within[j]
        s2 = s * s
        at = np.uint64(place[j])
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
def deposit_each(count, within, moments, pitch):
    """Moments of ``count`` classes, each as a cell of its own."""
    w = np.uint64(pitch)
    for j in range(np.uint64(0), np.uint64(count)):
        s = within[j]
        s2 = s * s
        moments[j] = np.float32(1)
        moments[j + w] = s
        moments[j + w + w] = s2
        moments[j + w + w + w] = s2 * s
        moments[j + w + w + w + w] = s2 * s2
        moments[j + w + w + w + w + w] = s2 * s2 * s


@jit
def deposit_fine(count, place, within, fine, pitch):
    """As ``deposit``, three moments only, in cells of an eighth the width."""
    w = np.uint64(FINE * pitch)
    for j in range(np.uint64(0), np.uint64(count)):
        s = within[j]
        at = np.uint64(place[j])
        fine[at] += np.float32(1)
        at += w
        fine[at] += s
        at += w
        fine[at] += s * s


@jit
def gather_fine(fine, moments, pitch):
    """Add fine moments to those of their cells, and empty them. In a fine cell, s³ ≈ ¾ s and s⁴ ≈ s² − ⅛, to ⅛^4."""
    w = np.uint64(pitch)
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
    clear(fine, 0, 3 * FINE * pitch)


@jit
def read_off(out, first, count, place, within, pieces, pitch):
    """The gradient of classes from the pieces of their cells; returns its sum."""
    w = np.uint64(pitch)
    total = np.float32(0)
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        s = within[j]
        at = np.uint64(place[j])
        i = at + w + w + w
        high = (pieces[i + w + w] * s + pieces[i + w]) * s + pieces[i]
        g = ((high * s + pieces[at + w + w]) * s + pieces[at + w]) * s + pieces[at]
        out[start + j] = g
        total += g
    return float(total)


@jit
def read_off_fine(out, first, count, place, within, fine, pitch):
    """As ``read_off``, from pieces of three coefficients."""
    w = np.uint64(FINE * pitch)
    total = np.float32(0)
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        s = within[j]
        at = np.uint64(place[j])
        g = (fine[at + w + w] * s + fine[at + w]) * s + fine[at]
        out[start + j] = g
        total += g
    return float(total)


@jit
def spread_fine(pieces, fine, pitch):
    """Pieces of fine cells from those of their cells; s³ ≈ ¾ s and s⁴ ≈ s² − ⅛ there."""
    w = np.uint64(pitch)
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


# Where things stand in the tables of one noise, which lie one after the other in a flat array, level by level.


@jit
def _level_offset(level):
    return MOMENTS * WIDTH * (level if level < 2 else (1 << (level - 2)) + 1)


@jit
def by_cell(cell, level):
    """Place, in a table ordered by cells, of the threshold 0 seen from a cell."""
    if level < 2:
        phases = 4 >> level
        phase = cell % phases
        return (
            _level_offset(level) + phase * MOMENTS * row_length(level) + (cell - phase) // phases + int(FARTHEST) * (2 << level)
        )
    return _level_offset(level) + cell * (1 << (level - 2)) + int(FARTHEST) * (2 << level)


@jit
def row_length(level):
    """Entries of one moment in a table ordered by cells."""
    return (WIDTH >> 2) << level


@jit
def by_threshold(q, level):
    """Place, in a table ordered by thresholds, of the cell 0 seen from threshold q."""
    if level < 2:
        return _level_offset(level) + q * (4 >> level) + int(FARTHEST / CELL)
    phases = 1 << (level - 2)
    return _level_offset(level) + (q % phases) * MOMENTS * WIDTH + q // phases + int(FARTHEST / CELL)


@jit
def add_pieces(out, table, width, at, count, m, c, p):
    """out_q += Σ_m moment_m · table_m(at + q), for the moments of cell c in ``m``, ``p`` apart."""
    factors = (m[c], m[c + p], m[c + 2 * p], m[c + 3 * p], m[c + 4 * p], m[c + 5 * p])
    for q in range(0, count, WHOLE):
        i, w = at + q, width
        add_multiples(out, q, table, (i, i + w, i + 2 * w, i + 3 * w, i + 4 * w, i + 5 * w), factors)


@jit
def add_two_pieces(out, table, width, at, other, count, m, c, d, p):
    """As ``add_pieces``, two cells at a time."""
    factors = (
        m[c], m[c + p], m[c + 2 * p], m[c + 3 * p], m[c + 4 * p], m[c + 5 * p],
        m[d], m[d + p], m[d + 2 * p], m[d + 3 * p], m[d + 4 * p], m[d + 5 * p],
    )  # fmt: skip
    for q in range(0, count, WHOLE):
        i, j, w = at + q, other + q, width
        places = (
            i, i + w, i + 2 * w, i + 3 * w, i + 4 * w, i + 5 * w,
            j, j + w, j + 2 * w, j + 3 * w, j + 4 * w, j + 5 * w,
        )  # fmt: skip
        add_multiples(out, q, table, places, factors)


@jit
def sum_pieces(out, table, level, start, count, occupied, slots, n, moments, pitch):
    """out_q = Σ over n cells, of which ``occupied`` are the places in the row and ``slots`` those in the moments."""
    clear(out, 0, count)
    width = row_length(level)
    for k in range(0, n - 1, 2):
        at, other = by_cell(occupied[k], level) + start, by_cell(occupied[k + 1], level) + start
        add_two_pieces(out, table, width, at, other, count, moments, slots[k], slots[k + 1], pitch)
    if n % 2:
        at = by_cell(occupied[n - 1], level) + start
        add_pieces(out, table, width, at, count, moments, slots[n - 1], pitch)


@jit
def slope_at(table, level, start, count, weights, first, cell, s):
    """Σ_q weight_q r(u_q − x) for a class at s in a cell; ``weights`` are 0 from ``count`` to whole vectors."""
    w, at, f = np.uint64(row_length(level)), np.uint64(by_cell(cell, level) + start), np.uint64(first)
    s2 = s * s
    total = np.float32(0)
    for q in range(np.uint64(0), np.uint64(whole(count))):
        i = at + q
        low = table[i] + s * table[i + w] + s2 * table[i + w + w]
        i += w + w + w
        total += weights[f + q] * (low + s * s2 * (table[i] + s * table[i + w] + s2 * table[i + w + w]))
    return total


@jit
def pieces_of(weights, first, table, level, start, count, factor, cells, pieces, pitch):
    """The gradient in each cell as a polynomial in s: Σ_q factor · weight_q · table_m(u_q − x_c); 0 beyond ``cells``.

    Eight thresholds at a time; ``weights`` are 0 from ``count`` to whole vectors.
    """
    clear(pieces, 0, MOMENTS * pitch)
    for k in range(0, count, 8):
        q, w, f = start + k, first + k, factor
        shares = (
            f * weights[w], f * weights[w + 1], f * weights[w + 2], f * weights[w + 3],
            f * weights[w + 4], f * weights[w + 5], f * weights[w + 6], f * weights[w + 7],
        )  # fmt: skip
        a, b, c, d = by_threshold(q, level), by_threshold(q + 1, level), by_threshold(q + 2, level), by_threshold(q + 3, level)
        q += 4
        e, g, h, i = by_threshold(q, level), by_threshold(q + 1, level), by_threshold(q + 2, level), by_threshold(q + 3, level)
        for m in range(MOMENTS):
            for x in range(0, pitch, WHOLE):
                y = m * WIDTH + x
                places = (a + y, b + y, c + y, d + y, e + y, g + y, h + y, i + y)
                add_multiples(pieces, m * pitch + x, table, places, shares)
    for m in range(MOMENTS):
        clear(pieces, m * pitch + cells, (m + 1) * pitch)
