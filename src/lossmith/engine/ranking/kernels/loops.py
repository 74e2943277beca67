"""Sums over all pairs of two sets of scores, and their gradients, as loops for numba.

Smooth noise: ``deposit`` adds scores to the moments of their panels (``pairs``), of powers of the place t in [−1, 1] within the
panel, and ``read_off`` evaluates a polynomial of the panel at each score. Noise with kinks: ``fading`` and ``windows`` walk
over the sorted scores, once from either end, and keep what the sums over everything passed need.

Sums of many terms are in two levels, a few hundred terms each, lest rounding grows with n. An array of no elements stands for
weights of 1 and for results that are not asked for.
"""

from __future__ import annotations

import math

import numpy as np

from lossmith.engine.runtime.compiled import kernel

LAPLACE, EXPONENTIAL, UNIFORM = 0, 1, 2
POWERS = 16  # = pairs.TERMS
FEW = 256  # terms of a sum
FOUND = 6  # numbers that ``survey`` finds in a chunk
MOMENTS = 32  # numbers that ``windows`` keeps: five kinds of two sets' three moments

# No reassociation: it would undo the two levels of the sums.
jit = kernel("contract")


@jit
def survey(scores, target, weight, side, found, first, last):
    """Range of the scores, whether all is well, how many positives, and the highest weight on either side."""
    low, high, well, positives = scores[first], scores[first], True, 0
    heaviest = np.float64(weight.size == 0)
    other = heaviest
    for i in range(first, last):
        s, y = scores[i], target[i]
        low = s if s < low else low
        high = s if s > high else high
        well &= (s - s == 0) & ((y == 0) | (y == 1))
        side[i] = y
        positives += y
    if weight.size:
        for i in range(first, last):
            w = weight[i]
            well &= (w >= 0) & (w - w == 0)
            if side[i]:
                heaviest = max(w, heaviest)
            else:
                other = max(w, other)
    found[0], found[1], found[2], found[3], found[4], found[5] = low, high, well, positives, heaviest, other


@jit
def deposit(scores, side, weight, numbers, panels, sums, fine, first, last):
    """Add Σ w t^k to (2, panels, POWERS) sums, the winners' (side 1) first, by way of ``fine`` sums of few terms."""
    origin, scale, per_width, start = numbers[0], numbers[1], numbers[2], numbers[3]
    # Emptying the fine sums costs 32 additions a panel: done more rarely if there are many, which then get fewer scores each.
    turn = max(FEW, 8 * panels)
    direct = turn >= last - first
    into = sums if direct else fine
    for begin in range(first, last, turn):
        for i in range(begin, min(begin + turn, last)):
            y = (np.float64(scores[i]) - origin) / scale * per_width
            panel = math.floor(y)
            t = 2 * (y - panel) - 1
            place = np.uint64(np.int64(panel - start) + (0 if side[i] else panels))
            at = place * np.uint64(POWERS)
            w = weight[i] if weight.size else 1.0
            square = t * t
            a, b, c, d, fourth = w, w * t, w * square, w * square * t, square * square
            for k in range(np.uint64(4)):
                into[at + np.uint64(4) * k] += a
                into[at + np.uint64(4) * k + np.uint64(1)] += b
                into[at + np.uint64(4) * k + np.uint64(2)] += c
                into[at + np.uint64(4) * k + np.uint64(3)] += d
                a *= fourth
                b *= fourth
                c *= fourth
                d *= fourth
        if not direct:
            for k in range(np.uint64(2 * panels * POWERS)):
                sums[k] += fine[k]
                fine[k] = 0


@jit
def _polynomial(c, at, t):
    """Σ_k c_{at + k} t^k, even and odd powers apart."""
    square = t * t
    even, odd = c[at + np.uint64(14)], c[at + np.uint64(15)]
    for k in range(np.uint64(2), np.uint64(POWERS), np.uint64(2)):
        even = even * square + c[at + np.uint64(14) - k]
        odd = odd * square + c[at + np.uint64(15) - k]
    return even + t * odd


