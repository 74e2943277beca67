r"""log P(the target wins) of classes that lie on several ranks, as a tensor-parallel last layer leaves them (A27).

No score crosses the network. With B rows a call exchanges

    a header of 8 integers                          sizes, values that all ranks must share, and the state of the rank's input;
    3 B numbers, by their maximum                   the strongest rival, the target's own score, and whether NaN or +inf occurs;
    B · (thresholds) numbers, by their sum          Σ_j log F(u − z_j), see ``sharded.plain`` (Gumbel noise: B numbers);
    2 B numbers, by their sum, in backward          the gradients in the target's own score and in the scale.

Errors are exchanged first: either every rank raises, or none. The number and the sizes of collectives follow from numbers that
all ranks know, since no rank may wait for a collective that another rank never enters.
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
FINE, TYPE_ERROR, VALUE_ERROR, OTHER = 0, 1, 2, 3  # states of a rank's input; numbers, since a header holds integers
ERRORS: tuple[type[Exception], ...] = (RuntimeError, TypeError, ValueError, RuntimeError)  # of each state; FINE raises none
# The 8 integers of a header: the state; the rank's classes; rows; a place in DTYPES; which of scores (1) and scale (2) need a
# gradient; checksums of the target and of the options; and whether the rank has kernels.
HEADER = ("state", "classes", "rows", "dtype", "gradients", "target", "options", "kernel")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # a header has the place of the scores' dtype


class Problem(NamedTuple):
    """The arguments of ``_Value`` beside tensors."""

    noise: Noise
    ignored: int | None  # the target of a row that does not count
    margin: float | None  # the cap of the lead, in units of the scores
    group: ProcessGroup
    offset: int  # the global index of this rank's first class
    classes: int  # the number of classes of all ranks
    shape: torch.Size  # the target's shape, for messages
    fast: bool  # whether the kernels serve on every rank


def check_group(group: Any, noise: Noise) -> None:
    """Refuse all but a process group of this process, and noise with kinks.

    Callers do not pass None, which means unsharded. ``torch.distributed.group.WORLD`` is None before ``init_process_group``.

    Raises:
        TypeError: ``group`` is no process group.
        ValueError: torch.distributed is not initialised; this process is not in the group; noise with kinks.
    """
    groups.check_group(group, "class_group")
    if noise.kinks:
        raise ValueError(
            f"noise: expected one without kinks for classes on several ranks, got {noise.name!r}, whose kinks every rank "
            "would have to know; use normal, gumbel, logistic or studentt, or gather the scores"
        )


def size(group: ProcessGroup) -> int:
    """The number of ranks of the group."""
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
    """log P(the target wins), with the classes spread over ranks; ``functional.argmax_log_prob`` defines the probability.

    Args:
        inputs: a function that gives this rank's scores (…, C_r), floating point, and global targets (…), integers. If the
            function raises on one rank, every rank raises.
        noise: the distribution of ε, without kinks.
        scale: σ > 0, in units of the scores, the same on every rank: a number, or a tensor that broadcasts to
            ``scores[..., :1]``.
        margin: as in ``functional.argmax_log_prob``.
        ignored: a target whose row gives 0, without a gradient.
        group: two ranks or more.
        weights: the number of class weights, which must be the number of classes of all ranks; None without weights.

    Returns:
        (…) log-probabilities in nats, dtype of the scores, the same on every rank; differentiable once.

    Raises:
        TypeError, ValueError: ``inputs`` or an argument is bad on some rank, or ranks disagree.
        NotImplementedError: under torch.compile.

    Cost: O(rows · C_r · thresholds) time on each rank; the module lists the numbers exchanged.
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
    except Exception as caught:  # any exception, since the other ranks must not wait for this rank
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
    """Whether the kernels serve on this rank. Compiles the kernels, lest other ranks wait in a collective meanwhile."""
    if choose(OPERATION, KERNELS, z, noise.key) != "cpu":
        return False
    try:
        sharded_rows.kernels()
    except Exception as error:  # any exception, since plain torch serves as well; ``give_up`` warns the user
        give_up(OPERATION, "cpu", error)
        return False
    return True


