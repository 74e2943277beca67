"""Jobs for the threads of a team (``threads``): one array of int64, whose address all threads get.

A job holds first NEXT and TURN, then up to five numbers of the team function's own, then address and size of each array. A
``Layout`` says where each number and each array stands. It is written once for each team function. Python builds jobs from it,
and compiled code reads them by it:

* Python calls ``Layout.job`` with named numbers and named arrays. Dtypes and contiguity are checked: the threads see addresses
  only, and would read past an array of another dtype.
* Compiled code has the positions as constants: ``job[NUMBERS.rows]`` and ``array(job, SLOTS.scores)``, where NUMBERS and SLOTS
  are global variables that hold ``Layout.numbers`` and ``Layout.slots``.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core.imputils import lower_constant
from numba.extending import intrinsic, models, register_model, typeof_impl
from numpy.typing import NDArray
from torch import Tensor

from lossmith.engine.runtime.arrays import contiguous

NEXT = 0  # position of the next piece of work that no thread has taken
TURN = 1  # position of the number of pieces that a thread takes at a time
OWN = 2  # position of the first number of the team function's own
ARRAYS = 7  # position of the first array
SLOT_NUMBERS = 2  # numbers of an array in a job: address, and size in elements

Dtype = type[np.generic]
_TORCH: dict[Dtype, torch.dtype] = {
    np.float32: torch.float32,
    np.float64: torch.float64,
    np.int32: torch.int32,
    np.int64: torch.int64,
    np.uint8: torch.uint8,
}


@dataclass(frozen=True)
class Slot:
    """One array of a job.

    Args:
        name: of the array.
        dtypes: one dtype, or those that the array may have; slots with the same choice have the same dtype in one job.
        place: from 0 on, among the arrays of the job.
    """

    name: str
    dtypes: tuple[Dtype, ...]
    place: int

    def accepted(self) -> frozenset[Any]:
        """The dtypes as those of numpy and as those of torch."""
        return frozenset((*map(np.dtype, self.dtypes), *(_TORCH[dtype] for dtype in self.dtypes)))


def _record(name: str, fields: Iterable[str], values: Iterable[Any]) -> Any:
    """A named tuple, which numba takes for a constant where it is a global variable."""
    record: Any = namedtuple(name, list(fields))  # type: ignore[misc]
    return record(*values)


class Layout:
    """Where the numbers and the arrays of a job stand.

    Args:
        name: of the team function.
        numbers: names of the team function's own numbers, at most five.
        arrays: dtype of each array, or a tuple of dtypes that it may have, in their order in the job.

    Attributes:
        numbers: positions in a job, int, by name, ``next`` and ``turn`` among them.
        slots: ``Slot`` by name.
        size: how many int64 a job has.
    """

    def __init__(self, name: str, numbers: tuple[str, ...], /, **arrays: Dtype | tuple[Dtype, ...]) -> None:
        if len(numbers) > ARRAYS - OWN:
            raise ValueError(f"{name}: expected at most {ARRAYS - OWN} numbers, got {len(numbers)}")
        made = [
            Slot(key, dtypes if isinstance(dtypes, tuple) else (dtypes,), place)
            for place, (key, dtypes) in enumerate(arrays.items())
        ]
        self.name = name
        self.size = ARRAYS + SLOT_NUMBERS * len(made)
        self.numbers: Any = _record("numbers", ("next", "turn", *numbers), range(OWN + len(numbers)))
        self.slots: Any = _record("slots", arrays, made)
        self._checks = [(slot, slot.name, slot.accepted()) for slot in made]
        self._names = (*self.numbers._fields, *[""] * (ARRAYS - OWN - len(numbers)))

    def tail(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """The part of a job for its last arrays, which may serve many jobs and which the arrays must outlive.

        Raises:
            TypeError: as ``job``.
        """
        return np.array(self._part(self._checks[len(self._checks) - len(arrays) :], arrays), np.int64)

    def job(
        self, numbers: Mapping[str, int], arrays: Mapping[str, Tensor | NDArray[Any]], tail: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """A job.

        Args:
            numbers: by name; those left out are 0, ``turn`` 1.
            arrays: by name, contiguous; they must outlive the job.
            tail: from ``tail``: for the last arrays.

        Raises:
            TypeError: an array is missing, unknown or not contiguous, or has another dtype than its slot.
        """
        head = [numbers.get(name, 1 if name == "turn" else 0) for name in self._names]
        if tail is None:
            return np.array(head + self._part(self._checks, arrays), np.int64)
        own = len(self._checks) - len(tail) // SLOT_NUMBERS
        return np.concatenate((np.array(head + self._part(self._checks[:own], arrays), np.int64), tail))

    def _part(self, checks: list[tuple[Slot, str, frozenset[Any]]], arrays: Mapping[str, Any]) -> list[int]:
        """Address and size of each array."""
        part: list[int] = []
        chosen: dict[tuple[Dtype, ...], Any] = {}
        if len(arrays) != len(checks):
            raise self._names_differ(checks, arrays)
        for slot, name, accepted in checks:
            array = arrays.get(name)
            if array is None:
                raise self._names_differ(checks, arrays)
            dtype = array.dtype
            if dtype not in accepted or (len(slot.dtypes) > 1 and chosen.setdefault(slot.dtypes, dtype) != dtype):
                expected = chosen.get(slot.dtypes) or " or ".join(each.__name__ for each in slot.dtypes)
                raise TypeError(f"{self.name}: {name}: expected {expected}, got {dtype}")
            if isinstance(array, Tensor):
                contiguous, address, size = array.is_contiguous(), array.data_ptr(), array.numel()
            else:
                contiguous, address, size = array.flags.c_contiguous, array.ctypes.data, array.size
            if not contiguous:
                raise TypeError(f"{self.name}: {name}: expected a contiguous array; call contiguous() first")
            part += (address, size)
        return part

    def _names_differ(self, checks: list[tuple[Slot, str, frozenset[Any]]], arrays: Mapping[str, Any]) -> TypeError:
        expected = [name for _, name, _ in checks]
        return TypeError(f"{self.name}: expected the arrays {', '.join(expected)}, got {', '.join(arrays)}")


# In compiled code

_JOB = numba.types.Array(numba.int64, 1, "C")


class _SlotType(numba.types.Opaque):
    """numba's type of a ``Slot``: its place and, if it has but one dtype, that dtype are known when code is compiled."""

    def __init__(self, slot: Slot) -> None:
        self.place, self.dtype = slot.place, slot.dtypes[0] if len(slot.dtypes) == 1 else None
        super().__init__(f"Slot({slot.place}, {self.dtype})")


