r"""Wins over all pairs for smooth noises: a fast multipole method in one dimension, in plain torch.

H(δ) = P(ε_y − ε_x ≤ δ) is the probability that x wins with a lead of δ; H(−δ) = 1 − H(δ). Scores are in units of the noise.
A set of scores enters through its Chebyshev moments in each occupied panel of a lattice (R4). H between two panels is a matrix
on these moments (R5). Panels grow with their distance (R7) to (R10). Derivation and equations: ``docs/how/ranking.md``.
Source: Greengard & Rokhlin, "A fast algorithm for particle simulations", 1987; with Chebyshev polynomials, Fong & Darve, "The
black-box fast multipole method", 2009.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lossmith.maths.chebyshev import TERMS, Weighted, from_values, gauss_legendre, halves, moments, nodes, polynomials, total
from lossmith.noise import Noise

NEAR_PANELS = 2  # panels at most so many apart, in panels, are near: H between them is not yet almost 0 or 1, nor smooth enough
COEFFICIENT_FLOOR = 1e-13  # the highest a last coefficient of a resolved matrix may be: 13 digits of H, whose range is 1
NEGLIGIBLE_TAIL = 1e-18  # a probability that is 0 beside the rounding of 1, 1.1e-16


class OccupiedPanels(NamedTuple):
    """The occupied panels of one set of scores (R4).

    place: the index of each panel on the lattice (R3), ascending, (p,) int64.
    moments: the Chebyshev moments of each panel, (p, TERMS) float64.
    """

    place: Tensor
    moments: Tensor

    @classmethod
    def of(cls, points: Weighted, width: float) -> OccupiedPanels:
        """Panels of ``width``, in units of the noise, that hold at least one of the points."""
        x, order = points.x.sort(stable=True)
        lattice = torch.floor(x.detach() / width)
        place, panel = torch.unique_consecutive(lattice.long(), return_inverse=True)
        t = 2 * (x / width - lattice) - 1
        return cls(place, moments(t, points.weight[order], panel, len(place)))

    def coarser(self) -> OccupiedPanels:
        """The panels of twice the width (R9)."""
        place, parent = torch.unique_consecutive(self.place >> 1, return_inverse=True)
        result = self.moments.new_zeros(len(place), TERMS)
        for half, shift in enumerate(halves().to(self.moments)):
            member = (self.place & 1 == half).nonzero().squeeze(-1)
            result = result.index_put((parent[member],), self.moments[member] @ shift, accumulate=True)
        return OccupiedPanels(place, result)


def wins_of_panels(high: OccupiedPanels, low: OccupiedPanels, noise: Noise, width: float) -> Tensor:
    """Σ_ij u_i v_j H(x_i − y_j), a scalar, for winners ``high`` and losers ``low`` in panels of ``width``."""
    wins = _certain_wins(high, low) + _corrections(high, low, win_matrices(noise, width, 0, NEAR_PANELS))
    while _spread(high, low) > NEAR_PANELS and not is_certain(NEAR_PANELS * width, noise):
        wins = wins + _corrections(high, low, win_matrices(noise, width, NEAR_PANELS + 1, 2 * NEAR_PANELS + 1))
        high, low, width = high.coarser(), low.coarser(), 2 * width
    return wins


def _spread(high: OccupiedPanels, low: OccupiedPanels) -> int:
    """The distance of the two panels furthest apart, one of either set, in panels."""
    return int(torch.maximum(high.place[-1] - low.place[0], low.place[-1] - high.place[0]))


@lru_cache(maxsize=512)
def is_certain(delta: float, noise: Noise) -> bool:
    """Whether H is 1 from δ on, up to rounding (R10)."""
    return 2 * _outside(delta / 2, noise) < NEGLIGIBLE_TAIL


def _certain_wins(high: OccupiedPanels, low: OccupiedPanels) -> Tensor:
    """The count of (R7): every pair of panels counts 0, ½ if the two are near each other, or 1."""
    weight = torch.nn.functional.pad(low.moments[:, 0].cumsum(0), (1, 0))
    weight_below = weight[torch.searchsorted(low.place, high.place - NEAR_PANELS)]
    weight_to_far_end = weight[torch.searchsorted(low.place, high.place + NEAR_PANELS, right=True)]
    return total(high.moments[:, 0] * (weight_below + weight_to_far_end) / 2)


def _corrections(high: OccupiedPanels, low: OccupiedPanels, matrices: dict[int, Tensor]) -> Tensor:
    """What (R7) adds to the count, over pairs of panels at the distances of ``matrices`` and with parents near each other."""
    matches = [_match(high, low, distance) for distance in matrices]
    high_index, low_index = (torch.cat(side) for side in zip(*matches, strict=True))
    sizes = [len(match[0]) for match in matches]
    potentials = [
        part @ matrix.to(part) for part, matrix in zip(high.moments[high_index].split(sizes), matrices.values(), strict=True)
    ]
    return total(torch.cat(potentials) * low.moments[low_index])


def _match(high: OccupiedPanels, low: OccupiedPanels, distance: int) -> tuple[Tensor, Tensor]:
    """Indices into ``high`` and ``low`` of the panels that are ``distance`` apart, high − low: both (pairs,) int64."""
    partner = high.place - distance
    index = torch.searchsorted(low.place, partner).clamp_max(len(low.place) - 1)
    parents_near = ((high.place >> 1) - (partner >> 1)).abs() <= NEAR_PANELS
    high_index = ((low.place[index] == partner) & parents_near).nonzero().squeeze(-1)
    return high_index, index[high_index]


@lru_cache(maxsize=512)
def win_matrices(noise: Noise, width: float, nearest: int, farthest: int) -> dict[int, Tensor]:
    """The matrices (R6) of (R7) by the distance of two panels, which is negative to the left (R8).

    ``width`` is that of the panels, in units of the noise; ``nearest`` and ``farthest`` are distances in panels.

    Raises:
        ValueError: TERMS Chebyshev polynomials are too few for the noise at this width.
    """
    with torch.inference_mode(False), torch.no_grad():
        distance = torch.arange(nearest, farthest + 1, dtype=torch.float64, device="cpu").view(-1, 1, 1)
        t = nodes(TERMS)
        delta = width * (distance + (t.unsqueeze(1) - t) / 2)
        tail = _tail(delta.abs(), noise, width * max(nearest - 1, 0), width * (farthest + 1))
        values = torch.where(distance > NEAR_PANELS, -tail, delta.sign() * (0.5 - tail))
        matrices = from_values(TERMS) @ values @ from_values(TERMS).T
        if float(torch.maximum(matrices[:, -2:].abs().amax(), matrices[:, :, -2:].abs().amax())) > COEFFICIENT_FLOOR:
            raise ValueError(
                f"noise: expected a smooth density with one peak, got {noise}, rough at widths of {width:g}; "
                "name its kinks or smooth it"
            )
        right = dict(zip(range(nearest, farthest + 1), matrices, strict=True))
        return right | {-distance: -matrix.T for distance, matrix in right.items() if distance}


@lru_cache(maxsize=64)
def panel_width(noise: Noise) -> float:
    """The width of the finest panels, in units of the noise: a power of two, so that a place (R3) has no rounding.

    The cache of the width and of the matrices is by the noise: the first call of a noise computes them.
    """
    width = unit(noise)
    for _ in range(10):
        try:
            win_matrices(noise, width, 0, NEAR_PANELS)
        except ValueError:
            width /= 2
        else:
            break
    win_matrices(noise, width, 0, NEAR_PANELS)
    return width


@lru_cache(maxsize=64)
def median(noise: Noise) -> float:
    """The centre of the noise, F⁻¹(½)."""
    return float(noise.icdf(torch.tensor(0.5, dtype=torch.float64, device="cpu")))


def unit(noise: Noise) -> float:
    """The distance of the quartiles, rounded up to a power of two."""
    quartiles = noise.icdf(torch.tensor([0.25, 0.75], dtype=torch.float64, device="cpu"))
    return 2.0 ** math.ceil(math.log2(float(quartiles[1] - quartiles[0])))


def _tail(delta: Tensor, noise: Noise, low: float, high: float) -> Tensor:
    """H(−δ) for low ≤ δ ≤ high: a Chebyshev series, since each value by itself costs an integral."""
    middle, half = (low + high) / 2, (high - low) / 2
    values = _lost(middle + half * nodes(2 * TERMS), noise)
    return polynomials((delta - middle) / half, 2 * TERMS) @ (from_values(2 * TERMS) @ values)


def _lost(delta: Tensor, noise: Noise) -> Tensor:
    """H(−δ) for δ ≥ 0, (m,), within 1e-15, by (R11); u and v count from the median.

    Each part of (R11) has one place where it bends. The panels grow away from that place.
    """
    scores = torch.stack([-delta, torch.zeros_like(delta)], -1)
    if noise.has_closed_form(2):
        return noise.closed_form_log_probs(scores)[:, 0].exp()
    reach, centre = [unit(noise) / 64], median(noise)
    while _outside(reach[-1], noise) > NEGLIGIBLE_TAIL and reach[-1] < 1e300:
        reach.append(
            (2 if reach[-1] < 16 * unit(noise) else 4) * reach[-1]
        )  # where tails are light, the loop has ended by then
    edges = delta.new_tensor([-r for r in reversed(reach)] + [0.0] + reach)
    half = delta.unsqueeze(-1) / 2
    u, du = gauss_legendre(edges.minimum(half), TERMS)
    v, dv = gauss_legendre(edges.maximum(-half), TERMS)
    delta = delta.unsqueeze(-1)
    left = (noise.log_prob(centre + u) + noise.log_cdf(centre + u - delta)).exp() * du
    right = (noise.log_prob(centre + v + delta) + noise.log_cdf(centre + v)).exp() * dv
    return left.sum(-1) + right.sum(-1)


def _outside(reach: float, noise: Noise) -> float:
    """P(|ε − median| > reach)."""
    ends = median(noise) + torch.tensor([-reach, reach], dtype=torch.float64, device="cpu")
    return float(noise.log_cdf(ends[0]).exp() + noise.log_sf(ends[1]).exp())
