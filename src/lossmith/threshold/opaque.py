"""Functions whose course depends on their numbers, each behind one operator that ``torch.compile`` does not look into.

Compiled, the gradient is that of a second evaluation. Second derivatives are for eager mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lossmith import noise as noises
from lossmith.noise import Noise
from lossmith.threshold.threads import apart

Function = Callable[[Sequence[Tensor], Noise, float], Tensor]


class _Entry(NamedTuple):
    function: Function
    like: Callable[[Sequence[Tensor]], Tensor]


_entries: dict[str, _Entry] = {}


def register(name: str, function: Function, like: Callable[[Sequence[Tensor]], Tensor]) -> Callable[..., Tensor]:
    """What to call in place of ``function``.

    Args:
        name: of the function, once in the library.
        function: of tensors, a noise and a number; differentiable in the floating-point ones.
        like: an empty tensor of the result's shape, dtype and device, from the tensors alone.

    Returns:
        A function of (tensors, noise, number): ``function`` itself in eager mode, an operator under ``torch.compile``.
    """
    _entries[name] = _Entry(function, like)

    def call(tensors: Sequence[Tensor], noise: Noise, number: float = 0.0) -> Tensor:
        if torch.compiler.is_compiling():
            return operator(name, list(tensors), noises.key(noise), number)
        return function(tensors, noise, number)

    return call


@torch.library.custom_op("lossmith::evaluate", mutates_args=())
def operator(name: str, tensors: Sequence[Tensor], noise: str, number: float) -> Tensor:
    """A registered function's value."""
    return _entries[name].function(tensors, noises.by_key(noise), number).clone()


@torch.library.custom_op("lossmith::evaluate_gradients", mutates_args=())
def _gradients(name: str, tensors: Sequence[Tensor], noise: str, number: float, upstream: Tensor) -> list[Tensor]:
    """upstream · value, differentiated in each tensor; zeros for what is not floating point."""

    def found() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in tensors]
        with torch.enable_grad():
            value = _entries[name].function(leaves, noises.by_key(noise), number)
        if not value.requires_grad:  # it depends on none of them here
            return [torch.zeros_like(x) for x in tensors]
        asked = [x for x in leaves if x.requires_grad]
        parts = iter(torch.autograd.grad(value, asked, upstream, allow_unused=True, materialize_grads=True))
        return [next(parts).clone() if x.requires_grad else torch.zeros_like(x) for x in leaves]

    return apart(found)


operator.register_fake(lambda name, tensors, noise, number: _entries[name].like(tensors))
_gradients.register_fake(lambda name, tensors, *others: [torch.empty_like(x) for x in tensors])


def _save(ctx: object, inputs: tuple[str, Sequence[Tensor], str, float], output: Tensor) -> None:
    ctx.name, tensors, ctx.noise, ctx.number = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(*tensors)  # type: ignore[attr-defined]


def _backward(ctx: object, upstream: Tensor) -> tuple[None, list[Tensor | None], None, None]:
    tensors = ctx.saved_tensors  # type: ignore[attr-defined]
    parts = _gradients(ctx.name, list(tensors), ctx.noise, ctx.number, upstream)  # type: ignore[attr-defined]
    return None, [part if x.is_floating_point() else None for part, x in zip(parts, tensors, strict=True)], None, None


operator.register_autograd(_backward, setup_context=_save)
