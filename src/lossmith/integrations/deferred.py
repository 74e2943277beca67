"""A language model's last layer and its loss in one, so that the scores of a batch are never in memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lossmith.functional.linear import layer_of, sum_of_layer
from lossmith.losses import AccuracyLoss
from lossmith.losses.linear import weight_of_rows


class DeferredLinear(nn.Linear):
    """A last layer that, in training, hands on what it takes: the loss makes the scores, chunk by chunk."""

    deferred = False  # in the last forward pass
    autocast: torch.dtype | None = None  # in that pass

    def forward(self, input: Tensor) -> Tensor:
        self.deferred = self.training and torch.is_grad_enabled()
        if not self.deferred:
            return super().forward(input)
        kind = input.device.type
        self.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return input

    def sum_of_loss(self, input: Tensor, target: Tensor, loss: AccuracyLoss, classes: int | None) -> Tensor:
        """Σ of the loss of input (rows, d) against class indices (rows,), by the first so many classes, or all."""
        if self.weight.shape != (self.out_features, self.in_features):
            text = f"expected the last layer's weight ({self.out_features}, {self.in_features}), got {tuple(self.weight.shape)}"
            raise ValueError(f"fuse: {text}; it is sharded outside the model's forward pass, leave fuse out")
        kind = input.device.type
        with torch.autocast(kind, dtype=self.autocast, enabled=self.autocast is not None):
            dials = loss.noise, loss.scale, loss.margin, loss.ignore_index, None
            bias = self.bias if self.bias is None else self.bias[:classes]
            layer = layer_of(input, self.weight[:classes], target, bias, *dials)
        return sum_of_layer(layer, weight_of_rows(loss, layer), loss.q)


def deferred_head(model: Any, loss: nn.Module) -> DeferredLinear:
    """The model's last layer, made one that defers its scores; refused where the loss or the model need them."""
    if not isinstance(loss, AccuracyLoss) or loss.over != "sample" or loss.label_smoothing or loss.standardize:
        text = "takes AccuracyLoss, a mean over samples, without label_smoothing and standardize"
        raise ValueError(f"fuse: {text}, got {type(loss).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: expected the model, got {model!r}")
    outputs: Any = getattr(model, "get_output_embeddings", lambda: None)
    head: Any = outputs()
    if type(head) is DeferredLinear:
        return head
    if type(head) is not nn.Linear:
        raise ValueError(
            f"fuse: expected a language model whose output embeddings are torch.nn.Linear, got {type(model).__name__} with "
            f"{type(head).__name__}; leave fuse out"
        )
    taken: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: taken.append(output))
    was_training = model.training
    try:
        with torch.no_grad():
            token = torch.zeros((1, 2), dtype=torch.int64, device=head.weight.device)
            scores = model.eval()(input_ids=token, attention_mask=torch.ones_like(token)).logits
    finally:
        hook.remove()
        model.train(was_training)
    if len(taken) != 1 or not torch.equal(taken[0], scores):
        text = f"the logits of {type(model).__name__} are not its last layer's scores, which are capped or scaled"
        raise ValueError(f"fuse: {text}; leave fuse out")
    head.__class__ = DeferredLinear
    return head  # type: ignore[return-value]
