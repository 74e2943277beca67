"""What networks are trained by in the studies, and one training: from a cell to the metrics of its scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmith.catalogue import CANDIDATES
from lossmith.compare.sgd import fit_or_diverge
from lossmith.experiments.nets import NETS
from lossmith.experiments.study import derive
from lossmith.experiments.tasks import Task
from lossmith.losses import AccuracyLoss, TopKAccuracyLoss
from lossmith.training import TrainingConfig

# Scales at which the noises have the variance of Gumbel noise at scale 1, π²/6: the temperature of softmax.
MATCHED = {"gumbel": 1.0, "normal": math.pi / math.sqrt(6), "logistic": 1 / math.sqrt(2)}
MARGIN = 5.0  # of the paper's tricks, on scores of variance 1, unless said otherwise
ANNEAL = (10.0, 1.0)  # of their scale: the range that the paper's runs on images use
TOP = 3


@dataclass(frozen=True)
class Objective:
    """A loss, and how it is trained.

    Args:
        noise, q, over: of ``AccuracyLoss``, at the matched scale.
        tricks: whether the paper's are on: standardised scores, a margin, an annealed scale, normalised gradients.
        after: whether the first half of the epochs is cross-entropy's.
        scale: other than the matched one.
        named: a loss of the catalogue, or "smoothing", "top-3", instead.
        margin: of the tricks.
        early: whether the weights of the epoch that is best on a tenth of the training rows, held out, are kept.
    """

    noise: str = "gumbel"
    q: float = 1.0
    over: str = "sample"
    tricks: bool = False
    after: bool = False
    scale: float | None = None
    named: str | None = None
    margin: float = MARGIN
    early: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the defaults: ``Objective(**settings)`` is the same."""
        return {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default}

    def loss(self, classes: int) -> nn.Module:
        """The module."""
        if self.named == "smoothing":
            return nn.CrossEntropyLoss(label_smoothing=0.1)
        if self.named == "top-3":
            return TopKAccuracyLoss(TOP, noise=self.noise, scale=self._scale, q=self.q)
        if self.named is not None:
            grid = CANDIDATES[self.named].grid
            return CANDIDATES[self.named].build(classes, {name: values[0] for name, values in grid.items()})
        options: dict[str, Any] = {"margin": self.margin, "standardize": True} if self.tricks else {}
        return AccuracyLoss(self.noise, self._scale, self.q, self.over, **options)  # type: ignore[arg-type]

    @property
    def _scale(self) -> float:
        return MATCHED[self.noise] if self.scale is None else self.scale

    def config(self, base: TrainingConfig) -> TrainingConfig:
        """The training of the loss itself."""
        annealed = self.tricks or (self.named is not None and self.named in CANDIDATES and CANDIDATES[self.named].annealed)
        start, end = (self._scale * edge for edge in ANNEAL)
        normalized = self.tricks or self.named == "exact"
        return replace(base, scale=(start, end) if annealed else None, normalize_gradients=normalized)


CROSS_ENTROPY = Objective()  # Gumbel noise, q = 1


def train(task: Task, model: str, objective: Objective, settings: Mapping[str, Any], seed: int, epochs: int) -> dict[str, Any]:
    """Train one network and score it.

    Args:
        task: the rows.
        model: a name of ``NETS``.
        objective: the loss and its way of training.
        settings: of ``TrainingConfig``: "learning_rate" and whatever else is not the default.
        seed: of the weights, the order of the rows and dropout, alike for every objective.
        epochs: in all.

    Returns:
        "accuracy" and "top3" of the rows to score and "training" accuracy, in percent; "diverged", whether the last loss or a
        score is not finite: then the scores count as 0.
    """
    last_loss: list[float] = []
    whole = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("weights", seed))
        net = NETS[model](task.fit_x.shape[1], task.classes)
        base = TrainingConfig(epochs=epochs, **settings)
        order = derive("order", seed)
        if objective.after:
            base = replace(base, epochs=epochs // 2)
            whole = fit_or_diverge(net, CROSS_ENTROPY.loss(task.classes), task.fit_x, task.fit_y, base, seed=order)
            order = derive("order", seed, "after")
        rows = len(task.fit_y) - (len(task.fit_y) // 10 if objective.early else 0)  # they come in no order
        best: tuple[float, dict[str, Tensor]] | None = None

        def after_epoch(mean_loss: float) -> None:
            nonlocal best
            last_loss.append(mean_loss)
            if objective.early:
                right = percent_right(scores_of(net, task.fit_x[rows:]), task.fit_y[rows:])
                if best is None or right > best[0]:
                    best = right, {name: value.clone() for name, value in net.state_dict().items()}

        loss, config = objective.loss(task.classes), objective.config(base)
        part = task.fit_x[:rows], task.fit_y[:rows]
        whole = whole and fit_or_diverge(net, loss, *part, config, seed=order, after_epoch=after_epoch)
        if best is not None:
            net.load_state_dict(best[1])
    scores, fitted = scores_of(net, task.score_x), scores_of(net, task.fit_x)
    diverged = not (whole and math.isfinite(last_loss[-1]) and bool(torch.isfinite(scores).all()))
    return {
        "accuracy": percent_right(scores, task.score_y),
        "top3": percent_right(scores, task.score_y, TOP),
        "training": percent_right(fitted, task.fit_y),
        "diverged": diverged,
    }


@torch.no_grad()
def scores_of(net: nn.Module, x: Tensor) -> Tensor:
    """(n, C), without dropout."""
    training = net.training
    net.eval()
    scores = torch.cat([net(part) for part in x.split(1000)])
    net.train(training)
    return scores


def percent_right(scores: Tensor, target: Tensor, top: int = 1) -> float:
    """Percent of the rows whose class is among the highest so many; scores that are not finite count as 0."""
    scores = torch.nan_to_num(scores, posinf=0.0, neginf=0.0)
    found = scores.topk(min(top, scores.shape[1]), dim=1).indices == target[:, None]
    return round(100 * float(np.mean(found.any(1).numpy())), 4)
