"""The kernels of ``cpu`` as C functions of one pointer, which any number of threads may enter together (``threads``).

The pointer is to a job, an array of int64: the next row, the rows of a turn, whether a row was bad, whether one was left to
the reference, B, C, the target that asks for nothing, and the addresses and sizes of arrays. Each thread takes turns until no
row is left.
"""

from __future__ import annotations

import numba
import numpy as np

from lossmith.engine.argmax.kernels.cpu import backward, forward
from lossmith.engine.argmax.kernels.record import COLUMNS
from lossmith.engine.runtime.compiled import team_function
from lossmith.engine.runtime.launch import ARRAYS, NEXT, SLOTS, TURN, array, take
from lossmith.engine.runtime.launch import slots as slots

BAD, LEFT, ROWS, CLASSES, IGNORED = 2, 3, 4, 5, 6


@team_function
def forward_team(data):
    """``cpu.forward`` on the rows of a job with scores, target, scale, out, weights, where and the arrays of the noise."""
    head = numba.carray(data, (ARRAYS,), np.int64)
    B, C = head[ROWS], head[CLASSES]
    job = numba.carray(data, (ARRAYS + 11 * SLOTS,), np.int64)
    scores, bits = array(job, 0, np.float32), array(job, 0, np.int32)
    target, scale = array(job, 1, np.int64), array(job, 2, np.float32)
    out, weights, where = array(job, 3, np.float32), array(job, 4, np.float32), array(job, 5, np.int32).reshape(B, COLUMNS)
    log_cdf, log_prob = array(job, 6, np.float32), array(job, 7, np.float32)
    lowest, depth, numbers = array(job, 8, np.float64), array(job, 9, np.int32), array(job, 10, np.float64)
    high, least_lead, most_lead, sure_lead = numbers[0], numbers[1], numbers[2], numbers[3]
    coarsest, guess, steepness = int(numbers[4]), numbers[5], numbers[6]
    while True:
        first = take(job.ctypes.data + 8 * NEXT, job[TURN])
        if first >= B:
            return
        last = min(first + job[TURN], B)
        bad, hard = forward(
            scores, bits, target, scale, log_cdf, log_prob, lowest, depth, high, least_lead, most_lead, sure_lead,
            coarsest, guess, steepness, head[IGNORED], C, out, weights, len(weights) // B, where, first, last,
        )  # fmt: skip
        if bad:
            job[BAD] = 1
        if hard:
            job[LEFT] = 1


@team_function
def backward_team(data):
    """``cpu.backward`` on the rows of a job with scores, target, scale, upstream, weights, where, gradient and slopes."""
    head = numba.carray(data, (ARRAYS,), np.int64)
    B, C = head[ROWS], head[CLASSES]
    job = numba.carray(data, (ARRAYS + 9 * SLOTS,), np.int64)
    scores, bits = array(job, 0, np.float32), array(job, 0, np.int32)
    target, scale, upstream = array(job, 1, np.int64), array(job, 2, np.float32), array(job, 3, np.float32)
    weights, grad = array(job, 4, np.float32), array(job, 6, np.float32)
    where = array(job, 5, np.int32).reshape(B, COLUMNS)
    slope_by_cell, slope = array(job, 7, np.float32), array(job, 8, np.float32)
    while True:
        first = take(job.ctypes.data + 8 * NEXT, job[TURN])
        if first >= B:
            return
        last = min(first + job[TURN], B)
        backward(
            scores, bits, target, scale, slope_by_cell, slope, upstream, weights, len(weights) // B, where, grad, C,
            first, last,
        )  # fmt: skip
