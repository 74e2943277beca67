"""Sums over everything before, each term fading with its distance.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32  # elements: a block takes BLOCK² exponentials, and more blocks take a longer sum over blocks


def decayed_cumsum(terms: Tensor, level: Tensor) -> Tensor:
    r"""Σ_{i<r} terms_i · exp(level_i − level_r) for every r, along the last dimension: (N8), in blocks (N9).

    No exponent is positive, so nothing overflows. A ``cumsum`` of terms · exp(level) would overflow.

    Args:
        terms: (…, n), any floating type.
        level: (…, n), ascending along the last dimension.

    Returns:
        (…, n), 0 in the first place; differentiable any number of times in both. Time and memory: O(32 · n).

    >>> decayed_cumsum(torch.ones(3), torch.tensor([0.0, 0.0, 1e6]))
    tensor([0., 1., 0.])
    """
    n = terms.shape[-1]
    if n == 0:
        return terms
    blocks = -(-n // BLOCK)
    padding = blocks * BLOCK - n
    if padding:
        last = level[..., -1:].expand(*level.shape[:-1], padding)
        terms, level = torch.nn.functional.pad(terms, (0, padding)), torch.cat([level, last], -1)
    terms, level = terms.unflatten(-1, (blocks, BLOCK)), level.unflatten(-1, (blocks, BLOCK))
    before = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=terms.device).tril(-1)
    difference = level.unsqueeze(-2) - level.unsqueeze(-1)
    # Beyond the diagonal the exponent is positive and may overflow; masked before exp, its gradient is 0 and not nan.
    fade = torch.where(before, difference, -torch.inf).exp()
    total = (fade * terms.unsqueeze(-2)).sum(-1)
    if blocks > 1:
        end = level[..., -1]
        block_sum = total[..., -1] + terms[..., -1]
        carried = decayed_cumsum(block_sum, end)
        # The second part of (N9): the sums before block k, seen from each level of block k.
        so_far = carried[..., :-1] + block_sum[..., :-1]
        so_far = so_far.unsqueeze(-1) * (end[..., :-1].unsqueeze(-1) - level[..., 1:, :]).exp()
        total = torch.cat([total[..., :1, :], total[..., 1:, :] + so_far], -2)
    return total.flatten(-2)[..., :n]
