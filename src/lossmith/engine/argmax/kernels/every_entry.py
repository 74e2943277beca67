"""``cpu`` in one pass, ``every``, ``softmax`` and ``topk`` as team functions: C functions of the address of a job.

The layouts say what a job holds. Each thread takes rows until none is left.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels import cpu, every, softmax, topk
from lossmith.engine.argmax.kernels.cpu_entry import NUMBERS
from lossmith.engine.argmax.kernels.record import COLUMNS, KEPT_OTHER
from lossmith.engine.runtime.arrays import empty, release
from lossmith.engine.runtime.compiled import team_function
from lossmith.engine.runtime.denormals import flush_denormals, restore_mode
from lossmith.engine.runtime.launch import Dtype, Layout, array, array_as, job_at, matrix, take

_NOISE: dict[str, Dtype] = {
    "log_cdf": np.float32,
    "log_prob": np.float32,
    "slope_by_cell": np.float32,
    "slope": np.float32,
    "lowest": np.float64,
    "depth": np.int32,
    "numbers": np.float64,
}

EVERY = Layout(
    "every_team",
    NUMBERS,
    scores=np.float32,
    scale=np.float32,
    log_p=np.float32,
    weights=np.float32,
    records=np.int32,
    lines=np.float32,
    **_NOISE,  # from ``tables.every_arrays``
)
EVERY_GRADIENT = Layout(
    "every_gradient_team",
    NUMBERS,
    scores=np.float32,
    scale=np.float32,
    upstream=np.float32,
    log_p=np.float32,
    weights=np.float32,
    records=np.int32,
    lines=np.float32,
    grad=np.float32,
    slope_by_cell=np.float32,  # from here on, those of ``tables.backward_arrays``
    slope=np.float32,
)
SOFTMAX = Layout("softmax_team", NUMBERS, scores=np.float32, scale=np.float32, log_p=np.float32)
SOFTMAX_GRADIENT = Layout(
    "softmax_gradient_team", NUMBERS, log_p=np.float32, scale=np.float32, upstream=np.float32, grad=np.float32
)
TARGET = Layout(
    "target_team",
    NUMBERS,
    scores=np.float32,
    target=np.int64,
    scale=np.float32,
    log_p=np.float32,
    grad=np.float32,  # empty if it is not asked for
)
ONE_PASS = Layout(
    "one_pass_team",
    NUMBERS,
    scores=np.float32,
    target=np.int64,
    scale=np.float32,
    log_p=np.float32,
    records=np.int32,
    grad=np.float32,  # empty if it is not asked for
    **_NOISE,  # from ``tables.one_pass_arrays``
)
TOPK = Layout(
    "topk_team",
    NUMBERS,
    scores=np.float32,
    target=np.int64,
    scale=np.float32,
    log_p=np.float32,
    records=np.int32,
    grad=np.float32,  # empty if it is not asked for
    log_odds=np.float32,  # from here on, those of ``tables.topk_arrays``
    odds_powers=np.float32,
    slope_powers=np.float32,
    **_NOISE,
)
# Global tuples and integers: constants for numba.
_NUMBER = EVERY.numbers  # positions, the same in all layouts
_EVERY, _BACK, _TARGET, _ONE = EVERY.slots, EVERY_GRADIENT.slots, TARGET.slots, ONE_PASS.slots
_SOFT, _SOFT_BACK, _TOPK = SOFTMAX.slots, SOFTMAX_GRADIENT.slots, TOPK.slots
_SIZE = max(layout.size for layout in (EVERY, EVERY_GRADIENT, TARGET, ONE_PASS, SOFTMAX, SOFTMAX_GRADIENT, TOPK))  # the longest


@team_function
def every_team(data):
    """``every.forward`` on the rows of a job of the layout ``EVERY``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    B, C = job[_NUMBER.rows], job[_NUMBER.classes]
    scores, bits, scale = array(job, _EVERY.scores), array_as(job, _EVERY.scores, np.int32), array(job, _EVERY.scale)
    log_p, weights, lines = array(job, _EVERY.log_p), array(job, _EVERY.weights), array(job, _EVERY.lines)
    records, numbers = matrix(job, _EVERY.records, COLUMNS), array(job, _EVERY.numbers)
    log_cdf, log_prob = array(job, _EVERY.log_cdf), array(job, _EVERY.log_prob)
    slope_by_cell, slope = array(job, _EVERY.slope_by_cell), array(job, _EVERY.slope)
    lowest, depth = array(job, _EVERY.lowest), array(job, _EVERY.depth)
    while True:
        first = take(job)
        if first >= B:
            break
        last = min(first + job[_NUMBER.turn], B)
        bad, unserved = every.forward(
            scores, bits, scale, log_cdf, log_prob, slope_by_cell, slope, lowest, depth, numbers[0], numbers[1],
            np.int64(numbers[2]), numbers[3], numbers[4], C, log_p, weights, len(weights) // B, records, lines, first, last,
        )  # fmt: skip
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)


