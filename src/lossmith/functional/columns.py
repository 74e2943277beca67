"""Log metrics of rankings, one for each column: a class against the rest, or a label.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lossmith.engine.ranking.autograd import MOST_UNITS
from lossmith.engine.runtime import custom_op as opaque
from lossmith.engine.runtime import select
from lossmith.functional.argmax import argmax_log_prob
from lossmith.functional.ranking import expected_auc, expected_average_precision
from lossmith.inputs import one_hot
from lossmith.noise import Gumbel, Noise, Normal

TINY = 1e-8  # an AUC, or what it lacks, below which, the error being 1e-14, the hardest pairs are taken in log space
SMALLEST = 1e-290  # a sum over pairs, below which a float64 loses digits
HARDEST = 256  # of either side
MOST_PAIRS = 1 << 20  # of a positive and any sample: beyond, the kernel of one column, which takes no pairs, costs less
# P(a lead of δ ≥ 0 is lost), by a formula with all its digits
LOST_BY: dict[type[Noise], Callable[[Tensor], Tensor]] = {
    Normal: lambda lead: torch.erfc(lead / 2) / 2,
    Gumbel: lambda lead: torch.sigmoid(-lead),
}


def log_odds(scores: Tensor) -> Tensor:
    """z_k − log Σ_{j≠k} e^{z_j} of scores z (n, C), (n, C) float64; O(n · C) time and memory.

    For all but the leader, whose share is at most ½, the sum of the others is the whole sum less the class's own share; the
    leader's is summed without it, for there that difference would have no digits.
    """
    z = scores.double()
    leader = one_hot(z.argmax(-1), z.shape[-1])
    total = z.logsumexp(-1, keepdim=True)
    of_rivals = z.masked_fill(leader, -math.inf).logsumexp(-1, keepdim=True)
    share = torch.where(leader, 0.0, (z - total).exp()).clamp_max(0.5)  # beyond ½ by rounding only
    return z - torch.where(leader, of_rivals, total + torch.log1p(-share))


def _log_auc(x: Sequence[Tensor], noise: Noise, max_fpr: float) -> Tensor:
    """log AUC of every column: by all pairs at once where they are few, one column after the other where they are many."""
    z, positive, keep, scale = x
    lost_by = LOST_BY.get(type(noise))
    who, column = (positive & keep).nonzero(as_tuple=True)
    if lost_by is None or max_fpr != 1 or not 0 < len(who) * len(z) <= MOST_PAIRS or select.asked() is not None:
        return _auc_by_column(x, noise, max_fpr)
    span = z.detach().amax() - z.detach().amin()
    if not span <= MOST_UNITS * scale:  # too wide, or not finite: one column after the other refuses that in words
        return _auc_by_column(x, noise, max_fpr)
    negative = keep & ~positive
    pairs = (keep & positive).sum(0) * negative.sum(0)
    lead = (z[who, column].unsqueeze(-1) - z.T[column]) / scale
    counts = negative.T[column]
    ahead = counts & (lead > 0)
    sign = ahead.to(z) - (counts ^ ahead).to(z)  # of the lead; 0 where there is no pair, −1 at ties
    part = (sign * lost_by(torch.where(counts, sign * lead, 0.0))).sum(-1)
    won, lost = ahead.sum(-1) - part, (counts ^ ahead).sum(-1) + part  # both with all their digits next to 0
    zero = z.new_zeros(z.shape[1])
    won, lost = (zero.index_add(0, column, sums) / pairs.clamp_min(1) for sums in (won, lost))
    least = torch.minimum(won, lost)
    if bool(((least < SMALLEST) & (pairs > 0)).any()):
        return _auc_by_column(x, noise, max_fpr)
    select.record("closed form")
    behind = won < 0.5
    log = torch.where(behind, torch.where(behind, won, 1.0).log(), torch.log1p(-torch.where(behind, 0.0, lost)))
    return torch.where(pairs > 0, log, 0.0)


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


_auc_by_column = _by_column(_auc_of_one)
log_auc_of_columns = opaque.register("log_auc", _log_auc, lambda x: x[0].new_empty(x[0].shape[1]))
log_precision_of_columns = opaque.register(
    "log_average_precision", _by_column(_precision_of_one), lambda x: x[0].new_empty(x[0].shape[1])
)
