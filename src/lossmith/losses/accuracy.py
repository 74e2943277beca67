"""Accuracy, top-k accuracy and balanced accuracy as losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lossmith import functional
from lossmith.engine.argmax.fused import BatchLoss, checked_log_prob
from lossmith.functional.argmax import standardize_samples
from lossmith.inputs import (
    Samples,
    at,
    check_choice,
    check_margin,
    checked_rank,
    checked_scale,
    divisor,
    in_full_precision,
    one_hot,
    rows_that_count,
    samples_of,
)
from lossmith.losses.base import (
    MetricLoss,
    Over,
    Reduction,
    check_mean,
    mean_of_samples,
    mean_of_shares,
    sums_of_hits,
    weights_like,
)
from lossmith.maths.qlog import neg_log_q
from lossmith.noise import Noise
from lossmith.parallel import classes as distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


Nonfinite = Literal["raise", "propagate"]
NONFINITE = ("raise", "propagate")


class AccuracyLoss(MetricLoss):
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
    multinomial probit                              normal    1    sample
    generalised cross-entropy                       gumbel    0–1  sample
    the default, close to cross-entropy             gumbel    0.9  sample
    ==============================================  ========  ===  ========

    Args:
        noise: a name (see ``lossmith.noise``), or a ``lossmith.noise.Noise``.
        scale: σ > 0, the noise's multiplier, in units of the scores: a number, or a tensor that broadcasts to
            ``scores[..., :1]`` once the classes are last. A number may be set between steps (``training.ScaleSchedule`` does,
            and keeps it in its own ``state_dict``); a ``torch.nn.Parameter`` is learned with the model.
        q: from metric to loss. 0 is 1 − accuracy, bounded, flat where the model is far wrong; q ≥ 1 is unbounded there.
        over: where the mean over samples stands. "batch" gives one number a batch and takes reduction="mean" only.
        margin: caps the lead z_y − z_j that still earns credit; the loss then keeps a positive floor.
        standardize: first give the batch's scores mean 0 and variance 1 (``functional.standardize_scores``); with a
            ``process_group`` the batch is that of all ranks.
        nonfinite: "raise" refuses scores that are NaN, +inf or −inf for all classes, where they are looked at (on the CPU);
            "propagate" gives a loss and a gradient of nan for them, as cross-entropy does, so that a step of
            ``torch.amp.GradScaler`` is skipped where float16 overflows.
        class_group: a ``torch.distributed.ProcessGroup`` whose ranks hold the classes, as a tensor-parallel last layer leaves
            them (see ``functional.argmax_log_prob``). Each rank passes its own scores (N, C_r, d1, …) and the same class
            indices, and calls backward; ``weight`` has an entry for every class of all ranks. Not with ``standardize``,
            ``label_smoothing`` or class probabilities. ``torch.distributed.group.WORLD`` is None before ``init_process_group``,
            and then means unsharded. A loss with a group cannot be pickled or deep-copied, as no group can; its
            ``state_dict`` holds none. ``torch.compile`` cannot trace it: see there.
        process_group: a ``torch.distributed.ProcessGroup`` whose ranks hold different samples: "mean" and "batch" are then
            taken over all of them, and gradients are right once DDP has averaged them, however uneven the ranks' batches.
        weight, ignore_index, reduction, label_smoothing: as in ``torch.nn.CrossEntropyLoss``, but that the mean over no
            sample at all is 0 with a gradient of 0, and not nan.

    Shape:
        scores (C,), (N, C) or (N, C, d1, …), any floating type; target the same without C, int64 class indices, or the same
        shape, floating-point class probabilities t, whose loss is Σ_k t_k · weight_k · (−log_q p_k). Output: a scalar, or the
        target's shape without C for reduction="none".

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.

    A batch's accuracy is an unbiased estimate of the data set's, and its expectation under the noise is exact: with q = 0, so
    is the loss. For scale → 0, q = 0 gives 1 − accuracy as counted (``sklearn.metrics.accuracy_score``), ties shared.

    Cost: see ``functional.argmax_log_prob``; class probabilities or label smoothing need every p_k, and with a margin besides
    they cost C times as much.
    Source: EXACT: Karpukhin, Dereka & Kolesnikov, 2022. q: Zhang & Sabuncu, NeurIPS 2018.

    >>> loss = AccuracyLoss()
    >>> scores = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], requires_grad=True)
    >>> value = loss(scores, torch.tensor([0, 2]))
    >>> value.backward()
    >>> value
    tensor(0.8027, grad_fn=<_LossBackward>)
    """

    DIALS = ("noise", "scale", "q", "over", "margin")
    OPTIONAL = ("standardize",)
    nonfinite: Nonfinite = "raise"  # also of losses that were pickled before there was a choice

    def __init__(
        self,
        noise: str | Noise = "gumbel",
        scale: float | Tensor = 1.0,
        q: float = 0.9,
        over: Over = "sample",
        margin: float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        standardize: bool = False,
        nonfinite: Nonfinite = "raise",
        class_group: ProcessGroup | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            noise, scale, q, weight=weight, ignore_index=ignore_index, reduction=reduction, process_group=process_group
        )
        check_mean(over, reduction, label_smoothing)
        self.over = over
        self.label_smoothing = label_smoothing
        check_margin(margin)
        check_choice("nonfinite", nonfinite, NONFINITE)
        self.nonfinite = nonfinite
        self.margin = margin
        self.standardize = standardize
        self.class_group = class_group
        if class_group is not None:
            distributed.check_group(class_group, self.noise)
            refused = {
                "standardize": standardize,
                "label_smoothing": label_smoothing,
                "process_group": process_group,
                "nonfinite": nonfinite if nonfinite != "raise" else None,
            }
            for name, value in refused.items():
                if value:
                    raise ValueError(f"{name}: not with class_group, got {value}; leave it out, or gather the scores")

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores against class indices or class probabilities."""
        if self.class_group is not None and distributed.size(self.class_group) > 1:
            return self._of_shards(scores, target, self.class_group)
        samples = samples_of(scores, target, self.ignore_index)
        if self.class_group is not None:
            _refuse_shares(samples)
        if self.nonfinite == "propagate":
            samples, poison = _without_nonfinite(self._standardized(samples))
        else:
            samples, poison = self._standardized(samples), None
        if samples.fractional() or self.label_smoothing:
            samples = samples.settled()
            log_p = self._log_probs(samples.scores)
            log_p = log_p if poison is None else log_p + poison.unsqueeze(-1)
            if not samples.fractional() and self.over == "sample" and self.weight is None:
                return self._mean_of_smoothed(log_p, samples)
            mass, total_weight = self.class_mass(samples, self.label_smoothing)
            return mean_of_shares(self, self.over, log_p, mass, total_weight)
        z, scale = samples.scores, checked_scale(self.scale, samples.scores)
        plain = self.over == "sample" and self.weight is None and self.process_group is None and poison is None
        batch_loss = BatchLoss(self.q, self.reduction == "mean") if plain and self.reduction != "none" else None
        result = checked_log_prob(z, samples.target, self.noise, scale, self.margin, self.ignore_index, batch_loss)
        if batch_loss is not None:
            return result
        return self._mean(result if poison is None else result + poison, samples)

    def counted_sums(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The weight of right answers, and of all, (2,)."""
        if self.class_group is not None and distributed.size(self.class_group) > 1:
            raise NotImplementedError("counted: not with class_group, whose ranks have some classes each; gather the scores")
        samples = samples_of(scores, target, self.ignore_index).settled()
        hits = one_hot(samples.scores.argmax(-1), samples.scores.shape[-1])
        return sums_of_hits(self, samples, hits, sample_weight)

    def _mean(self, log_p: Tensor, samples: Samples) -> Tensor:
        """The loss of log p (…), 0 where a sample does not count."""
        if self.over == "sample" and self.weight is None:
            return self.reduce(neg_log_q(log_p, self.q), samples.keep.sum())
        return mean_of_samples(self, self.over, log_p, self.sample_weight(samples._replace(target=samples.class_index)))

    def _mean_of_smoothed(self, log_p: Tensor, samples: Samples) -> Tensor:
        """As ``mean_of_shares`` of class indices, without a matrix of shares."""
        losses = neg_log_q(log_p, self.q)
        own = losses.gather(-1, samples.target.unsqueeze(-1)).squeeze(-1)
        each = (1 - self.label_smoothing) * own + self.label_smoothing * losses.mean(-1)
        return self.reduce(torch.where(samples.keep, each, 0.0), samples.keep.sum())

    def _of_shards(self, scores: Tensor, target: Tensor, group: ProcessGroup) -> Tensor:
        """The loss of class indices where the classes lie on several ranks."""

        def inputs() -> tuple[Tensor, Tensor]:
            samples = samples_of(scores, target, self.ignore_index, least=1)
            _refuse_shares(samples)
            return samples.scores, samples.target

        classes = None if self.weight is None else self.weight.numel()
        log_p = distributed.argmax_log_prob(inputs, self.noise, self.scale, self.margin, self.ignore_index, group, classes)
        every_class = log_p.new_empty(0 if classes is None else classes)  # stands for the scores: their dtype and classes
        return self._mean(log_p, Samples(every_class, target, target != self.ignore_index, self.ignore_index))

    def _standardized(self, samples: Samples) -> Samples:
        """The samples, their scores standardized if that is asked for."""
        if not self.standardize:
            return samples
        z = rows_that_count(samples.scores, samples.keep)
        return samples._replace(scores=standardize_samples(z, samples.keep, self.process_group))

    def _log_probs(self, scores: Tensor) -> Tensor:
        """log P(each class wins), (…, C)."""
        if self.margin is None:
            return functional.argmax_log_probs(scores, noise=self.noise, scale=self.scale)
        # The cap is measured from the target, so with a margin each class has scores of its own.
        z, index, scale = of_each_class(scores, self.scale)
        return functional.argmax_log_prob(z, index, noise=self.noise, scale=scale, margin=self.margin)


