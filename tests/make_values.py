"""Make the tables of reference values that the benchmarks and tests compare with.

A classifier gives C scores, independent noise is added to each, and the class with the largest noisy score wins. This
script computes, to 25 significant digits, for many settings of scores and noise

* ``argmax.jsonl``: log p and log(1 - p) for p = P(the target wins), and the gradient of log p by every score;
* ``topk.jsonl``: log p and log(1 - p) for p = P(the target is among the k highest), and the gradient by its score.

One JSON object a line. Rivals come in groups [score, count]; ``grad_rivals`` has one entry a group, the derivative by the
score of one class of it. Numbers are decimal strings, as the tails reach far below the smallest double. Where bounded noise
makes p exactly 0, ``log_p`` is "-inf" and the gradients are null; where p is exactly 1, ``log_q`` is "-inf". All scores are
multiples of 1/8, so that they are exact in any floating-point type.

How: with noise cdf F and density f, p is the integral of f(u - target) times P(not beaten | u), where the target's noisy
score is u. p, 1 - p and the derivatives are each an integral of a function that is nowhere negative and is evaluated
without cancellation, so each is found to a small relative error however small it is. Arithmetic has 66 digits. Panels break
at the kinks of F and f, and are halved until two Gauss-Legendre rules agree to 1e-26 of each integral.

How it checks itself: every integral is computed twice, with other panels, other rules and another cut of the tails; p and
1 - p must add to 1; and wherever a closed form is known (see `closed_argmax` and `closed_topk`) the result must equal it.
All these must agree to 1e-24 relative. If one does not, the script stops before that noise's lines are written.

It takes about 25 minutes on one core. Needs gmpy2 (``pip install gmpy2``) and nothing else; in particular it uses no code
of the library. Run it as

    python tests/make_values.py                  # everything
    python tests/make_values.py normal laplace   # these noises only; other lines of the files stay as they are
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gmpy2
from gmpy2 import mpfr

FOLDER = Path(__file__).resolve().parents[1] / "src" / "lossmith" / "bench" / "values"
DIGITS = 25  # written
PANEL_TOLERANCE = mpfr("1e-26")  # on the difference of a coarse and a fine rule, so the fine one is far better
AGREEMENT = mpfr("1e-24")  # between two computations of the same number

context = gmpy2.get_context()
context.precision = 220
# F(u)^50000 can lie far below 10^-1000000; with the widest exponents only what is truly negligible becomes 0.
context.emax = gmpy2.get_emax_max()
context.emin = gmpy2.get_emin_min()

ZERO, ONE = mpfr(0), mpfr(1)
PI = gmpy2.const_pi()
SQRT2, SQRT3 = gmpy2.sqrt(mpfr(2)), gmpy2.sqrt(mpfr(3))


# ---------------------------------------------------------------- noises


@dataclass(frozen=True)
class Noise:
    """A noise: its density, and its cdf in three forms that are each accurate to the last digits in both tails."""

    pdf: Callable[[mpfr], mpfr]
    cdf: Callable[[mpfr], mpfr]
    sf: Callable[[mpfr], mpfr]  # 1 - cdf
    log_cdf: Callable[[mpfr], mpfr]


def log_of_cdf(cdf: Callable[[mpfr], mpfr], sf: Callable[[mpfr], mpfr]) -> Callable[[mpfr], mpfr]:
    """log F from the smaller of F and 1 - F: log(F) would lose a tiny 1 - F."""
    return lambda x: gmpy2.log1p(-sf(x)) if x > 0 else gmpy2.log(cdf(x))


def symmetric(pdf: Callable[[mpfr], mpfr], sf: Callable[[mpfr], mpfr]) -> Noise:
    def cdf(x: mpfr) -> mpfr:
        return sf(-x)

    return Noise(pdf, cdf, sf, log_of_cdf(cdf, sf))


def normal_pdf(x: mpfr) -> mpfr:
    return gmpy2.exp(-x * x / 2) / gmpy2.sqrt(2 * PI)


@lru_cache(maxsize=2**17)  # the one slow function; as `grid` keeps to multiples, most cases ask for the same values
def normal_sf(x: mpfr) -> mpfr:
    return gmpy2.erfc(x / SQRT2) / 2


def gumbel_pdf(x: mpfr) -> mpfr:
    return gmpy2.exp(-x - gmpy2.exp(-x))


def gumbel_log_cdf(x: mpfr) -> mpfr:
    return -gmpy2.exp(-x)


def gumbel_cdf(x: mpfr) -> mpfr:
    return gmpy2.exp(-gmpy2.exp(-x))


def gumbel_sf(x: mpfr) -> mpfr:
    return -gmpy2.expm1(-gmpy2.exp(-x))


def logistic_pdf(x: mpfr) -> mpfr:
    t = gmpy2.exp(-abs(x))
    return t / (1 + t) ** 2


def logistic_sf(x: mpfr) -> mpfr:
    return 1 / (1 + gmpy2.exp(x))


def laplace_pdf(x: mpfr) -> mpfr:
    return gmpy2.exp(-abs(x)) / 2


def laplace_sf(x: mpfr) -> mpfr:
    t = gmpy2.exp(-abs(x)) / 2
    return t if x > 0 else 1 - t


def cauchy_pdf(x: mpfr) -> mpfr:
    return 1 / (PI * (1 + x * x))


def cauchy_sf(x: mpfr) -> mpfr:
    return gmpy2.atan2(ONE, x) / PI


def t3_pdf(x: mpfr) -> mpfr:
    return 6 * SQRT3 / (PI * (3 + x * x) ** 2)


def t3_sf(x: mpfr) -> mpfr:
    """Student t with 3 degrees of freedom: (atan w - w / (1 + w^2)) / pi with w = sqrt(3) / x, which is about 2/3 w^3 / pi."""
    if x < 32:
        return (gmpy2.atan2(SQRT3, x) - SQRT3 * x / (3 + x * x)) / PI
    w = SQRT3 / x  # the closed form would cancel: sum the series in w
    square, power, total = w * w, w, ZERO
    for k in range(1, 200):
        power *= -square
        term = power * (2 * k) / (2 * k + 1)
        total -= term
        if abs(term) < total * mpfr("1e-70"):
            break
    return total / PI


def uniform_pdf(x: mpfr) -> mpfr:
    return ONE if 0 < x < 1 else ZERO


def uniform_cdf(x: mpfr) -> mpfr:
    return min(max(x, ZERO), ONE)


def uniform_sf(x: mpfr) -> mpfr:
    return min(max(1 - x, ZERO), ONE)


def exponential_pdf(x: mpfr) -> mpfr:
    return gmpy2.exp(x) if x < 0 else ZERO


def exponential_log_cdf(x: mpfr) -> mpfr:
    return min(x, ZERO)


def exponential_cdf(x: mpfr) -> mpfr:
    return gmpy2.exp(min(x, ZERO))


def exponential_sf(x: mpfr) -> mpfr:
    return -gmpy2.expm1(min(x, ZERO))


NOISES: dict[str, Noise] = {
    "normal": symmetric(normal_pdf, normal_sf),
    "gumbel": Noise(gumbel_pdf, gumbel_cdf, gumbel_sf, gumbel_log_cdf),
    "logistic": symmetric(logistic_pdf, logistic_sf),
    "laplace": symmetric(laplace_pdf, laplace_sf),
    "studentt:1": symmetric(cauchy_pdf, cauchy_sf),
    "studentt:3": symmetric(t3_pdf, t3_sf),
    "uniform": Noise(uniform_pdf, uniform_cdf, uniform_sf, log_of_cdf(uniform_cdf, uniform_sf)),
    "exponential": Noise(exponential_pdf, exponential_cdf, exponential_sf, exponential_log_cdf),
}
TOPK_NOISES = ["normal", "logistic", "laplace", "studentt:3", "gumbel", "uniform", "exponential"]


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One line of a table. For the argmax table k is 1."""

    noise: str
    name: str
    target: float
    rivals: tuple[tuple[float, int], ...]
    k: int = 1

    @property
    def classes(self) -> int:
        return 1 + sum(count for _, count in self.rivals)

    @property
    def scores(self) -> list[float]:
        return [self.target, *(score for score, _ in self.rivals)]