def _agreed(header: dict[str, int], error: Exception | None, group: ProcessGroup) -> tuple[list[int], list[int]]:
    """From each rank's header "classes" and "kernel". Raises on all ranks if one has an error, or if headers disagree."""
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
    """The sum ("SUM") or the maximum ("MAX") of x over the ranks; x is overwritten."""
    import torch.distributed as dist

    dist.all_reduce(x, op=getattr(dist.ReduceOp, operation), group=group)
    return x


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, target: Tensor, scale: Tensor, problem: Problem) -> Tensor:
        shard = _Shard.of(scores, target, scale, problem)
        noise, plain_rows = problem.noise, shard.open_rows
        log_p = torch.zeros_like(shard.own_score).masked_fill_(shard.lost_rows, -math.inf)
        saved: list[Tensor] = []

        def total(x: Tensor) -> Tensor:
            return _reduce(x, problem.group)

        if problem.fast:
            top, sigma = shard.top.float(), shard.sigma.contiguous()
            found, *saved = sharded_rows.log_prob(
                shard.lifted_scores(), shard.target_code, top, shard.own_score, sigma, noise, problem.classes, plain_rows, total
            )
            log_p = torch.where(plain_rows, found, log_p)
            plain_rows = saved[1][:, STATUS] == UNSERVED
        if plain_rows.any():  # all ranks have the same rows here, so all ranks enter the collectives
            rivals = shard.rivals(plain_rows)
            highest = ((shard.top - shard.own_score) / shard.sigma)[plain_rows]
            if type(noise) is Gumbel:
                log_rest = total((rivals - highest.unsqueeze(-1)).exp().sum(-1)).log() + highest
                log_p[plain_rows] = torch.nn.functional.logsigmoid(-log_rest)
                saved += [log_rest]
            else:
                log_p[plain_rows], *nodes = sharded.log_prob(rivals, highest, noise, scores.dtype, total)
                saved += nodes
        ctx.problem = problem
        ctx.save_for_backward(scores, target, scale, shard.top, shard.own_score, plain_rows, *saved)
        return log_p.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "class_group: expected first derivatives only, got create_graph=True; gather the scores for second derivatives"
            )
        scores, target, scale, top, own, plain_rows, *saved = ctx.saved_tensors
        problem: Problem = ctx.problem
        shard = _Shard(scores, target, scale, top, own, problem)
        noise, all_rows = problem.noise, torch.ones_like(plain_rows)
        # The sum over rivals of the gradient in the scores, and the gradient in the scale
        sums = torch.zeros(2, len(scores), dtype=torch.float64, device=scores.device)
        if problem.fast:
            weights, where, *saved = saved
            grad, sums[0] = sharded_rows.gradient(
                shard.lifted_scores(), shard.target_code, top.float(), shard.sigma.contiguous(), noise, upstream, weights, where
            )
            if ctx.needs_input_grad[2]:
                sums[1] = shard.scale_gradient(grad, all_rows)
            if problem.margin is not None:
                grad *= shard.margin_share(all_rows)
                sums[0] = grad.sum(-1, dtype=torch.float64)
        else:
            grad = torch.zeros_like(scores, memory_format=torch.contiguous_format)
        if saved:
            rivals = shard.rivals(plain_rows)
            if type(noise) is Gumbel:
                part = -torch.sigmoid(saved[0]).unsqueeze(-1) * (rivals - saved[0].unsqueeze(-1)).exp()
            else:
                part = sharded.gradient(rivals, saved[0], saved[1], noise)
            part *= (upstream[plain_rows].double() / shard.sigma[plain_rows]).unsqueeze(-1)
            if ctx.needs_input_grad[2]:
                sums[1, plain_rows] = shard.scale_gradient(part, plain_rows)
            if problem.margin is not None:
                part *= shard.margin_share(plain_rows)
            sums[0, plain_rows] = part.sum(-1)
            grad[plain_rows] = part.to(grad.dtype)
        _reduce(sums, problem.group)
        rows = shard.target_rows
        grad[rows, shard.target_place[rows]] = -sums[0, rows].to(grad.dtype)
        scale_gradient = sums[1].to(scale.dtype)
        return grad, None, scale_gradient if scale.shape == scale_gradient.shape else scale_gradient.sum(-1, keepdim=True), None


