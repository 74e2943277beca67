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
    by_threshold,
    clear,
    deposit,
    extremes_without,
    locate,
    number,
    padded,
    read_off,
    row_length,
)
from lossmith.engine.argmax.kernels.cpu import (
    INVERSE_FACTORIALS,
    LARGEST_INVERSE,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    ROUND,
    exact,
)
from lossmith.engine.argmax.kernels.record import DONE, LOST, MAX_CELLS, STATUS, SURE, UNSERVED
from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE, POWERS, STEPS, WIDTH
from lossmith.engine.runtime.arrays import empty, release, zeros
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.engine.runtime.simd import WHOLE, add_multiples, double_of

FARTHEST_KTH = 48.0  # scales from the strongest rival down to the k-th, at most: the tables reach twice as far
LEAST_EXPONENT = np.float32(-700)  # e^−700 is a float64 with all its digits
EXPONENT_BIAS, MANTISSA_BITS = np.int64(1023), np.int64(52)  # of a float64
LEAST_TOTAL = 1e-250  # a smaller integral has lost digits below the smallest float64
RESOLVED = 1e-4  # bound of |even − odd| / (even + odd): the error at twice the step, and about the root of that at the step
JUMP = 0.3  # bound of the change of P(k or more exceed u) from one threshold to the next, where the density is not small
LEAST_KEPT = 12  # thresholds whose terms are kept: a peak that is a Gaussian needs so many
MOST_COUNT = 512  # thresholds at a time
MORE_STRONG = 64  # strong rivals beyond 2 k that a row may have
CLASSES_PER_RANK = 10  # a series of POWERS powers errs by about (k/C)^POWERS, relative to P(N ≥ k)
MORE_RIVALS = 40
MORE_NEAR = 4  # rivals beyond k that are near to all thresholds: what weak ones make of k digits then hardly counts
SPARE = 1.0  # scales by which thresholds start lower than for the k-th rival alone: k of them may be equal
KEPT = 1e-9  # share of the highest term below which a threshold is left out


@jit
def more_terms(k):
    """Terms of a series beyond k: a Poisson variable of mean k exceeds k by so many with a chance of 1e-9."""
    return 30 + np.int64(6 * np.sqrt(float(k)))


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


@jit
def _sort(count, cell_of, limit, first, order):
    """Write the classes in the first ``limit`` cells to order, cell by cell; those of cell c begin at first[c]."""
    for c in range(limit + 2):
        first[c] = 0
    for j in range(count):
        first[min(cell_of[j], limit) + 1] += 1
    for c in range(limit + 1):
        first[c + 1] += first[c]
    total = first[limit]
    for j in range(count - 1, -1, -1):
        c = cell_of[j]
        if c < limit:
            first[c + 1] -= 1
            order[first[c + 1]] = j
    for c in range(limit):
        first[c] = first[c + 1]
    first[limit] = total


