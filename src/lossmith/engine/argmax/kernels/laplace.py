r"""log P(the target wins) under Laplace noise, and its gradient, for float64 rows on the CPU in one pass.

docs/how/argmax.md, section 12, derives the method. Scores are in scales, measured from the strongest rival: y_j = e^{x_j} ≤ 1.
With a = e^{−u}/2, a rival at or below the threshold u has F = 1 − a y, and one above has F = 1/(4 a y) (A33). So

* from u = SERIES_FROM on, log of the product of all F is a series in a with the power sums of y, whatever the number of rivals;
* below, every node multiplies the F of all rivals. From u = 0 downwards panels end at the rivals, where f and F have kinks.

p and 1 − p are sums over the same nodes, and all terms are positive. The sums end where the rest is known or nothing (A35).

Words that the arguments share, all numbers float64:

* y: (C,), 0 for the target and for removed classes. t: the lead of the target.
* sums: (TERMS,), Σ y^m for m = 1, 2, ….
* series: (TERMS,), Σ_q w_q a_q^m, with w_q the integrand f e^G of p times the node's weight.
* direct: (C,), Σ_q w_q r(u_q − x_j) over the other nodes, r = f/F.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.record import BAD, DONE, STATUS, SURE, UNSERVED
from lossmith.engine.argmax.kernels.target_row import lead_of, write_gradient, write_log_p, write_plain
from lossmith.engine.runtime.arrays import empty, release
from lossmith.engine.runtime.compiled import inlined, jit

SERIES_FROM = 1.0  # scales above the strongest rival
TERMS = 24  # of the series: (e^−1/2)^24 is 2e-18
WIDEST = 2.0  # scales of a panel: a product of all F has no edge narrower than a scale (A34)
WIDE = 6.0  # scales of a panel where the product is nearly 1, and the density alone is left
NEARLY = 0.05  # sum of the rivals' 1 − F from which on the product is so
SMALLEST = 41.0  # nats: e^−41 is below the rounding of float64
NARROW = 0.25  # scales of a panel for which eight nodes do
BEYOND = 38.0  # scales above the last edge: e^−38 is below the rounding of float64
ENOUGH = 1e-17  # of p and of 1 − p: what is left out
SURE_LEAD = 690.0  # scales from which on e^−t has not all its digits
MOST_PANELS = 4000  # of a row, below the strongest rival
_FEW, _FEW_WEIGHTS = np.polynomial.legendre.leggauss(8)
_MANY, _MANY_WEIGHTS = np.polynomial.legendre.leggauss(16)


@jit
def _density(u, t):
    """f(u − t)."""
    return 0.5 * np.exp(-abs(u - t))


@jit
def _product(y, a):
    """Π F of all rivals."""
    product = 1.0
    for j in range(np.uint64(0), np.uint64(len(y))):
        v = a * y[j]
        product *= 1 - v if v <= 0.5 else 0.25 / v
    return product


@jit
def _add_slopes(y, a, weight, direct):
    """direct += weight · r: r is v / (1 − v) for a rival below the threshold and 1 for one above."""
    for j in range(np.uint64(0), np.uint64(len(y))):
        v = a * y[j]
        direct[j] += weight * v / (1 - v) if v <= 0.5 else weight


@jit
def _next_below(x, u, own):
    """The highest x below u but the target's; −inf if there is none."""
    best = -np.inf
    for j in range(np.uint64(0), np.uint64(len(x))):
        best = x[j] if x[j] < u and x[j] > best and j != np.uint64(own) else best
    return best


@jit
def _far_panel(low, high, t, sums, series):
    """Add a panel above SERIES_FROM to ``series``; returns its shares of p and of 1 − p."""
    p, doubt = 0.0, 0.0
    terms = min(np.int64(SMALLEST / (low + np.log(2.0))) + 1, TERMS)
    middle, half = (low + high) / 2, (high - low) / 2
    for i in range(len(_MANY)):
        u = middle + half * _MANY[i]
        a, f = 0.5 * np.exp(-u), half * _MANY_WEIGHTS[i] * _density(u, t)
        g = 0.0
        for m in range(terms - 1, -1, -1):
            g = a * (g + sums[m] / (m + 1))
        weight = f * np.exp(-g)
        p += weight
        doubt -= f * np.expm1(-g)
        for m in range(terms):
            weight *= a
            series[m] += weight
    return p, doubt