class _Shard(NamedTuple):
    """This rank's classes, and the numbers of each row that all ranks share."""

    scores: Tensor  # (B, C_r) float32 or float64
    target: Tensor  # (B,) int64, global indices
    scale: Tensor  # (B,) or (1,), dtype of the scores, in units of the scores
    top: Tensor  # (B,) float64, the score of the strongest rival of all ranks; 0 in ignored rows
    own_score: Tensor  # (B,) float64, the target's score; 0 in ignored rows
    problem: Problem

    @classmethod
    def of(cls, scores: Tensor, target: Tensor, scale: Tensor, problem: Problem) -> _Shard:
        """The shard, after ranks exchanged ``top`` and ``own_score``. Raises ValueError on every rank for a bad score."""
        shard = cls(scores, target, scale, scores.new_empty(0), scores.new_empty(0), problem)
        index = shard.target_place.unsqueeze(-1)
        own = torch.where(shard.target_rows, scores.gather(-1, index).squeeze(-1), -math.inf)
        if problem.fast:
            top, state = sharded_rows.survey(scores.contiguous(), shard.target_code)
            worst = torch.maximum(own, torch.where(state == 2, math.nan, torch.where(state == 1, math.inf, top)))
        else:
            without_target = torch.where(shard.target_rows.unsqueeze(-1), -math.inf, scores.gather(-1, index))
            top = scores.scatter(-1, index, without_target).amax(-1)
            worst = torch.maximum(top, own)  # NaN if either is NaN
        state = torch.where(worst.isnan(), 2, worst.isposinf())
        counted = shard.counted_rows
        # Without NaN, since libraries for collectives disagree on a maximum with NaN
        finite = torch.where(counted & (state == 0), torch.stack([top, own]).double(), 0.0)
        top, own, state = _reduce(torch.cat([finite, (state * counted).unsqueeze(0)]), problem.group, "MAX").unbind()
        highest = torch.where(state == 2, math.nan, torch.where(state == 1, math.inf, torch.maximum(top, own)))
        check_score_values(highest.cpu().view(problem.shape).unsqueeze(-1))
        shard = shard._replace(top=top, own_score=own)
        return shard if problem.margin is None else shard._replace(top=torch.maximum(top, shard.floor))

    @property
    def counted_rows(self) -> Tensor:
        """(B,) bool, rows that are not ignored."""
        return (
            torch.ones_like(self.target, dtype=torch.bool)
            if self.problem.ignored is None
            else self.target != self.problem.ignored
        )

    @property
    def target_rows(self) -> Tensor:
        """(B,) bool, rows that count and whose target is one of this rank's classes."""
        local = self.target - self.problem.offset
        return self.counted_rows & (local >= 0) & (local < self.scores.shape[1])

    @property
    def target_place(self) -> Tensor:
        """(B,) int64, the target's place among this rank's classes; some class in rows outside ``target_rows``."""
        return (self.target - self.problem.offset).clamp(0, self.scores.shape[1] - 1)

    @property
    def sigma(self) -> Tensor:
        """(B,) float64, the scale of each row, in units of the scores."""
        return self.scale.double().expand(len(self.target))

    @property
    def lost_rows(self) -> Tensor:
        """(B,) bool, rows with p = 0: the target is removed, or the target's lead in scales is −inf in float64."""
        return self.counted_rows & (((self.own_score - self.top) / self.sigma).isneginf() | self.own_score.isneginf())

    @property
    def open_rows(self) -> Tensor:
        """(B,) bool, rows that need an integral: rows that count, are not lost, and have a rival."""
        return self.counted_rows & ~self.lost_rows & ~self.top.isneginf()

    @property
    def target_code(self) -> Tensor:
        """(B,) int64, ``target_place``; ELSEWHERE if another rank has the target, SKIPPED in ignored rows."""
        without_place = torch.where(self.counted_rows, sharded_rows.ELSEWHERE, sharded_rows.SKIPPED)
        return torch.where(self.target_rows, self.target_place, without_place)

    @property
    def floor(self) -> Tensor:
        """(B,) float64, the least score of a rival under the margin, rounded to the scores' dtype; −inf without a margin."""
        if self.problem.margin is None:
            return torch.full_like(self.own_score, -math.inf)
        return (self.own_score.to(self.scores.dtype) - self.problem.margin).double()

    def lifted_scores(self) -> Tensor:
        """(B, C_r) scores, contiguous, with scores below ``floor`` raised to ``floor``."""
        if self.problem.margin is None:
            return self.scores.contiguous()
        return torch.maximum(self.scores, self.floor.to(self.scores.dtype).unsqueeze(-1)).contiguous()

    def rivals(self, rows: Tensor) -> Tensor:
        """(rows, C_r) float64, the rivals' scores less the target's, in units of the noise; −inf at the target."""
        z = torch.maximum(self.scores[rows].double(), self.floor[rows].unsqueeze(-1))
        z = (z - self.own_score[rows].unsqueeze(-1)) / self.sigma[rows].unsqueeze(-1)
        classes = torch.arange(self.problem.offset, self.problem.offset + self.scores.shape[1], device=z.device)
        return z.masked_fill_(classes == self.target[rows].unsqueeze(-1), -math.inf)

    def margin_share(self, rows: Tensor) -> Tensor:
        """(rows, C_r) the derivative of max(score, floor) in the score: 1 above the floor, 0 below, ½ at it, as in torch."""
        floor, z = self.floor[rows].to(self.scores.dtype).unsqueeze(-1), self.scores[rows]
        return torch.where(z == floor, 0.5, (z > floor).to(z.dtype))

    def scale_gradient(self, grad: Tensor, rows: Tensor) -> Tensor:
        """(rows,) this rank's part of the gradient in σ: −Σ_j g_j (z_j − z_y) / σ, with g_j the gradient in the rival z_j."""
        return -torch.where(grad == 0, 0.0, grad * self.rivals(rows)).sum(-1)  # 0 · −inf of a removed class would be nan
