"""Functions whose course depends on their numbers, each behind one operator that nothing looks into.

There is one for ``torch.compile``, and one for ``torch.func``, whose vmap makes the evaluations one after the other. The
gradient is that of a second evaluation. Second derivatives are for eager mode.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from lossmith import noise as noises
from lossmith.engine.runtime import dtensor
from lossmith.engine.runtime.threads import apart
from lossmith.inputs import is_wrapped, owns_memory
from lossmith.noise import Noise

Function = Callable[[Sequence[Tensor], Noise, float], Tensor]


class _Entry(NamedTuple):
    function: Function
    like: Callable[[Sequence[Tensor]], Tensor]


_entries: dict[str, _Entry] = {}


def register(
    name: str,
    function: Function,
    like: Callable[[Sequence[Tensor]], Tensor],
    by_rows: bool = False,
    transforms: Callable[[Noise], Collection[str]] = lambda noise: (),
) -> Callable[..., Tensor]:
    """What to call in place of ``function``.

    Args:
        name: of the function, once in the library.
        function: of tensors, a noise and a number; differentiable in the floating-point ones.
        like: an empty tensor of the result's shape, dtype and device, from the tensors alone.
        by_rows: whether rows of the tensors and the result belong together, and to no other rows.
        transforms: those of torch.func that go through the function itself with that noise, "Grad" and "Jvp" among them, since
            it is made of torch's own operations. An operator has first derivatives only.

    Returns:
        A function of (tensors, noise, number): ``function`` itself in eager mode, elsewhere an operator.
    """
    _entries[name] = _Entry(function, like)

    def call(tensors: Sequence[Tensor], noise: Noise, number: float = 0.0) -> Tensor:
        if torch.compiler.is_compiling() or not all(owns_memory(x) for x in tensors):
            if dtensor.is_sharded(tensors):
                return dtensor.on_each_rank(lambda *local: call(local, noise, number), tensors, by_rows)
            return operator(name, list(tensors), noise.key, number)
        if any(is_wrapped(x) for x in tensors) and not transforms_of(tensors) <= set(transforms(noise)):
            return _Value.apply(name, noise.key, number, *tensors)  # type: ignore[no-untyped-call]
        return function(tensors, noise, number)

    return call


def transforms_of(tensors: Sequence[Tensor]) -> set[str]:
    """Names of the transforms of torch.func that work on one of the tensors: "Grad", "Jvp", "Vmap", "Functionalize"."""
    functorch = torch._C._functorch  # no public name tells
    name_of = {interpreter.level(): interpreter.key().name for interpreter in retrieve_all_functorch_interpreters()}
    names = set()
    for x in tensors:
        while is_wrapped(x):
            names.add(name_of[functorch.maybe_get_level(x)])
            x = functorch.get_unwrapped(x)
    return names


def _evaluate(name: str, tensors: Sequence[Tensor], noise: str, number: float) -> Tensor:
    """A registered function's value."""
    return _entries[name].function(tensors, noises.by_key(noise), number).clone()


def _differentiate(name: str, tensors: Sequence[Tensor], noise: str, number: float, upstream: Tensor) -> list[Tensor]:
    """upstream · value, differentiated in each tensor; zeros for what is not floating point."""

    def found() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in tensors]
        with torch.enable_grad():
            value = _entries[name].function(leaves, noises.by_key(noise), number)
        if not value.requires_grad:  # it depends on none of them here
            return [torch.zeros_like(x) for x in tensors]
        asked = [x for x in leaves if x.requires_grad]
        parts = iter(torch.autograd.grad(value, asked, upstream, allow_unused=True, materialize_grads=True))
        return [torch.empty_like(x).copy_(next(parts)) if x.requires_grad else torch.zeros_like(x) for x in leaves]

    return apart(found)


# torch.compile


# torch before 2.5 reads no annotations that are strings, so the types stand here.
_INPUTS = "str name, Tensor[] tensors, str noise, float number"
operator = torch.library.custom_op("lossmith::evaluate", _evaluate, mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
_gradients = torch.library.custom_op(
    "lossmith::evaluate_gradients", _differentiate, mutates_args=(), schema=f"({_INPUTS}, Tensor upstream) -> Tensor[]"
)
operator.register_fake(lambda name, tensors, noise, number: _entries[name].like(tensors))
_gradients.register_fake(lambda name, tensors, *others: [torch.empty_like(x) for x in tensors])


def _save(ctx: object, inputs: tuple[str, Sequence[Tensor], str, float], output: Tensor) -> None:
    ctx.name, tensors, ctx.noise, ctx.number = inputs  # type: ignore[attr-defined]
    ctx.law = noises.by_key(ctx.noise)  # type: ignore[attr-defined]  # kept alive, which the key alone does not do
    ctx.save_for_backward(*tensors)  # type: ignore[attr-defined]


def _backward(ctx: object, upstream: Tensor) -> tuple[None, list[Tensor | None], None, None]:
    tensors = ctx.saved_tensors  # type: ignore[attr-defined]
    parts = _gradients(ctx.name, list(tensors), ctx.noise, ctx.number, upstream)  # type: ignore[attr-defined]
    return None, [part if x.is_floating_point() else None for part, x in zip(parts, tensors, strict=True)], None, None


operator.register_autograd(_backward, setup_context=_save)


# torch.func, which transforms no operator with a gradient of its own


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(name: str, noise: str, number: float, *tensors: Tensor) -> Tensor:
        return _evaluate(name, tensors, noise, number)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, ctx.noise, ctx.number, *tensors = inputs
        ctx.law = noises.by_key(ctx.noise)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        parts = _Gradients.apply(ctx.name, ctx.noise, ctx.number, upstream, *tensors)  # type: ignore[no-untyped-call]
        return None, None, None, *(part if x.is_floating_point() else None for part, x in zip(parts, tensors, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return torch.stack(_one_by_one(_Value, info, in_dims, inputs)), 0


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(name: str, noise: str, number: float, upstream: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_differentiate(name, tensors, noise, number, upstream))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:
        raise NotImplementedError(
            f"{ctx.name}: expected first derivatives only under torch.func; take second ones in eager mode"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        parts = [torch.stack(each) for each in zip(*_one_by_one(_Gradients, info, in_dims, inputs), strict=True)]
        return tuple(parts), (0,) * len(parts)


def _one_by_one(function: Any, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """The function of each element of a batch."""
    pairs = list(zip(inputs, in_dims, strict=True))
    return [function.apply(*(x if dim is None else x.select(dim, i) for x, dim in pairs)) for i in range(info.batch_size)]
