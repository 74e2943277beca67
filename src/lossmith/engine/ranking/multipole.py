r"""Sums over all pairs of two sets of scores, Σ_ij u_i v_j H(x_i − y_j), in a time linear in their number.

H(δ) = P(ε_y − ε_x ≤ δ) is the probability that x wins against y; H(−δ) = 1 − H(δ). Scores are in units of the noise.

Smooth noises: a fast multipole method in one dimension. The axis is cut into panels of one width, and a set of scores enters
through its Chebyshev moments in each occupied panel, Σ_i u_i T_k(t_i) with t in [−1, 1] the place within the panel. H between
two panels is a small matrix on their moments. Panels near each other use that matrix at once. Of panels further apart the
right one is counted as winning, and what is wrong with that, the tail of H, is corrected on coarser and coarser panels, the
moments of a panel being those of its two halves, shifted. It ends where the tail is below the rounding of 1.
Source: Greengard & Rokhlin, "A fast algorithm for particle simulations", 1987; with Chebyshev polynomials, Fong & Darve, "The
black-box fast multipole method", 2009.

Noises with kinks: H is an exponential or a polynomial on either side of 0, and prefix sums over the sorted scores do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lossmith.maths.scan import decayed_cumsum
from lossmith.noise import Exponential, Laplace, Noise, Uniform

TERMS = 16  # Chebyshev polynomials a panel
NEAR = 2  # panels further apart than this are well separated
CHUNK = 16384  # scores at a time: they stay in the cache, and torch works on so few in one thread
RESOLVED = 1e-13  # what the last coefficients of a resolved series are below
NOTHING = 1e-18  # a tail beside the rounding of 1


class Weighted(NamedTuple):
    """Scores in units of the noise and their weights, both (n,) float64."""

    x: Tensor
    weight: Tensor


def expected_wins(winners: Weighted, losers: Weighted, noise: Noise) -> Tensor:
    """Σ_ij u_i v_j H(x_i − y_j) over the winners (x, u) and the losers (y, v), a scalar; |x|, |y| ≤ 1e15.

    Raises:
        ValueError: the noise has kinks and no formula in ``LOST_BY_HIGHER``, or it is too rough for the panels.
    """
    if not noise.kinks:
        width = panel_width(noise)
        return wins_of_panels(Panels.of(winners, width), Panels.of(losers, width), noise, width)
    for kind, lost in LOST_BY_HIGHER.items():
        if isinstance(noise, kind):
            return _wins_by_rank(winners, losers, lost)
    known = ", ".join(kind.name for kind in LOST_BY_HIGHER)
    raise ValueError(f"noise: expected a smooth one or one of {known}, got {noise} with kinks; use a noise without kinks")


def total(x: Tensor) -> Tensor:
    """Sum of (n,) or (n, k) to a scalar, in an order that does not depend on the number of threads."""
    if x.dim() > 1:
        x = x.sum(-1)
    # One thread sums a row; torch would split one long sum among them.
    rows = -(-len(x) // CHUNK)
    return torch.nn.functional.pad(x, (0, rows * CHUNK - len(x))).view(rows, CHUNK).sum(-1).sum()


# Chebyshev moments: two operations, adjoint to each other, whose derivatives are again these two.


def moments(t: Tensor, weight: Tensor, panel: Tensor, panels: int) -> Tensor:
    """Σ_{i in panel} weight_i T_k(t_i), (panels, TERMS), for places t in [−1, 1] and ascending panel indices, all (n,)."""
    return _Moments.apply(t, weight, panel, panels)  # type: ignore[no-untyped-call]


def series(coefficients: Tensor, t: Tensor, panel: Tensor) -> Tensor:
    """Σ_k coefficients[panel_i, k] T_k(t_i), (n,); the adjoint of ``moments``."""
    return _Series.apply(coefficients, t, panel)  # type: ignore[no-untyped-call]


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, weight: Tensor, panel: Tensor, panels: int) -> Tensor:
        ctx.save_for_backward(t, weight, panel)
        result = t.new_zeros(TERMS, panels)
        for chunk in _chunks(len(t)):
            first, last = int(panel[chunk.start]), int(panel[chunk.stop - 1])
            within, twice = panel[chunk] - first, 2 * t[chunk]
            term, before = weight[chunk], weight[chunk] * t[chunk]
            for row in result:
                # Summed apart and then added: the rounding grows with the chunk, not with n.
                row[first : last + 1].add_(t.new_zeros(last + 1 - first).index_add_(0, within, term))
                term, before = twice * term - before, term
        return result.T.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        t, weight, panel = ctx.saved_tensors
        by_t = weight * series(grad @ _derivative().to(grad), t, panel) if ctx.needs_input_grad[0] else None
        by_weight = series(grad, t, panel) if ctx.needs_input_grad[1] else None
        return by_t, by_weight, None, None


class _Series(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, t: Tensor, panel: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, t, panel)
        columns = coefficients.T.contiguous()
        result = torch.empty_like(t)
        for chunk in _chunks(len(t)):
            first, last = int(panel[chunk.start]), int(panel[chunk.stop - 1])
            within, twice = panel[chunk] - first, 2 * t[chunk]
            later = latest = torch.zeros_like(twice)
            for column in columns[1:, first : last + 1].flip(0):  # Clenshaw's recursion, from the last term
                later, latest = column.index_select(0, within) + twice * later - latest, later
            result[chunk] = columns[0, first : last + 1].index_select(0, within) + t[chunk] * later - latest
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, t, panel = ctx.saved_tensors
        by_coefficients = moments(t, grad, panel, len(coefficients)) if ctx.needs_input_grad[0] else None
        by_t = grad * series(coefficients @ _derivative().to(grad), t, panel) if ctx.needs_input_grad[1] else None
        return by_coefficients, by_t, None


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def _fixed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Made once, and fit for autograd wherever the first call stands."""

    @lru_cache
    def made(*args: int) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return make(*args)

    return made


