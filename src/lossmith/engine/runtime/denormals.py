"""Numbers below the smallest with all its digits count as zero while a kernel runs.

An Intel processor takes a hundred times as long for an operation with such a number. The mode belongs to a thread, which may be
the user's: it is restored at the end. Processors other than x86 take denormal numbers as fast as others.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import binding, ir
from numba.core import cgutils
from numba.extending import intrinsic

FLUSH = 0x8040  # of the register MXCSR: results and arguments that are denormal count as zero


def _is_x86() -> bool:
    return binding.get_default_triple().partition("-")[0] in ("x86_64", "i386", "i686")


def _register(builder: Any, operation: str, slot: Any) -> None:
    """Read or write MXCSR, from or to the memory at ``slot``."""
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t])
    function = builder.module.declare_intrinsic(f"llvm.x86.sse.{operation}", fnty=kind)
    builder.call(function, [builder.bitcast(slot, cgutils.voidptr_t)])


@intrinsic
def flush_denormals(typing):
    """Set the mode of this thread; returns the one before, int32."""

    def generate(context, builder, signature, arguments):
        if not _is_x86():
            return ir.Constant(ir.IntType(32), 0)
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        _register(builder, "stmxcsr", slot)
        before = builder.load(slot)
        builder.store(builder.or_(before, ir.Constant(ir.IntType(32), FLUSH)), slot)
        _register(builder, "ldmxcsr", slot)
        return before

    return numba.int32(), generate


@intrinsic
def restore_mode(typing, before):
    """Set the mode of this thread to what ``flush_denormals`` returned."""

    def generate(context, builder, signature, arguments):
        if _is_x86():
            slot = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(arguments[0], slot)
            _register(builder, "ldmxcsr", slot)
        return context.get_dummy_value()

    return numba.void(numba.int32), generate
