"""Losses that are the reported metric itself, made smooth: torch modules."""

from lossmith.losses.accuracy import AccuracyLoss, BalancedAccuracyLoss, TopKAccuracyLoss

__all__ = ["AccuracyLoss", "BalancedAccuracyLoss", "TopKAccuracyLoss"]
