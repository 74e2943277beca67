"""Rows on the CPU with one target each: log P(the target is among the k best), with its gradient in one pass.

Functions of torch.autograd for eager mode. Second derivatives are those of plain torch: of the reference, or of the formula of
Gumbel noise. Under a transform of torch.func, and compiled, plain torch or the operators of ``custom_op`` stand in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith.engine.argmax import reference
from lossmith.engine.argmax.autograd import NO_TARGET, TURNS, log_prob, scale_gradient
from lossmith.engine.argmax.dispatch import CPU, CUDA, DOUBLE_KERNELS
from lossmith.engine.argmax.dispatch import KERNELS as TARGET_KERNELS
from lossmith.engine.argmax.dispatch import OPERATION as TARGET
from lossmith.engine.argmax.kernels.record import CLASSES_PER_THREAD, COLUMNS, LEAST_DF, MOST_DF, STATUS, UNSERVED
from lossmith.engine.argmax.kernels.tables import DOUBLE, SINGLE, Precision, has_odds, one_pass_arrays, topk_arrays
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

TOPK = "topk_log_prob"
LOWEST = {torch.float32: -120.0, torch.float64: -800.0}  # exp of less is 0, and so is its product with a lead
GUMBEL, SOFTMAX = "gumbel", "softmax"  # the noise, and what its kernels compute


def _topk_obstacle(scores: Tensor, noise: str) -> str:
    return CPU.obstacle(scores, noise) or (
        "" if has_odds(noise) else "its odds have no tables; take normal, logistic or Gumbel noise"
    )


PANEL_KERNELS = (CUDA, Kernel("cpu", CPU.devices, (torch.float32, torch.float64)), REFERENCE)
TOPK_KERNELS = (Kernel("cpu", CPU.devices, CPU.dtypes, _topk_obstacle), REFERENCE)


class BatchLoss(NamedTuple):
    """The loss of all rows: Σ −log_q(p) (N6), divided by the number of rows that count if ``mean``."""

    q: float
    mean: bool

    def floor(self, dtype: torch.dtype) -> float:
        """A log p below which neither the loss nor its gradient changes: p^(1−q) is 0 in floating point."""
        return LOWEST[dtype] / (1 - self.q) if self.q < 1 else -math.inf

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
    plain = is_plain(*(x for x in (scores, target, scale) if isinstance(x, Tensor)))
    softmax = plain and noise.key == GUMBEL and softmax_serves(scores)
    panels = plain and bool(_panels(noise.key)) and choose(TARGET, PANEL_KERNELS, scores, noise.key) == "cpu"
    closed = classes <= noise.closed_form_classes and not softmax and not panels
    if closed and plain and noise.key == "normal" and choose(TARGET, _target_kernels(scores), scores, noise.key) == "cpu":
        closed = False  # one pass of the kernel costs a third of the formula's operators and their derivatives
    if closed:  # else the kernel or the reference looks at the target's values
        check_target_values(target, classes, ignored)
    if margin is not None:
        own = scores.gather(-1, index.clamp(0, classes - 1).unsqueeze(-1))
        scores = torch.maximum(scores, own - margin)
    if closed:
        log_p = _by_formula(scores, index, noise, scale, ignored)
        return log_p if batch_loss is None else batch_loss.of(log_p, index != ignored)
    sigma = flat_scale(scale, scores)
    rows = scores if scores.dim() == 2 else scores.reshape(-1, classes)
    index = index.flatten()
    try:
        if softmax or panels or (plain and choose(TARGET, _target_kernels(rows), rows, noise.key) == "cpu"):
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


def softmax_serves(scores: Tensor) -> bool:
    """Whether the kernels of Gumbel noise serve plain scores."""
    return scores.dtype == torch.float32 and scores.device.type == "cpu" and (SOFTMAX, "cpu") not in broken


@lru_cache(maxsize=64)
def _panels(noise: str) -> str:
    """For a ``Noise.key``, the name of the kernel by panels for log P(the target wins), empty if there is none."""
    name, _, df = noise.partition(":")
    if name == "studentt":
        return "student" if LEAST_DF <= float(df) <= MOST_DF else ""
    return name if name in ("laplace", "uniform", "exponential") else ""


def _law(noise: str, single: bool) -> dict[str, NDArray[np.float64]]:
    """What the kernels by panels take of the noise with that ``Noise.key``: the layout's ``law``."""
    name, _, df = noise.partition(":")
    if name != "studentt":
        return {"law": np.empty(0)}
    from lossmith.engine.argmax.kernels.student import law_of

    return {"law": np.append(law_of(float(df)), float(single))}


