r"""log P(the target wins) and its gradient for float32 rows on the CPU: one fused numba kernel each way.

A row is measured from its strongest rival. Its other classes fall into cells of width 1/8, each with five moments, so that
G(u) = Σ_j log F(u − x_j) costs five multiplications a cell and threshold, however many classes there are (``tables``). Then

    p = h Σ_q f(u_q − t) e^{G(u_q)},        1 − p = h Σ_q f(u_q − t) (1 − e^{G(u_q)}),        u_q multiples of h,

whichever is the smaller. The trapezoid rule converges geometrically on analytic integrands (Trefethen & Weideman, SIAM Review 56(3), 2014):
the error at step h is about the square of that at 2h, which is the difference between the even and the odd thresholds. The
step starts at 1/2 and is halved where that says so. The gradient in a rival's score is −Σ_q w_q r(u_q − x_j) with w_q the share of u_q in
p, summed over thresholds once a cell and read off at each class. A cell so far down that F is 1 at all thresholds is skipped, and so
are blocks of classes that hold nothing nearer.

Kernels hold no lock and start no threads. ``forward_team`` and ``backward_team`` are C functions of one pointer, which any number of threads
may enter together: each takes rows until none are left (``threads``). Each row is computed by itself, so that the bits
do not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from lossmith.threshold.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE

BLOCK = 512  # classes that are skipped, or not, together
FINE = 8  # fine cells a cell
MANY = 1 << 12  # classes from which on fine cells pay
FLUSH = 1 << 15  # classes after which sums over fine cells, which lose digits, go to their cells
STRIDE = 8  # floats a cell
MOST = 512  # thresholds at a time
RESOLVED = 5e-4  # difference of even and odd thresholds whose square is below float32's rounding
NOTHING = 1e-8  # of the highest term: thresholds below are left out
MAX_CELLS = int(1.5 * FARTHEST / CELL)
DONE, SURE, LOST, HARD = 0, 1, 2, 3  # what became of a row
LEVEL, START, COUNT, CELLS = 0, 1, 2, 3  # columns of ``where``

# Not "nnan" and "ninf": infinities are met.
_jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
_exact = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "contract"})  # (x + R) − R stays

LOG2_E = math.log2(math.e)
ROUND = 6755399441055744.0  # 1.5 · 2^52: added and taken away, it leaves the nearest integer
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860682030941723212e-6
INVERSE_FACTORIALS = tuple(1 / math.factorial(n) for n in range(12))
_SIGN = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)
_MINUS_INFINITY = np.int32(-0x7F800001)  # as an ordered key


@_jit
def _extremes(bits, first, last):
    """Highest and lowest key of float32 bits; keys are ordered as the numbers, NaN outside the infinities."""
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for j in range(np.uint64(first), np.uint64(last)):  # unsigned: no index counts from the end, and the loop is of vectors
        b = bits[j]
        key = np.int32(b ^ ((b >> np.int32(31)) & _SIGN))
        high = key if key > high else high
        low = key if key < low else low
    return high, low


@_jit
def _number(key, scratch):
    """The float32 of a key."""
    scratch[0] = key ^ ((key >> np.int32(31)) & _SIGN)
    return scratch.view(np.float32)[0]


@_jit
def _locate(row, first, last, top, per_cell, limit, cell, within):
    """Cell of each class first … last, and its place s within; those at ``limit`` cells and beyond share that one."""
    last_cell = np.float32(limit)
    for j in range(last - first):
        y = min((top - row[first + j]) * per_cell, last_cell)
        c = np.int32(y)
        cell[j] = c
        within[j] = np.float32(2) * (np.float32(c) - y) + np.float32(1)


@_jit
def _deposit(count, cell, within, moments):
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


@_jit
def _deposit_fine(count, cell, within, fine):
    """As ``_deposit``, three moments only, in cells of an eighth the width."""
    for j in range(count):
        s = within[j]
        at = np.uint64(cell[j]) * np.uint64(4)
        fine[at] += np.float32(1)
        fine[at + np.uint64(1)] += s
        fine[at + np.uint64(2)] += s * s


@_jit
def _gather_fine(fine, cells, moments):
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
    fine[: (cells * FINE + 1) * 4] = 0


@_jit
def _lattice(cell, level):
    """Phase of a cell and the place in the level's table of the threshold 0 seen from it."""
    if level < 2:
        phases = 4 >> level
        phase = cell % phases
        return phase, (cell - phase) // phases + int(FARTHEST) * (2 << level)
    return 0, cell * (1 << (level - 2)) + int(FARTHEST) * (2 << level)


