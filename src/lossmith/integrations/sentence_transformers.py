"""Retrieval inside a batch, for ``SentenceTransformerTrainer``: accuracy at 1, recall at k."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lossmith.errors import need
from lossmith.losses import LinearAccuracyLoss
from lossmith.losses.base import MetricLoss

need("sentence_transformers", "sentence-transformers")
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.util import all_gather_with_grad, cos_sim, get_rank  # noqa: E402


class InBatchLoss(nn.Module):
    r"""The loss of finding each anchor's positive among all positives and negatives of the batch.

    The scores of anchor i are scale · similarity(anchor_i, candidate_j), and its class is its own positive. ``AccuracyLoss``
    makes that accuracy at 1, ``TopKAccuracyLoss(k)`` recall at k. ``AccuracyLoss(q=1)`` is ``MultipleNegativesRankingLoss``.

    Args:
        model: a ``SentenceTransformer``.
        loss: a mean over samples of class indices: ``AccuracyLoss`` or ``TopKAccuracyLoss`` of any noise, scale and q.
        scale: what similarities are multiplied by, > 0.
        similarity_fct: from (n, d) and (m, d) to (n, m).
        gather_across_devices: whether the candidates are those of all ranks, whose batches have one size; gradients are right
            once DDP has averaged them.

    Shape:
        columns of the data set: anchors, their positives, and any number of columns of negatives. Output: a scalar, 0 for a
        batch of no more candidates than count as found.

    Raises:
        TypeError, ValueError: another loss, a metric of the whole batch, a ``process_group``, or a column alone.

    Cost: the loss's own for a batch of n anchors and as many classes as candidates.
    Source: candidates of the batch: Henderson et al., arXiv 1705.00652.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: MetricLoss,
        *,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(loss, MetricLoss) or not loss.is_sample_mean:
            raise TypeError(f"loss: expected a mean over samples such as AccuracyLoss(), got {type(loss).__name__}")
        if isinstance(loss, LinearAccuracyLoss) or loss.reduction == "none":
            raise TypeError(f"loss: expected one number for a batch of similarities, got {loss!r}; such as AccuracyLoss()")
        if loss.process_group is not None:
            raise ValueError("process_group: expected none; gather_across_devices=True shares the candidates")
        if not scale > 0:
            raise ValueError(f"scale: expected a number > 0, got {scale}")
        self.model = model
        self.loss = loss
        self.scale = scale
        self.similarity_fct = similarity_fct
        self.gather_across_devices = gather_across_devices

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch of tokenised columns; ``labels`` are not looked at."""
        return self.of_embeddings([self.model(features)["sentence_embedding"] for features in sentence_features])

    def of_embeddings(self, embeddings: list[Tensor]) -> Tensor:
        """The loss of embeddings (n, d): anchors, positives, and columns of negatives."""
        if len(embeddings) < 2:
            raise ValueError(f"columns: expected anchors and positives, got {len(embeddings)} column; add the positives")
        anchors, candidates, first = embeddings[0], embeddings[1:], 0
        if self.gather_across_devices:
            candidates, first = [all_gather_with_grad(column) for column in candidates], get_rank() * len(anchors)
        scores = self.scale * self.similarity_fct(anchors, torch.cat(candidates))
        least = getattr(self.loss, "k", 1)
        if scores.shape[1] <= least:  # such as a short last batch: all of its candidates count as found
            text = f"a batch of {scores.shape[1]}, all of which count among {least}, teaches nothing; take larger batches"
            warnings.warn(f"candidates: {text}, or dataloader_drop_last=True", UserWarning, stacklevel=2)
            return 0.0 * scores.sum()
        value: Tensor = self.loss(scores, torch.arange(first, first + len(anchors), device=scores.device))
        return value

    def get_config_dict(self) -> dict[str, Any]:
        """For the model's card."""
        name = getattr(self.similarity_fct, "__name__", type(self.similarity_fct).__name__)
        return {"loss": repr(self.loss), "scale": self.scale, "similarity_fct": name, "gather": self.gather_across_devices}
