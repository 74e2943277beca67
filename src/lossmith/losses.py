"""Losses that are the reported metric itself, made smooth: torch modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lossmith import distributed, functional
from lossmith import noise as noises
from lossmith.checks import has_values
from lossmith.layout import ClassificationLoss, Reduction, classes_last
from lossmith.noise import Noise

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class AccuracyLoss(ClassificationLoss):
    r"""Accuracy of the noisy classifier, as a loss: takes the place of ``torch.nn.CrossEntropyLoss``.

    With p_i = P(argmax_j (z_ij + scale · ε_j) = y_i), and −log_q(m) = (1 − m^(1−q)) / (1 − q):

        over="sample":  mean_i −log_q(p_i)            over="batch":  −log_q(mean_i p_i)

    Three dials, and the known losses are points on them:

    ==============================================  ========  ===  ========
    loss                                            noise     q    over
    ==============================================  ========  ===  ========
    cross-entropy                                   gumbel    1    sample
    smooth accuracy, 1 − mean softmax               gumbel    0    either
    EXACT, 1 − mean p                               normal    0    either
    EXACT with the logarithm outside                normal    1    batch
    multinomial probit (the default)                normal    1    sample
    generalised cross-entropy                       gumbel    0–1  sample
    ==============================================  ========  ===  ========

    Args:
        noise: a name (see ``lossmith.noise``), or a ``lossmith.noise.Noise``.
        scale: σ > 0, the noise's multiplier, in units of the scores: a number, or a tensor that broadcasts to
            ``scores[..., :1]`` once the classes are last. A number may be set between steps (``training.ScaleSchedule`` does,
            and keeps it in its own ``state_dict``); a ``torch.nn.Parameter`` is learned with the model.
        q: from metric to loss, ≥ 0. 0 is 1 − accuracy, bounded, flat where the model is far wrong; q ≥ 1 is unbounded there.
        over: where the mean over samples stands. "batch" gives one number a batch and takes reduction="mean" only.
        margin: caps the lead z_y − z_j that still earns credit; the loss then keeps a positive floor.
        standardize: first give the batch's scores mean 0 and variance 1 (``functional.standardize_scores``).
        class_group: a ``torch.distributed.ProcessGroup`` whose ranks hold the classes, as a tensor-parallel last layer leaves
            them (see ``functional.argmax_log_prob``). Each rank passes its own scores (N, C_r, d1, …) and the same class
            indices, and calls backward; ``weight`` has an entry for every class of all ranks. Not with ``standardize``,
            ``label_smoothing`` or class probabilities. ``torch.distributed.group.WORLD`` is None before ``init_process_group``,
            and then means unsharded. A loss with a group cannot be pickled or deep-copied, as no group can; its
            ``state_dict`` holds none. ``torch.compile`` cannot trace it: see there.
        weight, ignore_index, reduction, label_smoothing: as in ``torch.nn.CrossEntropyLoss``. As there, the mean over no
            sample at all is nan.

    Shape:
        scores (C,), (N, C) or (N, C, d1, …), any floating type; target the same without C, int64 class indices, or the same
        shape, floating-point class probabilities t, whose loss is Σ_k t_k · weight_k · (−log_q p_k). Output: a scalar, or the
        target's shape without C for reduction="none".

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.

    Cost: see ``functional.argmax_log_prob``; class probabilities or label smoothing need every p_k, and with a margin besides
    they cost C times as much.
    Source: EXACT: Karpukhin, Dereka & Kolesnikov, 2022. q: Zhang & Sabuncu, NeurIPS 2018.

    >>> loss = AccuracyLoss()
    >>> scores = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], requires_grad=True)
    >>> value = loss(scores, torch.tensor([0, 2]))
    >>> value.backward()
    >>> value
    tensor(0.8950, grad_fn=<DivBackward0>)
    """

    def __init__(
        self,
        noise: str | Noise = "normal",
        scale: float | Tensor = 1.0,
        q: float = 1.0,
        over: Literal["sample", "batch"] = "sample",
        margin: float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        standardize: bool = False,
        class_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)
        if over not in ("sample", "batch"):
            raise ValueError(f"over: expected 'sample' or 'batch', got {over!r}")
        if over == "batch" and reduction != "mean":
            raise ValueError(f"reduction: over='batch' gives one number a batch and takes 'mean' only, got {reduction!r}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing: expected a number from 0 to 1, got {label_smoothing}")
        # Each function below checks its own argument; asking now puts the error at the constructor.
        functional.neg_log_q(torch.zeros(()), q)
        number = 1.0 if isinstance(scale, Tensor) else scale  # a tensor is checked against the scores it comes with
        functional.argmax_log_prob(torch.zeros(2), torch.tensor(0), noise="gumbel", scale=number, margin=margin)
        self.noise = noises.get(noise)
        self.scale = scale
        self.q = q
        self.over = over
        self.margin = margin
        self.standardize = standardize
        self.label_smoothing = label_smoothing
        self.class_group = class_group
        if class_group is not None:
            distributed.check_group(class_group, self.noise)
            for name, value in (("standardize", standardize), ("label_smoothing", label_smoothing)):
                if value:
                    raise ValueError(f"{name}: not with class_group, got {value}; leave it out, or gather the scores")

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores against class indices or class probabilities."""
        if self.class_group is not None:
            return self._of_shards(scores, target, self.class_group)
        scores, target = classes_last(scores, target)
        if not target.is_floating_point() and not self.label_smoothing:
            return self._of_indices(scores, target)
        if target.is_floating_point():
            keep = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
            weight = keep  # the mean over class probabilities is one over samples, whatever their classes weigh
        else:
            target, keep = self.split_ignored(scores, target)
            weight = self.sample_weight(target, keep, scores)
        scores = self._prepared(scores, keep)
        mass = self._class_mass(target, keep, scores)
        log_p = self._log_probs(scores)
        if self.over == "batch":
            return self._of_the_batch(log_p, mass)
        # What weighs nothing must not reach the loss: where that is infinite, 0 times its gradient is nan.
        log_p = torch.where(mass == 0, 0.0, log_p)
        losses = (mass * functional.neg_log_q(log_p, self.q)).sum(-1)
        return self.reduce(losses, weight.sum())

    def _of_indices(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of class indices: log p of one class a sample, 0 where it is ignored."""
        keep = target != self.ignore_index
        if self.standardize:
            scores = self._prepared(scores, keep)
        log_p = self._log_prob(scores, target, self.scale, self.ignore_index)
        if self.weight is None and self.over == "sample":
            return self.reduce(functional.neg_log_q(log_p, self.q), keep.sum())
        return self._weighted(log_p, self.sample_weight(torch.where(keep, target, 0).long(), keep, scores))

    def _of_shards(self, scores: Tensor, target: Tensor, group: ProcessGroup) -> Tensor:
        """The loss of class indices where the classes lie on several ranks."""

        def inputs() -> tuple[Tensor, Tensor]:
            z, index = classes_last(scores, target, least=1 if distributed.size(group) > 1 else 2)
            if index.is_floating_point():
                raise ValueError("target: expected class indices with class_group, got class probabilities; gather the scores")
            return z, index

        if distributed.size(group) == 1:
            return self._of_indices(*inputs())
        weights = None if self.weight is None else self.weight.numel()
        ignored = self.ignore_index
        log_p = distributed.argmax_log_prob(inputs, self.noise, self.scale, self.margin, ignored, group, weights)
        keep = target != ignored
        weight = keep.to(log_p)
        if self.weight is not None:
            weight = weight * self.weight.to(log_p)[torch.where(keep, target, 0).long()]
        return self._weighted(log_p, weight)

    def _weighted(self, log_p: Tensor, weight: Tensor) -> Tensor:
        """The loss of samples (…) that weigh (…)."""
        if self.over == "batch":
            return self._of_the_batch(log_p, weight)
        log_p = torch.where(weight == 0, 0.0, log_p)
        return self.reduce(weight * functional.neg_log_q(log_p, self.q), weight.sum())

    def _of_the_batch(self, log_p: Tensor, mass: Tensor) -> Tensor:
        """−log_q of the mean p, weighted by ``mass``."""
        log_mean = torch.where(mass > 0, log_p + mass.log(), -torch.inf).flatten().logsumexp(0) - mass.sum().log()
        return functional.neg_log_q(log_mean, self.q)

    def _prepared(self, scores: Tensor, keep: Tensor) -> Tensor:
        """The scores, standardized if that is asked for; what stands in an ignored row, be it NaN, is nobody's business."""
        if not (has_values(keep) and keep.all()):
            scores = scores.masked_fill(~keep.unsqueeze(-1), 0.0)
        return functional.standardize_scores(scores, keep) if self.standardize else scores

    def _class_mass(self, target: Tensor, keep: Tensor, scores: Tensor) -> Tensor:
        """What each class of each sample weighs, (…, C): target probability, smoothed, times class weight."""
        classes = scores.shape[-1]
        mass = target if target.is_floating_point() else torch.nn.functional.one_hot(target, classes)
        mass = mass.to(scores.dtype) * (1 - self.label_smoothing) + self.label_smoothing / classes
        return mass * self.class_weight(scores) * keep.unsqueeze(-1)

    def _log_prob(self, scores: Tensor, index: Tensor, scale: float | Tensor, ignore_index: int | None = None) -> Tensor:
        margin = self.margin
        return functional.argmax_log_prob(
            scores, index, noise=self.noise, scale=scale, margin=margin, ignore_index=ignore_index
        )

    def _log_probs(self, scores: Tensor) -> Tensor:
        if self.margin is None:
            return functional.argmax_log_probs(scores, noise=self.noise, scale=self.scale)
        # The cap is measured from the target, so with a margin each class has scores of its own.
        shape = (*scores.shape, scores.shape[-1])
        each = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
        scale = self.scale.unsqueeze(-1) if isinstance(self.scale, Tensor) and self.scale.dim() else self.scale
        return self._log_prob(scores.unsqueeze(-2).expand(shape), each, scale)

    def extra_repr(self) -> str:
        """The dials, as they stand in the constructor."""
        parts = f"noise={self.noise.name!r}, scale={self.scale}, q={self.q}, over={self.over!r}, margin={self.margin}"
        return parts + (", standardize=True" if self.standardize else "")
