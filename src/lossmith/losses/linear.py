"""The last linear layer and its accuracy as one loss, without all scores in memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lossmith.functional.linear import LEAST_ROWS, SCORES, Layer, checked_rows, layer_of, log_prob_of_layer, sum_of_layer
from lossmith.inputs import Samples, check_margin, check_tensors, checked_count, divisor, one_hot, samples_of
from lossmith.losses.base import MetricLoss, Over, Reduction, check_mean, mean_of_samples, sums_of_hits, weights_like
from lossmith.noise import Noise

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

UNSUPPORTED = "a chunk looks at the target's class only; make the scores and take AccuracyLoss"


class LinearAccuracyLoss(MetricLoss):
    r"""The last layer of a network, and the ``AccuracyLoss`` of its scores, which are never held all at once.

    For many classes the scores (N, C) and their gradient are what fills the memory. Here chunks of rows are multiplied, made a
    loss of, differentiated and forgotten. It takes the place of ``torch.nn.LinearCrossEntropyLoss``; with noise="gumbel" and
    q=1 it has the same value.

    Args:
        in_features: d, the size of a sample.
        num_classes: C ≥ 2.
        bias: whether the layer has one.
        noise, scale, q, over, margin, weight, ignore_index, reduction: as in ``AccuracyLoss``; ``weight`` weighs the classes.
        label_smoothing: 0, else it is refused: only the target's probability is made.
        batch_chunk_size: rows whose scores are held at once, ≥ 1. None: as many as have 4 million scores, at least 16.
        process_group: as in ``AccuracyLoss``.
        device, dtype: of the layer.

    Attributes:
        linear: the layer, a ``torch.nn.Linear``. Assign another to share it: ``loss.linear = model.lm_head``. Its scores of one
            sample are ``loss.linear(input)``.

    Shape:
        input (d,) or (…, d), of the layer's dtype, or of any under autocast; target (…) integer class indices. The classes have
        no dimension of their own in the target, as ``AccuracyLoss`` has it for (N, C, d1, …). Output: a scalar, or the target's
        shape for reduction="none".

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes, shapes or devices; class probabilities as the target.
        NotImplementedError: in a backward pass with ``create_graph=True``: differentiable once, in input, weight, bias and
            scale.

    The metric, its limits and what the dials mean are those of ``AccuracyLoss``. Compiled, under ``torch.func`` and with
    wrappers such as DTensor all scores are made at once.

    Cost: with over="sample" and "mean" or "sum", one pass: forward makes the gradients too (if any is asked for), three
    products with the layer's weight, and backward multiplies them by a number. With over="batch" or "none" the gradient of a
    row waits for the others, so backward makes the scores anew: four products. Memory: three times a chunk's scores, and the
    gradients.
    Source: chunks with the gradient in forward, as in ``torch.nn.functional.linear_cross_entropy`` and Liger Kernel: Hsu et
    al., 2024.

    >>> from lossmith import AccuracyLoss
    >>> x, target = torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([0, 1])
    >>> loss = LinearAccuracyLoss(2, 3)
    >>> torch.allclose(loss(x, target), AccuracyLoss()(loss.linear(x), target))
    True
    """

    DIALS = ("noise", "scale", "q", "over", "margin")
    OPTIONAL = ("batch_chunk_size",)

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        *,
        noise: str | Noise = "gumbel",
        scale: float | Tensor = 1.0,
        q: float = 0.9,
        over: Over = "sample",
        margin: float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        batch_chunk_size: int | None = None,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            noise, scale, q, weight=weight, ignore_index=ignore_index, reduction=reduction, process_group=process_group
        )
        check_mean(over, reduction, label_smoothing)
        if label_smoothing:
            raise ValueError(f"label_smoothing: expected 0, got {label_smoothing}; {UNSUPPORTED}")
        check_margin(margin)
        for name, value, least in (("in_features", in_features, 1), ("num_classes", num_classes, 2)):
            if checked_count(name, value) < least:
                raise ValueError(f"{name}: expected an integer ≥ {least}, got {value}")
        self.over = over
        self.margin = margin
        self.batch_chunk_size = checked_rows(batch_chunk_size)
        self.linear = torch.nn.Linear(in_features, num_classes, bias, device, dtype)

    @torch.no_grad()
    def counted_sums(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The weight of right answers, and of all, (2,); ``scores`` is what the last layer takes."""
        rows = self.batch_chunk_size or max(LEAST_ROWS, SCORES // len(self.linear.weight))
        sums = scores.new_zeros(2, dtype=torch.float64)
        given = weights_like(sample_weight, target).reshape(-1)
        parts = (x.split(rows) for x in (scores.reshape(-1, scores.shape[-1]), target.reshape(-1), given))
        for x, y, weight in zip(*parts, strict=True):
            samples = samples_of(self.linear(x), y, self.ignore_index).settled()
            sums += sums_of_hits(self, samples, one_hot(samples.scores.argmax(-1), samples.scores.shape[-1]), weight)
        return sums

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of what the last layer takes against class indices."""
        check_tensors(target=target)
        if target.is_floating_point():
            raise TypeError(f"target: expected integer class indices, got {target.dtype}; {UNSUPPORTED}")
        linear_weight = self.linear.weight
        dials = self.noise, self.scale, self.margin, self.ignore_index, self.batch_chunk_size
        layer = layer_of(input, linear_weight, target, self.linear.bias, *dials)
        weight = weight_of_rows(self, layer)
        with torch.autocast(input.device.type, enabled=False):
            if self.over == "batch" or self.reduction == "none":
                loss = mean_of_samples(self, self.over, log_prob_of_layer(layer), weight)
                loss = loss.view_as(target) if self.reduction == "none" else loss
            else:
                if self.reduction == "mean":  # divided before, not after: then backward has nothing left to multiply by
                    weight = weight / divisor(self.total(weight.sum()))
                loss = self.total(sum_of_layer(layer, weight, self.q))
        return loss if _is_autocast(input) else loss.to(input.dtype)


def weight_of_rows(loss: MetricLoss, layer: Layer) -> Tensor:
    """What each row of a layer weighs in the loss, (rows,), without a gradient."""
    every_class = layer.scale.new_empty(()).expand(len(layer.linear_weight))  # stands for the scores: their dtype and classes
    samples = Samples(every_class, layer.target, layer.target != loss.ignore_index, loss.ignore_index)
    return loss.sample_weight(samples._replace(target=samples.class_index)).detach()


def _is_autocast(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
