"""Training with a smoothed metric: schedules of the loss's scale and q, the gradient's norm, and a plain loop for tables."""

import warnings
from typing import Any

from lossmith.training.loop import TrainingConfig, fit
from lossmith.training.normalizer import GradientNormalizer
from lossmith.training.schedules import QSchedule, ScaleSchedule

__all__ = ["GradientNormalizer", "QSchedule", "ScaleSchedule", "TrainingConfig", "fit"]


def __getattr__(name: str) -> Any:
    """``Recipe``, the name of ``TrainingConfig`` in version 0.1.0."""
    if name != "Recipe":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    text = "lossmith.training.Recipe is now TrainingConfig; the old name goes after lossmith 0.2"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return TrainingConfig
