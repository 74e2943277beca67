r"""Which kernel computes log P(the target wins), chosen call by call; the choice is recorded.

"cpu" serves float32 and half types on the CPU, for noise that ``tables`` can follow; "reference" serves everything. Under
``torch.compile`` both stand behind one opaque operator, ``lossmith::argmax_log_prob``. Second derivatives are the reference's.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith import noise as noises
from lossmith.checks import check_score_values, check_target_values
from lossmith.errors import near
from lossmith.noise import Noise
from lossmith.threshold import reference
from lossmith.threshold.tables import Tables, tables
from lossmith.threshold.threads import apart, run_team

KERNELS = ("cpu", "reference")
IGNORED = -1  # a target that asks for nothing: its row may hold anything
HARD = 3  # as in ``cpu``, which is loaded late: a row left to the reference
WORTH = 1 << 13  # classes of all rows together that are worth a thread
TURNS = 4  # in which a thread takes its rows
MOST = 96  # thresholds of a row that are kept for backward
MOST_WIDE = 192  # of other noise than normal

_state = threading.local()
_broken: dict[str, str] = {}  # kernels that failed, and how


def last_kernel() -> str | None:
    """What computed the latest ``argmax_log_prob`` of this thread: "cpu", "reference" or "closed form"; None before the first.

    A row the fast kernel passes on (a target more than some 60 scales behind) is computed by the reference and not recorded.
    """
    return getattr(_state, "last", None)


def record(name: str) -> None:
    """Note what ran."""
    _state.last = name


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Within the context, this thread computes with that kernel only.

    Raises:
        ValueError: there is no such kernel; and where it is called, if it cannot serve the call.

    >>> with use_kernel("reference"):
    ...     pass
    """
    if name not in KERNELS:
        raise ValueError(f"kernel: unknown name {name!r}; {near(name, KERNELS)}")
    before = getattr(_state, "asked", None)
    _state.asked = name
    try:
        yield
    finally:
        _state.asked = before


def log_prob(scores: Tensor, target: Tensor, scale: Tensor, noise: Noise) -> Tensor:
    """log P(the target wins), one class a row; see ``reference.log_prob``.

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64, not yet divided by the scale.
        target: (rows,) int64; ``IGNORED`` gives 0 and no gradient.
        scale: (1,) or (rows,), positive, of the scores' dtype and device.
        noise: the distribution of ε.

    Returns:
        (rows,) log-probabilities, differentiable twice in scores and scale.

    Raises:
        ValueError: a kernel was asked for that cannot serve; NaN, +inf or nothing but −inf in a row (on the CPU).
    """
    if torch.compiler.is_compiling():
        return operator(scores, target, scale, noises.key(noise))[0]
    if _choose(scores, noise) == "cpu":
        log_p: Tensor = _Value.apply(scores, target, scale, noises.key(noise))[0]  # type: ignore[no-untyped-call]
        return log_p
    record("reference")
    return _by_reference(scores, target, scale, noise)


def _choose(scores: Tensor, noise: Noise) -> str:
    obstacle = _obstacle(scores, noise)
    asked = getattr(_state, "asked", None)
    if asked is None:
        return "reference" if obstacle else "cpu"
    if asked == "cpu" and obstacle:
        raise ValueError(f"kernel: 'cpu' cannot serve this call ({obstacle}); expected one of: reference")
    return str(asked)


def _obstacle(scores: Tensor, noise: Noise) -> str:
    """Why the kernel for the CPU cannot serve; empty if it can."""
    if scores.device.type != "cpu":
        return f"scores on {scores.device.type}"
    if scores.dtype != torch.float32:
        return f"scores of {scores.dtype}"
    if "cpu" in _broken:
        return f"it failed before: {_broken['cpu']}"
    if _tables(noises.key(noise)) is None:
        return f"{noise} has kinks, far tails or narrow peaks"
    return ""


@lru_cache(maxsize=64)
def _tables(key: str) -> Tables | None:
    return tables(noises.by_key(key))


