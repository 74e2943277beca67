r"""The distribution of T, the k-th highest of the rivals' noisy scores, at given thresholds u.

T < u if at most k − 1 rivals exceed u. The number N of rivals above u is a sum of independent trials with chances
S_j = 1 − F(u − z_j): P(N = m) is a coefficient of a product of polynomials (N17), taken pairwise, up a tree. P(N ≤ k − 1) needs
tilted odds, lest the coefficients underflow (N18). P(N ≥ k) needs one more coefficient, since 1 minus the rest would lose
digits (N19). The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lossmith.maths.special import log1mexp
from lossmith.noise import Noise

BUDGET = 1 << 22  # most elements of one level of the tree; more thresholds are taken in turn, and recomputed in backward
NEAR = 0.1  # error of θ: any θ gives the same result (N18)
CERTAIN = 1e8  # log odds beyond which a trial is settled


def log_tails(rivals: Tensor, u: Tensor, noise: Noise, rank: int) -> tuple[Tensor, Tensor]:
    """log P(T < u) and log P(T > u) for the ``rank``-th highest noisy rival T.

    Args:
        rivals: (rows, C) scores in float64.
        u: (rows, nodes) thresholds in float64.
        noise: the distribution of ε.
        rank: k ≥ 1.

    Returns:
        Two (rows, nodes) tensors in float64, differentiable twice.

    Cost: O(rows · nodes · C · k).
    """
    if rank == 1:
        below = noise.log_cdf(u.unsqueeze(-1) - rivals.unsqueeze(-2)).sum(-1)
        return below, log1mexp(below)
    return _by_nodes(_log_at_most, rivals, u, noise, rank), _by_nodes(_log_more_than, rivals, u, noise, rank)


def log_tail(rivals: Tensor, u: Tensor, noise: Noise, rank: int, above: Tensor) -> Tensor:
    """One of the two ``log_tails`` a row: log P(T > u) where ``above`` (rows,) is true."""
    if rank > 1 and above.all():
        return _by_nodes(_log_more_than, rivals, u, noise, rank)
    if rank > 1 and not above.any():
        return _by_nodes(_log_at_most, rivals, u, noise, rank)
    lower, upper = log_tails(rivals, u, noise, rank)
    return torch.where(above.unsqueeze(-1), upper, lower)


def _by_nodes(tail: Callable[[Tensor, Tensor, int], Tensor], rivals: Tensor, u: Tensor, noise: Noise, rank: int) -> Tensor:
    removed = rivals.isneginf().unsqueeze(-2)  # by hand: at infinity the slope of log_sf may be infinite as well
    rivals = torch.where(removed.squeeze(-2), 0.0, rivals)

    def block(u: Tensor) -> Tensor:
        x = u.unsqueeze(-1) - rivals.unsqueeze(-2)
        log_cdf, log_sf = noise.log_cdf(x), noise.log_sf(x)
        sure = log_cdf.isneginf()  # a rival far above u: it counts, and has no slope, which may be infinite where log F is
        if sure.any():
            within = torch.where(sure, noise.icdf(x.new_tensor(0.5)), x)
            log_cdf = torch.where(sure, -torch.inf, noise.log_cdf(within))
            log_sf = torch.where(sure, 0.0, noise.log_sf(within))
        return tail(torch.where(removed, 0.0, log_cdf), torch.where(removed, -CERTAIN, log_sf), rank - 1)

    blocks = u.split(max(1, BUDGET // max(1, rivals.numel() * rank)), -1)
    return block(u) if len(blocks) == 1 else torch.cat([checkpoint(block, part, use_reentrant=False) for part in blocks], -1)


def _log_at_most(log_cdf: Tensor, log_sf: Tensor, most: int) -> Tensor:
    """log P(N ≤ most) by (N18), trials in the last dimension."""
    log_odds = (log_sf - log_cdf).clamp(-CERTAIN, CERTAIN)
    theta = _tilt(log_odds.detach(), most + 0.5).unsqueeze(-1)
    log_odds = log_odds + theta
    coefficients = _product(torch.stack([torch.sigmoid(-log_odds), torch.sigmoid(log_odds)], -1), most + 1)
    # log(F + S e^θ), less θ where it is the larger term, lest large numbers cancel.
    likely = log_odds.detach() > 0
    larger, ratio = torch.where(likely, log_sf, log_cdf), torch.where(likely, log_odds, -log_odds)
    norm = (larger - torch.nn.functional.logsigmoid(ratio)).sum(-1)
    count = torch.arange(most + 1, dtype=norm.dtype, device=norm.device)
    log = coefficients.clamp_min(torch.finfo(norm.dtype).tiny).log() - theta * (count - likely.sum(-1, keepdim=True))
    hopeless = (log_cdf.isneginf().sum(-1) > most).unsqueeze(-1)
    return torch.where(hopeless.squeeze(-1), -torch.inf, torch.where(hopeless, 0.0, log).logsumexp(-1) + norm)


def _log_more_than(log_cdf: Tensor, log_sf: Tensor, most: int) -> Tensor:
    """log P(N > most) by (N19), trials in the last dimension."""
    trials = torch.stack([log_cdf.exp(), log_sf.exp(), torch.zeros_like(log_cdf)], -1)
    beyond = _product_with_rest(trials, most + 1)
    possible = beyond > 1e-300
    return torch.where(possible, _Log.apply(torch.where(possible, beyond, 1.0)), -torch.inf)  # type: ignore[no-untyped-call]


class _Log(torch.autograd.Function):
    """log x with derivatives by e^(−log x), once each: 1/x², as torch's second derivative has it, overflows below 1e-154."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        log_x = x.log()
        ctx.save_for_backward(log_x)
        return log_x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (log_x,) = ctx.saved_tensors
        return grad * (-log_x).exp()


