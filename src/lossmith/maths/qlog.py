"""From a metric to a loss: the q-logarithm.

The equations (N…) are in ``docs/how/numbers.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossmith.inputs import check_order


def neg_log_q(log_m: Tensor, q: float) -> Tensor:
    r"""Loss of a metric m in (0, 1], from the logarithm of m: −log_q(m) = (1 − m^(1−q)) / (1 − q), (N6).

    q = 0 gives 1 − m. q = 1 gives −log m. Every q has value 0 and slope −1 at m = 1: the loss agrees with the metric to first
    order where the model is right. For m → 0, q ≥ 1 grows without bound, and q < 1 stops at 1/(1 − q). Below 0 the slope m^−q
    vanishes where the model is wrong: such a loss sharpens what is right already, and cannot start from an untrained model.

    Args:
        log_m: log m ≤ 0, any shape, floating point.
        q: the order, a finite number.

    Returns:
        The loss, same shape and dtype. The loss keeps its digits for m → 1. The slope m^−q keeps its digits for m → 0 (N7).
        For q > 1 the loss is inf where (q−1)·(−log m) exceeds the range of exp (709 in float64).

    Raises:
        TypeError: q is no number. ValueError: q is not finite.

    Source: Tsallis (1988); as a loss, Zhang & Sabuncu, "Generalized cross entropy loss", NeurIPS 2018 (their q is 1 − q here).

    >>> log_m = torch.tensor([-1e-9, -2.0], dtype=torch.float64)
    >>> neg_log_q(log_m, 1.0)
    tensor([1.0000e-09, 2.0000e+00], dtype=torch.float64)
    >>> neg_log_q(log_m, 0.0)
    tensor([1.0000e-09, 8.6466e-01], dtype=torch.float64)
    """
    check_order(q)
    if q == 1:
        return -log_m
    x = (1 - q) * log_m
    # Two forms, since autograd's derivative of expm1 would round the slope away far from m = 1 (N7).
    return torch.where(x < -1, 1 - x.clamp_max(0).exp(), -torch.expm1(x)) / (1 - q)
