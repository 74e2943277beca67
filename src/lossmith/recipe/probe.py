"""Any loss as a function of one number: the lead that every sample's target has over its rivals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith.errors import near

Task = Literal["multiclass", "binary", "multilabel"]
Loss = Callable[[Tensor, Tensor], Tensor]
Array = NDArray[np.float64]


class Probe:
    """A loss over the lead t, and its slope by autograd, in float64.

    Every sample has the same lead, and every class is the target equally often, so that losses of a whole batch (balanced
    accuracy, F-beta, AUC) are functions of t too:

        multiclass   scores (C, C): row k has t/2 at its target k and −t/2 elsewhere; target (C,) int64
        binary       scores (2,): (t, −t); target (1, 0), float64. The rival is a score of 0, as for a sigmoid
        multilabel   scores (2, L): t where the label is 1, −t where it is 0; target 1, 0, 1, … and its complement, float64
    """

    def __init__(self, loss: Loss, task: Task, num_classes: int) -> None:
        if not callable(loss):
            raise TypeError(f"loss: expected a callable of (scores, target), got {type(loss).__name__}")
        if task not in get_args(Task):
            raise ValueError(f"task: unknown name {task!r}; {near(str(task), get_args(Task))}")
        if num_classes < 2:
            raise ValueError(f"num_classes: expected a whole number ≥ 2, got {num_classes}")
        if task == "binary" and num_classes != 2:
            raise ValueError(f"num_classes: expected 2 for task='binary', got {num_classes}; task='multilabel' has more labels")
        self.loss = loss
        if task == "multiclass":
            self.target = torch.arange(num_classes)
            self.direction = torch.eye(num_classes, dtype=torch.float64) - 0.5
        else:
            first = 1.0 - torch.arange(num_classes, dtype=torch.float64) % 2
            self.target = first if task == "binary" else torch.stack([first, 1 - first])
            self.direction = 2 * self.target - 1
        if self(0.5) != self(0.5):
            raise ValueError(
                "loss: expected the same value for the same input, got two; fix what is random in it, or call eval()"
            )

    def __call__(self, lead: float) -> tuple[float, float]:
        """The loss at a lead, and dL/dt. Where the loss is +inf the slope is nan."""
        t = torch.tensor(lead, dtype=torch.float64, requires_grad=True)
        scores = t * self.direction
        try:
            value = self.loss(scores, self.target)
        except Exception as error:
            given = f"scores {_kind(scores)} and target {_kind(self.target)}"
            remedy = "choose the task that fits, or cast inside a function of your own; a module with weights needs .double()"
            raise ValueError(
                f"loss: expected a loss of {given}, got {type(error).__name__}: {_line(error)}; {remedy}"
            ) from error
        if not isinstance(value, Tensor):
            raise TypeError(f"loss: expected a scalar tensor, got {type(value).__name__}; do not call .item() on it")
        if value.numel() != 1 or value.is_complex():
            raise ValueError(f"loss: expected one real number a batch, got {_kind(value)}; use reduction='mean'")
        height = float(value.detach())
        if math.isnan(height) or height == -math.inf:
            raise ValueError(f"loss: expected finite numbers or inf, got {height} at a lead of {lead:g}; {_REMEDY}")
        if not value.requires_grad:
            raise ValueError(
                "loss: expected a value that depends on the scores for autograd, got a constant; do not detach or count"
            )
        (slope,) = torch.autograd.grad(value.sum(), t, allow_unused=True)
        steep = 0.0 if slope is None else float(slope)
        if height == math.inf or (height > 1e200 and not math.isfinite(steep)):  # at the end of float64 the slope goes first
            return math.inf, math.nan
        if not math.isfinite(steep):
            raise ValueError(
                f"loss: expected a finite gradient, got {steep} at a lead of {lead:g}, where the loss is {height:g}; {_REMEDY}"
            )
        return height, steep

    def curve(self, leads: Array) -> tuple[Array, Array]:
        """Losses and slopes at these leads."""
        pairs = np.array([self(float(lead)) for lead in leads])
        return pairs[:, 0], pairs[:, 1]


_REMEDY = "logarithms of what may be 0 are best formed from scores, as by log_softmax"


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _line(error: Exception) -> str:
    text: Any = str(error).strip().split("\n")[0]
    return text[:200]


def grid(unit: float) -> Array:
    """Leads from −1000 to 1000 units: even in the middle, evenly spaced logarithms outside, and 0 from both sides.

    None is 0 or a round number up to 8 units, so that a kink there lies between two leads.
    """
    side = np.concatenate([[1e-9], np.geomspace(1e-3, 0.05, 12), np.geomspace(8.3, 1000, 54)])
    middle = np.linspace(-8.03, 8.03, 160)
    return unit * np.unique(np.concatenate([-side, middle, side]))
