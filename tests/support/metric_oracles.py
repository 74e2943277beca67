"""Metric losses in numpy, from their definitions, for Gumbel noise of scale 1: probabilities are softmax and sigmoid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

Array = NDArray[Any]
IGNORED = -100


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def neg_log_q(m: Array, q: float) -> Array:
    return -np.log(m) if q == 1 else (1 - m ** (1 - q)) / (1 - q)


def reduced(losses: Array, weight: Array, reduction: str) -> Array:
    """Losses already times their weights."""
    if reduction == "none":
        return losses
    return losses.sum() / ((weight.sum() or 1.0) if reduction == "mean" else 1.0)


def accuracy(z: Array, y: Array, q: float, reduction: str) -> Array:
    keep = y != IGNORED
    p = softmax(z)[np.arange(len(y)), np.where(keep, y, 0)]
    return reduced(np.where(keep, neg_log_q(p, q), 0.0), keep, reduction)


def accuracy_of_the_batch(z: Array, y: Array, q: float, reduction: str) -> Array:
    keep = y != IGNORED
    if not keep.any():
        return np.array(0.0)
    return neg_log_q(softmax(z)[keep, y[keep]].mean(), q)


def top_two(z: Array, y: Array, q: float, reduction: str) -> Array:
    """The first two draws of Plackett and Luce."""
    keep = y != IGNORED
    losses = np.zeros(len(y))
    for i in np.flatnonzero(keep):
        p = softmax(z[i])
        later = sum(p[j] * p[y[i]] / (1 - p[j]) for j in range(len(p)) if j != y[i])
        losses[i] = neg_log_q(p[y[i]] + later, q)
    return reduced(losses, keep, reduction)


def balanced(z: Array, y: Array, q: float, reduction: str) -> Array:
    keep = y != IGNORED
    classes = np.unique(y[keep])
    each = np.zeros(len(y))
    for k in classes:
        each[y == k] = keep.sum() / (len(classes) * (y == k).sum())
    p = softmax(z)[np.arange(len(y)), np.where(keep, y, 0)]
    return reduced(each * neg_log_q(p, q), keep, reduction)


COSTS = np.array([[0.0, 1.0, 2.0, 0.5], [5.0, -1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0], [1.0, 0.0, 0.5, 0.0]])


def cost(z: Array, y: Array, q: float, reduction: str) -> Array:
    keep = y != IGNORED
    c = COSTS[np.where(keep, y, 0)]
    least, span = c.min(-1), c.max(-1) - c.min(-1)
    expected = (softmax(z) * (c - least[:, None])).sum(-1)
    m = 1 - expected / np.where(span == 0, 1, span)
    return reduced(np.where(keep, least + span * neg_log_q(m, q), 0.0), keep, reduction)


def of_counts(function: Callable[..., Array], average: str) -> Callable[[Array, Array, float, str], Array]:
    def loss(z: Array, y: Array, q: float, reduction: str) -> Array:
        keep = y != IGNORED
        return averaged(softmax(z)[keep], np.eye(z.shape[-1])[y[keep]], q)

    def averaged(p: Array, t: Array, q: float) -> Array:
        tp, fp, fn, tn = (t * p).sum(0), ((1 - t) * p).sum(0), (t * (1 - p)).sum(0), ((1 - t) * (1 - p)).sum(0)
        support = t.sum(0)
        if average == "micro":
            tp, fp, fn, tn, support = (np.atleast_1d(x.sum()) for x in (tp, fp, fn, tn, support))
        there = support > 0
        if not there.any():
            return np.array(0.0)
        m = np.array([function(*x) for x in zip(tp[there], fp[there], fn[there], tn[there], strict=True)])
        return neg_log_q(np.average(m, weights=support[there] if average == "weighted" else None), q)

    loss.averaged = averaged  # type: ignore[attr-defined]
    return loss


def f_beta(beta: float) -> Callable[..., Array]:
    return lambda tp, fp, fn, tn: (1 + beta**2) * tp / ((1 + beta**2) * tp + beta**2 * fn + fp)


def jaccard(tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
    return tp / (tp + fp + fn)


def g_mean(tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
    return (tp / (tp + fn) * tn / (tn + fp)) ** 0.5


def f_one_of_labels(z: Array, t: Array, q: float, reduction: str) -> Array:
    """Macro, some entries ignored."""
    keep, found = t != IGNORED, []
    for k in range(z.shape[-1]):
        p, u = sigmoid(z[keep[:, k], k]), t[keep[:, k], k]
        if u.sum():
            found.append(f_beta(1)((u * p).sum(), ((1 - u) * p).sum(), (u * (1 - p)).sum(), 0))
    return neg_log_q(np.mean(found), q) if found else np.array(0.0)


def subset(z: Array, t: Array, q: float, reduction: str) -> Array:
    keep = t != IGNORED
    right = np.where(t == 1, sigmoid(z), sigmoid(-z))
    some = keep.any(-1)
    return reduced(np.where(some, neg_log_q(np.where(keep, right, 1.0).prod(-1), q), 0.0), some, reduction)


def auc(s: Array, t: Array, q: float, reduction: str) -> Array:
    one, other = s[t == 1], s[t == 0]
    return neg_log_q(sigmoid(one[:, None] - other).mean(), q) if len(one) and len(other) else np.array(0.0)


def auc_of_classes(z: Array, y: Array, q: float, reduction: str) -> Array:
    keep = y != IGNORED
    p, y = softmax(z[keep]), y[keep]
    odds, found = np.log(p / (1 - p)), []
    for k in range(z.shape[-1]):
        if 0 < (y == k).sum() < len(y):
            found.append(sigmoid(odds[y == k, k][:, None] - odds[y != k, k]).mean())
    return neg_log_q(np.mean(found), q) if found else np.array(0.0)


def average_precision(s: Array, t: Array, q: float, reduction: str) -> Array:
    s, t = s[t != IGNORED], t[t != IGNORED]
    if not 0 < t.sum() < len(t):
        return np.array(0.0)
    u = np.linspace(s.min() - 6, s.max() + 45, 200_001)
    above = [-np.expm1(-np.exp(-(u - x))) for x in s]
    found = []
    for i in np.flatnonzero(t == 1):
        others = [j for j in range(len(s)) if j != i]
        ratio = (1 + sum(above[j] for j in others if t[j] == 1)) / (1 + sum(above[j] for j in others))
        found.append(trapezoid(np.exp(-(u - s[i]) - np.exp(-(u - s[i]))) * ratio, u))
    return neg_log_q(np.mean(found), q)
