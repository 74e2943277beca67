"""Classes in cells, as vector loops for numba: their moments, what these give at a threshold, and the way back.

Rows are float32; a class lies y = (top − z) / (σ · CELL) cells below the strongest rival, and at s = 1 − 2 (y − ⌊y⌋) within
its cell. Indices are unsigned where it matters: numba lets others count from the end, which keeps a loop from becoming vector
instructions.
"""

from __future__ import annotations

import numba
import numpy as np

from lossmith.threshold.tables import CELL, FARTHEST, MOMENTS

STRIDE = 8  # floats of a cell's moments
FINE = 8  # fine cells a cell
WHOLE = 32  # a loop of so many turns, or a multiple, is of whole vectors

# Not "nnan" and "ninf": infinities are met.
jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})

INFINITY = np.int32(0x7F800000)
MINUS_INFINITY = np.int32(-0x7F800001)  # as an ordered key
_SIGN = np.int32(0x7FFFFFFF)


@jit
def extremes(bits, first, last):
    """Highest and lowest key of float32 bits; keys are ordered as the numbers, NaN outside the infinities."""
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for j in range(np.uint64(first), np.uint64(last)):  # unsigned: no index counts from the end, and the loop is of vectors
        b = bits[j]
        key = np.int32(b ^ ((b >> np.int32(31)) & _SIGN))
        high = key if key > high else high
        low = key if key < low else low
    return high, low


@jit
def number(key, scratch):
    """The float32 of a key."""
    scratch[0] = key ^ ((key >> np.int32(31)) & _SIGN)
    return scratch.view(np.float32)[0]


@jit
def locate(row, first, last, top, per_cell, limit, cell, within):
    """Cell of each class first … last, and its place s within; those at ``limit`` cells and beyond share that one."""
    last_cell = np.float32(limit)
    for j in range(last - first):
        y = min((top - row[first + j]) * per_cell, last_cell)
        c = np.int32(y)
        cell[j] = c
        within[j] = np.float32(2) * (np.float32(c) - y) + np.float32(1)


@jit
def deposit(count, cell, within, moments):
    """Add the moments of ``count`` classes to their cells."""
    for j in range(count):
        s = within[j]
        s2 = s * s
        at = np.uint64(cell[j]) * np.uint64(STRIDE)
        moments[at] += np.float32(1)
        moments[at + np.uint64(1)] += s
        moments[at + np.uint64(2)] += s2
        moments[at + np.uint64(3)] += s2 * s
        moments[at + np.uint64(4)] += s2 * s2
        moments[at + np.uint64(5)] += s2 * s2 * s


@jit
def deposit_fine(count, cell, within, fine):
    """As ``deposit``, three moments only, in cells of an eighth the width."""
    for j in range(count):
        s = within[j]
        at = np.uint64(cell[j]) * np.uint64(4)
        fine[at] += np.float32(1)
        fine[at + np.uint64(1)] += s
        fine[at + np.uint64(2)] += s * s


@jit
def gather_fine(fine, cells, moments):
    """Add fine moments to those of their cells, and empty them. In a fine cell, s³ ≈ ¾ s and s⁴ ≈ s² − ⅛, to ⅛^4."""
    for c in range(cells):
        at = c * STRIDE
        for k in range(FINE):
            n, s1, s2 = fine[(c * FINE + k) * 4], fine[(c * FINE + k) * 4 + 1], fine[(c * FINE + k) * 4 + 2]
            if n == 0:
                continue
            a = np.float32(1) - np.float32(2 * k + 1) / np.float32(FINE)  # the fine cell's centre
            b = np.float32(1 / FINE)
            s1, s2, s3, s4 = b * s1, b * b * s2, b * b * b * np.float32(0.75) * s1, b * b * b * b * (s2 - n * np.float32(0.125))
            a2 = a * a
            moments[at] += n
            moments[at + 1] += a * n + s1
            moments[at + 2] += a2 * n + 2 * a * s1 + s2
            moments[at + 3] += a2 * a * n + 3 * a2 * s1 + 3 * a * s2 + s3
            moments[at + 4] += a2 * a2 * n + 4 * a2 * a * s1 + 6 * a2 * s2 + 4 * a * s3 + s4
            moments[at + 5] += a * (a2 * a2 * n + 5 * a2 * a * s1 + 10 * a2 * s2 + 10 * a * s3 + 5 * s4)
    fine[: (cells * FINE + 1) * 4] = 0


@jit
def read_off(out, first, count, cell, within, pieces):
    """The gradient of classes from the pieces of their cells; returns its sum."""
    total = np.float32(0)
    for j in range(count):
        s = within[j]
        at = np.uint64(cell[j])
        g = pieces[5, at]
        g = g * s + pieces[4, at]
        g = g * s + pieces[3, at]
        g = g * s + pieces[2, at]
        g = g * s + pieces[1, at]
        g = g * s + pieces[0, at]
        out[first + j] = g
        total += g
    return float(total)


@jit
def read_off_fine(out, first, count, cell, within, pieces):
    """As ``read_off``, from pieces of three coefficients."""
    total = np.float32(0)
    for j in range(count):
        s = within[j]
        at = np.uint64(cell[j]) * np.uint64(4)
        g = (pieces[at + np.uint64(2)] * s + pieces[at + np.uint64(1)]) * s + pieces[at]
        out[first + j] = g
        total += g
    return float(total)


