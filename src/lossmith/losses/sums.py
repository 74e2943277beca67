"""Sums of the probabilities of all classes, each with a backward pass of its own.

torch would make a matrix (n, C) for each step of such a sum, and one more for its derivative; these make one each way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossmith.inputs import is_plain


def own_and_others(log_p: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each row's class y, (n,), and Σ_i w_i p_ik over the rows of other classes, (C,) float64.

    Args:
        log_p: (n, C) float32 or float64.
        y: (n,) int64.
        weight: (n,) of the same dtype.
    """
    if is_plain(log_p, weight) and not weight.requires_grad:
        own, others = _OwnAndOthers.apply(log_p, y, weight)  # type: ignore[no-untyped-call]
        return own, others
    at = y.unsqueeze(1)
    others = (weight.unsqueeze(1) * log_p.exp()).scatter(1, at, 0.0)
    return log_p.gather(1, at).squeeze(1), others.sum(0, dtype=torch.float64)


class _OwnAndOthers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_p: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        at = y.unsqueeze(1)
        p = log_p.exp().scatter_(1, at, 0.0).mul_(weight.unsqueeze(1))
        ctx.save_for_backward(log_p, y, weight, p)
        return log_p.gather(1, at).squeeze(1), p.sum(0, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, of_own: Tensor, of_others: Tensor) -> tuple[Tensor | None, ...]:
        log_p, y, weight, p = ctx.saved_tensors
        at = y.unsqueeze(1)
        if torch.is_grad_enabled():  # create_graph=True
            p = (weight.unsqueeze(1) * log_p.exp()).scatter(1, at, 0.0)
            return (p * of_others.to(p)).scatter(1, at, of_own.unsqueeze(1)), None, None
        return (p * of_others.to(p)).scatter_(1, at, of_own.unsqueeze(1)), None, None


def lost_and_saved(log_p: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_k p_k lost_k and Σ_k p_k (1 − lost_k), (…): both of positive terms.

    Args:
        log_p: (…, C).
        lost: the share that each decision loses, in [0, 1], (…, C).
    """
    if is_plain(log_p, lost) and not lost.requires_grad:
        one, two = _LostAndSaved.apply(log_p, lost)  # type: ignore[no-untyped-call]
        return one, two
    p = log_p.exp()
    return (p * lost).sum(-1), (p * (1 - lost)).sum(-1)


class _LostAndSaved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_p: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
        p = log_p.exp()
        ctx.save_for_backward(log_p, lost, p)
        terms = p * lost
        error = terms.sum(-1)
        return error, torch.sub(p, terms, out=terms).sum(-1)

    @staticmethod
    def backward(ctx: Any, of_lost: Tensor, of_saved: Tensor) -> tuple[Tensor, None]:
        log_p, lost, p = ctx.saved_tensors
        p = log_p.exp() if torch.is_grad_enabled() else p  # create_graph=True
        slope = torch.addcmul(of_saved.unsqueeze(-1), lost, (of_lost - of_saved).unsqueeze(-1))
        return slope * p, None
