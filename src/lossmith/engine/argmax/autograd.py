r"""log P(the target wins) by whichever kernel serves, with its derivatives, in eager mode, under torch.func and compiled.

In eager mode the kernels for CPU and GPU stand in functions of torch.autograd. Compiled, whatever runs stands behind one opaque
operator, ``lossmith::target_log_prob``. Second derivatives are the reference's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.argmax import reference
from lossmith.engine.argmax.dispatch import KERNELS, OPERATION, fast_kernel
from lossmith.engine.argmax.kernels.record import (
    CLASSES_PER_THREAD,
    COLUMNS,
    DONE,
    STATUS,
    SURE,
    UNSERVED,
    kept_thresholds,
)
from lossmith.engine.argmax.kernels.tables import backward_arrays, forward_arrays
from lossmith.engine.runtime import dtensor
from lossmith.engine.runtime.compiling import announced
from lossmith.engine.runtime.select import choose, give_up, record, record_rows
from lossmith.engine.runtime.threads import apart, run_team
from lossmith.inputs import check_score_values, check_target_values, has_tangent, is_wrapped, owns_memory
from lossmith.noise import Noise

NO_TARGET = -(1 << 63)  # as the target to ignore: none
TURNS = 4  # in which a thread takes its rows


def log_prob(scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, ignored: int = NO_TARGET) -> Tensor:
    """log P(the target wins), one class a row; see ``reference.log_prob``.

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64, not yet divided by the scale.
        target: (rows,) int64.
        scale: (1,) or (rows,), positive, of the scores' dtype and device.
        noise: the distribution of ε.
        ignored: a target that gives 0 and no gradient, whatever its row of scores holds.

    Returns:
        (rows,) log-probabilities, differentiable twice in scores and scale.

    Raises:
        ValueError: a kernel was asked for that cannot serve; a target out of range; NaN, +inf or nothing but −inf in a row (on
            the CPU).
    """
    key = noise.key
    if torch.compiler.is_compiling() or not all(owns_memory(x) for x in (scores, target, scale)):
        if dtensor.is_sharded((scores, target, scale)):
            return dtensor.on_each_rank(lambda z, y, sigma: log_prob(z, y, sigma, noise, ignored), (scores, target, scale))
        # An operator unwraps a wrapper by the wrapper's own rules; the kernels need memory.
        return operator(scores, target, scale, key, ignored)[0]
    # torch.func cannot look into the reference, but into a function of torch.autograd it does not look.
    transformed = any(is_wrapped(x) or has_tangent(x) for x in (scores, target, scale))
    kernel = choose(OPERATION, KERNELS, scores, key)
    if kernel != "reference" or transformed:
        # The function that torch.func can transform takes twice as long to call.
        function, chosen = (_Value, ()) if transformed else (_PlainValue, (kernel,))
        log_p: Tensor = function.apply(scores, target, scale, key, ignored, *chosen)[0]  # type: ignore[no-untyped-call]
        return log_p
    record("reference")
    return _by_reference(scores, target, scale, noise, ignored)


def _by_reference(scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, ignored: int) -> Tensor:
    """The reference, with rows of its own only: those ignored are not looked at."""
    keep = target != ignored
    if not keep.all():
        part = _by_reference(*_rows_of(keep, scores, target, scale), noise, ignored)
        return scores.new_zeros(len(scores)).masked_scatter(keep, part)
    check_target_values(target, scores.shape[-1])
    check_score_values(scores)
    centred = scores - scores.detach().amax(-1, keepdim=True)  # lest a small scale makes +inf of them
    return reference.log_prob(centred / scale.unsqueeze(-1), target, noise)


def _rows_of(mask: Tensor, scores: Tensor, target: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return scores[mask], target[mask], scale[mask] if len(scale) > 1 else scale


# Value and gradient, as functions of tensors without a graph. What the value gives beside log p, the weights of the thresholds
# (rows, most) and (rows, COLUMNS) integers, is what the gradient needs.


def value(scores: Tensor, target: Tensor, scale: Tensor, noise: str, ignored: int) -> tuple[Tensor, Tensor, Tensor]:
    """log p (rows,) and what ``gradient`` needs; ``noise`` is a ``Noise.key``, the others as for ``log_prob``.

    Raises:
        TypeError, ValueError: a dtype or a shape other than ``log_prob`` names, which the kernels would read as memory.
    """
    _check_memory(scores, target, scale)
    return _value(scores, target, scale, noise, ignored, choose(OPERATION, KERNELS, scores, noise))[0]


def _value(
    scores: Tensor, target: Tensor, scale: Tensor, noise: str, ignored: int, kernel: str
) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """As ``value``, and whether rows were left to the reference."""
    log_p, _, records = outputs = _outputs(scores, noise)
    bad, unserved = False, True
    if kernel != "reference":
        record(kernel)
        try:
            run = _cuda(scores.device).forward if kernel == "cuda" else _run_forward
            bad, unserved = run(scores, target, scale, noise, ignored, *outputs)
        except Exception as error:  # whatever it is, there is another way, and the user learns of it
            give_up(OPERATION, kernel, error)
            kernel = "reference"
        if bad:
            check_target_values(target, scores.shape[-1], ignored)
            check_score_values(scores[target != ignored])
    if kernel == "reference":
        record("reference")
        log_p.zero_()
        records[:, STATUS] = torch.where(target == ignored, SURE, UNSERVED)
    if unserved:
        remaining = records[:, STATUS] == UNSERVED
        if kernel != "reference":
            record_rows(OPERATION, kernel, int(remaining.sum()), scores.shape[-1])
        rows = _rows_of(remaining, scores, target, scale)
        log_p.masked_scatter_(remaining, _by_reference(*rows, noises.by_key(noise), ignored))
    return outputs, unserved


def _check_memory(scores: Tensor, target: Tensor, scale: Tensor) -> None:
    """Refuse what the kernels would misread, since they see addresses only."""
    if scores.dtype not in (torch.float32, torch.float64) or scores.dim() != 2:
        raise TypeError(f"scores: expected (rows, C) of float32 or float64, got {scores.dtype} of shape {tuple(scores.shape)}")
    rows = scores.shape[0]
    if target.dtype != torch.int64 or target.shape != (rows,):
        raise TypeError(f"target: expected ({rows},) of torch.int64, got {target.dtype} of shape {tuple(target.shape)}")
    if scale.dtype != scores.dtype or scale.shape not in ((1,), (rows,)):
        raise TypeError(f"scale: expected (1,) or ({rows},) of {scores.dtype}, got {scale.dtype} of shape {tuple(scale.shape)}")
    if not scores.device == target.device == scale.device:
        raise ValueError(f"target, scale: expected on {scores.device}, got {target.device}, {scale.device}; move them there")


def _outputs(scores: Tensor, noise: str) -> tuple[Tensor, Tensor, Tensor]:
    rows, most = scores.shape[0], kept_thresholds(noise)
    return (
        scores.new_empty(rows),
        scores.new_zeros((rows, most), dtype=torch.float32),
        scores.new_zeros((rows, COLUMNS), dtype=torch.int32),
    )


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The module ``team``. Each of its functions is compiled at its first use; numba keeps the result on disk."""
    with announced():
        from lossmith.engine.argmax.kernels import cpu_entry as team
    return team


