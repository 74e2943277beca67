"""Jobs for the threads of a team (``threads``): an array of int64 to which all have the one pointer.

First the next piece of work to take, the pieces of a turn and numbers of the kernel's own, then addresses and sizes of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from lossmith.engine.runtime.compiled import jit

NEXT, TURN, ARRAYS = 0, 1, 7
SLOTS = 2  # of an array in a job: address and size


@intrinsic
def take(typing, place, amount):
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
def array(job, place, dtype):
    """The array in a slot, in one dimension."""
    at = ARRAYS + place * SLOTS
    return numba.carray(_pointer(job[at]), job[at + 1], dtype)


def slots(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The part of a job for contiguous arrays, which must outlive it."""
    return np.array([(array.ctypes.data, array.size) for array in arrays], np.int64).ravel()
