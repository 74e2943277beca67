r"""What the fused kernels know of a noise: quintic pieces of log F, its slope r = f/F, and log f, made once.

Scores lie in cells of width ``CELL``. Seen from a threshold u, the classes x = x_c + (CELL/2) s of a cell, s in [−1, 1], have

    log F(u − x) ≈ Σ_{m<6} a_m(u − x_c) s^m,        and so        Σ_j log F(u − x_j) = Σ_m a_m(u − x_c) Σ_j s_j^m:

six moments stand for all classes of a cell. a_m interpolates at six Chebyshev points. The nearest zero of the normal F is 2.8
away in the complex plane, and its pieces err by 1e-6 of their size at most up to u − x = 9, more where log F is next to
nothing. Thresholds are multiples of a step h_l = 2^(−1−l), so that the differences u − x_c fall on a lattice and each level l
has its tables, with the thresholds of one cell next to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.runtime.threads import apart
from lossmith.noise import Noise

CELL = 1 / 8
MOMENTS = 6
LEVELS = 5
STEPS = 2  # thresholds a scale at level 0
PHASES = round(1 / CELL / STEPS)  # cells from one threshold to the next at level 0
SQUARE_LEVEL = PHASES.bit_length() - 1  # the level at which neighbouring thresholds are a cell apart
ABOVE = 296.0  # scales from a threshold down to a class that the tables reach
FARTHEST = 112.0  # scales from the target to its strongest rival, and a little more, that the tables reach
WIDTH = round((FARTHEST + ABOVE) / CELL)
PACE = 1 / 4
BEHIND = 8.0  # scales behind the k-th highest rival from which a target hardly ever is among the k highest
NEVER = 1e-13  # 1 − F of a rival that never exceeds a threshold, even 100,000 of them
LOG_LEAST_DOUBT = -106.0  # log(1 − p) below which log p is 0 in float32
MOST_GROWTH = 1e8  # by how much the rounding of a float64 may grow where a trial is taken out of a polynomial
POWERS = 8  # of the odds of weak rivals that their series has
WEAK_ODDS = 0.1  # of a weak rival at a threshold, at most: the next power hardly counts
MOST_ODDS = 0.5  # the same for a first look
WEAK_FIT = 2e-4  # as ``Precision.fit``, of powers of the odds: the higher ones, which fit less well, are next to nothing
SATURATED = 1e4  # nats, or nats per scale, that tables hold at most: with log F below −1e4, F is 0 in float32 and in float64
Table = NDArray[np.floating[Any]]


class Precision(NamedTuple):
    """How finely tables and kernels of one dtype work.

    Attributes:
        dtype: of scores and tables.
        moments: coefficients of a piece.
        fit: error of a piece, relative to its size where that is above ``small``, and to ``small`` below.
        small: see ``fit``.
        exact: error of a sum over thresholds that is none.
        tail: of f: thresholds beyond count as zero.
        reach: scales within which all but ``tail`` of f must lie.
        drop: nats below the highest integrand at which it counts as zero.
        faint: nats below the strongest rival's 1 − F at which a class counts as removed, even 100,000 of them.
        log_smallest: a logarithm above that of the smallest number with all its digits: terms of a sum may be e^−12 of it.
        floor: p, with one rival, of a class that is not followed farther down.
        by_threshold: whether ``Tables.slope`` is made.
    """

    dtype: type[np.floating[Any]]
    moments: int
    fit: float
    small: float
    exact: float
    tail: float
    reach: float
    drop: float
    faint: float
    log_smallest: float
    floor: float
    by_threshold: bool


SINGLE = Precision(np.float32, MOMENTS, 3e-6, 1e-10, 1e-7, 1e-8, 24.0, 20.0, 30.0, -76.0, 1e-32, True)
DOUBLE = Precision(np.float64, 11, 1e-11, 1e-40, 1e-11, 1e-12, 30.0, 30.0, 40.0, -650.0, 1e-280, False)


class Tables(NamedTuple):
    """The tables of one noise."""

    log_cdf: tuple[Table, ...]  # of each level, (phases, MOMENTS, n); entry n stands for n·h + phase · CELL + CELL/2 − FARTHEST
    slope: tuple[Table, ...]  # the same entries, but those of one threshold beside each other: (phases, MOMENTS, n) for
    # h·phase + CELL·n + CELL/2 − FARTHEST; () if it is not made
    slope_by_cell: tuple[Table, ...]  # as ``log_cdf``
    log_prob: tuple[Table, ...]
    lowest: NDArray[np.float64]  # for leads t over the strongest rival, from −FARTHEST in steps of PACE: thresholds that count
    depth: NDArray[np.int32]  # and how many cells below that rival do
    high: float  # the quantile of 1 − ``Precision.tail``
    least_lead: float  # the lowest lead that the tables serve
    most_lead: float  # and the highest
    sure_lead: (
        float  # a lead at which 1 − p, with one rival, is less than any number of the precision; inf if the tables reach none
    )
    coarsest: int  # level whose step resolves the noise itself, and with a few rivals


def step(level: int) -> float:
    """Distance of the thresholds at a level."""
    return float(1 / (STEPS << level))


def tables(noise: Noise, precision: Precision = SINGLE) -> Tables | None:
    """The tables of a noise, or None if pieces do not follow it: kinks, algebraic tails, narrow peaks.

    ``tables_of`` keeps them.
    """
    low, high = (float(x) for x in noise.icdf(torch.tensor([precision.tail, 1 - precision.tail], dtype=torch.float64)))
    if noise.kinks or not max(-low, high) <= precision.reach or (coarsest := _coarsest(noise, precision.exact)) is None:
        return None

    def slope(x: Tensor) -> Tensor:
        return (noise.log_prob(x) - noise.log_cdf(x)).exp()

    columns: list[tuple[Table, ...]] = []
    for level in range(LEVELS):
        h = step(level)
        by_cell = _lattice(h, max(1, round(h / CELL)), CELL)
        fitted = [_fit(function, by_cell, precision) for function in (noise.log_cdf, slope, noise.log_prob)]
        if precision.by_threshold:
            fitted.append(_fit(slope, _lattice(CELL, max(1, round(CELL / h)), h), precision))
        if any(pieces is None for pieces in fitted):
            return None
        columns.append(tuple(pieces for pieces in fitted if pieces is not None))
    lead = torch.arange(-FARTHEST, FARTHEST, PACE, dtype=torch.float64)
    lowest, doubt = _lowest(noise, lead, precision.drop)
    uncertain = doubt > precision.log_smallest
    sure = math.inf if uncertain[-1] else lead[uncertain.nonzero()[-1]].item()
    depth = torch.searchsorted(-noise.log_sf(lead), precision.faint - noise.log_sf(lowest), right=True)
    depth = ((lead[depth.clamp_max(len(lead) - 1)] - lowest) / CELL).ceil().int() + 1
    log_cdf, slope_by_cell, log_prob, *by_threshold = (tuple(column) for column in zip(*columns, strict=True))
    beyond = lead[(lead >= 0) & (lead - lowest > FARTHEST - 2 * PACE - step(0))]  # log f would be asked for before its start
    most_lead = beyond[0].item() if len(beyond) else FARTHEST
    rest = lowest.numpy(), depth.numpy(), high, 2 * high - FARTHEST, most_lead, sure, coarsest
    return Tables(log_cdf, by_threshold[0] if by_threshold else (), slope_by_cell, log_prob, *rest)


def _coarsest(noise: Noise, exact: float) -> int | None:
    """The first level at which ∫ f F^k is 1/(k + 1) to ``exact`` for some k, wherever the thresholds fall."""
    for level in range(LEVELS):
        h = step(level)
        shift = torch.linspace(0, h, 5, dtype=torch.float64).unsqueeze(-1)
        u = torch.arange(-FARTHEST, FARTHEST, h, dtype=torch.float64) + shift
        k = torch.arange(4, dtype=torch.float64).view(-1, 1, 1)
        sums = h * (noise.log_prob(u) + k * noise.log_cdf(u)).exp().sum(-1)
        if bool(((sums - 1 / (k.squeeze(-1) + 1)).abs() < exact).all()):
            return level
    return None


def _lowest(noise: Noise, lead: Tensor, drop: float, k: int = 1) -> tuple[Tensor, Tensor]:
    """The lowest threshold that counts with k equal rivals, for each lead, and the highest of log f(u − t) (1 − F(u))^k.

    drop: as ``Precision.drop``. More rivals move both integrands up. Behind one rival p < 1/2, and is not integrated from the
    other side.
    """
    u = torch.arange(-FARTHEST, FARTHEST, PACE, dtype=torch.float64)
    density = noise.log_prob(u - lead.unsqueeze(-1))
    p, doubt = density + noise.log_cdf(u), density + k * noise.log_sf(u)
    highest = doubt.amax(-1)
    counts = p > p.amax(-1, keepdim=True) - drop
    counts |= (doubt > highest.unsqueeze(-1) - drop) & (lead >= (0 if k == 1 else -BEHIND)).unsqueeze(-1)
    return u[counts.int().argmax(-1)] - PACE, highest


def _lattice(step: float, phases: int, shift: float) -> Tensor:
    """Differences u − x_c, (phases, n): steps along the rows, shifts between them."""
    n = torch.arange(round((FARTHEST + ABOVE) / step), dtype=torch.float64) * step
    return n + torch.arange(phases, dtype=torch.float64).unsqueeze(-1) * shift + CELL / 2 - FARTHEST


def _fit(
    function: Callable[[Tensor], Tensor],
    at: Tensor,
    precision: Precision = SINGLE,
    served: Tensor | None = None,
    fit: float | None = None,
) -> Table | None:
    """Coefficients of s^0, s^1, … for s ↦ function(at − (CELL/2) s), (phases, moments, n); None where they do not fit.

    They are 0 where ``served``, boolean, is false, and constant where the function exceeds SATURATED. fit: instead of
    ``Precision.fit``.
    """
    powers = torch.arange(precision.moments, dtype=torch.float64)
    s = torch.cos((powers + 0.5) * (math.pi / precision.moments))
    values = function(at.unsqueeze(-1) - CELL / 2 * s)
    coefficients = values @ torch.linalg.inv(s.unsqueeze(-1) ** powers).T
    if served is None:
        served = torch.ones_like(at, dtype=torch.bool)
    coefficients = torch.where(served.unsqueeze(-1), coefficients, 0.0)
    saturated = ~(values.abs().amax(-1) <= SATURATED)
    coefficients[saturated] = 0.0
    coefficients[..., 0][saturated] = values[..., 0][saturated].clamp(-SATURATED, SATURATED)
    check = torch.tensor([-1.0, -0.6, 0.0, 0.75, 1.0], dtype=torch.float64)
    exact = function(at.unsqueeze(-1) - CELL / 2 * check)
    error = (coefficients @ (check ** powers.unsqueeze(-1)) - exact).abs()
    size = exact.abs().amax(-1, keepdim=True)
    if not bool(
        (error <= (fit or precision.fit) * size.clamp_min(precision.small))[(at <= FARTHEST) & served & ~saturated].all()
    ):
        return None
    if not bool(coefficients.abs().amax() < np.finfo(precision.dtype).max / 4):
        return None
    table: Table = coefficients.movedim(-1, -2).contiguous().numpy().astype(precision.dtype)
    return table


# The tables as the CPU kernels take them


@lru_cache(maxsize=64)
def tables_of(key: str, precision: Precision = SINGLE) -> Tables | None:
    """The tables of the noise with that ``Noise.key``, made once; None where ``tables`` gives None."""
    return apart(lambda: tables(noises.by_key(key), precision))  # where no transform of torch.func wraps what it makes


@lru_cache(maxsize=64)
def flat_tables(noise: str, precision: Precision = SINGLE) -> dict[str, Table]:
    """The tables of all levels, one after the other: log_cdf, log_prob, slope_by_cell and, if there is one, slope."""
    made = tables_of(noise, precision)
    assert made is not None
    kinds = {"log_cdf": made.log_cdf, "log_prob": made.log_prob, "slope_by_cell": made.slope_by_cell}
    if precision.by_threshold:
        kinds["slope"] = made.slope
    return {name: np.concatenate([table.ravel() for table in levels]) for name, levels in kinds.items()}


@lru_cache(maxsize=256)
def forward_arrays(noise: str, classes: int, precision: Precision = SINGLE) -> dict[str, NDArray[Any]]:
    """What the forward pass takes of a noise: log_cdf and log_prob of ``flat_tables``, lowest and depth of ``Tables``, numbers.

    numbers: (7,) float64: high, the three leads and coarsest of ``Tables``; the quantile 1 − 1/C; the steepness 1/β of C − 1
    rivals.
    """
    made, flat = tables_of(noise, precision), flat_tables(noise, precision)
    assert made is not None
    law, rivals = noises.by_key(noise), classes - 1
    levels = torch.tensor([1 - 1 / classes, math.exp(-1 / rivals)], dtype=torch.float64, device="cpu")
    highest_of_equals, edge = law.icdf(levels)
    steepness = rivals * (law.log_prob(edge) - law.log_cdf(edge)).exp()
    numbers = [
        made.high,
        made.least_lead,
        made.most_lead,
        made.sure_lead,
        made.coarsest,
        float(highest_of_equals),
        float(steepness),
    ]
    return {
        "log_cdf": flat["log_cdf"],
        "log_prob": flat["log_prob"],
        "lowest": made.lowest,
        "depth": made.depth,
        "numbers": np.array(numbers),
    }


@lru_cache(maxsize=256)
def one_pass_arrays(noise: str, classes: int, precision: Precision = SINGLE) -> dict[str, NDArray[Any]]:
    """What the pass that gives log p and its gradient takes of a noise: ``flat_tables``, and the rest of ``forward_arrays``."""
    given = forward_arrays(noise, classes, precision)
    return {**flat_tables(noise, precision), **{name: given[name] for name in ("lowest", "depth", "numbers")}}


@lru_cache(maxsize=256)
def every_arrays(noise: str, classes: int, precision: Precision = SINGLE) -> dict[str, NDArray[Any]]:
    """What log p of every class takes of a noise: ``flat_tables``, lowest and depth of ``Tables``, and numbers.

    numbers: (5,) float64: high; the lead down to which classes are followed, where p with one rival is about
    ``Precision.floor``; coarsest; the quantile 1 − 1/C; the steepness 1/β of C − 1 rivals.
    """
    made = tables_of(noise, precision)
    assert made is not None
    law, given = noises.by_key(noise), forward_arrays(noise, classes, precision)
    leads = torch.arange(-FARTHEST, 0.0, PACE, dtype=torch.float64)
    u = torch.arange(-FARTHEST, FARTHEST, PACE, dtype=torch.float64)
    highest = (law.log_prob(u - leads.unsqueeze(-1)) + law.log_cdf(u)).amax(-1)  # of the integrand of p with one rival
    floor = max(made.least_lead, float(leads[highest > math.log(precision.floor)].min()))
    numbers = [made.high, floor, made.coarsest, *given["numbers"][-2:]]
    return {**flat_tables(noise, precision), "lowest": made.lowest, "depth": made.depth, "numbers": np.array(numbers)}


@lru_cache(maxsize=64)
def _odds_tables(noise: str) -> dict[str, NDArray[np.float32]] | None:
    """Tables of the chance that a rival exceeds a threshold, of all levels; None where quintic pieces do not follow them.

    Returns:
        log_odds: log F − log(1 − F), by cells. odds_powers: of odds^m, odds = (1 − F)/F, by cells, for m = 1 … POWERS;
        slope_powers: of r · odds^m, by thresholds, for m = 0 … POWERS; both one after the other, and 0 where the odds are
        above MOST_ODDS.
    """
    law = noises.by_key(noise)

    def log_odds(x: Tensor) -> Tensor:
        return law.log_cdf(x) - law.log_sf(x)

    def flat(function: Callable[[Tensor], Tensor], by_threshold: bool, weak: bool) -> NDArray[np.float32] | None:
        levels = []
        for level in range(LEVELS):
            h = step(level)
            at = _lattice(CELL, max(1, round(CELL / h)), h) if by_threshold else _lattice(h, max(1, round(h / CELL)), CELL)
            served = log_odds(at - CELL) > -math.log(MOST_ODDS)
            pieces = _fit(function, at, SINGLE, served, WEAK_FIT) if weak else _fit(function, at)
            if pieces is None:
                return None
            levels.append(pieces.ravel())
        return np.concatenate(levels)

    def power(m: int) -> Callable[[Tensor], Tensor]:
        return lambda x: (-m * log_odds(x)).exp()

    def slope_power(m: int) -> Callable[[Tensor], Tensor]:
        return lambda x: (law.log_prob(x) - law.log_cdf(x) - m * log_odds(x)).exp()

    made = [flat(log_odds, False, False)]
    made += [flat(power(m), False, True) for m in range(1, POWERS + 1)]
    made += [flat(slope_power(m), True, True) for m in range(POWERS + 1)]
    log, *rest = [table for table in made if table is not None]
    if len(rest) < 2 * POWERS + 1:
        return None
    return {"log_odds": log, "odds_powers": np.concatenate(rest[:POWERS]), "slope_powers": np.concatenate(rest[POWERS:])}


def has_odds(noise: str) -> bool:
    """Whether ``topk_arrays`` serve the noise with that ``Noise.key``."""
    return tables_of(noise) is not None and _odds_tables(noise) is not None


@lru_cache(maxsize=256)
def topk_arrays(noise: str, classes: int, k: int) -> dict[str, NDArray[Any]]:
    """What log P(among the k highest) takes of a noise: tables of the odds, ``flat_tables``, lowest for k, and numbers.

    numbers: (11,) float64: high, the three leads and coarsest of ``Tables``; the quantile 1 − 1/C; scales above a class beyond
    which 1 − F < NEVER; scales from a threshold up to a rival that is strong, whose odds to the power of k − 1 are
    MOST_GROWTH; scales from a weak rival, whose odds are WEAK_ODDS, up to a threshold, and the same for MOST_ODDS; k.
    """
    odds_tables, given = _odds_tables(noise), one_pass_arrays(noise, classes)
    assert odds_tables is not None
    growing = min(MOST_GROWTH ** (1 / (k - 1)), 1e15)
    law, chances = noises.by_key(noise), [1 - NEVER, 1 / (1 + growing), 1 / (1 + WEAK_ODDS), 1 / (1 + MOST_ODDS)]
    levels = torch.tensor(chances, dtype=torch.float64, device="cpu")
    faint, far, weak, rough = law.icdf(levels).tolist()
    if law.log_cdf(levels.new_tensor(-faint)) < 2 * law.log_sf(levels.new_tensor(faint)):
        # The target hardly falls: that it is beaten is the doing of rivals alone, however far they have to rise.
        distance = torch.arange(0.0, FARTHEST, PACE, dtype=torch.float64, device="cpu")
        faint = float(distance[(law.log_sf(distance) > LOG_LEAST_DOUBT).nonzero()[-1]])
    numbers = [*given["numbers"][:6], faint, -far, weak, rough, k]
    return {**odds_tables, **given, "lowest": _lowest_of_rank(noise, k), "numbers": np.array(numbers)}


@lru_cache(maxsize=64)
def _lowest_of_rank(noise: str, k: int) -> NDArray[np.float64]:
    """As ``Tables.lowest``, of thresholds seen from the k-th highest rival."""
    lead = torch.arange(-FARTHEST, FARTHEST, PACE, dtype=torch.float64, device="cpu")
    return _lowest(noises.by_key(noise), lead, SINGLE.drop, k)[0].numpy()


@lru_cache(maxsize=64)
def backward_arrays(noise: str) -> dict[str, NDArray[np.float32]]:
    """What the backward pass takes of a noise: slope_by_cell and slope of ``flat_tables``."""
    flat = flat_tables(noise)
    return {name: flat[name] for name in ("slope_by_cell", "slope")}
