r"""The threshold integral in plain torch, any device, differentiable twice; the oracle for faster kernels.

The equations (A…) are in ``docs/how/argmax.md``, (N…) in ``docs/how/numbers.md``. The integrals are (A1). A target of score 0
beats its rivals z_j if its noisy score u exceeds T. T is the highest noisy score of the rivals, or the k-th highest if the
target has to be among the k highest (``topk``):

    p = ∫ f(u) P(T < u) du        1 − p = ∫ f(u) P(T > u) du        log P(T < u) = Σ_j log F(u − z_j) for k = 1.

**Which of the two.** A row integrates the smaller of p and 1 − p, since the larger follows without loss (N3). The gradient
keeps its digits for the same reason: the gradient of log(1 − p) comes from thresholds that a rival exceeds, and the mass around
the target does not hide these.

**Where, and how many.** First edges lie around the target and the strongest rival, since only there an integrand bends (N12).
``quadrature.refine`` halves the panels between edges until each is resolved (N13). Noise may have kinks (``noise.kinks``). Then
panels also end at every kink that matters. If f jumps at a kink, panels move with the kinks, since the move gives the integral
a derivative (N15). Otherwise nodes are constants for autograd.

Scores are in units of the noise, (rows, C). −inf removes a class. The arithmetic is float64 for float32 scores too: far in a
tail log F is so large that float32 would leave no digit of p. Only the rule of the panels is coarser for float32.
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
ROUGH = 0.1  # relative error of a first integral, which only has to say where an integrand lives

CHUNK = 1 << 19  # most elements of one (rows, nodes, classes) block, 4 MB; more work goes block by block, to bound the memory
OVER = 100.0  # nats: a tail ends where it is below e^(−OVER) (N12), far below the rounding of any wanted integral
POWERS_OF_4 = 490  # the last one is nearly the largest float64
FAR = 1e30  # scales below the target: place of a removed class for noise with kinks, since a kink at −inf has a gradient of nan
LEAST = -690.0  # log(1 − p) below which p is 1: near the smallest float64, e^−708, digits are few and halving would never end
# Probabilities whose quantiles cut panels if the noise may have several peaks (``place``): 64 equal shares, and the tails.
LEVELS = [1e-9, 1e-6, 1e-4, 1e-3, *(i / 64 for i in range(1, 64)), 0.999, 0.9999, 1 - 1e-6]
CROWD = 4  # most kinks of a panel in the search for kinks that matter: a panel with more is halved
WIDE = 8.0  # widest panel of ``log_probs``, in scales: the 16 nodes of a wider panel might miss a class's peak, one scale wide
FEW = 32  # classes up to which noise with kinks gets nodes for each class: only these have second derivatives at ties


def log_prob(scores: Tensor, target: Tensor, noise: Noise, rank: int = 1) -> Tensor:
    """log P(the target is among the ``rank`` highest), one class a row.

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64; no NaN, no +inf.
        target: (rows,) int64 class indices.
        noise: the distribution of ε.
        rank: from 1 to C − 1.

    Returns:
        (rows,) log-probabilities in nats, dtype of ``scores``, differentiable twice in ``scores``.

    Cost: O(rows · C · nodes · rank) time, O(CHUNK + rows · C) memory. A row has some 100 nodes for light tails, and 400 for
    algebraic tails. Each kink at which the integrand counts adds 32 nodes: some 20 kinks of 1000 classes for Laplace noise.
    """
    dtype = scores.dtype
    own = target.unsqueeze(-1)
    own_score = scores.gather(-1, own)
    lost = own_score.isneginf()
    # From the target's score, since nodes near the target are then exact for scores of any size.
    centred = torch.where(lost, 0.0, scores.double() - own_score.double())
    removed = centred.isneginf().scatter(-1, own, True)
    rivals = centred.masked_fill(removed, _removed_score(noise))  # log F = 0 takes a removed class out of the product

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
    has_nodes = exists.any(-1) & ~lost.squeeze(-1)

    def integral(rivals: Tensor, ends: Tensor, exists: Tensor, complement: Tensor, has_nodes: Tensor) -> Tensor:
        nodes, log_weight = gauss(ends, exists)
        log = noise.log_prob(nodes) + log_tail(rivals, nodes, noise, rank, above=complement) + log_weight
        return _logsumexp(torch.where(has_nodes.unsqueeze(-1), log, 0.0), -1)

    log_i = _by_rows(integral, rivals, ends, exists, complement, has_nodes)
    log_i = torch.where(has_nodes, log_i, -math.inf)
    log_complement = torch.where(has_nodes & complement, log_i, -LOG_2)  # (N3)
    log_p = torch.where(complement, torch.where(has_nodes, log1mexp(log_complement), 0.0), log_i)
    return torch.where(lost.squeeze(-1), -math.inf, log_p).to(dtype)


def log_probs(scores: Tensor, noise: Noise) -> Tensor:
    """log p of every class, from one set of nodes: the product of all F once, times f/F at each class (A24).

    A class above one half gets log p from the sum of its rivals (N4), (N5).

    Args:
        scores: (rows, C), C ≥ 2, float32 or float64; no NaN, no +inf.
        noise: the distribution of ε.

    Returns:
        (rows, C) log-probabilities in nats, dtype of ``scores``, differentiable twice. The gradient of log p_k in z_k has the
        rounding error of 1: as with softmax, a gradient of 1e-12 has few digits. ``log_prob`` keeps these digits.

    Cost: as ``log_prob``, with about 5 nodes more for each scale between the highest and the lowest score; at most C times that
    of ``log_prob``.
    """
    dtype = scores.dtype
    removed = scores.isneginf()
    z = scores.double()
    top = z.amax(-1, keepdim=True)
    centred = torch.where(removed, -math.inf, z - torch.where(top.isneginf(), 0.0, top.detach()))
    finite = centred.masked_fill(removed, _removed_score(noise))
    lowest = torch.where(removed, 0.0, centred).amin(-1, keepdim=True)
    unit = float(_location(noise)[1])
    spread = lowest.neg().max().item() / unit if len(scores) else 0.0
    if spread > 16 * scores.shape[-1] or ((noise.kinks or not noise.unimodal) and scores.shape[-1] <= FEW):
        return _log_probs_one_by_one(scores, noise)

    def log_integrands(finite: Tensor, u: Tensor) -> Tensor:
        x = u.unsqueeze(-1) - finite.unsqueeze(-2)
        log_cdf = noise.log_cdf(x)
        product = log_cdf.sum(-1, keepdim=True)
        impossible = product.isneginf()  # some F is 0: then every product is 0, and f of the class with F = 0
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
    """As ``log_probs``, but each class has its own nodes; classes go in groups, to bound the memory."""

    def log_probs_of(scores: Tensor, first: int, last: int) -> Tensor:
        classes = torch.arange(first, last, device=scores.device).repeat(len(scores))
        return log_prob(scores.repeat_interleave(last - first, 0), classes, noise).view(len(scores), last - first)

    C = scores.shape[-1]
    step = max(1, CHUNK // max(1, scores.numel()))
    if step >= C:
        return log_probs_of(scores, 0, C)
    parts = [checkpoint(log_probs_of, scores, k, min(k + step, C), use_reentrant=False) for k in range(0, C, step)]
    return torch.cat(parts, -1)


def smaller(total: Tensor) -> Tensor:
    """Which of the log integrals of p and 1 − p, (rows, 2), is wanted: the smaller one, unless that is below e^LEAST."""
    return (total == total.amin(-1, keepdim=True)) & (total > total.new_tensor([-math.inf, LEAST]))


def _size_of_kinks(total: Tensor) -> Tensor:
    """The logarithm of the size beside which a kink matters, (rows, 2), from the log integrals of p and 1 − p, (rows, 2).

    Both integrands (A1) bend at a rival's kink by the same amount, since P(T > u) = 1 − P(T < u). The bend is at most of the
    order of f(u) P(T < u). A kink whose bend is negligible beside the smaller integral is left out.
    """
    level = torch.where(smaller(total), total, math.inf).amin(-1)
    return torch.stack([level, torch.full_like(level, math.inf)], -1)


def around(anchors: Tensor, noise: Noise) -> Tensor:
    """Edges (N12), (rows, m · edges), around the places ``anchors`` (rows, m) where the integrand may bend."""
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
        edges: (rows, m) float64, around the anchors, in scales.
        anchors: (rows, m') float64, where the integrand may bend, in scales.
        all_scores: (rows, C) float64, in scales; they give the places of the kinks, and count for noise with kinks only.
        noise: the distribution of ε.
        integrand: the logarithms of the integrands.
        wanted: which of the log integrals (rows, outputs) matter, bool of the same shape.
        rule: when a panel is done, and when a panel counts as zero.
        bent: for noise with kinks: the logarithms of the sizes beside which a kink of each integrand matters, (rows, outputs),
            from the log integrals (rows, outputs); inf where another output has the same kinks. By default the log integrals
            that are ``wanted``.

    Returns:
        The panels, in the order of their rows, and the log integrals, (rows, outputs).
    """

    def levels(total: Tensor) -> Tensor:
        return torch.where(wanted(total), total, math.inf)

    rows = len(edges)
    panels = between(edges.sort(-1).values, least=2 * float(_location(noise)[1]))
    if noise.kinks:  # cut at the anchors' kinks, since both ends of a panel may lie outside the support
        panels = cut(panels, kinks.positions(anchors, noise))
    if not noise.unimodal:  # peaks may lie anywhere between the quantiles
        places = anchors.unsqueeze(-1) + noise.icdf(torch.tensor(LEVELS, dtype=torch.float64)).to(anchors)
        panels = cut(panels, places.flatten(-2).sort(-1).values)
    panels = screen(panels, rows, integrand, rule)
    if noise.kinks:
        rough = rule._replace(error=ROUGH)
        panels, total = refine(panels, rows, integrand, lambda total: total, rough)
        bends = kinks.distinct(kinks.positions(all_scores, noise))
        sizes = levels(total) if bent is None else bent(total)
        search = rule._replace(error=math.inf)  # only crowds are halved, since the small 1 − p is no measure of p's panels
        near, _ = refine(
            panels, rows, integrand, lambda _: sizes, search, lambda panels: kinks.number_inside(panels, bends) > CROWD
        )
        panels = cut(panels, torch.where(kinks.covered(bends, near), bends, math.inf))
    return refine(panels, rows, integrand, levels, rule)