@jit
def _near(cell, all_cells, gap, h, start, count):
    """How many thresholds, from the first on, a cell is near to: those less than ``gap`` above, made up to eights."""
    if cell < all_cells:
        return count
    below = np.int64(np.ceil((gap - cell * CELL) / h)) - start
    return min(max((below + 7) // 8 * 8, 0), count)


@inlined
def _multiply_near(
    first, order, cell_of, offset, cells, strong_cells, all_cells, gap, h, log_odds, level, start, count, k, polynomial, before,
    odds, magnitude, small, less, more,
):  # fmt: skip
    """Write the polynomial of the near rivals of each threshold, those in ``strong_cells`` last.

    before: (n · k · count,) float64, written to: the polynomials before each of the n strong rivals.
    """
    for q in range(count):
        polynomial[q] = 1.0
    for i in range(count, (k + 1) * count):
        polynomial[i] = 0.0
    for cell in range(strong_cells, cells):
        near = _near(cell, all_cells, gap, h, start, count)
        if near == 0:
            break
        for i in range(first[cell], first[cell + 1]):
            _log_odds(log_odds, level, start, near, np.int32(cell), offset[order[i]], odds)
            _chances(odds, near, magnitude, small, less, more)
            _add_trial(polynomial, count, k, less, more, near)
    for i in range(first[strong_cells]):
        for q in range(k * count):
            before[i * k * count + q] = polynomial[q]
        j = order[i]
        _log_odds(log_odds, level, start, count, cell_of[j], offset[j], odds)
        _chances(odds, count, magnitude, small, less, more)
        _add_trial(polynomial, count, k, less, more, count)


@jit
def _add_from(out, out_at, table, table_at, level, start, near, count, cell, moments, stride):
    """Add to out[out_at …] the sum over a cell's classes of the function of a table, at the thresholds near … count."""
    w, p, c = row_length(level), stride, cell
    at = table_at + by_cell(cell, level) + start
    factors = (
        moments[c], moments[c + p], moments[c + 2 * p], moments[c + 3 * p], moments[c + 4 * p], moments[c + 5 * p]
    )  # fmt: skip
    for q in range(near, count, WHOLE):
        i = at + q
        add_multiples(out, out_at + q, table, (i, i + w, i + 2 * w, i + 3 * w, i + 4 * w, i + 5 * w), factors)


@jit
def _next_term(series, at, count, n, sums, width):
    """n W_n = Σ_m (−1)^(m+1) P_m W_{n−m} at the thresholds; W_n stands from ``at`` on."""
    out, sign = np.uint64(at), 1.0 / n
    for q in range(np.uint64(0), np.uint64(count)):
        series[out + q] = 0.0
    for m in range(1, POWERS + 1):
        before, power = np.uint64(at - m * count), np.uint64(m * width)
        for q in range(np.uint64(0), np.uint64(count)):
            series[out + q] += sign * float(sums[power + q]) * series[before + q]
        sign = -sign
    for q in range(np.uint64(0), np.uint64(count)):
        series[out + q] = max(series[out + q], 0.0)


@inlined
def _multiply_weak(
    moments, stride, first, cells, all_cells, gap, h, log_cdf, odds_powers, level, start, count, k, polynomial, series, sums,
    tail,
):  # fmt: skip
    """Multiply the polynomial by that of the weak rivals, W = Π F · exp(Σ_m (−1)^(m+1) P_m s^m / m), P_m the sums of odds^m.

    Args:
        odds_powers: the tables of odds^m by cells, one after the other.
        series: ((POWERS + k + more_terms(k)) · count,) float64, written to: W_n from (POWERS + n) · count on.
        sums: ((1 + POWERS) · (MOST_COUNT + WHOLE),) float32, written to: Σ log F, P_1, P_2, …
        tail: (count,) float64, scratch: Σ_{m≥n} W_m.
    """
    width, size = MOST_COUNT + WHOLE, len(odds_powers) // POWERS
    clear(sums, 0, (1 + POWERS) * width)
    for cell in range(all_cells, cells):
        near = _near(cell, all_cells, gap, h, start, count)
        if first[cell] == first[cell + 1] or near == count:
            continue
        c = np.int32(cell)
        _add_from(sums, 0, log_cdf, 0, level, start, near, count, c, moments, stride)
        for m in range(POWERS):
            _add_from(sums, (1 + m) * width, odds_powers, m * size, level, start, near, count, c, moments, stride)
    for i in range(POWERS * count):
        series[i] = 0.0
    _exp(sums, tail, count)
    for q in range(count):
        series[POWERS * count + q] = tail[q]
    terms = k + more_terms(k)
    for n in range(1, terms):
        _next_term(series, (POWERS + n) * count, count, n, sums, width)
    for q in range(count):
        total = 0.0
        if sums[width + q] < k:
            for n in range(terms - 1, k - 1, -1):
                total += series[(POWERS + n) * count + q]
        else:
            for n in range(k):
                total += series[(POWERS + n) * count + q]
            total = max(1 - total, 0.0)
        tail[q] = total
    for a in range(k):  # the part of e_k with a near rivals and k − a weak ones or more
        for q in range(count):
            polynomial[k * count + q] += polynomial[a * count + q] * tail[q]
            tail[q] += series[(POWERS + k - 1 - a) * count + q]
    for m in range(k - 1, -1, -1):
        for q in range(np.uint64(0), np.uint64(count)):
            polynomial[np.uint64(m * count) + q] *= series[np.uint64(POWERS * count) + q]
        for a in range(m):
            one, two, out = np.uint64(a * count), np.uint64((POWERS + m - a) * count), np.uint64(m * count)
            for q in range(np.uint64(0), np.uint64(count)):
                polynomial[out + q] += polynomial[one + q] * series[two + q]


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
def _density_below(log_prob, level, floor, start, cell, powers, logs, small):
    """The sums of f(u − t) over the thresholds floor … start with an even distance from start, and over the others."""
    even, odd = 0.0, 0.0
    for first in range(floor, start, WHOLE):
        clear(logs, 0, WHOLE)
        add_pieces(logs, log_prob, row_length(level), by_cell(cell, level) + first, WHOLE, powers, np.int32(0), 1)
        _exp(logs, small, WHOLE)
        for q in range(min(WHOLE, start - first)):
            if (start - first - q) % 2:
                odd += small[q]
            else:
                even += small[q]
    return even, odd


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
def _add_gradient(grad, at, factor, table, level, start, count, cell, s, without, weights):
    """Add the gradient of one rival; returns it. without: (count,) float64, F r of the trials but one, changed."""
    for q in range(np.uint64(0), np.uint64(count)):
        without[q] = weights[q] * without[q] if weights[q] > 0 else 0.0
    found = np.float32(factor * _slope(table, level, start, count, cell, s, without))
    grad[at] += found
    return float(found)


@jit
def _add_weak_slopes(pieces, plane, from_cell, cells, slope_powers, at, shares):
    """Add Σ_m share_m · (r · odds^m seen from one threshold) to the pieces of the cells from_cell … cells, and to some beyond."""
    n = len(slope_powers) // (POWERS + 1)
    factors = (
        shares[0], shares[1], shares[2], shares[3], shares[4], shares[5], shares[6], shares[7], shares[8]
    )  # fmt: skip
    for m in range(MOMENTS):
        for c in range(from_cell, cells, WHOLE):
            i = at + m * WIDTH + c
            places = (i, i + n, i + 2 * n, i + 3 * n, i + 4 * n, i + 5 * n, i + 6 * n, i + 7 * n, i + 8 * n)
            add_multiples(pieces, m * plane + c, slope_powers, places, factors)


@inlined
def _rival_gradient(
    scores, base, C, y, inverse, first, order, cell_of, offset, cells, strong_cells, all_cells, gap, h, log_odds, slope_by_cell,
    slope_powers, level, start, count, k, polynomial, before, after, series, weights, odds, magnitude, small, less, more,
    without, pieces, stride, shares, grad,
):  # fmt: skip
    """Write the gradient in all classes, after ``_multiply_near`` and ``_multiply_weak``, whose arguments these are.

    weights: (count,) float64, h f(u − t) / p, 0 where a threshold is left out. after: ((k + 1) · count,) float64, scratch.
    slope_powers: table by thresholds, of r · odds^m for m = 0 … POWERS, r = f/F. shares: (1 + POWERS,) float32, scratch.
    """
    rest, weak = 0.0, all_cells < cells
    if weak:
        plane = stride + WHOLE
        clear(pieces, 0, MOMENTS * plane)
        from_cell = all_cells
        for q in range(count - 1, -1, -1):
            if q % 8 == 7:  # near rivals come in eights
                while from_cell < cells and _near(from_cell, all_cells, gap, h, start, count) > q - 7:
                    from_cell += 1
            if weights[q] > 0:
                sign = -inverse * weights[q]
                for m in range(1 + POWERS):
                    shares[m] = sign * polynomial[(k - 1 - m) * count + q] if m < k else 0.0
                    sign = -sign
                at = by_threshold(start + q, level)
                _add_weak_slopes(pieces, plane, from_cell, cells, slope_powers, at, shares)
        for m in range(MOMENTS):
            clear(pieces, m * plane + cells, (m + 1) * plane)
        rest += read_off(grad, base, C, cell_of, offset, pieces, plane)
    for cell in range(strong_cells, cells):
        near = _near(cell, all_cells, gap, h, start, count)
        if near == 0:
            break
        for i in range(first[cell], first[cell + 1]):
            j = order[i]
            _log_odds(log_odds, level, start, near, np.int32(cell), offset[j], odds)
            _chances(odds, near, magnitude, small, less, more)
            _without(polynomial, count, k, less, more, near, without)
            rest += _add_gradient(
                grad, base + j, -inverse, slope_by_cell, level, start, near, np.int32(cell), offset[j], without, weights
            )  # fmt: skip
    for q in range(k * count):
        after[q] = series[POWERS * count + q] if weak else 0.0
    if not weak:
        for q in range(count):
            after[q] = 1.0
    for i in range(first[strong_cells] - 1, -1, -1):
        j = order[i]
        _log_odds(log_odds, level, start, count, cell_of[j], offset[j], odds)
        _chances(odds, count, magnitude, small, less, more)
        for q in range(count):
            without[q] = 0.0
        for m in range(k):
            for q in range(count):
                without[q] += before[(i * k + m) * count + q] * after[(k - 1 - m) * count + q]
        for q in range(count):
            without[q] *= less[q]
        rest += _add_gradient(
            grad, base + j, -inverse, slope_by_cell, level, start, count, cell_of[j], offset[j], without, weights
        )  # fmt: skip
        _add_trial(after, count, k, less, more, count)
    grad[base + y] = -rest


@jit
def topk_rows(
    scores, bits, target, scale, log_cdf, log_prob, log_odds, odds_powers, slope_by_cell, slope_powers, lowest, high,
    least_lead, most_lead, sure_lead, coarsest, guess, faint, far, weak_gap, rough_gap, k, ignored, C, log_p, records, grad,
    first_row, last_row,
):  # fmt: skip
    """Rows first_row … last_row: log p and its gradient in the scores.

    Args:
        scores: (B · C,) float32. bits: the same as int32.
        target: (B,) int64. ignored: the target of a row that is not looked at.
        scale: (B,) or (1,) float32.
        log_cdf … slope_powers, lowest, high, coarsest and the three leads: of the noise, see ``tables.topk_arrays``.
        guess: the quantile 1 − 1/C of the noise. faint: scales above a class at which its trial is over. far: scales from a
            threshold up to a strong rival. weak_gap: scales from a weak rival up to the thresholds. rough_gap: the same for
            a first look. All float64.
        k: from 2 to C − 1.
        log_p: (B,) float32, written to. records: (B, COLUMNS) int32, STATUS is written.
        grad: (B · C,) float32, written to; zeros where the status is not DONE; (0,) if it is not asked for.

    Returns:
        Whether a row is bad: it holds NaN, +inf or nothing but −inf, or its target is no class. Whether a row is UNSERVED.
    """
    most, size = 2 * k + MORE_STRONG, (k + 1) * MOST_COUNT
    scratch = (
        empty(size, np.float64), empty(size, np.float64), empty(most * k * MOST_COUNT, np.float64),
        empty((POWERS + k + more_terms(k)) * MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64),
        empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64),
        empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64),
        empty((1 + POWERS) * (MOST_COUNT + WHOLE), np.float32), empty(MOST_COUNT, np.float32), empty(MOST_COUNT, np.float32),
        zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32), empty((MAX_CELLS + 2 * WHOLE) * MOMENTS, np.float32),
        empty(C, np.float32), empty(k, np.float32), empty(MOMENTS, np.float32), empty(1 + POWERS, np.float32),
        empty(C, np.int32), empty(C, np.int32), empty(MAX_CELLS + 2, np.int64),
    )  # fmt: skip
    (
        polynomial, after, before, series, small, less, more, without, density, below, beyond, sums, odds, magnitude, moments,
        pieces, offset, best, powers, shares, cell_of, order, first,
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
        limit = np.int64(min((faint - start * (1.0 / (STEPS << level))) / CELL + 1, float(MAX_CELLS)))
        locate(scores, base, base + C, top, np.float32(inverse / CELL), limit, cell_of, offset)
        cell_of[y] = limit
        _sort(C, cell_of, limit, first, order)
        stride, highest_cells = padded(limit + 1), limit
        if C >= CLASSES_PER_RANK * k:
            deposit(C, cell_of, offset, moments, stride)
            highest_cells = 0
            while highest_cells < limit and first[highest_cells] < k + MORE_NEAR:
                highest_cells += 1
        # Where 2 k + MORE_RIVALS rivals lie above u, hardly ever do fewer than k exceed u: a first look begins there.
        high_cell, floor, above = 0, start, start + count
        while high_cell < limit and first[high_cell] < 2 * k + MORE_RIVALS:
            high_cell += 1
        if high_cell < limit:
            start = max(start, np.int64(np.floor(-high_cell * CELL * (STEPS << level))))
            count = padded(above - start)
        while 0 < count <= MOST_COUNT:
            h = 1.0 / (STEPS << level)
            cells = np.int64(min((faint - start * h) / CELL + 1, float(limit)))
            strong_cells = max(np.int64(np.floor(-(lowest_met * h + far) / CELL)), 0) if final and differentiate else 0
            strong_cells = min(strong_cells, cells)
            all_cells = max(strong_cells, highest_cells)
            if first[strong_cells] > most:
                break
            gap = weak_gap if final else rough_gap
            _multiply_near(
                first, order, cell_of, offset, cells, strong_cells, all_cells, gap, h, log_odds, level, start, count, k,
                polynomial, before, odds, magnitude, small, less, more,
            )  # fmt: skip
            if all_cells < cells:
                _multiply_weak(
                    moments, stride, first, cells, all_cells, gap, h, log_cdf, odds_powers, level, start, count, k, polynomial,
                    series, sums, beyond,
                )  # fmt: skip
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
            settled = below[0] <= KEPT * density[0]
            if start > floor and (settled or final):  # k or more exceed each threshold below, and the density is all
                even_below, odd_below = _density_below(log_prob, level, floor, start, own_cell, powers, odds, small)
                even_beyond, odd_beyond = even_beyond + even_below, odd_beyond + odd_below
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
                if start > floor and begin == 0 and not (complement and settled):  # fewer than k may well exceed those below
                    start, count = floor, padded(above - floor)
                    continue
                if not (start > floor and begin == 0):
                    floor = start + begin
                lowest_met = start + _first_met(below, beyond, density, count)
            difference, jump = abs(even - odd) / total, _jump(polynomial, k, density, count)
            if difference > RESOLVED or jump > JUMP or end - begin < LEAST_KEPT:
                finer = 2 if difference > 0.1 or jump > 0.7 or 2 * (end - begin) < LEAST_KEPT else 1
                finer = min(finer, LEVELS - 1 - level)
                if finer == 0:
                    break
                level += finer
                begin, end, final = max(begin - 1, 0), min(end + 1, count - 1), True
                lowest_met, floor = lowest_met << finer, floor << finer
                start, count = (start + begin) << finer, padded(((end - begin) << finer) + 1)
                continue
            if not final:
                start, count, final = start + begin, padded(end - begin + 1), True
                continue
            p = 1 - h * total if complement else h * total
            log_p[b] = np.log1p(-h * total) if complement else np.log(h * total)
            records[b, STATUS] = DONE
            if differentiate:
                for q in range(count):
                    density[q] *= h / p if start + q >= lowest_met and q <= end else 0.0
                _rival_gradient(
                    scores, base, C, y, inverse, first, order, cell_of, offset, cells, strong_cells, all_cells, gap, h,
                    log_odds, slope_by_cell, slope_powers, level, start, count, k, polynomial, before, after, series,
                    density, odds, magnitude, small, less, more, without, pieces, stride, shares, grad,
                )  # fmt: skip
            break
        if C >= CLASSES_PER_RANK * k:
            clear(moments, 0, MOMENTS * stride)
        unserved |= records[b, STATUS] == UNSERVED
    release(scratch)
    return bad, unserved
