"""``cpu`` for classes on several ranks: what one rank adds to the sums at thresholds, what all make of them, and the way back.

Cells, thresholds and the rule for the step are those of ``cpu``; but between the sums and what follows from them stands an
exchange. Every rank measures from the strongest rival of all ranks, and does the part that needs no scores for itself.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cells import INFINITY, MINUS_INFINITY, clear, number, sum_pieces
from lossmith.engine.argmax.kernels.cpu import decide, desk, fill, open_row, read, room, strongest
from lossmith.engine.argmax.kernels.record import CELLS, COUNT, DONE, LEVEL, MAX_CELLS, START, STATUS, UNSERVED
from lossmith.engine.argmax.kernels.tables import MOMENTS
from lossmith.engine.runtime.compiled import python_jit
from lossmith.engine.runtime.simd import WHOLE

# Scores and gradients are (B · C,), flat; ``place`` (B,) int64 is the target's among this rank's classes, −1 if it is none of
# them, −2 for a row to skip; ``where`` as for ``cpu``, but its CELLS are all that count until ``collect`` knows the rank's own.


@python_jit
def survey(bits, place, C, top, state, first_row, last_row):
    """The highest of the rivals of each row, as float32, and whether the row holds NaN (2), +inf (1) or neither (0)."""
    blocks = room(C)[3]
    for b in range(first_row, last_row):
        top[b], state[b] = -np.inf, 0
        if place[b] == -2:
            continue
        high, low = strongest(bits, b * C, C, place[b], blocks)
        if high > INFINITY or low < MINUS_INFINITY:
            state[b] = 2
        elif high == INFINITY:
            state[b] = 1
        elif high >= low:  # there is a rival
            top[b] = number(high)


@python_jit
def plan(lead, inverse, lowest, depth, high, least_lead, most_lead, coarsest, guess, where):
    """The first thresholds of each pending row, from the target's lead over its strongest rival, in scales."""
    for b in range(len(lead)):
        if where[b, STATUS] > UNSERVED:
            if not (least_lead <= lead[b] < most_lead and inverse[b] < 1e30):
                where[b, STATUS] = UNSERVED
            else:
                where[b, CELLS] = open_row(lead[b], lowest, depth, high, guess, coarsest, where, b)


@python_jit
def collect(scores, bits, place, C, top, inverse, rows, where, moments, occupied, slots, sizes, first, last):
    """The moments of this rank's rivals of rows[first … last], and what ``fill`` says of them; moments are zeros before."""
    fine, spot, within, blocks = room(C)
    for k in range(first, last):
        b = rows[k]
        strongest(bits, b * C, C, place[b], blocks)
        n, used, pitch = fill(
            scores, b * C, C, place[b], top[b], inverse[b], int(where[b, CELLS]), fine, spot, within, blocks,
            moments[k], occupied[k], slots[k],
        )  # fmt: skip
        sizes[k, 0], sizes[k, 1], where[b, CELLS] = n, pitch, used


@python_jit
def add_up(waiting, moments, occupied, slots, sizes, log_cdf, rows, where, sums, at, first, last):
    """Σ_j log F(u − x_j) over this rank's rivals; ``waiting``: places in ``rows``; ``at``: where the sums of each start."""
    for i in range(first, last):
        k = waiting[i]
        b = rows[k]
        level, start, count = int(where[b, LEVEL]), int(where[b, START]), int(where[b, COUNT])
        sum_pieces(sums[at[i] :], log_cdf, level, start, count, occupied[k], slots[k], sizes[k, 0], moments[k], sizes[k, 1])


@python_jit
def conclude(waiting, rows, sums, at, log_prob, lead, steepness, log_p, weights, most, where, first, last):
    """From the sums of all ranks: log p and the thresholds' weights of rows that are resolved, finer thresholds of others."""
    logs, exponent, product, terms, powers = desk()
    for i in range(first, last):
        b = rows[waiting[i]]
        decide(
            sums[at[i] :], log_prob, lead[b], steepness, logs, exponent, product, terms, powers, log_p, weights, most, where, b
        )


@python_jit
def backward(
    scores, bits, place, C, top, inverse, slope_by_cell, slope, upstream, weights, most, where, grad, rest, first_row, last_row
):
    """The gradient in this rank's rivals, and its sum in each row, (B,) float64; zeros at the target and where not DONE."""
    pieces = np.zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32)
    fine, spot, within, _ = room(C)
    for b in range(first_row, last_row):
        base, y = b * C, place[b]
        if where[b, STATUS] != DONE or upstream[b] == 0:
            clear(grad, base, base + C)
            continue
        rest[b] = read(
            scores, bits, base, C, y, top[b], inverse[b], slope_by_cell, slope, upstream[b], weights, most, where, b, fine,
            spot, within, pieces, grad,
        )  # fmt: skip
        if y >= 0:
            grad[base + y] = 0
