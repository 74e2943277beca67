"""A metric of one's own, given as a function of the counts, as a loss and as a number to report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from lossmith.inputs import has_values
from lossmith.losses.confusion_matrix import Average, ConfusionLoss, Counts, Task
from lossmith.noise import Noise

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OfCounts = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LEAST_VALUE = 1e-148  # of a count and of the metric: a product of two is not 0, where a root would have no slope
ROUNDING = 1e-9  # by which a metric may exceed 1


class Metric(NamedTuple):
    """A metric as a loss to train with and as the number to report."""

    loss: ConfusionLoss
    counted: Callable[[Tensor, Tensor], Tensor]


def metric(
    of_counts: OfCounts,
    average: Average = "macro",
    task: Task = "multiclass",
    noise: str | Noise = "gumbel",
    scale: float | Tensor = 1.0,
    q: float = 1.0,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean"] = "mean",
    label_smoothing: float = 0.0,
    process_group: ProcessGroup | None = None,
    memory: int = 0,
) -> Metric:
    r"""A metric of one's own, m(tp, fp, fn, tn), as a loss and as a counted metric.

    Args:
        of_counts: from four tensors (…) of one shape, float64, differentiably to values (…) in [0, 1], 1 being the best.
        others: as in ``ConfusionLoss``.

    Returns:
        ``loss``, a module of (scores, target), −log_q of the metric of expected counts; and ``counted``, a function of (scores,
        target), the metric of the classifier without noise, to which 1 − loss tends for scale → 0 and q = 0. Counts and
        metrics below 1e-148 are taken for 1e-148; there the loss grows no further.

    Raises:
        TypeError: ``of_counts`` cannot be called. ValueError: at the call, for values outside [0, 1].

    >>> loss, counted = metric(lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt(), average="binary")  # G-mean
    >>> scores, target = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1, 1, 0, 0])
    >>> counted(scores, target)
    tensor(0.5000, dtype=torch.float64)
    >>> loss(scores, target)
    tensor(0.4807)
    """
    if not callable(of_counts):
        raise TypeError(f"metric: expected a function of (tp, fp, fn, tn), got {type(of_counts).__name__}")
    loss = OwnMetricLoss(
        of_counts,
        average,
        task,
        noise,
        scale,
        q,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        process_group=process_group,
        memory=memory,
    )
    return Metric(loss, loss.counted)


class OwnMetricLoss(ConfusionLoss):
    """What ``metric`` makes."""

    def __init__(
        self,
        of_counts: OfCounts,
        average: Average = "macro",
        task: Task = "multiclass",
        noise: str | Noise = "gumbel",
        scale: float | Tensor = 1.0,
        q: float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean"] = "mean",
        label_smoothing: float = 0.0,
        process_group: ProcessGroup | None = None,
        memory: int = 0,
    ) -> None:
        super().__init__(
            average,
            task,
            noise,
            scale,
            q,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            process_group=process_group,
            memory=memory,
        )
        self._of_counts = of_counts

    def of_counts(self, counts: Counts) -> Tensor:
        """The user's metric."""
        m = self._of_counts(*counts)
        if not isinstance(m, Tensor):
            raise TypeError(
                f"metric: expected a function that gives a torch.Tensor, got {type(m).__name__}; leave .item() and float() out"
            )
        if has_values(m) and not bool(((m >= 0) & (m <= 1 + ROUNDING)).all()):
            raise ValueError(f"metric: expected values from 0 to 1, got {float(m.detach().flatten()[0]):g}; rescale it")
        return m

    def log_of_counts(self, counts: Counts, log_tp: Tensor) -> Tensor:
        """Its logarithm."""
        return self.of_counts(Counts(*(x.clamp_min(LEAST_VALUE) for x in counts))).clamp_min(LEAST_VALUE).log()