def split_evenly(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]


def argmax_cases(noise: str) -> Iterator[Case]:
    for C in (2, 3, 10, 100, 1000, 50000):
        for gap in (-50, -20, -8, -3, -1, -0.5, 0, 0.5, 1, 3, 8, 20, 50):
            yield Case(noise, "gap", gap, ((0, C - 1),))
        if noise == "uniform":
            for gap in (-0.875, -0.5, -0.125, 0.125, 0.5, 0.875):
                yield Case(noise, "near", gap, ((0, C - 1),))
        if C >= 3:
            for lead in (3, 20, 50):
                yield Case(noise, "leader", 0, ((lead, 1), (0, C - 2)))
            for others in (-50, -6):
                yield Case(noise, "runner", 0, ((-1, 1), (others, C - 2)))
        if C >= 10:
            counts = split_evenly(C - 1, 4)
            yield Case(noise, "mixed", 0.25, tuple(zip((-2, -0.5, 0.125, 1.5), counts, strict=True)))
            if noise == "uniform":
                yield Case(noise, "mixed", 0.25, tuple(zip((-0.5, -0.25, 0.125, 0.375), counts, strict=True)))


def topk_cases(noise: str) -> Iterator[Case]:
    bounded = noise == "uniform"
    for C, k in ((3, 2), (10, 2), (10, 5), (100, 5), (1000, 10), (1000, 100), (50000, 5), (50000, 100)):
        for gap in (-0.5, 0, 0.5) if bounded else (-20, -5, 0, 3, 8):
            yield Case(noise, "gap", gap, ((0, C - 1),), k)
        leaders = min(k, C - 2)
        yield Case(noise, "leaders", 0, ((0.5 if bounded else 5, leaders), (0, C - 1 - leaders)), k)


