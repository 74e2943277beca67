"""The noisy argmax, what is expected of it, and the losses on it, as functions.

Scores are raw model outputs with the classes in the last dimension: never probabilities. Half types compute in float32
and return their own type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.argmax import autograd as argmax
from lossmith.engine.argmax import every_class, fused, reference
from lossmith.engine.runtime import custom_op as opaque
from lossmith.engine.runtime import select
from lossmith.inputs import (
    check_margin,
    check_score_values,
    check_scores,
    check_target,
    check_target_type,
    checked_rank,
    checked_scale,
    compute_type,
)
from lossmith.noise import Noise
from lossmith.parallel import classes as distributed
from lossmith.parallel import samples

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _log_probs_without_formula(x: Sequence[Tensor], noise: Noise, _: float) -> Tensor:
    if kernel := every_class.serves(x[0], noise):  # within an operator
        select.record(kernel)
        return every_class.log_probs(x[0], x[0].new_ones(1), noise, kernel)
    select.record("reference")
    return reference.log_probs(x[0], noise)


def _topk_of_rows(x: Sequence[Tensor], noise: Noise, k: float) -> Tensor:
    if fused.serves_topk(x[0], x[1], 1.0, noise):  # within an operator
        select.record("cpu")
        return fused.target_log_prob(x[0], x[1], x[0].new_ones(1), noise, rank=int(k))
    select.record("reference")
    return reference.log_prob(x[0], x[1], noise, rank=int(k))


_all_log_probs = opaque.register("argmax_log_probs", _log_probs_without_formula, lambda x: torch.empty_like(x[0]), by_rows=True)
_topk_log_prob = opaque.register("topk_log_prob", _topk_of_rows, lambda x: x[0].new_empty(x[0].shape[0]), by_rows=True)


def argmax_log_prob(
    scores: Tensor,
    target: Tensor,
    *,
    noise: str | Noise = "normal",
    scale: float | Tensor = 1.0,
    margin: float | None = None,
    ignore_index: int | None = None,
    class_group: ProcessGroup | None = None,
) -> Tensor:
    r"""Log-probability that the target has the highest noisy score.

    With scores z, target y and independent noise ε_j of cdf F and density f, computes

        log P(argmax_j (z_j + scale · ε_j) = y) = log ∫ f(e) Π_{j≠y} F(e + δ_j) de,   δ_j = (z_y − z_j) / scale.

    Gumbel noise gives log softmax, and normal noise with two classes log Φ(δ/√2); both use that formula.

    Args:
        scores: (…, C), C ≥ 2, any floating type. −inf removes a class.
        target: (…) integer class indices in [0, C).
        noise: a name ("normal", "gumbel", "logistic", "laplace", "studentt", "uniform", "exponential") or a
            ``lossmith.noise.Noise``.
        scale: σ > 0: a number, or a tensor that broadcasts to ``scores[..., :1]``; a tensor receives gradients.
        margin: caps the lead z_y − z_j that still earns credit, ≥ 0, in units of the scores; no gradient flows beyond it.
        ignore_index: a target that asks for nothing: the result is 0 without a gradient, whatever its row of scores holds.
        class_group: a ``torch.distributed.ProcessGroup`` whose ranks hold the classes, in rank order: each passes its own
            scores (…, C_r), C_r ≥ 1, and the same targets, which count the classes of all ranks. Every rank gets the same
            result and, once each calls backward with the same upstream gradient, the gradient in its own scores. Sums at
            thresholds cross the network, never scores: 50 to 130 numbers a row where the fused kernel serves, 230 to 800
            elsewhere (Student's t: up to 2,600; Gumbel: 1). Not for noise with kinks and second derivatives.
            ``torch.distributed.group.WORLD`` is None before ``init_process_group``, and then means unsharded: make the loss
            after it. Traced by ``torch.compile`` it raises NotImplementedError: compile the model without its loss, or wrap
            the loss in ``torch.compiler.disable``.

    Returns:
        (…) log-probabilities, ≤ 0; dtype and device of ``scores``; differentiable twice (not at ties with uniform and
        exponential noise: their densities jump).

    Raises:
        TypeError: scores are not floating point, or targets not integer.
        ValueError: a shape, class index, scale or margin out of range. With a ``class_group`` every rank raises if one does.

    Range: float64 within 1e-9 · ``max(1, |log p|)`` and the gradient within 1e-7 relative, float32 p within 1e-6 and log p
    within 1e-5 relative, for C from 2 to 50,000 and leads to ±50 scales, every noise (``lossmith bench accuracy``).
    Cost: on the CPU, smooth noise with light tails: two passes over the scores and some microseconds a row, in float64 some ten
    (``engine/argmax/kernels/cpu.py``, ``double.py``); on CUDA GPUs the same rows have a kernel that was not measured on one yet
    (``kernels/cuda.py``). Otherwise some 500 · C evaluations of log F a row in float64, 300 · C in float32, and twice
    a third of that for the gradient; several times that with Student's t, and with kinks near each other.
    Source: the multinomial probit (Thurstone 1927); as a training objective, Karpukhin, Dereka & Kolesnikov, "EXACT: How
    to train your accuracy", 2022.

    >>> scores = torch.tensor([[-0.5, 0.0, 1.0]], dtype=torch.float64)
    >>> argmax_log_prob(scores, torch.tensor([2])).exp()
    tensor([0.6930], dtype=torch.float64)
    >>> argmax_log_prob(scores, torch.tensor([2]), noise="gumbel").exp()  # softmax
    tensor([0.6285], dtype=torch.float64)
    """
    distribution = noises.get(noise)
    check_margin(margin)
    if class_group is not None:
        distributed.check_group(class_group, distribution)
        if distributed.size(class_group) > 1:
            return distributed.argmax_log_prob(lambda: (scores, target), distribution, scale, margin, ignore_index, class_group)
    check_scores(scores)
    check_target_type(target, scores)
    z = compute_type(scores)
    ignored = argmax.NO_TARGET if ignore_index is None else ignore_index
    return fused.checked_log_prob(z, target, distribution, checked_scale(scale, z), margin, ignored).to(scores.dtype)


def argmax_log_probs(scores: Tensor, *, noise: str | Noise = "normal", scale: float | Tensor = 1.0) -> Tensor:
    r"""Log-probability of every class to have the highest noisy score.

    As ``argmax_log_prob`` for each class at once: the product Π_j F is shared, so the cost is that of one class times about a
    tenth of the largest spread of a row's scores in scales, and at most C times.

    Args:
        scores: (…, C), C ≥ 2, any floating type. −inf removes a class.
        noise: a name, or a ``lossmith.noise.Noise``.
        scale: σ > 0: a number, or a tensor that broadcasts to ``scores[..., :1]``.

    Returns:
        (…, C) log-probabilities whose exponentials sum to 1; dtype and device of ``scores``; differentiable twice.

    Raises:
        TypeError, ValueError: as ``argmax_log_prob``.

    >>> argmax_log_probs(torch.tensor([0.0, 0.0, 0.0, 0.0])).exp()
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    distribution = noises.get(noise)
    check_scores(scores)
    x = compute_type(scores)
    scale = checked_scale(scale, x)
    if kernel := _fused(x, distribution):
        sigma = fused.flat_scale(scale, x)
        return every_class.log_probs(_rows(x), sigma, distribution, kernel).view_as(x).to(scores.dtype)
    check_score_values(scores)
    z = _centred(scores) / scale
    if distribution.has_closed_form(scores.shape[-1]):
        select.record("closed form")
        log_p = distribution.closed_form_log_probs(z)
    else:
        log_p = _all_log_probs((_rows(z),), distribution).view_as(z)
    return log_p.to(scores.dtype)


def topk_log_prob(
    scores: Tensor, target: Tensor, k: int, *, noise: str | Noise = "normal", scale: float | Tensor = 1.0
) -> Tensor:
    r"""Log-probability that the target is among the k highest noisy scores.

    With scores z, target y and independent noise ε_j of cdf F and density f, computes, in units of the scale,

        log ∫ f(u − z_y) P(at most k − 1 rivals exceed u) du,

    where the number of rivals that exceed u is a sum of independent trials of chance 1 − F(u − z_j). k = 1 is
    ``argmax_log_prob``; k = C is certain.

    Args:
        scores: (…, C), C ≥ 2, any floating type. −inf removes a class; if fewer than k others are left, the rest is certain.
        target: (…) integer class indices in [0, C).
        k: from 1 to C.
        noise: a name, or a ``lossmith.noise.Noise``.
        scale: σ > 0: a number, or a tensor that broadcasts to ``scores[..., :1]``.

    Returns:
        (…) log-probabilities, ≤ 0; dtype and device of ``scores``; differentiable twice.

    Raises:
        TypeError, ValueError: as ``argmax_log_prob``, and for k.

    Range: as ``argmax_log_prob``, for k up to 100.
    Cost: float32 rows on the CPU, normal, logistic and other noise with tables: a kernel, some ten microseconds a row and
    thread for k = 5 and C = 10, a hundred for C = 1000, and more than in proportion to k (``engine/argmax/kernels/topk.py``).
    Otherwise plain torch in float64: k times the reference's cost for ``argmax_log_prob``, hundreds of times the kernel's.
    Source: the Poisson-binomial distribution; docs/how/argmax.md, and for the reference ``engine/argmax/topk.py``.

    >>> topk_log_prob(torch.zeros(5), torch.tensor(0), 2).exp()
    tensor(0.4000)
    """
    distribution = noises.get(noise)
    check_scores(scores)
    check_target(target, scores)
    k = checked_rank(k, scores.shape[-1])
    if k == 1:
        return argmax_log_prob(scores, target, noise=distribution, scale=scale)
    x = compute_type(scores)
    scale = checked_scale(scale, x)
    if k < scores.shape[-1] and fused.serves_topk(x, target, scale, distribution):
        select.record("cpu")
        sigma = fused.flat_scale(scale, x)
        log_p = fused.target_log_prob(_rows(x), target.long().flatten(), sigma, distribution, rank=k)
        return log_p.view_as(target).to(scores.dtype)
    check_score_values(scores)
    if k == scores.shape[-1]:
        own = scores.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)
        return torch.where(own.isneginf(), -torch.inf, 0.0 * scores.masked_fill(scores.isneginf(), 0.0).sum(-1))
    z = _centred(scores) / scale
    log_p = _topk_log_prob((_rows(z), target.long().flatten()), distribution, k)
    return log_p.view_as(target).to(scores.dtype)


