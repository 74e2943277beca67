"""All panels of a lattice, in a row, against each other: how the wins change with each moment, for numba.

The work is one thread's: there are few panels, and torch's operators on so few numbers take longer to start than to run.
Rows are moments, or derivatives in moments, of the panels start, start + 1, … of the lattice: (panels, POWERS) float64.
Matrices are (…, POWERS, POWERS) float64, for row vectors. Equations: ``docs/how/ranking.md``.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.ranking.kernels.record import POWERS
from lossmith.engine.runtime.compiled import kernel

ROWS, MATRICES = "float64[:, ::1]", "float64[:, :, ::1]"  # moments (panels, POWERS) and (…, POWERS, POWERS)


@kernel("contract", signature=f"void({ROWS}, int64, {ROWS}, int64, {MATRICES}, int64)")
def add_product(out, i, rows, j, matrices, k):
    """out_i += rows_j · matrices_k."""
    for b in range(POWERS):
        x = rows[j, b]
        for a in range(POWERS):
            out[i, a] += x * matrices[k, b, a]


@kernel("contract", signature=f"void({ROWS}, {ROWS}, {MATRICES})")
def transform(out, rows, matrix):
    """out += rows · matrix_0; matrix is (1, POWERS, POWERS)."""
    for i in range(len(rows)):
        if np.any(rows[i] != 0):
            add_product(out, i, rows, i, matrix, 0)


@kernel("contract", signature=f"void({ROWS}, {ROWS}, {ROWS}, {ROWS}, int64, int64, int64[::1], {MATRICES}, {MATRICES})")
def interact(high, low, by_high, by_low, start, near, distances, matrices, transposed):
    """Add the derivatives of Σ high_i · matrix_(i − j) · low_j (R5) over pairs at ``distances`` with parents near each other.

    start: int64, lattice index of the first panel; near: int64, the greatest distance of panels near each other.
    distances: (m,) int64, i − j in panels; matrices, transposed: one matrix and its transpose for each distance.
    A panel without weight has no moments, since weights are not negative.
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
                add_product(by_low, j, high, i, matrices, k)


@kernel("contract", signature=f"void({ROWS}, {ROWS}, int64, {MATRICES})")
def gather(coarse, fine, start, halves):
    """Add the moments of panels to those of their parents (R9); start is the lattice index of the first fine panel."""
    for i in range(len(fine)):
        if fine[i, 0] != 0:
            add_product(coarse, ((start + i) >> 1) - (start >> 1), fine, i, halves, (start + i) & 1)


@kernel("contract", signature=f"void({ROWS}, {ROWS}, int64, {MATRICES})")
def scatter(fine, coarse, start, transposed):
    """The adjoint of ``gather``: add the derivatives of the parents to those of their panels."""
    for i in range(len(fine)):
        add_product(fine, i, coarse, ((start + i) >> 1) - (start >> 1), transposed, (start + i) & 1)
