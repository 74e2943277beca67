"""log P(the target wins) and its gradient for float32 rows on the CPU: one fused numba kernel each way.

docs/how/argmax.md derives the method and has the equations (A…), docs/how/numbers.md has (N…). In short: a row is measured from
its strongest rival, x_j = (z_j − top) / σ. Other classes fall into cells with six moments each (``cells``). Few classes are a
cell each. Then

    p = h Σ_q f(u_q − t) e^{G(u_q)},        1 − p = h Σ_q f(u_q − t) (1 − e^{G(u_q)}),        G(u) = Σ_j log F(u − x_j),

at thresholds u_q that are multiples of h; the smaller of p and 1 − p is computed. A first sum at a wide step says where the
integrand lives and how narrow its edges are, and so which step it needs (A7), (A8). The gradient in a rival's score is
−Σ_q w_q r(u_q − x_j), w_q the share of u_q in p, summed over thresholds once a cell (A19).

Kernels hold no lock and start no threads (``cpu_entry``, ``threads``). Each row is computed by itself: the bits do not depend
on the number of threads.

Words that the arguments share, beside those of ``cells``:

* B, C: rows and classes. base: place of a row's first score in the flat scores.
* lead, t: of the target over its strongest rival, in scales.
* top: float32, the score of the strongest rival. inverse: float64, 1/σ.
* records: (B, COLUMNS) int32, see ``record``. b: the row.
* weights: (B · capacity,) float32, w_q of the thresholds that are kept. capacity: thresholds of a row, at most.
* steepness: float64, 1/β, how steep the edge of C − 1 equal rivals is at most, per scale.
* powers: (MOMENTS,) float32 scratch. logs, exponent, product, terms: (MOST_THRESHOLDS,) float32 scratch.
"""

from __future__ import annotations

import math

import numpy as np

from lossmith.engine.argmax.kernels.cells import (
    FINE,
    INFINITY,
    MINUS_INFINITY,
    add_function,
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
    padded,
    pieces_of,
    read_off,
    read_off_fine,
    slope_at,
    spread_fine,
    sum_pieces,
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
from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE, STEPS
from lossmith.engine.runtime.arrays import empty, release, zeros
from lossmith.engine.runtime.compiled import inlined, jit, kernel
from lossmith.engine.runtime.simd import WHOLE, bits_of, float_of, number_of

BLOCK = 512  # classes of a block: summed in float32 (N20), and skipped if no class lies in the cells
FINE_FROM = 1 << 9  # classes from which on fine cells pay
FLUSH = 1 << 15  # classes after which sums over fine cells, which lose digits, go to their cells
MOST_THRESHOLDS = 512  # thresholds at a time
BEND, NARROW = 0.65, 0.7  # bounds of h √|G″| (A8) and of h √g / β (A7)
RESOLVED = 1e-2  # bound of |even − odd| / (even + odd), the error at twice the step
ABOUT_HALF = -0.6931  # log p from which on 1 − p is the smaller: log ½, near enough, since either serves there
TINY = 1e-37  # beside the smallest float32: a divisor or a logarithm needs more than 0
LARGEST_INVERSE = 1e30  # 1/σ from which on float32 places of classes overflow

EXACT = ("nsz", "contract")  # (x + R) − R stays
exact = kernel(*EXACT)
LOG2_E = np.float32(math.log2(math.e))
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
ROUND = np.float32(1.5 * 2**23)  # added and taken away, it leaves the nearest integer
EXPONENT_BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)  # of a float32
LEAST_EXPONENT = np.float32(-86)  # e^−86 is a float32 with all its digits, and nothing beside 1
NEAR_ZERO = np.float32(-0.7)  # from here to 0 the series of 1 − e^x is used, to x^10
INVERSE_FACTORIALS = tuple(np.float32(1 / math.factorial(n)) for n in range(11))


