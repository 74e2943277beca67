"""Arrays of compiled code without counts of references: at an address, or in memory of a kernel's own.

A count costs an atomic instruction wherever an array is passed on. ``numba.carray``, ``numpy.empty``, ``numpy.zeros`` and
``reshape`` say what these intrinsics say, and each of their uses takes up to a tenth of a second to compile.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj


def contiguous(context: Any, builder: Any, kind: Any, address: Any, shape: list[Any]) -> Any:
    """LLVM's value of the array of type ``kind`` (C order) whose first element is at an address, an integer or a pointer."""
    made = context.make_array(kind)(context, builder)
    element = context.get_data_type(kind.dtype)
    strides = [context.get_constant(numba.types.intp, context.get_abi_sizeof(element))]
    for size in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], size))
    cast = builder.bitcast if isinstance(address.type, ir.PointerType) else builder.inttoptr
    arrayobj.populate_array(made, cast(address, element.as_pointer()), shape, strides, strides[-1], None)  # type: ignore[no-untyped-call]
    return made._getvalue()


def _own_memory(count: Any, dtype: Any, cleared: bool) -> Any:
    kind = numba.types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width = context.get_constant(numba.types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        size = builder.mul(arguments[0], width)
        address = context.nrt.allocate(builder, size)
        if cleared:
            cgutils.memset(builder, address, size, 0)  # type: ignore[no-untyped-call]
        return contiguous(context, builder, kind, address, [arguments[0]])

    return kind(numba.intp, dtype), generate


@intrinsic
def empty(typing, count, dtype):
    """An array (count,) whose memory is the kernel's own until ``release``."""
    return _own_memory(count, dtype, False)


@intrinsic
def zeros(typing, count, dtype):
    """As ``empty``, of zeros."""
    return _own_memory(count, dtype, True)


@intrinsic
def release(typing, arrays):
    """Give back the memory of a tuple of arrays that ``empty`` and ``zeros`` made."""

    def generate(context, builder, signature, arguments):
        for kind, array in zip(arrays, cgutils.unpack_tuple(builder, arguments[0]), strict=True):
            data = context.make_array(kind)(context, builder, array).data
            context.nrt.free(builder, builder.bitcast(data, cgutils.voidptr_t))
        return context.get_dummy_value()

    return numba.void(arrays), generate
