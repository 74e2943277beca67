r"""log P(the target wins) and its gradient for float32 rows on the CPU: one fused numba kernel each way.

A row is measured from its strongest rival. Its other classes fall into cells of width 1/8, each with six moments, so that
G(u) = Σ_j log F(u − x_j) costs six multiplications a cell and threshold, however many classes there are (``tables``). Then

    p = h Σ_q f(u_q − t) e^{G(u_q)},        1 − p = h Σ_q f(u_q − t) (1 − e^{G(u_q)}),        u_q multiples of h,

whichever is the smaller. The trapezoid rule converges geometrically on analytic integrands (Trefethen & Weideman, SIAM Review
56(3), 2014): the error at step h is about the square of that at 2h, which is the difference between the even and the odd
thresholds. The step starts at 1/8, or more where the range is wide or the classes few, and is halved where that says so. The
gradient in a rival's score is −Σ_q w_q r(u_q − x_j) with w_q the share of u_q in p, summed over thresholds once a cell and read
off at each class. A cell so far down that F is 1 at all thresholds is skipped, and so are blocks of classes that hold nothing
nearer.

Kernels hold no lock and start no threads (``team``, ``threads``). Each row is computed by itself, so that the bits do not
depend on the number of threads.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from lossmith.threshold.cells import (
    FINE,
    INFINITY,
    MINUS_INFINITY,
    STRIDE,
    WHOLE,
    add_pieces,
    add_two_pieces,
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
from lossmith.threshold.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE

BLOCK = 512  # classes that are skipped, or not, together
MANY = 1 << 12  # classes from which on fine cells pay
FLUSH = 1 << 15  # classes after which sums over fine cells, which lose digits, go to their cells
MOST = 512  # thresholds at a time
RESOLVED = 5e-4  # difference of even and odd thresholds whose square is below float32's rounding
NOTHING = 1e-8  # of the highest term: thresholds below are left out
MAX_CELLS = int(1.5 * FARTHEST / CELL)
DONE, SURE, LOST, HARD = 0, 1, 2, 3  # what became of a row; HARD: it is left to the reference
LEVEL, START, COUNT, CELLS, TOP, STATUS, COLUMNS = 0, 1, 2, 3, 4, 5, 6  # of ``where``; the strongest rival as bits

exact = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "contract"})  # (x + R) − R stays
LOG2_E = math.log2(math.e)
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860682030941723212e-6
ROUND = 6755399441055744.0  # 1.5 · 2^52: added and taken away, it leaves the nearest integer
INVERSE_FACTORIALS = tuple(1 / math.factorial(n) for n in range(12))


@exact
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


@jit
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


@jit
def forward(
    scores,
    bits,
    target,
    scale,
    log_cdf,
    log_prob,
    lowest,
    depth,
    high,
    hopeless,
    sure,
    guess,
    ignored,
    out,
    weights,
    where,
    first_row,
    last_row,
):
    """Rows first_row … last_row: log p, the thresholds' weights for ``backward``, and what became of each.

    scores (B, C) float32 and the same as int32 bits; target (B,) int64, ``ignored`` where nothing is asked; scale (B,) or (1,)
    float32; entries of ``Tables``; ``guess``: the quantile 1 − 1/C. out (B,) float32; weights (B, most) float32; where (B,
    COLUMNS) int32. Returns two flags: whether a row holds NaN, +inf or nothing but −inf, or a target is none; and whether
    a row is HARD.
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
    one_key, top_bits = np.empty(1, np.int32), np.empty(1, np.int32)
    bad, hard = False, False
    for b in range(first_row, last_row):
        row, keys, y = scores[b], bits[b], target[b]
        if y == ignored:
            out[b], where[b, STATUS] = 0.0, SURE
            continue
        if y < 0 or y >= C:
            bad = True
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        # The strongest rival, and the highest key of each block on either side of the target.
        high_key, low_key = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
        n_blocks = 0
        for side in range(2):
            start, stop = (0, y) if side == 0 else (y + 1, C)
            for first in range(start, stop, BLOCK):
                up, down = extremes(keys, first, min(first + BLOCK, stop))
                blocks[n_blocks] = up
                n_blocks += 1
                high_key, low_key = max(high_key, up), min(low_key, down)
        own = row[y]
        top = number(high_key, top_bits)
        if high_key >= INFINITY or low_key < MINUS_INFINITY or not own < np.inf or (top == -np.inf and own == -np.inf):
            bad = True
            continue
        if own == -np.inf:
            out[b], where[b, STATUS] = -np.inf, LOST
            continue
        t = (float(own) - float(top)) * inverse
        if t >= sure:
            out[b], where[b, STATUS] = 0.0, SURE
            continue
        if t < hopeless or not inverse < 1e30:
            where[b, STATUS], hard = HARD, True
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
                if float(number(blocks[block], one_key)) > cut:
                    last = min(first + BLOCK, stop)
                    if many:
                        locate(row, first, last, top, per_cell, cells * FINE, cell, within)
                        deposit_fine(last - first, cell, within, fine)
                        since += last - first
                        if since >= FLUSH:
                            gather_fine(fine, cells, moments)
                            since = 0
                    else:
                        locate(row, first, last, top, per_cell, cells, cell, within)
                        deposit(last - first, cell, within, moments)
                block += 1
        if many:
            gather_fine(fine, cells, moments)
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
        count = min((int(np.ceil(reach * (2 << level))) // WHOLE + 1) * WHOLE, MOST)
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
                phase, zero = lattice(c, level)
                at = phase * MOMENTS * width + zero + start
                if k % 2 == 0 and k + 1 < n_used:
                    waiting = at
                elif k % 2 == 0:
                    add_pieces(sums, flat, width, at, count, moments[c * STRIDE : c * STRIDE + STRIDE])
                else:
                    before = occupied[k - 1] * STRIDE
                    add_two_pieces(
                        sums, flat, width, waiting, at, count,
                        moments[before : before + STRIDE], moments[c * STRIDE : c * STRIDE + STRIDE],
                    )  # fmt: skip
            phase, zero = lattice(own_cell, level)
            add_pieces(logs, log_prob[level].reshape(-1), width, phase * MOMENTS * width + zero + start, count, powers)
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
        where[b, STATUS] = state
        hard |= state == HARD
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
            where[b, TOP] = top_bits[0]
        moments[: (cells + 1) * STRIDE] = 0
    return bad, hard


@jit
def backward(scores, bits, target, scale, slope, upstream, weights, where, tops, grad, first_row, last_row):
    """Rows first_row … last_row of the gradient in the scores; zeros where ``forward`` was not DONE.

    ``tops`` is ``where`` as float32, the others are as for ``forward``; upstream (B,) and grad (B, C) are float32.
    """
    C = scores.shape[1]
    many = C >= MANY
    pieces = np.zeros((MOMENTS, MAX_CELLS + WHOLE), np.float32)
    place, share = np.zeros(8, np.int64), np.zeros(8, np.float32)
    fine = np.zeros((MAX_CELLS * FINE + 1) * 4 if many else 1, np.float32)
    cell, within = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    one_key = np.empty(1, np.int32)
    for b in range(first_row, last_row):
        row, out, y = scores[b], grad[b], target[b]
        if where[b, STATUS] != DONE or upstream[b] == 0:
            out[:] = 0
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        top, per_cell = tops[b, TOP], np.float32(inverse / CELL * (FINE if many else 1))
        level, start, count, cells = where[b, LEVEL], where[b, START], where[b, COUNT], where[b, CELLS]
        factor = np.float32(-float(upstream[b]) * inverse)
        pieces_of(weights[b], slope[level], level, start, count, factor, cells, pieces, place, share)
        pieces[:, cells] = 0
        if many:
            spread_fine(pieces, cells, fine)
        cut = float(top) - cells * CELL / inverse
        rest = 0.0
        for side in range(2):
            begin, stop = (0, y) if side == 0 else (y + 1, C)
            for first in range(begin, stop, BLOCK):
                last = min(first + BLOCK, stop)
                if many:
                    up, _ = extremes(bits[b], first, last)
                    if float(number(up, one_key)) <= cut:
                        out[first:last] = 0
                        continue
                    locate(row, first, last, top, per_cell, cells * FINE, cell, within)
                    rest += read_off_fine(out, first, last - first, cell, within, fine)
                else:
                    locate(row, first, last, top, per_cell, cells, cell, within)
                    rest += read_off(out, first, last - first, cell, within, pieces)
        out[y] = -rest
