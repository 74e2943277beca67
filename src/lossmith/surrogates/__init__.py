"""The classical losses that metric losses are compared with, each right by its own definition."""

from lossmith.surrogates.leads import HingeLoss, PolynomialLoss, SigmoidLoss
from lossmith.surrogates.likelihoods import BetaBernoulliLoss, GammaCrossEntropyLoss, PolyLoss
from lossmith.surrogates.transport import EMOLoss

__all__ = [
    "BetaBernoulliLoss",
    "EMOLoss",
    "GammaCrossEntropyLoss",
    "HingeLoss",
    "PolyLoss",
    "PolynomialLoss",
    "SigmoidLoss",
]
