r"""log P(the target is among the k highest) and its gradient for float32 rows on the CPU, in one pass.

docs/how/argmax.md derives the method. With e_m the chance that m rivals exceed u, and e_k that k or more do (``trials``),

    p = h Σ_q f(u_q − t) Σ_{m<k} e_m(u_q),        1 − p = h Σ_q f(u_q − t) e_k(u_q),

of which the smaller is computed. A first look at a wide step, with less exact chances, says where its integrand lives. The
gradient in a rival's score needs the chance that k − 1 of the others exceed u (A30), (A32).

The words of the arguments are those of ``trials``. below, beyond: (count,) float64, the terms of the two sums. density:
(count,) float64, f(u − t).
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cells import (
    INFINITY,
    MINUS_INFINITY,
    add_function,
    by_threshold,
    clear,
    deposit,
    extremes_without,
    locate,
    number,
    padded,
    read_off,
)
from lossmith.engine.argmax.kernels.cpu import LARGEST_INVERSE, even_and_odd
from lossmith.engine.argmax.kernels.record import DONE, LOST, MAX_CELLS, STATUS, SURE, UNSERVED
from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST, LEVELS, MOMENTS, PACE, POWERS, STEPS, WIDTH
from lossmith.engine.argmax.kernels.trials import (
    MOST_COUNT,
    add_trial,
    chances,
    exp_wide,
    kth_highest,
    log_odds_of,
    more_terms,
    multiply_near,
    multiply_weak,
    near_thresholds,
    sort_by_cell,
    weighted_slope,
    without_trial,
)
from lossmith.engine.runtime.arrays import empty, release, zeros
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.engine.runtime.simd import WHOLE, add_multiples

FARTHEST_KTH = 48.0  # scales from the strongest rival down to the k-th, at most: the tables reach twice as far. A rival so
# far above both the k-th and the target is certain to exceed the target
LEAST_TOTAL = 1e-250  # a smaller integral has lost digits below the smallest float64
LEAST_DOUBT = 1e-46  # 1 − p beyond which log p is 0 in float32
RESOLVED = 1e-4  # bound of |even − odd| / (even + odd): the error at twice the step, and about the root of that at the step
JUMP = 0.3  # bound of the change of P(k or more exceed u) from one threshold to the next, where the density is not small
LEAST_KEPT = 12  # thresholds whose terms are kept: a peak that is a Gaussian needs so many
MORE_STRONG = 64  # strong rivals beyond 2 k that a row may have
CLASSES_PER_RANK = 10  # a series of POWERS powers errs by about (k/C)^POWERS, relative to P(k or more exceed u)
MORE_RIVALS = 40  # of 2 k and so many rivals above u, fewer than k exceed u with a chance of 1e-9
MORE_NEAR = 4  # rivals beyond k that are near to all thresholds: what weak ones make of k digits then hardly counts
SPARE = 1.0  # scales by which thresholds start lower than for the k-th rival alone: k of them may be equal
KEPT = 1e-9  # share of the highest term below which a threshold is left out


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
def _density_below(log_prob, level, floor, start, t, powers, logs, small):
    """The sums of f(u − t) over the thresholds floor … start with an even distance from start, and over the others."""
    even, odd = 0.0, 0.0
    for first in range(floor, start, WHOLE):
        clear(logs, 0, WHOLE)
        add_function(logs, log_prob, np.float32(1), t, level, first, WHOLE, powers)
        exp_wide(logs, small, WHOLE)
        for q in range(min(WHOLE, start - first)):
            if (start - first - q) % 2:
                odd += small[q]
            else:
                even += small[q]
    return even, odd


@jit
def _mass(below, beyond, density, q):
    """f(u − t) times the chance that the k-th highest of the rivals lies between the thresholds q and q + 1."""
    if not (density[q] > 0 and density[q + 1] > 0):
        return 0.0
    terms = below if below[q] < beyond[q] else beyond  # the smaller has the digits
    return max(density[q], density[q + 1]) * abs(terms[q + 1] / density[q + 1] - terms[q] / density[q])


@jit
def _first_met(below, beyond, density, count):
    """The place before the first threshold at which the gradient counts: where the k-th highest of the rivals may lie."""
    highest = 0.0
    for q in range(count - 1):
        highest = max(highest, _mass(below, beyond, density, q))
    for q in range(count - 1):
        if _mass(below, beyond, density, q) > KEPT * highest:
            return max(q - 1, 0)
    return 0


@jit
def _add_gradient(grad, at, factor, table, level, start, count, cell, s, without, weights):
    """Add the gradient of one rival; returns it. without: (count,) float64, F r of the trials but one, changed."""
    for q in range(np.uint64(0), np.uint64(count)):
        without[q] = weights[q] * without[q] if weights[q] > 0 else 0.0
    found = np.float32(factor * weighted_slope(table, level, start, count, cell, s, without))
    grad[at] += found
    return float(found)


@jit
def _add_weak_slopes(pieces, plane, from_cell, cells, slope_powers, at, shares):
    """Add Σ_m share_m · (r · odds^m seen from one threshold) to the pieces of the cells from_cell … cells and beyond (A32)."""
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
    base, C, y, inverse, first, order, cell_of, offset, cells, strong_cells, all_cells, gap, h, log_odds, slope_by_cell,
    slope_powers, level, start, count, k, polynomial, before, after, series, weights, odds, magnitude, small, less, more,
    without, pieces, stride, shares, grad,
):  # fmt: skip
    """Write the gradient in all classes, after ``multiply_near`` and ``multiply_weak``, whose arguments these are.

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
                while from_cell < cells and near_thresholds(from_cell, all_cells, gap, h, start, count) > q - 7:
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
        near = near_thresholds(cell, all_cells, gap, h, start, count)
        if near == 0:
            break
        for i in range(first[cell], first[cell + 1]):
            j = order[i]
            log_odds_of(log_odds, level, start, near, np.int32(cell), offset[j], odds)
            chances(odds, near, magnitude, small, less, more)
            without_trial(polynomial, count, k, less, more, near, without)
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
        log_odds_of(log_odds, level, start, count, cell_of[j], offset[j], odds)
        chances(odds, count, magnitude, small, less, more)
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
        add_trial(after, count, k, less, more, count)
    grad[base + y] = -rest