@_fixed
def nodes(terms: int) -> Tensor:
    """Chebyshev points in (−1, 1)."""
    return torch.cos(math.pi * (torch.arange(terms, dtype=torch.float64, device="cpu") + 0.5) / terms)


def _polynomials(t: Tensor, terms: int) -> Tensor:
    """T_k(t), (…, terms), for t in [−1, 1]."""
    values = [torch.ones_like(t), t]
    while len(values) < terms:
        values.append(2 * t * values[-1] - values[-2])
    return torch.stack(values, -1)


@_fixed
def from_values(terms: int) -> Tensor:
    """Values at the Chebyshev points (columns) → coefficients, (terms, terms)."""
    scaled = 2 * _polynomials(nodes(terms), terms).T / terms
    return torch.cat([scaled[:1] / 2, scaled[1:]])


@_fixed
def _derivative() -> Tensor:
    """Coefficients (row vectors) of a series → those of its derivative: T_k' = 2k (T_{k−1} + T_{k−3} + …), T_0 halved."""
    order = torch.arange(TERMS, dtype=torch.float64, device="cpu").unsqueeze(1)
    matrix = torch.where((order > order.T) & ((order - order.T) % 2 == 1), 2 * order, 0.0)
    return torch.cat([matrix[:, :1] / 2, matrix[:, 1:]], 1)


@_fixed
def halves() -> Tensor:
    """Moments (row vectors) of the left and of the right half of a panel → their share of the whole's, (2, TERMS, TERMS)."""
    points = (nodes(TERMS) + torch.tensor([[-1.0], [1.0]], dtype=torch.float64, device="cpu")) / 2
    return from_values(TERMS) @ _polynomials(points, TERMS)


# Smooth noises


class Panels(NamedTuple):
    """Occupied panels: their places on the lattice, ascending, (p,) int64, and moments (p, TERMS)."""

    place: Tensor
    moments: Tensor

    @classmethod
    def of(cls, points: Weighted, width: float) -> Panels:
        x, order = points.x.sort(stable=True)
        lattice = torch.floor(x.detach() / width)
        place, panel = torch.unique_consecutive(lattice.long(), return_inverse=True)
        t = 2 * (x / width - lattice) - 1
        return cls(place, moments(t, points.weight[order], panel, len(place)))

    def coarser(self) -> Panels:
        """Panels of twice the width."""
        place, parent = torch.unique_consecutive(self.place >> 1, return_inverse=True)
        result = self.moments.new_zeros(len(place), TERMS)
        for half, shift in enumerate(halves().to(self.moments)):
            mine = (self.place & 1 == half).nonzero().squeeze(-1)
            result = result.index_put((parent[mine],), self.moments[mine] @ shift, accumulate=True)
        return Panels(place, result)


def wins_of_panels(high: Panels, low: Panels, noise: Noise, width: float) -> Tensor:
    """Σ_ij u_i v_j H(x_i − y_j), a scalar, for winners and losers in panels of that width."""
    wins = _certain_wins(high, low) + _corrections(high, low, kernels(noise, width, 0, NEAR))
    while _spread(high, low) > NEAR and not is_certain(NEAR * width, noise):
        wins = wins + _corrections(high, low, kernels(noise, width, NEAR + 1, 2 * NEAR + 1))
        high, low, width = high.coarser(), low.coarser(), 2 * width
    return wins


