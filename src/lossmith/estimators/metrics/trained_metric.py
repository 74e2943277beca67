r"""What a metric needs to be trained: counted on predictions, and smooth with a gradient.

A smooth metric is that of the classifier with noise on its scores. From p_ik, the probability that it predicts k for sample i,
the weights w_i and the classes y_i come, as for the losses of ``lossmith.losses``,

    mean metrics:   m = Σ_i w_i v_i p_{i,y_i} / Σ_i w_i v_i,      loss Σ_i w_i v_i · −log_q(p_{i,y_i}) / Σ_i w_i v_i
    count metrics:  m(tp, predicted, support) from tp_k = Σ_{y_i=k} w_i p_ik and predicted_k = Σ_i w_i p_ik,  loss −log_q(m)
    rankings:       the expected AUC or average precision, loss −log_q(m)

with v_i = 1 for accuracy and 1 / (weight of class y_i) for balanced accuracy. All in float64; gradients are in the scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from lossmith.functional import argmax_log_probs

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
TINY = 1e-300  # what a metric of 0 counts as, in its logarithm


@dataclass(frozen=True)
class Rows:
    """What a metric looks at beside the scores."""

    y: Codes  # (n,) class codes 0 … C − 1
    weight: Floats  # (n,)
    classes: int  # C

    def at(self, places: Codes | slice) -> Rows:
        """Some of the rows."""
        return Rows(self.y[places], self.weight[places], self.classes)


class TrainedMetric(ABC):
    """A metric in [0, 1], better when higher.

    Scores are (n, C) float64, or (n, 1) for two classes: the lead of class 1, as ``decision_function`` has it.
    """

    name: str
    shifts: ClassVar[bool] = False  # whether an offset for each class may raise it, of a classifier fitted by likelihood
    likelihood: ClassVar[bool] = False  # whether likelihood itself trains it
    additive: ClassVar[bool] = True  # whether it is a mean over rows, or over those of a class
    caution: ClassVar[float] = 0.75  # standard errors that a gain over likelihood has to exceed, unless asked otherwise
    perfect: ClassVar[float] = 1.0  # the highest value

    def check(self, classes: int) -> None:  # noqa: B027
        """Refuse a number of classes that it is not for."""

    def of_steps(self, tp: Floats, predicted: Floats, support: Floats) -> Floats:
        """The metric (steps,) of true positives and predictions, (steps, C), and the weights of the classes, (C,)."""
        raise NotImplementedError

    def worth(self, shares: Floats) -> Floats | None:
        """What each decision is worth for each row, (n, C), in expectation under the probabilities of the classes ``shares``
        (n, C), where the metric is the mean over rows of what their decisions are worth; else None, and ``of_steps`` gives it.
        """
        return None

    @abstractmethod
    def counted(self, scores: Floats, rows: Rows) -> float:
        """The metric of the classifier without noise."""

    @abstractmethod
    def loss(self, scores: Floats, rows: Rows, noise: str, q: float) -> tuple[float, Floats]:
        """−log_q of the smooth metric at scale 1, and its gradient in the scores."""


def predicted(scores: Floats) -> Codes:
    """The class of each row, (n,): the first of the highest, class 0 for a lead of 0."""
    return (scores[:, 0] > 0).astype(np.int64) if scores.shape[1] == 1 else scores.argmax(1)


def power(log_m: Floats, q: float) -> tuple[Floats, Floats]:
    """−log_q(m) (N6) of log m ≤ 0, and minus its derivative in log m, m^(1 − q)."""
    slope = np.exp((1 - q) * log_m)
    return (-log_m if q == 1 else -np.expm1((1 - q) * log_m) / (1 - q)), slope


def both_classes(scores: Floats) -> Floats:
    """Scores of both classes, (n, 2), from the lead of the second, (n, 1); others as they are."""
    return np.concatenate([np.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores


def log_probabilities(scores: Floats, noise: str) -> tuple[Floats, Any]:
    """log p of every class, (n, C), and the function from a gradient in log p to the gradient in the scores."""
    whole = both_classes(scores)
    if noise == "gumbel":
        log_p = log_softmax(whole, axis=1)

        def pull(grad: Floats) -> Floats:
            back = grad - np.exp(log_p) * grad.sum(1, keepdims=True)
            return back[:, 1:] if scores.shape[1] == 1 else back

        return log_p, pull
    leaf = torch.from_numpy(whole).requires_grad_()
    found = argmax_log_probs(leaf, noise=noise)

    def pull_torch(grad: Floats) -> Floats:
        (back,) = torch.autograd.grad(found, leaf, torch.from_numpy(np.ascontiguousarray(grad)))
        return back.numpy()[:, 1:] if scores.shape[1] == 1 else back.numpy()

    return found.detach().numpy(), pull_torch
