"""The cost of moving the predicted distribution to the target."""

from __future__ import annotations

import torch
from torch import Tensor

from lossmith.functional import standardize_scores
from lossmith.inputs import in_full_precision, samples_of
from lossmith.losses.base import Reduction
from lossmith.surrogates.base import IndexLoss


class EMOLoss(IndexLoss):
    r"""Earth mover's loss: Σ_i p_i · (1 − cos(e_i, e_y)), p = softmax(z), e_i the frozen embedding of class i.

    To move all probability to one class there is only one plan, so this is its exact cost; with cost 1 for each rival, that
    is with orthogonal embeddings, it is 1 − p_y, the smooth error. A rival near the target costs little, an opposite one 2.
    The gradient is p_j · (1 − cos(e_j, e_y) − loss).

    Class probabilities τ are charged Σ_ij p_i τ_j (1 − cos(e_i, e_j)), the cost of the independent plan: an **upper bound** of
    the earth mover's distance, exact for a one-hot τ, and not 0 at p = τ otherwise.

    Args:
        embeddings: (C, d) a vector for each class, such as the weight of a language model's last layer before fine-tuning.
            Copied, scaled to length 1, kept as the buffer ``embeddings`` and not trained.
        standardize: first give the batch's scores mean 0 and variance 1.
        weight, ignore_index, reduction: as in ``torch.nn.CrossEntropyLoss``; ``ignore_index`` is for class indices only.

    Shape:
        scores (C,), (N, C) or (N, C, d1, …); target the same without C, class indices, or the same shape, floating-point class
        probabilities. Output: a scalar, or the target's shape without C for reduction="none".

    Raises:
        TypeError: embeddings or scores are not floating point.
        ValueError: embeddings are not (C, d), not as many as classes, not finite, or have a row of zeros, which has no angle.

    Range: 0 to 2. For class indices the loss keeps its digits as p_y → 1. Computed in float32 or float64, under autocast too.
    Cost: 2·N·C·d operations forward, as much again backward, (N, C) + (N, d) memory: a second last layer.
    Source: Ren et al., "EMO: earth mover distance optimization for auto-regressive language modeling", ICLR 2024.

    >>> EMOLoss(torch.eye(2))(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor(0.5000)
    >>> EMOLoss(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]))(torch.tensor([[0.0, 9.0, 0.0]]), torch.tensor([0]))
    tensor(0.0052)
    """

    embeddings: Tensor

    def __init__(
        self,
        embeddings: Tensor,
        *,
        standardize: bool = False,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(standardize=standardize, weight=weight, ignore_index=ignore_index, reduction=reduction)
        self.register_buffer("embeddings", _directions(embeddings))

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores (C,), (N, C) or (N, C, d1, …) against class indices or class probabilities."""
        samples = samples_of(scores, target, self.ignore_index)
        if not samples.fractional():
            return self.of_samples(samples)
        scores = standardize_scores(samples.scores) if self.standardize else samples.scores
        mass = samples.target.to(scores) * self.class_weight(scores)
        directions = self._directions_for(scores)
        met = ((scores.softmax(-1) @ directions) * (mass @ directions)).sum(-1)
        losses = mass.sum(-1) - met
        # The mean over class probabilities is one over samples, whatever their classes weigh.
        return self.reduce(losses, losses.new_tensor(losses.numel()))

    def per_sample(self, scores: Tensor, index: Tensor) -> Tensor:
        # 1 − Σ_i p_i cos_i would round small losses away; the rivals' probabilities alone hold all of them.
        rivals = scores.softmax(-1).scatter(-1, index.unsqueeze(-1), 0.0)
        directions = self._directions_for(scores)
        return rivals.sum(-1) - ((rivals @ directions) * directions[index]).sum(-1)

    def _directions_for(self, scores: Tensor) -> Tensor:
        if self.embeddings.shape[0] != scores.shape[-1]:
            raise ValueError(
                f"scores: expected {self.embeddings.shape[0]} classes, one for each embedding, got {scores.shape[-1]}"
            )
        return self.embeddings.to(scores)


def _directions(embeddings: Tensor) -> Tensor:
    """Rows scaled to length 1, checked, in the type they are computed with."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        got = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"embeddings: expected a floating-point tensor (C, d), got {got}")
    if embeddings.dim() != 2:
        raise ValueError(f"embeddings: expected shape (C, d), got {tuple(embeddings.shape)}")
    rows = embeddings.detach()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    rows = rows / rows.abs().amax(-1, keepdim=True)  # so that no square over- or underflows
    rows = rows / rows.norm(dim=-1, keepdim=True)
    if (bad := ~rows.isfinite().all(-1)).any():
        raise ValueError(
            "embeddings: expected finite rows that are not all zero, "
            f"got otherwise in row {int(bad.nonzero()[0])}; give that class a vector of its own"
        )
    return rows
