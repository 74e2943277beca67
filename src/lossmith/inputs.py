"""A user's arguments: checks and layouts. Every message is one line: what, expected, got, and what to do.

Values are looked at only where that costs no wait and breaks no graph: on the CPU, and in eager mode (``has_values``).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Real
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

Forward = TypeVar("Forward", bound=Callable[..., Tensor])

NO_SAMPLE_WEIGHT = "sample_weight: expected none, a ranking counts all samples alike; leave it out"


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


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward mode (``torch.autograd.forward_ad``) follows it."""
    return tensor.is_floating_point() and forward_ad.unpack_dual(tensor).tangent is not None


def is_plain(*tensors: Tensor) -> bool:
    """Whether kernels may read their memory: eager mode, no wrappers, not under ``torch.func`` or in forward mode."""
    if torch.compiler.is_compiling():
        return False
    return all(owns_memory(x) and not is_wrapped(x) and not has_tangent(x) for x in tensors)


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


def check_score_values(scores: Tensor, column: str = "class") -> None:
    """Refuse NaN, +inf and rows (…, C) of nothing but −inf; ``column`` says what a row has scores of, classes or labels."""
    if not has_values(scores):
        return
    highest = scores.detach().amax(-1)  # NaN wins here
    if not (bad := ~highest.isfinite()).any():
        return
    row = tuple(bad.nonzero()[0].tolist())
    where = f"row {row[0] if len(row) == 1 else row}" if row else "the scores"
    value = float(highest[row])
    if value == -math.inf and column == "label":
        raise ValueError(f"scores: expected finite numbers, got −inf for every label of {where}; drop that sample")
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


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of the names."""
    if value not in choices:
        raise ValueError(f"{name}: expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, got {value!r}")


def check_number(name: str, value: object, kind: str = "a number") -> None:
    """Refuse what is no real number; bool is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {kind}, got {type(value).__name__}")


def check_order(q: float) -> None:
    """Refuse an order of the q-logarithm that is no finite number."""
    check_number("q", q)
    if not -math.inf < q < math.inf:  # not isfinite, which torch.compile cannot trace
        raise ValueError(f"q: expected a finite number, got {q}; 0 is the metric itself, 1 its negative logarithm")


def check_scale(scale: float | Tensor) -> None:
    """Refuse a scale that no scores can have: no number > 0 and no tensor, whose values are looked at beside the scores."""
    if isinstance(scale, Tensor):
        return
    check_number("scale", scale, "a number or a tensor")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: expected a positive number, got {scale}")


def check_margin(margin: float | None) -> None:
    """Refuse a cap of the lead that is neither None nor a number ≥ 0."""
    if margin is None:
        return
    check_number("margin", margin, "a number or None")
    if not margin >= 0:
        raise ValueError(f"margin: expected a number ≥ 0 in units of the scores, got {margin}")


def check_smoothing(label_smoothing: float) -> None:
    """Refuse a share of the target to spread that is not from 0 to 1."""
    check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number from 0 to 1, got {label_smoothing}")


def check_positive(name: str, value: float, unit: str = "") -> None:
    """Refuse what is no finite number > 0."""
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number{unit}, got {value}")


def checked_rank(k: int, classes: int | None = None) -> int:
    """k as an integer ≥ 1 and, where it is known how many there are, at most C; refuses anything else."""
    try:
        if isinstance(k, bool):
            raise TypeError
        k = operator.index(k)
    except TypeError:
        raise TypeError(f"k: expected an integer, got {type(k).__name__}") from None
    if k < 1 or (classes is not None and k > classes):
        span = "≥ 1" if classes is None else f"from 1 to the {classes} classes"
        raise ValueError(f"k: expected an integer {span}, got {k}")
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
    check_scale(scale)
    if not isinstance(scale, Tensor):
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


# Types and layouts


def in_full_precision(forward: Forward) -> Forward:
    """A module's ``forward(scores, …)`` in float32 where the scores are of a half type, its loss then of their type.

    Under autocast nothing inside is cast, and the loss is float32: as with ``torch.nn.functional.cross_entropy``, and as
    ``torch.amp.GradScaler`` needs it, whose first factor of 65536 no float16 holds.
    """

    @wraps(forward)
    def wrapped(self: torch.nn.Module, scores: Tensor, *others: Any, **options: Any) -> Tensor:
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            return forward(self, scores, *others, **options)  # which refuses it
        kind, half = scores.device.type, scores.dtype in (torch.bfloat16, torch.float16)
        entering = scores.float() if half else scores
        known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)  # torch 2.4 compiles no such question
        if known and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return forward(self, entering, *others, **options)
        loss = forward(self, entering, *others, **options)
        return loss.to(scores.dtype) if half else loss

    return cast(Forward, wrapped)


def compute_type(x: Tensor) -> Tensor:
    """x in the type that it is computed in: half types in float32."""
    return x if x.dtype == torch.float64 else x.float()


def one_hot(index: Tensor, classes: int) -> Tensor:
    """Class indices (…) as (…, C) of bool; unlike torch's own it looks at no value, which ``torch.func`` forbids."""
    return index.unsqueeze(-1) == torch.arange(classes, device=index.device)


def at(values: Tensor, index: Tensor) -> Tensor:
    """values[index], (…, *) of values (C, *) and indices (…), which ``torch.compile`` would not trace for a single index."""
    return values.index_select(0, index.reshape(-1)).reshape((*index.shape, *values.shape[1:]))


