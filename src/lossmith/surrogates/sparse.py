"""Losses whose probabilities are exactly 0 for classes far below the highest score."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from lossmith.losses.base import Reduction
from lossmith.surrogates.base import IndexLoss


class _SparseLoss(IndexLoss):
    """The Fenchel–Young loss of a sparse map, max_p (p·z + H(p)) − z_y, with gradient p − onehot(y).

    The maximum over distributions p is a minimum over the threshold τ of ``dual``. The map of the ``entmax`` package gives τ
    without a gradient, as its own gradient neither compiles nor, for 1.5-entmax, differentiates again; one Newton step, which
    moves nothing but rounding errors, then makes τ a function of the scores with the right slope. At the minimum the slope of
    the value does not depend on that of τ, but the second derivative does.
    """

    def __init__(
        self,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        try:
            import entmax
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__}: expected the package 'entmax', which is not installed; "
                "pip install 'lossmith[surrogates]'"
            ) from error
        self.map = self.choose_map(entmax)

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        # In float64: with many classes near the threshold, float32 leaves it too few digits for the probabilities to sum to 1.
        z = scores.double()
        z = z - z.detach().amax(-1, keepdim=True)  # the loss does not see a shift
        p = self.map(z.detach(), dim=-1)
        losses = self.dual(z, p.amax(-1, keepdim=True)).squeeze(-1) - z.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return losses.to(scores.dtype)

    @staticmethod
    @abstractmethod
    def choose_map(entmax: Any) -> Any:
        """The package's map."""

    @staticmethod
    @abstractmethod
    def dual(z: Tensor, highest: Tensor) -> Tensor:
        """max_p (p·z + H(p)), (…, 1), of scores (…, C) with maximum 0 and the highest probability (…, 1)."""


class SparsemaxLoss(_SparseLoss):
    r"""Sparsemax loss: max_p (p·z + (1 − Σ p²) / 2) − z_y, with gradient p − onehot(y).

    p = sparsemax(z) = max(0, z − τ), the distribution nearest to z. The loss is 0 once the target leads every rival by 1, and
    classes more than 1 below the highest get no gradient. With two classes it is the modified Huber loss: (1 − t)²/4 of the
    lead t within ±1, 0 above and −t below.

    Needs ``pip install 'lossmith[surrogates]'`` (the ``entmax`` package, whose map it uses).

    Args:
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Raises:
        ImportError: ``entmax`` is not installed.

    Range: ≥ 0, unbounded. First and second derivatives are right almost everywhere (the second jumps where a class enters).
    Works under ``torch.compile``; not under ``torch.func`` transforms, which refuse the package's map.
    Cost: a sort and sums in float64, O(C log C) a sample.
    Source: Martins & Astudillo, "From softmax to sparsemax", ICML 2016.

    >>> import torch
    >>> SparsemaxLoss()(torch.tensor([[0.0, 0.0], [1.5, 0.0]]), torch.tensor([0, 0]))
    tensor(0.1250)
    """

    @staticmethod
    def choose_map(entmax: Any) -> Any:
        return entmax.sparsemax

    @staticmethod
    def dual(z: Tensor, highest: Tensor) -> Tensor:
        tau = -highest
        above = (z - tau).clamp_min(0)
        tau = tau + (above.sum(-1, keepdim=True) - 1) / (above > 0).sum(-1, keepdim=True)
        return (tau + 1) + ((z - tau).clamp_min(0).square().sum(-1, keepdim=True) - 1) / 2


class Entmax15Loss(_SparseLoss):
    r"""1.5-entmax loss: max_p (p·z + (4/3)(1 − Σ p^1.5)) − z_y, with gradient p − onehot(y).

    p = entmax15(z) = max(0, z/2 − τ)², between softmax and sparsemax. The loss is 0 once the target leads every rival by 2,
    and classes more than 2 below the highest get no gradient.

    Needs ``pip install 'lossmith[surrogates]'`` (the ``entmax`` package, whose map it uses).

    Args:
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``.

    Raises:
        ImportError: ``entmax`` is not installed.

    Range: ≥ 0, unbounded. First and second derivatives are right. Works under ``torch.compile``; not under ``torch.func``
    transforms, which refuse the package's map.
    Cost: a sort and sums in float64, O(C log C) a sample.
    Source: Peters, Niculae & Martins, "Sparse sequence-to-sequence models", ACL 2019; Blondel, Martins & Niculae, "Learning
    with Fenchel-Young losses", JMLR 21 (2020).

    >>> import torch
    >>> Entmax15Loss()(torch.tensor([[0.0, 0.0], [2.5, 0.0]]), torch.tensor([0, 0]))
    tensor(0.1953)
    """

    @staticmethod
    def choose_map(entmax: Any) -> Any:
        return entmax.entmax15

    @staticmethod
    def dual(z: Tensor, highest: Tensor) -> Tensor:
        x, tau = z / 2, -highest.sqrt()
        above = (x - tau).clamp_min(0)
        tau = tau + (above.square().sum(-1, keepdim=True) - 1) / (2 * above.sum(-1, keepdim=True))
        return 2 * (tau + 1) + (((x - tau).clamp_min(0) ** 3).sum(-1, keepdim=True) - 1) * (2 / 3)