@jit
def read_off(scores, side, weight, numbers, panels, slopes, values, by_score, by_weight, first, last):
    """The gradient in each score and, if asked for, weight; returns Σ gradient · (score − origin) / scale."""
    origin, scale, per_width, start = numbers[0], numbers[1], numbers[2], numbers[3]
    moved = 0.0
    for begin in range(first, last, FEW):
        part = 0.0
        for i in range(begin, min(begin + FEW, last)):
            x = (np.float64(scores[i]) - origin) / scale
            y = x * per_width
            panel = math.floor(y)
            t = 2 * (y - panel) - 1
            at = np.uint64(np.int64(panel - start) + (0 if side[i] else panels)) * np.uint64(POWERS)
            slope = (weight[i] if weight.size else 1.0) * _polynomial(slopes, at, t)
            by_score[i] = slope
            part += slope * x
            if by_weight.size:
                by_weight[i] = _polynomial(values, at, t)
        moved += part
    return moved


@jit
def arrange(scores, side, weight, numbers, order, x, sorted_side, sorted_weight, first, last):
    """Scores in units of the noise, sides and weights in ascending order."""
    origin, scale = numbers[0], numbers[1]
    for r in range(first, last):
        i = order[r]
        x[r] = (np.float64(scores[i]) - origin) / scale
        sorted_side[r] = side[i]
        if weight.size:
            sorted_weight[r] = weight[i]


@jit
def fading(x, side, weight, backwards, kind, slope, lost):
    """Over everything passed of the other set: lost_r = Σ w H(−δ), or Σ w H(δ) where r wins, and slope_r = Σ w H'(δ).

    δ ≥ 0 is the distance. Scores at a below a reference enter through Σ w e^a and Σ w a e^a; the reference moves on before a
    exceeds 1, so that nothing is lost in differences. Returns Σ_r w_r lost_r, the wins over all pairs if r wins over what is
    lower.
    """
    n = len(x)
    sign = -1.0 if backwards else 1.0
    wins = part = ref = 0.0
    w0 = w1 = w2 = v0 = v1 = v2 = 0.0  # of the winners and of the losers: both sums and the weight passed
    a0 = a1 = a2 = b0 = b1 = b2 = 0.0  # the same since the reference moved
    count = FEW
    for k in range(n):
        r = n - 1 - k if backwards else k
        y = sign * x[r]
        ahead = y - ref
        if ahead > 1 or count == FEW:
            w0, v0 = w0 + a0, v0 + b0
            fade = math.exp(-ahead) if k else 0.0
            w1, v1 = (w1 + a1 - ahead * w0) * fade, (v1 + b1 - ahead * v0) * fade
            w0, v0 = w0 * fade, v0 * fade
            w2, v2 = w2 + a2, v2 + b2
            wins += part
            part = a0 = a1 = a2 = b0 = b1 = b2 = 0.0
            ref, ahead, count = y, 0.0, 0
        count += 1
        w = weight[r] if weight.size else 1.0
        rise = math.exp(ahead)
        if side[r]:
            s0, s1, passed = v0 + b0, v1 + b1, v2 + b2
            a0 += w * rise
            a1 += w * rise * ahead
            a2 += w
        else:
            s0, s1, passed = w0 + a0, w1 + a1, w2 + a2
            b0 += w * rise
            b1 += w * rise * ahead
            b2 += w
        near = s0 / rise  # Σ w e^{−δ}
        if kind == LAPLACE:
            far = (ahead * s0 - s1) / rise  # Σ w δ e^{−δ}
            behind, steep = near / 2 + far / 4, (near + far) / 4
        else:
            behind, steep = near / 2, near / 2
        if (side[r] != 0) != backwards:
            behind = passed - behind
        part += w * behind
        if slope.size:
            slope[r] = steep
            lost[r] = behind
    return wins + part