@_jit
def _add_pieces(out, flat, width, at, count, m):
    """out_q += Σ_i m_i · table_i(at + q), the table's rows ``width`` apart."""
    w, at = np.uint64(width), np.uint64(at)
    m0, m1, m2, m3, m4 = m[0], m[1], m[2], m[3], m[4]
    for q in range(np.uint64(0), np.uint64(count)):
        i = at + q
        out[q] += m0 * flat[i] + m1 * flat[i + w] + m2 * flat[i + w + w] + m3 * flat[i + w + w + w] + m4 * flat[i + w + w + w + w]


@_jit
def _add_two_pieces(out, flat, width, at, other, count, m, n):
    """As ``_add_pieces``, two cells at a time."""
    w, at, other = np.uint64(width), np.uint64(at), np.uint64(other)
    m0, m1, m2, m3, m4 = m[0], m[1], m[2], m[3], m[4]
    n0, n1, n2, n3, n4 = n[0], n[1], n[2], n[3], n[4]
    for q in range(np.uint64(0), np.uint64(count)):
        i, j = at + q, other + q
        one = m0 * flat[i] + m1 * flat[i + w] + m2 * flat[i + w + w] + m3 * flat[i + w + w + w] + m4 * flat[i + w + w + w + w]
        two = n0 * flat[j] + n1 * flat[j + w] + n2 * flat[j + w + w] + n3 * flat[j + w + w + w] + n4 * flat[j + w + w + w + w]
        out[q] += one + two


@_exact
def _exp_into(x, out, scratch, count):
    """e^x for x ≤ 700, to 1e-13; 0 below −700. No libm, so that the loop becomes vector instructions."""
    for q in range(count):
        y = max(x[q], -700.0)
        shifted = y * LOG2_E + ROUND
        n = shifted - ROUND
        scratch[q] = shifted
        r = (y - n * LN2_HIGH) - n * LN2_LOW
        p = INVERSE_FACTORIALS[11]
        p = p * r + INVERSE_FACTORIALS[10]
        p = p * r + INVERSE_FACTORIALS[9]
        p = p * r + INVERSE_FACTORIALS[8]
        p = p * r + INVERSE_FACTORIALS[7]
        p = p * r + INVERSE_FACTORIALS[6]
        p = p * r + INVERSE_FACTORIALS[5]
        p = p * r + INVERSE_FACTORIALS[4]
        p = p * r + INVERSE_FACTORIALS[3]
        p = p * r + INVERSE_FACTORIALS[2]
        p = p * r + 1.0
        out[q] = p * r + 1.0
    bits = scratch.view(np.int64)
    for q in range(count):
        bits[q] = (bits[q] + np.int64(1023)) << np.int64(52)  # n stands in the low bits
    for q in range(count):
        out[q] = out[q] * scratch[q] if x[q] > -700.0 else 0.0


@_jit
def _one_minus_exp_into(x, exp_x, out, count):
    """out ·= 1 − e^x for x ≤ 0, with its digits near 0."""
    for q in range(count):
        y = max(float(x[q]), -0.3)
        p = INVERSE_FACTORIALS[10]
        p = p * y + INVERSE_FACTORIALS[9]
        p = p * y + INVERSE_FACTORIALS[8]
        p = p * y + INVERSE_FACTORIALS[7]
        p = p * y + INVERSE_FACTORIALS[6]
        p = p * y + INVERSE_FACTORIALS[5]
        p = p * y + INVERSE_FACTORIALS[4]
        p = p * y + INVERSE_FACTORIALS[3]
        p = p * y + INVERSE_FACTORIALS[2]
        p = p * y + 1.0
        out[q] *= -y * p if x[q] > -0.3 else 1.0 - exp_x[q]


