"""The losses in ``transformers.Trainer``: what its ``compute_loss_func`` takes, and schedules of their dials."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from lossmith.errors import need
from lossmith.integrations.deferred import deferred_head
from lossmith.integrations.dials import Dials, Ends
from lossmith.losses import LinearAccuracyLoss
from lossmith.losses.base import ClassificationLoss
from lossmith.parallel import samples as groups
from lossmith.training.schedules import Shape

need("transformers", "transformers")
import transformers  # noqa: E402
from packaging.version import Version  # noqa: E402

OLDEST = "4.46"  # the first whose Trainer has compute_loss_func
IGNORED = -100  # which Trainer leaves out when it counts labels
UNSHIFTED = ("TokenClassifier", "MaskedLM", "Seq2SeqLM")  # in the names of outputs whose scores are of the same place

if Version(version("transformers")) < Version(OLDEST):
    raise ImportError(f"transformers: expected {OLDEST} or later, got {version('transformers')}; upgrade it")


class TrainerLoss:
    r"""A loss as ``transformers.Trainer`` takes it: ``Trainer(…, compute_loss_func=TrainerLoss(AccuracyLoss(q=0)))``.

        Σ over labels that count of the loss / ``num_items_in_batch``

    which is Trainer's own mean over all micro-batches and devices of a step. With ``AccuracyLoss(q=1)`` it is Trainer's own
    loss; with q = 0 it has the gradient of DFT (arXiv 2508.05629), and what is logged is 1 − mean p, the share of labels that
    the noisy model gets wrong.

    Args:
        loss: any of this package, or of ``torch.nn`` with a ``reduction``; kept as ``loss``, with its own reduction left alone.
        shift: whether the scores of a token are those of the next token's label. None: by the name of the model's output, which
            has CausalLM in it, or ``UNSHIFTED``; where it has neither, the call asks for a word. Decoders of models with two
            parts (BartForCausalLM) are called causal and not shifted: shift=False.
        num_classes: the classes that count; scores beyond, as of a vocabulary that was padded, are left out. None: all.
        fuse: a causal language model whose last layer is to be one with the loss, so that the scores of a batch are never in
            memory at once, as in ``LinearAccuracyLoss``. The model is changed: in training its ``logits`` are what the last
            layer takes. None: the model is left alone.

    Shape:
        logits (N, C) with labels (N,), (N, 1) of one score with (N,), or (N, T, C) with (N, T); labels of −100 do not count.
        Tables of labels (N, C) go to the loss as they are.

    Raises:
        TypeError, ValueError: a loss without a ``reduction`` of its samples' mean, with a ``process_group`` that would count
            devices twice, with a ``memory``, into which evaluation would go, with another ``ignore_index`` than Trainer's, or
            with a learned ``scale``, which Trainer's optimizer does not know. When called: no labels, no logits, shapes that do
            not fit; a metric of the batch where the step has several micro-batches or devices. For ``fuse``: a model whose
            logits are not those of a linear last layer, or one whose last layer is sharded.

    A metric of the batch (F-beta, AUC, over="batch", balanced accuracy) is no sum over micro-batches, and is refused unless the
    step is one batch: gradient_accumulation_steps=1 on one device, or on several with the loss's ``process_group``.
    Half-precision scores are made float32 first, as by Trainer's own loss. A step in which no label counts has the loss 0. The
    auxiliary loss of a router (mixtures of experts) is the model's own, and is left out with a warning.

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
        memory: Any = getattr(loss, "memory", None)
        if memory is not None and memory.size:
            raise ValueError("memory: expected none, rows of an evaluation would go into it; take larger batches")
        if getattr(loss, "ignore_index", IGNORED) != IGNORED:
            raise ValueError(f"ignore_index: expected {IGNORED}, which Trainer leaves out, got {loss.ignore_index}")
        self.loss = loss
        self.shift = shift
        self.num_classes = num_classes
        self.head = None if fuse is None else deferred_head(fuse, loss)

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a micro-batch, a scalar."""
        if getattr(outputs, "aux_loss", None) is not None:
            text = "the router's auxiliary loss is left out; to train with it, override Trainer.compute_loss and add it"
            warnings.warn(f"outputs: {text}", UserWarning, stacklevel=2)
        scores, target = self._scores_and_target(outputs, labels)
        count = (target != IGNORED).sum()
        if self.of_batch:
            return self._of_batch(scores, target, num_items_in_batch, labels)
        if self.head is not None and not self.head.deferred and self.head.training and scores.requires_grad:
            raise ValueError("fuse: another model is trained than the one that was given; pass the one that Trainer has")
        if self.head is not None and self.head.deferred:
            total = self.head.sum_of_loss(scores, target, self._reduced("sum"), self.num_classes)
        else:
            total = self._reduced("sum")(scores, target)
        if count.device.type == "cpu" and not int(count):  # elsewhere to look would wait for the device
            self._say_that_nothing_counts()
        items: Any = count if num_items_in_batch is None else num_items_in_batch
        if target.dim() == 2 and isinstance(self.loss, ClassificationLoss):  # a loss a row, where Trainer counts entries
            if num_items_in_batch is not None and int(count) != target.numel():
                text = "labels: −100 in a table, of which Trainer counts the entries and the loss the rows"
                raise ValueError(f"{text}; take gradient_accumulation_steps=1 and average_tokens_across_devices=False")
            items = items / target.shape[1] if num_items_in_batch is not None else (target != IGNORED).any(1).sum()
        return total / (items.to(total.device).clamp(min=1) if isinstance(items, Tensor) else max(items, 1))

    def _reduced(self, reduction: str) -> Any:
        """The loss with another reduction, and with the dials that it has now."""
        reduced: Any = copy.copy(self.loss)
        reduced.reduction = reduction
        return reduced

    def _scores_and_target(self, outputs: Any, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """(rows, C) and (rows,), (rows,) twice, or (N, C) twice for tables of labels."""
        if labels is None:
            text = "the batch has none; Trainer hands over the column that is named 'labels', rename yours"
            raise ValueError(f"labels: {text}")
        scores = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
        if not isinstance(scores, Tensor):
            raise ValueError(f"outputs: expected logits, got {type(outputs).__name__} without; take a model with a head")
        target = labels.to(scores.device)
        if target.dim() == 2 and scores.dim() == 3 and self._shifted(type(outputs).__name__):
            target = nn.functional.pad(target, (0, 1), value=IGNORED)[:, 1:]  # the last scores count for nothing
        if self.head is None or not self.head.deferred:
            scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
            scores = scores[..., : self.num_classes]
        if target.shape == scores.shape and target.dim() <= 2:
            return scores, target
        if scores.dim() not in (2, 3) or scores.shape[:-1] != target.shape:
            text = f"expected shape {tuple(scores.shape[:-1])} for logits {tuple(scores.shape)}, got {tuple(target.shape)}"
            raise ValueError(f"labels: {text}")
        if scores.shape[1:] == (1,):
            return scores.squeeze(1), target
        return scores.reshape(-1, scores.shape[-1]), target.reshape(-1)

    def _shifted(self, name: str) -> bool:
        if self.shift is not None:
            return self.shift
        if "CausalLM" in name:
            return True
        if any(known in name for known in UNSHIFTED):
            return False
        text = f"cannot tell from {name} whether the scores are those of the next token's label"
        raise ValueError(f"shift: {text}; pass shift=True (a decoder's) or shift=False")

    def _of_batch(self, scores: Tensor, target: Tensor, items: Tensor | int | None, labels: Any) -> Tensor:
        group = getattr(self.loss, "process_group", None)
        total = groups.total((labels != IGNORED).sum(), group)  # as Trainer counts, before any shift
        value: Tensor = self._reduced("mean")(scores, target)
        if items is None:
            return value
        if int(items) != int(total):
            raise ValueError(
                f"{type(self.loss).__name__}: a metric of the whole batch, expected all {int(items)} labels of the step at "
                f"once, got {int(total)}; take gradient_accumulation_steps=1 and, on several devices, the loss's process_group"
            )
        ranks = 1 if group is None else torch.distributed.get_world_size(group)
        return value / ranks  # by which Trainer multiplies, since it takes the loss for a share of the step's

    def _say_that_nothing_counts(self) -> None:
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

    The dials depend on the number of the step alone, so that a training goes on from a checkpoint as if it had not stopped. The
    value of the loss moves with them, that of an evaluation as well: choose the best model by a metric, not by eval_loss.

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