@jit
def windows(x, side, weight, backwards, m, slope, lost):
    """As ``fading`` with H(−δ) = (1 − δ)²/2 for δ ≤ 1: sums of w t^k, t the place within panels of width 1.

    m holds, for the losers' and the winners' three moments each: those of the own panel, the latest of them, those of the panel
    before, and what of these is out of reach, with the latest of that.
    """
    n = len(x)
    sign = -1.0 if backwards else 1.0
    own, late, before, gone, left = 0, 6, 12, 18, 24
    wins = part = passed_winners = passed_losers = late_winners = late_losers = 0.0
    panel = math.floor(sign * (x[n - 1] if backwards else x[0])) - 8.0
    begin = tail = tail_end = count = 0
    for k in range(n):
        r = n - 1 - k if backwards else k
        y = sign * x[r]
        floor = math.floor(y)
        t = y - floor
        if floor != panel:
            adjacent = floor == panel + 1
            for j in range(6):
                m[before + j] = m[own + j] + m[late + j] if adjacent else 0.0
                m[own + j] = m[late + j] = m[gone + j] = m[left + j] = 0.0
            tail, tail_end = begin if adjacent else k, k
            begin, panel = k, floor
        if count == FEW:
            for j in range(6):
                m[own + j] += m[late + j]
                m[gone + j] += m[left + j]
                m[late + j] = m[left + j] = 0.0
            passed_winners, passed_losers, wins = passed_winners + late_winners, passed_losers + late_losers, wins + part
            late_winners = late_losers = part = 0.0
            count = 0
        count += 1
        while tail < tail_end:
            q = n - 1 - tail if backwards else tail
            u = sign * x[q] - (panel - 1)
            if u >= t:
                break
            w = weight[q] if weight.size else 1.0
            at = left + (3 if side[q] else 0)
            m[at] += w
            m[at + 1] += w * u
            m[at + 2] += w * u * u
            tail += 1
        w = weight[r] if weight.size else 1.0
        o, mine = (0, 3) if side[r] else (3, 0)
        room = 1 - t
        o0, o1, o2 = m[own + o] + m[late + o], m[own + o + 1] + m[late + o + 1], m[own + o + 2] + m[late + o + 2]
        behind, steep = room * room * o0 + 2 * room * o1 + o2, room * o0 + o1
        if tail < tail_end:
            o0 = m[before + o] - (m[gone + o] + m[left + o])
            o1 = m[before + o + 1] - (m[gone + o + 1] + m[left + o + 1])
            o2 = m[before + o + 2] - (m[gone + o + 2] + m[left + o + 2])
            behind += t * t * o0 - 2 * t * o1 + o2
            steep += o1 - t * o0
        behind /= 2
        if (side[r] != 0) != backwards:
            behind = (passed_losers + late_losers if side[r] else passed_winners + late_winners) - behind
        m[late + mine] += w
        m[late + mine + 1] += w * t
        m[late + mine + 2] += w * t * t
        if side[r]:
            late_winners += w
        else:
            late_losers += w
        part += w * behind
        if slope.size:
            slope[r] = steep
            lost[r] = behind
    return wins + part


@jit
def spread(order, x, side, weight, slope, lost, factors, by_score, by_weight, first, last):
    """From what ``scan`` left to the gradients in the order of the samples; returns Σ gradient · x."""
    n = len(x)
    per_score, per_win, of_winners, of_losers = factors[0], factors[1], factors[2], factors[3]
    moved = 0.0
    for begin in range(first, last, FEW):
        part = 0.0
        for r in range(begin, min(begin + FEW, last)):
            i = order[r]
            g = (weight[r] if weight.size else 1.0) * (slope[r] + slope[n + r]) * (per_score if side[r] else -per_score)
            by_score[i] = g
            part += g * x[r]
            if by_weight.size:
                by_weight[i] = per_win * (lost[r] + lost[n + r]) - (of_winners if side[r] else of_losers)
        moved += part
    return moved