# ---------------------------------------------------------------- integration


@dataclass(frozen=True)
class Plan:
    """One way to compute the integrals: first panel width, orders of the two rules, and how far out the tails are cut."""

    width: float
    coarse: int
    fine: int
    reach: float


PLANS = (Plan(3.0, 24, 40, 1.0), Plan(2.25, 30, 47, 1.25))


@dataclass(frozen=True)
class Panel:
    """An interval [a, b] of t, with u = t (tail 0), u = edge + 1/t (tail 1) or u = edge - 1/t (tail -1)."""

    a: mpfr
    b: mpfr
    tail: int = 0
    edge: mpfr = ZERO

    def halves(self) -> tuple[Panel, Panel]:
        middle = (self.a + self.b) / 2
        return Panel(self.a, middle, self.tail, self.edge), Panel(middle, self.b, self.tail, self.edge)


@lru_cache
def gauss_legendre(n: int) -> list[tuple[mpfr, mpfr]]:
    """Nodes and weights on [-1, 1]: Newton's method on the Legendre polynomial."""
    rule = []
    for i in range(n):
        x = gmpy2.cos(PI * (4 * i + 3) / (4 * n + 2))
        for _ in range(10):  # quadratic convergence from 3 digits
            previous, value = ONE, x
            for j in range(2, n + 1):
                previous, value = value, ((2 * j - 1) * x * value - (j - 1) * previous) / j
            slope = n * (x * value - previous) / (x * x - 1)
            x -= value / slope
        rule.append((x, 2 / ((1 - x * x) * slope * slope)))
    return rule


def span(points: list[float], width: float) -> list[Panel]:
    """Panels no wider than `width` that together cover the points and have a border at each."""
    panels = []
    ordered = sorted(set(points))
    for left, right in pairwise(ordered):
        pieces = math.ceil((right - left) / width)
        step = (mpfr(right) - left) / pieces
        panels += [Panel(left + i * step, left + (i + 1) * step) for i in range(pieces)]
    return panels


def grid(low: float, high: float, width: float) -> list[Panel]:
    """Panels of exactly `width` that cover [low, high], with borders at multiples of it: the same in many cases."""
    return span([math.floor(low / width) * width, math.ceil(high / width) * width], width)


