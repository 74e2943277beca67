"""log P(every class wins), rows on one device: a function of torch.autograd for eager mode.

Second derivatives are those of plain torch: of the reference, or of the formula of Gumbel noise. Under a transform of
torch.func, and compiled, plain torch or the operators of ``custom_op`` stand in its place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossmith.engine.argmax import reference
from lossmith.engine.argmax.autograd import scale_gradient
from lossmith.engine.argmax.dispatch import CPU, CUDA, DOUBLE_KERNELS
from lossmith.engine.argmax.fused import (
    GUMBEL,
    SOFTMAX,
    differentiated,
    kernels_of,
    precision_of,
    rows_of,
    run,
    softmax_serves,
    tail_of,
)
from lossmith.engine.argmax.kernels.record import COLUMNS, KEPT_OTHER, STATUS, UNSERVED
from lossmith.engine.argmax.kernels.tables import DOUBLE, SINGLE, backward_arrays, every_arrays
from lossmith.engine.runtime.compiling import announced
from lossmith.engine.runtime.select import REFERENCE, Kernel, choose, give_up, record_rows
from lossmith.inputs import check_score_values, is_plain
from lossmith.noise import Noise

OPERATION = "argmax_log_probs"


def _obstacle(scores: Tensor, noise: str) -> str:
    if noise.startswith("studentt:"):
        return "the tails of Student's t leave too few digits in the tables; take normal, logistic or Gumbel noise"
    return CPU.obstacle(scores, noise)


def _cuda_obstacle(scores: Tensor, noise: str) -> str:
    return CUDA.obstacle(scores, noise) or _obstacle(scores, noise)


KERNELS = (
    Kernel("cuda", CUDA.devices, CUDA.dtypes, _cuda_obstacle),  # on the CPU it serves under the interpreter only
    Kernel("cpu", CPU.devices, CPU.dtypes, _obstacle),
    REFERENCE,
)


def serves(scores: Tensor, noise: Noise) -> str:
    """The kernel for these scores (rows, C): the formula's for Gumbel noise, else one that the tables allow; "" for none.

    Raises:
        ValueError: the kernel that ``use_kernel`` names cannot serve.
    """
    if not is_plain(scores):
        return ""
    if noise.key == GUMBEL:
        return "cpu" if softmax_serves(scores) else ""
    chosen = choose(OPERATION, DOUBLE_KERNELS if scores.dtype == torch.float64 else KERNELS, scores, noise.key)
    return "" if chosen == REFERENCE.name else chosen


def log_probs(scores: Tensor, scale: Tensor, noise: Noise, kernel: str) -> Tensor:
    """log P(each class wins), (rows, C).

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64, not yet divided by the scale.
        scale: (1,) or (rows,), positive, of the scores' dtype.
        noise: one that ``serves`` has been asked about.
        kernel: what it said.

    Returns:
        Differentiable twice in scores and scale.

    Raises:
        ValueError: NaN, +inf or nothing but −inf in a row.
    """
    log_p: Tensor = _Every.apply(scores, scale, noise, kernel)  # type: ignore[no-untyped-call]
    return log_p


def _plain(scores: Tensor, scale: Tensor, noise: Noise) -> Tensor:
    """log P(each class wins) by plain torch, differentiable twice."""
    z = (scores - scores.detach().amax(-1, keepdim=True)) / scale.unsqueeze(-1)
    return noise.closed_form_log_probs(z) if noise.key == GUMBEL else reference.log_probs(z, noise)


def _by_kernel(
    kernel: str, scores: Tensor, scale: Tensor, noise: Noise, log_p: Tensor, saved: list[Tensor]
) -> tuple[bool, Tensor | None]:
    """Write log p of every class, and append what the gradient needs to ``saved``.

    Returns:
        Whether a row is bad; and the rows that are left to plain torch, (rows,) bool, None if there are none.
    """
    (rows, classes), precision = scores.shape, precision_of(scores)
    if kernel == "cuda":
        return _by_triton(scores, scale, noise, log_p, saved)
    kernels = kernels_of(precision)
    arrays = {"scores": scores, "scale": scale, "log_p": log_p}
    if noise.key == GUMBEL:
        return run(kernels.softmax_team, kernels.SOFTMAX, rows, classes, 0, arrays)[0], None
    records = torch.zeros(rows, COLUMNS, dtype=torch.int32)
    saved.append(records)
    arrays["records"] = records
    if precision is SINGLE:
        saved += (scores.new_zeros(rows, KEPT_OTHER), scores.new_zeros(rows, 2))
        arrays["weights"], arrays["lines"] = saved[1:]
    tail = tail_of(precision, "EVERY", every_arrays, noise.key, classes)[0]
    bad, unserved = run(kernels.every_team, kernels.EVERY, rows, classes, 0, arrays, tail)
    return bad, records[:, STATUS] == UNSERVED if unserved else None


def _by_triton(scores: Tensor, scale: Tensor, noise: Noise, log_p: Tensor, saved: list[Tensor]) -> tuple[bool, Tensor | None]:
    """As ``_by_kernel``."""
    with announced():
        from lossmith.engine.argmax.kernels import cuda, cuda_every
    cuda.check(scores.device)
    rows, records = len(scores), torch.zeros(len(scores), COLUMNS, dtype=torch.int32, device=scores.device)
    saved += (records, scores.new_zeros(rows, cuda_every.CAPACITY), scores.new_zeros(rows, 2))
    bad, unserved = cuda_every.forward(scores, scale, noise.key, log_p, saved[1], records, saved[2])
    return bad, records[:, STATUS] == UNSERVED if unserved else None


def _gradient_by_kernel(
    kernel: str, scores: Tensor, scale: Tensor, noise: Noise, upstream: Tensor, log_p: Tensor, saved: list[Tensor], grad: Tensor
) -> None:
    """Write Σ upstream · log p differentiated in the scores; zeros in rows that were left to plain torch."""
    if kernel == "cuda":
        from lossmith.engine.argmax.kernels import cuda_every

        cuda_every.backward(scores, scale, noise.key, upstream, log_p, saved[1], saved[0], saved[2], grad)
        return
    (rows, classes), precision = scores.shape, precision_of(scores)
    kernels = kernels_of(precision)
    arrays = {"scale": scale.contiguous(), "upstream": upstream.contiguous(), "log_p": log_p, "grad": grad}
    if noise.key == GUMBEL:
        run(kernels.softmax_gradient_team, kernels.SOFTMAX_GRADIENT, rows, classes, 0, arrays)
        return
    arrays |= {"scores": scores.contiguous(), "records": saved[0]}
    if precision is DOUBLE:
        tail = tail_of(precision, "EVERY_GRADIENT", every_arrays, noise.key, classes)[0]
    else:
        arrays["weights"], arrays["lines"] = saved[1:]
        tail = tail_of(precision, "EVERY_GRADIENT", backward_arrays, noise.key)[0]
    run(kernels.every_gradient_team, kernels.EVERY_GRADIENT, rows, classes, 0, arrays, tail)


def _give_up_every(kernel: str, noise: Noise, error: Exception) -> None:
    give_up(SOFTMAX if noise.key == GUMBEL else OPERATION, kernel, error)


class _Every(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, scale: Tensor, noise: Noise, kernel: str) -> Tensor:
        z, sigma = scores.contiguous(), scale.contiguous()
        log_p, saved, left = torch.empty_like(z), list[Tensor](), None
        try:
            bad, left = _by_kernel(kernel, z, sigma, noise, log_p, saved)
        except Exception as error:  # whatever it is, there is another way, and the user learns of it
            _give_up_every(kernel, noise, error)
            bad, left = False, torch.ones(len(z), dtype=torch.bool, device=z.device)
        if bad:
            check_score_values(z)
        if left is not None:
            if len(saved):
                record_rows(OPERATION, kernel, int(left.sum()), z.shape[-1])
            log_p[left] = _plain(*rows_of(left, z, sigma), noise)
        ctx.noise, ctx.left, ctx.kernel = noise, left, kernel
        ctx.save_for_backward(scores, scale, log_p, *saved)
        return log_p

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, scale, log_p, *saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # create_graph=True
            return *differentiated(_plain(scores, scale, ctx.noise), (scores, scale), upstream, needed), None, None
        grad, left = torch.zeros_like(log_p), ctx.left
        if left is None or not left.all():
            try:
                _gradient_by_kernel(ctx.kernel, scores, scale, ctx.noise, upstream, log_p, saved, grad)
            except Exception as error:  # as in forward
                _give_up_every(ctx.kernel, ctx.noise, error)
                left = torch.ones(len(grad), dtype=torch.bool, device=grad.device)
        if left is not None:
            z, sigma = rows_of(left, scores, scale)
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                grad[left] = torch.autograd.grad(_plain(leaf, sigma, ctx.noise), leaf, upstream[left])[0]
        return grad, scale_gradient(grad, scores, scale) if needed[1] else None, None, None