@kernel(*EXACT, inlined=True)
def exp_parts(x):
    """p and n, both float32, with e^x = p 2^n, for |x| ≤ 700; p to 1e-7. No libm, so that loops become vector instructions.

    x = n log 2 + r with |r| ≤ log(2)/2; p is a polynomial in r.
    """
    n = (x * LOG2_E + ROUND) - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = INVERSE_FACTORIALS[7]
    p = p * r + INVERSE_FACTORIALS[6]
    p = p * r + INVERSE_FACTORIALS[5]
    p = p * r + INVERSE_FACTORIALS[4]
    p = p * r + INVERSE_FACTORIALS[3]
    p = p * r + INVERSE_FACTORIALS[2]
    p = p * r + np.float32(1)
    return p * r + np.float32(1), n


@exact
def _exp_into(x, out, count):
    """out = e^x for x ≤ 80, to 1e-7; 0 below LEAST_EXPONENT."""
    for q in range(np.uint64(0), np.uint64(count)):
        y = max(x[q], LEAST_EXPONENT)
        p, n = exp_parts(y)
        p *= float_of((np.int32(n) + EXPONENT_BIAS) << MANTISSA_BITS)
        out[q] = p if x[q] > LEAST_EXPONENT else np.float32(0)


@jit
def _times_one_minus_exp(x, exp_x, out, count):
    """out ·= 1 − e^x for x ≤ 0, with its digits near 0; ``exp_x`` is e^x."""
    for q in range(np.uint64(0), np.uint64(count)):
        y = max(x[q], NEAR_ZERO)
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
        out[q] *= -y * p if x[q] > NEAR_ZERO else np.float32(1) - exp_x[q]


@jit
def _peak(logs, sums, exponent, count):
    """exponent = logs + sums − peak; returns the peak, float32, the highest of logs + sums."""
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
def even_and_odd(terms, count):
    """The sums of even and of odd terms, float64 (N20), and the highest term; terms ≥ 0, float32 or float64, ``count`` even."""
    both, signed, highest = 0.0, 0.0, np.int32(0)
    for q in range(np.uint64(0), np.uint64(count)):
        x = terms[q]
        both += float(x)
        signed += float(x) * (1.0 - 2.0 * float(q & np.uint64(1)))
        highest = max(highest, bits_of(x))
    return (both + signed) / 2, (both - signed) / 2, number_of(highest, terms[0])


@jit
def roughness(sums, exponent, above, steepness, h, count):
    """How many times too wide the step h is: the smaller of the two conditions (A7), (A8).

    Args:
        sums: G at the thresholds. exponent: log(f e^G) less its peak.
        above: nats by which log(f e^G) at its peak exceeds the highest term of the sum; 0 where the terms are f e^G.
    """
    most_bend, most_g = np.int32(0), np.int32(0)
    for q in range(np.uint64(1), np.uint64(count - 1)):
        weight = max(min(exponent[q] + above, np.float32(0)) * np.float32(1 / 32) + np.float32(1), np.float32(0))
        weight *= weight
        weight *= weight
        weight *= weight  # about exp(x / 4)
        bend = abs(sums[q - np.uint64(1)] + sums[q + np.uint64(1)] - np.float32(2) * sums[q]) * weight
        g = -sums[q] if exponent[q] >= np.float32(0) else np.float32(0)
        most_bend, most_g = max(most_bend, bits_of(bend)), max(most_g, bits_of(g))
    bend, g = number_of(most_bend, sums[0]), number_of(most_g, sums[0])
    return min(np.sqrt(float(bend)) / BEND, h * steepness * np.sqrt(max(float(g), 1.0)) / NARROW)


