r"""How many rivals exceed a threshold: the chances of each number below k, and of k or more, for the kernel of the k highest.

docs/how/argmax.md derives the sums (A28)–(A32). At each threshold u the rivals are of three kinds:

* near ones, less than ``gap`` below u: one multiplication of a polynomial each;
* weak ones, lower: odds so small that sums of their powers over cells stand for all of them;
* strong ones, far above all thresholds that count: as near ones, but last, since they cannot be divided out again.

The words of the arguments are those of ``cells`` and ``cpu``, and:

* k: from 2 on. polynomial: ((k + 1) · count,) float64, P(m rivals exceed u) at the thresholds from m · count on; for m = k,
  P(k or more do). Where a function has ``size``, the thresholds of the array, ``count`` is how many of them are computed.
* less, more: (count,) float64, F(u − x) and 1 − F(u − x) of one rival.
* log_odds: the table of log F − log(1 − F), by cells. odds: (count,) float32, its values. magnitude, (count,) float32, and
  small, (count,) float64: scratch.
* first, order: from ``sort_by_cell``. cells: those that count; strong_cells: the first of them, with strong rivals; all_cells:
  those with rivals that are near to all thresholds. gap: scales. h: the step of the thresholds.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cells import by_cell, clear, row_length
from lossmith.engine.argmax.kernels.cpu import exact, exp_parts
from lossmith.engine.argmax.kernels.tables import CELL, POWERS
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.engine.runtime.simd import WHOLE, add_multiples, double_of

LEAST_EXPONENT = np.float32(-700)  # e^−700 is a float64 with all its digits
EXPONENT_BIAS, MANTISSA_BITS = np.int64(1023), np.int64(52)  # of a float64
MOST_COUNT = 512  # thresholds at a time


@jit
def more_terms(k):
    """Terms of a series beyond k: a Poisson variable of mean k exceeds k by so many with a chance of 1e-9."""
    return 30 + np.int64(6 * np.sqrt(float(k)))


@exact
def exp_wide(x, out, count):
    """out = e^x for x ≤ 88, float64 with the digits of a float32, e^−700 below −700; as ``cpu._exp_into``."""
    for q in range(np.uint64(0), np.uint64(count)):
        y = max(x[q], LEAST_EXPONENT)
        p, n = exp_parts(y)
        out[q] = float(p) * double_of((np.int64(np.int32(n)) + EXPONENT_BIAS) << MANTISSA_BITS)


@jit
def log_odds_of(table, level, start, count, cell, s, out):
    """out = log F(u − x) − log(1 − F(u − x)) at the thresholds, for a class at s in a cell."""
    w, at = np.uint64(row_length(level)), np.uint64(by_cell(cell, level) + start)
    s2 = s * s
    for q in range(np.uint64(0), np.uint64(count)):
        i = at + q
        low = table[i] + s * table[i + w] + s2 * table[i + w + w]
        i += w + w + w
        out[q] = low + s * s2 * (table[i] + s * table[i + w] + s2 * table[i + w + w])


@jit
def chances(log_odds, count, magnitude, small, less, more):
    """less = F and more = 1 − F from log F − log(1 − F), each with all its digits. magnitude, small: scratch."""
    for q in range(np.uint64(0), np.uint64(count)):
        magnitude[q] = -abs(log_odds[q])
    exp_wide(magnitude, small, count)
    for q in range(np.uint64(0), np.uint64(count)):
        larger = 1.0 / (1.0 + small[q])
        smaller = small[q] * larger
        above = log_odds[q] > np.float32(0)
        less[q] = larger if above else smaller
        more[q] = smaller if above else larger


@jit
def add_trial(polynomial, size, k, less, more, count):
    """One trial more (A28)."""
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
def without_trial(polynomial, size, k, less, more, count, out):
    """out = (1 − q) r_{k−1}, of the trials but one (A30); ``less`` becomes its inverse."""
    for q in range(np.uint64(0), np.uint64(count)):
        out[q] = polynomial[q]
        less[q] = 1.0 / less[q]
    for m in range(1, k):
        at = np.uint64(m * size)
        for q in range(np.uint64(0), np.uint64(count)):
            out[q] = polynomial[at + q] - more[q] * (out[q] * less[q])


@jit
def weighted_slope(table, level, start, count, cell, s, weights):
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
def kth_highest(scores, base, C, y, k, best):
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
def sort_by_cell(count, cell_of, limit, first, order):
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
def near_thresholds(cell, all_cells, gap, h, start, count):
    """How many thresholds, from the first on, a cell is near to: those less than ``gap`` above, made up to eights."""
    if cell < all_cells:
        return count
    below = np.int64(np.ceil((gap - cell * CELL) / h)) - start
    return min(max((below + 7) // 8 * 8, 0), count)


@inlined
def multiply_near(
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
        near = near_thresholds(cell, all_cells, gap, h, start, count)
        if near == 0:
            break
        for i in range(first[cell], first[cell + 1]):
            log_odds_of(log_odds, level, start, near, np.int32(cell), offset[order[i]], odds)
            chances(odds, near, magnitude, small, less, more)
            add_trial(polynomial, count, k, less, more, near)
    for i in range(first[strong_cells]):
        for q in range(k * count):
            before[i * k * count + q] = polynomial[q]
        j = order[i]
        log_odds_of(log_odds, level, start, count, cell_of[j], offset[j], odds)
        chances(odds, count, magnitude, small, less, more)
        add_trial(polynomial, count, k, less, more, count)


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
    """n W_n = Σ_m (−1)^(m+1) P_m W_{n−m} at the thresholds (A31); W_n stands from ``at`` on."""
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
def multiply_weak(
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
        near = near_thresholds(cell, all_cells, gap, h, start, count)
        if first[cell] == first[cell + 1] or near == count:
            continue
        c = np.int32(cell)
        _add_from(sums, 0, log_cdf, 0, level, start, near, count, c, moments, stride)
        for m in range(POWERS):
            _add_from(sums, (1 + m) * width, odds_powers, m * size, level, start, near, count, c, moments, stride)
    for i in range(POWERS * count):
        series[i] = 0.0
    exp_wide(sums, tail, count)
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
