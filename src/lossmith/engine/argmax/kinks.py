"""Noise whose density has kinks or jumps: where they fall, and how nodes move with them.

Between kinks the integrand is smooth, so panels end at kinks. Kinks move with the scores. Where a density jumps at a kink, the
integral's derivative has a term from the move. Thus panels follow the kinks on either side (N15). The equations (N…) are in
``docs/how/numbers.md``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossmith.engine.argmax.quadrature import Panels, nodes_of
from lossmith.noise import Noise

TIED = 1e-13  # kinks this near are one: the panel between them would be lost to rounding


def positions(scores: Tensor, noise: Noise) -> Tensor:
    """Where the integrand is not smooth, (rows, C · kinks) ascending; a removed class repeats the lowest of the others."""
    removed = scores.isneginf()
    filled = torch.where(removed, scores.detach().masked_fill(removed, math.inf).amin(-1, keepdim=True), scores)
    return (filled.unsqueeze(-1) + scores.new_tensor(noise.kinks)).flatten(-2).sort(-1).values


def jumps(noise: Noise) -> list[tuple[float, float]]:
    """The kinks at which the density jumps, and by how much it falls there."""
    at = torch.tensor(noise.kinks, dtype=torch.float64)
    near = 1e-12 * at.abs().clamp_min(1)
    fall = noise.log_prob(at - near).exp() - noise.log_prob(at + near).exp()
    return [(kink, float(size)) for kink, size in zip(noise.kinks, fall, strict=True) if abs(size) > 1e-6]


def distinct(kinks: Tensor) -> Tensor:
    """The kinks (rows, m) ascending without repetition; inf fills the rest of a row."""
    repeated = torch.nn.functional.pad(kinks.diff(dim=-1) <= TIED, (1, 0), value=False)
    return kinks.masked_fill(repeated, math.inf).sort(-1).values


def number_inside(panels: Panels, kinks: Tensor) -> Tensor:
    """How many of their row's ``kinks`` (rows, m) ascending lie strictly inside the panels, (n,)."""
    inner = torch.finfo(kinks.dtype).eps * panels.right.abs()
    return (
        _number_below(kinks, panels.row, panels.right - inner) - _number_below(kinks, panels.row, panels.left + inner)
    ).clamp_min(0)


def _number_below(kinks: Tensor, row: Tensor, u: Tensor) -> Tensor:
    """How many of the ``kinks`` (rows, m) ascending lie below u (n,), each in its row (n,), by bisection."""
    low, high = torch.zeros_like(row), torch.full_like(row, kinks.shape[-1])
    for _ in range(kinks.shape[-1].bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (kinks[row, middle.clamp_max(kinks.shape[-1] - 1)] < u)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return low


def covered(kinks: Tensor, panels: Panels) -> Tensor:
    """Which ``kinks`` (rows, m) lie inside one of their row's panels, or at an end of it."""
    ends, exists = nodes_of(panels, len(kinks))
    left, right = ends.masked_fill(~exists.unsqueeze(-1), math.inf).mT.contiguous().sort(-1).values.unbind(-2)
    index = torch.searchsorted(left.contiguous(), kinks, right=True) - 1
    return (index >= 0) & (kinks <= right.contiguous().gather(-1, index.clamp_min(0))) & kinks.isfinite()


def follow(ends: Tensor, exists: Tensor, kinks: Tensor) -> Tensor:
    """The ends of panels, (rows, most, 2), which move with the kinks on either side of the panel (N15).

    Of the ``kinks`` (rows, m), ascending, only those count at which a panel ends: at the others, no panel was cut.
    """
    edges = ends.masked_fill(~exists.unsqueeze(-1), math.inf).flatten(-2).sort(-1).values
    index = torch.searchsorted(edges, kinks.detach() - TIED).clamp_max(edges.shape[-1] - 1)
    kinks = _as_one(kinks, (edges.gather(-1, index) - kinks.detach()).abs() <= TIED)
    bound = torch.cat([kinks[:, :1] - 1, kinks, kinks[:, -1:] + 1], -1)  # beyond the outermost: in step with it
    right = torch.searchsorted(kinks.detach(), ends.mean(-1)) + 1
    low, high = bound.gather(-1, right - 1).unsqueeze(-1), bound.gather(-1, right).unsqueeze(-1)
    share = (ends - low.detach()) / (high - low).detach()
    return torch.where(exists.unsqueeze(-1), low + (high - low) * share, ends)


def at_rest(kinks: Tensor, noise: Noise) -> Tensor:
    """The kinks of scores measured from the target's, with those that coincide with the target's own made constant.

    Its density jumps there, which no other class's F does: what coincides has to stay with it.
    """
    for own in noise.kinks:
        kinks = torch.where((kinks - own).abs() < TIED, own, kinks)
    return kinks


def own_jumps(scores: Tensor, rivals: Tensor, log_p: Tensor, noise: Noise) -> Tensor:
    """What ``follow`` leaves out of log p of each class (rows, C) at ties: (N16) over p, which is 0 with a derivative.

    Args:
        scores: (rows, C), −inf where removed.
        rivals: the same, with removed classes far below.
        log_p: (rows, C).
        noise: the distribution of ε.
    """
    missing = torch.zeros_like(log_p)
    kinks = positions(scores, noise)
    for kink, fall in jumps(noise):
        own = rivals + kink
        index = torch.searchsorted(kinks.detach(), own.detach() - TIED).clamp_max(kinks.shape[-1] - 1)
        shift = own - kinks.gather(-1, index)
        with torch.no_grad():
            place = kinks.gather(-1, index)
            after = kinks.gather(-1, (index + 1).clamp_max(kinks.shape[-1] - 1))
            tied = ((after - place) < TIED) & ((own - place).abs() < TIED) & log_p.isfinite()
            if not tied.any():
                continue
            row, one = torch.unique(torch.stack([tied.nonzero()[:, 0], index[tied]]), dim=1, return_inverse=True)[0]
            log_cdf = noise.log_cdf(kinks[row, one].unsqueeze(-1) - rivals[row])
            group = log_p.new_full(kinks.shape, -1.0).long()
            group[row, one] = torch.arange(len(row), device=row.device)
            chosen = group.gather(-1, index)[tied]
            itself = noise.log_cdf(log_p.new_tensor(kink))
            zeros = log_cdf.isneginf().sum(-1)[chosen] - itself.isneginf().long()
            finite = log_cdf.masked_fill(log_cdf.isneginf(), 0.0).sum(-1)[chosen]
            rest = torch.where(zeros > 0, -math.inf, finite - (0.0 if itself.isneginf() else itself))
            rate = torch.zeros_like(log_p)
            rate[tied] = fall * (rest - log_p[tied]).exp()
        missing = missing + torch.where(tied, rate * shift, 0.0)
    return missing


def _as_one(kinks: Tensor, cuts: Tensor) -> Tensor:
    """Kinks (rows, m) ascending, each tied group replaced by its first: no gap may open between panels that meet there.

    A kink at which no panel is cut (``cuts`` false) is replaced by the cut before it, or by the first one.
    """
    new = torch.nn.functional.pad(kinks.diff(dim=-1) > TIED, (1, 0), value=True) & cuts
    place = torch.arange(kinks.shape[-1], device=kinks.device)
    first = new.int().argmax(-1, keepdim=True)
    return kinks.gather(-1, torch.where(new, place, first).cummax(-1).values)