def _spread(high: Panels, low: Panels) -> int:
    return int(torch.maximum(high.place[-1] - low.place[0], low.place[-1] - high.place[0]))


@lru_cache(maxsize=512)
def is_certain(delta: float, noise: Noise) -> bool:
    """Whether H is 1 from δ on: of two ε that differ by δ, one is δ/2 or more from the median."""
    return 2 * _outside(delta / 2, noise) < NOTHING


def _certain_wins(high: Panels, low: Panels) -> Tensor:
    """Every pair of panels counted as 0, ½ if they are near each other, or 1."""
    weight = torch.nn.functional.pad(low.moments[:, 0].cumsum(0), (1, 0))
    beaten = weight[torch.searchsorted(low.place, high.place - NEAR)]
    met = weight[torch.searchsorted(low.place, high.place + NEAR, right=True)]
    return total(high.moments[:, 0] * (beaten + met) / 2)


def _corrections(high: Panels, low: Panels, kernels: dict[int, Tensor]) -> Tensor:
    """What the count is short of, over pairs of panels at the distances of the kernels and with parents near each other."""
    matches = [_match(high, low, distance) for distance in kernels]
    mine, theirs = (torch.cat(side) for side in zip(*matches, strict=True))
    sizes = [len(match[0]) for match in matches]
    potentials = [
        part @ kernel.to(part) for part, kernel in zip(high.moments[mine].split(sizes), kernels.values(), strict=True)
    ]
    return total(torch.cat(potentials) * low.moments[theirs])


def _match(high: Panels, low: Panels, distance: int) -> tuple[Tensor, Tensor]:
    """Indices of the pairs of occupied panels, high − low = distance."""
    wanted = high.place - distance
    index = torch.searchsorted(low.place, wanted).clamp_max(len(low.place) - 1)
    parents_near = ((high.place >> 1) - (wanted >> 1)).abs() <= NEAR
    mine = ((low.place[index] == wanted) & parents_near).nonzero().squeeze(-1)
    return mine, index[mine]


@lru_cache(maxsize=512)
def kernels(noise: Noise, width: float, nearest: int, farthest: int) -> dict[int, Tensor]:
    """By the distance of two panels, to the left negative, the matrix of H less ½ if they are near, 1 or 0 if they are not.

    Raises:
        ValueError: 16 Chebyshev polynomials are too few.
    """
    with torch.inference_mode(False), torch.no_grad():
        distance = torch.arange(nearest, farthest + 1, dtype=torch.float64, device="cpu").view(-1, 1, 1)
        t = nodes(TERMS)
        delta = width * (distance + (t.unsqueeze(1) - t) / 2)
        tail = _tail(delta.abs(), noise, width * max(nearest - 1, 0), width * (farthest + 1))
        values = torch.where(distance > NEAR, -tail, delta.sign() * (0.5 - tail))
        kernels = from_values(TERMS) @ values @ from_values(TERMS).T
        if float(torch.maximum(kernels[:, -2:].abs().amax(), kernels[:, :, -2:].abs().amax())) > RESOLVED:
            raise ValueError(
                f"noise: expected a smooth density with one peak, got {noise}, rough at widths of {width:g}; "
                "name its kinks or smooth it"
            )
        right = dict(zip(range(nearest, farthest + 1), kernels, strict=True))
        return right | {-distance: -kernel.T for distance, kernel in right.items() if distance}


@lru_cache(maxsize=64)
def panel_width(noise: Noise) -> float:
    """The width of the finest panels, a power of two so that the place of a score has no rounding."""
    width = unit(noise)
    for _ in range(10):
        try:
            kernels(noise, width, 0, NEAR)
        except ValueError:
            width /= 2
        else:
            break
    kernels(noise, width, 0, NEAR)
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
    """H(−δ) for low ≤ δ ≤ high: a Chebyshev series, for a value of its own costs an integral."""
    middle, half = (low + high) / 2, (high - low) / 2
    values = _lost(middle + half * nodes(2 * TERMS), noise)
    return _polynomials((delta - middle) / half, 2 * TERMS) @ (from_values(2 * TERMS) @ values)


