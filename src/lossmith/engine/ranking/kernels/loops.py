"""Expected AUC for noise with panels and for noise with kinks, and the gradients, as loops for numba.

Equations: ``docs/how/ranking.md``. Smooth noise: ``deposit`` adds scores to the moments of their panels (R4), of powers of t
and not of Chebyshev polynomials; ``read_off`` evaluates a polynomial of the panel at each score (R12). Noise with kinks:
``fading`` and ``windows`` walk over the sorted scores, once from either end (R13).

Arguments that several loops share, all one-dimensional and contiguous:

* scores: (n,) float32 or float64, in the units of the caller;
* side: (n,) uint8, 1 for a winner (positive), 0 for a loser;
* weight: (n,) float64, or (0,): every weight is then 1;
* numbers: (4,) float64: the score that counts as 0 (unit of scores); the scale (unit of scores); panels per unit of the noise
  (1 / width of a panel in units of the noise); the lattice index of the first panel;
* first, last: int64, the samples of the chunk, last exclusive;
* x: (n,) float64, ascending scores in units of the noise, with side and weight in the same order;
* a result of (0,) is not asked for.

Sums of many terms are in two levels of ``SUM_TERMS`` terms: else rounding would grow with n.
"""

from __future__ import annotations

import math

import numpy as np

from lossmith.engine.ranking.kernels.record import LAPLACE, POWERS
from lossmith.engine.runtime.compiled import kernel

SUM_TERMS = 256  # terms of the inner level of a sum: about the square root of a chunk of 32,768 and more scores

# No reassociation: it would undo the two levels of the sums.
jit = kernel("contract")


@jit
def survey(scores, target, weight, side, results, first, last):
    """Fill side and results from scores, target and weight.

    target: (n,) int64 or uint8, 1 for the positives, else 0.
    results: (SURVEY_NUMBERS,) float64: lowest and highest score (unit of scores), 1 if all input is valid, number of positives,
        greatest weight of a winner and of a loser (0 if there is none; 1 without weights).
    """
    low, high, valid, positives = scores[first], scores[first], True, 0
    heaviest_winner = np.float64(weight.size == 0)
    heaviest_loser = heaviest_winner
    for i in range(first, last):
        s, y = scores[i], target[i]
        low = s if s < low else low
        high = s if s > high else high
        valid &= (s - s == 0) & ((y == 0) | (y == 1))
        side[i] = y
        positives += y
    if weight.size:
        for i in range(first, last):
            w = weight[i]
            valid &= (w >= 0) & (w - w == 0)
            if side[i]:
                heaviest_winner = max(w, heaviest_winner)
            else:
                heaviest_loser = max(w, heaviest_loser)
    results[0], results[1], results[2], results[3], results[4], results[5] = (
        low,
        high,
        valid,
        positives,
        heaviest_winner,
        heaviest_loser,
    )


@jit
def deposit(scores, side, weight, numbers, panels, sums, fine, first, last):
    """Add Σ w t^k (R4) to ``sums``.

    panels: int64, panels of the lattice.
    sums: (2 · panels · POWERS,) float64, the winners' panels first, then the losers'.
    fine: the same shape, zeros on entry and on return: sums of few terms, added to ``sums`` batch by batch.
    """
    origin, scale, per_width, start = numbers[0], numbers[1], numbers[2], numbers[3]
    # Emptying the fine sums costs 32 additions a panel. Many panels get few scores each: their batch is longer.
    batch = max(SUM_TERMS, 8 * panels)
    direct = batch >= last - first
    target_sums = sums if direct else fine
    for begin in range(first, last, batch):
        for i in range(begin, min(begin + batch, last)):
            y = (np.float64(scores[i]) - origin) / scale * per_width
            panel = math.floor(y)
            t = 2 * (y - panel) - 1
            row = np.uint64(np.int64(panel - start) + (0 if side[i] else panels))
            base = row * np.uint64(POWERS)
            w = weight[i] if weight.size else 1.0
            square = t * t
            a, b, c, d, fourth = w, w * t, w * square, w * square * t, square * square
            for k in range(np.uint64(4)):
                target_sums[base + np.uint64(4) * k] += a
                target_sums[base + np.uint64(4) * k + np.uint64(1)] += b
                target_sums[base + np.uint64(4) * k + np.uint64(2)] += c
                target_sums[base + np.uint64(4) * k + np.uint64(3)] += d
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
    """Σ_k c_{at + k} t^k for k < POWERS, even and odd powers apart; c (…,) float64, at uint64, t float64 in [−1, 1]."""
    square = t * t
    even, odd = c[at + np.uint64(14)], c[at + np.uint64(15)]
    for k in range(np.uint64(2), np.uint64(POWERS), np.uint64(2)):
        even = even * square + c[at + np.uint64(14) - k]
        odd = odd * square + c[at + np.uint64(15) - k]
    return even + t * odd