def _tilt(log_odds: Tensor, expected: float) -> Tensor:
    """θ ≤ 0 of (N18), at which Σ sigmoid(log_odds + θ) is about ``expected``; 0 where the sum is no more at θ = 0."""
    high = torch.zeros_like(log_odds[..., 0])
    low = torch.logit(high + expected / log_odds.shape[-1], eps=1e-6) - log_odds.amax(-1)
    low = torch.where(torch.sigmoid(log_odds).sum(-1) > expected, low.clamp_max(0.0), 0.0)
    while ((high - low) > NEAR).logical_and(low < 0).any():
        middle = (low + high) / 2
        many = torch.sigmoid(log_odds + middle.unsqueeze(-1)).sum(-1) > expected
        low, high = torch.where(many, low, middle), torch.where(many, middle, high)
    return low


def _product(polynomials: Tensor, terms: int) -> Tensor:
    """The first ``terms`` coefficients of the product (N17) of polynomials (…, n, 2), (…, terms)."""
    while polynomials.shape[-2] > 1:
        a, b = _pairs(polynomials)
        polynomials = _multiply(a, b, terms)
    return _fitted(polynomials.squeeze(-2), terms)


def _product_with_rest(polynomials: Tensor, terms: int) -> Tensor:
    """R of (N19), (…): the sum of the coefficients from ``terms`` on of the product of polynomials whose coefficients sum to 1.

    Polynomials are (…, n, 3). The last entry of each is R, at first 0.
    """
    while polynomials.shape[-2] > 1:
        a, b = _pairs(polynomials)
        a, rest_a, b, rest_b = a[..., :-1], a[..., -1:], b[..., :-1], b[..., -1:]
        # The inner sum of (N19)
        b_from = _fitted(b, terms + 1).flip(-1).cumsum(-1)[..., : a.shape[-1]]
        rest = rest_a + (a * b_from).sum(-1, keepdim=True) + a.sum(-1, keepdim=True) * rest_b
        polynomials = torch.cat([_multiply(a, b, terms), rest], -1)
    return polynomials.squeeze(-2)[..., -1]


def _pairs(polynomials: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours, as two tensors (…, n/2, d); an odd one out meets the polynomial 1."""
    if polynomials.shape[-2] % 2:
        one = torch.zeros_like(polynomials[..., :1, :])
        one[..., 0] = 1
        polynomials = torch.cat([polynomials, one], -2)
    return polynomials[..., 0::2, :], polynomials[..., 1::2, :]


def _multiply(a: Tensor, b: Tensor, terms: int) -> Tensor:
    """Products of the polynomials (…, d), cut to ``terms`` coefficients."""
    size = min(2 * a.shape[-1] - 1, terms)
    padded = torch.nn.functional.pad(_fitted(b, size), (a.shape[-1] - 1, 0))
    windows = padded.unfold(-1, a.shape[-1], 1)  # (…, size, d): b_(m − d + 1) … b_m
    return (windows * a.flip(-1).unsqueeze(-2)).sum(-1)


def _fitted(polynomial: Tensor, terms: int) -> Tensor:
    """Cut or padded with zeros to ``terms`` coefficients."""
    return torch.nn.functional.pad(polynomial, (0, terms - polynomial.shape[-1]))
