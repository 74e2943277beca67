r"""log P(the target wins) where the classes lie on several ranks, as a tensor-parallel last layer leaves them.

No score crosses the network. With B rows a call exchanges

    a header of 8 integers                          sizes, what must be the same everywhere, and whether a rank's input is bad;
    3 B numbers, by their maximum                   the strongest rival, the target's own score, NaN or +inf;
    B · (thresholds) numbers, by their sum          Σ_j log F(u − z_j), see ``sharded.plain`` (Gumbel noise: B numbers);
    2 B numbers, by their sum, in backward          the gradients of the target's own score and of the scale.

Errors are exchanged before anything else: either every rank raises, or none. The numbers of collectives and their sizes follow
from what all ranks know, so that none waits for another in vain.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lossmith.engine.argmax.dispatch import KERNELS, OPERATION
from lossmith.engine.argmax.kernels.record import STATUS, UNSERVED
from lossmith.engine.argmax.sharded import exchange as sharded_rows
from lossmith.engine.argmax.sharded import plain as sharded
from lossmith.engine.runtime.select import choose, give_up, record
from lossmith.inputs import (
    check_score_values,
    check_scores,
    check_target_type,
    check_target_values,
    checked_scale,
    compute_type,
)
from lossmith.noise import Gumbel, Noise, identity
from lossmith.parallel import samples as groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Inputs = Callable[[], tuple[Tensor, Tensor]]
FINE, TYPE_ERROR, VALUE_ERROR, OTHER = 0, 1, 2, 3  # the state of a rank's input
ERRORS: tuple[type[Exception], ...] = (RuntimeError, TypeError, ValueError, RuntimeError)
HEADER = ("state", "classes", "rows", "dtype", "gradients", "target", "options", "kernel")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Problem(NamedTuple):
    """What the function of autograd needs beside tensors."""

    noise: Noise
    ignored: int | None
    margin: float | None
    group: ProcessGroup
    offset: int  # of this rank's first class
    classes: int  # on all ranks
    shape: torch.Size  # of the target, for messages
    fast: bool  # by the kernels, on every rank


def check_group(group: Any, noise: Noise) -> None:
    """Refuse what is no process group of this process, and noise whose sums at thresholds do not suffice.

    Raises:
        TypeError: no process group.
        ValueError: torch.distributed is not initialised; this process is not in the group; noise with kinks.

    None never comes here: it means unsharded, and so does ``torch.distributed.group.WORLD`` before ``init_process_group``,
    which is None until then.
    """
    groups.check_group(group, "class_group")
    if noise.kinks:
        raise ValueError(
            f"noise: expected one without kinks for classes on several ranks, got {noise.name!r}, whose kinks every rank "
            "would have to know; use normal, gumbel, logistic or studentt, or gather the scores"
        )


def size(group: ProcessGroup) -> int:
    """Ranks of the group."""
    return group.size()


def argmax_log_prob(
    inputs: Inputs,
    noise: Noise,
    scale: float | Tensor,
    margin: float | None,
    ignored: int | None,
    group: ProcessGroup,
    weights: int | None = None,
) -> Tensor:
    """log P(the target wins) from this rank's classes; ``functional.argmax_log_prob`` says what it is.

    Args:
        inputs: makes this rank's scores (…, C_r) and targets (…), or raises; then every rank does.
        noise: the distribution of ε.
        scale: a number, or a tensor that broadcasts to ``scores[..., :1]``, the same on every rank.
        margin: as in ``functional.argmax_log_prob``.
        ignored: a target that asks for nothing.
        group: the ranks; its size is 2 or more.
        weights: how many class weights there are, which must be as many as classes.

    Returns:
        (…) log-probabilities in the scores' dtype, on every rank the same; differentiable once.
    """
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "class_group: expected eager mode, got torch.compile; compile the model without its loss, or wrap the loss "
            "in torch.compiler.disable"
        )
    error: Exception | None = None
    header = dict.fromkeys(HEADER, 0)
    try:
        scores, target = inputs()
        check_scores(scores, least=1)
        check_target_type(target, scores)
        z = compute_type(scores)
        scale = checked_scale(scale, z)
        header["kernel"] = _has_kernels(z, noise)
        sigma = z.new_full((1,), scale) if isinstance(scale, float) else scale.reshape(-1)
        header["classes"], header["rows"] = scores.shape[-1], target.numel()
        header["dtype"] = DTYPES.index(scores.dtype) if scores.dtype in DTYPES else len(DTYPES)
        header["gradients"] = torch.is_grad_enabled() * (z.requires_grad + 2 * sigma.requires_grad)
        header["target"] = zlib.crc32(target.detach().long().contiguous().cpu().numpy().tobytes())
        options = (identity(noise), margin, ignored, scale if isinstance(scale, float) else "a tensor", weights)
        header["options"] = zlib.crc32(repr(options).encode())
    except Exception as caught:  # whatever it is, the other ranks must not wait
        error = caught
        header["state"] = next((k for k in (TYPE_ERROR, VALUE_ERROR) if isinstance(caught, ERRORS[k])), OTHER)
    sizes, kernels = _agreed(header, error, group)
    classes = sum(sizes)
    if weights is not None and weights != classes:
        raise ValueError(f"weight: expected shape ({classes},), one a class of all ranks, got ({weights},)")
    check_target_values(target.cpu(), classes, ignored)
    fast = all(kernels)
    record("closed form" if type(noise) is Gumbel else "cpu" if fast else "reference")
    problem = Problem(noise, ignored, margin, group, sum(sizes[: group.rank()]), classes, target.shape, fast)
    log_p: Tensor = _Value.apply(z.reshape(-1, z.shape[-1]), target.long().flatten(), sigma, problem)  # type: ignore[no-untyped-call]
    return log_p.view_as(target).to(scores.dtype)


def _has_kernels(z: Tensor, noise: Noise) -> bool:
    """Whether the kernels serve here; they are compiled before any rank waits for a sum."""
    if choose(OPERATION, KERNELS, z, noise.key) != "cpu":
        return False
    try:
        sharded_rows.kernels()
    except Exception as error:  # whatever it is, there is another way, and the user learns of it
        give_up(OPERATION, "cpu", error)
        return False
    return True


def _agreed(header: dict[str, int], error: Exception | None, group: ProcessGroup) -> tuple[list[int], list[int]]:
    """Every rank's number of classes and kernel; raises on all ranks if one has an error, or if they do not fit together."""
    import torch.distributed as dist

    device = torch.device("cpu" if dist.get_backend(group) != "nccl" else "cuda")
    own = torch.tensor([header[name] for name in HEADER], dtype=torch.int64, device=device)
    gathered = [torch.empty_like(own) for _ in range(size(group))]
    dist.all_gather(gathered, own, group=group)
    column = dict(zip(HEADER, torch.stack(gathered).cpu().T.tolist(), strict=True))
    if any(column["state"]):
        messages: list[str | None] = [None] * size(group)
        dist.all_gather_object(messages, "" if error is None else str(error), group=group)
        rank = next(r for r, state in enumerate(column["state"]) if state)
        raise ERRORS[column["state"][rank]](f"{messages[rank]} (on rank {rank} of class_group)") from error
    for name, what in (
        ("rows", "scores: expected as many rows on every rank of class_group, got"),
        ("dtype", f"scores: expected one dtype on every rank of class_group, got {[str(d) for d in DTYPES]} by number"),
        ("gradients", "scores, scale: expected requires_grad to be the same on every rank of class_group, got"),
        ("target", "target: expected the same global class indices on every rank of class_group, got checksums"),
        (
            "options",
            "noise, scale, margin, ignore_index, weight: expected the same on every rank of class_group, got checksums",
        ),
    ):
        if len(set(column[name])) > 1:
            raise ValueError(f"{what} {column[name]}")
    return column["classes"], column["kernel"]