def _cuda(device: torch.device) -> Any:
    """The module ``cuda``, which loads Triton; an error if it does not serve on the device."""
    from lossmith.engine.argmax.kernels import cuda

    cuda.check(device)
    return cuda


@lru_cache(maxsize=256)
def _forward_slots(noise: str, classes: int) -> tuple[NDArray[np.int64], Any]:
    """What a job needs of the noise, and the arrays to keep alive for it."""
    arrays = forward_arrays(noise, classes)
    return _kernels().FORWARD.tail(arrays), arrays


@lru_cache(maxsize=64)
def _backward_slots(noise: str) -> tuple[NDArray[np.int64], Any]:
    """As ``_forward_slots``, of the backward pass."""
    arrays = backward_arrays(noise)
    return _kernels().BACKWARD.tail(arrays), arrays


def _run_forward(
    scores: Tensor, target: Tensor, scale: Tensor, noise: str, ignored: int, log_p: Tensor, weights: Tensor, records: Tensor
) -> tuple[bool, bool]:
    """Whether a row was bad, and whether one is left to the reference."""
    kernels, (tail, _) = _kernels(), _forward_slots(noise, scores.shape[-1])
    arrays = {
        "scores": scores.contiguous(),
        "target": target.contiguous(),
        "scale": scale.contiguous(),
        "log_p": log_p,
        "weights": weights,
        "records": records,
    }
    return _run(kernels.forward_team, kernels.FORWARD, ignored, arrays, tail)


