"""Losses that are the reported metric itself, made smooth: torch modules."""

from lossmith.losses.accuracy import AccuracyLoss, BalancedAccuracyLoss, TopKAccuracyLoss
from lossmith.losses.cost import CostLoss
from lossmith.losses.counts import FBetaLoss, JaccardLoss
from lossmith.losses.labels import SubsetAccuracyLoss
from lossmith.losses.linear import LinearAccuracyLoss
from lossmith.losses.own_metric import metric
from lossmith.losses.ranking import AUCLoss, AveragePrecisionLoss

__all__ = [
    "AUCLoss",
    "AccuracyLoss",
    "AveragePrecisionLoss",
    "BalancedAccuracyLoss",
    "CostLoss",
    "FBetaLoss",
    "JaccardLoss",
    "LinearAccuracyLoss",
    "SubsetAccuracyLoss",
    "TopKAccuracyLoss",
    "metric",
]