@_jit
def forward(scores, bits, target, scale, log_cdf, log_prob, lowest, depth, high, hopeless, sure, guess, out, weights, where, top_of, status, first_row, last_row):
    """Rows first_row … last_row: log p, the thresholds' weights for ``backward``, and what became of each.

    scores (B, C) float32 and the same as int32 bits; target (B,) int64, negative where nothing is asked; scale (B,) or (1,)
    float32; entries of ``Tables``; ``guess``: the quantile 1 − 1/C. out (B,) float32; weights (B, most) float32; where (B, 4)
    int32; top_of (B,) float32; status (B,) int8. Returns whether a row holds NaN, +inf or nothing but −inf, or a target is none.
    """
    C = scores.shape[1]
    most = weights.shape[1]
    many = C >= MANY
    moments = np.zeros((MAX_CELLS + 1) * STRIDE, np.float32)
    fine = np.zeros((MAX_CELLS * FINE + 1) * 4 if many else 1, np.float32)
    blocks = np.empty(C // BLOCK + 3, np.int32)
    cell, within = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    sums, logs = np.empty(MOST, np.float32), np.empty(MOST, np.float32)
    exponent, product, terms, scratch = np.empty(MOST), np.empty(MOST), np.empty(MOST), np.empty(MOST)
    occupied, powers = np.empty(MAX_CELLS, np.int32), np.empty(MOMENTS, np.float32)
    one_key = np.empty(1, np.int32)
    bad = False
    for b in range(first_row, last_row):
        row, keys, y = scores[b], bits[b], target[b]
        if y < 0:
            out[b], status[b] = 0.0, SURE
            bad |= y != -1
            continue
        if y >= C:
            bad = True
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        # The strongest rival, and the highest key of each block on either side of the target.
        high_key, low_key = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
        n_blocks = 0
        for side in range(2):
            start, stop = (0, y) if side == 0 else (y + 1, C)
            for first in range(start, stop, BLOCK):
                up, down = _extremes(keys, first, min(first + BLOCK, stop))
                blocks[n_blocks] = up
                n_blocks += 1
                high_key, low_key = max(high_key, up), min(low_key, down)
        own = row[y]
        top = _number(high_key, one_key)
        if high_key >= _INFINITY or low_key < _MINUS_INFINITY or not own < np.inf or (top == -np.inf and own == -np.inf):
            bad = True
            status[b] = LOST
            continue
        if own == -np.inf:
            out[b], status[b] = -np.inf, LOST
            continue
        t = (float(own) - float(top)) * inverse
        if t >= sure:
            out[b], status[b] = 0.0, SURE
            continue
        if t < hopeless or not inverse < 1e30:
            status[b] = HARD
            continue
        pace = int((t + FARTHEST) / PACE)
        bottom = lowest[pace]
        cells = min(max(depth[pace], depth[pace + 1]), MAX_CELLS)
        # Moments
        per_cell = np.float32(inverse / CELL * (FINE if many else 1))
        cut = float(top) - cells * CELL / inverse
        block, since = 0, 0
        for side in range(2):
            start, stop = (0, y) if side == 0 else (y + 1, C)
            for first in range(start, stop, BLOCK):
                if float(_number(blocks[block], one_key)) > cut:
                    last = min(first + BLOCK, stop)
                    if many:
                        _locate(row, first, last, top, per_cell, cells * FINE, cell, within)
                        _deposit_fine(last - first, cell, within, fine)
                        since += last - first
                        if since >= FLUSH:
                            _gather_fine(fine, cells, moments)
                            since = 0
                    else:
                        _locate(row, first, last, top, per_cell, cells, cell, within)
                        _deposit(last - first, cell, within, moments)
                block += 1
        if many:
            _gather_fine(fine, cells, moments)
        used, n_used = 0, 0
        for c in range(cells):
            if moments[c * STRIDE] > 0:
                occupied[n_used] = c
                n_used += 1
                used = c + 1
        # Thresholds
        own_cell = int(np.floor(-t / CELL))
        powers[0] = 1
        for m in range(1, MOMENTS):
            powers[m] = powers[m - 1] * np.float32(2 * (own_cell + t / CELL) + 1)
        reach = max(t, guess, 0.0) + high - bottom
        level = 0 if reach > 14 else (1 if C <= 16 else 2)
        start = int(np.floor(bottom * (2 << level)))
        count = min(int(np.ceil(reach * (2 << level))) + 1, MOST)
        complement = False
        state = HARD
        for attempt in range(LEVELS):
            h = 0.5 ** (1 + level)
            sums[:count] = 0
            logs[:count] = 0
            width = log_cdf[level].shape[2]
            flat = log_cdf[level].reshape(-1)
            waiting = -1
            for k in range(n_used):
                c = occupied[k]
                phase, zero = _lattice(c, level)
                at = phase * MOMENTS * width + zero + start
                if k % 2 == 0 and k + 1 < n_used:
                    waiting = at
                elif k % 2 == 0:
                    _add_pieces(sums, flat, width, at, count, moments[c * STRIDE : c * STRIDE + STRIDE])
                else:
                    before = occupied[k - 1] * STRIDE
                    _add_two_pieces(
                        sums, flat, width, waiting, at, count,
                        moments[before : before + STRIDE], moments[c * STRIDE : c * STRIDE + STRIDE],
                    )  # fmt: skip
            phase, zero = _lattice(own_cell, level)
            _add_pieces(logs, log_prob[level].reshape(-1), width, phase * MOMENTS * width + zero + start, count, powers)
            peak = -np.inf
            for q in range(count):
                exponent[q] = float(logs[q]) + float(sums[q])
                peak = max(peak, exponent[q])
            for q in range(count):
                exponent[q] -= peak
            _exp_into(exponent, product, scratch, count)  # f e^G, in units of its peak
            if attempt == 0 and t > 0:
                whole = 0.0
                for q in range(count):
                    whole += product[q]
                complement = np.log(h * whole) + peak > -0.6931
            if complement:
                for q in range(count):
                    exponent[q] = float(sums[q])
                _exp_into(exponent, exponent, scratch, count)
                for q in range(count):
                    terms[q] = float(logs[q])
                _exp_into(terms, terms, scratch, count)
                _one_minus_exp_into(sums, exponent, terms, count)
            else:
                terms[:count] = product[:count]
            even, odd, biggest = 0.0, 0.0, 0.0
            for q in range(0, count - 1, 2):
                even += terms[q]
                odd += terms[q + 1]
            if count % 2:
                even += terms[count - 1]
            for q in range(count):
                biggest = max(biggest, terms[q])
            whole = even + odd
            difference = abs(even - odd) / whole if whole > 0 else 0.0
            begin, end = 0, count - 1
            while begin < end and terms[begin] < NOTHING * biggest:
                begin += 1
            while end > begin and terms[end] < NOTHING * biggest:
                end -= 1
            if difference <= RESOLVED:
                state = DONE if end - begin < most else HARD
                break
            finer = min(1 if difference < 0.02 else 2, LEVELS - 1 - level)
            if finer == 0:
                break
            start = (start + max(begin - 1, 0)) << finer
            count = min(((min(end + 1, count - 1) - max(begin - 1, 0)) << finer) + 1, MOST)
            level += finer
        status[b] = state
        if state == DONE:
            if complement:
                out[b] = np.log1p(-h * whole)
                share = h * np.exp(peak) / (1 - h * whole)
            else:
                out[b] = np.log(h * whole) + peak
                share = 1 / whole
            for q in range(begin, end + 1):
                weights[b, q - begin] = product[q] * share
            where[b, LEVEL], where[b, START], where[b, COUNT], where[b, CELLS] = level, start + begin, end - begin + 1, used
            top_of[b] = top
        moments[: (cells + 1) * STRIDE] = 0
    return bad


@_jit
def _read_off(out, first, count, cell, within, pieces):
    """The gradient of classes from the pieces of their cells; returns its sum."""
    total = np.float32(0)
    for j in range(count):
        s = within[j]
        at = np.uint64(cell[j])
        g = pieces[4, at]
        g = g * s + pieces[3, at]
        g = g * s + pieces[2, at]
        g = g * s + pieces[1, at]
        g = g * s + pieces[0, at]
        out[first + j] = g
        total += g
    return float(total)


@_jit
def _read_off_fine(out, first, count, cell, within, pieces):
    """As ``_read_off``, from pieces of three coefficients."""
    total = np.float32(0)
    for j in range(count):
        s = within[j]
        at = np.uint64(cell[j]) * np.uint64(4)
        g = (pieces[at + np.uint64(2)] * s + pieces[at + np.uint64(1)]) * s + pieces[at]
        out[first + j] = g
        total += g
    return float(total)


@_jit
def _spread_fine(pieces, cells, fine):
    """Pieces of fine cells from those of their cells; s³ ≈ ¾ s and s⁴ ≈ s² − ⅛ there."""
    b = np.float32(1 / FINE)
    for c in range(cells):
        p0, p1, p2, p3, p4 = pieces[0, c], pieces[1, c], pieces[2, c], pieces[3, c], pieces[4, c]
        for k in range(FINE):
            a = np.float32(1) - np.float32(2 * k + 1) * b
            at = (c * FINE + k) * 4
            cubic, quartic = b * b * b * (p3 + 4 * a * p4), b * b * b * b * p4
            fine[at] = p0 + a * (p1 + a * (p2 + a * (p3 + a * p4))) - np.float32(0.125) * quartic
            fine[at + 1] = b * (p1 + a * (2 * p2 + a * (3 * p3 + a * 4 * p4))) + np.float32(0.75) * cubic
            fine[at + 2] = b * b * (p2 + a * (3 * p3 + a * 6 * p4)) + quartic
    fine[cells * FINE * 4 : (cells * FINE + 1) * 4] = 0


@_jit
def _weigh(out, flat, at, a, b, c, d, wa, wb, wc, wd, cells):
    """out_x += Σ over four thresholds of weight · table(at + threshold + x), for each cell x."""
    a, b, c, d = np.uint64(at + a), np.uint64(at + b), np.uint64(at + c), np.uint64(at + d)
    for x in range(np.uint64(0), np.uint64(cells)):
        out[x] += wa * flat[a + x] + wb * flat[b + x] + wc * flat[c + x] + wd * flat[d + x]


@_jit
def _pieces_of(weights, table, level, start, count, factor, cells, pieces):
    """The gradient in each cell as a polynomial in s: Σ_q weight_q · table_m(u_q − x_c) for each m, (MOMENTS, cells)."""
    width = table.shape[2]
    flat = table.reshape(-1)
    pieces[:, : cells + 1] = 0
    place, share = np.zeros(4, np.int64), np.zeros(4, np.float32)
    for first in range(0, count, 4):
        for k in range(4):
            q = start + min(first + k, count - 1)
            share[k] = factor * weights[first + k] if first + k < count else np.float32(0)
            if level < 2:
                place[k] = q * (4 >> level) + int(FARTHEST / CELL)
            else:
                phases = 1 << (level - 2)
                place[k] = (q % phases) * MOMENTS * width + q // phases + int(FARTHEST / CELL)
        for m in range(MOMENTS):
            _weigh(
                pieces[m], flat, m * width, place[0], place[1], place[2], place[3],
                share[0], share[1], share[2], share[3], cells,
            )  # fmt: skip


@_jit
def backward(scores, bits, target, scale, slope, upstream, weights, where, top_of, status, grad, first_row, last_row):
    """Rows first_row … last_row of the gradient in the scores; zeros where ``forward`` was not DONE."""
    C = scores.shape[1]
    many = C >= MANY
    pieces = np.zeros((MOMENTS, MAX_CELLS + 1), np.float32)
    fine = np.zeros((MAX_CELLS * FINE + 1) * 4 if many else 1, np.float32)
    cell, within = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    one_key = np.empty(1, np.int32)
    for b in range(first_row, last_row):
        row, out, y = scores[b], grad[b], target[b]
        if status[b] != DONE or upstream[b] == 0:
            out[:] = 0
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        top, per_cell = top_of[b], np.float32(inverse / CELL * (FINE if many else 1))
        level, start, count, cells = where[b, LEVEL], where[b, START], where[b, COUNT], where[b, CELLS]
        factor = np.float32(-float(upstream[b]) * inverse)
        _pieces_of(weights[b], slope[level], level, start, count, factor, cells, pieces)
        if many:
            _spread_fine(pieces, cells, fine)
        cut = float(top) - cells * CELL / inverse
        rest = 0.0
        for side in range(2):
            begin, stop = (0, y) if side == 0 else (y + 1, C)
            for first in range(begin, stop, BLOCK):
                last = min(first + BLOCK, stop)
                if many:
                    up, _ = _extremes(bits[b], first, last)
                    if float(_number(up, one_key)) <= cut:
                        out[first:last] = 0
                        continue
                    _locate(row, first, last, top, per_cell, cells * FINE, cell, within)
                    rest += _read_off_fine(out, first, last - first, cell, within, fine)
                else:
                    _locate(row, first, last, top, per_cell, cells, cell, within)
                    rest += _read_off(out, first, last - first, cell, within, pieces)
        out[y] = -rest


# Teams. A job is an array of int64: the next row, the rows of a turn, whether a row was bad, B, C and the addresses and sizes of arrays.

NEXT, TURN, BAD, ROWS, CLASSES, ARRAYS = 0, 1, 2, 3, 4, 5
SLOTS = 4  # of an array in a job: address and three sizes


@intrinsic
def _take(typing, place, amount):
    """Atomic fetch and add at an address: the old value."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return numba.int64(numba.int64, numba.int64), generate


@intrinsic
def _pointer(typing, address):
    """An address as a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(numba.types.voidptr))

    return numba.types.voidptr(numba.int64), generate


