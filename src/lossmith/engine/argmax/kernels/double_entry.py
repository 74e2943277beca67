"""``double`` as team functions, as ``every_entry`` has those of float32: C functions of the address of a job.

Each thread takes rows until none is left.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels import double
from lossmith.engine.argmax.kernels.cpu_entry import NUMBERS
from lossmith.engine.argmax.kernels.record import COLUMNS
from lossmith.engine.runtime.compiled import team_function
from lossmith.engine.runtime.denormals import flush_denormals, restore_mode
from lossmith.engine.runtime.launch import Dtype, Layout, array, job_at, matrix, take

_NOISE: dict[str, Dtype] = {
    "log_cdf": np.float64,
    "log_prob": np.float64,
    "slope_by_cell": np.float64,
    "lowest": np.float64,
    "depth": np.int32,
    "numbers": np.float64,
}
ONE_PASS = Layout(
    "one_pass_team",
    NUMBERS,
    scores=np.float64,
    target=np.int64,
    scale=np.float64,
    log_p=np.float64,
    records=np.int32,
    grad=np.float64,  # empty if it is not asked for
    **_NOISE,  # from ``tables.one_pass_arrays``
)
EVERY = Layout(
    "every_team",
    NUMBERS,
    scores=np.float64,
    scale=np.float64,
    log_p=np.float64,
    records=np.int32,
    **_NOISE,  # from ``tables.every_arrays``
)
EVERY_GRADIENT = Layout(
    "every_gradient_team",
    NUMBERS,
    scores=np.float64,
    scale=np.float64,
    upstream=np.float64,
    log_p=np.float64,
    records=np.int32,
    grad=np.float64,
    **_NOISE,  # from ``tables.every_arrays``
)
# Global tuples and integers: constants for numba.
_NUMBER = ONE_PASS.numbers  # positions, the same in all layouts
_ONE, _EVERY, _BACK = ONE_PASS.slots, EVERY.slots, EVERY_GRADIENT.slots
_SIZE = max(ONE_PASS.size, EVERY.size, EVERY_GRADIENT.size)


@team_function
def one_pass_team(data):
    """``double.target_rows`` on the rows of a job of the layout ``ONE_PASS``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    scores, target, scale = array(job, _ONE.scores), array(job, _ONE.target), array(job, _ONE.scale)
    log_p, grad, records = array(job, _ONE.log_p), array(job, _ONE.grad), matrix(job, _ONE.records, COLUMNS)
    log_cdf, log_prob, slope = array(job, _ONE.log_cdf), array(job, _ONE.log_prob), array(job, _ONE.slope_by_cell)
    lowest, depth, numbers = array(job, _ONE.lowest), array(job, _ONE.depth), array(job, _ONE.numbers)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        bad, unserved = double.target_rows(
            scores, target, scale, log_cdf, log_prob, slope, lowest, depth, numbers[0], numbers[1], numbers[2], numbers[3],
            np.int64(numbers[4]), numbers[5], numbers[6], job[_NUMBER.ignored], job[_NUMBER.classes], log_p, records, grad,
            first, last,
        )  # fmt: skip
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)


@team_function
def every_team(data):
    """``double.every_rows`` on the rows of a job of the layout ``EVERY``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    scores, scale, log_p = array(job, _EVERY.scores), array(job, _EVERY.scale), array(job, _EVERY.log_p)
    records, numbers = matrix(job, _EVERY.records, COLUMNS), array(job, _EVERY.numbers)
    log_cdf, log_prob, slope = array(job, _EVERY.log_cdf), array(job, _EVERY.log_prob), array(job, _EVERY.slope_by_cell)
    lowest, depth = array(job, _EVERY.lowest), array(job, _EVERY.depth)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        bad, unserved = double.every_rows(
            scores, scale, log_cdf, log_prob, slope, lowest, depth, numbers[0], numbers[1], np.int64(numbers[2]), numbers[3],
            numbers[4], job[_NUMBER.classes], log_p, records, first, last,
        )  # fmt: skip
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)


@team_function
def every_gradient_team(data):
    """``double.every_gradient_rows`` on the rows of a job of the layout ``EVERY_GRADIENT``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    scores, scale, upstream = array(job, _BACK.scores), array(job, _BACK.scale), array(job, _BACK.upstream)
    log_p, grad, records = array(job, _BACK.log_p), array(job, _BACK.grad), matrix(job, _BACK.records, COLUMNS)
    log_cdf, log_prob, slope = array(job, _BACK.log_cdf), array(job, _BACK.log_prob), array(job, _BACK.slope_by_cell)
    lowest, depth, numbers = array(job, _BACK.lowest), array(job, _BACK.depth), array(job, _BACK.numbers)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        double.every_gradient_rows(
            scores, scale, upstream, log_p, log_cdf, log_prob, slope, lowest, depth, numbers[0], np.int64(numbers[2]),
            numbers[3], numbers[4], job[_NUMBER.classes], records, grad, first, last,
        )  # fmt: skip
    restore_mode(mode)