def first_panels(case: Case, plan: Plan) -> list[Panel]:
    """Panels fine enough to see every peak, out to where the rest is below 1e-50 of each integral.

    Every integrand has its bulk between the least score and ln C above the greatest (for normal noise closer still), and
    falls outside that at least as the density's tail does, which is what the cuts below go by.
    """
    low, high = min(case.scores), max(case.scores)
    exponential_tail = 120 * plan.reach + math.log(case.classes)  # exp(-120) = 1e-52
    if case.noise == "normal":
        return grid(low - 20 * plan.reach, high + 20 * plan.reach, plan.width)
    if case.noise == "gumbel":  # F(-6) = 1e-175
        return grid(low - 6 * plan.reach, high + exponential_tail, plan.width)
    if case.noise == "logistic":
        return grid(low - exponential_tail, high + exponential_tail, plan.width)
    if case.noise == "laplace":
        return span([low - exponential_tail, *case.scores, high + exponential_tail], plan.width)
    if case.noise == "exponential":
        kinks = [score for score in case.scores if score < case.target]
        return span([low - exponential_tail, *kinks, case.target], plan.width)
    if case.noise == "uniform":
        start, end = case.target, case.target + 1
        kinks = [kink for score in case.scores for kink in (score, score + 1) if start < kink < end]
        return span([start, *kinks, end], plan.width / 10)
    # Student t: algebraic tails, analytic in 1/u out to infinity. Panels grow in proportion to the distance.
    inner = 3.0 + plan.reach  # exact in binary, so that the tails start just where the inner panels end
    edges = [ZERO] + [ONE / 2**i for i in range(20, -1, -1)]
    tails = [
        Panel(a / inner, b / inner, tail, edge) for tail, edge in ((1, mpfr(high)), (-1, mpfr(low))) for a, b in pairwise(edges)
    ]
    return span([low - inner, high + inner], plan.width) + tails


def apply_rule(integrands: Callable[[mpfr], list[mpfr]], panel: Panel, order: int) -> list[mpfr]:
    half, middle = (panel.b - panel.a) / 2, (panel.a + panel.b) / 2
    totals: list[mpfr] = []
    for x, weight in gauss_legendre(order):
        t = middle + half * x
        if panel.tail:
            u, weight = panel.edge + panel.tail / t, weight / (t * t)
        else:
            u = t
        values = integrands(u)
        totals = [s + weight * v for s, v in zip(totals or [ZERO] * len(values), values, strict=True)]
    return [half * s for s in totals]


def integrate(integrands: Callable[[mpfr], list[mpfr]], panels: list[Panel], plan: Plan) -> list[mpfr]:
    """Integrals of several nonnegative functions, halving panels until the two rules agree on every function.

    A panel's error is measured against the whole integral, so panels that do not matter are left alone.
    """

    def both(panel: Panel) -> tuple[Panel, list[mpfr], list[mpfr]]:
        return panel, apply_rule(integrands, panel, plan.coarse), apply_rule(integrands, panel, plan.fine)

    results = [both(panel) for panel in panels]
    for _ in range(60):
        totals = [gmpy2.fsum(column) for column in zip(*(fine for _, _, fine in results), strict=True)]
        allowed = [total * PANEL_TOLERANCE for total in totals]
        kept, halved = [], []
        for result in results:
            panel, coarse, fine = result
            if all(abs(c - f) <= limit for c, f, limit in zip(coarse, fine, allowed, strict=True)):
                kept.append(result)
            else:
                halved += [both(half) for half in panel.halves()]
        if not halved:
            return totals
        results = kept + halved
    raise ArithmeticError("panels were halved 60 times without agreement")


# ---------------------------------------------------------------- integrands


def argmax_integrands(case: Case) -> Callable[[mpfr], list[mpfr]]:
    """At u: the integrands of p, of 1 - p, and for each group of minus the derivative of p by one of its scores."""
    noise = NOISES[case.noise]

    def integrands(u: mpfr) -> list[mpfr]:
        density = noise.pdf(u - case.target)
        if not density:
            return [ZERO] * (2 + len(case.rivals))
        shifted = [u - score for score, _ in case.rivals]
        logs = [noise.log_cdf(x) for x in shifted]
        log_all = sum((count * log for log, (_, count) in zip(logs, case.rivals, strict=True)), ZERO)
        values = [density * gmpy2.exp(log_all), -density * gmpy2.expm1(log_all)]
        for x, log in zip(shifted, logs, strict=True):
            rival_density = noise.pdf(x)  # where this is positive, log is finite
            values.append(density * rival_density * gmpy2.exp(log_all - log) if rival_density else ZERO)
        return values

    return integrands


