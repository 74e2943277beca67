r"""The threshold integral in plain torch: CPU or CUDA, float32 or float64, differentiable; the oracle for faster kernels.

With unit noise of cdf F and density f, class k has the highest noisy score with probability

    p_k = ∫ f(u − z_k) Π_{j≠k} F(u − z_j) du                                                                  (1)

where u is the value that the winning score takes. The integrand is log-concave: one mode, which lies anywhere between
z_k and halfway to a far rival. So the nodes are placed row by row: find the mode, find where the integrand has fallen by
``drop`` nats, and put an equidistant rule between. On an analytic integrand that has died out at both ends the
trapezoidal rule converges exponentially (Trefethen & Weideman, SIAM Review 56(3), 2014). Only logarithms are summed, so
nothing underflows. The integral does not depend on where its nodes are: they are constants for differentiation.

Scores come in units of the noise, as (rows, C). −inf removes a class; NaN gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lossmith.noise import Noise


class Rule(NamedTuple):
    """How far and how finely to integrate."""

    drop: float  # nats below the mode at which the integrand counts as zero: exp(−drop) is below the rounding error
    nodes: int  # between the two ends of one class's integrand


RULES = {torch.float64: Rule(drop=38.0, nodes=128), torch.float32: Rule(drop=18.0, nodes=40)}

CHUNK = 1 << 22  # most elements of one (rows, nodes, classes) block; larger work is cut up and recomputed in backward
MAX_NEWTON_STEPS = 200
MAX_DOUBLINGS = 60


def log_prob(scores: Tensor, target: Tensor, noise: Noise) -> Tensor:
    """log p of one class a row.

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64.
        target: (rows,) int64 class indices.
        noise: the distribution of ε.

    Returns:
        (rows,) log-probabilities, differentiable twice in ``scores``.

    Cost: O(rows · C · nodes) time, O(CHUNK + rows · C) memory.
    """
    own = target.unsqueeze(-1)
    own_score = scores.gather(-1, own)
    impossible = own_score.isneginf()
    # Measured from the target's score the nodes are exact near it, whatever the size of the scores.
    centred = torch.where(impossible, 0.0, scores - own_score)
    rule = RULES[scores.dtype]
    with torch.no_grad():
        first = _end(centred, _lowest_contender(centred, own), noise, rule.drop, side=-1)
        last = _end(centred, own, noise, rule.drop, side=1)
        nodes, log_step = _grid(first, last, rule.nodes, like=scores)
    rivals = centred.scatter(-1, own, -math.inf)  # log F(∞) = 0 takes the target out of the product

    def integral(rivals: Tensor, nodes: Tensor) -> Tensor:
        log_cdf = noise.log_cdf(nodes.unsqueeze(-1) - rivals.unsqueeze(-2)).sum(-1)
        return _logsumexp(noise.log_prob(nodes) + log_cdf, dim=-1)

    log_p = _by_rows(integral, rivals, nodes) + log_step.squeeze(-1)
    return torch.where(impossible.squeeze(-1), -math.inf, log_p)


def log_probs(scores: Tensor, noise: Noise) -> Tensor:
    """log p of every class, from one set of nodes: the product of all F once, times f/F at each class.

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64.
        noise: the distribution of ε.

    Returns:
        (rows, C) log-probabilities, differentiable twice. The gradient of log p_k in z_k itself is good to the rounding of
        1, not of its own size: as with softmax, a gradient of 1e-12 has few digits. ``log_prob`` keeps them.

    Cost: as ``log_prob``, times about a tenth of the spread of the scores in scales, but at most times C.
    """
    present = ~scores.isneginf()
    centred = scores - scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    rule = RULES[scores.dtype]
    with torch.no_grad():
        top = centred.argmax(-1, keepdim=True)
        bottom = torch.where(present, centred, math.inf).argmin(-1, keepdim=True)
        first = _end(centred, bottom, noise, rule.drop, side=-1)
        last = _end(centred, top, noise, rule.drop, side=1)
        top_width = last - _end(centred, top, noise, rule.drop, side=-1)
        bottom_width = _end(centred, bottom, noise, rule.drop, side=1) - first
        spread = (last - first) / torch.minimum(top_width, bottom_width)
        widest = spread.max().item() if len(scores) else 1.0
    if not widest <= scores.shape[-1]:  # then each class with nodes of its own is cheaper
        classes = range(scores.shape[-1])
        each = [log_prob(scores, torch.full_like(top.squeeze(-1), k), noise) for k in classes]
        return torch.stack(each, -1)
    nodes, log_step = _grid(first, last, math.ceil(rule.nodes * widest), like=scores)
    finite = torch.where(present, centred, 0.0)

    def integral(block: Tensor, nodes: Tensor) -> Tensor:
        finite, present = block.unbind(-1)
        x = nodes.unsqueeze(-1) - finite.unsqueeze(-2)
        log_cdf = noise.log_cdf(x) * present.unsqueeze(-2)
        return _logsumexp(log_cdf.sum(-1, keepdim=True) - log_cdf + noise.log_prob(x), dim=-2)

    log_p = _by_rows(integral, torch.stack([finite, present.to(finite)], -1), nodes) + log_step
    return torch.where(present, log_p, -math.inf)


def _grid(first: Tensor, last: Tensor, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Equidistant nodes, (rows, count), and the logarithm of their distance, (rows, 1), in the dtype of ``like``."""
    # Scores of 1e12 and more round the ends together; any width will do beside a log p of their square.
    width = (last - first).clamp_min(1e-6)
    fractions = torch.linspace(0, 1, count, dtype=first.dtype, device=first.device)
    return (first + width * fractions).to(like), (width / (count - 1)).log().to(like)


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """As torch's, with weights that sum to 1 in backward: torch takes them from the rounded sum, which is off for |x| ≫ 1."""
    peak = x.detach().amax(dim, keepdim=True).nan_to_num(neginf=0.0)
    return (x - peak).logsumexp(dim) + peak.squeeze(dim)