def _reduce(x: Tensor, group: ProcessGroup, operation: str = "SUM") -> Tensor:
    """The sum, or the maximum, over the ranks; ``x`` is overwritten."""
    import torch.distributed as dist

    dist.all_reduce(x, op=getattr(dist.ReduceOp, operation), group=group)
    return x


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, target: Tensor, scale: Tensor, problem: Problem) -> Tensor:
        shard = _Shard.of(scores, target, scale, problem)
        noise, left = problem.noise, shard.open_rows
        log_p = torch.zeros_like(shard.own).masked_fill_(shard.lost_rows, -math.inf)
        kept: list[Tensor] = []

        def total(x: Tensor) -> Tensor:
            return _reduce(x, problem.group)

        if problem.fast:
            top, sigma = shard.top.float(), shard.sigma.contiguous()
            found, *kept = sharded_rows.log_prob(
                shard.lifted(), shard.code, top, shard.own, sigma, noise, problem.classes, left, total
            )
            log_p = torch.where(left, found, log_p)
            left = kept[1][:, STATUS] == UNSERVED
        if left.any():  # on all ranks or on none
            rivals = shard.rivals(left)
            highest = ((shard.top - shard.own) / shard.sigma)[left]
            if type(noise) is Gumbel:
                log_rest = total((rivals - highest.unsqueeze(-1)).exp().sum(-1)).log() + highest
                log_p[left] = torch.nn.functional.logsigmoid(-log_rest)
                kept += [log_rest]
            else:
                log_p[left], *nodes = sharded.log_prob(rivals, highest, noise, scores.dtype, total)
                kept += nodes
        ctx.problem = problem
        ctx.save_for_backward(scores, target, scale, shard.top, shard.own, left, *kept)
        return log_p.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "class_group: expected first derivatives only, got create_graph=True; gather the scores for second derivatives"
            )
        scores, target, scale, top, own, left, *kept = ctx.saved_tensors
        problem: Problem = ctx.problem
        shard = _Shard(scores, target, scale, top, own, problem)
        noise, everywhere = problem.noise, torch.ones_like(left)
        sums = torch.zeros(2, len(scores), dtype=torch.float64, device=scores.device)  # for the target's score, for the scale
        if problem.fast:
            weights, where, *kept = kept
            grad, sums[0] = sharded_rows.gradient(
                shard.lifted(), shard.code, top.float(), shard.sigma.contiguous(), noise, upstream, weights, where
            )
            if ctx.needs_input_grad[2]:
                sums[1] = shard.in_scale(grad, everywhere)
            if problem.margin is not None:
                grad *= shard.margin_share(everywhere)
                sums[0] = grad.sum(-1, dtype=torch.float64)
        else:
            grad = torch.zeros_like(scores, memory_format=torch.contiguous_format)
        if kept:
            rivals = shard.rivals(left)
            if type(noise) is Gumbel:
                part = -torch.sigmoid(kept[0]).unsqueeze(-1) * (rivals - kept[0].unsqueeze(-1)).exp()
            else:
                part = sharded.gradient(rivals, kept[0], kept[1], noise)
            part *= (upstream[left].double() / shard.sigma[left]).unsqueeze(-1)
            if ctx.needs_input_grad[2]:
                sums[1, left] = shard.in_scale(part, left)
            if problem.margin is not None:
                part *= shard.margin_share(left)
            sums[0, left] = part.sum(-1)
            grad[left] = part.to(grad.dtype)
        _reduce(sums, problem.group)
        rows = shard.target_rows
        grad[rows, shard.place[rows]] = -sums[0, rows].to(grad.dtype)
        in_scale = sums[1].to(scale.dtype)
        return grad, None, in_scale if scale.shape == in_scale.shape else in_scale.sum(-1, keepdim=True), None


