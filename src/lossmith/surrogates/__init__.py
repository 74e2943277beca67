"""The classical losses that metric losses are compared with, each right by its own definition.

Those of class indices take the layouts of ``torch.nn.CrossEntropyLoss``; ``ZLPRLoss`` takes labels that are each on or off,
``F1WeightedCrossEntropyLoss`` two classes with one score.
"""

from lossmith.surrogates.labels import F1WeightedCrossEntropyLoss, ZLPRLoss
from lossmith.surrogates.leads import HingeLoss, PolynomialLoss, SigmoidLoss
from lossmith.surrogates.likelihoods import BetaBernoulliLoss, GammaCrossEntropyLoss, PolyLoss
from lossmith.surrogates.sparse import Entmax15Loss, SparsemaxLoss
from lossmith.surrogates.subsets import SmoothTopKLoss
from lossmith.surrogates.transport import EMOLoss

__all__ = [
    "BetaBernoulliLoss",
    "EMOLoss",
    "Entmax15Loss",
    "F1WeightedCrossEntropyLoss",
    "GammaCrossEntropyLoss",
    "HingeLoss",
    "PolyLoss",
    "PolynomialLoss",
    "SigmoidLoss",
    "SmoothTopKLoss",
    "SparsemaxLoss",
    "ZLPRLoss",
]
