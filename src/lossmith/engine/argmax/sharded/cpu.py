"""``cpu`` for classes on several ranks: what one rank adds to the sums at thresholds, what all make of them, and the way back.

Cells, thresholds and the rule for the step are those of ``cpu``, and so are the words of its arguments. An exchange stands
between the sums and what follows from them. Every rank measures from the strongest rival of all ranks.

* target_place: (B,) int64, the target among the classes of this rank; −1 if it is none of them, −2 for a row to skip.
* top: (B,) float32, the score of the strongest rival of all ranks. inverse, lead: (B,) float64.
* records: CELLS of a row are all that count, until ``collect`` knows the rank's own.
* rows: (n,) int64, rows that are computed together. moments, occupied, slots, sizes: of each, as in ``row_moments``.
* waiting: (m,) int64, places in ``rows``. sums: G of those rows one after the other, from at[i] on.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cells import INFINITY, MINUS_INFINITY, clear, number, sum_pieces
from lossmith.engine.argmax.kernels.cpu import (
    LARGEST_INVERSE,
    class_scratch,
    evaluate,
    first_thresholds,
    rival_gradient,
    row_moments,
    strongest,
    threshold_scratch,
)
from lossmith.engine.argmax.kernels.record import CELLS, COUNT, DONE, LEVEL, MAX_CELLS, START, STATUS, UNSERVED
from lossmith.engine.argmax.kernels.tables import MOMENTS
from lossmith.engine.runtime.arrays import release, zeros
from lossmith.engine.runtime.compiled import python_jit
from lossmith.engine.runtime.simd import WHOLE


@python_jit
def survey(bits, target_place, C, top, state, first_row, last_row):
    """The highest of the rivals of each row, as float32, and whether the row holds NaN (2), +inf (1) or neither (0)."""
    scratch = class_scratch(C)
    for b in range(first_row, last_row):
        top[b], state[b] = -np.inf, 0
        if target_place[b] == -2:
            continue
        high, low = strongest(bits, b * C, C, target_place[b], scratch[3])
        if high > INFINITY or low < MINUS_INFINITY:
            state[b] = 2
        elif high == INFINITY:
            state[b] = 1
        elif high >= low:  # there is a rival
            top[b] = number(high)
    release(scratch)


@python_jit
def plan(lead, inverse, lowest, depth, high, least_lead, most_lead, coarsest, guess, records):
    """The first thresholds of each pending row, from the target's lead over its strongest rival, in scales."""
    for b in range(len(lead)):
        if records[b, STATUS] > UNSERVED:
            if not (least_lead <= lead[b] < most_lead and inverse[b] < LARGEST_INVERSE):
                records[b, STATUS] = UNSERVED
            else:
                records[b, CELLS] = first_thresholds(lead[b], lowest, depth, high, guess, coarsest, records, b)


@python_jit
def collect(scores, bits, target_place, C, top, inverse, rows, records, moments, occupied, slots, sizes, first, last):
    """Write the moments of this rank's rivals of rows[first … last], zeros before, and what ``row_moments`` returns of them."""
    scratch = class_scratch(C)
    fine, cell_of, offset, blocks = scratch
    for k in range(first, last):
        b = rows[k]
        strongest(bits, b * C, C, target_place[b], blocks)
        n, used, stride = row_moments(
            scores, b * C, C, target_place[b], top[b], inverse[b], int(records[b, CELLS]), fine, cell_of, offset, blocks,
            moments[k], occupied[k], slots[k],
        )  # fmt: skip
        sizes[k, 0], sizes[k, 1], records[b, CELLS] = n, stride, used
    release(scratch)


@python_jit
def add_up(waiting, moments, occupied, slots, sizes, log_cdf, rows, records, sums, at, first, last):
    """Write Σ_j log F(u − x_j) over this rank's rivals to sums."""
    for i in range(first, last):
        k = waiting[i]
        b = rows[k]
        level, start, count = int(records[b, LEVEL]), int(records[b, START]), int(records[b, COUNT])
        sum_pieces(sums[at[i] :], log_cdf, level, start, count, occupied[k], slots[k], sizes[k, 0], moments[k], sizes[k, 1])


@python_jit
def conclude(waiting, rows, sums, at, log_prob, lead, steepness, log_p, weights, capacity, records, first, last):
    """From the sums of all ranks: log p and the thresholds' weights of rows that are resolved, finer thresholds of others."""
    scratch = threshold_scratch()
    logs, exponent, product, terms, powers = scratch
    for i in range(first, last):
        b = rows[waiting[i]]
        evaluate(
            sums[at[i] :],
            log_prob,
            lead[b],
            steepness,
            logs,
            exponent,
            product,
            terms,
            powers,
            log_p,
            weights,
            b * capacity,
            capacity,
            records,
            b,
        )
    release(scratch)


@python_jit
def backward(
    scores,
    bits,
    target_place,
    C,
    top,
    inverse,
    slope_by_cell,
    slope,
    upstream,
    weights,
    capacity,
    records,
    grad,
    rest,
    first_row,
    last_row,
):
    """The gradient in this rank's rivals, and its sum in each row, (B,) float64; zeros at the target and where not DONE."""
    scratch = (zeros((MAX_CELLS + WHOLE) * MOMENTS, np.float32), *class_scratch(C))
    pieces, fine, cell_of, offset, _ = scratch
    for b in range(first_row, last_row):
        base, y = b * C, target_place[b]
        if records[b, STATUS] != DONE or upstream[b] == 0:
            clear(grad, base, base + C)
            continue
        rest[b] = rival_gradient(
            scores, bits, base, C, y, top[b], inverse[b], slope_by_cell, slope, upstream[b], weights, b * capacity, records, b,
            fine, cell_of, offset, pieces, grad,
        )  # fmt: skip
        if y >= 0:
            grad[base + y] = 0
    release(scratch)
