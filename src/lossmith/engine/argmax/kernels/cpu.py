r"""log P(the target wins) and its gradient for float32 rows on the CPU: one fused numba kernel each way.

A row is measured from its strongest rival. Its other classes fall into cells of width 1/8, each with six moments, so that
G(u) = Σ_j log F(u − x_j) costs six multiplications a cell and threshold, however many classes there are (``tables``); few
classes are a cell each. Then

    p = h Σ_q f(u_q − t) e^{G(u_q)},        1 − p = h Σ_q f(u_q − t) (1 − e^{G(u_q)}),        u_q multiples of h,

whichever is the smaller. The trapezoid rule converges geometrically on analytic integrands (Trefethen & Weideman, SIAM Review
56(3), 2014). What many rivals make narrow are edges of e^G, about exp(−e^{−u/β}), whose Fourier transform falls as
exp(−(π/2)βω), and where the target lies at G = −g, far behind, an integrand narrower than they by √g. A first sum over
thresholds ½ apart, or as near as the noise alone asks for, says where the integrand lives; the step h there follows from either
of two sufficient conditions: h √g ≤ 0.7 β_n, with 1/β_n = n r where n log F = −1, since no n rivals have a sharper edge than n
equals; or h √|G″| ≤ 0.65, an edge counting by the fourth root of the integrand at it. With each p was found within 8e-7 and its
slopes within 1e-6, for normal noise, up to 100,000 rivals in one heap, in two, or scattered, and leads from −50 to 12. The
difference between even and odd thresholds, the error at twice the step, is watched for surprises.

The gradient in a rival's
score is −Σ_q w_q r(u_q − x_j) with w_q the share of u_q in p, summed over thresholds once a cell and read off at each class. A
cell so far down that F is 1 at all thresholds is skipped, and so are blocks of classes that hold nothing nearer.

Kernels hold no lock and start no threads (``team``, ``threads``). Each row is computed by itself, so that the bits do not
depend on the number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from lossmith.engine.argmax.kernels.cells import (
    FINE,
    INFINITY,
    MINUS_INFINITY,
    add_pieces,
    by_cell,
    clear,
    deposit,
    deposit_each,
    deposit_fine,
    extremes_without,
    gather_fine,
    interleave,
    key_of,
    locate,
    number,
    pieces_of,
    read_off,
    read_off_fine,
    row_length,
    slope_at,
    spread_fine,
    sum_pieces,
    whole,
)
from lossmith.engine.argmax.kernels.record import (
    CELLS,
    COMPLEMENT,
    COUNT,
    DIRECT,
    DONE,
    LEVEL,
    LOST,
    MAX_CELLS,
    NEGLIGIBLE,
    OPEN,
    SINGLE_CLASSES,
    START,
    STATUS,
    SURE,
    TOP,
    UNSERVED,
)
from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE
from lossmith.engine.runtime.compiled import inlined, jit, kernel
from lossmith.engine.runtime.simd import WHOLE, bits_of, borrowed, float_of, kept

BLOCK = 512  # classes that are skipped, or not, together
MANY = 1 << 9  # classes from which on fine cells pay
FLUSH = 1 << 15  # classes after which sums over fine cells, which lose digits, go to their cells
MOST = 512  # thresholds at a time
BEND, NARROW = 0.65, 0.7  # most that h √|G″| and h √g / β may be
RESOLVED = 1e-2  # difference of even and odd thresholds that is no surprise

exact = kernel("nsz", "contract")  # (x + R) − R stays
LOG2_E = np.float32(math.log2(math.e))
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
ROUND = np.float32(1.5 * 2**23)  # added and taken away, it leaves the nearest integer
INVERSE_FACTORIALS = tuple(np.float32(1 / math.factorial(n)) for n in range(11))


@exact
def _exp_into(x, out, count):
    """e^x for x ≤ 80, to 1e-7; 0 below −86. No libm, so that the loop becomes vector instructions."""
    for q in range(np.uint64(0), np.uint64(count)):
        y = max(x[q], np.float32(-86))
        n = (y * LOG2_E + ROUND) - ROUND
        r = (y - n * LN2_HIGH) - n * LN2_LOW
        p = INVERSE_FACTORIALS[7]
        p = p * r + INVERSE_FACTORIALS[6]
        p = p * r + INVERSE_FACTORIALS[5]
        p = p * r + INVERSE_FACTORIALS[4]
        p = p * r + INVERSE_FACTORIALS[3]
        p = p * r + INVERSE_FACTORIALS[2]
        p = p * r + np.float32(1)
        p = (p * r + np.float32(1)) * float_of((np.int32(n) + np.int32(127)) << np.int32(23))
        out[q] = p if x[q] > np.float32(-86) else np.float32(0)


@jit
def _times_one_minus_exp(x, exp_x, out, count):
    """out ·= 1 − e^x for x ≤ 0, with its digits near 0."""
    for q in range(np.uint64(0), np.uint64(count)):
        y = max(x[q], np.float32(-0.7))
        p = INVERSE_FACTORIALS[10]
        p = p * y + INVERSE_FACTORIALS[9]
        p = p * y + INVERSE_FACTORIALS[8]
        p = p * y + INVERSE_FACTORIALS[7]
        p = p * y + INVERSE_FACTORIALS[6]
        p = p * y + INVERSE_FACTORIALS[5]
        p = p * y + INVERSE_FACTORIALS[4]
        p = p * y + INVERSE_FACTORIALS[3]
        p = p * y + INVERSE_FACTORIALS[2]
        p = p * y + np.float32(1)
        out[q] *= -y * p if x[q] > np.float32(-0.7) else np.float32(1) - exp_x[q]


@jit
def _peak(logs, sums, exponent, count):
    """The exponent of f e^G less its peak, and the peak."""
    highest = MINUS_INFINITY
    for q in range(np.uint64(0), np.uint64(count)):
        x = logs[q] + sums[q]
        exponent[q] = x
        key = key_of(bits_of(x))
        highest = key if key > highest else highest
    peak = number(highest)
    for q in range(np.uint64(0), np.uint64(count)):
        exponent[q] -= peak
    return peak


@jit
def _sums(terms, count):
    """Of the even and of the odd terms, and the highest; ``count`` is even."""
    both, signed, highest = 0.0, 0.0, np.int32(0)
    for q in range(np.uint64(0), np.uint64(count)):
        x = terms[q]
        both += float(x)
        signed += float(x) * (1.0 - 2.0 * float(q & np.uint64(1)))
        highest = max(highest, bits_of(x))
    return (both + signed) / 2, (both - signed) / 2, float_of(highest)


@jit
def _roughness(sums, exponent, above, steepness, h, count):
    """How many times too wide the step h is; ``exponent`` is 0 where f e^G is highest, ``above`` nats over the terms there."""
    most_bend, most_g = np.int32(0), np.int32(0)
    for q in range(np.uint64(1), np.uint64(count - 1)):
        weight = max(min(exponent[q] + above, np.float32(0)) * np.float32(1 / 32) + np.float32(1), np.float32(0))
        weight *= weight
        weight *= weight
        weight *= weight  # about exp(x / 4)
        bend = abs(sums[q - np.uint64(1)] + sums[q + np.uint64(1)] - np.float32(2) * sums[q]) * weight
        g = -sums[q] if exponent[q] >= np.float32(0) else np.float32(0)
        most_bend, most_g = max(most_bend, bits_of(bend)), max(most_g, bits_of(g))
    bend, g = float_of(most_bend), float_of(most_g)
    return min(np.sqrt(float(bend)) / BEND, h * steepness * np.sqrt(max(float(g), 1.0)) / NARROW)


@inlined
def room(C):
    """Scratch for ``fill`` and ``read`` of rows of C classes: moments of fine cells, places, the highest key of each block."""
    fine = np.zeros((MAX_CELLS + WHOLE) * FINE * 3 if C >= MANY else 1, np.float32)
    return fine, np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32), np.empty(C // BLOCK + 1, np.int32)


@inlined
def desk():
    """Scratch for ``decide``."""
    logs, exponent, product = np.empty(MOST, np.float32), np.empty(MOST, np.float32), np.empty(MOST, np.float32)
    return logs, exponent, product, np.empty(MOST, np.float32), np.empty(MOMENTS, np.float32)


@inlined
def shelf():
    """Thresholds' sums, ``occupied`` and ``slots`` of ``fill``, and the moments, for a row at a time."""
    occupied, slots = np.empty(MAX_CELLS, np.int32), np.empty(MAX_CELLS, np.int32)
    return np.empty(MOST, np.float32), occupied, slots, np.zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32)


