"""The input layouts, class weights and reductions of ``torch.nn.CrossEntropyLoss``, shared by all losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from lossmith.inputs import check_device, check_score_values, check_scores, check_target, check_tensors, has_values

Reduction = Literal["mean", "sum", "none"]
Forward = TypeVar("Forward", bound=Callable[..., Tensor])


def in_full_precision(forward: Forward) -> Forward:
    """A module's ``forward(scores, …)`` in float32 where the scores are of a half type, its loss then of their type.

    Under autocast nothing inside is cast, and the loss is float32: as with ``torch.nn.functional.cross_entropy``, and as
    ``torch.amp.GradScaler`` needs it, whose first factor of 65536 no float16 holds.
    """

    @wraps(forward)
    def wrapped(self: nn.Module, scores: Tensor, *others: Any, **options: Any) -> Tensor:
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            return forward(self, scores, *others, **options)  # which refuses it
        kind, half = scores.device.type, scores.dtype in (torch.bfloat16, torch.float16)
        entering = scores.float() if half else scores
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return forward(self, entering, *others, **options)
        loss = forward(self, entering, *others, **options)
        return loss.to(scores.dtype) if half else loss

    return cast(Forward, wrapped)


def one_hot(index: Tensor, classes: int) -> Tensor:
    """Class indices (…) as (…, C) of bool; unlike torch's own it looks at no value, which ``torch.func`` forbids."""
    return index.unsqueeze(-1) == torch.arange(classes, device=index.device)


def at(values: Tensor, index: Tensor) -> Tensor:
    """values[index], (…, *) of values (C, *) and indices (…), which ``torch.compile`` would not trace for a single index."""
    return values.index_select(0, index.reshape(-1)).reshape((*index.shape, *values.shape[1:]))


def classes_last(scores: Tensor, target: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Scores (C,), (N, C) or (N, C, d1, …) with the classes moved to the end, and the target likewise if it has classes.

    Raises:
        TypeError: scores are not floating point.
        ValueError: fewer than ``least`` classes, or shapes that fit neither class indices nor class probabilities.
    """
    check_tensors(scores=scores, target=target)
    class_dim = 1 if scores.dim() > 1 else 0
    if scores.dim() == 0:
        raise ValueError("scores: expected shape (C,), (N, C) or (N, C, d1, …), got a single number")
    last = scores if class_dim == scores.dim() - 1 else scores.movedim(class_dim, -1)
    check_scores(last, least)
    index_shape = scores.shape[:class_dim] + scores.shape[class_dim + 1 :]
    if target.is_floating_point() and target.shape == scores.shape:
        target = target.movedim(class_dim, -1)
    elif target.is_floating_point() or target.shape != index_shape:
        raise ValueError(
            f"target: expected class indices of shape {tuple(index_shape)} or floating-point class probabilities of shape "
            f"{tuple(scores.shape)}, got {target.dtype} of shape {tuple(target.shape)}"
        )
    check_device(target, last)
    return last, target


def labels_last(scores: Tensor, target: Tensor, ignore_index: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-label scores (L,), (N, L) or (N, L, d1, …) with the labels moved to the end, and targets of the same shape.

    Returns:
        scores (…, L); the target (…, L) in the scores' dtype, 0 where it is ignored; whether it counts (…, L).

    Raises:
        TypeError: scores are not floating point.
        ValueError: shapes differ; an integer target other than 0, 1 and ``ignore_index``, a floating-point one outside [0, 1].
    """
    check_tensors(scores=scores, target=target)
    if not scores.is_floating_point():
        raise TypeError(f"scores: expected a floating-point tensor, got {scores.dtype}; pass raw model outputs")
    if scores.dim() == 0 or target.shape != scores.shape:
        raise ValueError(
            f"target: expected the shape of the scores {tuple(scores.shape)}, 0 or 1 for each label, got {tuple(target.shape)}"
        )
    check_device(target, scores)
    class_dim = 1 if scores.dim() > 1 else 0
    if scores.shape[class_dim] == 0:
        raise ValueError(f"scores: expected at least one label in dimension {class_dim}, got {tuple(scores.shape)}")
    last, target = scores.movedim(class_dim, -1), target.movedim(class_dim, -1)
    keep = torch.ones_like(target, dtype=torch.bool)
    if ignore_index is not None and not target.is_floating_point() and target.dtype != torch.bool:
        keep = target != ignore_index
    wanted = target.masked_fill(~keep, 0).to(last.dtype)
    if has_values(wanted):
        valid = (wanted >= 0) & (wanted <= 1) if target.is_floating_point() else (wanted == 0) | (wanted == 1)
        if not valid.all():
            raise ValueError(f"target: expected 0 or 1 for each label, got {wanted[~valid][0].item():g}")
        check_score_values(last.masked_fill(~keep, 0.0))
    return last, wanted, keep


class ClassificationLoss(nn.Module):
    """What every loss here shares: class weights, ignored targets and the reduction over samples.

    Args:
        weight: (C,) weight of each class, or None.
        ignore_index: class index that marks samples to leave out.
        reduction: "mean" (weighted by the target's class weight), "sum" or "none". The mean over no sample at all is 0, with a
            gradient of 0 (in ``torch.nn.CrossEntropyLoss`` it is nan, which ends a training).

    Raises:
        TypeError, ValueError: an argument out of range.
    """

    weight: Tensor | None

    def __init__(self, *, weight: Tensor | None = None, ignore_index: int = -100, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight: expected a torch.Tensor of shape (C,), got {type(weight).__name__}")
        if weight is not None and weight.dim() != 1:
            raise ValueError(f"weight: expected shape (C,), one a class, got {tuple(weight.shape)}")
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise TypeError(f"ignore_index: expected an integer, got {type(ignore_index).__name__}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def split_ignored(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices, checked, with the ignored ones replaced by 0, and the mask of those that count."""
        check_target(target, scores, self.ignore_index)
        keep = target != self.ignore_index
        return torch.where(keep, target, 0).long(), keep  # torch takes an index of bytes for a mask

    def class_weight(self, scores: Tensor) -> Tensor:
        """Weight of each class for scores (…, C), checked; ones where none was given."""
        if self.weight is None:
            return scores.new_ones(scores.shape[-1])
        if self.weight.shape != scores.shape[-1:]:
            raise ValueError(f"weight: expected shape ({scores.shape[-1]},), one a class, got {tuple(self.weight.shape)}")
        return self.weight.to(scores)

    def sample_weight(self, index: Tensor, keep: Tensor, scores: Tensor) -> Tensor:
        """Weight of each sample: its class's, and 0 where it is ignored."""
        return keep.to(scores) if self.weight is None else keep * at(self.class_weight(scores), index)

    def reduce(self, losses: Tensor, total_weight: Tensor) -> Tensor:
        """Weighted losses of the samples to the module's output; "mean" divides by ``total_weight``."""
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() / over_something(total_weight)


def over_something(total: Tensor) -> Tensor:
    """A divisor for sums over samples: the total, or 1 where it is 0, for nothing over nothing is to be 0."""
    return torch.where(total == 0, 1, total) if total.is_floating_point() else total.clamp_min(1)
