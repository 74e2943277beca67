"""The kernels of ``cpu`` as C functions of one pointer, which any number of threads may enter together (``threads``).

The pointer is to a job, an array of int64: the next row, the rows of a turn, whether a row was bad, whether one was left to
the reference, B, C, the target that asks for nothing, and the addresses and sizes of arrays. Each thread takes turns until no
row is left.
"""

from __future__ import annotations

import numba
import numpy as np

from lossmith.threshold.cells import jit
from lossmith.threshold.cpu import COLUMNS, backward, forward
from lossmith.threshold.jobs import ARRAYS, NEXT, SLOTS, TURN, array, table, take, team_function
from lossmith.threshold.jobs import slots as slots

BAD, LEFT, ROWS, CLASSES, IGNORED = 2, 3, 4, 5, 6


@jit
def _tables(job, place):
    """Those of all levels, from a slot on."""
    return (
        table(job, place), table(job, place + 1), table(job, place + 2), table(job, place + 3), table(job, place + 4)
    )  # fmt: skip


@team_function
def forward_team(data):
    """``cpu.forward`` on the rows of a job with scores, target, scale, out, weights, where and the arrays of the noise."""
    head = numba.carray(data, (ARRAYS,), np.int64)
    B, C = head[ROWS], head[CLASSES]
    job = numba.carray(data, (ARRAYS + 19 * SLOTS,), np.int64)
    scores, bits = array(job, 0, np.float32).reshape(B, C), array(job, 0, np.int32).reshape(B, C)
    target, scale = array(job, 1, np.int64), array(job, 2, np.float32)
    out, weights = array(job, 3, np.float32), array(job, 4, np.float32).reshape(B, -1)
    where = array(job, 5, np.int32).reshape(B, COLUMNS)
    lowest, depth, numbers = array(job, 6, np.float64), array(job, 7, np.int32), array(job, 8, np.float64)
    high, hopeless, sure, guess = numbers[0], numbers[1], numbers[2], numbers[3]
    log_cdf, log_prob = _tables(job, 9), _tables(job, 14)
    while True:
        first = take(job.ctypes.data + 8 * NEXT, job[TURN])
        if first >= B:
            return
        last = min(first + job[TURN], B)
        bad, hard = forward(
            scores, bits, target, scale, log_cdf, log_prob, lowest, depth, high, hopeless, sure, guess, head[IGNORED],
            out, weights, where, first, last,
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
    job = numba.carray(data, (ARRAYS + 12 * SLOTS,), np.int64)
    scores, bits = array(job, 0, np.float32).reshape(B, C), array(job, 0, np.int32).reshape(B, C)
    target, scale, upstream = array(job, 1, np.int64), array(job, 2, np.float32), array(job, 3, np.float32)
    weights, grad = array(job, 4, np.float32).reshape(B, -1), array(job, 6, np.float32).reshape(B, C)
    where, tops = array(job, 5, np.int32).reshape(B, COLUMNS), array(job, 5, np.float32).reshape(B, COLUMNS)
    slope = _tables(job, 7)
    while True:
        first = take(job.ctypes.data + 8 * NEXT, job[TURN])
        if first >= B:
            return
        last = min(first + job[TURN], B)
        backward(scores, bits, target, scale, slope, upstream, weights, where, tops, grad, first, last)