@lru_cache
def binomial_coefficients(n: int, top: int) -> list[mpfr]:
    return [mpfr(math.comb(n, j)) for j in range(top + 1)]


def binomial(n: int, success: mpfr, failure: mpfr, k: int) -> tuple[list[mpfr], mpfr]:
    """P(N = j) for j = 0..min(k-1, n), and P(N >= k), of a Binomial(n, success) count N, all to full relative accuracy."""
    top = min(k, n)
    powers = [failure ** (n - top)]
    for _ in range(top):
        powers.append(powers[-1] * failure)
    pmf, power = [], ONE
    for j, coefficient in enumerate(binomial_coefficients(n, top)):
        pmf.append(coefficient * power * powers[top - j])
        power *= success
    if k > n:
        return pmf, ZERO
    term = pmf.pop()
    if n * success > k:  # the upper tail is about a half or more, so that nothing cancels
        return pmf, 1 - sum(pmf, ZERO)
    ratio = success / failure if failure else ZERO
    tail = term
    for j in range(k, n):
        term = term * (n - j) / (j + 1) * ratio
        tail += term
        if term <= tail * mpfr("1e-68"):  # the terms fall faster than geometrically, and by then fast
            break
    return pmf, tail


def topk_integrands(case: Case) -> Callable[[mpfr], list[mpfr]]:
    """At u: the integrands of p, of 1 - p, and of the derivative of p by the target's score.

    The rivals above u are N1 + N2, two independent binomial counts, one for each group; a single group goes with N1 = 0.
    Only sums of positive terms are used. The derivative of P(N1 + N2 < k) by u is the sum over groups of
    f / F E[(n - N); N1 + N2 = k - 1]: one of the n - N rivals below u is just there, with density f / F each.
    """
    noise, k = NOISES[case.noise], case.k
    (score1, n1), (score2, n2) = case.rivals if len(case.rivals) == 2 else ((0, 0), *case.rivals)

    def integrands(u: mpfr) -> list[mpfr]:
        density = noise.pdf(u - case.target)
        if not density:
            return [ZERO] * 3
        x1, x2 = u - score1, u - score2
        below1, below2 = noise.cdf(x1), noise.cdf(x2)
        pmf1, above1 = binomial(n1, noise.sf(x1), below1, k)
        pmf2, above2 = binomial(n2, noise.sf(x2), below2, k)
        hazard1 = noise.pdf(x1) / below1 if below1 else ZERO
        hazard2 = noise.pdf(x2) / below2 if below2 else ZERO
        pmf2 += [ZERO] * (k - len(pmf2))
        at_most, at_least, running = [], [ZERO] * k + [above2], ZERO  # P(N2 <= j) for j < k, P(N2 >= j) for j <= k
        for value in pmf2:
            running += value
            at_most.append(running)
        for j in range(k - 1, -1, -1):
            at_least[j] = at_least[j + 1] + pmf2[j]
        inside, outside, slope = ZERO, above1, ZERO
        for i, weight in enumerate(pmf1):
            j = k - 1 - i
            inside += weight * at_most[j]
            outside += weight * at_least[j + 1]
            slope += weight * pmf2[j] * ((n1 - i) * hazard1 + (n2 - j) * hazard2)
        return [density * inside, density * outside, density * slope]

    return integrands


# ---------------------------------------------------------------- closed forms


def two_class(noise: str, gap: mpfr) -> tuple[mpfr, mpfr] | None:
    """The cdf at -|gap| and the density at gap of the difference of two noises, where these are known."""
    a, pi = abs(gap), gmpy2.const_pi()
    t = gmpy2.exp(-a)
    if noise == "normal":
        return gmpy2.erfc(a / 2) / 2, gmpy2.exp(-a * a / 4) / (2 * gmpy2.sqrt(pi))
    if noise == "logistic":
        if not a:
            return mpfr(1) / 2, mpfr(1) / 6
        return t * (a - 1 + t) / (1 - t) ** 2, t * (a - 2 + (a + 2) * t) / (1 - t) ** 3
    if noise == "laplace":
        return (2 + a) * t / 4, (1 + a) * t / 4
    if noise == "studentt:1":
        return gmpy2.atan2(mpfr(2), a) / pi, 2 / (pi * (4 + a * a))
    if noise == "studentt:3":  # from the characteristic function (1 + b|s|/2)^2 exp(-b|s|)
        b = 2 * gmpy2.sqrt(mpfr(3))
        d = b * b + a * a
        density = b / d + b * (b * b - a * a) / d**2 + 6 * b * (b * b - 3 * a * a) / d**3
        return (gmpy2.atan2(b, a) - b * a / d - 6 * b * a / d**2) / pi, density / pi
    return None


