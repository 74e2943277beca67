"""What a loss's curve over the lead says: kinks, the bound, the slope far right, the growth far left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lossmith import functional
from lossmith import noise as noises
from lossmith.noise import Noise
from lossmith.recipe.probe import Array, Probe

DRIFT = 5e-3  # by how much the log of a ratio may move along the tail and still count as constant
DEPTHS = (1e-11, 0.5)  # slopes relative to the steepest: below, 1 − p formed in float64 has no digits; above is no tail


def breaks(
    probe: Probe, leads: Array, values: Array, slopes: Array, unit: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Leads where the slope jumps, and leads where the loss itself does."""
    change = np.abs(np.diff(slopes))
    rate = change / np.diff(leads)
    # A jump stands out from the intervals two further on; the one next to it may share it where ties do.
    around = np.maximum(np.pad(rate[2:], (0, 2)), np.pad(rate[:-2], (2, 0)))
    steep = np.abs(np.nan_to_num(slopes))
    near = np.max([np.roll(steep, k) for k in range(-4, 4)], axis=0)[:-1]
    finite = np.where(np.isfinite(values), values, np.nan)
    height = float(np.ptp(finite[(np.abs(leads) < 10 * unit) & np.isfinite(values)]))  # of what is not mere rounding
    kinks = _pin(probe, leads, np.flatnonzero((rate > 3 * around) & (change > 1e-3 * near + 1e-9 * height / unit)), 1)
    rise = np.abs(np.diff(finite))
    allowance = 4 * near * np.diff(leads) + 1e-9 * height
    jumps = _pin(probe, leads, np.flatnonzero(rise > allowance), 0)
    return tuple(t for t in kinks if t not in jumps), jumps


def _pin(probe: Probe, leads: Array, suspects: Iterable[Any], which: int) -> tuple[float, ...]:
    """Suspected intervals halved toward the greater change of the value (0) or slope (1); a change that stays is a jump."""
    found: list[float] = []
    for i in suspects:
        low, high = float(leads[i]), float(leads[i + 1])
        at_low, at_high = probe(low)[which], probe(high)[which]
        first = abs(at_high - at_low)
        while high - low > 1e-9 * max(1e-3, abs(low), abs(high)):
            middle = (low + high) / 2
            here = probe(middle)[which]
            if abs(here - at_low) > abs(at_high - here):
                high, at_high = middle, here
            else:
                low, at_low = middle, here
            if not abs(at_high - at_low) > 0.1 * first:
                break
        else:
            t = round((low + high) / 2, 8)
            if not any(math.isclose(t, taken, rel_tol=1e-6, abs_tol=1e-8) for taken in found):
                found.append(t)
    return tuple(found)


def flat_from(probe: Probe, leads: Array, slopes: Array) -> float | None:
    """Lead beyond which the slope is 0 but for rounding, or None; one that falls to 0 by and by is not flat."""
    steepest = float(np.nanmax(np.abs(slopes[leads > 0])))
    rounding = 4 * np.finfo(np.float64).eps * steepest
    flat = np.abs(slopes) <= rounding
    if not flat[-1]:
        return None
    moving = np.flatnonzero(~flat)
    if not len(moving) or leads[moving[-1]] <= 0:
        return 0.0
    low, high = float(leads[moving[-1]]), float(leads[moving[-1] + 1])
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if abs(probe(middle)[1]) <= rounding else (middle, high)
    return high if abs(probe(low * 0.999)[1]) > 1e-9 * steepest else None


def rises_from(leads: Array, values: Array) -> float | None:
    """Lead beyond which a right answer costs more again, or None."""
    right = leads > 0
    lowest = int(values[right].argmin())
    least, last = float(values[right][lowest]), float(values[-1])
    return float(leads[right][lowest]) if last - least > 1e-6 * max(abs(least), abs(last)) else None


@dataclass(frozen=True)
class Match:
    """A noise whose expected error has the loss's slope far right, up to a factor: the ratio."""

    noise: str
    scale: float
    ratio: float