@_jit
def _array(job, place, dtype):
    """The array in a slot, in one dimension."""
    at = ARRAYS + place * SLOTS
    return numba.carray(_pointer(job[at]), job[at + 1] * job[at + 2] * job[at + 3], dtype)


@_jit
def _table(job, place):
    at = ARRAYS + place * SLOTS
    return numba.carray(_pointer(job[at]), (job[at + 1], job[at + 2], job[at + 3]), np.float32)


@_jit
def _tables(job, place):
    """Those of all levels, from a slot on."""
    return (
        _table(job, place), _table(job, place + 1), _table(job, place + 2), _table(job, place + 3), _table(job, place + 4)
    )  # fmt: skip


def _cfunc(function: Any) -> Any:
    return numba.cfunc(numba.void(numba.types.voidptr), nopython=True, cache=True)(function)


@_cfunc
def forward_team(data):
    head = numba.carray(data, (ARRAYS,), np.int64)
    B, C = head[ROWS], head[CLASSES]
    job = numba.carray(data, (ARRAYS + 21 * SLOTS,), np.int64)
    scores, bits = _array(job, 0, np.float32).reshape(B, C), _array(job, 0, np.int32).reshape(B, C)
    target, scale = _array(job, 1, np.int64), _array(job, 2, np.float32)
    out, weights = _array(job, 3, np.float32), _array(job, 4, np.float32).reshape(B, -1)
    where, top, status = _array(job, 5, np.int32).reshape(B, 4), _array(job, 6, np.float32), _array(job, 7, np.int8)
    lowest, depth, numbers = _array(job, 8, np.float64), _array(job, 9, np.int32), _array(job, 10, np.float64)
    log_cdf, log_prob = _tables(job, 11), _tables(job, 16)
    high, hopeless, sure, guess = numbers[0], numbers[1], numbers[2], numbers[3]
    while True:
        first = _take(job.ctypes.data + 8 * NEXT, job[TURN])
        if first >= B:
            return
        last = min(first + job[TURN], B)
        if forward(scores, bits, target, scale, log_cdf, log_prob, lowest, depth, high, hopeless, sure, guess, out, weights, where, top, status, first, last):
            job[BAD] = 1


