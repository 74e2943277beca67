"""Metrics of a ranking, expected under noise on the scores: ROC AUC and average precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.ranking import autograd as auc
from lossmith.engine.ranking.average_precision import average_precision
from lossmith.engine.ranking.reference import expected_wins
from lossmith.engine.runtime import custom_op, select
from lossmith.inputs import check_tensors
from lossmith.maths.chebyshev import BATCH, Weighted, total
from lossmith.noise import Noise


def expected_auc(
    scores: Tensor,
    target: Tensor,
    *,
    noise: str | Noise = "normal",
    scale: float | Tensor = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Area under the ROC curve, expected when independent noise is added to every score.

    With scores s, weights w, noise ε and H(δ) = P(ε_j − ε_i ≤ δ), the probability that a lead of δ wins, computes

        AUC = Σ_{i pos, j neg} w_i w_j H((s_i − s_j) / scale) / Σ_{i pos, j neg} w_i w_j.

    H(0) = ½, so that ties count one half, and for scale → 0 this is ``sklearn.metrics.roc_auc_score``.

    Args:
        scores: (n,), any floating type, finite.
        target: (n,), bool or integer, 1 for the positives and 0 for the negatives; at least one of each.
        noise: a name or a ``lossmith.noise.Noise``: a smooth one, or uniform, laplace or exponential.
        scale: σ > 0, a number or a tensor of one element; a tensor receives gradients.
        weight: (n,) nonnegative weights of the samples, any real type; None weighs all equally. Receives gradients.

    Returns:
        A scalar in [0, 1], dtype and device of ``scores``; differentiable twice in scores, scale and weight. With uniform
        and exponential noise, the second derivative does not exist at ties.

    Raises:
        TypeError: scores not floating point, target neither bool nor integer, weight complex, an unknown kind of noise.
        ValueError: a shape, score, target, weight or scale out of range; an unknown name of a noise; a noise of one's own
            with kinks, or so rough that no panel resolves it.

    Range: computed in float64 for every dtype; value within 1e-14 of the double sum, and the gradient in a score within 1e-11
    of the sample's share of its class, for scores that span up to 1e15 scales. A score enters as score / scale, with the
    rounding of that quotient.
    Cost: O(16 · n) in time; with kinks, a sort and O(n). On the CPU by kernels of their own, unless the scores span more than
    n / 8 + 4096 panels of about a scale; second derivatives, other devices and torch.func in plain torch, O(n log n) in time
    and O(16 · n) in memory. The first call with Student's t, logistic or one's own noise computes tables of H, the more the
    wider the scores spread. The first call of all compiles the kernels.
    Source: for H, Thurstone (1927); for the sums, see ``lossmith.engine.ranking.multipole``.

    >>> scores, target = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])
    >>> expected_auc(scores, target, scale=1e-6)
    tensor(0.7500)
    >>> expected_auc(scores, target, scale=0.5)
    tensor(0.6658)
    """
    distribution = noises.get(noise)
    check_tensors(scores=scores, target=target)
    if weight is not None:
        check_tensors(weight=weight)
    weights = () if weight is None else (weight,)
    return _auc((scores, target, _as_tensor(scale), *weights), distribution)


def _auc_of(x: Sequence[Tensor], noise: Noise, _: float) -> Tensor:
    """``expected_auc`` of scores, target and scale, and of weights if there are any."""
    scores, target, scale = x[:3]
    weight = x[3] if len(x) > 3 else None

    def plain(s: Tensor, positive: Tensor, sigma: Tensor, w: Tensor | None) -> Tensor:
        w = torch.ones_like(s, dtype=torch.float64) if w is None else w
        x = _in_units(s, sigma)
        winners, losers = Weighted(x[positive], w[positive]), Weighted(x[~positive], w[~positive])
        most = total(winners.weight) * total(losers.weight)
        return expected_wins(winners, losers, noise) / most

    try:
        return auc.by_kernel(scores, target, noise, scale, weight, plain).to(scores.dtype)
    except auc.ObstacleError as error:
        obstacle = str(error)
    positive = _checked_labels(scores, target)
    if bool(positive.all()):
        raise ValueError("target: expected at least one 0 (a negative), got none; AUC compares positives with negatives")
    w = None if weight is None else _checked_weight(weight, positive)
    auc.choose_reference(obstacle, scores)
    return plain(scores, positive, scale, w).to(scores.dtype)