def exponential_argmax(case: Case) -> list[mpfr]:
    """The exponomial choice probabilities: between scores the integrands are pure exponentials."""
    target = mpfr(case.target)
    borders = sorted({score for score in case.scores if score <= case.target})
    p, grads = mpfr(0), [mpfr(0)] * len(case.rivals)
    for i, right in enumerate(borders):
        above = [(score, count) for score, count in case.rivals if score >= right]  # those with F < 1 on this piece
        rate = 1 + sum(count for _, count in above)
        shift = target + sum((count * mpfr(score) for score, count in above), mpfr(0))
        piece = gmpy2.exp(rate * mpfr(right) - shift) / rate
        if i:
            piece -= gmpy2.exp(rate * mpfr(borders[i - 1]) - shift) / rate
        p += piece
        for g, (score, _) in enumerate(case.rivals):
            if score >= right:  # there f = F
                grads[g] += piece
    return [p, 1 - p, *grads]


def closed_argmax(case: Case) -> list[mpfr | None]:
    """p, 1 - p and minus the derivatives of p by the rivals' scores where a formula gives them, None where not."""
    C, target = case.classes, mpfr(case.target)
    scores = {score for score, _ in case.rivals}
    unknown: list[mpfr | None] = [None] * len(case.rivals)
    if case.noise == "gumbel":  # softmax
        weights = [gmpy2.exp(score - target) for score, _ in case.rivals]
        rest = sum((count * w for w, (_, count) in zip(weights, case.rivals, strict=True)), mpfr(0))
        return [1 / (1 + rest), rest / (1 + rest), *(w / (1 + rest) ** 2 for w in weights)]
    if case.noise == "exponential":
        return [*exponential_argmax(case)]
    if case.noise == "uniform" and len(scores) == 1:
        (score,) = scores
        gap, n = target - score, C - 1
        if gap >= 0:
            gap = min(gap, mpfr(1))
            q = 1 - gap - (1 - gap**C) / C
            return [1 - q, q, (1 - gap**n) / n]
        left = max(1 + gap, mpfr(0))
        return [left**C / C, 1 - left**C / C, left**n / n]
    if C == 2:
        (score,) = scores
        gap = target - score
        known = two_class(case.noise, gap)
        if known:
            tail, density = known
            return [1 - tail, tail, density] if gap > 0 else [tail, 1 - tail, density]
    if scores == {case.target}:
        return [mpfr(1) / C, mpfr(C - 1) / C, *unknown]
    return [None, None, *unknown]


def order_statistic_area(n: int, k: int, x: mpfr) -> mpfr:
    """The integral from 0 to x of P(at most k-1 of n uniforms exceed v) dv, by parts."""

    def at_most(m: int) -> mpfr:
        return sum((math.comb(m, i) * (1 - x) ** i * x ** (m - i) for i in range(k)), mpfr(0))

    return x * at_most(n) - mpfr(n - k + 1) / (n + 1) * at_most(n + 1)


def closed_topk(case: Case) -> list[mpfr | None]:
    """p, 1 - p and the derivative of p by the target's score where a formula gives them, None where not."""
    C, k, gap = case.classes, case.k, mpfr(case.target)
    if case.name != "gap":
        return [None, None, None]
    n = C - 1
    if case.noise == "gumbel":  # Plackett-Luce: not drawn in any of the first k draws
        w = gmpy2.exp(gap)
        q, log_slope = mpfr(1), mpfr(0)
        for i in range(k):
            q *= (n - i) / (n - i + w)
            log_slope += w / (n - i + w)
        return [1 - q, q, q * log_slope]
    if case.noise == "exponential":
        if gap >= 0:
            q = gmpy2.exp(-gap) * (C - k) / C
            return [1 - q, q, q]
        p = gmpy2.exp(-gap) * order_statistic_area(n, k, gmpy2.exp(gap))
        return [p, 1 - p, None]
    if case.noise == "uniform":
        p = order_statistic_area(n, k, 1 + gap) if gap < 0 else mpfr(k) / C - order_statistic_area(n, k, gap) + gap
        return [p, 1 - p, None]
    return [mpfr(k) / C, mpfr(C - k) / C, None] if gap == 0 else [None, None, None]