@_cfunc
def backward_team(data):
    head = numba.carray(data, (ARRAYS,), np.int64)
    B, C = head[ROWS], head[CLASSES]
    job = numba.carray(data, (ARRAYS + 14 * SLOTS,), np.int64)
    scores, bits = _array(job, 0, np.float32).reshape(B, C), _array(job, 0, np.int32).reshape(B, C)
    target, scale, upstream = _array(job, 1, np.int64), _array(job, 2, np.float32), _array(job, 3, np.float32)
    weights, where = _array(job, 4, np.float32).reshape(B, -1), _array(job, 5, np.int32).reshape(B, 4)
    top, status, grad = _array(job, 6, np.float32), _array(job, 7, np.int8), _array(job, 8, np.float32).reshape(B, C)
    slope = _tables(job, 9)
    while True:
        first = _take(job.ctypes.data + 8 * NEXT, job[TURN])
        if first >= B:
            return
        last = min(first + job[TURN], B)
        backward(scores, bits, target, scale, slope, upstream, weights, where, top, status, grad, first, last)


def job_of(rows: int, classes: int, turn: int, arrays: list[NDArray[Any]]) -> NDArray[np.int64]:
    """The job for a team; the arrays must be contiguous, and outlive it."""
    job = [0, turn, 0, rows, classes]
    for array in arrays:
        shape = array.shape if array.ndim == 3 else (array.size, 1, 1)
        job += [array.ctypes.data, *shape]
    return np.array(job, np.int64)
