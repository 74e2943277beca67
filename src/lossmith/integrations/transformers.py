"""The losses in ``transformers.Trainer``: what its ``compute_loss_func`` takes, and schedules of their dials."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from lossmith.functional.linear import layer_of, sum_of_layer
from lossmith.integrations.dials import Dials, Ends
from lossmith.losses import AccuracyLoss, LinearAccuracyLoss
from lossmith.losses.base import ClassificationLoss
from lossmith.losses.linear import weight_of_rows
from lossmith.parallel import samples as groups
from lossmith.training.schedules import Shape

OLDEST = "4.46"  # the first whose Trainer has compute_loss_func

if Version(version("transformers")) < Version(OLDEST):
    raise ImportError(f"transformers: expected {OLDEST} or later, got {version('transformers')}; upgrade it")


class TrainerLoss:
    r"""A loss as ``transformers.Trainer`` takes it: ``Trainer(…, compute_loss_func=TrainerLoss(AccuracyLoss(q=0)))``.

        Σ over labels that count of the loss / ``num_items_in_batch``

    which is Trainer's own mean over all micro-batches and devices of a step. With ``AccuracyLoss(q=1)`` it is Trainer's own
    loss; with q = 0 it has the gradient of DFT (arXiv 2508.05629), and what is logged is 1 − mean p, the share of labels that
    the noisy model gets wrong.

    Args:
        loss: any of this package, or of ``torch.nn`` with a ``reduction``. A shallow copy is kept as ``loss``.
        shift: whether the scores of a token are those of the next token's label. None: so if the model's output is named after
            causal language models.
        num_classes: the classes that count; scores beyond, as of a vocabulary that was padded, are left out. None: all.
        fuse: a causal language model whose last layer is to be one with the loss, so that the scores of a batch are never in
            memory at once, as in ``LinearAccuracyLoss``. The model is changed: in training its ``logits`` are what the last
            layer takes. None: the model is left alone.

    Shape:
        logits (N, C) with labels (N,), or (N, T, C) with (N, T); labels of −100 do not count. Labels (N, C), of tasks with
        several a sample, go to the loss as they are.

    Raises:
        TypeError, ValueError: a loss without a ``reduction`` of its samples' mean, with a ``process_group`` that would count
            devices twice, or with a learned ``scale``, which Trainer's optimizer does not know. When called: no labels, no
            logits, shapes that do not fit; a metric of the batch where the step has several micro-batches or devices. For
            ``fuse``: a model whose logits are not those of a linear last layer, or one whose last layer is sharded.

    A metric of the batch (F-beta, AUC, over="batch", balanced accuracy) is no sum over micro-batches, and is refused unless the
    step is one batch: gradient_accumulation_steps=1 on one device, or on several with the loss's ``process_group``.
    Half-precision scores are made float32 first, as by Trainer's own loss. A step in which no label counts has the loss 0.

    Cost: the loss's own; with ``fuse`` that of ``LinearAccuracyLoss``.

    >>> from lossmith import AccuracyLoss
    >>> from transformers.modeling_outputs import SequenceClassifierOutput
    >>> outputs = SequenceClassifierOutput(logits=torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> TrainerLoss(AccuracyLoss(q=0))(outputs, torch.tensor([0, 0]), num_items_in_batch=4)
    tensor(0.2126)
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        shift: bool | None = None,
        num_classes: int | None = None,
        fuse: nn.Module | None = None,
    ) -> None:
        if not isinstance(loss, nn.Module) or not hasattr(loss, "reduction"):
            raise TypeError(f"loss: expected a loss module with a reduction, got {type(loss).__name__}; such as AccuracyLoss()")
        if isinstance(loss, LinearAccuracyLoss):
            raise TypeError("loss: LinearAccuracyLoss takes the last layer along; pass AccuracyLoss, and the model as fuse")
        if any(True for _ in loss.parameters()):
            raise ValueError("loss: has a learned scale, which Trainer's optimizer does not know; pass a number, or a schedule")
        self.of_batch = isinstance(loss, ClassificationLoss) and not loss.is_sample_mean
        if not self.of_batch and getattr(loss, "process_group", None) is not None:
            raise ValueError("process_group: Trainer itself sums over devices; leave it out for a mean over samples")
        reduced: Any = copy.copy(loss)
        reduced.reduction = "mean" if self.of_batch else "sum"
        self.loss = reduced
        self.ignored: int = getattr(loss, "ignore_index", -100)
        self.shift = shift
        self.num_classes = num_classes
        self.head = None if fuse is None else _deferred_head(fuse, self.loss)

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a micro-batch, a scalar."""
        scores, target = self._scores_and_target(outputs, labels)
        several = target.shape == scores.shape
        count = torch.tensor(len(target)) if several else (target != self.ignored).sum()
        items: Any = num_items_in_batch
        if items is not None and several:
            items = items / target.shape[-1]  # Trainer counts the entries of a table of labels
        if self.of_batch:
            return self._of_batch(scores, target, count, items)
        if self.head is not None and self.head.deferred:
            total = self.head.sum_of_loss(scores, target, self.loss, self.num_classes)
        else:
            total = self.loss(scores, target)
        if not several:
            self._say_if_nothing_counts(count)
        if items is None:
            items = count
        return total / (items.to(total.device).clamp(min=1) if isinstance(items, Tensor) else max(items, 1))

    def _scores_and_target(self, outputs: Any, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """(rows, C) and (rows,), or (N, C) twice for tables of labels."""
        if labels is None:
            text = "the batch has none; give the dataset a column 'labels', or name it in TrainingArguments(label_names=…)"
            raise ValueError(f"labels: {text}")
        scores = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
        if not isinstance(scores, Tensor):
            raise ValueError(f"outputs: expected logits, got {type(outputs).__name__} without; take a model with a head")
        shift = self.shift if self.shift is not None else "CausalLM" in type(outputs).__name__
        target = labels.to(scores.device)
        if shift:  # the scores stay in place, and the last of them count for nothing
            target = nn.functional.pad(target, (0, 1), value=self.ignored)[..., 1:]
        if self.head is None or not self.head.deferred:
            scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
            scores = scores[..., : self.num_classes]
        if target.shape == scores.shape:
            return scores, target
        if scores.shape[:-1] != target.shape:
            text = f"expected shape {tuple(scores.shape[:-1])} for logits {tuple(scores.shape)}, got {tuple(target.shape)}"
            raise ValueError(f"labels: {text}; pass shift=True or False if the task was guessed wrongly")
        return scores.reshape(-1, scores.shape[-1]), target.reshape(-1)

    def _of_batch(self, scores: Tensor, target: Tensor, count: Tensor, items: Tensor | int | None) -> Tensor:
        group = getattr(self.loss, "process_group", None)
        total = groups.total(count, group)
        value: Tensor = self.loss(scores, target)
        if items is None:
            return value
        if int(items) != int(total):
            raise ValueError(
                f"{type(self.loss).__name__}: a metric of the whole batch, expected all {int(items)} labels of the step at "
                f"once, got {int(total)}; take gradient_accumulation_steps=1 and, on several devices, the loss's process_group"
            )
        ranks = 1 if group is None else torch.distributed.get_world_size(group)
        return value / ranks  # by which Trainer multiplies, since it takes the loss for a share of the step's

    def _say_if_nothing_counts(self, count: Tensor) -> None:
        if count.device.type == "cpu" and not int(count):  # elsewhere to look would wait for the device
            text = "labels: none of a micro-batch counts, all are −100, so its loss is 0; see whether a short max_length cuts "
            warnings.warn(text + "the answers off, or whether the collator masks them", UserWarning, stacklevel=3)


class LossSchedule(transformers.TrainerCallback):
    """Moves the dials of a loss over the steps of a training: likelihood first, the metric after.

    Args:
        loss: what Trainer has as ``compute_loss_func``, or the loss that ``integrations.trl.MetricSFTTrainer`` has.
        q, scale: (start, end) of each dial that moves, as in ``training.QSchedule`` and ``ScaleSchedule``.
        shape: "linear", "cosine" or, for dials above 0, "exponential".

    Raises:
        TypeError, ValueError: no dial, or as in the schedules; at the start of the training.

    The dials depend on the number of the step alone, so that a training goes on from a checkpoint as if it had not stopped.

    >>> from lossmith import AccuracyLoss
    >>> loss = TrainerLoss(AccuracyLoss())
    >>> callback = LossSchedule(loss, q=(1.0, 0.0))  # Trainer(…, compute_loss_func=loss, callbacks=[callback])
    """

    def __init__(
        self,
        loss: TrainerLoss | nn.Module,
        *,
        q: Ends | None = None,
        scale: Ends | None = None,
        shape: Shape = "linear",
    ) -> None:
        self.dials = Dials(loss.loss if isinstance(loss, TrainerLoss) else loss, q, scale, shape)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dials.start(max(state.max_steps, 1))
        self.dials.go_to(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dials.go_to(state.global_step)


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


def _deferred_head(model: Any, loss: nn.Module) -> DeferredLinear:
    """The model's last layer, made one that defers its scores; refused where the loss or the model need them."""
    if not isinstance(loss, AccuracyLoss) or loss.over != "sample" or loss.label_smoothing or loss.standardize:
        raise ValueError("fuse: takes AccuracyLoss, a mean over samples, without label_smoothing and standardize")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is DeferredLinear:
        return head
    if type(head) is not nn.Linear:
        raise ValueError(
            f"fuse: expected a model whose last layer is torch.nn.Linear, got {type(head).__name__}; leave fuse out"
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