def _target_kernels(scores: Tensor) -> tuple[Kernel, ...]:
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


def serves_topk(scores: Tensor, target: Tensor, scale: float | Tensor, noise: Noise) -> bool:
    """Whether ``target_log_prob`` serves these scores (rows, C) for more than one rank; see ``serves``."""
    plain = is_plain(*(x for x in (scores, target, scale) if isinstance(x, Tensor)))
    return plain and choose(TOPK, TOPK_KERNELS, scores, noise.key, bearable=64) == "cpu"


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


def _rows_and_gradient(
    scores: Tensor,
    target: Tensor,
    scale: Tensor,
    noise: Noise,
    ignored: int,
    rank: int,
    differentiate: bool,
    floor: float = -math.inf,
) -> tuple[Tensor, Tensor]:
    """log P(the target is among the ``rank`` highest) and its gradient in the scores, (0,) if it is not asked for.

    Below ``floor`` an upper bound of log p, and a gradient of 0, may stand for them.
    """
    rows, classes = scores.shape
    single = scores.dtype != torch.float64
    panels = _panels(noise.key) if rank == 1 else ""
    z, sigma = (scores.double(), scale.double()) if panels else (scores, scale)
    z, sigma = z.contiguous(), sigma.contiguous()
    gumbel, log_p = noise.key == GUMBEL and rank == 1, z.new_empty(rows)
    grad = torch.empty_like(z) if differentiate else z.new_empty(0)
    arrays = {"scores": z, "target": target.contiguous(), "scale": sigma, "log_p": log_p, "grad": grad}
    left = None
    try:
        precision = None if panels else precision_of(z)
        kernels = kernels_of(precision)
        if gumbel:
            bad, unserved = run(kernels.target_team, kernels.TARGET, rows, classes, ignored, arrays)
        else:
            arrays["records"] = records = torch.empty(rows, COLUMNS, dtype=torch.int32)
            if panels:
                team, layout = getattr(kernels, f"{panels}_team"), kernels.PANELS
                tail = tail_of(precision, "PANELS", _law, noise.key, single)[0]
            elif rank == 1:
                team, layout = kernels.one_pass_team, kernels.ONE_PASS
                tail = tail_of(precision, "ONE_PASS", one_pass_arrays, noise.key, classes)[0]
            else:
                team, layout = kernels.topk_team, kernels.TOPK
                tail = tail_of(precision, "TOPK", topk_arrays, noise.key, classes, rank)[0]
            bad, unserved = run(team, layout, rows, classes, ignored, arrays, tail)
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
    if left is not None and floor > -math.inf and not bad:
        left = _still_left(left, z, target, sigma, noise, floor, log_p, grad)
    if left is not None and bool(left.any()):
        if not bad and (rank > 1 or classes > noise.closed_form_classes):
            record_rows(TOPK if rank > 1 else TARGET, "cpu", int(left.sum()), classes)
        _by_plain_torch(left, z, target, sigma, noise, rank, log_p, grad)
    return log_p.to(scores.dtype), grad.to(scores.dtype)


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
            z, sigma = rows_of(keep, scores, scale)
            log_p = _plain_of_target(z, target[keep], sigma, ctx.noise, ctx.rank)
            in_scores, in_scale = differentiated(log_p, (scores, scale), upstream[keep], needed)
            return in_scores, None, in_scale, None, None, None
        in_scores = grad * upstream.unsqueeze(-1)
        return in_scores, None, scale_gradient(in_scores, scores, scale) if needed[1] else None, None, None, None