@jit
def _near_panel(low, high, t, y, direct):
    """The same below SERIES_FROM, with the slopes added to ``direct``."""
    p, doubt = 0.0, 0.0
    middle, half = (low + high) / 2, (high - low) / 2
    narrow = high - low < NARROW
    for i in range(8 if narrow else 16):
        u = middle + half * (_FEW[i] if narrow else _MANY[i])
        a, f = 0.5 * np.exp(-u), half * (_FEW_WEIGHTS[i] if narrow else _MANY_WEIGHTS[i]) * _density(u, t)
        product = _product(y, a)
        p += f * product
        doubt += f * (1 - product)
        if f * product > 0:
            _add_slopes(y, a, f * product, direct)
    return p, doubt


@inlined
def _row(x, y, own, t, sums, series, direct):
    """The integrals p and 1 − p; and whether the panels sufficed. x: (C,), the scores in scales."""
    rivals = 0.0
    for m in range(TERMS):
        sums[m], series[m] = 0.0, 0.0
    for j in range(len(y)):
        direct[j] = y[j]  # powers for now
        rivals += y[j] > 0
    for m in range(TERMS):
        total = 0.0
        for j in range(np.uint64(0), np.uint64(len(y))):
            total += direct[j]
            direct[j] *= y[j]
        sums[m] = total
    for j in range(len(y)):
        direct[j] = 0.0
    p, doubt = 0.0, 0.0
    end = max(t, np.log(max(rivals, 1.0))) + BEYOND
    low = SERIES_FROM
    while low < end:
        high = min(low + (WIDEST if 0.5 * np.exp(-low) * sums[0] > NEARLY else WIDE), end)
        if low < t < high:
            high = t
        won, lost = _far_panel(low, high, t, sums, series)
        p, doubt, low = p + won, doubt + lost, high
    high = SERIES_FROM
    for _ in range(MOST_PANELS):
        low = max(_next_below(x, high, own), high - WIDEST)
        if high > 0:
            low = max(low, 0.0)
        if low < t < high:
            low = t
        won, lost = _near_panel(low, high, t, y, direct)
        p, doubt, high = p + won, doubt + lost, low
        if high <= 0:
            reached = _product(y, 0.5 * np.exp(-high))
            rest = 0.5 * np.exp(high - t) if high <= t else 1 - 0.5 * np.exp(t - high)  # F(high − t)
            if reached * min(rest, 1.0) <= ENOUGH * min(p, doubt + rest):
                return p, doubt + rest, True
            if rest <= ENOUGH * min(p, doubt):
                return p, doubt, True
    return p, doubt, False


@jit
def laplace_rows(scores, target, scale, ignored, C, log_p, records, grad, first_row, last_row):
    """Rows first_row … last_row: log p of the target and its gradient in the scores; see ``double.target_rows``."""
    scratch = (
        empty(C, np.float64), empty(C, np.float64), empty(C, np.float64), empty(TERMS, np.float64), empty(TERMS, np.float64)
    )  # fmt: skip
    x, y, direct, sums, series = scratch
    bad, unserved = False, False
    for b in range(first_row, last_row):
        status, top, t, inverse = lead_of(scores, target, scale, ignored, C, b)
        own, base, p, doubt = target[b], b * C, 0.0, 1.0
        if status == DONE and not abs(t) < SURE_LEAD:
            status = SURE if t > 0 else UNSERVED
        if status == DONE:
            for j in range(C):
                x[j] = (scores[base + j] - top) * inverse
                y[j] = np.exp(x[j]) if j != own else 0.0
            p, doubt, enough = _row(x, y, own, t, sums, series, direct)
            status = DONE if enough else UNSERVED
        records[b, STATUS] = status
        bad |= status == BAD
        unserved |= status == UNSERVED
        if status != DONE:
            write_plain(status, log_p, grad, b, C)
            continue
        share = inverse / write_log_p(log_p, b, p, doubt)
        if len(grad) > 0:
            for j in range(C):
                x[j] = 0.0
            for m in range(TERMS - 1, -1, -1):
                weight = series[m]
                for j in range(np.uint64(0), np.uint64(C)):
                    x[j] = (x[j] + weight) * y[j]
            for j in range(C):
                direct[j] += x[j]
            write_gradient(grad, base, C, own, -share, direct)
    release(scratch)
    return bad, unserved
