r"""Points on a line, the classifier sign f with f(x) = k (x − b), and where each loss has its optimum.

The scores are (0, f(x)). A loss is right if its optimal b classifies as many points as any b can. Optima are found by a
global search over b (and k), then refined; nothing is typed in. Losses may have several local optima and flat ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from lossmith.catalogue import CANDIDATES

Floats = npt.NDArray[np.float64]

K_RANGE = (0.01, 20.0)  # of a free scale: an optimum at either end stands for the limit
FLAT = 1e-13  # losses this close to the minimum count as equal to it
POINT = 1e-4  # a set of optima narrower than this is one point, blurred by rounding


@dataclass(frozen=True)
class Points:
    """Labelled points on a line."""

    name: str
    x: tuple[float, ...]
    label: tuple[int, ...]  # 0 or 1


THREE = Points("three points", (-0.25, 0.0, 0.25), (0, 0, 1))  # separable: the paper's toy
FIVE = Points("five points", (-6.0, -5.0, -4.0, 0.0, 2.0), (0, 1, 1, 0, 1))  # not separable: 0.8 at best

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: candidate.plain() for name, candidate in CANDIDATES.items() if candidate.plain},
    "0-1 loss": lambda scores, target: (scores.argmax(-1) != target).to(scores) + 0.0 * scores[..., 0],
}


@dataclass(frozen=True)
class Optimum:
    """The set [low, high] of optimal thresholds at a scale k, its mean loss, and the accuracy in its middle.

    A threshold of ±inf is a limit: the loss keeps falling as b goes that way.
    """

    k: float
    low: float
    high: float
    risk: float
    accuracy: float

    @property
    def middle(self) -> float:
        """Middle of the set."""
        return (self.low + self.high) / 2


def accuracy(points: Points, b: float) -> float:
    """Share of the points that sign(x − b) classifies right; a point on the threshold is wrong."""
    x, sign = np.array(points.x), 2 * np.array(points.label) - 1
    return float(np.mean(sign * (x - b) > 0))


def best_accuracy(points: Points) -> float:
    """The highest accuracy that any threshold reaches."""
    x = sorted(points.x)
    between = [x[0] - 1, *((low + high) / 2 for low, high in pairwise(x)), x[-1] + 1]
    return max(accuracy(points, b) for b in between)


def risk(loss: str, points: Points, b: Floats, k: float) -> Floats:
    """Mean loss over the points for each threshold in ``b`` at scale ``k``."""
    x, target = torch.tensor(points.x, dtype=torch.float64), torch.tensor(points.label)
    f = k * (x - torch.from_numpy(np.atleast_1d(b)).unsqueeze(-1))
    scores = torch.stack([torch.zeros_like(f), f], -1)
    with torch.no_grad():
        losses = LOSSES[loss](scores.reshape(-1, 2), target.repeat(len(f)))
    return losses.reshape(f.shape).mean(-1).numpy()


def optimum(loss: str, points: Points, k: float) -> Optimum:
    """Where the mean loss is lowest over all thresholds, the scale being fixed."""
    reach = max(map(abs, points.x)) + 14 + 5 / k
    grid = np.linspace(-reach, reach, 4001)
    values = risk(loss, points, grid, k)
    best = int(values.argmin())
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]

    def at(b: float) -> float:
        return float(risk(loss, points, np.array([b]), k)[0])

    refined = minimize_scalar(at, bounds=around, method="bounded", options={"xatol": 1e-10}).x
    start = refined if at(refined) < values[best] else grid[best]
    level = at(start) + FLAT

    def edge(side: int) -> float:
        beyond = np.flatnonzero(values > level)
        beyond = beyond[(grid[beyond] - start) * side > 0]
        if not len(beyond):
            return side * math.inf
        inside, outside = start, grid[beyond[0] if side > 0 else beyond[-1]]
        for _ in range(8):
            closer = np.linspace(inside, outside, 33)
            is_over = risk(loss, points, closer, k) > level
            is_over[-1] = True  # as found before, whatever rounding says now
            over = max(int(is_over.argmax()), 1)
            inside, outside = closer[over - 1], closer[over]
        return float(inside)

    low, high = edge(-1), edge(1)
    if math.isinf(low) or math.isinf(high):
        low = high = low if math.isinf(low) else high
    elif high - low < POINT:
        low = high = float(start)
    middle = round((low + high) / 2, 9)  # so that a set symmetric about a point has that point on its threshold
    return Optimum(k, low, high, at(start), accuracy(points, middle))


@dataclass(frozen=True)
class Case:
    """What one loss does to the points: its optimum at k = 1, with k free, and at every k of a grid."""

    loss: str
    fixed: Optimum
    free: Optimum
    trace: tuple[Optimum, ...]

    @property
    def free_limit(self) -> float:
        """0 or inf where the loss keeps falling as the scale goes there, otherwise the optimal scale."""
        return {self.trace[0]: 0.0, self.trace[-1]: math.inf}.get(self.free, self.free.k)


def study_one(loss: str, points: Points) -> Case:
    """One loss on the points; takes a second or more."""
    trace = tuple(optimum(loss, points, float(k)) for k in np.geomspace(*K_RANGE, 31))
    return Case(loss, optimum(loss, points, 1.0), _free_optimum(loss, points, trace), trace)


def _free_optimum(loss: str, points: Points, trace: tuple[Optimum, ...]) -> Optimum:
    """Where the mean loss is lowest over thresholds and scales, starting from the optima at a grid of scales."""

    def at(log_k: float) -> Optimum:
        return optimum(loss, points, math.exp(log_k))

    level = min(o.risk for o in trace) + FLAT
    best = next(i for i, o in enumerate(trace) if o.risk <= level)
    if best in (0, len(trace) - 1):
        return trace[best]
    before, here, after = (math.log(trace[i].k) for i in (best - 1, best, best + 1))
    if trace[best + 1].risk <= level:  # flat from here on: the least scale that attains the minimum
        return at(float(brentq(lambda log_k: at(log_k).risk - level, before, here, xtol=1e-9)))
    found = minimize_scalar(lambda log_k: at(log_k).risk, bounds=(before, after), method="bounded", options={"xatol": 1e-6})
    return at(float(found.x))


def critical_scale(loss: str, points: Points, edge: float) -> float:
    """The scale k above which all optimal thresholds lie below ``edge``; nan where there is no such scale from 0.5 to 50."""

    def excess(log_k: float) -> float:
        return min(optimum(loss, points, math.exp(log_k)).high, 1e3) - edge

    low, high = math.log(0.5), math.log(50.0)
    if not excess(low) > 0 > excess(high):
        return math.nan
    return math.exp(float(brentq(excess, low, high, xtol=1e-9)))
