"""Checks of tensors that users pass in; every message is one line: what, expected, got."""

from __future__ import annotations

import torch
from torch import Tensor


def check_scores(scores: Tensor) -> None:
    """Refuse what is not floating point of shape (…, C ≥ 2)."""
    if not scores.is_floating_point():
        raise TypeError(f"scores: expected a floating-point tensor, got {scores.dtype}; pass raw model outputs")
    if scores.dim() == 0 or scores.shape[-1] < 2:
        raise ValueError(f"scores: expected shape (…, C) with C ≥ 2 classes, got {tuple(scores.shape)}")


def check_target(target: Tensor, scores: Tensor) -> None:
    """Refuse what is not integer class indices (…) for scores (…, C)."""
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: expected integer class indices, got {target.dtype}")
    if target.shape != scores.shape[:-1]:
        expected = tuple(scores.shape[:-1])
        raise ValueError(f"target: expected shape {expected} for scores {tuple(scores.shape)}, got {tuple(target.shape)}")
    # On other devices the look would wait for the queue; there the gather itself refuses.
    if target.device.type == "cpu" and target.numel() and not 0 <= target.min() <= target.max() < scores.shape[-1]:
        low, high = int(target.min()), int(target.max())
        raise ValueError(f"target: expected class indices from 0 to {scores.shape[-1] - 1}, got {low} to {high}")


def checked_scale(scale: float | Tensor, scores: Tensor) -> float | Tensor:
    """The scale as a number, or as a tensor (…, 1) for scores (…, C); refuses what is not positive."""
    if not isinstance(scale, Tensor):
        if not scale > 0:
            raise ValueError(f"scale: expected positive numbers, got {scale}")
        return scale
    shape = (*scores.shape[:-1], 1)
    try:
        scale = scale.to(scores).expand(shape)
    except RuntimeError:
        raise ValueError(f"scale: expected a shape that broadcasts to {shape}, got {tuple(scale.shape)}") from None
    if scale.device.type == "cpu" and not bool((scale > 0).all()):  # elsewhere the look would wait for the queue
        raise ValueError(f"scale: expected positive numbers, got a tensor with minimum {float(scale.min())}")
    return scale
