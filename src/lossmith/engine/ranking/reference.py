"""Sums over all pairs of two sets of scores in plain torch: the reference of the kernels, differentiable twice.

The sum W of equation (R1) in ``docs/how/ranking.md``: by panels for smooth noise, by sorted scores for noise with kinks.
"""

from __future__ import annotations

from torch import Tensor

from lossmith.engine.ranking.multipole import OccupiedPanels, panel_width, wins_of_panels
from lossmith.engine.ranking.sorted_scores import LOST_BY_HIGHER, wins_by_rank
from lossmith.maths.chebyshev import Weighted
from lossmith.noise import Noise


def expected_wins(winners: Weighted, losers: Weighted, noise: Noise) -> Tensor:
    """Σ_ij u_i v_j H(x_i − y_j) over the winners (x, u) and the losers (y, v), a scalar; |x|, |y| ≤ 1e15.

    Raises:
        ValueError: the noise has kinks and no formula in ``LOST_BY_HIGHER``, or it is too rough for the panels.
    """
    if not noise.kinks:
        width = panel_width(noise)
        return wins_of_panels(OccupiedPanels.of(winners, width), OccupiedPanels.of(losers, width), noise, width)
    if type(noise) in LOST_BY_HIGHER:
        return wins_by_rank(winners, losers, LOST_BY_HIGHER[type(noise)])
    known = ", ".join(kind.name for kind in LOST_BY_HIGHER)
    raise ValueError(f"noise: expected a smooth one or one of {known}, got {noise} with kinks; use a noise without kinks")