class _Loss(torch.autograd.Function):
    """As ``_Target`` and ``BatchLoss.of``, in one: the gradient of the loss is made with the loss."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, ignored: int, batch_loss: BatchLoss
    ) -> Tensor:
        needed, floor = any(ctx.needs_input_grad), batch_loss.floor(scores.dtype)
        log_p, grad = _rows_and_gradient(scores, target, scale, noise, ignored, 1, needed, floor)
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
            z, sigma = rows_of(keep, scores, scale)
            loss = ctx.batch_loss.of(_plain_of_target(z, target[keep], sigma, ctx.noise, 1), keep)
            in_scores, in_scale = differentiated(loss, (scores, scale), upstream, needed)
            return in_scores, None, in_scale, None, None, None
        in_scores = grad if upstream == 1 else grad * upstream
        return in_scores, None, scale_gradient(in_scores, scores, scale) if needed[1] else None, None, None, None


def _plain_of_target(scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, rank: int) -> Tensor:
    """log P(the target is among the ``rank`` highest) by plain torch, differentiable twice."""
    z = (scores - scores.detach().amax(-1, keepdim=True)) / scale.unsqueeze(-1)
    if rank == 1 and scores.shape[-1] <= noise.closed_form_classes:
        return noise.closed_form_log_probs(z).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return reference.log_prob(z, target, noise, rank)


def _still_left(
    left: Tensor, scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, floor: float, log_p: Tensor, grad: Tensor
) -> Tensor:
    """The rows of ``left``, (rows,) bool, whose log p may be above ``floor``; the others' bound and gradient 0 are written.

    The bound is that of two classes: the target wins no more often than it beats its strongest rival.
    """
    if noise.closed_form_classes < 2:
        return left
    z, sigma = rows_of(left, scores, scale)
    place = target[left].unsqueeze(-1)
    lead = (z.gather(-1, place) - z.scatter(-1, place, -torch.inf).amax(-1, keepdim=True)) / sigma.unsqueeze(-1)
    lead = lead.clamp(max=0.0)
    bound = noise.closed_form_log_probs(torch.cat([lead, torch.zeros_like(lead)], -1))[:, 0]
    lost = torch.zeros_like(left)
    lost[left] = bound < floor
    log_p[lost] = bound[bound < floor]
    if grad.numel():
        grad[lost] = 0.0
    return left & ~lost


def _by_plain_torch(
    left: Tensor, scores: Tensor, target: Tensor, scale: Tensor, noise: Noise, rank: int, log_p: Tensor, grad: Tensor
) -> None:
    """Write log p of the rows that are left, (rows,) bool, and its gradient unless ``grad`` is empty."""
    z, sigma = rows_of(left, scores, scale)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = _plain_of_target(leaf, target[left], sigma.detach(), noise, rank)
        log_p[left] = value.detach()
        if grad.numel():
            grad[left] = torch.autograd.grad(value.sum(), leaf)[0]


# Calls of kernels, here and for every class


def flat_scale(scale: float | Tensor, scores: Tensor) -> Tensor:
    """The scale as ``log_probs`` and ``target_log_prob`` take it, (1,) or (rows,), from a number or a tensor (…, 1)."""
    return scale.reshape(-1) if isinstance(scale, Tensor) else scores.new_full((1,), scale)


@lru_cache(maxsize=3)
def kernels_of(precision: Precision | None) -> Any:
    """The module with its team functions, None: those by panels. Each is compiled at its first use, and kept on disk."""
    with announced():
        if precision is None:
            from lossmith.engine.argmax.kernels import panels_entry

            return panels_entry
        if precision is DOUBLE:
            from lossmith.engine.argmax.kernels import double_entry

            return double_entry
        from lossmith.engine.argmax.kernels import every_entry
    return every_entry


def precision_of(scores: Tensor) -> Precision:
    """The one whose kernels take these scores."""
    return DOUBLE if scores.dtype == torch.float64 else SINGLE


@lru_cache(maxsize=256)
def tail_of(
    precision: Precision | None, layout: str, make: Callable[..., dict[str, NDArray[Any]]], *call: Any
) -> tuple[NDArray[np.int64], Any]:
    """The last part of a job of that layout, and the arrays to keep alive for it, which ``make`` gives for the call."""
    arrays = make(*call, precision) if precision is DOUBLE else make(*call)
    return getattr(kernels_of(precision), layout).tail(arrays), arrays


def run(
    function: Any, layout: Any, rows: int, classes: int, ignored: int, arrays: dict[str, Tensor], tail: Any = None
) -> tuple[bool, bool]:
    """Run a team function on all rows: whether a row was bad, and whether one is left to the reference."""
    size = max(1, min(torch.get_num_threads(), rows, rows * (classes + 64) // CLASSES_PER_THREAD))
    numbers = {"turn": -(-rows // (TURNS * size)), "rows": rows, "classes": classes, "ignored": ignored}
    job = layout.job(numbers, arrays, tail)
    run_team(function.ctypes, function.address, job.ctypes.data, size)
    return bool(job[layout.numbers.bad]), bool(job[layout.numbers.unserved])


def rows_of(mask: Tensor, scores: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The rows under ``mask`` of scores, and of a scale that has a number for each row."""
    return scores[mask], scale[mask] if len(scale) > 1 else scale


def differentiated(value: Tensor, leaves: tuple[Tensor, ...], upstream: Tensor, needed: tuple[bool, ...]) -> tuple[Any, ...]:
    """upstream · value differentiated in the leaves that need it, with a graph."""
    asked = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
    parts = iter(torch.autograd.grad(value, asked, upstream, create_graph=True))
    return tuple(next(parts) if need else None for need in needed)
