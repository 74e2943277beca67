"""Losses of labels that are each on or off: multi-label and binary classification."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lossmith.inputs import Labels, in_full_precision, labels_of
from lossmith.losses.base import ClassificationLoss, Reduction
from lossmith.surrogates.base import ABSENT


class _LabelLoss(ClassificationLoss):
    """Checked labels of the scores' shape: 0, 1 or ``ignore_index``, bool, or soft labels from 0 to 1."""

    def __init__(self, *, ignore_index: int = -100, reduction: Reduction = "mean") -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)

    def labels(self, scores: Tensor, target: Tensor) -> Labels:
        """The batch's labels, checked; their targets have no gradient."""
        if not isinstance(target, Tensor):
            raise TypeError(f"target: expected a torch.Tensor of labels, got {type(target).__name__}")
        if target.requires_grad:
            raise ValueError("target: expected labels without a gradient, got requires_grad=True; pass target.detach()")
        return labels_of(scores, target, self.ignore_index)


class ZLPRLoss(_LabelLoss):
    r"""ZLPR, multi-label: log(1 + Σ_i t_i exp(−s_i)) + log(1 + Σ_i (1 − t_i) exp(s_i)), over the labels i of a sample.

    It asks every score of a label that is on to exceed 0, and 0 to exceed every other, as cross-entropy does for one target
    among rivals: no label is predicted by itself, and the many that are off need no weight. **Predict s > 0.** For soft
    labels the minimum is at t = sigmoid(2 s), so sigmoid(2 s), not sigmoid(s), estimates the probability of a label.

    Args:
        ignore_index: in integer targets, marks entries to leave out of both sums.
        reduction: over samples; "mean" divides by the number of samples with at least one entry that counts.

    Shape:
        scores (L,), (N, L) or (N, L, d1, …) with the labels where ``torch.nn.CrossEntropyLoss`` has the classes, any floating
        type; target the same shape: bool, integer 0 or 1, or floating-point soft labels in [0, 1]. Output: a scalar, or the
        shape without L for reduction="none".

    Raises:
        TypeError: scores are not floating point, or the target is no tensor.
        ValueError: shapes differ, the target requires a gradient, or, as far as values are looked at, a label is out of range
            or a score is NaN.

    Range: ≥ 0, unbounded; a batch without entries gives 0. Stable for any scores.
    Cost: O(N·L) time and memory.
    Source: Su et al., "ZLPR: a novel loss for multi-label classification", 2022 (arXiv 2208.02955).

    >>> ZLPRLoss()(torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[1, 0, 0]]))  # log(1 + e⁻²) + log(1 + e⁻¹ + 1)
    tensor(0.9889)
    """

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores (L,), (N, L) or (N, L, d1, …) against labels of the same shape."""
        z, label, keep = self.labels(scores, target)
        on, off = keep & (label > 0), keep & (label < 1)
        pull = torch.where(on, label.log() - z, ABSENT).logsumexp(-1)
        push = torch.where(off, torch.log1p(-label) + z, ABSENT).logsumexp(-1)
        return self.reduce(-logsigmoid(-pull) - logsigmoid(-push), keep.any(-1).to(z).sum())


class F1WeightedCrossEntropyLoss(_LabelLoss):
    r"""Binary cross-entropy weighted by the batch's F1: −[y (1 − F/2) log p + (1 − y) (F/2) log(1 − p)], p = sigmoid(z).

    F = 2 Σ y p / Σ (y + p), the smooth F1 of all entries of the batch, **is held constant**: it gets no gradient. The weights
    are those that each sample has in the gradient of F, ∂F/∂p ∝ y − F/2, while the logarithm keeps the pull on samples that are
    far wrong, which F itself loses. At first, with F near 0, only positives count; at F = 1 both count half.

    Args:
        ignore_index: in integer targets, marks entries to leave out, of F too.
        reduction: "mean" over the entries that count, "sum" or "none".

    Shape:
        scores (N,) or (N, d1, …), any floating type, one number for each decision; target the same shape: bool, integer 0 or 1,
        or floating-point labels in [0, 1]. Output: a scalar, or the scores' shape for reduction="none".

    Raises:
        TypeError: scores are not floating point, or the target is no tensor.
        ValueError: shapes differ, the target requires a gradient, or, as far as values are looked at, a label is out of range
            or a score is NaN.

    Range: ≥ 0, unbounded. Without positives F = 0, and the loss and its gradient are 0; so they are for an empty batch. F is
    the one of the scores passed in one call: of one process, where several share a batch.
    Cost: O(N) time and memory.
    Source: the gradient is worked out above; the weights were proposed in the article kexue.fm/archives/7708 (2020).

    >>> F1WeightedCrossEntropyLoss()(torch.zeros(2), torch.tensor([1, 0]))  # F = 1/2, so log 2 · (3/4 + 1/4) / 2
    tensor(0.3466)
    """

    @property
    def is_sample_mean(self) -> bool:
        """False: the weights come from the whole batch."""
        return False

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores (N,) or (N, d1, …) against labels of the same shape."""
        single = isinstance(scores, Tensor) and isinstance(target, Tensor) and scores.dim() == target.dim() == 1
        if single:
            scores, target = scores.unsqueeze(-1), target.unsqueeze(-1)  # not N labels of one sample: N may be 0
        z, label, keep = self.labels(scores, target)
        p = z.detach().sigmoid() * keep
        total = (label + p).sum()
        half_f = (label * p).sum() / total.clamp_min(torch.finfo(z.dtype).tiny)
        losses = -(label * (1 - half_f) * logsigmoid(z) + (1 - label) * half_f * logsigmoid(-z)) * keep
        losses = losses.movedim(-1, 1)  # as the scores came
        return self.reduce(losses.squeeze(-1) if single else losses, keep.to(z).sum())
