"""Losses trained by SGD: tuned on rows inside the training part, then trained on all of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lossmith.catalogue import Settings
from lossmith.compare.encode import Part
from lossmith.compare.losses import loss_of
from lossmith.compare.methods import columns
from lossmith.compare.metrics import evaluate
from lossmith.compare.plan import Cell, Plan
from lossmith.estimators.metrics.trained_metric import Floats
from lossmith.training import TrainingConfig, fit

HIDDEN = 64

# One epoch: mean loss (None where it is not finite), what is reported on the rows to fit on and on those to score on.
Curve = list[tuple["float | None", float, float]]


class Trained(NamedTuple):
    """What a loss came to: its scores (n, K) for the rows to score, the settings chosen, and the last training."""

    scores: Floats
    settings: Settings
    validation: float | None
    curve: Curve


def train_loss(plan: Plan, cell: Cell, whole: Part, inner: Part | None) -> Trained:
    """Tune on ``inner``, train on ``whole``."""
    drawn, validation = plan.draw_settings(cell), None
    settings = drawn[0]
    if inner is not None:
        values = [_validation(plan, inner, train_with(plan, cell, each, inner)) for each in drawn]
        if np.isfinite(values).all():  # else the defaults
            best = int(np.argmax(values))  # of equals, the first
            settings, validation = drawn[best], values[best]
    curve: Curve = []
    return Trained(train_with(plan, cell, settings, whole, curve), settings, validation, curve)


def _validation(plan: Plan, part: Part, scores: Floats) -> float:
    """What is reported; nan where a judge needs a class that the small part lacks."""
    try:
        return evaluate_scores(plan, part, scores)
    except ValueError:
        return math.nan


def evaluate_scores(plan: Plan, part: Part, scores: Floats) -> float:
    """What is reported, of scores for the rows to score."""
    return evaluate(plan.trained, plan.judge, part.score_y, scores, len(plan.data.classes))


def train_with(plan: Plan, cell: Cell, settings: Settings, part: Part, curve: Curve | None = None) -> Floats:
    """Train one model with these settings; its scores (n, K) for the rows to score."""
    candidate = loss_of(cell.method, plan.trained)
    classes = len(plan.data.classes)
    fit_x, score_x = torch.from_numpy(part.fit_x), torch.from_numpy(part.score_x)
    # The same initial weights and row order for every loss and every trial of a split.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.derive("weights", cell.repeat, cell.fold))
        model = _model(plan.model, fit_x.shape[1], classes)

    def after_epoch(loss: float) -> None:
        if curve is None:
            return
        fitted = evaluate(plan.trained, plan.judge, part.fit_y, _scores(model, fit_x), classes)
        held_out = evaluate_scores(plan, part, _scores(model, score_x))
        curve.append((round(loss, 6) if math.isfinite(loss) else None, round(fitted, 6), round(held_out, 6)))

    config = candidate.config(replace(TrainingConfig(), epochs=plan.settings["epochs"]), settings)
    order = plan.derive("order", cell.repeat, cell.fold)
    target = torch.from_numpy(part.fit_y)
    loss = candidate.build(classes, settings)
    if not fit_or_diverge(model, loss, fit_x, target, config, seed=order, after_epoch=after_epoch) and curve is not None:
        curve.append((None, 0.0, 0.0))
    return _scores(model, score_x)


def fit_or_diverge(*args: Any, **options: Any) -> bool:
    """As ``training.fit``; False where it ended early, since the scores were no numbers any more and the loss refused them."""
    try:
        fit(*args, **options)
    except ValueError as error:
        if not str(error).startswith("scores:"):
            raise
        return False
    return True


def _model(name: str, features: int, classes: int) -> nn.Module:
    if name == "linear":
        return nn.Linear(features, classes)
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


@torch.no_grad()
def _scores(model: nn.Module, x: Tensor) -> Floats:
    """(n, K); those of a broken model, which are not finite, count as 0."""
    scores: Any = np.nan_to_num(model(x).double().numpy(), posinf=0.0, neginf=0.0)
    return columns(scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores)
