r"""Where the nodes go: panels of Gauss–Legendre nodes, cut in two until each resolves the integrand.

A panel is halved while its error is above ``error`` times the row's integral (N13). The error is estimated from the last
Legendre coefficients of the panel's 16 values (Trefethen, "Approximation theory and approximation practice", ch. 19). A panel
whose values all lie ``drop`` nats below the integral counts as zero, and gets no nodes. The two ends of a panel are looked at
as well, so that a panel beside a peak counts. Beside a kink that many classes share, the product of all F rises or falls so
steeply that no node may see the step: a panel whose polynomial misses an end is halved. All values are logarithms, so nothing
underflows. A panel over which the logarithms vary by no more than their rounding (N14) is done. The equations (N…) are in
``docs/how/numbers.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NODES = 16  # of one panel
MAX_ROUNDS = 200
MOST = 0.03  # rounding of the logarithms beside which an error can still be told
_points, _weights = np.polynomial.legendre.leggauss(NODES)
_last_three = np.polynomial.legendre.legvander(_points, NODES - 1)[:, -3:] * (np.arange(NODES - 3, NODES) + 0.5)
POINTS = torch.from_numpy((_points + 1) / 2)  # on [0, 1]
LOG_WEIGHTS = torch.from_numpy(np.log(_weights / 2))
LAST_COEFFICIENTS = torch.from_numpy(_weights[:, None] * _last_three)
INSIDE = 1e-9  # of the width: where an end is looked at, since the density may jump at the end itself
INSPECTED = torch.cat([POINTS, POINTS.new_tensor([INSIDE, 1 - INSIDE])])
_barycentric = 1 / np.prod(_points[:, None] - _points + np.eye(NODES), axis=1)
_at_ends = _barycentric / (np.array([[-1.0], [1.0]]) - _points)
AT_ENDS = torch.from_numpy(_at_ends / _at_ends.sum(-1, keepdims=True))  # the polynomial's values there, from those at the nodes
SEEN = 1e-8  # of the highest value: a smaller surprise at an end is none
SMOOTH = 100.0  # nor is one of so many times the last coefficients, which tell of it themselves


class Rule(NamedTuple):
    """How far and how finely to integrate."""

    drop: float  # nats below the integral at which a panel counts as zero
    error: float  # of a panel that is done, relative to the integral


class Panels(NamedTuple):
    """Intervals of the threshold, those of all rows in one list; (n,) each."""

    row: Tensor
    left: Tensor
    right: Tensor

    def select(self, mask: Tensor) -> Panels:
        """The panels where ``mask`` is true."""
        return Panels(*(column[mask] for column in self))

    def join(self, more: Panels) -> Panels:
        """These and the others."""
        return Panels(*(torch.cat(pair) for pair in zip(self, more, strict=True)))


class _Sizes(NamedTuple):
    """Of each panel's integrands, (n, outputs) each, as logarithms."""

    area: Tensor
    peak: Tensor  # over nodes and ends, times the width
    error: Tensor  # estimated (N13)
    range: Tensor  # between the highest and the lowest, over nodes and ends


Integrand = Callable[[Tensor, Tensor], Tensor]  # rows (n,), thresholds (n, m) -> log integrands (n, m, outputs)


def between(edges: Tensor, least: float) -> Panels:
    """Panels between edges, (rows, m) ascending; one nearer than ``least`` to the one before is skipped, but not the last."""
    keep = torch.nn.functional.pad(edges.diff(dim=-1) >= least, (1, 0), value=True)
    keep[:, -1] = True
    row = torch.arange(len(edges), device=edges.device).unsqueeze(-1).expand_as(edges)[keep]
    edge = edges[keep]
    same = row[1:] == row[:-1]
    return Panels(row[1:][same], edge[:-1][same], edge[1:][same])