def expected_average_precision(
    scores: Tensor, target: Tensor, *, noise: str | Noise = "normal", scale: float | Tensor = 1.0
) -> Tensor:
    r"""Average precision in expectation: the precision at every threshold that a noisy positive passes, averaged.

    With scores s in units of the scale, F and f the cdf and the density of the noise and S = 1 − F,

        AP = mean_{i pos} ∫ f(u − s_i) (1 + N⁺_i(u)) / (1 + N_i(u)) du,
        N⁺_i(u) = Σ_{j pos, j≠i} S(u − s_j),   N_i(u) = Σ_{j≠i} S(u − s_j):

    the positive i at u, over all that are expected above it. This is a metric of expectations, a ratio of expected counts,
    and not the expectation of the ratio. For scale → 0 it is ``sklearn.metrics.average_precision_score`` of distinct scores.

    Args:
        scores: (n,), any floating type, finite.
        target: (n,), bool or integer, 1 for the positives, of which there is one at least, and 0 for the negatives.
        noise: a name or a ``lossmith.noise.Noise``, with kinks or without.
        scale: σ > 0, a number or a tensor of one element; a tensor receives gradients.

    Returns:
        A scalar in (0, 1], dtype and device of ``scores``; differentiable twice in scores and scale. With uniform and
        exponential noise, the second derivative does not exist at ties.

    Raises:
        TypeError: scores not floating point, target neither bool nor integer, an unknown kind of noise.
        ValueError: a shape, score, target or scale out of range; an unknown name of a noise; a noise of one's own that no
            panel resolves.

    Range: computed in float64 for every dtype; value within 1e-13 and the gradient in a score within 1e-11 / n, for up to a
    million scores that span up to 1e15 scales; uniform noise adds an error of 1e-16 times that span.
    Cost, in evaluations of log f and log S: with normal noise 300 for each of n scores, or of the 64 points a scale that
    stand for more scores than these; 800 with gumbel or logistic noise. The algebraic tails of Student's t reach everywhere:
    16 for every such point and every occupied scale, and 5,000 more for the tails. Kinks cut the integral at every
    score: O(n²) with uniform, laplace, exponential and one's own noise with kinks, 10 to 50 for every pair of scores that
    reach each other. Memory: O(n), and some 100 MB for a block of the sums.
    Source: for average precision, ``sklearn.metrics.average_precision_score``; the method is in
    ``lossmith.engine.ranking.average_precision``.

    >>> scores, target = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])
    >>> expected_average_precision(scores, target, scale=1e-6)
    tensor(0.8333)
    >>> expected_average_precision(scores, target, scale=0.5)
    tensor(0.7467)
    """
    distribution = noises.get(noise)
    check_tensors(scores=scores, target=target)
    return _average_precision((scores, target, _as_tensor(scale)), distribution)


def _average_precision_of(x: Sequence[Tensor], noise: Noise, _: float) -> Tensor:
    """``expected_average_precision`` of scores, target and scale."""
    scores, target, scale = x
    positive = _checked_labels(scores, target)
    units = _in_units(scores, scale)
    select.record(select.choose("expected_average_precision", (select.REFERENCE,), scores, bearable=64))
    return average_precision(units, positive, noise).to(scores.dtype)


def _as_tensor(scale: float | Tensor) -> Tensor:
    return scale if isinstance(scale, Tensor) else torch.tensor(float(scale), dtype=torch.float64)