def log_outcomes(scores: Tensor, noise: Noise, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """log P(predicted absent) and log P(predicted present) of scores (…): those of the two classes with scores (0, s)."""
    if isinstance(scale, Tensor) and scale.dim():
        scale = scale.unsqueeze(-1)
    both = argmax_log_probs(torch.stack([torch.zeros_like(scores), scores], -1), noise=noise, scale=scale)
    return both[..., 0], both[..., 1]


def standardize_scores(scores: Tensor, keep: Tensor | None = None) -> Tensor:
    r"""Scores with mean 0 and variance 1 over the whole batch: (z − mean z) / √max(var z, 1e-12), one mean and one variance.

    It makes the size of the last layer irrelevant to a loss of fixed scale. The lower bound keeps a batch of equal
    scores finite. Source: the logit normalisation of EXACT's code, which has no such bound.

    Args:
        scores: (…, C) finite scores, any floating type.
        keep: (…) boolean; only these rows enter the mean and the variance. None takes all.

    Returns:
        The same shape and dtype, differentiable.

    >>> standardize_scores(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.,  1.]])
    """
    z = compute_type(scores)
    if keep is None:
        return _standardized(z, z.mean(), z.var(correction=0)).to(scores.dtype)
    return standardize_samples(scores, keep, None)


def standardize_samples(scores: Tensor, keep: Tensor, group: ProcessGroup | None) -> Tensor:
    """As ``standardize_scores``, with the mean and the variance of all ranks' rows (…) that ``keep`` names."""
    z = compute_type(scores)
    count = samples.shared_total(keep.sum() * z.shape[-1], group)
    share = (keep.to(z) / count.clamp_min(1)).unsqueeze(-1)
    mean = samples.shared_total((z * share).sum(), group)
    variance = samples.shared_total(((z - mean).square() * share).sum(), group)
    return _standardized(z, mean, variance).to(scores.dtype)


def _standardized(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (z - mean) / variance.clamp_min(1e-12).sqrt()  # the bound keeps a batch of equal scores finite


def _fused(scores: Tensor, noise: Noise) -> str:
    """The kernel that gives log p of every class, "" for none; notes what runs."""
    closed = noise.has_closed_form(scores.shape[-1])
    kernel = every_class.serves(scores, noise) if not closed or noise.key == fused.GUMBEL else ""
    if kernel:
        select.record("closed form" if closed else kernel)
    return kernel


def _rows(scores: Tensor) -> Tensor:
    return scores if scores.dim() == 2 else scores.reshape(-1, scores.shape[-1])


def _centred(scores: Tensor) -> Tensor:
    """Scores in the type they are computed in, below the highest: divided by a small scale, none overflows to +inf."""
    z = compute_type(scores)
    return z - z.detach().amax(-1, keepdim=True)
