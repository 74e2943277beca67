"""Log metrics of rankings, one for each column: a class against the rest, or a label.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lossmith.engine.ranking import columns
from lossmith.engine.runtime import custom_op as opaque
from lossmith.functional.argmax import argmax_log_prob
from lossmith.functional.ranking import expected_auc, expected_average_precision
from lossmith.inputs import is_plain
from lossmith.noise import Noise

TINY = 1e-8  # an AUC, or what it lacks, below which, the error being 1e-14, the hardest pairs are taken in log space
HARDEST = 256  # of either side
MANY = 1 << 15  # samples of a single column from which on the AUC of one ranking, whose work threads share, costs less


def log_odds(scores: Tensor) -> Tensor:
    """z_k − log Σ_{j≠k} e^{z_j} of scores z (n, C), (n, C) float64, differentiable twice; O(n · C) time and memory.

    For all but the leader, whose share is at most ½, the sum of the others is the whole sum less the class's own share; the
    leader's is summed without it, for there that difference would have no digits.
    """
    z = scores.double()
    if not is_plain(z):
        return _log_odds(z)[0]
    odds: Tensor = _LogOdds.apply(z)  # type: ignore[no-untyped-call]
    return odds


def _log_odds(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The log odds; the leader; the share of each class in Σ_j e^{z_j}; that of the leader's rivals among themselves."""
    top, leader = z.max(-1, keepdim=True)
    z = z - torch.where(top.isinf(), 0.0, top).detach()  # lest huge scores hide the logarithms of sums
    rivals = z.scatter(-1, leader, -math.inf)
    second = rivals.detach().amax(-1, keepdim=True)
    e = (rivals - torch.where(second.isinf(), 0.0, second)).exp()
    sum_of_rivals = e.sum(-1, keepdim=True)
    log_rest = sum_of_rivals.log() + torch.where(second.isinf(), 0.0, second)
    best = z.gather(-1, leader)
    log_total = torch.logaddexp(best, log_rest)
    share = (z - log_total).exp()
    odds = z - log_total - torch.log1p(-share.scatter(-1, leader, 0.0))  # the leader's odds come from its rivals
    return odds.scatter(-1, leader, best - log_rest), leader, share, e / sum_of_rivals


class _LogOdds(torch.autograd.Function):
    """As ``_log_odds``, whose backward pass takes (R28) instead of one operator after the other."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        odds, *shares = _log_odds(z)
        ctx.save_for_backward(z, *shares)
        return odds

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        z, leader, share, rival_share = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return torch.autograd.grad(_log_odds(z)[0], z, upstream, create_graph=True)[0]
        each = (upstream / (1 - share)).scatter(-1, leader, 0.0)  # the leader's 1 − σ may have no digits
        of_leader = upstream.gather(-1, leader) * rival_share
        return upstream - share * (each.sum(-1, keepdim=True) - each) - of_leader


def _by_column(one: Callable[[Tensor, Tensor, Noise, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """``one`` of every column's samples that count, where both kinds are among them; 0 elsewhere."""

    def of_columns(x: Sequence[Tensor], noise: Noise, number: float) -> Tensor:
        z, positive, keep, scale = x
        logs = []
        for k in range(z.shape[1]):
            s, p = z[keep[:, k], k], positive[keep[:, k], k]
            both = bool(p.any()) and not bool(p.all())
            logs.append(one(s, p, noise, scale, number) if both else z.new_zeros(()))
        return torch.stack(logs)

    return of_columns


def _auc_of_one(scores: Tensor, positive: Tensor, noise: Noise, scale: Tensor, max_fpr: float) -> Tensor:
    """log AUC; above ½ from the expected 1 − AUC, which keeps its digits (N3)."""
    weight = None if max_fpr == 1 else _hardest(scores.detach(), positive, max_fpr)
    options: dict[str, Any] = {"noise": noise, "scale": scale, "weight": weight}
    auc = expected_auc(scores, positive, **options)
    if auc < 0.5:
        return auc.log() if auc > TINY else _in_log_space(scores, positive, weight, noise, scale)
    error = expected_auc(scores, ~positive, **options)
    return torch.log1p(-(error if error > TINY else _in_log_space(scores, ~positive, weight, noise, scale).exp()))


def _hardest(scores: Tensor, positive: Tensor, max_fpr: float) -> Tensor:
    """Weights: 1, and 0 for the negatives beyond a share ``max_fpr`` of them, counted from the highest."""
    order = scores.masked_fill(positive, -math.inf).argsort(descending=True, stable=True)
    rank = torch.empty_like(scores).index_put((order,), torch.arange(len(scores), device=scores.device).to(scores))
    return torch.where(positive, 1.0, (max_fpr * (~positive).sum() - rank).clamp(0, 1))


def _in_log_space(scores: Tensor, positive: Tensor, weight: Tensor | None, noise: Noise, scale: Tensor) -> Tensor:
    """log AUC next to 0: of the highest positives and the lowest negatives, to whose pairs the others add nothing."""
    w = torch.ones_like(scores) if weight is None else weight
    best, weights, totals = [], [], []
    for side, sign in ((positive & (w > 0), 1.0), (~positive & (w > 0), -1.0)):
        s, v = scores[side], w[side]
        chosen = (sign * s.detach()).topk(min(HARDEST, len(s))).indices
        best.append(s[chosen])
        weights.append(v[chosen])
        totals.append(v.sum())
    pairs = torch.stack(torch.broadcast_tensors(best[0].unsqueeze(-1), best[1]), -1)
    first = torch.zeros(pairs.shape[:-1], dtype=torch.int64, device=scores.device)
    log_p = argmax_log_prob(pairs, first, noise=noise, scale=scale)
    log_w = (weights[0].unsqueeze(-1) * weights[1]).log() - (totals[0] * totals[1]).log()
    return (log_p + log_w).flatten().logsumexp(0)


def _precision_of_one(scores: Tensor, positive: Tensor, noise: Noise, scale: Tensor, _: float) -> Tensor:
    """log AP."""
    return expected_average_precision(scores, positive, noise=noise, scale=scale).log()


_auc_by_column, _precision_by_column = _by_column(_auc_of_one), _by_column(_precision_of_one)


def _log_auc(x: Sequence[Tensor], noise: Noise, max_fpr: float) -> Tensor:
    """log AUC of every column: by a kernel of columns, or one column after the other."""
    rows, count = x[0].shape
    whole = max_fpr == 1 and (count > 1 or rows < MANY)
    if not whole or not columns.serves("log_auc", x, noise):
        return _auc_by_column(x, noise, max_fpr)
    z, positive, keep, scale = x
    return columns.log_metrics(
        "log_auc", z, positive, keep, scale, noise, False, lambda *part: _auc_by_column(part, noise, max_fpr)
    )


def _log_average_precision(x: Sequence[Tensor], noise: Noise, _: float) -> Tensor:
    """log AP of every column, likewise."""
    if not columns.serves("log_average_precision", x, noise):
        return _precision_by_column(x, noise, 0.0)
    z, positive, keep, scale = x
    operation = "log_average_precision"
    return columns.log_metrics(
        operation, z, positive, keep, scale, noise, True, lambda *part: _precision_by_column(part, noise, 0.0)
    )


def _of_columns(x: Sequence[Tensor]) -> Tensor:
    return x[0].new_empty(x[0].shape[1])


log_auc_of_columns = opaque.register("log_auc", _log_auc, _of_columns)
log_precision_of_columns = opaque.register("log_average_precision", _log_average_precision, _of_columns)