def _without_nonfinite(samples: Samples) -> tuple[Samples, Tensor]:
    """Samples with zeros for the rows that have no finite highest score, and (…) what to add to log p: nan there, 0 elsewhere.

    Its gradient is nan in those rows too, as that of cross-entropy is: ``torch.amp.GradScaler`` looks at gradients alone.
    """
    z = samples.scores
    strange = samples.keep & ~z.detach().amax(-1).isfinite()
    z = z.masked_fill(strange.unsqueeze(-1), 0.0)
    factor = torch.where(strange, torch.nan, 0.0).to(z).unsqueeze(-1)
    poison = (torch.where(strange.unsqueeze(-1), samples.scores, 0.0) * factor).sum(-1)
    return samples._replace(scores=z), poison


def _refuse_shares(samples: Samples) -> None:
    if samples.fractional():
        raise ValueError("target: expected class indices with class_group, got class probabilities; gather the scores")


class TopKAccuracyLoss(MetricLoss):
    r"""Top-k accuracy of the noisy classifier, as a loss: p_i = P(the target is among the k highest noisy scores).

        over="sample":  mean_i −log_q(p_i)            over="batch":  −log_q(mean_i p_i)

    Args:
        k: from 1 (accuracy) to C, where the loss is 0; checked against C at the call.
        noise, scale, q, over: as in ``AccuracyLoss``.
        weight, ignore_index, reduction, label_smoothing, process_group: as in ``AccuracyLoss``.

    Shape:
        As ``AccuracyLoss``; class probabilities t cost Σ_k t_k · weight_k · (−log_q P(class k among the first)).

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.

    A batch's value is an unbiased estimate of the data set's, and the expectation of the metric is exact. For scale → 0, q = 0
    gives 1 − ``sklearn.metrics.top_k_accuracy_score``, ties shared.

    Cost: see ``functional.topk_log_prob``; class probabilities or label smoothing need every class as the target, and cost C
    times as much.
    Source: for the tail of a Poisson binomial, see ``lossmith.engine.argmax.topk``.

    >>> TopKAccuracyLoss(2, q=0.0)(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([1])).item() < 0.5
    True
    """

    DIALS = ("k", "noise", "scale", "q", "over")

    def __init__(
        self,
        k: int,
        noise: str | Noise = "normal",
        scale: float | Tensor = 1.0,
        q: float = 1.0,
        over: Over = "sample",
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            noise, scale, q, weight=weight, ignore_index=ignore_index, reduction=reduction, process_group=process_group
        )
        check_mean(over, reduction, label_smoothing)
        self.over = over
        self.label_smoothing = label_smoothing
        self.k = checked_rank(k)  # at most C: that is seen with the scores

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores against class indices or class probabilities."""
        samples = samples_of(scores, target, self.ignore_index).settled()
        z = samples.scores
        if samples.fractional() or self.label_smoothing:
            mass, total_weight = self.class_mass(samples, self.label_smoothing)
            return mean_of_shares(self, self.over, self._log_prob(*of_each_class(z, self.scale)), mass, total_weight)
        log_p = self._log_prob(z, samples.target, self.scale)
        return mean_of_samples(self, self.over, log_p, self.sample_weight(samples))

    def counted_sums(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The weight of the samples whose target is among the k highest, and of all, (2,)."""
        samples = samples_of(scores, target, self.ignore_index).settled()
        first = samples.scores.topk(checked_rank(self.k, samples.scores.shape[-1])).indices
        hits = torch.zeros_like(samples.scores, dtype=torch.bool).scatter(-1, first, True)
        return sums_of_hits(self, samples, hits, sample_weight)

    def _log_prob(self, scores: Tensor, index: Tensor, scale: float | Tensor) -> Tensor:
        return functional.topk_log_prob(scores, index, self.k, noise=self.noise, scale=scale)


