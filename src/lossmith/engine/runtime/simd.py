"""Functions of compiled code that numba cannot express in Python and that are written in LLVM's own instructions.

They are sums over pieces of an array as vector instructions, and the bits of a floating-point number.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

WHOLE = 32  # numbers of one call: four vectors, whose sums do not wait for each other
LANES = 8  # numbers of one vector; a machine with shorter vectors takes two
_FLAGS = ("contract", "nsz", "reassoc")


@intrinsic
def add_multiples(typing, out, at, table, places, factors):
    """out[at + q] += Σ_k factors[k] · table[places[k] + q] for q < WHOLE.

    LLVM does not reliably turn a loop this short into vector instructions. The checks of such a loop cost more than the sum.

    Args:
        out: (n,) float32 or float64, n ≥ at + WHOLE.
        at: int64, the first place.
        table: (m,) of the dtype of ``out``, m ≥ places[k] + WHOLE.
        places: tuple of int64, two or more: even and odd terms are summed apart, and neither sum may be empty.
        factors: tuple of numbers of that dtype, as many as places.
    """
    align = out.dtype.bitwidth // 8

    def generate(context, builder, signature, arguments):
        types = signature.args
        vector = ir.VectorType(context.get_value_type(out.dtype), LANES)

        def start(array, kind, index):
            data = context.make_array(kind)(context, builder, array).data
            return builder.gep(data, [index])

        def part(pointer, k):
            moved = builder.gep(pointer, [ir.Constant(ir.IntType(64), k * LANES)])
            return builder.bitcast(moved, vector.as_pointer())

        def spread(number):
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

        target = start(arguments[0], types[0], arguments[1])
        sources = [start(arguments[2], types[2], place) for place in cgutils.unpack_tuple(builder, arguments[3])]
        multiples = [spread(factor) for factor in cgutils.unpack_tuple(builder, arguments[4])]
        for k in range(WHOLE // LANES):
            here = part(target, k)
            sums = [builder.load(here, align=align), None]  # two sums, since each addition waits for the one before in its sum
            for n, (source, factor) in enumerate(zip(sources, multiples, strict=True)):
                term = builder.fmul(builder.load(part(source, k), align=align), factor, flags=_FLAGS)
                before = sums[n % 2]
                sums[n % 2] = term if before is None else builder.fadd(before, term, flags=_FLAGS)
            builder.store(builder.fadd(*sums, flags=_FLAGS), here, align=align)
        return context.get_dummy_value()

    signature = numba.void(out, at, table, places, factors)
    return signature, generate


@intrinsic
def float_of(typing, bits):
    """The float32 whose bits are those of an int32."""
    return _bitcast(numba.float32, numba.int32)


@intrinsic
def double_of(typing, bits):
    """The float64 whose bits are those of an int64."""
    return _bitcast(numba.float64, numba.int64)


@intrinsic
def bits_of(typing, number):
    """The bits of a number: int32 of a float32, int64 of a float64."""
    return _bitcast(numba.int32 if number == numba.float32 else numba.int64, number)


@intrinsic
def number_of(typing, bits, example):
    """The number whose bits are given, of the type of ``example``."""
    return _bitcast(example, numba.int32 if example == numba.float32 else numba.int64, example)


def _bitcast(to: Any, *arguments: Any) -> Any:
    """Signature and code of an intrinsic that gives the bits of its first argument another type."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], context.get_value_type(to))

    return to(*arguments), generate
