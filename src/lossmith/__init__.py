"""Train the metric you report: losses that are the metric itself, made smooth exactly."""

from lossmith import functional, heads, moved, noise, surrogates, training
from lossmith.distribution import PerturbedArgmax
from lossmith.engine.runtime.select import last_kernel, use_kernel
from lossmith.engine.warm_up import warm_up
from lossmith.errors import InputError, PerformanceWarning
from lossmith.losses import (
    AccuracyLoss,
    AUCLoss,
    AveragePrecisionLoss,
    BalancedAccuracyLoss,
    CostLoss,
    FBetaLoss,
    JaccardLoss,
    LinearAccuracyLoss,
    SubsetAccuracyLoss,
    TopKAccuracyLoss,
    metric,
)
from lossmith.recipe import check_recipe

moved.install()

__version__ = "0.2.0"
__all__ = [
    "AUCLoss",
    "AccuracyLoss",
    "AveragePrecisionLoss",
    "BalancedAccuracyLoss",
    "CostLoss",
    "FBetaLoss",
    "InputError",
    "JaccardLoss",
    "LinearAccuracyLoss",
    "PerformanceWarning",
    "PerturbedArgmax",
    "SubsetAccuracyLoss",
    "TopKAccuracyLoss",
    "check_recipe",
    "functional",
    "heads",
    "last_kernel",
    "metric",
    "noise",
    "surrogates",
    "training",
    "use_kernel",
    "warm_up",
]