def _lowest_contender(centred: Tensor, own: Tensor) -> Tensor:
    """The class whose integrand bounds the threshold from below, (rows, 1).

    It is the target if that trails. Where it leads, the gradient lives at thresholds that its strongest rival could win,
    far left of the mode of (1), and these must be covered as well.
    """
    rival = centred.scatter(-1, own, -math.inf)
    best, best_index = rival.max(-1, keepdim=True)
    reach = -2 * math.sqrt(-math.log(torch.finfo(centred.dtype).tiny))  # beyond it the gradient underflows
    return torch.where((best < 0) & (best > reach), best_index, own)


def _by_rows(integral: Callable[[Tensor, Tensor], Tensor], scores: Tensor, nodes: Tensor) -> Tensor:
    """``integral(scores, nodes)``, a block of rows at a time where all at once would take too much memory."""
    rows = max(1, CHUNK // (scores.shape[1] * nodes.shape[1]))
    if rows >= len(scores):
        return integral(scores, nodes)
    blocks = zip(scores.split(rows), nodes.split(rows), strict=True)
    return torch.cat([checkpoint(integral, *block, use_reentrant=False) for block in blocks])


def _end(scores: Tensor, index: Tensor, noise: Noise, drop: float, side: int) -> Tensor:
    """The threshold left (side −1) or right (+1) of the mode of a class's integrand, ``drop`` nats or more below it.

    In float64 whatever the scores are: far out the curvature is a small difference of large terms.
    """
    scores = scores.double()
    own = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, index, True)

    def log_integrand(u: Tensor) -> Tensor:
        x = u - scores
        return torch.where(own, noise.log_prob(x), noise.log_cdf(x)).sum(-1, keepdim=True)

    def slope(u: Tensor) -> Tensor:
        x = u - scores
        return torch.where(own, noise.score(x), noise.hazard(x)).sum(-1, keepdim=True)

    def curvature(u: Tensor) -> Tensor:
        x = u - scores
        return torch.where(own, noise.score_slope(x), noise.hazard_slope(x)).sum(-1, keepdim=True)

    # The slope is convex and decreasing, and positive where the density of the class itself peaks: from there Newton's
    # method climbs to the mode without passing it. Within half a nat of the top is near enough.
    u = scores.gather(-1, index) + noise.mode
    for _ in range(MAX_NEWTON_STEPS):
        rise, bend = slope(u), curvature(u)
        step = -rise / bend
        if not (rise * step > 1).any():
            break
        u = u + step
    level = log_integrand(u) - drop
    # Go out until below the level, then come back: on a concave function Newton's method from outside stays outside.
    width = (-2 * drop / bend).sqrt()
    for _ in range(MAX_DOUBLINGS):
        inside = log_integrand(u + side * width) > level
        if not inside.any():
            break
        width = torch.where(inside, 2 * width, width)
    end = u + side * width
    for _ in range(3):
        closer = end + (level - log_integrand(end)) / slope(end)
        end = torch.where(side * (closer - u) > 0, closer, end)  # rounding, or inf/inf, must not cross the mode
    return end