class BalancedAccuracyLoss(MetricLoss):
    r"""Balanced accuracy of the noisy classifier, as a loss: every class counts the same, however rare.

        over="sample":  mean_k mean_{i: y_i=k} −log_q(p_i)            over="batch":  −log_q(mean_k mean_{i: y_i=k} p_i)

    with k over the classes that the batch has, p_i as in ``AccuracyLoss``. The first is ``AccuracyLoss`` with each batch's own
    ``weight`` of N / (K · n_k), which is what reduction="none" gives each sample's loss.

    Args:
        noise, scale, q, over: as in ``AccuracyLoss``.
        weight: (C,) importance of the classes on top of that: the mean over classes is weighted by it.
        ignore_index, reduction, label_smoothing, process_group: as in ``AccuracyLoss``; with a group, a class's samples are
            counted on all ranks.

    Shape:
        As ``AccuracyLoss``; class probabilities count as fractions of samples.

    Raises:
        TypeError, ValueError: an argument out of range; wrong dtypes or shapes.

    The metric is linear in p, so its expectation is exact for the batch at hand; over batches it is a mean of ratios, biased
    where a batch lacks a class: let batches be large, or stratified. For scale → 0, q = 0 gives
    1 − ``sklearn.metrics.balanced_accuracy_score``, ties shared.

    Cost: as ``AccuracyLoss``, and a count of the classes.

    >>> scores, target = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([0, 0, 1])
    >>> BalancedAccuracyLoss(scale=1e-3, q=0.0)(scores, target)
    tensor(0.5000)
    """

    counts_classes = True

    def __init__(
        self,
        noise: str | Noise = "gumbel",
        scale: float | Tensor = 1.0,
        q: float = 0.9,
        over: Over = "sample",
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            noise, scale, q, weight=weight, ignore_index=ignore_index, reduction=reduction, process_group=process_group
        )
        check_mean(over, reduction, label_smoothing)
        self.over = over
        self.label_smoothing = label_smoothing

    @in_full_precision
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores against class indices or class probabilities."""
        samples = samples_of(scores, target, self.ignore_index)
        if samples.fractional() or self.label_smoothing:
            samples = samples.settled()
            z, share = samples.scores, samples.share(self.label_smoothing)
            mass = share * self.weights_of(self.total(share.reshape(-1, share.shape[-1]).sum(0)), z)
            total_weight = samples.keep if samples.fractional() else self._sample_weight(samples)
            log_p = functional.argmax_log_probs(z, noise=self.noise, scale=self.scale)
            return mean_of_shares(self, self.over, log_p, mass, total_weight.sum())
        z, scale = samples.scores, checked_scale(self.scale, samples.scores)
        log_p = checked_log_prob(z, samples.target, self.noise, scale, None, self.ignore_index)
        return mean_of_samples(self, self.over, log_p, self._sample_weight(samples._replace(target=samples.class_index)))

    @property
    def is_sample_mean(self) -> bool:
        """False: what a sample weighs depends on how many of its class the batch has."""
        return False

    def counted_sums(self, scores: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Right answers and samples of each class, (2, C); class probabilities count in part."""
        samples = samples_of(scores, target, self.ignore_index).settled()
        share = weights_like(sample_weight, samples.keep).unsqueeze(-1) * samples.share()
        hits = one_hot(samples.scores.argmax(-1), samples.scores.shape[-1])
        return torch.stack([(share * hits).flatten(0, -2).sum(0), share.flatten(0, -2).sum(0)])

    def counted_of(self, sums: Tensor) -> Tensor:
        """The weighted mean, over the classes that have samples, of the share that is right."""
        right, count = sums
        importance = torch.where(count > 0, self.class_weight(sums), 0.0)
        return (importance * right / divisor(count)).sum() / divisor(importance.sum())

    def _sample_weight(self, samples: Samples) -> Tensor:
        """N w_y / (n_y Σ_k w_k), k over the classes that there are; 0 for a sample that does not count."""
        z, index = samples.scores, samples.target
        count = z.new_zeros(z.shape[-1]).index_add(0, index.flatten(), samples.keep.to(z).flatten())
        return samples.keep * at(self.weights_of(self.total(count), z), index)

    def weights_of(self, counts: Tensor, scores: Tensor) -> Tensor:
        """What a sample of each class weighs, (C,): N w_k / (n_k Σ w), 0 for a class that is not in the batch."""
        importance = torch.where(counts > 0, self.class_weight(scores), 0.0)
        return counts.sum() * importance / (divisor(counts) * divisor(importance.sum()))


def of_each_class(scores: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
    """Scores (…, C, C) and targets (…, C) with each class as the target once, and the scale to match."""
    each = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    scale = scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.dim() else scale
    return scores.unsqueeze(-2).expand(*scores.shape, scores.shape[-1]), each, scale
