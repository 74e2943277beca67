"""Checks of tensors that users pass in; every message is one line: what, expected, got, and what to do.

Values are looked at only where that costs no wait and breaks no graph: on the CPU, and in eager mode (``has_values``).
"""

from __future__ import annotations

import math
import operator
from numbers import Real

import torch
from torch import Tensor


def has_values(tensor: Tensor) -> bool:
    """Whether to look at a tensor's values: on the CPU, not compiled, no wrapper, not under ``torch.func``."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    return owns_memory(tensor) and not is_wrapped(tensor)


def owns_memory(tensor: Tensor) -> bool:
    """Whether its data pointer leads to its numbers: no wrapper such as DTensor or FakeTensor, and not sparse."""
    plain = type(tensor) is Tensor or type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return plain and tensor.layout == torch.strided


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of ``torch.func`` works on it."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # no public name tells


def check_tensors(**values: object) -> None:
    """Refuse what is no tensor, by its name."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def check_scores(scores: Tensor, least: int = 2) -> None:
    """Refuse what is not a floating-point tensor of shape (…, C ≥ ``least``)."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores: expected a torch.Tensor, got {type(scores).__name__}")
    if not scores.is_floating_point():
        raise TypeError(f"scores: expected a floating-point tensor, got {scores.dtype}; pass raw model outputs")
    if scores.dim() == 0 or scores.shape[-1] < least:
        raise ValueError(f"scores: expected shape (…, C) with C ≥ {least} classes, got {tuple(scores.shape)}")


def check_score_values(scores: Tensor) -> None:
    """Refuse NaN, +inf and rows of nothing but −inf."""
    if not has_values(scores):
        return
    highest = scores.detach().amax(-1)  # NaN wins here
    if not (bad := ~highest.isfinite()).any():
        return
    row = tuple(bad.nonzero()[0].tolist())
    where = f"row {row[0] if len(row) == 1 else row}" if row else "the scores"
    value = float(highest[row])
    if value == -math.inf:
        raise ValueError(f"scores: expected a class that is not removed, got −inf for every class of {where}")
    fix = (
        "lower the learning rate, clip gradients, or look at the inputs" if math.isnan(value) else "use −inf to remove a class"
    )
    raise ValueError(f"scores: expected finite numbers or −inf, got {value} in {where}; {fix}")


def check_target(target: Tensor, scores: Tensor, ignore_index: int | None = None) -> None:
    """Refuse what is not integer class indices (…) for scores (…, C), or ``ignore_index``."""
    check_target_type(target, scores)
    check_target_values(target, scores.shape[-1], ignore_index)


def check_target_type(target: Tensor, scores: Tensor) -> None:
    """Refuse a dtype or shape that cannot be class indices (…) for scores (…, C)."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a torch.Tensor, got {type(target).__name__}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: expected integer class indices, got {target.dtype}")
    if target.shape != scores.shape[:-1]:
        expected = tuple(scores.shape[:-1])
        raise ValueError(f"target: expected shape {expected} for scores {tuple(scores.shape)}, got {tuple(target.shape)}")
    check_device(target, scores)


def check_device(target: Tensor, scores: Tensor) -> None:
    """Refuse a target that lies elsewhere than the scores."""
    if target.device != scores.device:
        raise ValueError(f"target: expected on {scores.device}, where the scores are, got {target.device}; move it there")


def check_target_values(target: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Refuse indices outside 0 … C − 1 that are not ``ignore_index``."""
    if not has_values(target):  # elsewhere the gather itself refuses
        return
    asked = target if ignore_index is None else target[target != ignore_index]
    if asked.numel() and not 0 <= asked.min() <= asked.max() < classes:
        low, high = int(asked.min()), int(asked.max())
        raise ValueError(f"target: expected class indices from 0 to {classes - 1}, got {low} to {high}")


def checked_rank(k: int, scores: Tensor | None = None) -> int:
    """k as an integer from 1 to the C of scores (…, C), or ≥ 1 where there are none yet; refuses anything else."""
    try:
        if isinstance(k, bool):
            raise TypeError
        k = operator.index(k)
    except TypeError:
        raise TypeError(f"k: expected an integer, got {type(k).__name__}") from None
    if scores is None:
        if k < 1:
            raise ValueError(f"k: expected an integer ≥ 1, got {k}")
    elif not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k: expected an integer from 1 to the {scores.shape[-1]} classes, got {k}")
    return k


def checked_count(name: str, value: int) -> int:
    """An integer ≥ 0; refuses anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name}: expected an integer ≥ 0, got {value}")
    return value


def checked_scale(scale: float | Tensor, scores: Tensor) -> float | Tensor:
    """The scale as a number, or as a tensor (…, 1) for scores (…, C); refuses what is not positive in their dtype."""
    tiny = torch.finfo(scores.dtype).tiny
    if not isinstance(scale, Tensor):
        if not isinstance(scale, Real) or isinstance(scale, bool):
            raise TypeError(f"scale: expected a number or a tensor, got {type(scale).__name__}")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale: expected a positive number, got {scale}")
        if scale < tiny:
            raise ValueError(f"scale: expected at least {tiny:.1g}, the smallest of {scores.dtype}, got {scale}")
        return float(scale)
    if scale.is_complex():
        raise TypeError(f"scale: expected real numbers, got {scale.dtype}")
    shape = (*scores.shape[:-1], 1)
    try:
        scale = scale.to(scores).expand(shape)
    except RuntimeError:
        raise ValueError(f"scale: expected a shape that broadcasts to {shape}, got {tuple(scale.shape)}") from None
    if has_values(scale) and not bool((valid := (scale >= tiny) & (scale < math.inf)).all()):
        raise ValueError(f"scale: expected positive numbers, got a tensor with {float(scale.detach()[~valid][0])}")
    return scale
