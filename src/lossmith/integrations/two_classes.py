"""Closed forms for one raw score of two classes: log P(a lead holds) and the derivatives of what is made of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lossmith.functional import argmax_log_prob
from lossmith.losses import AccuracyLoss, CostLoss, TopKAccuracyLoss
from lossmith.losses.base import MetricLoss
from lossmith.losses.confusion_matrix import ConfusionLoss, Counts
from lossmith.noise import Gumbel, Noise, Normal


class Lead(NamedTuple):
    """u = log P(the noisy classifier keeps a lead x) of two scores, and its derivatives in x; all (n,)."""

    log_p: Tensor
    first: Tensor
    second: Tensor


def columns(scores: Tensor) -> Tensor:
    """One score s as the scores (0, s) of two classes."""
    return torch.stack([torch.zeros_like(scores), scores], 1)


def lead_of(x: Tensor, noise: Noise) -> Lead:
    """The lead x (n,) in units of the scale."""
    if isinstance(noise, Gumbel):  # the difference of two is logistic
        p, rest = torch.sigmoid(x), torch.sigmoid(-x)
        return Lead(torch.nn.functional.logsigmoid(x), rest, -p * rest)
    if isinstance(noise, Normal):  # the difference of two is normal, of variance 2
        log_p = torch.special.log_ndtr(x / math.sqrt(2))
        first = torch.exp(-x.square() / 4 - math.log(4 * math.pi) / 2 - log_p)
        return Lead(log_p, first, -first * (x / 2 + first))
    leaf = x.detach().requires_grad_()
    log_p = argmax_log_prob(columns(leaf), torch.ones(len(x), dtype=torch.int64), noise=noise)
    (first,) = torch.autograd.grad(log_p.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    return Lead(log_p.detach(), first.detach(), second)


def rows_of(loss: MetricLoss, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """For a loss Σ w_i · −log_q P(class k_i wins) + const: k (n,) and w (n,); None for another."""
    if getattr(loss, "over", "") != "sample" or getattr(loss, "label_smoothing", 0):
        return None
    weight = torch.ones(2, dtype=torch.float64) if loss.weight is None else loss.weight.double()
    if isinstance(loss, CostLoss) and loss.cost is not None:
        cost = loss.cost.double()
        weight = weight * (cost[:, 0] - cost[:, 1]).abs()
        return cost.argmin(1)[target], weight[target]
    else:
        accuracy = isinstance(loss, AccuracyLoss) and loss.margin is None and not loss.standardize
        if not accuracy and not (isinstance(loss, TopKAccuracyLoss) and loss.k == 1):
            return None
    return target, weight[target]


def derivatives_of_rows(scores: Tensor, of_class: Tensor, loss: MetricLoss) -> tuple[Tensor, Tensor]:
    """First and second derivative of −log_q P(class k wins) in raw scores (n,), k (n,)."""
    sign = (2 * of_class - 1).to(scores)
    lead = lead_of(sign * scores / float(loss.scale), loss.noise)
    slope = lead.first if loss.q == 1 else ((1 - loss.q) * lead.log_p).exp() * lead.first
    second = -slope * (lead.second / lead.first.clamp_min(torch.finfo(scores.dtype).tiny) + (1 - loss.q) * lead.first)
    return -sign * slope / float(loss.scale), second / float(loss.scale) ** 2


def derivatives_of_counts(scores: Tensor, target: Tensor, weight: Tensor | None, loss: ConfusionLoss) -> tuple[Tensor, Tensor]:
    """First derivative of n times a metric of binary counts in raw scores (n,), and the second while its slope is held.

    n is the sum of the weights. A row enters the counts by two of them alone: tp and fn if it is positive, else fp and tn.
    """
    lead = lead_of(scores / float(loss.scale), loss.noise)
    rest = lead_of(-scores / float(loss.scale), loss.noise)
    p, p_not = lead.log_p.double().exp(), rest.log_p.double().exp()
    ones = torch.ones_like(p) if weight is None else weight.double()
    positive = target.bool()
    sums = [(ones * x)[rows].sum() for rows, x in ((positive, p), (~positive, p), (positive, p_not), (~positive, p_not))]
    counts = [x.detach().reshape(1).requires_grad_() for x in sums]
    log_tp = counts[0].clamp_min(torch.finfo(torch.float64).tiny).log()
    value = loss.loss_of_counts(Counts(*counts), log_tp)
    tp, fp, fn, tn = torch.autograd.grad(ones.sum() * value, counts, allow_unused=True, materialize_grads=True)
    held = torch.where(positive, tp - fn, fp - tn) * ones
    first = held * p * lead.first.double() / float(loss.scale)
    second = held * p * (lead.second + lead.first.square()).double() / float(loss.scale) ** 2
    return first.to(scores), second.to(scores)
