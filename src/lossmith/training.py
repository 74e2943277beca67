"""Training with a smoothed metric: the scale's schedule, the gradient's norm, and a plain loop for tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class _Scaled(Protocol):
    scale: Any


class ScaleSchedule:
    r"""Lowers a loss's ``scale`` exponentially: scale_t = start · (end / start)^(t / (steps − 1)), t = 0 … steps − 1.

    Used like a learning-rate scheduler: the constructor sets the start, ``step()`` after each optimiser step goes on, and
    after ``steps − 1`` calls the scale stays at ``end``. (EXACT's code divides by ``steps``, and so never reaches the end.)

    Args:
        loss: any object with an attribute ``scale``, such as ``AccuracyLoss``.
        start: first scale, > 0.
        end: last scale, > 0; above ``start`` the scale rises.
        steps: how many steps the training has, ≥ 1.

    Raises:
        ValueError: a number out of range.
        TypeError: the loss's scale is a tensor.

    >>> from lossmith import AccuracyLoss
    >>> loss = AccuracyLoss()
    >>> schedule = ScaleSchedule(loss, start=10.0, end=0.1, steps=3)
    >>> scales = [loss.scale]
    >>> for _ in range(3):
    ...     schedule.step()
    ...     scales.append(round(loss.scale, 6))
    >>> scales
    [10.0, 1.0, 0.1, 0.1]
    """

    def __init__(self, loss: _Scaled, start: float, end: float, steps: int) -> None:
        if not (start > 0 and end > 0 and steps >= 1):
            raise ValueError(f"expected start > 0, end > 0 and steps ≥ 1, got start={start}, end={end}, steps={steps}")
        if isinstance(loss.scale, Tensor):
            raise TypeError("loss.scale: expected a number to be scheduled, got a tensor; a learned scale has no schedule")
        self.loss = loss
        self.start, self.end, self.steps = float(start), float(end), int(steps)
        self.taken = 0
        self._apply()

    def step(self) -> None:
        """One step further; sets ``loss.scale``."""
        self.taken += 1
        self._apply()

    def _apply(self) -> None:
        fraction = min(self.taken / max(self.steps - 1, 1), 1.0)
        self.loss.scale = self.start * (self.end / self.start) ** fraction

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must keep."""
        return {"start": self.start, "end": self.end, "steps": self.steps, "taken": self.taken}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint; sets ``loss.scale``."""
        self.start, self.end = float(state["start"]), float(state["end"])
        self.steps, self.taken = int(state["steps"]), int(state["taken"])
        self._apply()


class GradientNormalizer:
    r"""Divides gradients by a moving average of their norm: g ← g / max(average ‖g‖, min_norm).

    A smoothed metric has gradients whose size changes by orders of magnitude as its scale falls; this keeps the step size of
    SGD about constant. Under Adam, which is scale-invariant, it does next to nothing. A norm that is not finite leaves the
    average alone, so one bad batch does not spoil the rest; parameters without a gradient are passed over.

    Args:
        parameters: the parameters to normalise together.
        momentum: weight of the past in the average, in [0, 1); the first norm starts it.
        min_norm: lower bound of the divisor, > 0.

    Raises:
        ValueError: a number out of range.

    Source: EXACT's code, where the average starts and runs the same, but one NaN stays in it for good.

    >>> layer = nn.Linear(2, 1)
    >>> layer(torch.tensor([[30.0, 40.0]])).sum().backward()
    >>> GradientNormalizer(layer.parameters()).step()
    >>> bool(torch.isclose(layer.weight.grad.norm() ** 2 + layer.bias.grad.norm() ** 2, torch.tensor(1.0)))
    True
    """

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.9, min_norm: float = 0.01) -> None:
        if not (0 <= momentum < 1 and min_norm > 0):
            raise ValueError(f"expected 0 ≤ momentum < 1 and min_norm > 0, got {momentum} and {min_norm}")
        self.parameters = list(parameters)
        self.momentum, self.min_norm = momentum, min_norm
        self.average: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Normalise ``.grad`` in place; call between ``backward()`` and the optimiser's ``step()``."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        past = norm if self.average is None else self.average
        mixed = self.momentum * past + (1 - self.momentum) * norm
        mixed = torch.where(norm.isfinite(), mixed, past)
        self.average = torch.where(past.isfinite(), mixed, norm)
        torch._foreach_div_(gradients, self.average.clamp_min(self.min_norm).to(gradients[0]))

    def state_dict(self) -> dict[str, Tensor | None]:
        """What a checkpoint must keep."""
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Go on from a checkpoint."""
        self.average = state["average"]


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum 0.9, the learning rate falling exponentially to a hundredth.

    Args:
        epochs: passes over the data.
        batch_size: rows a step.
        learning_rate: at the start.
        weight_decay: on weight matrices only, neither on biases nor on the loss's own parameters.
        scale: (start, end) of the loss's ``ScaleSchedule`` over all steps; None leaves the scale alone.
        normalize_gradients: whether a ``GradientNormalizer`` runs before each step.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    scale: tuple[float, float] | None = None
    normalize_gradients: bool = False


def fit(
    model: nn.Module,
    loss: nn.Module,
    features: Tensor,
    target: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    after_epoch: Callable[[float], None] | None = None,
) -> None:
    """Train ``model`` in place on features (rows, d) and class indices (rows,), and the loss's own parameters with it.

    Args:
        model: maps features to scores.
        loss: maps (scores, target) to a scalar.
        features: (rows, d), on the model's device and of its dtype.
        target: (rows,) int64.
        recipe: how.
        seed: of the order of the rows; nothing else here is random.
        after_epoch: called with the epoch's mean training loss.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(features)
    steps = recipe.epochs * -(-rows // recipe.batch_size)
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [*(p for p in model.parameters() if p.dim() <= 1), *loss.parameters()]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.01 ** (1 / steps))
    schedule = ScaleSchedule(loss, *recipe.scale, steps) if recipe.scale else None
    normalizer = GradientNormalizer([*weights, *others]) if recipe.normalize_gradients else None
    model.train()
    for _ in range(recipe.epochs):
        total = 0.0
        for batch in torch.randperm(rows, generator=generator).split(recipe.batch_size):
            optimizer.zero_grad()
            value = loss(model(features[batch]), target[batch])
            value.backward()
            if normalizer:
                normalizer.step()
            optimizer.step()
            rate.step()
            if schedule:
                schedule.step()
            total += value.item() * len(batch)
        if after_epoch:
            after_epoch(total / rows)
    model.eval()
