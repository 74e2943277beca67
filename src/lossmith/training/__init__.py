"""Training with a smoothed metric: schedules of the loss's scale and q, the gradient's norm, and a plain loop for tables."""

from lossmith.training.loop import Recipe, fit
from lossmith.training.normalizer import GradientNormalizer
from lossmith.training.schedules import QSchedule, ScaleSchedule

__all__ = ["GradientNormalizer", "QSchedule", "Recipe", "ScaleSchedule", "fit"]