def _in_blocks(log_integrands: Callable[[Tensor, Tensor], Tensor], scores: Tensor) -> Integrand:
    """The integrand of panels, from ``log_integrands`` of scores (n, C) and thresholds (n, m); blocks bound the memory."""
    step = max(1, CHUNK // (scores.shape[1] * len(INSPECTED)))

    def integrand(row: Tensor, u: Tensor) -> Tensor:
        blocks = zip(row.split(step), u.split(step), strict=True)
        return torch.cat([log_integrands(scores[i], block) for i, block in blocks])

    return integrand


def _removed_score(noise: Noise) -> float:
    """The score of a removed class, in scales."""
    return -FAR if noise.kinks else -math.inf


def _distances(noise: Noise) -> Tensor:
    """The distances of (N12), ascending: from the median to where both tails of the noise are below e^(−OVER)."""
    middle, unit = _location(noise)
    distance = 2 * unit * 4.0 ** torch.arange(POWERS_OF_4, dtype=torch.float64)
    alive = (noise.log_cdf(middle - distance) > -OVER) | (noise.log_sf(middle + distance) > -OVER)
    return distance[: int(alive.sum()) + 1]


def _location(noise: Noise) -> tuple[Tensor, Tensor]:
    """m and δ of (N12): the median, and the distance of the quartiles over 1.35, one standard deviation of normal noise."""
    low, middle, high = noise.icdf(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return middle, (high - low) / 1.35


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """(N11), with weights in backward that sum to 1: torch's weights come from a rounded sum, which is off for |x| ≫ 1.

    A row of −inf gives −inf, and no gradient.
    """
    peak = x.detach().amax(dim, keepdim=True)
    nothing = peak.isneginf()
    peak = torch.where(nothing, 0.0, peak)
    total = torch.where(nothing, 0.0, x - peak).logsumexp(dim)
    return torch.where(nothing.squeeze(dim), -math.inf, total + peak.squeeze(dim))


def _by_rows(integral: Callable[..., Tensor], scores: Tensor, ends: Tensor, exists: Tensor, *others: Tensor) -> Tensor:
    """``integral(scores, ends, exists, …)`` (rows, …), by blocks if all rows together exceed the memory of CHUNK.

    A block has as many rows as CHUNK allows. Every row of a block has the number of panels of the fullest row. A single row
    above CHUNK is cut into groups of panels. Blocks are recomputed in backward.

    Args:
        integral: the log integrals of the rows of a block.
        scores: (rows, C).
        ends: (rows, most, 2), the ends of the panels, those that exist first.
        exists: (rows, most) bool.
        others: more tensors (rows, …).
    """
    most = max(1, CHUNK // max(1, scores.shape[1] * NODES))  # panels of a block
    if exists.numel() <= most:
        return integral(scores, ends, exists, *others)
    count = exists.sum(-1)
    sizes = _sizes_of_blocks(count.tolist(), most)
    parts = []
    for block in zip(*(tensor.split(sizes) for tensor in (scores, ends, exists, count, *others)), strict=True):
        block_scores, block_ends, block_exists, number, *rest = block
        full = max(1, int(number.max()))
        groups = zip(block_ends[:, :full].split(most, 1), block_exists[:, :full].split(most, 1), strict=True)
        pieces = [checkpoint(integral, block_scores, *group, *rest, use_reentrant=False) for group in groups]
        parts.append(pieces[0] if len(pieces) == 1 else _logsumexp(torch.stack(pieces, -1), -1))
    return torch.cat(parts)


def _sizes_of_blocks(count: list[int], most: int) -> list[int]:
    """Rows of each block, as many as keep rows times panels of the fullest row ≤ ``most``. count: panels of each row."""
    sizes, fullest = [0], 0
    for number in count:
        fullest = max(fullest, number)
        if sizes[-1] and (sizes[-1] + 1) * fullest > most:
            sizes.append(0)
            fullest = number
        sizes[-1] += 1
    return sizes