@jit
def read_off(scores, side, weight, numbers, panels, slopes, values, by_score, by_weight, first, last):
    """The gradients (R12) in scores and weights; returns Σ by_score · x, which is minus the chunk's gradient in the scale.

    slopes, values: (2 · panels · POWERS,) float64, coefficients of powers of t; slopes in 1 / unit of scores.
    by_score: (n,) of the dtype of scores; by_weight: (n,) float64 or (0,).
    """
    origin, scale, per_width, start = numbers[0], numbers[1], numbers[2], numbers[3]
    scale_sum = 0.0
    for begin in range(first, last, SUM_TERMS):
        part = 0.0
        for i in range(begin, min(begin + SUM_TERMS, last)):
            x = (np.float64(scores[i]) - origin) / scale
            y = x * per_width
            panel = math.floor(y)
            t = 2 * (y - panel) - 1
            base = np.uint64(np.int64(panel - start) + (0 if side[i] else panels)) * np.uint64(POWERS)
            slope = (weight[i] if weight.size else 1.0) * _polynomial(slopes, base, t)
            by_score[i] = slope
            part += slope * x
            if by_weight.size:
                by_weight[i] = _polynomial(values, base, t)
        scale_sum += part
    return scale_sum


@jit
def arrange(scores, side, weight, numbers, order, x, sorted_side, sorted_weight, first, last):
    """Fill x, sorted_side and sorted_weight (n,) in ascending order; order: (n,) int64, the samples by ascending score."""
    origin, scale = numbers[0], numbers[1]
    for r in range(first, last):
        i = order[r]
        x[r] = (np.float64(scores[i]) - origin) / scale
        sorted_side[r] = side[i]
        if weight.size:
            sorted_weight[r] = weight[i]


@jit
def fading(x, side, weight, backwards, kind, slope, lost):
    """Over all scores passed of the other set: lost_r = Σ w H(−δ), or Σ w H(δ) where r wins, and slope_r = Σ w H'(δ).

    backwards: bool, from the highest score; kind: int64, LAPLACE or EXPONENTIAL; slope, lost: (n,) float64 or (0,), by rank.
    δ ≥ 0 is the distance. Scores at a below a reference enter through Σ w e^a and Σ w a e^a. The reference moves on before a
    exceeds 1, so that no digit is lost in differences. Returns Σ_r w_r lost_r: the wins over all pairs, if r wins over lower
    scores. Equations (R13) to (R15).
    """
    n = len(x)
    sign = -1.0 if backwards else 1.0
    wins = part = ref = 0.0
    w0 = w1 = w2 = v0 = v1 = v2 = 0.0  # of the winners and of the losers: both sums and the weight passed_weight
    a0 = a1 = a2 = b0 = b1 = b2 = 0.0  # the same since the reference moved
    count = SUM_TERMS
    for k in range(n):
        r = n - 1 - k if backwards else k
        y = sign * x[r]
        ahead = y - ref
        if ahead > 1 or count == SUM_TERMS:
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
            s0, s1, passed_weight = v0 + b0, v1 + b1, v2 + b2
            a0 += w * rise
            a1 += w * rise * ahead
            a2 += w
        else:
            s0, s1, passed_weight = w0 + a0, w1 + a1, w2 + a2
            b0 += w * rise
            b1 += w * rise * ahead
            b2 += w
        faded = s0 / rise  # Σ w e^{−δ}
        if kind == LAPLACE:
            faded_distance = (ahead * s0 - s1) / rise  # Σ w δ e^{−δ}
            loss, rate = faded / 2 + faded_distance / 4, (faded + faded_distance) / 4
        else:
            loss, rate = faded / 2, faded / 2
        if (side[r] != 0) != backwards:
            loss = passed_weight - loss
        part += w * loss
        if slope.size:
            slope[r] = rate
            lost[r] = loss
    return wins + part