@inlined
def class_scratch(C):
    """Scratch for ``row_moments`` and ``rival_gradient``: fine, cell_of, offset, and the highest key of each block."""
    fine = zeros((MAX_CELLS + WHOLE) * FINE * 3 if C >= FINE_FROM else 1, np.float32)
    return fine, empty(BLOCK, np.int32), empty(BLOCK, np.float32), empty(C // BLOCK + 1, np.int32)


@inlined
def threshold_scratch():
    """Scratch for ``evaluate``: logs, exponent, product, terms, powers."""
    logs, exponent, product = (
        empty(MOST_THRESHOLDS, np.float32),
        empty(MOST_THRESHOLDS, np.float32),
        empty(MOST_THRESHOLDS, np.float32),
    )
    return logs, exponent, product, empty(MOST_THRESHOLDS, np.float32), empty(MOMENTS, np.float32)


@inlined
def cell_scratch():
    """Scratch for a row: sums, occupied, slots, and the moments, zeros."""
    occupied, slots = empty(MAX_CELLS, np.int32), empty(MAX_CELLS, np.int32)
    return empty(MOST_THRESHOLDS, np.float32), occupied, slots, zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32)


@jit
def strongest(bits, base, C, y, blocks):
    """Highest and lowest key of the rivals of class y, of all classes for y = −1; blocks: written to, the highest of each."""
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for block in range((C + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        up, down = extremes_without(bits, base + first, base + min(first + BLOCK, C), base + y)
        blocks[block] = up
        high, low = max(high, up), min(low, down)
    return high, low


@inlined
def row_moments(scores, base, C, y, top, inverse, cells, fine, cell_of, offset, blocks, moments, occupied, slots):
    """Add the moments of a row's rivals to ``moments``, which are zeros.

    Args:
        y: the target, or −1. cells: how many count. blocks: as ``strongest`` left it.
        fine: zeros, and zeros afterwards. cell_of, offset: scratch. occupied, slots: written to, see ``sum_pieces``.

    Returns:
        n occupied cells, one more than the last of them, and the stride.
    """
    many = C >= FINE_FROM
    limit = cells * FINE if many else cells
    stride = padded(max(cells, C) + 1) if C <= SINGLE_CLASSES else padded(cells + 1)
    per_cell = np.float32(inverse / CELL * (FINE if many else 1))
    n, used = 0, 0
    if C <= SINGLE_CLASSES:
        locate(scores, base, base + C, top, per_cell, cells, cell_of, offset)
        deposit_each(C, offset, moments, stride)
        if y >= 0:
            cell_of[y] = cells
        for j in range(C):
            if cell_of[j] < cells:
                occupied[n], slots[n] = cell_of[j], j
                n += 1
                used = max(used, cell_of[j] + 1)
        return n, used, stride
    cut = float(top) - cells * CELL / inverse
    since = 0
    for block in range((C + BLOCK - 1) // BLOCK):
        if float(number(blocks[block])) > cut:
            first = block * BLOCK
            last = min(first + BLOCK, C)
            locate(scores, base + first, base + last, top, per_cell, limit, cell_of, offset)
            if first <= y < last:
                cell_of[y - first] = limit
            if many:
                interleave(last - first, cell_of, limit, stride)
                deposit_fine(last - first, cell_of, offset, fine, stride)
                since += last - first
                if since >= FLUSH:
                    gather_fine(fine, moments, stride)
                    since = 0
            else:
                deposit(last - first, cell_of, offset, moments, stride)
    if many:
        gather_fine(fine, moments, stride)
    for c in range(cells):
        if moments[c] > 0:
            occupied[n], slots[n] = c, c
            n += 1
            used = c + 1
    return n, used, stride


@inlined
def first_thresholds(t, lowest, depth, high, guess, coarsest, records, b):
    """Write the first thresholds of row b, at the level ``coarsest``; returns how many cells below its strongest rival count.

    lowest, depth, high: of ``Tables``. guess: the quantile 1 − 1/C, about where the highest of C equal rivals is.
    """
    pace = np.int64((t + FARTHEST) / PACE)
    reach = max(t, guess, 0.0) + high
    start = np.int64(np.floor(lowest[pace] * (STEPS << coarsest)))
    records[b, LEVEL], records[b, START], records[b, STATUS] = coarsest, start, OPEN
    records[b, COUNT] = min(padded(np.int64(np.ceil(reach * (STEPS << coarsest))) - start + 1), MOST_THRESHOLDS)
    return min(max(depth[pace], depth[pace + 1]), MAX_CELLS)


@inlined
def evaluate(
    sums, log_prob, t, steepness, logs, exponent, product, terms, powers, log_p, weights, first_weight, capacity, records, b
):  # fmt: skip
    """From the sums G at the thresholds of row b: log p and weights, or finer thresholds, or the status UNSERVED.

    sums: (≥ count,) float32. log_p: (B,) float32, written to, as are weights, from ``first_weight`` on, and records.
    """
    level, start, count = np.int64(records[b, LEVEL]), np.int64(records[b, START]), np.int64(records[b, COUNT])
    h = 1.0 / (STEPS << level)
    clear(logs, 0, count)
    add_function(logs, log_prob, np.float32(1), t, level, start, count, powers)
    peak = _peak(logs, sums, exponent, count)
    _exp_into(exponent, product, count)  # f e^G, in units of its peak
    even, odd, biggest = even_and_odd(product, count)
    complement = records[b, STATUS] == COMPLEMENT
    if records[b, STATUS] == OPEN and t > 0:
        complement = np.log(h * (even + odd)) + float(peak) > ABOUT_HALF
    if complement:
        _exp_into(logs, terms, count)
        _exp_into(sums, logs, count)
        _times_one_minus_exp(sums, logs, terms, count)
        even, odd, biggest = even_and_odd(terms, count)
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
    above = np.float32(float(peak) - np.log(max(float(biggest), TINY)) if complement else 0.0)
    rough = roughness(sums, exponent, above, steepness, h, count)
    if not (rough <= 1 and difference <= RESOLVED):
        finer = 1
        while rough > 2.0**finer and finer < LEVELS:
            finer += 1
        wider = max(begin - 1, 0)
        records[b, LEVEL], records[b, START] = level + finer, (start + wider) << finer
        records[b, COUNT] = min(padded(((min(end + 1, count - 1) - wider) << finer) + 1), MOST_THRESHOLDS)
        records[b, STATUS] = UNSERVED if level + finer >= LEVELS else COMPLEMENT if complement else DIRECT
        return
    if complement:  # the gradient is that of e^G, which is nothing below its edge
        least *= np.float32(np.exp(-float(peak)))
        while begin < end and product[begin] < least:
            begin += 1
    records[b, START], records[b, COUNT] = start + begin, end - begin + 1
    records[b, STATUS] = DONE if end - begin < capacity else UNSERVED
    if end - begin >= capacity:
        return
    if complement:
        log_p[b] = np.log1p(-h * total)
        share = h * np.exp(float(peak)) / (1 - h * total)
    else:
        log_p[b] = np.log(h * total) + float(peak)
        share = 1 / total
    for q in range(begin, end + 1):
        weights[first_weight + q - begin] = product[q] * share


@inlined
def forward_row(
    scores, bits, base, C, y, inverse, log_cdf, log_prob, lowest, depth, high, least_lead, most_lead, sure_lead, coarsest,
    guess, steepness, log_p, weights, first_weight, capacity, records, b, fine, cell_of, offset, blocks, logs, exponent,
    product, terms, powers, sums, occupied, slots, moments,
):  # fmt: skip
    """Write log p, record and, from ``first_weight`` on, weights of row b; returns whether the row is bad.

    The other arguments are those of ``forward``.
    """
    high_key, low_key = strongest(bits, base, C, y, blocks)
    own = scores[base + y]
    bottom_score, top = float(number(low_key)), number(high_key)
    if high_key >= INFINITY or low_key < MINUS_INFINITY or not own < np.inf or (top == -np.inf and own == -np.inf):
        return True
    if own == -np.inf:
        log_p[b], records[b, STATUS] = -np.inf, LOST
        return False
    t = (float(own) - float(top)) * inverse
    if t >= sure_lead:
        log_p[b], records[b, STATUS] = 0.0, SURE
        return False
    if not (least_lead <= t < most_lead and inverse < LARGEST_INVERSE):
        records[b, STATUS] = UNSERVED
        return False
    cells = first_thresholds(t, lowest, depth, high, guess, coarsest, records, b)
    cells = np.int64(min((float(top) - bottom_score) * inverse / CELL + 1, cells))
    n, used, stride = row_moments(
        scores, base, C, y, top, inverse, cells, fine, cell_of, offset, blocks, moments, occupied, slots
    )
    while records[b, STATUS] > UNSERVED:
        level, start, count = np.int64(records[b, LEVEL]), np.int64(records[b, START]), np.int64(records[b, COUNT])
        sum_pieces(sums, log_cdf, level, start, count, occupied, slots, n, moments, stride)
        evaluate(
            sums, log_prob, t, steepness, logs, exponent, product, terms, powers, log_p, weights, first_weight, capacity,
            records, b,
        )  # fmt: skip
    records[b, CELLS], records[b, TOP] = used, high_key
    clear(moments, 0, MOMENTS * stride)
    return False


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
    log_p,
    weights,
    capacity,
    records,
    first_row,
    last_row,
):
    """Rows first_row … last_row: log p, and what ``backward`` needs.

    Args:
        scores: (B · C,) float32. bits: the same as int32.
        target: (B,) int64. ignored: the target of a row that is not looked at.
        scale: (B,) or (1,) float32.
        log_cdf, log_prob: ``flat_tables``. lowest, depth, high, coarsest, and the three leads: of ``Tables``.
        guess: the quantile 1 − 1/C of the noise, float64.
        log_p: (B,) float32, written to. weights: zeros, written to. records: written to.

    Returns:
        Whether a row is bad: it holds NaN, +inf or nothing but −inf, or its target is no class. Whether a row is UNSERVED.
    """
    scratch = (*class_scratch(C), *threshold_scratch(), *cell_scratch())
    fine, cell_of, offset, blocks, logs, exponent, product, terms, powers, sums, occupied, slots, moments = scratch
    bad, unserved = False, False
    for b in range(first_row, last_row):
        base, y = b * C, target[b]
        if y == ignored:
            log_p[b], records[b, STATUS] = 0.0, SURE
            continue
        if y < 0 or y >= C:
            bad = True
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        bad |= forward_row(
            scores, bits, base, C, y, inverse, log_cdf, log_prob, lowest, depth, high, least_lead, most_lead, sure_lead,
            coarsest, guess, steepness, log_p, weights, b * capacity, capacity, records, b, fine, cell_of, offset, blocks, logs,
            exponent, product, terms, powers, sums, occupied, slots, moments,
        )  # fmt: skip
        unserved |= records[b, STATUS] == UNSERVED
    release(scratch)
    return bad, unserved


@inlined
def rival_gradient(
    scores, bits, base, C, y, top, inverse, slope_by_cell, slope, upstream, weights, first_weight, records, b, fine, cell_of,
    offset, pieces, grad,
):  # fmt: skip
    """Write the gradient of row b, which is DONE, in its rivals to grad[base …]; returns its sum, float64.

    y: the target, or −1. upstream: float32, multiplies the gradient. first_weight: place of the row's weights. The
    arguments from ``fine`` to ``pieces`` are scratch.
    """
    many = C >= FINE_FROM
    level, start = np.int64(records[b, LEVEL]), np.int64(records[b, START])
    count, cells = np.int64(records[b, COUNT]), np.int64(records[b, CELLS])
    limit, per_cell = cells * FINE if many else cells, np.float32(inverse / CELL * (FINE if many else 1))
    factor = np.float32(-float(upstream) * inverse)
    rest = 0.0
    if C <= SINGLE_CLASSES:
        locate(scores, base, base + C, top, per_cell, cells, cell_of, offset)
        if y >= 0:
            cell_of[y] = cells
        for j in range(C):
            g = np.float32(0)
            if cell_of[j] < cells:
                g = factor * slope_at(slope_by_cell, level, start, count, weights, first_weight, cell_of[j], offset[j])
            grad[base + j] = g
            rest += float(g)
        return rest
    stride = padded(cells + 1)
    pieces_of(weights, first_weight, slope, level, start, count, factor, cells, pieces, stride)
    if many:
        spread_fine(pieces, fine, stride)
    cut = float(top) - cells * CELL / inverse
    for first in range(0, C, BLOCK):
        last = min(first + BLOCK, C)
        if many:
            up, _ = extremes_without(bits, base + first, base + last, base + y)
            if float(number(up)) <= cut:
                clear(grad, base + first, base + last)
                continue
        locate(scores, base + first, base + last, top, per_cell, limit, cell_of, offset)
        if first <= y < last:
            cell_of[y - first] = limit
        if many:
            interleave(last - first, cell_of, limit, stride)
            rest += read_off_fine(grad, base + first, last - first, cell_of, offset, fine, stride)
        else:
            rest += read_off(grad, base + first, last - first, cell_of, offset, pieces, stride)
    return rest


@jit
def backward(
    scores, bits, target, scale, slope_by_cell, slope, upstream, weights, capacity, records, grad, C, first_row, last_row
):  # fmt: skip
    """Rows first_row … last_row of the gradient in the scores; zeros where the status is not DONE.

    upstream: (B,) float32. grad: (B · C,) float32, written to. The other arguments are those of ``forward``.
    """
    scratch = (zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32), *class_scratch(C))
    pieces, fine, cell_of, offset, _ = scratch
    for b in range(first_row, last_row):
        base, y = b * C, target[b]
        if records[b, STATUS] != DONE or upstream[b] == 0:
            clear(grad, base, base + C)
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        top = number(records[b, TOP])
        rest = rival_gradient(
            scores, bits, base, C, y, top, inverse, slope_by_cell, slope, upstream[b], weights, b * capacity, records, b,
            fine, cell_of, offset, pieces, grad,
        )  # fmt: skip
        grad[base + y] = -rest
    release(scratch)


@jit
def forward_and_backward(
    scores, bits, target, scale, log_cdf, log_prob, slope_by_cell, slope, lowest, depth, high, least_lead, most_lead,
    sure_lead, coarsest, guess, steepness, ignored, C, log_p, capacity, records, grad, first_row, last_row,
):  # fmt: skip
    """Rows first_row … last_row: log p and, in the same pass, its gradient in the scores.

    grad: (B · C,) float32, written to; zeros where the status is not DONE; (0,) if it is not asked for. The other arguments
    and the result are those of ``forward``, whose weights are scratch here.
    """
    scratch = (
        *class_scratch(C), *threshold_scratch(), *cell_scratch(), zeros(capacity + WHOLE, np.float32),
        zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32),
    )  # fmt: skip
    (
        fine, cell_of, offset, blocks, logs, exponent, product, terms, powers, sums, occupied, slots, moments, weights, pieces
    ) = scratch  # fmt: skip
    differentiate = len(grad) > 0
    bad, unserved = False, False
    for b in range(first_row, last_row):
        base, y = b * C, target[b]
        records[b, STATUS], log_p[b] = SURE, 0.0
        if y != ignored:
            if y < 0 or y >= C:
                bad = True
                continue
            inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
            bad |= forward_row(
                scores, bits, base, C, y, inverse, log_cdf, log_prob, lowest, depth, high, least_lead, most_lead, sure_lead,
                coarsest, guess, steepness, log_p, weights, 0, capacity, records, b, fine, cell_of, offset, blocks, logs,
                exponent, product, terms, powers, sums, occupied, slots, moments,
            )  # fmt: skip
        unserved |= records[b, STATUS] == UNSERVED
        if records[b, STATUS] != DONE:
            if differentiate:
                clear(grad, base, base + C)
            continue
        if differentiate:
            grad[base + y] = -rival_gradient(
                scores, bits, base, C, y, number(records[b, TOP]), inverse, slope_by_cell, slope, np.float32(1), weights, 0,
                records, b, fine, cell_of, offset, pieces, grad,
            )  # fmt: skip
            if C >= FINE_FROM:
                clear(fine, 0, 3 * FINE * padded(records[b, CELLS] + 1))
        clear(weights, 0, np.int64(records[b, COUNT]))
    release(scratch)
    return bad, unserved