def _run_backward(
    scores: Tensor, target: Tensor, scale: Tensor, noise: str, upstream: Tensor, weights: Tensor, records: Tensor, grad: Tensor
) -> None:
    kernels, (tail, _) = _kernels(), _backward_slots(noise)
    arrays = {
        "scores": scores.contiguous(),
        "target": target.contiguous(),
        "scale": scale.contiguous(),
        "upstream": upstream.contiguous(),
        "weights": weights.contiguous(),
        "records": records.contiguous(),
        "grad": grad,
    }
    _run(kernels.backward_team, kernels.BACKWARD, 0, arrays, tail)


def _run(function: Any, layout: Any, ignored: int, arrays: dict[str, Tensor], tail: NDArray[np.int64]) -> tuple[bool, bool]:
    """Run a team function on all rows; ``arrays`` and ``tail`` as for ``Layout.job``; the result as of ``_run_forward``."""
    rows, classes = arrays["scores"].shape
    size = max(1, min(torch.get_num_threads(), rows, rows * (classes + 64) // CLASSES_PER_THREAD))
    numbers = {"turn": -(-rows // (TURNS * size)), "rows": rows, "classes": classes, "ignored": ignored}
    job = layout.job(numbers, arrays, tail)
    run_team(function.ctypes, function.address, job.ctypes.data, size)
    result = layout.numbers
    return bool(job[result.bad]), bool(job[result.unserved])


def gradient(
    scores: Tensor,
    target: Tensor,
    scale: Tensor,
    noise: str,
    upstream: Tensor,
    weights: Tensor,
    records: Tensor,
    unserved: bool = True,
) -> Tensor:
    """Σ upstream · log p differentiated in the scores, (rows, C); not ``unserved``: no row was left to the reference.

    Raises:
        TypeError, ValueError: as ``value``.
    """
    _check_memory(scores, target, scale)
    if upstream.dtype != scores.dtype or weights.dtype != torch.float32 or records.dtype != torch.int32:
        raise TypeError(
            f"upstream, weights, records: expected what the value's operator gave, got {upstream.dtype}, "
            f"{weights.dtype}, {records.dtype}"
        )
    return _gradient(scores, target, scale, noise, upstream, weights, records, unserved)


def _gradient(
    scores: Tensor,
    target: Tensor,
    scale: Tensor,
    noise: str,
    upstream: Tensor,
    weights: Tensor,
    records: Tensor,
    unserved: bool,
) -> Tensor:
    """As ``gradient``, of tensors that ``_value`` has met."""
    grad, kernel = torch.empty_like(scores, memory_format=torch.contiguous_format), fast_kernel(scores, noise)
    served = kernel != "reference"
    if served:
        try:
            run = _cuda(scores.device).backward if kernel == "cuda" else _run_backward
            run(scores, target, scale, noise, upstream, weights, records, grad)
        except Exception as error:
            give_up(OPERATION, kernel, error)
            served = False
    if served and not unserved:
        return grad
    remaining = records[:, STATUS] == UNSERVED
    if not served:
        grad.zero_()
        remaining |= records[:, STATUS] == DONE  # by a kernel that has failed since
    if remaining.any():
        rows = _rows_of(remaining, scores, target, scale)
        grad[remaining] = apart(lambda: _differentiable(*rows, upstream[remaining], noise)[1].detach())
    return grad


def _differentiable(scores: Tensor, target: Tensor, scale: Tensor, upstream: Tensor, noise: str) -> tuple[list[Tensor], Tensor]:
    """By the reference: scores, scale and upstream as leaves, and the gradient in the scores, differentiable in all three."""
    leaves = [x.detach().clone().requires_grad_() for x in (scores, scale, upstream)]
    log_p = _by_reference(leaves[0], target, leaves[1], noises.by_key(noise), NO_TARGET)
    return leaves, torch.autograd.grad(log_p, leaves[0], leaves[2], create_graph=True)[0]


def second(
    scores: Tensor, target: Tensor, scale: Tensor, noise: str, upstream: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """⟨cotangent, gradient⟩ differentiated in scores, scale and upstream."""

    def found() -> list[Tensor]:
        leaves, grad = _differentiable(scores, target, scale, upstream, noise)
        parts = torch.autograd.grad(grad, leaves, cotangent, allow_unused=True)
        return [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, parts, strict=True)]

    one, two, three = apart(found)
    return one, two, three


def scale_gradient(grad: Tensor, scores: Tensor, scale: Tensor) -> Tensor:
    """log p depends on differences of z over σ: ∂/∂σ = −Σ_j (∂/∂z_j) z_j / σ, with z measured from the row's highest."""
    lead = scores - scores.detach().amax(-1, keepdim=True)
    lead = torch.where(grad == 0, 0.0, lead)  # a removed class, at −inf, has none
    each = -(grad * lead).sum(-1) / scale
    return each if scale.shape == each.shape else each.sum(-1, keepdim=True)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What the backward of ``value`` needs."""
    scores, target, scale, ctx.noise, _ = inputs
    ctx.law = noises.by_key(ctx.noise)  # kept alive until then, which the key alone does not do
    ctx.save_for_backward(scores, target, scale, *output[1:])


def _of_inputs(ctx: Any, grad: Tensor, scores: Tensor, scale: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients in the five inputs of ``value``, from that in the scores."""
    return grad, None, scale_gradient(grad, scores, scale) if ctx.needs_input_grad[2] else None, None, None


# Eager mode: functions of torch.autograd, which torch.func can transform.


class _PlainValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output, ctx.unserved = _value(*inputs)
        _Value.setup_context(ctx, inputs[:-1], output)  # the last is the kernel, which the backward pass chooses anew
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        scores, target, scale, *kept = ctx.saved_tensors
        inputs = scores, target, scale, ctx.noise, upstream, *kept, ctx.unserved
        twice = torch.is_grad_enabled()  # create_graph=True
        grad = _PlainGradient.apply(*inputs) if twice else _gradient(*inputs)  # type: ignore[no-untyped-call]
        return *_of_inputs(ctx, grad, scores, scale), None


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return value(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        scores, target, scale, *kept = ctx.saved_tensors
        grad = _Gradient.apply(scores, target, scale, ctx.noise, upstream, *kept, True)  # type: ignore[no-untyped-call]
        return _of_inputs(ctx, grad, scores, scale)

    @staticmethod
    def jvp(ctx: Any, in_scores: Tensor | None, _: Any, in_scale: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
        scores, target, scale, *kept = ctx.saved_tensors
        each = scores.new_ones(len(scores))
        grad = _Gradient.apply(scores, target, scale, ctx.noise, each, *kept, True)  # type: ignore[no-untyped-call]
        parts = []
        if in_scores is not None:
            parts.append((grad * in_scores).sum(-1))
        if in_scale is not None:
            parts.append(scale_gradient(grad, scores, scale.expand(len(scores))) * in_scale)
        return sum(parts[1:], parts[0]), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _by_merging(_Value, info.batch_size, in_dims, inputs)


class _PlainGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _gradient(*inputs)
        _Gradient.setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return _Gradient.backward(ctx, cotangent)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return gradient(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, target, scale, ctx.noise, upstream, *_ = inputs
        ctx.law = noises.by_key(ctx.noise)
        ctx.save_for_backward(scores, target, scale, upstream)
        ctx.save_for_forward(scores, target, scale, upstream, *inputs[5:7], output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, scale, upstream, *_ = ctx.saved_tensors
        inputs = scores, target, scale, ctx.noise, upstream, cotangent
        in_scores, in_scale, in_upstream = _Second.apply(*inputs)  # type: ignore[no-untyped-call]
        return in_scores, None, in_scale, None, in_upstream, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, in_scores: Tensor | None, _: Any, in_scale: Tensor | None, __: Any, in_upstream: Tensor | None, *others: Any
    ) -> Tensor:
        scores, target, scale, upstream, *kept, grad = ctx.saved_tensors
        direction, tangent = torch.zeros_like(scores), torch.zeros_like(grad)
        if in_scores is not None:
            direction = direction + in_scores
        if in_scale is not None:  # the gradient is that in z/σ, over σ
            growth = (in_scale / scale).unsqueeze(-1)
            lead = scores - scores.detach().amax(-1, keepdim=True)
            direction = direction - growth * torch.where(lead.isneginf(), 0.0, lead)
            tangent = tangent - growth * grad
        tangent = tangent + _Second.apply(scores, target, scale, ctx.noise, upstream, direction)[0]  # type: ignore[no-untyped-call]
        if in_upstream is not None:
            inputs = scores, target, scale, ctx.noise, in_upstream, *kept, True
            tangent = tangent + _Gradient.apply(*inputs)  # type: ignore[no-untyped-call]
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _by_merging(_Gradient, info.batch_size, in_dims, inputs)


class _Second(torch.autograd.Function):
    """``second``, of which no derivative is taken."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return second(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *others: Any) -> None:
        raise AssertionError("not asked for: no output can be differentiated")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        (in_scores, in_scale, in_upstream), dims = _by_merging(_Second, info.batch_size, in_dims, inputs)
        for_all = inputs[2].dim() == (1 if in_dims[2] is None else 2) and inputs[2].shape[-1] == 1
        return (in_scores, in_scale.sum(-1, keepdim=True) if for_all else in_scale, in_upstream), dims


def _by_merging(function: Any, size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """vmap: rows are independent, so those of all batches go as one; a scale for all becomes one for each row."""
    rows = inputs[0].movedim(in_dims[0], 0).shape[1] if in_dims[0] is not None else len(inputs[0])
    merged = []
    for place, (x, dim) in enumerate(zip(inputs, in_dims, strict=True)):
        if isinstance(x, Tensor):
            x = x.movedim(dim, 0) if dim is not None else x.expand(size, *x.shape)
            x = (x.expand(size, rows) if place == 2 else x).reshape(size * rows, *x.shape[2:])
        merged.append(x)
    outputs = function.apply(*merged)
    if isinstance(outputs, Tensor):
        return outputs.unflatten(0, (size, rows)), 0
    return tuple(x.unflatten(0, (size, rows)) for x in outputs), (0,) * len(outputs)


# torch.compile and torch.export: opaque operators. torch keeps compiled graphs on disk under the name of the first operator,
# and they call the second: whoever changes what the second takes gives both a new name.


_INPUTS = "Tensor scores, Tensor target, Tensor scale, str noise"  # torch before 2.5 reads no annotations that are strings
operator = torch.library.custom_op(
    "lossmith::target_log_prob", value, mutates_args=(), schema=f"({_INPUTS}, SymInt ignored) -> (Tensor, Tensor, Tensor)"
)
_gradient_operator = torch.library.custom_op(
    "lossmith::target_log_prob_gradient",
    gradient,
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor upstream, Tensor weights, Tensor records, bool unserved=True) -> Tensor",
)
operator.register_fake(lambda scores, target, scale, noise, ignored: _outputs(scores, noise))
_gradient_operator.register_fake(
    lambda scores, *others, **options: torch.empty_like(scores, memory_format=torch.contiguous_format)
)


def _operator_backward(ctx: Any, upstream: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
    scores, target, scale, *kept = ctx.saved_tensors
    return _of_inputs(ctx, _gradient_operator(scores, target, scale, ctx.noise, upstream, *kept), scores, scale)


operator.register_autograd(_operator_backward, setup_context=_save)
