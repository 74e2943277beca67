"""The losses that ``bench kernels`` can measure: each by a name, with the targets that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lossmith import functional, losses
from lossmith.errors import InputError, near

K = 5  # of top-k, or one less than the classes
SMOOTHING = 0.1

Loss = Callable[[Tensor, Tensor], Tensor]


def _as_they_are(target: Tensor, classes: int) -> Tensor:
    return target


def _labels(target: Tensor, classes: int) -> Tensor:
    return one_hot(target, classes)


def _smoothed(target: Tensor, classes: int) -> Tensor:
    return (1 - SMOOTHING) * one_hot(target, classes).float() + SMOOTHING / classes


@dataclass(frozen=True)
class Subject:
    """A loss to measure.

    Attributes:
        build: the loss, from the name of a noise and the number of classes.
        target: what it takes, from class indices (rows,) and the number of classes.
    """

    build: Callable[[str, int], Loss]
    target: Callable[[Tensor, int], Tensor] = _as_they_are


def _cost(noise: str, classes: int) -> nn.Module:
    made = torch.Generator().manual_seed(classes)
    cost = torch.rand(classes, classes, generator=made)
    return losses.CostLoss(cost.fill_diagonal_(0.0), noise)


def _log_probs(noise: str, classes: int) -> Loss:
    return lambda scores, target: -functional.argmax_log_probs(scores, noise=noise).mean()


SUBJECTS: dict[str, Subject] = {
    "accuracy": Subject(lambda noise, C: losses.AccuracyLoss(noise)),
    "half": Subject(lambda noise, C: losses.AccuracyLoss(noise, q=0.5)),
    "margin": Subject(lambda noise, C: losses.AccuracyLoss(noise, margin=2.0)),
    "balanced": Subject(lambda noise, C: losses.BalancedAccuracyLoss(noise)),
    "smoothing": Subject(lambda noise, C: losses.AccuracyLoss(noise, label_smoothing=SMOOTHING)),
    "probabilities": Subject(lambda noise, C: losses.AccuracyLoss(noise), _smoothed),
    "log-probs": Subject(_log_probs),
    "top-k": Subject(lambda noise, C: losses.TopKAccuracyLoss(min(K, C - 1), noise)),
    "f-beta": Subject(lambda noise, C: losses.FBetaLoss(average="macro", noise=noise)),
    "jaccard": Subject(lambda noise, C: losses.JaccardLoss(average="macro", noise=noise)),
    "cost": Subject(_cost),
    "subset": Subject(lambda noise, C: losses.SubsetAccuracyLoss(noise), _labels),
    "auc": Subject(lambda noise, C: losses.AUCLoss("multiclass", noise=noise)),
    "ap": Subject(lambda noise, C: losses.AveragePrecisionLoss("multiclass", noise=noise)),
}
DEFAULT = "accuracy"
ALL = "all"


def chosen(names: tuple[str, ...]) -> list[str]:
    """The names asked for, each once; ``ALL`` stands for all.

    Raises:
        InputError: a name that is none.
    """
    for name in names:
        if name not in (*SUBJECTS, ALL):
            raise InputError(f"--loss: there is no {name!r}; {near(name, [*SUBJECTS, ALL])}")
    return list(SUBJECTS) if ALL in names else list(dict.fromkeys(names)) or [DEFAULT]
