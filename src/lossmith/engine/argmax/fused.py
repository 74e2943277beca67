"""Rows on the CPU: log P(every class wins), and, with its gradient in one pass, log P(the target is among the k best).

Functions of torch.autograd for eager mode. Second derivatives are those of plain torch: of the reference, or of the formula of
Gumbel noise. Under a transform of torch.func, and compiled, plain torch or the operators of ``custom_op`` stand in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith.engine.argmax import reference
from lossmith.engine.argmax.autograd import NO_TARGET, TURNS, log_prob, scale_gradient
from lossmith.engine.argmax.dispatch import CPU, CUDA
from lossmith.engine.argmax.dispatch import KERNELS as TARGET_KERNELS
from lossmith.engine.argmax.dispatch import OPERATION as TARGET
from lossmith.engine.argmax.kernels.record import CLASSES_PER_THREAD, COLUMNS, KEPT_OTHER, STATUS, UNSERVED
from lossmith.engine.argmax.kernels.tables import (
    DOUBLE,
    SINGLE,
    Precision,
    backward_arrays,
    every_arrays,
    has_odds,
    one_pass_arrays,
    tables_of,
    topk_arrays,
)
from lossmith.engine.runtime.compiling import announced
from lossmith.engine.runtime.select import REFERENCE, Kernel, broken, choose, give_up, record, record_rows
from lossmith.engine.runtime.threads import run_team
from lossmith.inputs import (
    all_count,
    check_score_values,
    check_target_values,
    divisor,
    is_plain,
    rows_that_count,
)
from lossmith.maths.qlog import neg_log_q
from lossmith.noise import Noise

OPERATION = "argmax_log_probs"
GUMBEL, SOFTMAX = "gumbel", "softmax"  # the noise, and what its kernels compute
LAPLACE = "laplace"  # the noise, whose kernel computes in float64


def _obstacle(scores: Tensor, noise: str) -> str:
    if noise.startswith("studentt:"):
        return "the tails of Student's t leave too few digits in the tables; take normal, logistic or Gumbel noise"
    return CPU.obstacle(scores, noise)


def _topk_obstacle(scores: Tensor, noise: str) -> str:
    return CPU.obstacle(scores, noise) or (
        "" if has_odds(noise) else "its odds have no tables; take normal, logistic or Gumbel noise"
    )


def _double_obstacle(scores: Tensor, noise: str) -> str:
    return (
        "" if tables_of(noise, DOUBLE) is not None else "its tables do not serve float64; take normal, logistic or Gumbel noise"
    )


KERNELS = (Kernel("cpu", CPU.devices, CPU.dtypes, _obstacle), REFERENCE)
DOUBLE_KERNELS = (CUDA, Kernel("cpu", CPU.devices, (torch.float64,), _double_obstacle), REFERENCE)
LAPLACE_KERNELS = (CUDA, Kernel("cpu", CPU.devices, (torch.float32, torch.float64)), REFERENCE)
TOPK = "topk_log_prob"
TOPK_KERNELS = (Kernel("cpu", CPU.devices, CPU.dtypes, _topk_obstacle), REFERENCE)


class BatchLoss(NamedTuple):
    """The loss of all rows: Σ −log_q(p) (N6), divided by the number of rows that count if ``mean``."""

    q: float
    mean: bool

    def of(self, log_p: Tensor, keep: Tensor) -> Tensor:
        """The loss of log p (…), 0 where a row does not count; ``keep``, (…) bool: which do."""
        total = neg_log_q(log_p, self.q).sum()
        return total / divisor(keep.sum()) if self.mean else total


def checked_log_prob(
    scores: Tensor,
    target: Tensor,
    noise: Noise,
    scale: float | Tensor,
    margin: float | None,
    ignored: int = NO_TARGET,
    batch_loss: BatchLoss | None = None,
) -> Tensor:
    """log P(the target wins) by a formula or by a kernel, of arguments whose shapes, dtypes and devices have been checked.

    Args:
        scores: (…, C), C ≥ 2, float32 or float64.
        target: (…) of any integer dtype.
        noise: the distribution of ε.
        scale: σ > 0: a number, or a tensor (…, 1) of the scores' dtype.
        margin: the cap of the lead, ≥ 0, or None.
        ignored: a target that gives 0 and no gradient, whatever its row of scores holds.
        batch_loss: what is made of all log-probabilities; a kernel then makes loss and gradient at once.

    Returns:
        (…) log-probabilities, or the loss, a scalar; differentiable twice in scores and scale.

    Raises:
        ValueError: as ``log_prob``, a row named by its place in all dimensions.
    """
    classes, index = scores.shape[-1], target.long()
    closed = classes <= noise.closed_form_classes
    plain = is_plain(*(x for x in (scores, target, scale) if isinstance(x, Tensor)))
    softmax = plain and noise.key == GUMBEL and serves(scores, noise)
    if closed and not softmax:  # else the kernel or the reference looks at the target's values
        check_target_values(target, classes, ignored)
    if margin is not None:
        own = scores.gather(-1, index.clamp(0, classes - 1).unsqueeze(-1))
        scores = torch.maximum(scores, own - margin)
    if closed and not softmax:
        log_p = _by_formula(scores, index, noise, scale, ignored)
        return log_p if batch_loss is None else batch_loss.of(log_p, index != ignored)
    sigma = flat_scale(scale, scores)
    rows = scores if scores.dim() == 2 else scores.reshape(-1, classes)
    index = index.flatten()
    try:
        if softmax or (plain and choose(TARGET, _target_kernels(rows, noise), rows, noise.key) == "cpu"):
            record("closed form" if softmax else "cpu")
            if batch_loss is not None:
                return _Loss.apply(rows, index, sigma, noise, ignored, batch_loss)  # type: ignore[no-untyped-call]
            return target_log_prob(rows, index, sigma, noise, ignored).view_as(target)
        log_p = log_prob(rows, index, sigma, noise, ignored)
        return log_p.view_as(target) if batch_loss is None else batch_loss.of(log_p, index != ignored)
    except ValueError as error:
        if str(error).startswith("scores:"):  # of a flat row; here it has its place in all dimensions
            check_score_values(rows_that_count(scores, target != ignored))
        raise


def _target_kernels(scores: Tensor, noise: Noise) -> tuple[Kernel, ...]:
    if noise.key == LAPLACE:
        return LAPLACE_KERNELS
    return DOUBLE_KERNELS if scores.dtype == torch.float64 else TARGET_KERNELS


def _by_formula(scores: Tensor, index: Tensor, noise: Noise, scale: float | Tensor, ignored: int) -> Tensor:
    record("closed form")
    keep = index != ignored
    full = ignored == NO_TARGET or all_count(keep)
    if not full:
        scores, index = scores.masked_fill(~keep.unsqueeze(-1), 0.0), torch.where(keep, index, 0)
    check_score_values(scores)
    z = (scores - scores.detach().amax(-1, keepdim=True)) / scale  # below 0: divided by a small scale, none becomes +inf
    log_p = noise.closed_form_log_probs(z).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return log_p if full else log_p.masked_fill(~keep, 0.0)


def flat_scale(scale: float | Tensor, scores: Tensor) -> Tensor:
    """The scale as ``log_probs`` and ``target_log_prob`` take it, (1,) or (rows,), from a number or a tensor (…, 1)."""
    return scale.reshape(-1) if isinstance(scale, Tensor) else scores.new_full((1,), scale)


def serves(scores: Tensor, noise: Noise) -> bool:
    """Whether the kernels serve these scores (rows, C): the formula's for Gumbel noise, else those that the tables allow.

    Raises:
        ValueError: the kernel that ``use_kernel`` names cannot serve.
    """
    if not is_plain(scores):
        return False
    if noise.key == GUMBEL:
        return scores.dtype == torch.float32 and scores.device.type == "cpu" and (SOFTMAX, "cpu") not in broken
    kernels = DOUBLE_KERNELS if scores.dtype == torch.float64 else KERNELS
    return choose(OPERATION, kernels, scores, noise.key) == "cpu"


def serves_topk(scores: Tensor, target: Tensor, scale: float | Tensor, noise: Noise) -> bool:
    """Whether ``target_log_prob`` serves these scores (rows, C) for more than one rank; see ``serves``."""
    plain = is_plain(*(x for x in (scores, target, scale) if isinstance(x, Tensor)))
    return plain and choose(TOPK, TOPK_KERNELS, scores, noise.key, bearable=64) == "cpu"


def log_probs(scores: Tensor, scale: Tensor, noise: Noise) -> Tensor:
    """log P(each class wins), (rows, C).

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64 on the CPU, not yet divided by the scale.
        scale: (1,) or (rows,), positive, of the scores' dtype.
        noise: one that ``serves`` has been asked about.

    Returns:
        Differentiable twice in scores and scale.

    Raises:
        ValueError: NaN, +inf or nothing but −inf in a row.
    """
    log_p: Tensor = _Every.apply(scores, scale, noise)  # type: ignore[no-untyped-call]
    return log_p


def target_log_prob(
    scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, ignored: int = NO_TARGET, rank: int = 1
) -> Tensor:
    """log P(the target is among the ``rank`` highest), (rows,), 0 where it is ``ignored``; the rest as for ``log_probs``.

    Forward computes the gradient as well, and backward multiplies it. The noise has tables, or is Gumbel noise for rank 1.
    Gumbel noise and ranks above 1 are for float32.

    Raises:
        ValueError: as ``log_probs``; a target out of range.
    """
    log_p: Tensor = _Target.apply(scores, target, scale, noise, ignored, rank)  # type: ignore[no-untyped-call]
    return log_p


@lru_cache(maxsize=2)
def _kernels(precision: Precision) -> Any:
    """The module with its team functions. Each is compiled at its first use; numba keeps the result on disk."""
    with announced():
        if precision is DOUBLE:
            from lossmith.engine.argmax.kernels import double_entry

            return double_entry
        from lossmith.engine.argmax.kernels import every_entry
    return every_entry


def _precision(scores: Tensor) -> Precision:
    return DOUBLE if scores.dtype == torch.float64 else SINGLE


@lru_cache(maxsize=256)
def _tail(
    precision: Precision, layout: str, make: Callable[..., dict[str, NDArray[Any]]], *call: Any
) -> tuple[NDArray[np.int64], Any]:
    """The last part of a job of that layout, and the arrays to keep alive for it, which ``make`` gives for the call."""
    arrays = make(*call, precision) if precision is DOUBLE else make(*call)
    return getattr(_kernels(precision), layout).tail(arrays), arrays


def _run(
    function: Any, layout: Any, rows: int, classes: int, ignored: int, arrays: dict[str, Tensor], tail: Any = None
) -> tuple[bool, bool]:
    """Run a team function on all rows: whether a row was bad, and whether one is left to the reference."""
    size = max(1, min(torch.get_num_threads(), rows, rows * (classes + 64) // CLASSES_PER_THREAD))
    numbers = {"turn": -(-rows // (TURNS * size)), "rows": rows, "classes": classes, "ignored": ignored}
    job = layout.job(numbers, arrays, tail)
    run_team(function.ctypes, function.address, job.ctypes.data, size)
    return bool(job[layout.numbers.bad]), bool(job[layout.numbers.unserved])


def _plain(scores: Tensor, scale: Tensor, noise: Noise) -> Tensor:
    """log P(each class wins) by plain torch, differentiable twice."""
    z = (scores - scores.detach().amax(-1, keepdim=True)) / scale.unsqueeze(-1)
    return noise.closed_form_log_probs(z) if noise.key == GUMBEL else reference.log_probs(z, noise)


def _rows_of(mask: Tensor, scores: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return scores[mask], scale[mask] if len(scale) > 1 else scale


def _differentiated(value: Tensor, leaves: tuple[Tensor, ...], upstream: Tensor, needed: tuple[bool, ...]) -> tuple[Any, ...]:
    """upstream · value differentiated in the leaves that need it, with a graph."""
    asked = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
    parts = iter(torch.autograd.grad(value, asked, upstream, create_graph=True))
    return tuple(next(parts) if need else None for need in needed)


def _by_kernel(scores: Tensor, scale: Tensor, noise: Noise, log_p: Tensor, saved: list[Tensor]) -> tuple[bool, Tensor | None]:
    """Write log p of every class, and append what the gradient needs to ``saved``.

    Returns:
        Whether a row is bad; and the rows that are left to plain torch, (rows,) bool, None if there are none.
    """
    (rows, classes), precision = scores.shape, _precision(scores)
    kernels = _kernels(precision)
    arrays = {"scores": scores, "scale": scale, "log_p": log_p}
    if noise.key == GUMBEL:
        return _run(kernels.softmax_team, kernels.SOFTMAX, rows, classes, 0, arrays)[0], None
    records = torch.zeros(rows, COLUMNS, dtype=torch.int32)
    saved.append(records)
    arrays["records"] = records
    if precision is SINGLE:
        saved += (scores.new_zeros(rows, KEPT_OTHER), scores.new_zeros(rows, 2))
        arrays["weights"], arrays["lines"] = saved[1:]
    tail = _tail(precision, "EVERY", every_arrays, noise.key, classes)[0]
    bad, unserved = _run(kernels.every_team, kernels.EVERY, rows, classes, 0, arrays, tail)
    return bad, records[:, STATUS] == UNSERVED if unserved else None


def _gradient_by_kernel(
    scores: Tensor, scale: Tensor, noise: Noise, upstream: Tensor, log_p: Tensor, saved: list[Tensor], grad: Tensor
) -> None:
    """Write Σ upstream · log p differentiated in the scores; zeros in rows that were left to plain torch."""
    (rows, classes), precision = scores.shape, _precision(scores)
    kernels = _kernels(precision)
    arrays = {"scale": scale.contiguous(), "upstream": upstream.contiguous(), "log_p": log_p, "grad": grad}
    if noise.key == GUMBEL:
        _run(kernels.softmax_gradient_team, kernels.SOFTMAX_GRADIENT, rows, classes, 0, arrays)
        return
    arrays |= {"scores": scores.contiguous(), "records": saved[0]}
    if precision is DOUBLE:
        tail = _tail(precision, "EVERY_GRADIENT", every_arrays, noise.key, classes)[0]
    else:
        arrays["weights"], arrays["lines"] = saved[1:]
        tail = _tail(precision, "EVERY_GRADIENT", backward_arrays, noise.key)[0]
    _run(kernels.every_gradient_team, kernels.EVERY_GRADIENT, rows, classes, 0, arrays, tail)


def _give_up_every(noise: Noise, error: Exception) -> None:
    give_up(SOFTMAX if noise.key == GUMBEL else OPERATION, "cpu", error)


class _Every(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, scale: Tensor, noise: Noise) -> Tensor:
        z, sigma = scores.contiguous(), scale.contiguous()
        log_p, saved, left = torch.empty_like(z), list[Tensor](), None
        try:
            bad, left = _by_kernel(z, sigma, noise, log_p, saved)
        except Exception as error:  # whatever it is, there is another way, and the user learns of it
            _give_up_every(noise, error)
            bad, left = False, torch.ones(len(z), dtype=torch.bool)
        if bad:
            check_score_values(z)
        if left is not None:
            if len(saved):
                record_rows(OPERATION, "cpu", int(left.sum()), z.shape[-1])
            log_p[left] = _plain(*_rows_of(left, z, sigma), noise)
        ctx.noise, ctx.left = noise, left
        ctx.save_for_backward(scores, scale, log_p, *saved)
        return log_p

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, scale, log_p, *saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # create_graph=True
            return *_differentiated(_plain(scores, scale, ctx.noise), (scores, scale), upstream, needed), None
        grad, left = torch.zeros_like(log_p), ctx.left
        if left is None or not left.all():
            try:
                _gradient_by_kernel(scores, scale, ctx.noise, upstream, log_p, saved, grad)
            except Exception as error:  # as in forward
                _give_up_every(ctx.noise, error)
                left = torch.ones(len(grad), dtype=torch.bool)
        if left is not None:
            z, sigma = _rows_of(left, scores, scale)
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                grad[left] = torch.autograd.grad(_plain(leaf, sigma, ctx.noise), leaf, upstream[left])[0]
        return grad, scale_gradient(grad, scores, scale) if needed[1] else None, None


def _rows_and_gradient(
    scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, ignored: int, rank: int, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """log P(the target is among the ``rank`` highest) and its gradient in the scores, (0,) if it is not asked for."""
    rows, classes = scores.shape
    z = scores.contiguous()
    if noise.key == LAPLACE and rank == 1 and z.dtype != torch.float64:
        results = _rows_and_gradient(z.double(), target, scale.double(), noise, ignored, rank, differentiate)
        return results[0].to(z.dtype), results[1].to(z.dtype)
    gumbel, log_p = noise.key == GUMBEL and rank == 1, z.new_empty(rows)
    grad = torch.empty_like(z) if differentiate else z.new_empty(0)
    arrays = {"scores": z, "target": target.contiguous(), "scale": scale.contiguous(), "log_p": log_p, "grad": grad}
    left = None
    try:
        precision = _precision(z)
        kernels = _kernels(precision)
        if gumbel:
            bad, unserved = _run(kernels.target_team, kernels.TARGET, rows, classes, ignored, arrays)
        else:
            arrays["records"] = records = torch.empty(rows, COLUMNS, dtype=torch.int32)
            tail = None
            if noise.key == LAPLACE:
                team, layout = kernels.laplace_team, kernels.LAPLACE
            elif rank == 1:
                team, layout = kernels.one_pass_team, kernels.ONE_PASS
                tail = _tail(precision, "ONE_PASS", one_pass_arrays, noise.key, classes)[0]
            else:
                team, layout = kernels.topk_team, kernels.TOPK
                tail = _tail(precision, "TOPK", topk_arrays, noise.key, classes, rank)[0]
            bad, unserved = _run(team, layout, rows, classes, ignored, arrays, tail)
        if unserved:
            left = records[:, STATUS] == UNSERVED
    except Exception as error:  # whatever it is, there is another way, and the user learns of it
        give_up(TOPK if rank > 1 else SOFTMAX if gumbel else TARGET, "cpu", error)
        record("closed form" if gumbel else "reference")
        bad, left, grad = True, target != ignored, torch.zeros_like(z)
        log_p.zero_()
    if bad:
        check_target_values(target, classes, ignored)
        check_score_values(z[target != ignored])
    if left is not None:
        if not bad:
            record_rows(TOPK if rank > 1 else TARGET, "cpu", int(left.sum()), classes)
        _by_plain_torch(left, z, target, scale, noise, rank, log_p, grad)
    return log_p, grad


class _Target(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, ignored: int, rank: int) -> Tensor:
        log_p, grad = _rows_and_gradient(scores, target, scale, noise, ignored, rank, any(ctx.needs_input_grad))
        ctx.noise, ctx.ignored, ctx.rank = noise, ignored, rank
        ctx.save_for_backward(scores, target, scale, grad)
        return log_p

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, scale, grad = ctx.saved_tensors
        needed = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        if torch.is_grad_enabled():  # create_graph=True
            keep = target != ctx.ignored
            z, sigma = _rows_of(keep, scores, scale)
            log_p = _plain_of_target(z, target[keep], sigma, ctx.noise, ctx.rank)
            in_scores, in_scale = _differentiated(log_p, (scores, scale), upstream[keep], needed)
            return in_scores, None, in_scale, None, None, None
        in_scores = grad * upstream.unsqueeze(-1)
        return in_scores, None, scale_gradient(in_scores, scores, scale) if needed[1] else None, None, None, None


class _Loss(torch.autograd.Function):
    """As ``_Target`` and ``BatchLoss.of``, in one: the gradient of the loss is made with the loss."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, ignored: int, batch_loss: BatchLoss
    ) -> Tensor:
        log_p, grad = _rows_and_gradient(scores, target, scale, noise, ignored, 1, any(ctx.needs_input_grad))
        keep = target != ignored
        if grad.numel():
            share = 1 / max(int(keep.sum()), 1) if batch_loss.mean else 1.0
            if batch_loss.q == 1:
                grad *= -share
            else:
                grad *= ((1 - batch_loss.q) * log_p).exp_().mul_(-share).unsqueeze(-1)
        ctx.noise, ctx.ignored, ctx.batch_loss = noise, ignored, batch_loss
        ctx.save_for_backward(scores, target, scale, grad)
        return batch_loss.of(log_p, keep)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, scale, grad = ctx.saved_tensors
        needed = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        if torch.is_grad_enabled():  # create_graph=True
            keep = target != ctx.ignored
            z, sigma = _rows_of(keep, scores, scale)
            loss = ctx.batch_loss.of(_plain_of_target(z, target[keep], sigma, ctx.noise, 1), keep)
            in_scores, in_scale = _differentiated(loss, (scores, scale), upstream, needed)
            return in_scores, None, in_scale, None, None, None
        in_scores = grad if upstream == 1 else grad * upstream
        return in_scores, None, scale_gradient(in_scores, scores, scale) if needed[1] else None, None, None, None


def _plain_of_target(scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, rank: int) -> Tensor:
    """log P(the target is among the ``rank`` highest) by plain torch, differentiable twice."""
    z = (scores - scores.detach().amax(-1, keepdim=True)) / scale.unsqueeze(-1)
    if noise.key == GUMBEL and rank == 1:
        return noise.closed_form_log_probs(z).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return reference.log_prob(z, target, noise, rank)


def _by_plain_torch(
    left: Tensor, scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, rank: int, log_p: Tensor, grad: Tensor
) -> None:
    """Write log p of the rows that are left, (rows,) bool, and its gradient unless ``grad`` is empty."""
    z, sigma = _rows_of(left, scores, scale)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = _plain_of_target(leaf, target[left], sigma.detach(), noise, rank)
        log_p[left] = value.detach()
        if grad.numel():
            grad[left] = torch.autograd.grad(value.sum(), leaf)[0]
