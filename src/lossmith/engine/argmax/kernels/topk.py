r"""log P(the target is among the k highest) and its gradient for float32 rows on the CPU, in one pass.

Given the threshold u, each rival exceeds u or not: a trial of chance q_j = 1 − F(u − x_j). With e_m = P(m rivals exceed u) and
the tail e_k = P(k or more do), a trial more makes

    e_m ← (1 − q) e_m + q e_{m−1} for m < k,        e_k ← e_k + q e_{k−1};

all terms are positive, and no digit is lost. Then p = h Σ_q f(u_q − t) Σ_{m<k} e_m and 1 − p = h Σ_q f(u_q − t) e_k, of which
the smaller counts. The gradient in a rival's score is −h Σ_q f(u_q − t) f(u_q − x_j) r, with r the chance that k − 1 of the
others exceed u. Without rival j,

    r_0 = e_0 / (1 − q),        r_m = (e_m − q r_{m−1}) / (1 − q),

in which the error grows by q / (1 − q) at each step. Where that is too much, at rivals far above all thresholds that count, r
comes from the polynomials of the others, ``before`` and ``after`` that rival. Polynomials are float64.

The words of the arguments are those of ``cells`` and ``cpu``. log_odds: the table of log F − log(1 − F). size: thresholds that
the arrays of a row hold. polynomial: ((k + 1) · size,) float64, e_m at the thresholds from m · size on.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cells import (
    INFINITY,
    MINUS_INFINITY,
    add_pieces,
    by_cell,
    clear,
    extremes_without,
    locate,
    number,
    padded,
    row_length,
)
from lossmith.engine.argmax.kernels.cpu import (
    BLOCK,
    INVERSE_FACTORIALS,
    LARGEST_INVERSE,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    ROUND,
    exact,
)
from lossmith.engine.argmax.kernels.record import DONE, LOST, MAX_CELLS, STATUS, SURE, UNSERVED
from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE, STEPS
from lossmith.engine.runtime.arrays import empty, release
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.engine.runtime.simd import double_of

FARTHEST_KTH = 48.0  # scales from the strongest rival down to the k-th, at most: the tables reach twice as far
LEAST_EXPONENT = np.float32(-700)  # e^−700 is a float64 with all its digits
EXPONENT_BIAS, MANTISSA_BITS = np.int64(1023), np.int64(52)  # of a float64
LEAST_TOTAL = 1e-250  # a smaller integral has lost digits below the smallest float64
RESOLVED = 1e-4  # bound of |even − odd| / (even + odd): the error at twice the step, and about the root of that at the step
JUMP = 0.3  # bound of the change of P(k or more exceed u) from one threshold to the next, where the density is not small
LEAST_KEPT = 12  # thresholds whose terms are kept: a peak that is a Gaussian needs so many
MOST_COUNT = 256  # thresholds at a time
MORE_STRONG = 64  # strong rivals beyond 2 k that a row may have
SPARE = 1.0  # scales by which thresholds start lower than for the k-th rival alone: k of them may be equal
KEPT = 1e-9  # share of the highest term below which a threshold is left out


@exact
def _exp(x, out, count):
    """out = e^x for x ≤ 88, float64 with the digits of a float32, e^−700 below −700; as ``cpu._exp_into``."""
    for q in range(np.uint64(0), np.uint64(count)):
        y = max(x[q], LEAST_EXPONENT)
        n = (y * LOG2_E + ROUND) - ROUND
        r = (y - n * LN2_HIGH) - n * LN2_LOW
        p = INVERSE_FACTORIALS[7]
        p = p * r + INVERSE_FACTORIALS[6]
        p = p * r + INVERSE_FACTORIALS[5]
        p = p * r + INVERSE_FACTORIALS[4]
        p = p * r + INVERSE_FACTORIALS[3]
        p = p * r + INVERSE_FACTORIALS[2]
        p = p * r + np.float32(1)
        p = p * r + np.float32(1)
        out[q] = float(p) * double_of((np.int64(np.int32(n)) + EXPONENT_BIAS) << MANTISSA_BITS)


@jit
def _log_odds(table, level, start, count, cell, s, out):
    """out = log F(u − x) − log(1 − F(u − x)) at the thresholds, for a class at s in a cell."""
    w, at = np.uint64(row_length(level)), np.uint64(by_cell(cell, level) + start)
    s2 = s * s
    for q in range(np.uint64(0), np.uint64(count)):
        i = at + q
        low = table[i] + s * table[i + w] + s2 * table[i + w + w]
        i += w + w + w
        out[q] = low + s * s2 * (table[i] + s * table[i + w] + s2 * table[i + w + w])


@jit
def _chances(log_odds, count, magnitude, small, less, more):
    """less = F and more = 1 − F from log F − log(1 − F), each with all its digits. magnitude, small: scratch."""
    for q in range(np.uint64(0), np.uint64(count)):
        magnitude[q] = -abs(log_odds[q])
    _exp(magnitude, small, count)
    for q in range(np.uint64(0), np.uint64(count)):
        larger = 1.0 / (1.0 + small[q])
        smaller = small[q] * larger
        above = log_odds[q] > np.float32(0)
        less[q] = larger if above else smaller
        more[q] = smaller if above else larger


@jit
def _add_trial(polynomial, size, k, less, more, count):
    """One trial more: the product with (less + more · s), cut at s^k, which gathers the rest."""
    above = np.uint64(k * size)
    below = above - np.uint64(size)
    for q in range(np.uint64(0), np.uint64(count)):
        polynomial[above + q] += more[q] * polynomial[below + q]
    for m in range(k - 1, 0, -1):
        above, below = np.uint64(m * size), np.uint64((m - 1) * size)
        for q in range(np.uint64(0), np.uint64(count)):
            polynomial[above + q] = less[q] * polynomial[above + q] + more[q] * polynomial[below + q]
    for q in range(np.uint64(0), np.uint64(count)):
        polynomial[q] *= less[q]


@jit
def _without(polynomial, size, k, less, more, count, out):
    """out = (1 − q) r_{k−1}, of the trials but one; ``less`` becomes its inverse."""
    for q in range(np.uint64(0), np.uint64(count)):
        out[q] = polynomial[q]
        less[q] = 1.0 / less[q]
    for m in range(1, k):
        at = np.uint64(m * size)
        for q in range(np.uint64(0), np.uint64(count)):
            out[q] = polynomial[at + q] - more[q] * (out[q] * less[q])


@jit
def _slope(table, level, start, count, cell, s, weights):
    """Σ_q weight_q r(u_q − x) of one class, at s in a cell, float64; r = f/F."""
    w, at = np.uint64(row_length(level)), np.uint64(by_cell(cell, level) + start)
    s2 = s * s
    total = 0.0
    for q in range(np.uint64(0), np.uint64(count)):
        i = at + q
        low = table[i] + s * table[i + w] + s2 * table[i + w + w]
        i += w + w + w
        total += weights[q] * float(low + s * s2 * (table[i] + s * table[i + w] + s2 * table[i + w + w]))
    return total


@jit
def _kth_highest(scores, base, C, y, k, best):
    """The k-th highest score of the rivals of class y, −inf if there are fewer. best: (k,) float32, written to, ascending."""
    for i in range(k):
        best[i] = -np.inf
    for j in range(C):
        x = scores[base + j]
        if x > best[0] and j != y:
            i = 0
            while i + 1 < k and best[i + 1] < x:
                best[i] = best[i + 1]
                i += 1
            best[i] = x
    return best[0]


@inlined
def _multiply_all(
    scores, base, C, y, top, inverse, limit, strong_cells, log_odds, level, start, count, k, polynomial, before, strong,
    strong_offset, cell_of, offset, odds, magnitude, small, less, more,
):  # fmt: skip
    """Write the polynomial of the rivals in the first ``limit`` cells: the weak ones first, then those in ``strong_cells``.

    before: (most · k · count,) float64, the polynomials before each strong rival, written to. strong: (2 · most,) int32, class
    and cell of each, and strong_offset: (most,) float32, its s; written to.

    Returns:
        How many are strong; ``most`` + 1 if more than ``most`` are, and then nothing is written.
    """
    most, n = len(strong_offset), 0
    for q in range(count):
        polynomial[q] = 1.0
    for i in range(count, (k + 1) * count):
        polynomial[i] = 0.0
    per_cell = np.float32(inverse / CELL)
    for first in range(0, C, BLOCK):
        last = min(first + BLOCK, C)
        locate(scores, base + first, base + last, top, per_cell, limit, cell_of, offset)
        if first <= y < last:
            cell_of[y - first] = limit
        for j in range(last - first):
            cell = cell_of[j]
            if cell >= limit:
                continue
            if cell < strong_cells:
                if n == most:
                    return most + 1
                strong[2 * n], strong[2 * n + 1], strong_offset[n] = first + j, cell, offset[j]
                n += 1
                continue
            _log_odds(log_odds, level, start, count, cell, offset[j], odds)
            _chances(odds, count, magnitude, small, less, more)
            _add_trial(polynomial, count, k, less, more, count)
    for i in range(n):
        for q in range(k * count):
            before[i * k * count + q] = polynomial[q]
        _log_odds(log_odds, level, start, count, strong[2 * i + 1], strong_offset[i], odds)
        _chances(odds, count, magnitude, small, less, more)
        _add_trial(polynomial, count, k, less, more, count)
    return n


@jit
def _terms(polynomial, k, density, below, beyond, count):
    """below = f(u − t) Σ_{m<k} e_m, beyond = f(u − t) e_k."""
    for q in range(np.uint64(0), np.uint64(count)):
        below[q] = 0.0
    for m in range(k):
        at = np.uint64(m * count)
        for q in range(np.uint64(0), np.uint64(count)):
            below[q] += polynomial[at + q]
    at = np.uint64(k * count)
    for q in range(np.uint64(0), np.uint64(count)):
        below[q] *= density[q]
        beyond[q] = polynomial[at + q] * density[q]


@jit
def _even_and_odd(terms, count):
    """The sums of the even terms and of the odd ones, and the highest."""
    even, odd, highest = 0.0, 0.0, 0.0
    for q in range(0, count, 2):
        even += terms[q]
        odd += terms[q + 1]
        highest = max(highest, max(terms[q], terms[q + 1]))
    return even, odd, highest


@jit
def _jump(polynomial, k, density, count):
    """The highest change of e_k from one threshold to the next, where the density is above a thousandth of its highest."""
    highest = 0.0
    for q in range(count):
        highest = max(highest, density[q])
    jump, at = 0.0, k * count
    for q in range(count - 1):
        if max(density[q], density[q + 1]) > 1e-3 * highest:
            jump = max(jump, abs(polynomial[at + q + 1] - polynomial[at + q]))
    return jump


@jit
def _first_met(below, beyond, density, count):
    """The place before the first threshold at which the gradient counts: where the k-th highest of the rivals may lie."""
    highest, first = 0.0, 0
    for _ in range(2):  # first the highest mass, then the first place that has a share of it
        for q in range(count - 1):
            if density[q] > 0 and density[q + 1] > 0:
                terms = below if below[q] < beyond[q] else beyond  # the smaller has the digits
                mass = density[q] * abs(terms[q + 1] / density[q + 1] - terms[q] / density[q])
                if first < 0 and mass > KEPT * highest:
                    first = q
                highest = max(highest, mass)
        if first == 0:
            first = -1
    return max(first - 1, 0)


@jit
def _write(grad, at, factor, table, level, start, count, cell, s, without, weights):
    """Write the gradient of one rival; returns it. without: (count,) float64, F r of the trials but one, changed."""
    for q in range(np.uint64(0), np.uint64(count)):
        without[q] = weights[q] * without[q] if weights[q] > 0 else 0.0
    found = np.float32(factor * _slope(table, level, start, count, cell, s, without))
    grad[at] = found
    return float(found)


@inlined
def _rival_gradient(
    scores, base, C, y, top, inverse, limit, strong_cells, log_odds, slope_by_cell, level, start, count, k, polynomial, before,
    after, strong, strong_offset, n, weights, cell_of, offset, odds, magnitude, small, less, more, without, grad,
):  # fmt: skip
    """Write the gradient in all classes; the arguments are those of ``_multiply_all``, which has gone before.

    n: how many rivals are strong. weights: (count,) float64, h f(u − t) / p, 0 where a threshold is left out.
    after: ((k + 1) · count,) float64, scratch.
    """
    per_cell, factor, rest = np.float32(inverse / CELL), -inverse, 0.0
    for first in range(0, C, BLOCK):
        last = min(first + BLOCK, C)
        locate(scores, base + first, base + last, top, per_cell, limit, cell_of, offset)
        if first <= y < last:
            cell_of[y - first] = limit
        for j in range(last - first):
            cell, at = cell_of[j], base + first + j
            grad[at] = 0
            if strong_cells <= cell < limit:
                _log_odds(log_odds, level, start, count, cell, offset[j], odds)
                _chances(odds, count, magnitude, small, less, more)
                _without(polynomial, count, k, less, more, count, without)
                rest += _write(grad, at, factor, slope_by_cell, level, start, count, cell, offset[j], without, weights)
    for q in range(count):
        after[q] = 1.0
    for q in range(count, (k + 1) * count):
        after[q] = 0.0
    for i in range(n - 1, -1, -1):
        cell, s = strong[2 * i + 1], strong_offset[i]
        _log_odds(log_odds, level, start, count, cell, s, odds)
        _chances(odds, count, magnitude, small, less, more)
        for q in range(count):
            without[q] = 0.0
        for m in range(k):
            for q in range(count):
                without[q] += before[(i * k + m) * count + q] * after[(k - 1 - m) * count + q]
        for q in range(count):
            without[q] *= less[q]
        at = base + strong[2 * i]
        rest += _write(grad, at, factor, slope_by_cell, level, start, count, cell, s, without, weights)
        _add_trial(after, count, k, less, more, count)
    grad[base + y] = -rest


@jit
def topk_rows(
    scores, bits, target, scale, log_odds, log_prob, slope_by_cell, lowest, high, least_lead, most_lead, sure_lead, coarsest,
    guess, faint, far, k, ignored, C, log_p, records, grad, first_row, last_row,
):  # fmt: skip
    """Rows first_row … last_row: log p and its gradient in the scores.

    Args:
        scores: (B · C,) float32. bits: the same as int32.
        target: (B,) int64. ignored: the target of a row that is not looked at.
        scale: (B,) or (1,) float32.
        log_odds, log_prob, slope_by_cell, lowest, high, coarsest and the three leads: of the noise, see ``tables``.
        guess: the quantile 1 − 1/C of the noise. faint: scales above a class at which its trial is over. far: scales from a
            threshold up to a strong rival. All float64.
        k: from 2 to C − 1.
        log_p: (B,) float32, written to. records: (B, COLUMNS) int32, STATUS is written.
        grad: (B · C,) float32, written to; zeros where the status is not DONE; (0,) if it is not asked for.

    Returns:
        Whether a row is bad: it holds NaN, +inf or nothing but −inf, or its target is no class. Whether a row is UNSERVED.
    """
    most = 2 * k + MORE_STRONG
    size = (k + 1) * MOST_COUNT
    scratch = (
        empty(size, np.float64), empty(size, np.float64), empty(most * k * MOST_COUNT, np.float64),
        empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64),
        empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64),
        empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float32), empty(MOST_COUNT, np.float32),
        empty(most, np.float32), empty(BLOCK, np.float32), empty(k, np.float32), empty(MOMENTS, np.float32),
        empty(2 * most, np.int32), empty(BLOCK, np.int32),
    )  # fmt: skip
    (
        polynomial, after, before, small, less, more, without, density, below, beyond, odds, magnitude, strong_offset, offset,
        best, powers, strong, cell_of,
    ) = scratch  # fmt: skip
    differentiate = len(grad) > 0
    bad, unserved = False, False
    for b in range(first_row, last_row):
        base, y = b * C, target[b]
        records[b, STATUS], log_p[b] = SURE, 0.0
        if differentiate:
            clear(grad, base, base + C)
        if y == ignored:
            continue
        if y < 0 or y >= C:
            bad = True
            continue
        high_key, low_key = extremes_without(bits, base, base + C, base + y)
        own, top = scores[base + y], number(high_key)
        if high_key >= INFINITY or low_key < MINUS_INFINITY or not own < np.inf or (top == -np.inf and own == -np.inf):
            bad = True
            continue
        if own == -np.inf:
            log_p[b], records[b, STATUS] = -np.inf, LOST
            continue
        kth = _kth_highest(scores, base, C, y, k, best)
        if kth == -np.inf:
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        t = (float(own) - float(top)) * inverse
        depth = (float(top) - float(kth)) * inverse
        lead = t + depth
        if lead >= sure_lead:
            continue
        records[b, STATUS] = UNSERVED
        if not (least_lead <= lead < most_lead and depth <= FARTHEST_KTH and inverse < LARGEST_INVERSE):
            unserved = True
            continue
        level = coarsest
        start = np.int64(np.floor((lowest[np.int64((lead + FARTHEST) / PACE)] - depth - SPARE) * (STEPS << level)))
        reach = max(lead, max(guess, 0.0)) + high - depth
        count = padded(np.int64(np.ceil(reach * (STEPS << level))) - start + 1)
        final, complement, lowest_met = False, False, start
        while 0 < count <= MOST_COUNT:
            h = 1.0 / (STEPS << level)
            limit = np.int64(min((faint - start * h) / CELL + 1, float(MAX_CELLS)))
            strong_cells = max(np.int64(np.floor(-(lowest_met * h + far) / CELL)), 0) if final and differentiate else 0
            n = _multiply_all(
                scores, base, C, y, top, inverse, limit, strong_cells, log_odds, level, start, count, k, polynomial, before,
                strong, strong_offset, cell_of, offset, odds, magnitude, small, less, more,
            )  # fmt: skip
            if n > most:
                break
            own_cell = np.int32(np.floor(-t / CELL))
            powers[0] = 1
            for m in range(1, MOMENTS):
                powers[m] = powers[m - 1] * np.float32(2 * (own_cell + t / CELL) + 1)
            clear(odds, 0, count)
            add_pieces(odds, log_prob, row_length(level), by_cell(own_cell, level) + start, count, powers, np.int32(0), 1)
            _exp(odds, density, count)
            _terms(polynomial, k, density, below, beyond, count)
            even, odd, highest = _even_and_odd(below, count)
            even_beyond, odd_beyond, highest_beyond = _even_and_odd(beyond, count)
            if not final:  # later thresholds are those of the smaller integral
                complement = even_beyond + odd_beyond < even + odd
            chosen = below
            if complement:
                even, odd, highest, chosen = even_beyond, odd_beyond, highest_beyond, beyond
            total = even + odd
            if not total > LEAST_TOTAL:
                break
            begin, end = 0, count - 1
            while begin < end and chosen[begin] < KEPT * highest:
                begin += 1
            while end > begin and chosen[end] < KEPT * highest:
                end -= 1
            if not final:
                lowest_met = start + _first_met(below, beyond, density, count)
            difference, jump = abs(even - odd) / total, _jump(polynomial, k, density, count)
            if difference > RESOLVED or jump > JUMP or end - begin < LEAST_KEPT:
                finer = 2 if difference > 0.1 or jump > 0.7 or 2 * (end - begin) < LEAST_KEPT else 1
                finer = min(finer, LEVELS - 1 - level)
                if finer == 0:
                    break
                level += finer
                begin, end, final = max(begin - 1, 0), min(end + 1, count - 1), True
                lowest_met <<= finer
                start, count = (start + begin) << finer, padded(((end - begin) << finer) + 1)
                continue
            if differentiate and not final:
                start, count, final = start + begin, padded(end - begin + 1), True
                continue
            p = 1 - h * total if complement else h * total
            log_p[b] = np.log1p(-h * total) if complement else np.log(h * total)
            records[b, STATUS] = DONE
            if differentiate:
                for q in range(count):
                    density[q] *= h / p if start + q >= lowest_met and q <= end else 0.0
                _rival_gradient(
                    scores, base, C, y, top, inverse, limit, strong_cells, log_odds, slope_by_cell, level, start, count, k,
                    polynomial, before, after, strong, strong_offset, n, density, cell_of, offset, odds, magnitude, small,
                    less, more, without, grad,
                )  # fmt: skip
            break
        unserved |= records[b, STATUS] == UNSERVED
    release(scratch)
    return bad, unserved