def screen(panels: Panels, rows: int, integrand: Integrand, rule: Rule) -> Panels:
    """The panels that may count: one whose ends both lie far below the highest end of its row does not."""
    log = integrand(panels.row, torch.stack([panels.left, panels.right], -1)).amax(-2)
    log = log + (panels.right - panels.left).log().unsqueeze(-1)
    best = log.new_full((rows, log.shape[-1]), -math.inf)
    best = best.scatter_reduce(0, panels.row.unsqueeze(-1).expand_as(log), log, "amax")
    return panels.select(_counts(log, best[panels.row], rule._replace(drop=2 * rule.drop)).any(-1))


def refine(
    panels: Panels,
    rows: int,
    integrand: Integrand,
    levels: Callable[[Tensor], Tensor],
    rule: Rule,
    crowded: Callable[[Panels], Tensor] | None = None,
) -> tuple[Panels, Tensor]:
    """Halve panels until every integral is resolved to its level.

    Args:
        panels: a cover of the range, fine enough that no two peaks share a panel.
        rows: how many rows there are.
        integrand: the logarithms of the integrands.
        levels: from the log integrals so far, (rows, outputs), to the logarithms of the sizes that ``rule`` is relative to, of
            the same shape; inf for an integral that does not matter.
        rule: when a panel is done, and when it counts as zero.
        crowded: which panels (n,) are halved even if they are resolved, unless they count as zero; none by default.

    Returns:
        The panels that do not count as zero, in the order of their rows, and the log integrals, (rows, outputs).
    """
    sizes = _sizes(panels, integrand)
    for _ in range(MAX_ROUNDS):
        level = levels(_sum_by_row(sizes.area, panels.row, rows))[panels.row]
        middle = (panels.left + panels.right) / 2
        divisible = (panels.right - panels.left) > 64 * torch.finfo(middle.dtype).eps * middle.abs()
        counts = _counts(sizes.peak, level, rule)
        rounding = _rounding(sizes.peak)
        tolerance = rounding.square().clamp_min(rule.error)  # η² of (N14): a smaller error is rounding
        tolerance = torch.where(rounding > MOST, 0.0, tolerance).log()  # beyond, no error can be estimated
        rough = (counts & (sizes.error > level + tolerance) & (sizes.range > rounding)).any(-1)
        if crowded is not None:
            rough |= counts.any(-1) & crowded(panels)
        rough &= divisible
        if not rough.any():
            break
        lower, upper = panels._replace(right=middle).select(rough), panels._replace(left=middle).select(rough)
        halves = lower.join(upper)
        panels = panels.select(~rough).join(halves)
        sizes = _Sizes(*(torch.cat([old[~rough], new]) for old, new in zip(sizes, _sizes(halves, integrand), strict=True)))
    total = _sum_by_row(sizes.area, panels.row, rows)
    level = levels(total)[panels.row]
    order = panels.row.argsort(stable=True)
    counts = _counts(sizes.peak, level, rule).any(-1)
    return panels.select(order[counts[order]]), total


def _counts(peak: Tensor, level: Tensor, rule: Rule) -> Tensor:
    """Which panels do not count as zero; a level so far down that it rounds ``drop`` away is met by the highest."""
    rounding = 4 * torch.finfo(peak.dtype).eps * level.abs()
    return (peak > level - torch.clamp(rounding.nan_to_num(posinf=0.0), min=rule.drop)) & peak.isfinite()


def _rounding(peak: Tensor) -> Tensor:
    """η of (N14): a difference of log integrands, or a coefficient relative to the peak, that may come from rounding alone."""
    return 100 * torch.finfo(peak.dtype).eps * peak.abs().nan_to_num(posinf=0.0)


def cut(panels: Panels, at: Tensor) -> Panels:
    """The panels broken where a point of ``at`` (rows, m) lies inside a row's range."""
    rows = len(at)
    first = at.new_full((rows,), math.inf).scatter_reduce(0, panels.row, panels.left, "amin")
    last = at.new_full((rows,), -math.inf).scatter_reduce(0, panels.row, panels.right, "amax")
    inside = (at > first.unsqueeze(-1)) & (at < last.unsqueeze(-1))
    row = torch.arange(rows, device=at.device).unsqueeze(-1).expand_as(at)[inside]
    edge = torch.cat([panels.left, panels.right, at[inside]])
    row = torch.cat([panels.row, panels.row, row])
    order = edge.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    row, edge = row[order], edge[order]
    proper = (row[1:] == row[:-1]) & (edge[1:] > edge[:-1])
    return Panels(row[1:][proper], edge[:-1][proper], edge[1:][proper])