class _Shard(NamedTuple):
    """This rank's classes, with what all ranks together know of each row."""

    scores: Tensor  # (B, C_r)
    target: Tensor  # (B,) global indices
    scale: Tensor  # (B,) or (1,)
    top: Tensor  # (B,) float64, the strongest rival of all ranks
    own: Tensor  # (B,) float64, the target's score
    problem: Problem

    @classmethod
    def of(cls, scores: Tensor, target: Tensor, scale: Tensor, problem: Problem) -> _Shard:
        """With the strongest rival and the target's score exchanged, and the values of the scores checked, on every rank."""
        shard = cls(scores, target, scale, scores.new_empty(0), scores.new_empty(0), problem)
        index = shard.place.unsqueeze(-1)
        own = torch.where(shard.target_rows, scores.gather(-1, index).squeeze(-1), -math.inf)
        if problem.fast:
            top, state = sharded_rows.survey(scores.contiguous(), shard.code)
            worst = torch.maximum(own, torch.where(state == 2, math.nan, torch.where(state == 1, math.inf, top)))
        else:
            elsewhere = torch.where(shard.target_rows.unsqueeze(-1), -math.inf, scores.gather(-1, index))
            top = scores.scatter(-1, index, elsewhere).amax(-1)
            worst = torch.maximum(top, own)  # NaN wins here
        state = torch.where(worst.isnan(), 2, worst.isposinf())
        found = torch.where(shard.asked & (state == 0), torch.stack([top, own]).double(), 0.0)  # a maximum with NaN is no one's
        found = _reduce(torch.cat([found, (state * shard.asked).unsqueeze(0)]), problem.group, "MAX")
        top, own, state = found.unbind()
        highest = torch.where(state == 2, math.nan, torch.where(state == 1, math.inf, torch.maximum(top, own)))
        check_score_values(highest.cpu().view(problem.shape).unsqueeze(-1))
        shard = shard._replace(top=top, own=own)
        return shard if problem.margin is None else shard._replace(top=torch.maximum(top, shard.floor))

    @property
    def asked(self) -> Tensor:
        """(B,) rows that are not ignored."""
        return (
            torch.ones_like(self.target, dtype=torch.bool)
            if self.problem.ignored is None
            else self.target != self.problem.ignored
        )

    @property
    def target_rows(self) -> Tensor:
        """(B,) rows whose target is one of this rank's classes."""
        local = self.target - self.problem.offset
        return self.asked & (local >= 0) & (local < self.scores.shape[1])

    @property
    def place(self) -> Tensor:
        """(B,) the target among this rank's classes, or some class where it is none of them."""
        return (self.target - self.problem.offset).clamp(0, self.scores.shape[1] - 1)

    @property
    def sigma(self) -> Tensor:
        return self.scale.double().expand(len(self.target))

    @property
    def lost_rows(self) -> Tensor:
        """(B,) rows whose target is removed, or behind by more than any number."""
        return self.asked & (((self.own - self.top) / self.sigma).isneginf() | self.own.isneginf())

    @property
    def open_rows(self) -> Tensor:
        """(B,) rows with something to compute: no sure ones for want of rivals."""
        return self.asked & ~self.lost_rows & ~self.top.isneginf()

    @property
    def code(self) -> Tensor:
        """(B,) the target's place as ``sharded_rows`` wants it."""
        return torch.where(self.target_rows, self.place, torch.where(self.asked, sharded_rows.ELSEWHERE, sharded_rows.SKIPPED))

    @property
    def floor(self) -> Tensor:
        """(B,) float64: what the margin lifts scores to, as rounded in their own dtype; −inf without a margin."""
        if self.problem.margin is None:
            return torch.full_like(self.own, -math.inf)
        return (self.own.to(self.scores.dtype) - self.problem.margin).double()

    def lifted(self) -> Tensor:
        """(B, C_r) contiguous scores, none below the margin."""
        if self.problem.margin is None:
            return self.scores.contiguous()
        return torch.maximum(self.scores, self.floor.to(self.scores.dtype).unsqueeze(-1)).contiguous()

    def rivals(self, rows: Tensor) -> Tensor:
        """Scores of these rows in units of the noise, from the target's, (rows, C_r) float64; the target itself is removed."""
        z = torch.maximum(self.scores[rows].double(), self.floor[rows].unsqueeze(-1))
        z = (z - self.own[rows].unsqueeze(-1)) / self.sigma[rows].unsqueeze(-1)
        classes = torch.arange(self.problem.offset, self.problem.offset + self.scores.shape[1], device=z.device)
        return z.masked_fill_(classes == self.target[rows].unsqueeze(-1), -math.inf)

    def margin_share(self, rows: Tensor) -> Tensor:
        """Which share of a rival's gradient is its own: none of what the margin lifts, half at the very margin, as in torch."""
        floor, z = self.floor[rows].to(self.scores.dtype).unsqueeze(-1), self.scores[rows]
        return torch.where(z == floor, 0.5, (z > floor).to(z.dtype))

    def in_scale(self, grad: Tensor, rows: Tensor) -> Tensor:
        """This rank's part of the gradient in σ, (rows,), from that in its rivals: −Σ_j (∂/∂z_j) (z_j − z_y) / σ."""
        return -torch.where(grad == 0, 0.0, grad * self.rivals(rows)).sum(-1)  # a removed class, at −inf, has none