@jit
def spread_fine(pieces, cells, fine):
    """Pieces of fine cells from those of their cells; s³ ≈ ¾ s and s⁴ ≈ s² − ⅛ there."""
    b = np.float32(1 / FINE)
    for c in range(cells):
        p0, p1, p2, p3, p4, p5 = pieces[0, c], pieces[1, c], pieces[2, c], pieces[3, c], pieces[4, c], pieces[5, c]
        for k in range(FINE):
            a = np.float32(1) - np.float32(2 * k + 1) * b
            at = (c * FINE + k) * 4
            cubic, quartic = b * b * b * (p3 + a * (4 * p4 + a * 10 * p5)), b * b * b * b * (p4 + 5 * a * p5)
            fine[at] = p0 + a * (p1 + a * (p2 + a * (p3 + a * (p4 + a * p5)))) - np.float32(0.125) * quartic
            fine[at + 1] = b * (p1 + a * (2 * p2 + a * (3 * p3 + a * (4 * p4 + a * 5 * p5)))) + np.float32(0.75) * cubic
            fine[at + 2] = b * b * (p2 + a * (3 * p3 + a * (6 * p4 + a * 10 * p5))) + quartic
    fine[cells * FINE * 4 : (cells * FINE + 1) * 4] = 0


@jit
def lattice(cell, level):
    """Phase of a cell and the place in the level's table of the threshold 0 seen from it."""
    if level < 2:
        phases = 4 >> level
        phase = cell % phases
        return phase, (cell - phase) // phases + int(FARTHEST) * (2 << level)
    return 0, cell * (1 << (level - 2)) + int(FARTHEST) * (2 << level)


@jit
def add_pieces(out, flat, width, at, count, m):
    """out_q += Σ_i m_i · table_i(at + q), the table's rows ``width`` apart."""
    w, at = np.uint64(width), np.uint64(at)
    m0, m1, m2, m3, m4, m5 = m[0], m[1], m[2], m[3], m[4], m[5]
    for q in range(np.uint64(0), np.uint64(count)):
        i = at + q
        low = m0 * flat[i] + m1 * flat[i + w] + m2 * flat[i + w + w]
        i += w + w + w
        out[q] += low + (m3 * flat[i] + m4 * flat[i + w] + m5 * flat[i + w + w])


@jit
def add_two_pieces(out, flat, width, at, other, count, m, n):
    """As ``add_pieces``, two cells at a time."""
    w, at, other = np.uint64(width), np.uint64(at), np.uint64(other)
    m0, m1, m2, m3, m4, m5 = m[0], m[1], m[2], m[3], m[4], m[5]
    n0, n1, n2, n3, n4, n5 = n[0], n[1], n[2], n[3], n[4], n[5]
    for q in range(np.uint64(0), np.uint64(count)):
        i, j = at + q, other + q
        one = m0 * flat[i] + m1 * flat[i + w] + m2 * flat[i + w + w]
        two = n0 * flat[j] + n1 * flat[j + w] + n2 * flat[j + w + w]
        i += w + w + w
        j += w + w + w
        one += m3 * flat[i] + m4 * flat[i + w] + m5 * flat[i + w + w]
        two += n3 * flat[j] + n4 * flat[j + w] + n5 * flat[j + w + w]
        out[q] += one + two


@jit
def weigh(out, at, flat, place, share, cells):
    """out_(at + x) += Σ over eight thresholds of share · table(place + x), for each cell x."""
    o = np.uint64(at)
    a, b, c, d = np.uint64(place[0]), np.uint64(place[1]), np.uint64(place[2]), np.uint64(place[3])
    e, f, g, h = np.uint64(place[4]), np.uint64(place[5]), np.uint64(place[6]), np.uint64(place[7])
    wa, wb, wc, wd, we, wf, wg, wh = share[0], share[1], share[2], share[3], share[4], share[5], share[6], share[7]
    for x in range(np.uint64(0), np.uint64(cells)):
        one = wa * flat[a + x] + wb * flat[b + x] + wc * flat[c + x] + wd * flat[d + x]
        out[o + x] += one + (we * flat[e + x] + wf * flat[f + x] + wg * flat[g + x] + wh * flat[h + x])


@jit
def pieces_of(weights, table, level, start, count, factor, cells, pieces, place, share):
    """The gradient in each cell as a polynomial in s: Σ_q weight_q · table_m(u_q − x_c) for each m, (MOMENTS, cells)."""
    width = table.shape[2]
    cells = (cells // WHOLE + 1) * WHOLE
    pieces[:, :cells] = 0
    out, rows, flat = pieces.reshape(-1), pieces.shape[1], table.reshape(-1)
    for first in range(0, count, 8):
        for k in range(8):
            q = start + min(first + k, count - 1)
            share[k] = factor * weights[first + k] if first + k < count else np.float32(0)
            if level < 2:
                place[k] = q * (4 >> level) + int(FARTHEST / CELL)
            else:
                phases = 1 << (level - 2)
                place[k] = (q % phases) * MOMENTS * width + q // phases + int(FARTHEST / CELL)
        for m in range(MOMENTS):
            weigh(out, m * rows, flat, place, share, cells)
            for k in range(8):
                place[k] += width
