"""Train the metric you report: losses that are the metric itself, made smooth exactly."""

from lossmith import functional, noise, surrogates, training
from lossmith.choice import PerturbedArgmax
from lossmith.errors import InputError
from lossmith.losses import AccuracyLoss, BalancedAccuracyLoss, TopKAccuracyLoss
from lossmith.threshold.select import last_kernel, use_kernel

__version__ = "0.1.0"
__all__ = [
    "AccuracyLoss",
    "BalancedAccuracyLoss",
    "InputError",
    "PerturbedArgmax",
    "TopKAccuracyLoss",
    "functional",
    "last_kernel",
    "noise",
    "surrogates",
    "training",
    "use_kernel",
]