@jit
def topk_rows(
    scores, bits, target, scale, log_cdf, log_prob, log_odds, odds_powers, slope_by_cell, slope_powers, lowest, high,
    least_lead, most_lead, sure_lead, coarsest, guess, faint, far, weak_gap, rough_gap, most_k, ignored, C, log_p, records,
    grad, first_row, last_row,
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
        most_k: k, from 2 to C − 1.
        log_p: (B,) float32, written to. records: (B, COLUMNS) int32, STATUS is written.
        grad: (B · C,) float32, written to; zeros where the status is not DONE; (0,) if it is not asked for.

    Returns:
        Whether a row is bad: it holds NaN, +inf or nothing but −inf, or its target is no class. Whether a row is UNSERVED.
    """
    most, size = 2 * most_k + MORE_STRONG, (most_k + 1) * MOST_COUNT
    scratch = (
        empty(size, np.float64), empty(size, np.float64), empty(most * most_k * MOST_COUNT, np.float64),
        empty((POWERS + most_k + more_terms(most_k)) * MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64),
        empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64),
        empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64), empty(MOST_COUNT, np.float64),
        empty((1 + POWERS) * (MOST_COUNT + WHOLE), np.float32), empty(MOST_COUNT, np.float32), empty(MOST_COUNT, np.float32),
        zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32), empty((MAX_CELLS + 2 * WHOLE) * MOMENTS, np.float32),
        empty(C, np.float32), empty(most_k, np.float32), empty(MOMENTS, np.float32), empty(1 + POWERS, np.float32),
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
        kth = kth_highest(scores, base, C, y, most_k, best)
        if kth == -np.inf:
            continue
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        k = most_k
        while k > 1 and (float(best[k - 1]) - max(float(kth), float(own))) * inverse > FARTHEST_KTH:
            k -= 1  # that rival exceeds the target for sure, and k − 1 places are left to the others
        top = best[k - 1]
        t = (float(own) - float(top)) * inverse
        depth = (float(top) - float(kth)) * inverse
        lead = t + depth
        if lead >= sure_lead:
            continue
        records[b, STATUS] = UNSERVED
        level, lowest_u = coarsest, -np.inf
        if least_lead <= lead < most_lead and depth <= FARTHEST_KTH and inverse < LARGEST_INVERSE:
            lowest_u = lowest[np.int64((lead + FARTHEST) / PACE)] - depth - SPARE
        if not (min(lowest_u, lowest_u - t) > SPARE - FARTHEST):  # where the tables begin
            unserved = True
            continue
        start = np.int64(np.floor(lowest_u * (STEPS << level)))
        reach = max(lead, max(guess, 0.0)) + high - depth
        count = padded(np.int64(np.ceil(reach * (STEPS << level))) - start + 1)
        final, complement, lowest_met = False, False, start
        limit = np.int64(min(max((faint - lowest_u) / CELL, 0.0) + 2, float(MAX_CELLS)))
        locate(scores, base, base + C, top, np.float32(inverse / CELL), limit, cell_of, offset)
        cell_of[y] = limit
        if k < most_k:
            for j in range(C):
                if scores[base + j] > top:
                    cell_of[j] = limit
        sort_by_cell(C, cell_of, limit, first, order)
        stride, highest_cells = padded(limit + 1), limit
        if CLASSES_PER_RANK * k <= C:
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
            multiply_near(
                first, order, cell_of, offset, cells, strong_cells, all_cells, gap, h, log_odds, level, start, count, k,
                polynomial, before, odds, magnitude, small, less, more,
            )  # fmt: skip
            if all_cells < cells:
                multiply_weak(
                    moments, stride, first, cells, all_cells, gap, h, log_cdf, odds_powers, level, start, count, k, polynomial,
                    series, sums, beyond,
                )  # fmt: skip
            clear(odds, 0, count)
            add_function(odds, log_prob, np.float32(1), t, level, start, count, powers)
            exp_wide(odds, density, count)
            _terms(polynomial, k, density, below, beyond, count)
            even, odd, highest = even_and_odd(below, count)
            even_beyond, odd_beyond, highest_beyond = even_and_odd(beyond, count)
            settled = below[0] <= KEPT * density[0]
            if start > floor and (settled or final):  # k or more exceed each threshold below, and the density is all
                even_below, odd_below = _density_below(log_prob, level, floor, start, t, powers, odds, small)
                even_beyond, odd_beyond = even_beyond + even_below, odd_beyond + odd_below
            if not final:  # later thresholds are those of the smaller integral
                complement = even_beyond + odd_beyond < even + odd
            chosen = below
            if complement:
                even, odd, highest, chosen = even_beyond, odd_beyond, highest_beyond, beyond
            total = even + odd
            if complement and h * total < LEAST_DOUBT:
                records[b, STATUS] = SURE
                break
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
                    base, C, y, inverse, first, order, cell_of, offset, cells, strong_cells, all_cells, gap, h,
                    log_odds, slope_by_cell, slope_powers, level, start, count, k, polynomial, before, after, series,
                    density, odds, magnitude, small, less, more, without, pieces, stride, shares, grad,
                )  # fmt: skip
            break
        if CLASSES_PER_RANK * k <= C:
            clear(moments, 0, MOMENTS * stride)
        unserved |= records[b, STATUS] == UNSERVED
    release(scratch)
    return bad, unserved