def match(
    probe: Probe, leads: Array, slopes: Array, classes: int, stated: Noise | None, unit: float
) -> tuple[Match | None, float]:
    """The noise that matches, if one does, and the ratio of slopes deep in the tail for the one that was to be expected."""
    right = leads > 0
    steep, t = -slopes[right], leads[right]
    share = steep / max(float(np.abs(steep).max()), 1e-300)
    tail = np.flatnonzero((share >= DEPTHS[0]) & (share <= DEPTHS[1]))
    if not len(tail):
        return None, math.nan
    last = int(tail[-1])
    first = int(tail[share[tail] <= math.sqrt(share[last])][0])
    points = np.geomspace(t[first], t[last], 9)
    own = probe.curve(points)[1]
    if not (own < 0).all():
        return None, math.nan
    log_slopes = np.log(-own)
    expected = stated or noises.get("gumbel")

    def log_ratio(noise: Noise, scale: float) -> Array:
        return log_slopes - log_expected_slope(noise, points / scale, classes) + math.log(scale)

    ratios = log_ratio(expected, unit)
    if stated is not None and np.ptp(ratios) < DRIFT:
        return Match(stated.name, unit, math.exp(ratios[-1])), math.exp(ratios[-1])
    miss = math.exp(min(max(ratios[-1], -700.0), 700.0))
    if share[last] > 1e-4:  # too little of a tail to tell one noise from another
        return None, miss
    fits = []
    for noise in [stated] if stated else [noise for name, noise in noises.NOISES.items() if name != "uniform"]:
        scale = _fitted_scale(partial(log_ratio, noise), points[-1], unit)
        fits.append((float(np.ptp(log_ratio(noise, scale))), noise.name, scale, float(log_ratio(noise, scale)[-1])))
    best = min(drift for drift, *_ in fits)
    if not best < DRIFT:
        return None, miss
    # Some tails differ by a factor only (gumbel, exponential): then the better known, which comes first.
    _, name, scale, ratio = next(fit for fit in fits if fit[0] <= max(3 * best, 1e-4))
    return Match(name, scale, math.exp(ratio)), miss


def log_expected_slope(noise: Noise, leads: Array, classes: int) -> Array:
    """log(−d(1 − p)/dt) of a target that leads classes − 1 equal rivals by t, for noise of scale 1."""
    t = torch.tensor(leads, dtype=torch.float64, requires_grad=True)
    scores = torch.cat([t[:, None], torch.zeros(len(leads), classes - 1, dtype=torch.float64)], 1)
    rival = functional.argmax_log_prob(scores, torch.ones(len(leads), dtype=torch.int64), noise=noise)
    (slope,) = torch.autograd.grad(rival.sum(), t)
    return np.asarray((math.log(classes - 1) + rival.detach() + (-slope).log()).numpy(), dtype=np.float64)


def _fitted_scale(log_ratio: Callable[[float], Array], last: float, unit: float) -> float:
    """The scale with which the ratio is the same at both ends of the tail; ``unit`` where none is."""

    def tilt(log_scale: float) -> float:
        ratios = log_ratio(math.exp(log_scale))
        return float(ratios[-1] - ratios[0])

    low, high = math.log(last / 45), math.log(last / 1.5)
    at_low, at_high = tilt(low), tilt(high)
    # Student's t: a scale is a factor there, and nothing to be fitted.
    if not (math.isfinite(at_low) and math.isfinite(at_high) and at_low * at_high < 0):
        return unit
    from scipy.optimize import brentq  # loaded late: it costs more than the rest of ``import lossmith``

    return math.exp(brentq(tilt, low, high, xtol=1e-9))


@dataclass(frozen=True)
class Growth:
    """How the loss grows with the lead s = −t of a rival, from D = dL/d log s at two leads, a decade apart: D ~ s^exponent."""

    order: str
    exponent: float
    bound: float | None
    infinite_from: float | None
    pull_vanishes: bool


NAMED_ORDERS = {0: "logarithmic", 1: "linear", 2: "quadratic"}


def growth(probe: Probe, leads: Array, values: Array, slopes: Array, unit: float) -> Growth:
    """The order of growth on sure wrong answers."""
    finite = np.isfinite(values)
    left = np.flatnonzero(finite & (leads < 0))
    if not len(left):
        raise ValueError("loss: expected finite numbers somewhere where answers are wrong, got inf everywhere; check its sign")
    far = int(left[0])
    s, value, slope = -float(leads[far]), float(values[far]), float(slopes[far])
    infinite = -float(leads[far - 1]) if far > 0 else None
    steepest = float(np.abs(slopes[left]).max())
    vanishes = abs(slope) < 0.01 * steepest or steepest == 0
    if infinite is not None:
        infinite = _first_infinite(probe, s, infinite)
        if value < 1e50 and s < 50 * unit:  # not for growing out of float64's range
            return Growth("infinite", math.inf, None, infinite, False)
    end, before = -slope * s, -probe(-s / 10)[1] * s / 10
    height = max(abs(value), float(np.ptp(values[finite & (np.abs(leads) < 10 * unit)])))
    if abs(end) <= 1e-9 * height:
        return Growth("bounded", -math.inf, value, infinite, True)
    exponent = math.log10(abs(end)) - math.log10(abs(before)) if before else math.inf
    if exponent < -0.3:
        return Growth("bounded", exponent, value, infinite, vanishes)
    if end < 0:
        return Growth("falling", exponent, None, infinite, vanishes)
    if exponent > 8:
        return Growth("exponential", math.inf, None, infinite, vanishes)
    whole = round(exponent)
    order = NAMED_ORDERS.get(whole, "power") if abs(exponent - whole) < 0.1 else "power"
    return Growth(order, exponent, None, infinite, vanishes)


def _first_infinite(probe: Probe, low: float, high: float) -> float:
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if math.isfinite(probe(-middle)[0]) else (low, middle)
    return high
