r"""Average precision as one integral over the threshold for each positive, (R18) of ``docs/how/ranking.md``.

The integrals share one set of Gauss–Legendre panels. Panels cover what the noise reaches from the positives (R19). Many scores
of smooth noise are first condensed (R20). Where the density has kinks, panels end at every kink of every score (R21).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lossmith.engine.ranking.multipole import OccupiedPanels, median, panel_width, unit
from lossmith.maths.chebyshev import TERMS, Weighted, from_values, gauss_legendre, nodes, total
from lossmith.noise import Noise

NODES = 16  # Gauss–Legendre nodes of a panel: smooth integrands and panels of a width of the noise give 13 digits
FLAT_NODES = 4  # nodes of a panel on which N is flat: the integrand is then f times a factor that hardly changes
REACH_TAIL = 1e-20  # a probability so low that a million scores add up to less than the rounding of 1
MOST_EQUAL_PANELS = 256  # more panels than these within the reach of one score: panels then grow with the distance
GROWTH = 4  # a panel that grows lies at least so many times its width from the nearest score: f is smooth on it
STEEP = 4.0  # the greatest fall of 1 + N over a panel, as a factor (R21): the nodes of a steeper panel would not resolve it
FLAT = 1.05  # the greatest fall of 1 + N over a panel that FLAT_NODES serve, if the panel is also narrow beside the noise
KINK_OFFSET = 1e-13  # in units of the noise: a node this far from a kink is clear of the rounding and still on its panel
BLOCK = 1 << 20  # pairs times nodes of one step: 8 MB an array; each block is computed again in backward


class Points(NamedTuple):
    """Scores in units of the noise, ascending, and how many positives and negatives each stands for; all (n,) float64."""

    x: Tensor
    positives: Tensor
    negatives: Tensor


class Reach(NamedTuple):
    """The noise lies between −left and right but for ``REACH_TAIL`` on either side (R19); ``centre`` is its median."""

    left: float
    right: float
    centre: float


class Intervals(NamedTuple):
    """Panels, ascending, of the integral.

    left, right: ends, (p,) float64; order: how many edges of the first cut lie at or before the left end, (p,) int64.
    """

    left: Tensor
    right: Tensor
    order: Tensor

    def subset(self, chosen: Tensor) -> Intervals:
        return Intervals(self.left[chosen], self.right[chosen], self.order[chosen])


def average_precision(x: Tensor, positive: Tensor, noise: Noise) -> Tensor:
    """(R18), a float64 scalar, for x (n,) float64 in units of the noise and labels (n,) bool; differentiable twice."""
    x, order = x.sort(stable=True)
    positives = positive[order].to(x)
    points, reach = Points(x, positives, 1 - positives), _reach(noise)
    if noise.kinks:
        cut, ranks = _cut_at_kinks(points, noise, reach, _cells(points, unit(noise) / 2, reach))
        flat, curved = _refined(points, noise, reach, cut)
        shortfall = _shortfall(points, noise, reach, flat, FLAT_NODES, ranks) + _shortfall(
            points, noise, reach, curved, NODES, ranks
        )
    else:
        width = panel_width(noise)
        points = _condensed(points, width / 4)
        shortfall = _shortfall(points, noise, reach, _cells(points, width, reach), NODES)
    return 1 - shortfall / total(points.positives)


def _condensed(points: Points, width: float) -> Points:
    """The Chebyshev points of the occupied panels (R20), or ``points`` themselves if these are fewer."""
    positives = OccupiedPanels.of(Weighted(points.x, points.positives), width)
    if len(positives.place) * TERMS >= len(points.x):
        return points
    negatives = OccupiedPanels.of(Weighted(points.x, points.negatives), width)
    ascending = nodes(TERMS).to(points.x).flip(0)
    x = width * (positives.place.unsqueeze(-1) + (1 + ascending) / 2)
    to_weights = from_values(TERMS).to(points.x).flip(1)
    return Points(x.flatten(), (positives.moments @ to_weights).flatten(), (negatives.moments @ to_weights).flatten())


@lru_cache(maxsize=64)
def _reach(noise: Noise) -> Reach:
    centre = median(noise)
    left = _tail_end(lambda distance: noise.log_cdf(centre - distance), unit(noise))
    right = _tail_end(lambda distance: noise.log_sf(centre + distance), unit(noise))
    return Reach(left - centre, right + centre, centre)


def _tail_end(log_tail: Callable[[Tensor], Tensor], unit: float) -> float:
    """The distance from the median at which a tail falls below ``REACH_TAIL``, or slightly more."""

    def is_negligible(distance: float) -> bool:
        return float(log_tail(torch.tensor(distance, dtype=torch.float64, device="cpu"))) < math.log(REACH_TAIL)

    low, high = 0.0, unit
    while not is_negligible(high) and high < 1e300:
        low, high = high, 2 * high
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if is_negligible(middle) else (middle, high)
    return high


# Panels


def _cells(points: Points, width: float, reach: Reach) -> Intervals:
    """Dyadic panels, constants for differentiation, wherever a positive reaches."""
    scores = points.x.detach()
    positives = scores[points.positives.detach() != 0]
    graded = reach.left + reach.right > MOST_EQUAL_PANELS * width
    low, high = float(positives[0]) - reach.left, float(positives[-1]) + reach.right
    size = width * 2.0 ** max(0, math.ceil(math.log2((high - low) / width)))
    left = size * torch.arange(math.floor(low / size), math.floor(high / size) + 1, dtype=torch.float64, device=scores.device)
    levels: list[tuple[Tensor, Tensor]] = []
    while len(left):
        reached = torch.searchsorted(positives, left + (size + reach.left), right=True)
        left = left[reached > torch.searchsorted(positives, left - reach.right)]
        fits = torch.full_like(left, size <= width, dtype=torch.bool)
        if graded:
            fits |= _distance(left, left + size, scores + reach.centre) >= GROWTH * size
        levels.append((left[fits], left[fits] + size))
        left = left[~fits]
        size /= 2
        left = torch.cat([left, left + size])
    left, order = torch.cat([start for start, _ in levels]).sort()
    return Intervals(left, torch.cat([end for _, end in levels])[order], torch.arange(len(left), device=left.device))


def _distance(left: Tensor, right: Tensor, scores: Tensor) -> Tensor:
    """From each interval to the nearest score."""
    after = torch.searchsorted(scores, left)
    following = scores[after.clamp_max(len(scores) - 1)]
    ahead = torch.where(after < len(scores), (following - right).clamp_min(0), math.inf)
    behind = torch.where(after > 0, left - scores[(after - 1).clamp_min(0)], math.inf)
    return torch.minimum(ahead, behind)


def _cut_at_kinks(points: Points, noise: Noise, reach: Reach, cells: Intervals) -> tuple[Intervals, Tensor]:
    """Panels that end at every kink of every score and move with it, and the ranks (n, kinks) of the kinks among the edges."""
    kinks = (points.x.unsqueeze(-1) + points.x.new_tensor(noise.kinks)).flatten()
    edges, source = torch.cat([torch.unique(torch.cat([cells.left, cells.right])), kinks]).sort(stable=True)
    index = torch.arange(len(edges), device=edges.device)
    rank = torch.empty_like(index).scatter_(0, source, index)[-len(kinks) :].view(-1, len(noise.kinks))
    cut = Intervals(edges[:-1], edges[1:], index[:-1])
    first, last = _window(cut, points.x.detach()[points.positives != 0], reach)
    return cut.subset(last > first), rank


def _refined(points: Points, noise: Noise, reach: Reach, cut: Intervals) -> tuple[Intervals, Intervals]:
    """Panels halved until 1 + N falls by no more than ``STEEP`` over each (R21): the flat panels, then the curved panels."""
    flat, curved = [], []
    narrow = unit(noise) / 64
    while len(cut.left):
        at_left, at_right = (1 + _count(points, noise, reach, edge.detach()) for edge in (cut.left, cut.right))
        middle = (cut.left + cut.right) / 2
        is_flat = (at_left <= FLAT * at_right) & ((cut.right - cut.left).detach() <= narrow)
        # Far from 0 an edge has few digits, and a panel of one unit in the last place has no middle.
        is_steep = (at_left > STEEP * at_right) & (cut.left < middle) & (middle < cut.right)
        flat.append(cut.subset(is_flat))
        curved.append(cut.subset(~is_flat & ~is_steep))
        steep, middle = cut.subset(is_steep), middle[is_steep]
        cut = _joined([Intervals(steep.left, middle, steep.order), Intervals(middle, steep.right, steep.order)])
    return _joined(flat), _joined(curved)


def _joined(parts: list[Intervals]) -> Intervals:
    return Intervals(*(torch.cat(column) for column in zip(*parts, strict=True)))


# Sums over panels and the scores that reach them


def _window(panels: Intervals, scores: Tensor, reach: Reach) -> tuple[Tensor, Tensor]:
    """First and last (exclusive) index into the ascending scores whose noise reaches into each panel, (p,)."""
    first = torch.searchsorted(scores, panels.left.detach() - reach.right)
    return first, torch.searchsorted(scores, panels.right.detach() + reach.left, right=True)


def _shortfall(
    points: Points, noise: Noise, reach: Reach, panels: Intervals, count: int, ranks: Tensor | None = None
) -> Tensor:
    """Σ_i of the integral in (R18) over ``panels``, with ``count`` nodes each.

    ranks (n, kinks): for noise with kinks, the rank of each kink among the edges.
    """
    first, last = _window(panels, points.x.detach(), reach)
    above = torch.nn.functional.pad(torch.stack([points.positives, points.negatives]).flip(1).cumsum(1), (1, 0)).flip(1)

    def block(chosen: Tensor) -> Tensor:
        part = panels.subset(chosen)
        panel, point = _pairs(first[chosen], last[chosen])
        within, du = gauss_legendre(torch.stack([torch.zeros_like(part.left), part.right - part.left], -1), count)
        # Nodes count from the left end of the panel: far from 0, u itself has few digits within a panel.
        e = (part.left[panel] - points.x[point]).unsqueeze(-1) + within[panel]
        if ranks is not None:
            e = _on_side_of_kink(e, part.order[panel], ranks[point], noise.kinks)
        survival = noise.log_sf(e).exp()
        positives, negatives = (
            weight_above[last[chosen]].unsqueeze(-1) + _by_panel(weight[point].unsqueeze(-1) * survival, panel, len(chosen))
            for weight_above, weight in zip(above, points[1:], strict=True)
        )
        share = negatives[panel] / ((positives + negatives)[panel] + (1 - survival))
        density = noise.log_prob(e).exp() * points.positives[point].unsqueeze(-1)
        return total(density * share * du[panel])

    work = (last - first).cumsum(0) * count // BLOCK
    sizes = torch.unique_consecutive(work, return_counts=True)[1].tolist()
    blocks = torch.arange(len(work), device=work.device).split(sizes)
    sums = [checkpoint(block, chosen, use_reentrant=False) for chosen in blocks]
    return torch.stack(sums).sum() if sums else points.x.new_zeros(())


def _count(points: Points, noise: Noise, reach: Reach, u: Tensor) -> Tensor:
    """N(u), (p,), without a gradient."""
    first, last = _window(Intervals(u, u, u), points.x.detach(), reach)
    counts = []
    work = (last - first).cumsum(0) // BLOCK
    for chosen in torch.arange(len(u), device=u.device).split(torch.unique_consecutive(work, return_counts=True)[1].tolist()):
        place, point = _pairs(first[chosen], last[chosen])
        e = u[chosen][place] - points.x.detach()[point]
        counts.append(_by_panel(noise.log_sf(e).exp().unsqueeze(-1), place, len(chosen)).squeeze(-1))
    return torch.cat(counts) + (len(points.x) - last)


def _pairs(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Every panel with every score in its window: indices of panels and of scores, (pairs,)."""
    sizes = last - first
    panel = torch.repeat_interleave(sizes)
    offset = first - (sizes.cumsum(0) - sizes)
    return panel, torch.arange(len(panel), device=panel.device) + offset[panel]


def _by_panel(values: Tensor, panel: Tensor, panels: int) -> Tensor:
    """Sums over the pairs of each panel, (panels, nodes)."""
    return values.new_zeros(panels, values.shape[-1]).index_put((panel,), values, accumulate=True)


def _on_side_of_kink(e: Tensor, order: Tensor, rank: Tensor, kinks: tuple[float, ...]) -> Tensor:
    """e, moved to the side of each kink on which its panel lies.

    Rounding, and panels without width between ties, could put a node on the other side.
    """
    for kink, kink_rank in zip(kinks, rank.unbind(-1), strict=True):
        right_of_kink = (order >= kink_rank).unsqueeze(-1)
        e = torch.where(right_of_kink, e.clamp_min(kink + KINK_OFFSET), e.clamp_max(kink - KINK_OFFSET))
    return e
