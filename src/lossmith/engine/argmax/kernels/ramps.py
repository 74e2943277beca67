r"""log P(the target wins) under exponential and uniform noise, and its gradient, for float64 rows on the CPU in one pass.

docs/how/argmax.md, section 14, derives both. Scores are in scales, measured from the strongest rival.

* Exponential noise, F(x) = min(1, eˣ): between two neighbours in the order of the scores the integrand is an exponential, and
  the slope of a rival is the integral up to that rival (A38).
* Uniform noise, F(x) = x between 0 and 1: between the places where a rival reaches 1 the integrand is a polynomial (A39).

Words that the arguments share, beside those of ``target_row``: x: (C,), the scores, −inf for the target and removed classes.
t: the lead of the target. slopes: (C,).
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.double import LEAST_P
from lossmith.engine.argmax.kernels.record import BAD, DONE, LOST, STATUS, SURE, UNSERVED
from lossmith.engine.argmax.kernels.target_row import lead_of, write_gradient, write_log_p, write_plain
from lossmith.engine.runtime.arrays import empty, release
from lossmith.engine.runtime.compiled import jit

STEEPEST = 6.0  # nats that the integrand of uniform noise may fall in a panel
ENOUGH = 1e-17  # of p: what is left out
MOST_PANELS = 4000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@jit
def _exponential(x, t, order, falls, slopes):
    """(log of the integrand's highest value, p / that value, 1 − p or inf); slopes relative to that value.

    order: (C,) int64, the classes by falling score. falls: (C,), scratch.
    """
    highest, above = 0.0, 0.0
    n = np.int64(0)
    while n < len(x) and x[order[n]] > t:
        highest += t - x[order[n]]
        above += 1.0
        n += 1
    start, value, edge = n, 1.0, t
    while n < len(x) and x[order[n]] > -np.inf:  # falls: the integral between this rival and the one before
        low = value * np.exp(-(above + 1) * (edge - x[order[n]]))
        falls[n] = -value * np.expm1(-(above + 1) * (edge - x[order[n]])) / (above + 1)
        value, edge, above = low, x[order[n]], above + 1
        n += 1
    total, last = value / (above + 1), n
    beaten = total
    for k in range(last - 1, -1, -1):
        slopes[order[k]] = total
        if k == start:
            beaten = total
        if k >= start:
            total += falls[k]
    for k in range(last, len(x)):
        slopes[order[k]] = 0.0
    # A target in the lead loses what lies below the strongest rival, and wins the rest of that exponential.
    doubt = np.exp(-t) - beaten if start == 0 and last > 0 else np.inf
    return highest, total, doubt


@jit
def exponential_rows(scores, target, scale, ignored, C, log_p, records, grad, first_row, last_row):
    """Rows first_row … last_row: log p of the target and its gradient in the scores; see ``double.target_rows``."""
    x, falls, slopes = empty(C, np.float64), empty(C, np.float64), empty(C, np.float64)
    bad, unserved = False, False
    for b in range(first_row, last_row):
        status, top, t, inverse = lead_of(scores, target, scale, ignored, C, b)
        records[b, STATUS] = status
        bad |= status == BAD
        unserved |= status == UNSERVED
        if status != DONE:
            write_plain(status, log_p, grad, b, C)
            continue
        own, base = target[b], b * C
        for j in range(C):
            x[j] = (scores[base + j] - top) * inverse if j != own else -np.inf
        highest, total, doubt = _exponential(x, t, np.argsort(-x), falls, slopes)
        log_p[b] = np.log1p(-doubt) if doubt < 0.5 else highest + np.log(total)
        if len(grad) > 0:
            write_gradient(grad, base, C, own, -inverse / total, slopes)
    release((x, falls, slopes))
    return bad, unserved


@jit
def _uniform(x, t, slopes):
    """The integrals p and 1 − p for −1 < t < 1; and whether the panels sufficed."""
    p, doubt, low, high = 0.0, max(-t, 0.0), max(t, 0.0), t + 1
    for j in range(len(x)):
        slopes[j] = 0.0
    for _ in range(MOST_PANELS):
        edge, fall, product = low, 0.0, 1.0
        for j in range(np.uint64(0), np.uint64(len(x))):
            v = high - x[j]
            edge = x[j] + 1 if v > 1 and x[j] + 1 > edge else edge
            fall += 1 / v if v <= 1 else 0.0
            product *= min(v, 1.0)
        if product * (high - low) <= ENOUGH * p:
            return p, doubt + high - low, True
        if fall > 0:
            edge = max(edge, high - STEEPEST / fall)
        half = (high - edge) / 2
        for i in range(len(_NODES)):
            u, weight, product = edge + half * (1 + _NODES[i]), half * _WEIGHTS[i], 1.0
            for j in range(np.uint64(0), np.uint64(len(x))):
                product *= min(u - x[j], 1.0)
            for j in range(np.uint64(0), np.uint64(len(x))):
                v = u - x[j]
                slopes[j] += weight * product / v if v < 1 else 0.0
            p += weight * product
            doubt += weight * (1 - product)
        high = edge
        if high <= low:
            return p, doubt, True
    return p, doubt, False


@jit
def uniform_rows(scores, target, scale, ignored, C, log_p, records, grad, first_row, last_row):
    """Rows first_row … last_row: log p of the target and its gradient in the scores; see ``double.target_rows``."""
    x, slopes = empty(C, np.float64), empty(C, np.float64)
    bad, unserved = False, False
    for b in range(first_row, last_row):
        status, top, t, inverse = lead_of(scores, target, scale, ignored, C, b)
        own, base, p, doubt = target[b], b * C, 0.0, 1.0
        if status == DONE and abs(t) >= 1:
            status = SURE if t > 0 else LOST
        if status == DONE:
            for j in range(C):
                x[j] = (scores[base + j] - top) * inverse if j != own else -np.inf
            p, doubt, enough = _uniform(x, t, slopes)
            if not (enough and p > LEAST_P):
                status = UNSERVED
        records[b, STATUS] = status
        bad |= status == BAD
        unserved |= status == UNSERVED
        if status != DONE:
            write_plain(status, log_p, grad, b, C)
            continue
        share = inverse / write_log_p(log_p, b, p, doubt)
        if len(grad) > 0:
            write_gradient(grad, base, C, own, -share, slopes)
    release((x, slopes))
    return bad, unserved
