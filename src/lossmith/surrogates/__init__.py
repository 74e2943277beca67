"""The classical losses that metric losses are compared with, each right by its own definition."""

from lossmith.surrogates.leads import HingeLoss, PolynomialLoss, SigmoidLoss
from lossmith.surrogates.likelihoods import BetaBernoulliLoss, GammaCrossEntropyLoss, PolyLoss
from lossmith.surrogates.sparse import Entmax15Loss, SparsemaxLoss
from lossmith.surrogates.subsets import SmoothTopKLoss
from lossmith.surrogates.transport import EMOLoss

__all__ = [
    "BetaBernoulliLoss",
    "EMOLoss",
    "Entmax15Loss",
    "GammaCrossEntropyLoss",
    "HingeLoss",
    "PolyLoss",
    "PolynomialLoss",
    "SigmoidLoss",
    "SmoothTopKLoss",
    "SparsemaxLoss",
]
