"""Wins over all pairs for noises with kinks, from prefix sums over the sorted scores, in plain torch.

H is an exponential or a polynomial on either side of 0. See equations (R13) to (R16) of ``docs/how/ranking.md``.

Each ``lost_…`` computes Σ_{i<r} weight_i H(x_i − x_r) for every r; for exponentials the sum is (N8) of ``docs/how/numbers.md``.
Arguments: x (n,) float64, ascending, in units of the noise; weight (2, n) float64, the winners' and the losers'.
Result: (2, n) float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossmith.maths.chebyshev import Weighted, total
from lossmith.maths.scan import decayed_cumsum
from lossmith.noise import Exponential, Laplace, Noise, Uniform


def lost_exponential(x: Tensor, weight: Tensor) -> Tensor:
    """The losses of (R13) under exponential noise (R14): the difference of two exponential variables is a Laplace variable."""
    return decayed_cumsum(weight, x.unsqueeze(0)) / 2


def lost_laplace(x: Tensor, weight: Tensor) -> Tensor:
    """The losses of (R13) under Laplace noise (R14), (R15)."""
    fading = decayed_cumsum(weight, x.unsqueeze(0))
    step = torch.nn.functional.pad(x.diff(), (0, 1))
    # (R15) grows Σ δ e^{−δ} step by step: a difference of two large x would cost digits.
    growing = decayed_cumsum(step * (fading + weight), x.unsqueeze(0))
    return fading / 2 + growing / 4


def lost_uniform(x: Tensor, weight: Tensor) -> Tensor:
    """The losses of (R13) under uniform noise (R16), in panels of width 1."""
    panel = torch.floor(x.detach())
    t = x - panel
    powers = torch.stack([weight, weight * t, weight * t * t])
    prefix = torch.nn.functional.pad(powers.cumsum(-1), (1, 0))
    own_start = torch.searchsorted(panel, panel)  # rank of the first score of the own panel
    reach_start = torch.searchsorted(x.detach(), x.detach() - 1)  # rank of the first score within reach
    at_own_start = prefix[..., own_start]
    own, before = prefix[..., :-1] - at_own_start, at_own_start - prefix[..., reach_start]
    complement = 1 - t
    return (
        complement * complement * own[0] + 2 * complement * own[1] + own[2] + t * t * before[0] - 2 * t * before[1] + before[2]
    ) / 2


LOST_BY_HIGHER: dict[type[Noise], Callable[[Tensor, Tensor], Tensor]] = {
    Exponential: lost_exponential,
    Laplace: lost_laplace,
    Uniform: lost_uniform,
}


def wins_by_rank(winners: Weighted, losers: Weighted, lost: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Σ_ij u_i v_j H(x_i − y_j), a scalar, with ``lost`` of the noise from ``LOST_BY_HIGHER`` (R13)."""
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
