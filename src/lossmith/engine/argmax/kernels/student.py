r"""log P(the target wins) under Student's t noise, and its gradient, for float64 rows on the CPU in one pass.

docs/how/argmax.md, section 13, derives the method. Scores are in scales over √df, measured from the strongest rival. With
s = (1 + x²)^−½, a tail is F(−x) = s^df H(x s) for x ≥ 0, and H is a polynomial to rounding (A36). So a threshold costs a rival
one square root, one division and DEGREE multiplications, all of them vector instructions. Gauss–Legendre panels grow with their
distance from the scores, since the noise has no feature narrower than that (A37).

Words that the arguments share, beside those of ``target_row``:

* x: (n,), the rivals. t: the lead of the target.
* law: (DEGREE + 5,) from ``law_of``: df, the factor of the density, the narrowest half width, its growth, coefficients of H.
* s, chance, beyond, slope: (n,) scratch; at a threshold u, F(u − x_j), 1 − F(u − x_j) and f/F(u − x_j) in the last three.
* direct: (n,), the slopes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from lossmith.engine.argmax.kernels.double import LEAST_P
from lossmith.engine.argmax.kernels.record import BAD, DONE, STATUS, UNSERVED
from lossmith.engine.argmax.kernels.target_row import lead_of, write_gradient, write_log_p, write_plain
from lossmith.engine.runtime.arrays import empty, release
from lossmith.engine.runtime.compiled import inlined, jit
from lossmith.maths.special import log_student_cdf

DEGREE = 20  # an error of 1e-11 for ``record.MOST_DF`` degrees of freedom, of 1e-13 for eight
MOST_WHOLE = 12  # degrees of freedom up to which s^df is a product
GROWTH = 0.6  # half a panel, at most, beside its distance from a score
ENOUGH, ENOUGH_SINGLE = 1e-17, 1e-9  # of p and of 1 − p: what is left out, for float64 and for float32 scores
MOST_PANELS = 400  # of a row
FARTHEST_LEAD = 1e60
_FEW, _FEW_WEIGHTS = np.polynomial.legendre.leggauss(10)
_MANY, _MANY_WEIGHTS = np.polynomial.legendre.leggauss(16)


@lru_cache(maxsize=64)
def law_of(df: float) -> NDArray[np.float64]:
    """``law``, from H at Chebyshev points of x s in [0, 1]."""
    points = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    sine = (points + 1) / 2
    log_s = 0.5 * np.log1p(-(sine**2))
    log_tail = log_student_cdf(torch.from_numpy(-sine * np.exp(-log_s) * math.sqrt(df)), df).numpy()
    fitted = np.polynomial.chebyshev.chebfit(points, np.exp(log_tail - df * log_s), len(points) - 1)
    density = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    numbers = [df, density, min(GROWTH, 1 / math.sqrt(df)), min(GROWTH, 2 / df)]
    return np.concatenate([numbers, np.polynomial.chebyshev.cheb2poly(fitted[: DEGREE + 1])])


@jit
def _at(x, u, law, s, chance, beyond, slope):
    """Write F, 1 − F and f/F of all rivals at the threshold u."""
    n, df, density = np.uint64(len(x)), law[0], law[1]
    c0, c1, c2, c3, c4, c5, c6 = law[4], law[5], law[6], law[7], law[8], law[9], law[10]
    c7, c8, c9, c10, c11, c12, c13 = law[11], law[12], law[13], law[14], law[15], law[16], law[17]
    c14, c15, c16, c17, c18, c19, c20 = law[18], law[19], law[20], law[21], law[22], law[23], law[24]
    for j in range(np.uint64(0), n):
        d = u - x[j]
        r = 1 / np.sqrt(1 + d * d)
        v = 2 * abs(d) * r - 1
        h = ((((((c20 * v + c19) * v + c18) * v + c17) * v + c16) * v + c15) * v + c14) * v + c13
        h = ((((((h * v + c12) * v + c11) * v + c10) * v + c9) * v + c8) * v + c7) * v + c6
        h = (((((h * v + c5) * v + c4) * v + c3) * v + c2) * v + c1) * v + c0
        s[j], chance[j], beyond[j] = r, h, r
    whole = np.int64(df)
    if whole == df and whole <= MOST_WHOLE:
        for _ in range(whole - 1):
            for j in range(np.uint64(0), n):
                beyond[j] *= s[j]
    else:
        for j in range(np.uint64(0), n):
            beyond[j] = np.exp(df * np.log(s[j]))
    for j in range(np.uint64(0), n):
        tail = chance[j] * beyond[j]
        below = 1 - tail if u >= x[j] else tail
        slope[j] = density * beyond[j] * s[j] / below
        chance[j], beyond[j] = below, (tail if u >= x[j] else 1 - tail)


@jit
def _product(chance, beyond):
    """Π F, and 1 − Π F with its digits; ``beyond`` is used up: 1 − F F' = (1 − F) + F (1 − F')."""
    product, n = 1.0, np.uint64(len(chance))
    for j in range(np.uint64(0), n):
        product *= chance[j]
    while n > 1:
        half = n // np.uint64(2)
        n -= half
        for j in range(np.uint64(0), half):
            beyond[j] += (1 - beyond[j]) * beyond[j + n]
    return product, beyond[0]


@jit
def _one(d, law):
    """f, F and 1 − F of one number."""
    s = 1 / np.sqrt(1 + d * d)
    v, h = 2 * abs(d) * s - 1, 0.0
    for i in range(DEGREE, -1, -1):
        h = h * v + law[4 + i]
    power = np.exp(law[0] * np.log(s))
    tail = h * power
    return law[1] * power * s, tail if d < 0 else 1 - tail, tail if d >= 0 else 1 - tail


@jit
def _half_above(low, t, unit, growth):
    """Half the panel that begins at ``low`` ≥ 0 and ends below its limits (A37)."""
    behind = growth * low / (1 - growth)
    beside = growth * (t - low) / (1 + growth) if t > low else growth * (low - t) / (1 - growth)
    return min(max(unit, behind), max(unit, beside))


@jit
def _half_below(x, high, t, unit, growth):
    """The same of a panel that ends at ``high`` ≤ 0."""
    ahead, behind = growth / (1 + growth), growth / (1 - growth)
    half = max(ahead * (high - t), behind * (t - high))
    for j in range(np.uint64(0), np.uint64(len(x))):
        half = min(half, max(ahead * (high - x[j]), behind * (x[j] - high)))
    return max(unit, half)


@inlined
def _row(x, t, law, single, s, chance, beyond, slope, direct):
    """The integrals p and 1 − p; and whether the panels sufficed."""
    unit, growth, enough = law[2], law[3], ENOUGH_SINGLE if single else ENOUGH
    p, doubt, lowest, edge, upwards = 0.0, 0.0, 0.0, 0.0, True
    for j in range(np.uint64(0), np.uint64(len(x))):
        direct[j] = 0.0
        lowest = min(lowest, x[j])
    faintest = (1 - lowest) ** (-law[0] - 1)  # beside 1, the slope of the hindmost rival
    for _ in range(MOST_PANELS):
        half = _half_above(edge, t, unit, growth) if upwards else _half_below(x, edge, t, unit, growth)
        middle = edge + half if upwards else edge - half
        for i in range(10 if single else 16):
            u = middle + half * (_FEW[i] if single else _MANY[i])
            weight = half * (_FEW_WEIGHTS[i] if single else _MANY_WEIGHTS[i]) * _one(u - t, law)[0]
            _at(x, u, law, s, chance, beyond, slope)
            product, rest = _product(chance, beyond)
            p += weight * product
            doubt += weight * rest
            for j in range(np.uint64(0), np.uint64(len(x))):
                direct[j] += weight * product * slope[j]
        edge = middle + half if upwards else middle - half
        _, below, above = _one(edge - t, law)
        _at(x, edge, law, s, chance, beyond, slope)
        product, rest = _product(chance, beyond)
        if upwards and above * rest <= enough * min(p + above, doubt):
            p += above
            upwards, edge = False, 0.0
            _, below, _ = _one(-t, law)
            _at(x, 0.0, law, s, chance, beyond, slope)
            product, _ = _product(chance, beyond)
        if not upwards:
            if below * product <= enough * faintest * min(p, doubt + below):
                return p, doubt + below, True
            if below <= enough * faintest * min(p, doubt):
                return p, doubt, True
    return p, doubt, False


@jit
def student_rows(scores, target, scale, ignored, C, law, single, log_p, records, grad, first_row, last_row):
    """Rows first_row … last_row: log p of the target and its gradient in the scores; see ``double.target_rows``.

    single: whether the digits of float32 are enough.
    """
    s, chance, beyond = empty(C, np.float64), empty(C, np.float64), empty(C, np.float64)
    slope, rivals, direct = empty(C, np.float64), empty(C, np.float64), empty(C, np.float64)
    bad, unserved, root = False, False, np.sqrt(law[0])
    for b in range(first_row, last_row):
        status, top, t, inverse = lead_of(scores, target, scale, ignored, C, b)
        inverse, t, own, base = inverse / root, t / root, target[b], b * C
        if status == DONE and not abs(t) < FARTHEST_LEAD:
            status = UNSERVED
        if status == DONE:
            n = np.int64(0)
            for j in range(C):
                x = (scores[base + j] - top) * inverse
                if j != own and x > -np.inf:
                    rivals[n] = x
                    n += 1
            p, doubt, enough = _row(rivals[:n], t, law, single, s[:n], chance[:n], beyond[:n], slope[:n], direct[:n])
            if not (enough and p > LEAST_P and doubt > LEAST_P):
                status = UNSERVED
        records[b, STATUS] = status
        bad |= status == BAD
        unserved |= status == UNSERVED
        if status != DONE:
            write_plain(status, log_p, grad, b, C)
            continue
        share = inverse / write_log_p(log_p, b, p, doubt)
        if len(grad) > 0:
            k = np.int64(0)
            for j in range(C):
                served = j != own and scores[base + j] > -np.inf
                slope[j] = direct[k] if served else 0.0
                k += served
            write_gradient(grad, base, C, own, -share, slope)
    release((s, chance, beyond, slope, rivals, direct))
    return bad, unserved