@jit
def strongest(bits, base, C, y, blocks):
    """Highest and lowest key of a target's rivals, and the highest of each block; y = −1: all are rivals."""
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for block in range((C + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        up, down = extremes_without(bits, base + first, base + min(first + BLOCK, C), base + y)
        blocks[block] = up
        high, low = max(high, up), min(low, down)
    return high, low


@inlined
def fill(scores, base, C, y, top, inverse, cells, fine, place, within, blocks, moments, occupied, slots):
    """The moments of a row's rivals, into zeros: how many cells are occupied, one more than the last, and the pitch.

    ``blocks`` as ``strongest`` left it; ``occupied`` and ``slots`` as for ``sum_pieces``.
    """
    many = C >= MANY
    limit = cells * FINE if many else cells
    pitch = whole(max(cells, C) + 1) if C <= SINGLE_CLASSES else whole(cells + 1)
    per_cell = np.float32(inverse / CELL * (FINE if many else 1))
    n, used = 0, 0
    if C <= SINGLE_CLASSES:
        locate(scores, base, base + C, top, per_cell, cells, place, within)
        deposit_each(C, within, moments, pitch)
        if y >= 0:
            place[y] = cells
        for j in range(C):
            if place[j] < cells:
                occupied[n], slots[n] = place[j], j
                n += 1
                used = max(used, place[j] + 1)
        return n, used, pitch
    cut = float(top) - cells * CELL / inverse
    since = 0
    for block in range((C + BLOCK - 1) // BLOCK):
        if float(number(blocks[block])) > cut:
            first = block * BLOCK
            last = min(first + BLOCK, C)
            locate(scores, base + first, base + last, top, per_cell, limit, place, within)
            if first <= y < last:
                place[y - first] = limit
            if many:
                interleave(last - first, place, limit, pitch)
                deposit_fine(last - first, place, within, fine, pitch)
                since += last - first
                if since >= FLUSH:
                    gather_fine(fine, moments, pitch)
                    since = 0
            else:
                deposit(last - first, place, within, moments, pitch)
    if many:
        gather_fine(fine, moments, pitch)
    for c in range(cells):
        if moments[c] > 0:
            occupied[n], slots[n] = c, c
            n += 1
            used = c + 1
    return n, used, pitch


@inlined
def open_row(t, lowest, depth, high, guess, coarsest, where, b):
    """The first thresholds of a row, and how many cells below its strongest rival count."""
    pace = int((t + FARTHEST) / PACE)
    reach = max(t, guess, 0.0) + high
    start = int(np.floor(lowest[pace] * (2 << coarsest)))
    where[b, LEVEL], where[b, START], where[b, STATUS] = coarsest, start, OPEN
    where[b, COUNT] = min(whole(int(np.ceil(reach * (2 << coarsest))) - start + 1), MOST)
    return min(max(depth[pace], depth[pace + 1]), MAX_CELLS)


@inlined
def decide(sums, log_prob, t, steepness, logs, exponent, product, terms, powers, out, weights, most, where, b):
    """What follows from the sums at a row's thresholds: log p and the weights of the thresholds, or finer ones, or neither."""
    level, start, count = int(where[b, LEVEL]), int(where[b, START]), int(where[b, COUNT])
    h = 0.5 ** (1 + level)
    own_cell = int(np.floor(-t / CELL))
    powers[0] = 1
    for m in range(1, MOMENTS):
        powers[m] = powers[m - 1] * np.float32(2 * (own_cell + t / CELL) + 1)
    clear(logs, 0, count)
    add_pieces(logs, log_prob, row_length(level), by_cell(own_cell, level) + start, count, powers, 0, 1)
    peak = _peak(logs, sums, exponent, count)
    _exp_into(exponent, product, count)  # f e^G, in units of its peak
    even, odd, biggest = _sums(product, count)
    complement = where[b, STATUS] == COMPLEMENT
    if where[b, STATUS] == OPEN and t > 0:
        complement = np.log(h * (even + odd)) + float(peak) > -0.6931
    if complement:
        _exp_into(logs, terms, count)
        _exp_into(sums, logs, count)
        _times_one_minus_exp(sums, logs, terms, count)
        even, odd, biggest = _sums(terms, count)
        chosen = terms
    else:
        chosen = product
    total = even + odd
    difference = abs(even - odd) / total if total > 0 else 0.0
    least = np.float32(NEGLIGIBLE) * biggest
    begin, end = 0, count - 1
    while begin < end and chosen[begin] < least:
        begin += 1
    while end > begin and chosen[end] < least:
        end -= 1
    above = np.float32(float(peak) - np.log(max(float(biggest), 1e-37)) if complement else 0.0)
    rough = _roughness(sums, exponent, above, steepness, h, count)
    if not (rough <= 1 and difference <= RESOLVED):
        finer = 1
        while rough > 2.0**finer and finer < LEVELS:
            finer += 1
        wider = max(begin - 1, 0)
        where[b, LEVEL], where[b, START] = level + finer, (start + wider) << finer
        where[b, COUNT] = min(whole(((min(end + 1, count - 1) - wider) << finer) + 1), MOST)
        where[b, STATUS] = UNSERVED if level + finer >= LEVELS else COMPLEMENT if complement else DIRECT
        return
    if complement:  # the gradient is that of e^G, which is nothing below its edge
        least *= np.float32(np.exp(-float(peak)))
        while begin < end and product[begin] < least:
            begin += 1
    where[b, START], where[b, COUNT] = start + begin, end - begin + 1
    where[b, STATUS] = DONE if end - begin < most else UNSERVED
    if end - begin >= most:
        return
    if complement:
        out[b] = np.log1p(-h * total)
        share = h * np.exp(float(peak)) / (1 - h * total)
    else:
        out[b] = np.log(h * total) + float(peak)
        share = 1 / total
    for q in range(begin, end + 1):
        weights[b * most + q - begin] = product[q] * share


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
    least_lead,
    most_lead,
    sure_lead,
    coarsest,
    guess,
    steepness,
    ignored,
    C,
    out,
    weights,
    most,
    where,
    first_row,
    last_row,
):
    """Rows first_row … last_row: log p, the thresholds' weights for ``backward``, and what became of each.

    scores (B · C,) float32 and the same as int32 bits; target (B,) int64, ``ignored`` where nothing is asked; scale (B,) or
    (1,) float32; tables and entries of ``Tables``; ``guess``: the quantile 1 − 1/C; ``steepness``: 1/β of C − 1 rivals. out
    (B,) float32; weights (B · most,) float32, zeros; where (B, COLUMNS) int32. Returns two flags: whether a row holds NaN,
    +inf or nothing but −inf, or a target is none; and whether a row is UNSERVED.
    """
    owned = (*room(C), *desk(), *shelf())
    fine, place, within, blocks, logs, exponent, product, terms, powers, sums, occupied, slots, moments = borrowed(owned)
    bad, hard = False, False
    for b in range(first_row, last_row):
        base, y = b * C, target[b]
        if y == ignored:
            out[b], where[b, STATUS] = 0.0, SURE
            continue
        if y < 0 or y >= C:
            bad = True
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        high_key, low_key = strongest(bits, base, C, y, blocks)
        own = scores[base + y]
        bottom_score, top = float(number(low_key)), number(high_key)
        if high_key >= INFINITY or low_key < MINUS_INFINITY or not own < np.inf or (top == -np.inf and own == -np.inf):
            bad = True
            continue
        if own == -np.inf:
            out[b], where[b, STATUS] = -np.inf, LOST
            continue
        t = (float(own) - float(top)) * inverse
        if t >= sure_lead:
            out[b], where[b, STATUS] = 0.0, SURE
            continue
        if not (least_lead <= t < most_lead and inverse < 1e30):
            where[b, STATUS], hard = UNSERVED, True
            continue
        cells = open_row(t, lowest, depth, high, guess, coarsest, where, b)
        cells = int(min((float(top) - bottom_score) * inverse / CELL + 1, cells))
        n, used, pitch = fill(scores, base, C, y, top, inverse, cells, fine, place, within, blocks, moments, occupied, slots)
        while where[b, STATUS] > UNSERVED:
            level, start, count = int(where[b, LEVEL]), int(where[b, START]), int(where[b, COUNT])
            sum_pieces(sums, log_cdf, level, start, count, occupied, slots, n, moments, pitch)
            decide(sums, log_prob, t, steepness, logs, exponent, product, terms, powers, out, weights, most, where, b)
        hard |= where[b, STATUS] == UNSERVED
        where[b, CELLS], where[b, TOP] = used, high_key
        clear(moments, 0, MOMENTS * pitch)
    kept(owned)
    return bad, hard


@inlined
def read(
    scores, bits, base, C, y, top, inverse, slope_by_cell, slope, upstream, weights, most, where, b, fine, place, within,
    pieces, grad,
):  # fmt: skip
    """The gradient of a row that is DONE in its rivals, into ``grad`` from ``base`` on, and its sum; y = −1: all are rivals."""
    many = C >= MANY
    level, start, count, cells = where[b, LEVEL], where[b, START], where[b, COUNT], where[b, CELLS]
    limit, per_cell = cells * FINE if many else cells, np.float32(inverse / CELL * (FINE if many else 1))
    factor = np.float32(-float(upstream) * inverse)
    rest = 0.0
    if C <= SINGLE_CLASSES:
        locate(scores, base, base + C, top, per_cell, cells, place, within)
        if y >= 0:
            place[y] = cells
        for j in range(C):
            g = np.float32(0)
            if place[j] < cells:
                g = factor * slope_at(slope_by_cell, level, start, count, weights, b * most, place[j], within[j])
            grad[base + j] = g
            rest += float(g)
        return rest
    pitch = whole(cells + 1)
    pieces_of(weights, b * most, slope, level, start, count, factor, cells, pieces, pitch)
    if many:
        spread_fine(pieces, fine, pitch)
    cut = float(top) - cells * CELL / inverse
    for first in range(0, C, BLOCK):
        last = min(first + BLOCK, C)
        if many:
            up, _ = extremes_without(bits, base + first, base + last, base + y)
            if float(number(up)) <= cut:
                clear(grad, base + first, base + last)
                continue
        locate(scores, base + first, base + last, top, per_cell, limit, place, within)
        if first <= y < last:
            place[y - first] = limit
        if many:
            interleave(last - first, place, limit, pitch)
            rest += read_off_fine(grad, base + first, last - first, place, within, fine, pitch)
        else:
            rest += read_off(grad, base + first, last - first, place, within, pieces, pitch)
    return rest


@jit
def backward(
    scores, bits, target, scale, slope_by_cell, slope, upstream, weights, most, where, grad, C, first_row, last_row
):  # fmt: skip
    """Rows first_row … last_row of the gradient in the scores; zeros where ``forward`` was not DONE.

    Arguments are as for ``forward``; upstream (B,) and grad (B · C,) are float32.
    """
    owned = (np.zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32), *room(C))
    pieces, fine, place, within, _ = borrowed(owned)
    for b in range(first_row, last_row):
        base, y = b * C, target[b]
        if where[b, STATUS] != DONE or upstream[b] == 0:
            clear(grad, base, base + C)
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        top = number(where[b, TOP])
        rest = read(
            scores, bits, base, C, y, top, inverse, slope_by_cell, slope, upstream[b], weights, most, where, b, fine,
            place, within, pieces, grad,
        )  # fmt: skip
        grad[base + y] = -rest
    kept(owned)
