"""``laplace``, ``student`` and ``ramps`` as team functions: C functions of the address of a job.

Each thread takes rows until none is left.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels import laplace, ramps, student
from lossmith.engine.argmax.kernels.cpu_entry import NUMBERS
from lossmith.engine.argmax.kernels.record import COLUMNS
from lossmith.engine.runtime.compiled import team_function
from lossmith.engine.runtime.denormals import flush_denormals, restore_mode
from lossmith.engine.runtime.launch import Layout, array, job_at, matrix, take

PANELS = Layout(
    "panels_team",
    NUMBERS,
    scores=np.float64,
    target=np.int64,
    scale=np.float64,
    log_p=np.float64,
    records=np.int32,
    grad=np.float64,  # empty if it is not asked for
    law=np.float64,  # of Student's t: ``student.law_of`` and, last, whether float32 is enough; else empty
)
# Global tuples and integers: constants for numba.
_NUMBER, _SLOT, _SIZE = PANELS.numbers, PANELS.slots, PANELS.size


@team_function
def laplace_team(data):
    """``laplace.laplace_rows`` on the rows of a job of the layout ``PANELS``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    scores, target, scale = array(job, _SLOT.scores), array(job, _SLOT.target), array(job, _SLOT.scale)
    log_p, grad, records = array(job, _SLOT.log_p), array(job, _SLOT.grad), matrix(job, _SLOT.records, COLUMNS)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        bad, unserved = laplace.laplace_rows(
            scores, target, scale, job[_NUMBER.ignored], job[_NUMBER.classes], log_p, records, grad, first, last
        )
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)


@team_function
def student_team(data):
    """``student.student_rows`` on the rows of a job of the layout ``PANELS``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    scores, target, scale = array(job, _SLOT.scores), array(job, _SLOT.target), array(job, _SLOT.scale)
    log_p, grad, records = array(job, _SLOT.log_p), array(job, _SLOT.grad), matrix(job, _SLOT.records, COLUMNS)
    law = array(job, _SLOT.law)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        bad, unserved = student.student_rows(
            scores,
            target,
            scale,
            job[_NUMBER.ignored],
            job[_NUMBER.classes],
            law[:-1],
            law[-1] > 0,
            log_p,
            records,
            grad,
            first,
            last,
        )
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)


@team_function
def exponential_team(data):
    """``ramps.exponential_rows`` on the rows of a job of the layout ``PANELS``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    scores, target, scale = array(job, _SLOT.scores), array(job, _SLOT.target), array(job, _SLOT.scale)
    log_p, grad, records = array(job, _SLOT.log_p), array(job, _SLOT.grad), matrix(job, _SLOT.records, COLUMNS)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        bad, unserved = ramps.exponential_rows(
            scores, target, scale, job[_NUMBER.ignored], job[_NUMBER.classes], log_p, records, grad, first, last
        )
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)


@team_function
def uniform_team(data):
    """``ramps.uniform_rows`` on the rows of a job of the layout ``PANELS``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    scores, target, scale = array(job, _SLOT.scores), array(job, _SLOT.target), array(job, _SLOT.scale)
    log_p, grad, records = array(job, _SLOT.log_p), array(job, _SLOT.grad), matrix(job, _SLOT.records, COLUMNS)
    while True:
        first = take(job)
        if first >= job[_NUMBER.rows]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.rows])
        bad, unserved = ramps.uniform_rows(
            scores, target, scale, job[_NUMBER.ignored], job[_NUMBER.classes], log_p, records, grad, first, last
        )
        if bad:
            job[_NUMBER.bad] = 1
        if unserved:
            job[_NUMBER.unserved] = 1
    restore_mode(mode)