# Sums for noise with kinks are torch's own operations, but that average precision has a backward pass of its own.
_auc = custom_op.register(
    "expected_auc", _auc_of, lambda x: x[0].new_empty(()), transforms=lambda noise: ("Grad", "Jvp") if noise.kinks else ()
)
_average_precision = custom_op.register(
    "expected_average_precision",
    _average_precision_of,
    lambda x: x[0].new_empty(()),
    transforms=lambda noise: ("Jvp",) if noise.kinks else (),
)


def _checked_labels(scores: Tensor, target: Tensor) -> Tensor:
    """Which samples are positive, (n,) bool; refuses scores and targets that are no ranking."""
    if not scores.is_floating_point():
        raise TypeError(f"scores: expected a floating-point tensor, got {scores.dtype}; pass raw model outputs")
    if scores.dim() != 1:
        raise ValueError(f"scores: expected shape (n,), one score a sample, got {tuple(scores.shape)}; flatten them")
    if target.is_floating_point() or target.is_complex():
        raise TypeError(f"target: expected bool or integer, got {target.dtype}; convert with target.long()")
    if target.shape != scores.shape:
        raise ValueError(
            f"target: expected shape {tuple(scores.shape)} as the scores have, got {tuple(target.shape)}; match them"
        )
    finite = torch.isfinite(scores)
    if not bool(finite.all()):
        value = float(scores.detach()[~finite][0])
        raise ValueError(
            f"scores: expected finite numbers, got {value} at index {int((~finite).nonzero()[0])}; drop that sample"
        )
    positive = target == 1
    strange = ~positive & (target != 0)
    if bool(strange.any()):
        raise ValueError(f"target: expected 0 or 1, got {int(target[strange][0])}; pass target == positive_class")
    if not bool(positive.any()):
        raise ValueError("target: expected at least one 1 (a positive), got none; the metric has no meaning without")
    return positive


def _checked_weight(weight: Tensor, positive: Tensor) -> Tensor:
    """The weights in float64."""
    if weight.is_complex():
        raise TypeError(f"weight: expected real numbers, got {weight.dtype}; pass their absolute values")
    if weight.shape != positive.shape:
        raise ValueError(f"weight: expected shape {tuple(positive.shape)}, got {tuple(weight.shape)}; one weight a sample")
    value = weight.detach()
    valid = (value >= 0) & torch.isfinite(value)
    if not bool(valid.all()):
        raise ValueError(f"weight: expected finite numbers ≥ 0, got {float(value[~valid][0])}; drop that sample or weigh it 0")
    for side, name in ((positive, "positive"), (~positive, "negative")):
        if not bool((value[side] > 0).any()):
            raise ValueError(f"weight: expected some weight > 0 among the {name} samples, got none; weigh one of them")
    return weight.double()


def _in_units(scores: Tensor, sigma: Tensor) -> Tensor:
    """(scores − origin) / scale in float64, the origin being the score nearest to 0: a common offset costs no digits."""
    if sigma.numel() != 1:
        raise ValueError(f"scale: expected one number, got a tensor of shape {tuple(sigma.shape)}; one scale serves all scores")
    size = float(sigma.detach())
    if not 0 < size < math.inf:
        raise ValueError(f"scale: expected a finite number > 0, got {size}; the noise has a size")
    s, sigma = scores.double(), sigma.to(scores.device, torch.float64)
    low, high = s.detach().aminmax()
    if not float(high - low) <= auc.MOST_UNITS * size:
        raise ValueError(
            f"scale: expected at least {float(high - low) / auc.MOST_UNITS:.3g}, 1e-15 of the range of the scores, "
            f"got {size:.3g}; raise the scale, or take the metric without noise"
        )
    s = s - torch.zeros_like(low).clamp(low, high)
    # By rows, for the sum that is the gradient of the scale: one long sum would depend on the number of threads.
    rows = -(-len(s) // BATCH)
    s = torch.nn.functional.pad(s, (0, rows * BATCH - len(s))).view(rows, BATCH)
    return (s / sigma.reshape(1, 1).expand(rows, 1)).flatten()[: len(scores)]
