"""The loss of a random set of k classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lossmith.inputs import checked_rank
from lossmith.losses.base import Reduction
from lossmith.surrogates.base import ABSENT, IndexLoss


class SmoothTopKLoss(IndexLoss):
    r"""Smooth top-k loss: −log P(y ∈ S), S a set of k classes drawn with probability ∝ exp(Σ_{j∈S} z_j).

    With e_m the elementary symmetric polynomial of degree m in exp(z), over the rivals j ≠ y,

        P(y ∈ S) = exp(z_y) e_{k−1} / (exp(z_y) e_{k−1} + e_k).

    k = 1 is cross-entropy, k = C is 0. The probabilities of all classes lie in [0, 1] and sum to k, so that this is the
    smooth indicator of "among the top k" in exact form. (A threshold map min(1, exp(z − λ)) has probability 1, and no gradient,
    for every class above the threshold, and the sparse maps with a budget have probability 0, whose logarithm is no loss;
    ``lossmith.functional.topk_log_prob`` is the metric of a noisy classifier.)

    Args:
        k: how many classes the set has, 1 ≤ k ≤ C.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Raises:
        TypeError: k is not an integer.
        ValueError: k < 1, or above the number of classes.

    Range: ≥ 0, unbounded; exact in log space for any gap, to rounding of the sum of the k highest scores below their maximum.
    Cost: O(N·C·k) time and memory in 2·log2(C) steps of tensor operations.
    Source: Swersky et al., "Probabilistic n-choose-k models for classification and ranking", NeurIPS 2012.

    >>> SmoothTopKLoss(2)(torch.zeros(1, 4), torch.tensor([3])).exp()  # 1 / P, P = 2/4
    tensor(2.)
    """

    def __init__(
        self,
        k: int,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        self.k = checked_rank(k)  # that C ≥ k is seen with the scores

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        k, own = checked_rank(self.k, scores.shape[-1]), index.unsqueeze(-1)
        z = scores - scores.detach().amax(-1, keepdim=True)
        log_e = _log_symmetric(z.scatter(-1, own, ABSENT).clamp_min(ABSENT), k)
        odds = z.gather(-1, own).squeeze(-1) + log_e[k - 1] - log_e[k]
        return -logsigmoid(odds)

    def extra_repr(self) -> str:
        """k, as in the constructor."""
        return f"k={self.k}"


def _log_symmetric(z: Tensor, k: int) -> Tensor:
    """Logarithms (k + 1, …) of the elementary symmetric polynomials of degree 0 to k in exp(z), z (…, C).

    The coefficients of Π_j (1 + exp(z_j) x) up to x^k: factors are multiplied in pairs, then the products, and so on.
    Coefficients come first, factors last, so that every operation runs along contiguous memory.
    """
    log_c, odd_ones = torch.stack([torch.zeros_like(z), z]), None  # (degree + 1, …, factors)
    while (factors := log_c.shape[-1]) > 1:
        half = factors // 2
        if factors % 2:
            last = log_c[..., -1:]
            odd_ones = last if odd_ones is None else _log_product(odd_ones, last, k)
        log_c = _log_product(log_c[..., :half], log_c[..., half : 2 * half], k)
    if odd_ones is not None:
        log_c = _log_product(log_c, odd_ones, k)
    return log_c.squeeze(-1)


def _log_product(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Log-coefficients, up to x^k, of the product of two polynomials with log-coefficients (degree + 1, …)."""
    p, q = len(a) - 1, len(b) - 1
    terms = [
        torch.stack([a[i] + b[m - i] for i in range(max(0, m - q), min(p, m) + 1)]).logsumexp(0)
        for m in range(min(p + q, k) + 1)
    ]
    return torch.stack(terms)