@team_function
def every_gradient_team(data):
    """``every.backward`` on the rows of a job of the layout ``EVERY_GRADIENT``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    B, C = job[_NUMBER.rows], job[_NUMBER.classes]
    scores, bits, scale = array(job, _BACK.scores), array_as(job, _BACK.scores, np.int32), array(job, _BACK.scale)
    upstream, log_p, weights = array(job, _BACK.upstream), array(job, _BACK.log_p), array(job, _BACK.weights)
    records, lines = matrix(job, _BACK.records, COLUMNS), array(job, _BACK.lines)
    grad, slope_by_cell, slope = array(job, _BACK.grad), array(job, _BACK.slope_by_cell), array(job, _BACK.slope)
    while True:
        first = take(job)
        if first >= B:
            break
        last = min(first + job[_NUMBER.turn], B)
        every.backward(
            scores, bits, scale, slope_by_cell, slope, upstream, log_p, weights, len(weights) // B, records, lines, grad,
            C, first, last,
        )  # fmt: skip
    restore_mode(mode)


@team_function
def softmax_team(data):
    """``softmax.all_rows`` on the rows of a job of the layout ``SOFTMAX``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    scores, bits = array(job, _SOFT.scores), array_as(job, _SOFT.scores, np.int32)
    scale, log_p = array(job, _SOFT.scale), array(job, _SOFT.log_p)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        if softmax.all_rows(scores, bits, scale, job[_NUMBER.classes], log_p, first, last):
            job[_NUMBER.bad] = 1
    restore_mode(mode)


@team_function
def softmax_gradient_team(data):
    """``softmax.all_rows_gradient`` on the rows of a job of the layout ``SOFTMAX_GRADIENT``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    log_p, scale = array(job, _SOFT_BACK.log_p), array(job, _SOFT_BACK.scale)
    upstream, grad = array(job, _SOFT_BACK.upstream), array(job, _SOFT_BACK.grad)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        softmax.all_rows_gradient(log_p, scale, upstream, job[_NUMBER.classes], grad, first, last)
    restore_mode(mode)


@team_function
def target_team(data):
    """``softmax.target_rows`` on the rows of a job of the layout ``TARGET``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    C = job[_NUMBER.classes]
    scores, bits = array(job, _TARGET.scores), array_as(job, _TARGET.scores, np.int32)
    target, scale = array(job, _TARGET.target), array(job, _TARGET.scale)
    log_p, grad = array(job, _TARGET.log_p), array(job, _TARGET.grad)
    differentiate = len(grad) > 0
    exponentials = grad if differentiate else empty(C, np.float32)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        if softmax.target_rows(
            scores, bits, target, scale, job[_NUMBER.ignored], C, log_p, exponentials, differentiate, first, last
        ):
            job[_NUMBER.bad] = 1
    if not differentiate:
        release((exponentials,))
    restore_mode(mode)


@team_function
def one_pass_team(data):
    """``cpu.forward_and_backward`` on the rows of a job of the layout ``ONE_PASS``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    B, C, ignored = job[_NUMBER.rows], job[_NUMBER.classes], job[_NUMBER.ignored]
    scores, bits = array(job, _ONE.scores), array_as(job, _ONE.scores, np.int32)
    target, scale, log_p = array(job, _ONE.target), array(job, _ONE.scale), array(job, _ONE.log_p)
    records, grad, numbers = matrix(job, _ONE.records, COLUMNS), array(job, _ONE.grad), array(job, _ONE.numbers)
    log_cdf, log_prob, slope_by_cell = array(job, _ONE.log_cdf), array(job, _ONE.log_prob), array(job, _ONE.slope_by_cell)
    slope, lowest, depth = array(job, _ONE.slope), array(job, _ONE.lowest), array(job, _ONE.depth)
    while True:
        first = take(job)
        if first >= B:
            break
        last = min(first + job[_NUMBER.turn], B)
        bad, unserved = cpu.forward_and_backward(
            scores, bits, target, scale, log_cdf, log_prob, slope_by_cell, slope, lowest, depth, numbers[0], numbers[1],
            numbers[2], numbers[3], np.int64(numbers[4]), numbers[5], numbers[6], ignored, C, log_p, KEPT_OTHER, records, grad,
            first, last,
        )  # fmt: skip
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)


@team_function
def topk_team(data):
    """``topk.topk_rows`` on the rows of a job of the layout ``TOPK``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    C, ignored = job[_NUMBER.classes], job[_NUMBER.ignored]
    scores, bits = array(job, _TOPK.scores), array_as(job, _TOPK.scores, np.int32)
    target, scale, log_p = array(job, _TOPK.target), array(job, _TOPK.scale), array(job, _TOPK.log_p)
    records, grad, numbers = matrix(job, _TOPK.records, COLUMNS), array(job, _TOPK.grad), array(job, _TOPK.numbers)
    log_odds, odds_powers = array(job, _TOPK.log_odds), array(job, _TOPK.odds_powers)
    slope_powers, log_cdf, log_prob = array(job, _TOPK.slope_powers), array(job, _TOPK.log_cdf), array(job, _TOPK.log_prob)
    slope_by_cell, lowest = array(job, _TOPK.slope_by_cell), array(job, _TOPK.lowest)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        bad, unserved = topk.topk_rows(
            scores, bits, target, scale, log_cdf, log_prob, log_odds, odds_powers, slope_by_cell, slope_powers, lowest,
            numbers[0], numbers[1], numbers[2], numbers[3], np.int64(numbers[4]), numbers[5], numbers[6], numbers[7],
            numbers[8], numbers[9], np.int64(numbers[10]), ignored, C, log_p, records, grad, first, last,
        )  # fmt: skip
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)
