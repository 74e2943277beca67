"""The kernels of ``cpu`` as C functions of one pointer, which any number of threads may enter together (``threads``).

The pointer is to a job, an array of int64: the next row, the rows of a turn, whether a row was bad, whether one was left to
the reference, B, C, the target that asks for nothing, and the addresses and sizes of arrays. Each thread takes turns until no
row is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from lossmith.threshold.cells import jit
from lossmith.threshold.cpu import COLUMNS, backward, forward

NEXT, TURN, BAD, LEFT, ROWS, CLASSES, IGNORED, ARRAYS = 0, 1, 2, 3, 4, 5, 6, 7
SLOTS = 2  # of an array in a job: address and size


@intrinsic
def _take(typing, place, amount):
    """Atomic fetch and add at an address: the old value."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return numba.int64(numba.int64, numba.int64), generate


@intrinsic
def _pointer(typing, address):
    """An address as a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(numba.types.voidptr))

    return numba.types.voidptr(numba.int64), generate


@jit
def _array(job, place, dtype):
    """The array in a slot, in one dimension."""
    at = ARRAYS + place * SLOTS
    return numba.carray(_pointer(job[at]), job[at + 1], dtype)


def _cfunc(function: Any) -> Any:
    return numba.cfunc(numba.void(numba.types.voidptr), nopython=True, cache=True)(function)


@_cfunc
def forward_team(data):
    """``cpu.forward`` on the rows of a job with scores, target, scale, out, weights, where and the arrays of the noise."""
    head = numba.carray(data, (ARRAYS,), np.int64)
    B, C = head[ROWS], head[CLASSES]
    job = numba.carray(data, (ARRAYS + 11 * SLOTS,), np.int64)
    scores, bits = _array(job, 0, np.float32), _array(job, 0, np.int32)
    target, scale = _array(job, 1, np.int64), _array(job, 2, np.float32)
    out, weights, where = _array(job, 3, np.float32), _array(job, 4, np.float32), _array(job, 5, np.int32).reshape(B, COLUMNS)
    log_cdf, log_prob = _array(job, 6, np.float32), _array(job, 7, np.float32)
    lowest, depth, numbers = _array(job, 8, np.float64), _array(job, 9, np.int32), _array(job, 10, np.float64)
    high, hopeless, sure = numbers[0], numbers[1], numbers[2]
    coarsest, guess, steepness = int(numbers[3]), numbers[4], numbers[5]
    while True:
        first = _take(job.ctypes.data + 8 * NEXT, job[TURN])
        if first >= B:
            return
        last = min(first + job[TURN], B)
        bad, hard = forward(
            scores, bits, target, scale, log_cdf, log_prob, lowest, depth, high, hopeless, sure, coarsest, guess, steepness,
            head[IGNORED], C, out, weights, len(weights) // B, where, first, last,
        )  # fmt: skip
        if bad:
            job[BAD] = 1
        if hard:
            job[LEFT] = 1


@_cfunc
def backward_team(data):
    """``cpu.backward`` on the rows of a job with scores, target, scale, upstream, weights, where, gradient and slopes."""
    head = numba.carray(data, (ARRAYS,), np.int64)
    B, C = head[ROWS], head[CLASSES]
    job = numba.carray(data, (ARRAYS + 9 * SLOTS,), np.int64)
    scores, bits = _array(job, 0, np.float32), _array(job, 0, np.int32)
    target, scale, upstream = _array(job, 1, np.int64), _array(job, 2, np.float32), _array(job, 3, np.float32)
    weights, grad = _array(job, 4, np.float32), _array(job, 6, np.float32)
    where = _array(job, 5, np.int32).reshape(B, COLUMNS)
    slope_by_cell, slope = _array(job, 7, np.float32), _array(job, 8, np.float32)
    while True:
        first = _take(job.ctypes.data + 8 * NEXT, job[TURN])
        if first >= B:
            return
        last = min(first + job[TURN], B)
        backward(
            scores, bits, target, scale, slope_by_cell, slope, upstream, weights, len(weights) // B, where, grad, C,
            first, last,
        )  # fmt: skip


def slots(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The part of a job for contiguous arrays, which must outlive it."""
    return np.array([(array.ctypes.data, array.size) for array in arrays], np.int64).ravel()