@typeof_impl.register(Slot)
def _type_of_slot(slot, context):
    return _SlotType(slot)


register_model(_SlotType)(models.OpaqueModel)


@lower_constant(_SlotType)  # type: ignore[no-untyped-call]
def _constant_slot(context, builder, kind, value):
    return context.get_dummy_value()


@intrinsic
def job_at(typing, data, size):
    """The job at an address (a void pointer), with so many numbers."""

    def generate(context, builder, signature, arguments):
        return contiguous(context, builder, signature.return_type, *arguments[:1], [arguments[1]])

    return _JOB(numba.types.voidptr, numba.intp), generate


@intrinsic
def take(typing, job):
    """The first piece of work that no thread has taken, int64: this thread takes ``job[TURN]`` pieces from there on."""

    def generate(context, builder, signature, arguments):
        next_piece, turn = (_pointer(context, builder, arguments[0], place) for place in (NEXT, TURN))
        return builder.atomic_rmw("add", next_piece, builder.load(turn), "monotonic")

    return numba.int64(_JOB), generate


@intrinsic
def array(typing, job, slot):
    """The array of a slot, in one dimension, with the slot's dtype."""
    return _array_of(slot, _own_dtype(slot))


@intrinsic
def array_as(typing, job, slot, dtype):
    """The array of a slot, in one dimension, its memory read as ``dtype``."""
    return _array_of(slot, dtype.dtype, dtype)


@intrinsic
def matrix(typing, job, slot, columns):
    """The array of a slot in two dimensions, (…, columns), with the slot's dtype."""
    return _array_of(slot, _own_dtype(slot), numba.intp, dimensions=2)


def _own_dtype(slot: Any) -> Any:
    if slot.dtype is None:
        raise numba.core.errors.TypingError("the slot has a choice of dtypes: array_as says which")
    return numba.from_dtype(np.dtype(slot.dtype))


def _pointer(context: Any, builder: Any, job: Any, place: int) -> Any:
    """LLVM's pointer to a number of a job."""
    data = context.make_array(_JOB)(context, builder, job).data
    return builder.gep(data, [ir.Constant(ir.IntType(64), place)])


def _array_of(slot: Any, dtype: Any, *more: Any, dimensions: int = 1) -> Any:
    """Signature and code of an intrinsic of a job, a slot and perhaps one argument more."""
    kind = numba.types.Array(dtype, dimensions, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = ARRAYS + SLOT_NUMBERS * slot.place
        address, size = (builder.load(_pointer(context, builder, arguments[0], each)) for each in (place, place + 1))
        shape = [size] if dimensions == 1 else [builder.sdiv(size, arguments[2]), arguments[2]]
        return contiguous(context, builder, kind, address, shape)

    return kind(_JOB, slot, *more), generate
