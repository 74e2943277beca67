"""A plain training loop for tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lossmith.training.normalizer import GradientNormalizer
from lossmith.training.schedules import ScaleSchedule


@dataclass(frozen=True)
class TrainingConfig:
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
    config: TrainingConfig,
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
        config: how.
        seed: of the order of the rows; nothing else here is random.
        after_epoch: called with the epoch's mean training loss.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(features)
    steps = config.epochs * -(-rows // config.batch_size)
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [*(p for p in model.parameters() if p.dim() <= 1), *loss.parameters()]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.01 ** (1 / steps))
    schedule = ScaleSchedule(loss, *config.scale, steps) if config.scale else None
    normalizer = GradientNormalizer([*weights, *others]) if config.normalize_gradients else None
    model.train()
    for _ in range(config.epochs):
        total = 0.0
        for batch in torch.randperm(rows, generator=generator).split(config.batch_size):
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


def __getattr__(name: str) -> Any:
    """``Recipe``, the name of ``TrainingConfig`` in version 0.1.0."""
    if name != "Recipe":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    text = "lossmith.training.Recipe is now TrainingConfig; the old name goes after lossmith 0.2"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return TrainingConfig