@jit
def windows(x, side, weight, backwards, m, slope, lost):
    """As ``fading`` for uniform noise, by (R16): sums of w t^k, t the place within panels of width 1.

    m: (WINDOW_NUMBERS,) float64, zeros on entry: working memory, five groups of six numbers. The groups are moments of the own
    panel; the latest of these; moments of the panel before; moments of this that are out of reach; the latest of those. Each
    group holds Σ w, Σ w t and Σ w t² of the losers and then of the winners.
    """
    n = len(x)
    sign = -1.0 if backwards else 1.0
    own, own_latest, before, unreached, unreached_latest = 0, 6, 12, 18, 24
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
                m[before + j] = m[own + j] + m[own_latest + j] if adjacent else 0.0
                m[own + j] = m[own_latest + j] = m[unreached + j] = m[unreached_latest + j] = 0.0
            tail, tail_end = begin if adjacent else k, k
            begin, panel = k, floor
        if count == SUM_TERMS:
            for j in range(6):
                m[own + j] += m[own_latest + j]
                m[unreached + j] += m[unreached_latest + j]
                m[own_latest + j] = m[unreached_latest + j] = 0.0
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
            group = unreached_latest + (3 if side[q] else 0)
            m[group] += w
            m[group + 1] += w * u
            m[group + 2] += w * u * u
            tail += 1
        w = weight[r] if weight.size else 1.0
        opposite, same = (0, 3) if side[r] else (3, 0)
        complement = 1 - t
        o0, o1, o2 = (
            m[own + opposite] + m[own_latest + opposite],
            m[own + opposite + 1] + m[own_latest + opposite + 1],
            m[own + opposite + 2] + m[own_latest + opposite + 2],
        )
        loss, rate = complement * complement * o0 + 2 * complement * o1 + o2, complement * o0 + o1
        if tail < tail_end:
            o0 = m[before + opposite] - (m[unreached + opposite] + m[unreached_latest + opposite])
            o1 = m[before + opposite + 1] - (m[unreached + opposite + 1] + m[unreached_latest + opposite + 1])
            o2 = m[before + opposite + 2] - (m[unreached + opposite + 2] + m[unreached_latest + opposite + 2])
            loss += t * t * o0 - 2 * t * o1 + o2
            rate += o1 - t * o0
        loss /= 2
        if (side[r] != 0) != backwards:
            loss = (passed_losers + late_losers if side[r] else passed_winners + late_winners) - loss
        m[own_latest + same] += w
        m[own_latest + same + 1] += w * t
        m[own_latest + same + 2] += w * t * t
        if side[r]:
            late_winners += w
        else:
            late_losers += w
        part += w * loss
        if slope.size:
            slope[r] = rate
            lost[r] = loss
    return wins + part


@jit
def spread(order, x, side, weight, slope, lost, factors, by_score, by_weight, first, last):
    """The gradients in the order of the samples, from slope and lost of ``fading`` or ``windows``; returns Σ by_score · x.

    order: (n,) int64; slope, lost: (2 · n,) float64, forwards and then backwards, by rank.
    factors: (4,) float64: upstream gradient per score, per win; upstream · AUC per weight of the winners, of the losers.
    by_score: (n,) float32 or float64; by_weight: (n,) float64 or (0,).
    """
    n = len(x)
    per_score, per_win, of_winners, of_losers = factors[0], factors[1], factors[2], factors[3]
    scale_sum = 0.0
    for begin in range(first, last, SUM_TERMS):
        part = 0.0
        for r in range(begin, min(begin + SUM_TERMS, last)):
            i = order[r]
            g = (weight[r] if weight.size else 1.0) * (slope[r] + slope[n + r]) * (per_score if side[r] else -per_score)
            by_score[i] = g
            part += g * x[r]
            if by_weight.size:
                by_weight[i] = per_win * (lost[r] + lost[n + r]) - (of_winners if side[r] else of_losers)
        scale_sum += part
    return scale_sum
