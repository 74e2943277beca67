r"""The threshold integral over classes that lie on several ranks: only sums at thresholds are shared.

Σ_j log F(u − z_j) over all rivals is the sum of what each shard's rivals give, and with it every rank knows the integrand at u.
All ranks see the same numbers, so all place the same panels (``reference.place``), and the gradient in a shard's own scores
follows from the thresholds' shares in p alone:

    ∂ log p / ∂z_j = −Σ_q w_q r(u_q − z_j),        w_q = weight_q f(u_q) e^{G(u_q)} / p,        r = f/F.

It holds for p > 1/2 as well, where the integral is that of 1 − p. Panels are placed on the CPU, whatever the scores' device:
there the same numbers make the same panels on every rank, while a GPU adds in no fixed order.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lossmith.engine.argmax import reference
from lossmith.engine.argmax.quadrature import gauss, nodes_of
from lossmith.maths.special import log1mexp
from lossmith.noise import Noise

Total = Callable[[Tensor], Tensor]  # the sum of a tensor over all shards


def log_prob(rivals: Tensor, highest: Tensor, noise: Noise, dtype: torch.dtype, total: Total) -> tuple[Tensor, Tensor, Tensor]:
    """log P(the target wins) of rows whose rivals are spread over shards.

    Args:
        rivals: (rows, C_r) float64: this shard's, in units of the noise, from the target's score; −inf where a class is none.
        highest: (rows,) the strongest rival of all shards, finite, and on every shard the same.
        noise: the distribution of ε; without kinks.
        dtype: of the scores, which says how finely to integrate.
        total: adds up over the shards; every shard calls it as often, with tensors of the same shapes.

    Returns:
        log p (rows,), thresholds (rows, nodes) and their shares w (rows, nodes), float64, on every shard the same.

    Cost: O(rows · C_r · nodes) time; ``total`` is called four to seven times, each row with 700 to 800 float64 numbers in all
    for float64 scores and 230 to 360 for float32; three times that with Student's t.
    """
    highest = highest.double().cpu()

    def log_cdf(row: Tensor, u: Tensor) -> Tensor:
        return total(sums(rivals, row.to(rivals.device), u.to(rivals.device))).cpu()

    def sums(rivals: Tensor, row: Tensor, u: Tensor) -> Tensor:
        return torch.cat([local_sums(rivals[i], v, noise) for i, v in _blocks(rivals, row, u)])

    def integrands(row: Tensor, u: Tensor) -> Tensor:
        below = log_cdf(row, u)
        return noise.log_prob(u).unsqueeze(-1) + torch.stack([below, log1mexp(below)], -1)

    anchors = torch.stack([torch.zeros_like(highest), highest], -1)
    edges = reference.around(anchors, noise)
    panels, integrals = reference.place(edges, anchors, anchors, noise, integrands, reference.smaller, reference.RULES[dtype])
    complement = integrals[:, 1] < integrals[:, 0]
    ends, exists = nodes_of(panels, len(rivals))
    u, log_weight = gauss(ends, exists)
    below = log_cdf(torch.arange(len(rivals)), u)
    log_density = noise.log_prob(u) + log_weight
    log = log_density + torch.where(complement.unsqueeze(-1), log1mexp(below), below)
    log = torch.where(exists.any(-1, keepdim=True), log, -math.inf).logsumexp(-1)  # without nodes the smaller one is nothing
    log_p = torch.where(complement, log1mexp(log), log)  # (N3)
    share = torch.where(log_weight.isneginf(), 0.0, (log_density + below - log_p.unsqueeze(-1)).exp())
    return log_p.to(rivals.device), u.to(rivals.device), share.to(rivals.device)


def gradient(rivals: Tensor, u: Tensor, share: Tensor, noise: Noise) -> Tensor:
    """∂ log p / ∂ rivals, (rows, C_r) float64, from the thresholds and shares that ``log_prob`` gave; 0 for removed classes."""
    grad = torch.zeros_like(rivals)
    for rows, v in _blocks(rivals, torch.arange(len(rivals), device=rivals.device), u):
        with torch.enable_grad():
            z = rivals[rows].requires_grad_()
            grad[rows] = torch.autograd.grad(local_sums(z, v, noise), z, share[rows])[0]
    return grad.masked_fill_(rivals.isneginf(), 0.0)


def local_sums(rivals: Tensor, u: Tensor, noise: Noise) -> Tensor:
    """Σ_j log F(u − z_j) over (rows, C_r) rivals at thresholds (rows, nodes)."""
    return noise.log_cdf(u.unsqueeze(-1) - rivals.unsqueeze(-2)).sum(-1)


def _blocks(rivals: Tensor, row: Tensor, u: Tensor) -> zip[tuple[Tensor, Tensor]]:
    step = max(1, reference.CHUNK // (rivals.shape[1] * u.shape[1]))
    return zip(row.split(step), u.split(step), strict=True)