def _lost(delta: Tensor, noise: Noise) -> Tensor:
    """H(−δ) = ∫ f(u) F(u − δ) du for δ ≥ 0, (m,), within 1e-15; u counted from the median.

    Each half of the integral, on either side of δ/2, has one place where it can bend, and panels grow away from there.
    """
    scores = torch.stack([-delta, torch.zeros_like(delta)], -1)
    if noise.has_closed_form(2):
        return noise.closed_form_log_probs(scores)[:, 0].exp()
    reach, centre = [unit(noise) / 64], median(noise)
    while _outside(reach[-1], noise) > NOTHING and reach[-1] < 1e300:
        reach.append((2 if reach[-1] < 16 * unit(noise) else 4) * reach[-1])  # light tails have ended by then
    edges = delta.new_tensor([-r for r in reversed(reach)] + [0.0] + reach)
    half = delta.unsqueeze(-1) / 2
    u, du = gauss(edges.minimum(half), TERMS)
    v, dv = gauss(edges.maximum(-half), TERMS)
    delta = delta.unsqueeze(-1)
    left = (noise.log_prob(centre + u) + noise.log_cdf(centre + u - delta)).exp() * du
    right = (noise.log_prob(centre + v + delta) + noise.log_cdf(centre + v)).exp() * dv
    return left.sum(-1) + right.sum(-1)


def _outside(reach: float, noise: Noise) -> float:
    """P(|ε − median| > reach)."""
    ends = median(noise) + torch.tensor([-reach, reach], dtype=torch.float64, device="cpu")
    return float(noise.log_cdf(ends[0]).exp() + noise.log_sf(ends[1]).exp())


def gauss(edges: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights between edges (…, e), ascending: both (…, (e − 1) · count)."""
    place, weight = (edges.new_tensor(part) for part in np.polynomial.legendre.leggauss(count))
    half = edges.diff(dim=-1).unsqueeze(-1) / 2
    return (edges[..., :-1, None] + half * (1 + place)).flatten(-2), (half * weight).flatten(-2)


# Noises with kinks: Σ_{i<r} weight_i H(x_i − x_r) for every r, with x (n,) ascending and weight (2, n).


def _lost_exponential(x: Tensor, weight: Tensor) -> Tensor:
    """H(−δ) = e^{−δ}/2, the difference of two exponential variables being a Laplace variable."""
    return decayed_cumsum(weight, x.unsqueeze(0)) / 2


def _lost_laplace(x: Tensor, weight: Tensor) -> Tensor:
    """H(−δ) = e^{−δ} (1 + δ/2)/2."""
    fading = decayed_cumsum(weight, x.unsqueeze(0))
    step = torch.nn.functional.pad(x.diff(), (0, 1))
    # δ e^{−δ} grows by a step of what is there, term by term: δ itself would lose the digits that x spends on its size.
    growing = decayed_cumsum(step * (fading + weight), x.unsqueeze(0))
    return fading / 2 + growing / 4


def _lost_uniform(x: Tensor, weight: Tensor) -> Tensor:
    """H(−δ) = (1 − δ)²/2 for δ ≤ 1: sums of weight · t^k within unit panels, t the place within the panel."""
    panel = torch.floor(x.detach())
    t = x - panel
    powers = torch.stack([weight, weight * t, weight * t * t])
    prefix = torch.nn.functional.pad(powers.cumsum(-1), (1, 0))
    first = torch.searchsorted(panel, panel)  # of the own panel
    reached = torch.searchsorted(x.detach(), x.detach() - 1)  # in the panel before
    at_first = prefix[..., first]
    own, before = prefix[..., :-1] - at_first, at_first - prefix[..., reached]
    room = 1 - t
    return (room * room * own[0] + 2 * room * own[1] + own[2] + t * t * before[0] - 2 * t * before[1] + before[2]) / 2


LOST_BY_HIGHER: dict[type[Noise], Callable[[Tensor, Tensor], Tensor]] = {
    Exponential: _lost_exponential,
    Laplace: _lost_laplace,
    Uniform: _lost_uniform,
}


def _wins_by_rank(winners: Weighted, losers: Weighted, lost: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    x, order = torch.cat([winners.x, losers.x]).sort(stable=True)
    weight = torch.stack(
        [
            torch.cat([winners.weight, torch.zeros_like(losers.weight)]),
            torch.cat([torch.zeros_like(winners.weight), losers.weight]),
        ]
    )[:, order]
    lower = weight[1].cumsum(0)
    to_winners, to_losers = lost(x, weight)
    return total(weight[0] * (lower - to_losers) + weight[1] * to_winners)
