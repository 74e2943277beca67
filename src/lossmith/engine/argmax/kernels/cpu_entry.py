"""The kernels of ``cpu`` as team functions: C functions of the address of a job, for any number of threads (``launch``).

``FORWARD`` and ``BACKWARD`` say what a job holds. Each thread takes rows until none is left.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cpu import backward, forward
from lossmith.engine.argmax.kernels.record import COLUMNS
from lossmith.engine.runtime.compiled import team_function
from lossmith.engine.runtime.denormals import flush_denormals, restore_mode
from lossmith.engine.runtime.launch import Layout, array, array_as, job_at, matrix, take

# bad: result, 1 if a row or a target was bad. unserved: result, 1 if a row was left to the reference. rows, classes: of the
# scores. ignored: the target of a row that is not looked at.
NUMBERS = ("bad", "unserved", "rows", "classes", "ignored")

FORWARD = Layout(
    "forward_team",
    NUMBERS,
    scores=np.float32,
    target=np.int64,
    scale=np.float32,
    log_p=np.float32,
    weights=np.float32,
    records=np.int32,
    log_cdf=np.float32,  # from here on, those of ``tables.forward_arrays``
    log_prob=np.float32,
    lowest=np.float64,
    depth=np.int32,
    numbers=np.float64,
)
BACKWARD = Layout(
    "backward_team",
    NUMBERS,
    scores=np.float32,
    target=np.int64,
    scale=np.float32,
    upstream=np.float32,
    weights=np.float32,
    records=np.int32,
    grad=np.float32,
    slope_by_cell=np.float32,  # from here on, those of ``tables.backward_arrays``
    slope=np.float32,
)
# Global tuples: constants for numba.
_NUMBER = FORWARD.numbers  # positions, the same in both layouts
_IN, _BACK = FORWARD.slots, BACKWARD.slots
_FORWARD_SIZE, _BACKWARD_SIZE = FORWARD.size, BACKWARD.size


@team_function
def forward_team(data):
    """``cpu.forward`` on the rows of a job of the layout ``FORWARD``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _FORWARD_SIZE)
    B, C, ignored = job[_NUMBER.rows], job[_NUMBER.classes], job[_NUMBER.ignored]
    scores, bits = array(job, _IN.scores), array_as(job, _IN.scores, np.int32)
    target, scale = array(job, _IN.target), array(job, _IN.scale)
    log_p, weights, records = array(job, _IN.log_p), array(job, _IN.weights), matrix(job, _IN.records, COLUMNS)
    log_cdf, log_prob = array(job, _IN.log_cdf), array(job, _IN.log_prob)
    lowest, depth, numbers = array(job, _IN.lowest), array(job, _IN.depth), array(job, _IN.numbers)
    high, least_lead, most_lead, sure_lead = numbers[0], numbers[1], numbers[2], numbers[3]
    coarsest, guess, steepness = np.int64(numbers[4]), numbers[5], numbers[6]
    while True:
        first = take(job)
        if first >= B:
            break
        last = min(first + job[_NUMBER.turn], B)
        bad, unserved = forward(
            scores, bits, target, scale, log_cdf, log_prob, lowest, depth, high, least_lead, most_lead, sure_lead,
            coarsest, guess, steepness, ignored, C, log_p, weights, len(weights) // B, records, first, last,
        )  # fmt: skip
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)


@team_function
def backward_team(data):
    """``cpu.backward`` on the rows of a job of the layout ``BACKWARD``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _BACKWARD_SIZE)
    B, C = job[_NUMBER.rows], job[_NUMBER.classes]
    scores, bits = array(job, _BACK.scores), array_as(job, _BACK.scores, np.int32)
    target, scale, upstream = array(job, _BACK.target), array(job, _BACK.scale), array(job, _BACK.upstream)
    weights, records = array(job, _BACK.weights), matrix(job, _BACK.records, COLUMNS)
    grad, slope_by_cell, slope = array(job, _BACK.grad), array(job, _BACK.slope_by_cell), array(job, _BACK.slope)
    while True:
        first = take(job)
        if first >= B:
            break
        last = min(first + job[_NUMBER.turn], B)
        backward(
            scores, bits, target, scale, slope_by_cell, slope, upstream, weights, len(weights) // B, records, grad, C,
            first, last,
        )  # fmt: skip
    restore_mode(mode)
