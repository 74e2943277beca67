"""Panels of ``pairs``, all of a lattice in a row, against each other: wins and how they change with each moment, for numba.

One thread's work: there are few panels, and torch's operators on so few numbers take longer to start than to run.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.ranking.kernels.loops import POWERS
from lossmith.engine.runtime.compiled import kernel

ROWS, MATRICES = "float64[:, ::1]", "float64[:, :, ::1]"  # moments (panels, POWERS) and (…, POWERS, POWERS)


@kernel("contract", signature=f"void({ROWS}, int64, {ROWS}, int64, {MATRICES}, int64)")
def add_product(out, i, rows, j, matrices, k):
    """out_i += rows_j · matrix_k."""
    for b in range(POWERS):
        x = rows[j, b]
        for a in range(POWERS):
            out[i, a] += x * matrices[k, b, a]


@kernel("contract", signature=f"void({ROWS}, {ROWS}, {MATRICES})")
def transform(out, rows, matrix):
    """out += rows · matrix."""
    for i in range(len(rows)):
        if np.any(rows[i] != 0):
            add_product(out, i, rows, i, matrix, 0)


@kernel("contract", signature=f"void({ROWS}, {ROWS}, {ROWS}, {ROWS}, int64, int64, int64[::1], {MATRICES}, {MATRICES})")
def interact(high, low, by_high, by_low, start, near, distances, kernels, transposed):
    """Add the derivatives of Σ high_i · kernel_(i − j) · low_j over pairs at those distances and with parents near each other.

    A panel without weight has no moments, for weights are not negative.
    """
    panels = len(high)
    for k in range(len(distances)):
        for i in range(max(0, distances[k]), min(panels, panels + distances[k])):
            j = i - distances[k]
            if abs(((start + i) >> 1) - ((start + j) >> 1)) > near:
                continue
            if low[j, 0] != 0:
                add_product(by_high, i, low, j, transposed, k)
            if high[i, 0] != 0:
                add_product(by_low, j, high, i, kernels, k)


@kernel("contract", signature=f"void({ROWS}, {ROWS}, int64, {MATRICES})")
def gather(coarse, fine, start, halves):
    """Add the moments of panels to those of their parents."""
    for i in range(len(fine)):
        if fine[i, 0] != 0:
            add_product(coarse, ((start + i) >> 1) - (start >> 1), fine, i, halves, (start + i) & 1)


@kernel("contract", signature=f"void({ROWS}, {ROWS}, int64, {MATRICES})")
def scatter(fine, coarse, start, transposed):
    """The adjoint of ``gather``."""
    for i in range(len(fine)):
        add_product(fine, i, coarse, ((start + i) >> 1) - (start >> 1), transposed, (start + i) & 1)