def smoothed(share: Tensor, label_smoothing: float, classes: int) -> Tensor:
    """The target's share in each of so many classes, mixed with equal shares, as ``label_smoothing`` asks."""
    return share * (1 - label_smoothing) + label_smoothing / classes


class Samples(NamedTuple):
    """Scores and targets of a batch, the classes last; shapes, dtypes and devices are checked, values by ``settled``."""

    scores: Tensor  # (…, C), floating point
    target: Tensor  # (…) integer class indices, or (…, C) floating-point class probabilities
    keep: Tensor  # (…) bool: which samples count
    ignore_index: int  # marks class indices that do not count

    def fractional(self) -> bool:  # no property: under torch 2.8 a compiled loss cannot branch on one
        """Whether the target has a share in each class."""
        return self.target.is_floating_point()

    @property
    def class_index(self) -> Tensor:
        """Class indices (…) int64, 0 where they do not count; torch takes an index of bytes for a mask."""
        return torch.where(self.keep, self.target, 0).long()

    def settled(self) -> Samples:
        """The samples with checked class indices, and with zeros for indices and scores that do not count, be those NaN."""
        if self.fractional():
            return self
        check_target_values(self.target, self.scores.shape[-1], self.ignore_index)
        return self._replace(scores=rows_that_count(self.scores, self.keep), target=self.class_index)

    def share(self, label_smoothing: float = 0.0) -> Tensor:
        """The target's share in each class (…, C), smoothed, 0 where it does not count. Of settled samples."""
        classes = self.scores.shape[-1]
        share = self.target if self.fractional() else one_hot(self.target, classes)
        return smoothed(share.to(self.scores.dtype), label_smoothing, classes) * self.keep.unsqueeze(-1)


def all_count(keep: Tensor) -> bool:
    """Whether every sample of a mask (…) is known to count; False where values are not looked at."""
    return has_values(keep) and bool(keep.all())


def rows_that_count(scores: Tensor, keep: Tensor) -> Tensor:
    """Scores (…, C) with zeros in the rows that do not count: what stands there, be it NaN, must not reach the loss."""
    return scores if all_count(keep) else scores.masked_fill(~keep.unsqueeze(-1), 0.0)


TWO_CLASSES = "pass torch.stack([torch.zeros_like(scores), scores], 1)"  # to a loss of classes that has one score a sample


def samples_of(scores: Tensor, target: Tensor, ignore_index: int, least: int = 2, of_one_score: str = TWO_CLASSES) -> Samples:
    """The samples of scores (C,), (N, C) or (N, C, d1, …) and of class indices without C or class probabilities with it.

    ``of_one_score`` is the remedy that the error names where the target has the shape of scores (N,).

    Raises:
        TypeError: scores are not floating point; target is bool or complex.
        ValueError: fewer than ``least`` classes, shapes that fit neither class indices nor class probabilities, other devices.
    """
    check_tensors(scores=scores, target=target)
    class_dim = 1 if scores.dim() > 1 else 0
    if scores.dim() == 0:
        raise ValueError("scores: expected shape (C,), (N, C) or (N, C, d1, …), got a single number")
    last = scores if class_dim == scores.dim() - 1 else scores.movedim(class_dim, -1)
    check_scores(last, least)
    index_shape = scores.shape[:class_dim] + scores.shape[class_dim + 1 :]
    fractional = target.is_floating_point()
    if target.shape != (scores.shape if fractional else index_shape):
        remedy = ""
        if target.shape == scores.shape:
            remedy = (
                f"; for one score a sample {of_one_score}" if scores.dim() == 1 else "; of one-hot targets pass target.float()"
            )
        raise ValueError(
            f"target: expected class indices of shape {tuple(index_shape)} or floating-point class probabilities of shape "
            f"{tuple(scores.shape)}, got {target.dtype} of shape {tuple(target.shape)}{remedy}"
        )
    if target.dtype == torch.bool or target.is_complex():
        raise TypeError(f"target: expected integer class indices, got {target.dtype}")
    check_device(target, scores)
    if fractional:
        keep = torch.ones(index_shape, dtype=torch.bool, device=target.device)
        return Samples(last, target.movedim(class_dim, -1), keep, ignore_index)
    return Samples(last, target, target != ignore_index, ignore_index)


class Labels(NamedTuple):
    """Multi-label scores and targets of a batch, the labels last, all checked."""

    scores: Tensor  # (…, L), floating point, 0 where the label does not count
    share: Tensor  # (…, L), of the scores' dtype: the probability that the label is on, 0 where it does not count
    keep: Tensor  # (…, L) bool: which labels count


def labels_of(scores: Tensor, target: Tensor, ignore_index: int | None = None) -> Labels:
    """The labels of scores (L,), (N, L) or (N, L, d1, …) and of targets of the same shape.

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
    last, share = last.masked_fill(~keep, 0.0), target.masked_fill(~keep, 0).to(last.dtype)
    if has_values(share):
        valid = (share >= 0) & (share <= 1) if target.is_floating_point() else (share == 0) | (share == 1)
        if not valid.all():
            raise ValueError(f"target: expected 0 or 1 for each label, got {share[~valid][0].item():g}")
        check_score_values(last, "label")
    return Labels(last, share, keep)


def divisor(total: Tensor) -> Tensor:
    """A divisor for sums over samples: the total, or 1 where it is 0, for nothing over nothing is to be 0."""
    return torch.where(total == 0, 1, total) if total.is_floating_point() else total.clamp_min(1)
