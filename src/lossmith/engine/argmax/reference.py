r"""The threshold integral in plain torch, any device, differentiable twice; the oracle for faster kernels.

With unit noise of cdf F and density f, a class of score 0 beats its rivals z_j when its noisy score u exceeds T, the highest
of theirs (or the k-th highest, for being among the top k):

    p = ∫ f(u) P(T < u) du        1 − p = ∫ f(u) P(T > u) du        log P(T < u) = Σ_j log F(u − z_j) for k = 1.      (1)

**Which of the two.** Both integrands are positive, so that each integral keeps its relative accuracy however small it is; the
larger of p and 1 − p then follows from the smaller as log p = log1p(−(1 − p)) without loss. A row integrates the smaller one:
a sure right answer keeps the digits of 1 − p, a hopeless one those of p. The gradient gains the same: that of
log(1 − p), which lives at thresholds a rival could win, is not drowned by the mass around the target.

**Where, and how many.** Edges are laid around the two places where an integrand of (1) can bend, the target's own noise
and the noise of its strongest rival, at distances that grow by factors of 4 until the tails of F are below e^(−100).
``panels.refine`` halves what lies between until each piece is resolved: the number of nodes follows from the integrand. Where
f or F is not smooth (``noise.kinks``) the pieces are also cut at every such point that matters, and move with the scores,
since a derivative of the integral has a term from them. Otherwise nodes are constants for differentiation.

Scores come in units of the noise, as (rows, C). −inf removes a class. All is computed in float64; for float32 scores the rule
is coarser, not the arithmetic, since at thresholds far in a tail log F is so large that float32 would leave no digit of p.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lossmith.engine.argmax import kinks
from lossmith.engine.argmax.quadrature import (
    INSPECTED,
    NODES,
    Integrand,
    Panels,
    Rule,
    between,
    cut,
    gauss,
    nodes_of,
    refine,
    screen,
)
from lossmith.engine.argmax.topk import log_tail, log_tails
from lossmith.maths.special import LOG_2, leader_from_rivals, log1mexp
from lossmith.noise import Noise

RULES = {torch.float64: Rule(drop=38.0, error=1e-17), torch.float32: Rule(drop=19.0, error=1e-8)}
ROUGH = 0.1  # error at which it is seen where an integrand lives

CHUNK = 1 << 19  # most elements of one (rows, nodes, classes) block; larger work is cut up and recomputed in backward
OVER = 100.0  # nats: where a tail is lighter than exp(−OVER), it is over
POWERS_OF_4 = 490  # the last one is nearly the largest float64
FAR = 1e30  # where a class goes that is removed, if nodes follow the kinks
LEAST = -690.0  # log(1 − p) below which p is 1: numbers near the smallest have few digits, and refining their stairs never ends
LEVELS = [1e-9, 1e-6, 1e-4, 1e-3, *(i / 64 for i in range(1, 64)), 0.999, 0.9999, 1 - 1e-6]  # of the noise, for ``_place``
CROWD = 4  # kinks that a panel may have while it is seen which matter
WIDE = 8.0  # widest panel of ``log_probs``, in scales: no class's own peak, one scale wide, hides in it
FEW = 32  # classes up to which noise with kinks gets nodes for each class: only these have second derivatives at ties


def log_prob(scores: Tensor, target: Tensor, noise: Noise, rank: int = 1) -> Tensor:
    """log P(the target is among the ``rank`` highest), one class a row.

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64; no NaN, no +inf.
        target: (rows,) int64 class indices.
        noise: the distribution of ε.
        rank: from 1 to C − 1.

    Returns:
        (rows,) log-probabilities, differentiable twice in ``scores``.

    Cost: O(rows · C · nodes · rank) time, O(CHUNK + rows · C) memory; some 100 nodes a row for light tails, 400 for
    algebraic ones, and 32 more for each kink at which the integrand counts: some 20 of 1000 with Laplace noise.
    """
    dtype = scores.dtype
    own = target.unsqueeze(-1)
    own_score = scores.gather(-1, own)
    lost = own_score.isneginf()
    # Measured from the target's score the nodes are exact near it, whatever the size of the scores.
    centred = torch.where(lost, 0.0, scores.double() - own_score.double())
    removed = centred.isneginf().scatter(-1, own, True)
    rivals = centred.masked_fill(removed, _nowhere(noise))  # log F = 0 takes them out of the product

    def log_integrands(rivals: Tensor, u: Tensor) -> Tensor:
        return noise.log_prob(u).unsqueeze(-1) + torch.stack(log_tails(rivals, u, noise, rank), -1)

    with torch.no_grad():
        highest = rivals.amax(-1, keepdim=True)
        anchors = torch.cat([torch.zeros_like(highest), highest.nan_to_num(neginf=0.0)], -1)
        edges = around(anchors, noise)
        integrand = _in_blocks(log_integrands, rivals)
        panels, total = place(edges, anchors, centred, noise, integrand, smaller, RULES[dtype], _size_of_kinks)
        complement = total[:, 1] < total[:, 0]
        ends, exists = nodes_of(panels, len(scores))
    if kinks.jumps(noise):
        ends = kinks.follow(ends, exists, kinks.at_rest(kinks.positions(centred, noise), noise))
    some = exists.any(-1) & ~lost.squeeze(-1)

    def integral(rivals: Tensor, ends: Tensor, exists: Tensor, complement: Tensor, some: Tensor) -> Tensor:
        nodes, log_weight = gauss(ends, exists)
        log = noise.log_prob(nodes) + log_tail(rivals, nodes, noise, rank, above=complement) + log_weight
        return _logsumexp(torch.where(some.unsqueeze(-1), log, 0.0), -1)

    log_i = _by_rows(integral, rivals, ends, exists, complement, some)
    log_i = torch.where(some, log_i, -math.inf)
    sure = torch.where(some & complement, log_i, -LOG_2)
    log_p = torch.where(complement, torch.where(some, log1mexp(sure), 0.0), log_i)
    return torch.where(lost.squeeze(-1), -math.inf, log_p).to(dtype)


def log_probs(scores: Tensor, noise: Noise) -> Tensor:
    """log p of every class, from one set of nodes: the product of all F once, times f/F at each class.

    A class above one half gets its log p from the sum of the others, which is what (1) comes to.

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64; no NaN, no +inf.
        noise: the distribution of ε.

    Returns:
        (rows, C) log-probabilities, differentiable twice. The gradient of log p_k in z_k itself is good to the rounding of
        1, not of its own size: as with softmax, a gradient of 1e-12 has few digits. ``log_prob`` keeps them.

    Cost: as ``log_prob``, with about 5 nodes more for each scale between the highest and the lowest score, but at most C times.
    """
    dtype = scores.dtype
    removed = scores.isneginf()
    z = scores.double()
    top = z.amax(-1, keepdim=True)
    centred = torch.where(removed, -math.inf, z - torch.where(top.isneginf(), 0.0, top.detach()))
    finite = centred.masked_fill(removed, _nowhere(noise))
    lowest = torch.where(removed, 0.0, centred).amin(-1, keepdim=True)
    unit = float(_location(noise)[1])
    spread = lowest.neg().max().item() / unit if len(scores) else 0.0
    if spread > 16 * scores.shape[-1] or ((noise.kinks or not noise.unimodal) and scores.shape[-1] <= FEW):
        return _log_probs_one_by_one(scores, noise)

    def log_integrands(finite: Tensor, u: Tensor) -> Tensor:
        x = u.unsqueeze(-1) - finite.unsqueeze(-2)
        log_cdf = noise.log_cdf(x)
        product = log_cdf.sum(-1, keepdim=True)
        impossible = product.isneginf()  # some F is 0; then so are all products, and f at the class itself
        rest = torch.where(impossible, 0.0, product) - torch.where(impossible, 0.0, log_cdf)
        return torch.where(impossible, -math.inf, rest + noise.log_prob(x))

    with torch.no_grad():
        present = ~removed
        steps = torch.linspace(0, 1, math.ceil(spread / WIDE) + 1, dtype=z.dtype, device=z.device)
        anchors = torch.cat([lowest, torch.zeros_like(lowest)], -1)
        edges = torch.cat([around(anchors, noise), lowest * steps], -1)
        integrand = _in_blocks(log_integrands, finite)
        panels, _ = place(edges, anchors, centred, noise, integrand, lambda _: present, RULES[dtype])
        ends, exists = nodes_of(panels, len(scores))
    if noise.kinks:
        ends = kinks.follow(ends, exists, kinks.positions(centred, noise))

    def integral(finite: Tensor, ends: Tensor, exists: Tensor) -> Tensor:
        nodes, log_weight = gauss(ends, exists)
        return _logsumexp(log_integrands(finite, nodes) + log_weight.unsqueeze(-1), dim=-2)

    log_p = torch.where(removed, -math.inf, _by_rows(integral, finite, ends, exists))
    if noise.kinks:
        log_p = log_p + kinks.own_jumps(centred, finite, log_p.detach(), noise)
    return leader_from_rivals(log_p).to(dtype)


def _log_probs_one_by_one(scores: Tensor, noise: Noise) -> Tensor:
    """As ``log_probs``, each class with nodes of its own, some classes at a time."""

    def some(scores: Tensor, first: int, last: int) -> Tensor:
        classes = torch.arange(first, last, device=scores.device).repeat(len(scores))
        return log_prob(scores.repeat_interleave(last - first, 0), classes, noise).view(len(scores), last - first)

    C = scores.shape[-1]
    step = max(1, CHUNK // max(1, scores.numel()))
    if step >= C:
        return some(scores, 0, C)
    parts = [checkpoint(some, scores, k, min(k + step, C), use_reentrant=False) for k in range(0, C, step)]
    return torch.cat(parts, -1)


def smaller(total: Tensor) -> Tensor:
    """Which of the log integrals of p and 1 − p, (rows, 2), is wanted: the smaller, unless it is nothing."""
    return (total == total.amin(-1, keepdim=True)) & (total > total.new_tensor([-math.inf, LEAST]))


def _size_of_kinks(total: Tensor) -> Tensor:
    """The size beside which kinks matter, from the log integrals of p and 1 − p, (rows, 2).

    P(T > u) = 1 − P(T < u): both integrands of (1) bend at a rival's kink by the same amount, which is at most of the order of
    f(u) P(T < u). Where that is nothing beside the smaller integral, the kink is nothing.
    """
    level = torch.where(smaller(total), total, math.inf).amin(-1)
    return torch.stack([level, torch.full_like(level, math.inf)], -1)


def around(anchors: Tensor, noise: Noise) -> Tensor:
    """Edges at growing distances from the places (rows, m) where the integrand may bend."""
    distance = _distances(noise)
    around = (_location(noise)[0] + torch.cat([-distance.flip(0), distance])).to(anchors)
    return (anchors.unsqueeze(-1) + around).flatten(-2)


def place(
    edges: Tensor,
    anchors: Tensor,
    all_scores: Tensor,
    noise: Noise,
    integrand: Integrand,
    wanted: Callable[[Tensor], Tensor],
    rule: Rule,
    bent: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Panels, Tensor]:
    """Panels for any integrand.

    Args:
        edges: (rows, m), around the anchors.
        anchors: (rows, m'), where the integrand may bend.
        all_scores: (rows, C), which say where the kinks are; for noise with kinks only.
        noise: the distribution of ε.
        integrand: the logarithms of the integrands.
        wanted: from the log integrals so far, (rows, outputs), to those that matter, boolean of the same shape.
        rule: when a panel is done, and when it counts as zero.
        bent: for noise with kinks: from the log integrals, (rows, outputs), to the logarithms of the sizes beside which a kink
            of each integrand matters; inf where another output shows the same kinks. By default the levels of ``wanted``.

    Returns:
        The panels, in the order of their rows, and the log integrals, (rows, outputs).
    """

    def levels(total: Tensor) -> Tensor:
        return torch.where(wanted(total), total, math.inf)

    rows = len(edges)
    panels = between(edges.sort(-1).values, least=2 * float(_location(noise)[1]))
    if noise.kinks:  # of the anchors at least, else both ends of a panel may lie outside the support
        panels = cut(panels, kinks.positions(anchors, noise))
    if not noise.unimodal:  # then peaks may stand anywhere between the quantiles
        places = anchors.unsqueeze(-1) + noise.icdf(torch.tensor(LEVELS, dtype=torch.float64)).to(anchors)
        panels = cut(panels, places.flatten(-2).sort(-1).values)
    panels = screen(panels, rows, integrand, rule)
    if noise.kinks:
        rough = rule._replace(error=ROUGH)
        panels, total = refine(panels, rows, integrand, lambda total: total, rough)
        bends = kinks.distinct(kinks.positions(all_scores, noise))
        sizes = levels(total) if bent is None else bent(total)
        search = rule._replace(error=math.inf)  # only crowds are halved: the small size of 1 − p is no measure of p's panels
        near, _ = refine(
            panels, rows, integrand, lambda _: sizes, search, lambda some: kinks.number_inside(some, bends) > CROWD
        )
        panels = cut(panels, torch.where(kinks.covered(bends, near), bends, math.inf))
    return refine(panels, rows, integrand, levels, rule)


def _in_blocks(log_integrands: Callable[[Tensor, Tensor], Tensor], scores: Tensor) -> Integrand:
    """The integrand of panels, from that of rows of ``scores`` (n, C) and thresholds (n, m), some panels at a time."""
    step = max(1, CHUNK // (scores.shape[1] * len(INSPECTED)))

    def integrand(row: Tensor, u: Tensor) -> Tensor:
        blocks = zip(row.split(step), u.split(step), strict=True)
        return torch.cat([log_integrands(scores[i], block) for i, block in blocks])

    return integrand


def _nowhere(noise: Noise) -> float:
    return -FAR if noise.kinks else -math.inf


def _distances(noise: Noise) -> Tensor:
    """From the middle of the noise outwards, in factors of 4, to where its tails are over."""
    middle, unit = _location(noise)
    distance = 2 * unit * 4.0 ** torch.arange(POWERS_OF_4, dtype=torch.float64)
    alive = (noise.log_cdf(middle - distance) > -OVER) | (noise.log_sf(middle + distance) > -OVER)
    return distance[: int(alive.sum()) + 1]


def _location(noise: Noise) -> tuple[Tensor, Tensor]:
    """Median, and about one standard deviation if it were normal."""
    low, middle, high = noise.icdf(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return middle, (high - low) / 1.35


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """As torch's, with weights that sum to 1 in backward: torch takes them from the rounded sum, which is off for |x| ≫ 1.

    −inf throughout gives −inf, and no gradient.
    """
    peak = x.detach().amax(dim, keepdim=True)
    nothing = peak.isneginf()
    peak = torch.where(nothing, 0.0, peak)
    total = torch.where(nothing, 0.0, x - peak).logsumexp(dim)
    return torch.where(nothing.squeeze(dim), -math.inf, total + peak.squeeze(dim))


def _by_rows(integral: Callable[..., Tensor], scores: Tensor, ends: Tensor, exists: Tensor, *others: Tensor) -> Tensor:
    """``integral(scores, ends, exists, …)`` (rows, …), by blocks where all at once would take too much memory.

    A block has as many rows as the budget allows, with as many panels as the fullest of them; a row that is itself too large is
    cut into groups of panels. Blocks are recomputed in backward.

    Args:
        integral: of a block, the log integrals of its rows.
        scores: (rows, C).
        ends: (rows, most, 2), the ends of the panels, those that exist first.
        exists: (rows, most) boolean.
        others: more tensors of the rows.
    """
    most = max(1, CHUNK // max(1, scores.shape[1] * NODES))  # panels of a block
    if exists.numel() <= most:
        return integral(scores, ends, exists, *others)
    count = exists.sum(-1)
    sizes = _sizes_of_blocks(count.tolist(), most)
    parts = []
    for block in zip(*(tensor.split(sizes) for tensor in (scores, ends, exists, count, *others)), strict=True):
        some_scores, some_ends, some_exist, number, *rest = block
        full = max(1, int(number.max()))
        groups = zip(some_ends[:, :full].split(most, 1), some_exist[:, :full].split(most, 1), strict=True)
        pieces = [checkpoint(integral, some_scores, *group, *rest, use_reentrant=False) for group in groups]
        parts.append(pieces[0] if len(pieces) == 1 else _logsumexp(torch.stack(pieces, -1), -1))
    return torch.cat(parts)


def _sizes_of_blocks(count: list[int], most: int) -> list[int]:
    """How many rows each block has, from their numbers of panels: as many as keep rows times the fullest row ≤ ``most``."""
    sizes, fullest = [0], 0
    for number in count:
        fullest = max(fullest, number)
        if sizes[-1] and (sizes[-1] + 1) * fullest > most:
            sizes.append(0)
            fullest = number
        sizes[-1] += 1
    return sizes
