"""A plain training loop for tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lossmith.errors import near
from lossmith.training.normalizer import GradientNormalizer
from lossmith.training.schedules import ScaleSchedule

OPTIMIZERS = ("sgd", "adam", "sam")
MOMENTUM = 0.9
RADIUS = 0.05  # of the neighbourhood whose worst loss "sam" lowers


@dataclass(frozen=True)
class TrainingConfig:
    """How to train: the learning rate falls exponentially to a hundredth.

    Args:
        epochs: passes over the data.
        batch_size: rows a step.
        learning_rate: at the start.
        weight_decay: on weight matrices only, neither on biases nor on the loss's own parameters.
        scale: (start, end) of the loss's ``ScaleSchedule`` over all steps; None leaves the scale alone.
        normalize_gradients: whether a ``GradientNormalizer`` runs before each step.
        optimizer: "sgd" (momentum 0.9), "adam", or "sam": sharpness-aware minimisation with radius 0.05 around that SGD, which
            evaluates the loss twice a step and needs the package pytorch-optimizer. Source: Foret et al., "Sharpness-aware
            minimization for efficiently improving generalization", ICLR 2021.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    scale: tuple[float, float] | None = None
    normalize_gradients: bool = False
    optimizer: str = "sgd"


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
    optimizer = _optimizer(config, groups)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.01 ** (1 / steps))
    schedule = ScaleSchedule(loss, *config.scale, steps) if config.scale else None
    normalizer = GradientNormalizer([*weights, *others]) if config.normalize_gradients else None
    model.train()
    for _ in range(config.epochs):
        total = 0.0
        for batch in torch.randperm(rows, generator=generator).split(config.batch_size):

            def value_and_gradient(batch: Tensor = batch) -> Tensor:
                optimizer.zero_grad()
                value: Tensor = loss(model(features[batch]), target[batch])
                value.backward()
                if normalizer:
                    normalizer.step()
                return value

            value = value_and_gradient()
            if config.optimizer == "sam":
                optimizer.step(value_and_gradient)  # type: ignore[arg-type]
            else:
                optimizer.step()
            rate.step()
            if schedule:
                schedule.step()
            total += value.item() * len(batch)
        if after_epoch:
            after_epoch(total / rows)
    model.eval()


def _optimizer(config: TrainingConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENTUM)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate)
    if config.optimizer != "sam":
        raise ValueError(f"optimizer: there is no {config.optimizer!r}; {near(config.optimizer, OPTIMIZERS)}")
    try:
        from pytorch_optimizer import SAM
    except ImportError:
        raise ImportError("optimizer: 'sam' needs the package pytorch-optimizer; pip install 'lossmith[reproduce]'") from None
    optimizer: torch.optim.Optimizer = SAM(groups, torch.optim.SGD, rho=RADIUS, lr=config.learning_rate, momentum=MOMENTUM)
    return optimizer


def __getattr__(name: str) -> Any:
    """``Recipe``, the name of ``TrainingConfig`` in version 0.1.0."""
    if name != "Recipe":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    text = "lossmith.training.Recipe is now TrainingConfig; the old name goes after lossmith 0.2"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return TrainingConfig
