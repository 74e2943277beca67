"""Binary losses φ(t) of the lead t that the target has, for any number of classes.

With more than two classes the lead is taken over the strongest rival, t = z_y − max_{j≠y} z_j: the sample is right exactly if
t > 0, so φ still stands for the 0-1 loss, and its slope does not depend on the number of classes. (The code that came with
EXACT takes the sum over all rivals of φ, which is a union bound and reaches C − 1, or for the hinge the mean, whose slope
shrinks with C.) Ties share the gradient.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lossmith.losses.base import Reduction
from lossmith.surrogates.base import IndexLoss, positive


class _LeadLoss(IndexLoss):
    """A loss φ of the lead over the strongest rival."""

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        own = index.unsqueeze(-1)
        rival = scores.scatter(-1, own, -torch.inf).amax(-1)
        return self.of_lead(scores.gather(-1, own).squeeze(-1) - rival)

    @abstractmethod
    def of_lead(self, lead: Tensor) -> Tensor:
        """φ(t), element by element."""


class HingeLoss(_LeadLoss):
    r"""Multi-class hinge: max(0, margin − t), t the lead over the strongest rival.

    An upper bound of margin · (0-1 loss). Differs from EXACT's baseline, a mean over rivals as in
    ``torch.nn.MultiMarginLoss``, whose gradient shrinks as 1/(C − 1).

    Args:
        margin: the lead from which on nothing is charged, > 0.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Crammer & Singer, JMLR 2 (2001).

    >>> HingeLoss()(torch.tensor([[0.5, 0.0, -1.0]]), torch.tensor([0]))
    tensor(0.5000)
    """

    def __init__(
        self,
        margin: float = 1.0,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        self.margin = positive("margin", margin)

    def of_lead(self, lead: Tensor) -> Tensor:
        return (self.margin - lead).clamp_min(0)


class SigmoidLoss(_LeadLoss):
    r"""Sigmoid relaxation of the 0-1 loss: 1 − sigmoid(t / scale), t the lead over the strongest rival.

    It tends to the 0-1 loss as scale → 0. EXACT's baseline sums it over rivals.

    Args:
        scale: > 0, in units of the scores; ``training.ScaleSchedule`` may lower it.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Nguyen & Sanner, "Algorithms for direct 0-1 loss optimization in binary classification", ICML 2013.

    >>> SigmoidLoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.5000)
    """

    def __init__(
        self,
        scale: float = 1.0,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        self.scale = positive("scale", scale)

    def of_lead(self, lead: Tensor) -> Tensor:
        return torch.sigmoid(-lead / self.scale)


class PolynomialLoss(_LeadLoss):
    r"""Cubic relaxation of the 0-1 loss: d³/4 − 3d/4 + 1/2 with d = clip(t / scale, −1, 1).

    t is the lead over the strongest rival. 1 for t ≤ −scale, 0 for t ≥ scale, with a continuous slope; no gradient outside.
    EXACT's baseline sums it over rivals.

    Args:
        scale: > 0, in units of the scores; ``training.ScaleSchedule`` may lower it.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Source: Nguyen & Sanner, ICML 2013.

    >>> PolynomialLoss()(torch.tensor([[0.5, 0.0]]), torch.tensor([0]))
    tensor(0.1562)
    """

    def __init__(
        self,
        scale: float = 1.0,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        self.scale = positive("scale", scale)

    def of_lead(self, lead: Tensor) -> Tensor:
        d = (lead / self.scale).clamp(-1, 1)
        return d**3 / 4 - 3 * d / 4 + 0.5