@lru_cache(maxsize=256)
def _guess(key: str, classes: int) -> float:
    """About where the highest of that many equals stands."""
    return float(noises.by_key(key).icdf(torch.tensor(1 - 1 / classes, dtype=torch.float64, device="cpu")))


def _by_reference(scores: Tensor, target: Tensor, scale: Tensor, noise: Noise) -> Tensor:
    """The reference, with rows of its own only: those ignored are not looked at."""
    keep = target != IGNORED
    if not keep.all():
        part = scores[keep], target[keep], scale[keep] if len(scale) > 1 else scale
        log_p = _by_reference(*part, noise)
        return scores.new_zeros(len(scores)).masked_scatter(keep, log_p)
    check_score_values(scores)
    centred = scores - scores.detach().amax(-1, keepdim=True)  # lest a small scale makes +inf of them
    return reference.log_prob(centred / scale.unsqueeze(-1), target, noise)


# Value and gradient, as functions of tensors without a graph. What the value gives beside log p is what the gradient needs.

Kept = tuple[Tensor, Tensor, Tensor, Tensor]  # weights, where, top, status


def value(scores: Tensor, target: Tensor, scale: Tensor, noise: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log p (rows,) and what ``gradient`` needs; ``noise`` is a ``noises.key``, the others as for ``log_prob``."""
    kernel = _choose(scores, noises.by_key(noise))
    log_p, weights, where, top, status = outputs = _outputs(scores, noise)
    if kernel == "cpu":
        record("cpu")
        try:
            bad = _run_forward(scores, target, scale, noise, *outputs)
        except Exception as error:  # whatever it is, there is another way, and the user learns of it
            _broken["cpu"] = f"{type(error).__name__}: {error}"
            warnings.warn(f"kernel 'cpu' failed ({_broken['cpu']}); the reference runs instead", RuntimeWarning, stacklevel=2)
            bad, kernel = False, "reference"
        if bad:
            check_target_values(target, scores.shape[-1], IGNORED)
            check_score_values(scores[target != IGNORED])
    if kernel != "cpu":
        record("reference")
        status.fill_(HARD)
    if (hard := status == HARD).any():
        part = _by_reference(scores[hard], target[hard], scale[hard] if len(scale) > 1 else scale, noises.by_key(noise))
        log_p.masked_scatter_(hard, part)
    return outputs


def _outputs(scores: Tensor, noise: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, most = len(scores), MOST if noise == "normal" else MOST_WIDE
    return (
        scores.new_empty(rows),
        scores.new_empty(rows, most, dtype=torch.float32),
        scores.new_empty(rows, 4, dtype=torch.int32),
        scores.new_empty(rows, dtype=torch.float32),
        scores.new_empty(rows, dtype=torch.int8),
    )


def _run_forward(scores: Tensor, target: Tensor, scale: Tensor, noise: str, *outputs: Tensor) -> bool:
    from lossmith.threshold import cpu

    made = _tables(noise)
    assert made is not None
    numbers = np.array([made.high, made.hopeless, made.sure, _guess(noise, scores.shape[-1])])
    arrays = [*_arrays(scores, target, scale, *outputs), made.lowest, made.depth, numbers, *made.log_cdf, *made.log_prob]
    return _run(cpu.forward_team, scores, arrays)


def _run(team: Any, scores: Tensor, arrays: list[NDArray[Any]]) -> bool:
    """Whether the team found a bad row."""
    from lossmith.threshold import cpu

    rows, classes = scores.shape
    size = max(1, min(torch.get_num_threads(), rows, rows * (classes + 64) // WORTH))
    job = cpu.job_of(rows, classes, -(-rows // (TURNS * size)), arrays)
    run_team(team.ctypes, team.address, job.ctypes.data, size)
    return bool(job[cpu.BAD])


def _arrays(*tensors: Tensor) -> list[NDArray[Any]]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def gradient(scores: Tensor, target: Tensor, scale: Tensor, noise: str, upstream: Tensor, *kept: Tensor) -> Tensor:
    """Σ upstream · log p differentiated in the scores, (rows, C)."""
    grad = torch.empty_like(scores, memory_format=torch.contiguous_format)
    status = kept[-1]
    if (made := _tables(noise)) is not None and scores.dtype == torch.float32 and scores.device.type == "cpu":
        from lossmith.threshold import cpu

        _run(cpu.backward_team, scores, [*_arrays(scores, target, scale, upstream, *kept, grad), *made.slope])
    if (hard := status == HARD).any():
        rows = scores[hard], target[hard], scale[hard] if len(scale) > 1 else scale, upstream[hard]
        grad[hard] = apart(lambda: _differentiable(*rows, noise)[1].detach())
    return grad


def _differentiable(
    scores: Tensor, target: Tensor, scale: Tensor, upstream: Tensor, noise: str
) -> tuple[list[Tensor], Tensor]:
    """By the reference: scores, scale and upstream as leaves, and the gradient in the scores, differentiable in all three."""
    leaves = [x.detach().clone().requires_grad_() for x in (scores, scale, upstream)]
    log_p = _by_reference(leaves[0], target, leaves[1], noises.by_key(noise))
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


def _scale_gradient(grad: Tensor, scores: Tensor, scale: Tensor) -> Tensor:
    """log p depends on differences of z over σ: ∂/∂σ = −Σ_j (∂/∂z_j) z_j / σ, with z measured from the row's highest."""
    lead = scores - scores.detach().amax(-1, keepdim=True)
    lead = torch.where(grad == 0, 0.0, lead)  # a removed class, at −inf, has none
    each = -(grad * lead).sum(-1) / scale
    return each if scale.shape == each.shape else each.sum(-1, keepdim=True)


# Eager mode: functions of torch.autograd, which torch.func can transform.


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, target: Tensor, scale: Tensor, noise: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return value(scores, target, scale, noise)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        scores, target, scale, ctx.noise = inputs
        ctx.save_for_backward(scores, target, scale, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        scores, target, scale, *kept = ctx.saved_tensors
        grad = _Gradient.apply(scores, target, scale, ctx.noise, upstream, *kept)  # type: ignore[no-untyped-call]
        return grad, None, _scale_gradient(grad, scores, scale) if ctx.needs_input_grad[2] else None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _by_merging(_Value, info.batch_size, in_dims, inputs)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, target: Tensor, scale: Tensor, noise: str, upstream: Tensor, *kept: Tensor) -> Tensor:
        return gradient(scores, target, scale, noise, upstream, *kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, target, scale, ctx.noise, upstream, *_ = inputs
        ctx.save_for_backward(scores, target, scale, upstream)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, scale, upstream = ctx.saved_tensors
        in_scores, in_scale, in_upstream = second(scores, target, scale, ctx.noise, upstream, cotangent)
        return in_scores, None, in_scale, None, in_upstream, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _by_merging(_Gradient, info.batch_size, in_dims, inputs)


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


# torch.compile and torch.export: opaque operators.


def _fake_gradient(scores: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


operator = torch.library.custom_op("lossmith::argmax_log_prob", value, mutates_args=())
_gradient_operator = torch.library.custom_op(
    "lossmith::argmax_log_prob_gradient",
    gradient,
    mutates_args=(),
    schema="(Tensor scores, Tensor target, Tensor scale, str noise, Tensor upstream, Tensor weights, Tensor where, Tensor top, "
    "Tensor status) -> Tensor",
)
operator.register_fake(lambda scores, target, scale, noise: _outputs(scores, noise))
_gradient_operator.register_fake(_fake_gradient)


def _operator_backward(ctx: Any, upstream: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
    scores, target, scale, *kept = ctx.saved_tensors
    grad = _gradient_operator(scores, target, scale, ctx.noise, upstream, *kept)
    return grad, None, _scale_gradient(grad, scores, scale) if ctx.needs_input_grad[2] else None, None


def _operator_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    scores, target, scale, ctx.noise = inputs
    ctx.save_for_backward(scores, target, scale, *output[1:])


operator.register_autograd(_operator_backward, setup_context=_operator_context)