# ---------------------------------------------------------------- tables


def require_equal(what: str, case: Case, one: mpfr, two: mpfr) -> None:
    if abs(one - two) > AGREEMENT * min(abs(one), abs(two)):
        raise ArithmeticError(f"{what} disagree: {one} and {two} for {case}")


def checked_integrals(
    case: Case, integrands: Callable[[mpfr], list[mpfr]], closed_form: Callable[[Case], list[mpfr | None]]
) -> list[mpfr]:
    """The integrals, once both plans, the closed form and p + (1 - p) = 1 agree."""
    first, second = (integrate(integrands, first_panels(case, plan), plan) for plan in PLANS)
    for one, two in zip(first, second, strict=True):
        require_equal("two integrations", case, one, two)
    require_equal("p + (1 - p) and 1", case, second[0] + second[1], ONE)
    with gmpy2.context(gmpy2.get_context(), precision=1000):  # closed forms may cancel
        for value, closed in zip(second, closed_form(case), strict=True):
            if closed is not None:
                require_equal("integral and closed form", case, value, closed)
    return second


def decimal(x: mpfr) -> str:
    if gmpy2.is_infinite(x):
        return "-inf"
    return f"{x:.{DIGITS - 1}e}" if x else "0"


def logs(p: mpfr, q: mpfr) -> dict[str, str]:
    """log p and log q, each from the smaller of p and q."""
    if p < q:
        return {"log_p": decimal(gmpy2.log(p)), "log_q": decimal(gmpy2.log1p(-p))}
    return {"log_p": decimal(gmpy2.log1p(-q)), "log_q": decimal(gmpy2.log(q))}


def head(case: Case, **more: int) -> dict[str, Any]:
    rivals = [[float(score), count] for score, count in case.rivals]
    first = {"noise": case.noise, "classes": case.classes, **more, "case": case.name}
    return first | {"target": float(case.target), "rivals": rivals}


def argmax_row(case: Case) -> dict[str, Any]:
    p, q, *slopes = checked_integrals(case, argmax_integrands(case), closed_argmax)
    row = head(case) | logs(p, q)
    if not p:
        return row | {"grad_target": None, "grad_rivals": None}
    # Adding a constant to all scores changes nothing, so the target's derivative balances the others.
    own = sum((count * slope for slope, (_, count) in zip(slopes, case.rivals, strict=True)), ZERO)
    return row | {"grad_target": decimal(own / p), "grad_rivals": [decimal(-slope / p) for slope in slopes]}


def topk_row(case: Case) -> dict[str, Any]:
    p, q, slope = checked_integrals(case, topk_integrands(case), closed_topk)
    return head(case, k=case.k) | logs(p, q) | {"grad_target": decimal(slope / p) if p else None}


def replace_rows(path: Path, order: list[str], noise: str, rows: list[dict[str, Any]]) -> None:
    """Put these rows of one noise into the file, in place of those that it had; other noises' lines stay as they are."""
    lines: dict[str, list[str]] = {name: [] for name in order}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            lines[json.loads(line)["noise"]].append(line)
    lines[noise] = [json.dumps(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for name in order for line in lines[name]), encoding="utf-8")


def main(names: list[str]) -> None:
    unknown = set(names) - set(NOISES)
    if unknown:
        raise SystemExit(f"unknown noise: {', '.join(sorted(unknown))}; there are {', '.join(NOISES)}")
    for noise in names or NOISES:
        start = time.monotonic()
        replace_rows(FOLDER / "argmax.jsonl", list(NOISES), noise, [argmax_row(case) for case in argmax_cases(noise)])
        middle = time.monotonic()
        if noise in TOPK_NOISES:
            replace_rows(FOLDER / "topk.jsonl", TOPK_NOISES, noise, [topk_row(case) for case in topk_cases(noise)])
        print(f"{noise}: argmax {middle - start:.0f} s, top k {time.monotonic() - middle:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