def nodes_of(panels: Panels, rows: int) -> tuple[Tensor, Tensor]:
    """Ends of each row's panels, (rows, most, 2), and the mask of those that exist, (rows, most)."""
    count = torch.bincount(panels.row, minlength=rows)
    most = max(1, int(count.max())) if rows else 1
    place = torch.arange(len(panels.row), device=panels.row.device) - (count.cumsum(0) - count)[panels.row]
    ends = panels.left.new_zeros(rows, most, 2)
    ends[panels.row, place] = torch.stack([panels.left, panels.right], -1)
    exists = torch.arange(most, device=count.device) < count.unsqueeze(-1)
    return ends, exists


def gauss(ends: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds and their log weights, (rows, most · 16) each; a panel that does not exist weighs nothing."""
    left, right = ends.unsqueeze(-2).unbind(-1)
    nodes = left + (right - left) * POINTS.to(ends)
    width = torch.where(exists.unsqueeze(-1), right - left, 1.0)
    log_weight = torch.where(exists.unsqueeze(-1), width.log() + LOG_WEIGHTS.to(ends), -math.inf)
    return nodes.flatten(-2), log_weight.flatten(-2)


def _sizes(panels: Panels, integrand: Integrand) -> _Sizes:
    width = (panels.right - panels.left).unsqueeze(-1)
    u = panels.left.unsqueeze(-1) + width * INSPECTED.to(width)
    log = integrand(panels.row, u)
    peak, highest = log.amax(-2), log[:, :NODES].amax(-2)
    spread = (peak - log.amin(-2)).nan_to_num(nan=0.0, posinf=math.inf)
    finite = torch.where(highest.isneginf(), 0.0, highest)
    value = (log[:, :NODES] - finite.unsqueeze(-2)).exp()
    area = (value * LOG_WEIGHTS.exp().to(value).unsqueeze(-1)).sum(-2)
    each = [(value * column.unsqueeze(-1)).sum(-2).abs() for column in LAST_COEFFICIENTS.to(value).unbind(-1)]
    last = torch.stack(each).amax(0)
    scale, log_width = finite + width.log(), width.log()
    told_apart = INSIDE * width > 8 * torch.finfo(u.dtype).eps * u.abs().amax(-1, keepdim=True)  # the ends, from what is beyond
    surprise = torch.where(told_apart, _surprise(log, peak, last.log() + finite), -math.inf)
    error = torch.maximum(2 * last.log() + scale, surprise + log_width + math.log(POINTS[0]))  # first the left side of (N13)
    return _Sizes(area.log() + scale, peak + log_width, error, spread)


def _surprise(log: Tensor, peak: Tensor, log_last: Tensor) -> Tensor:
    """Log of how far the panel's polynomial is from the integrand at an end, (n, outputs); −inf where that is no surprise."""
    base = torch.where(peak.isneginf(), 0.0, peak)
    value = (log - base.unsqueeze(-2)).exp()
    expected = torch.einsum("en,pno->peo", AT_ENDS.to(value), value[:, :NODES])
    off = (value[:, NODES:] - expected).abs().amax(-2)
    usual = _rounding(base).clamp_min(SEEN) + SMOOTH * (log_last - base).exp()
    return torch.where(off > usual, off.log() + base, -math.inf)


def _sum_by_row(log: Tensor, row: Tensor, rows: int) -> Tensor:
    """Log of the sum of each row's exponentials (N11), (rows, outputs)."""
    index = row.unsqueeze(-1).expand_as(log)
    peak = log.new_full((rows, log.shape[-1]), -math.inf).scatter_reduce(0, index, log, "amax")
    peak = torch.where(peak.isneginf(), 0.0, peak)
    return log.new_zeros(rows, log.shape[-1]).scatter_add(0, index, (log - peak[row]).exp()).log() + peak
