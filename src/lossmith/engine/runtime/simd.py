"""Functions of compiled code that numba cannot express in Python and that are written in LLVM's own instructions.

They are sums over pieces of an array as vector instructions, and the bits of a float32.
"""

from __future__ import annotations

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

WHOLE = 32  # floats of one call: four vectors, whose sums do not wait for each other
LANES = 8  # float32 of one vector; a machine with shorter vectors takes two
_FLAGS = ("contract", "nsz", "reassoc")


@intrinsic
def add_multiples(typing, out, at, table, places, factors):
    """out[at + q] += Σ_k factors[k] · table[places[k] + q] for q < WHOLE.

    LLVM does not reliably turn a loop this short into vector instructions. The checks of such a loop cost more than the sum.

    Args:
        out: (n,) float32, n ≥ at + WHOLE.
        at: int64, the first place.
        table: (m,) float32, m ≥ places[k] + WHOLE.
        places: tuple of int64, two or more: even and odd terms are summed apart, and neither sum may be empty.
        factors: tuple of float32, as many as places.
    """

    def generate(context, builder, signature, arguments):
        types = signature.args
        vector = ir.VectorType(ir.FloatType(), LANES)

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
            sums = [builder.load(here, align=4), None]  # two sums, since each addition waits for the one before in its sum
            for n, (source, factor) in enumerate(zip(sources, multiples, strict=True)):
                term = builder.fmul(builder.load(part(source, k), align=4), factor, flags=_FLAGS)
                before = sums[n % 2]
                sums[n % 2] = term if before is None else builder.fadd(before, term, flags=_FLAGS)
            builder.store(builder.fadd(*sums, flags=_FLAGS), here, align=4)
        return context.get_dummy_value()

    signature = numba.void(out, at, table, places, factors)
    return signature, generate


@intrinsic
def float_of(typing, bits):
    """The float32 whose bits are those of an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.float32(numba.int32), generate


@intrinsic
def bits_of(typing, number):
    """The bits of a float32 as an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return numba.int32(numba.float32), generate


@intrinsic
def double_of(typing, bits):
    """The float64 whose bits are those of an int64."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return numba.float64(numba.int64), generate
