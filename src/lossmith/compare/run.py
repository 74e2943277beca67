"""Compute the rows of a plan: encode, tune, train, score."""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from lossmith import __version__
from lossmith.catalogue import CANDIDATES, Settings
from lossmith.compare.encode import Part, encode
from lossmith.compare.metrics import evaluate
from lossmith.compare.plan import Cell, Plan
from lossmith.compare.store import Row, Store
from lossmith.training import TrainingConfig, fit

HIDDEN = 64


# One epoch: mean loss (None where it is not finite), metric on the rows to fit on and on those to score on.
Curve = list[tuple["float | None", float, float]]


def run(plan: Plan, store: Store, after_row: Callable[[int], None] | None = None) -> list[Row]:
    """Compute the rows that the store lacks, append each as it is finished, and return all of the plan's rows.

    ``after_row`` is called with the number of rows that are there: once at the start, then after each.
    """
    identity = plan.settings | {"version": __version__}
    found = {Cell(row["loss"], row["repeat"], row["fold"]): row for row in store.rows() if row.get("plan") == identity}
    cells = list(plan.cells())
    rows = {cell: found[cell] for cell in cells if cell in found}
    prepare = lru_cache(maxsize=1)(lambda repeat, fold: _prepare(plan, repeat, fold))
    if after_row:
        after_row(len(rows))
    with _one_thread():
        if len(rows) < len(cells):
            _warm_up()
        for cell in cells:
            if cell in rows:
                continue
            row = {"plan": identity} | _compute(plan, cell, *prepare(cell.repeat, cell.fold))
            store.append(row)
            rows[cell] = row
            if after_row:
                after_row(len(rows))
    return [rows[cell] for cell in cells]


@contextmanager
def _one_thread() -> Iterator[None]:
    """These models are small: a second thread costs more than it brings, and makes times depend on the neighbours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _warm_up() -> None:
    """A first training loads parts of torch for seconds; it must not be one whose time is reported."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(1, 2)
    fit(model, nn.CrossEntropyLoss(), torch.zeros(2, 1), torch.tensor([0, 1]), TrainingConfig(epochs=1), seed=0)


def _compute(plan: Plan, cell: Cell, whole: Part, inner: Part | None) -> Row:
    started = time.perf_counter()
    settings, validation = _tune(plan, cell, inner)
    tuned = time.perf_counter()
    curve: Curve = []
    score, seconds = _train(plan, cell, settings, whole, curve)
    return {
        **cell._asdict(),
        "score": score,
        "settings": settings,
        "validation": validation,
        "train_seconds": round(seconds, 4),
        "tune_seconds": round(tuned - started, 4),
        "train_rows": len(whole.fit_y),
        "test_rows": len(whole.score_y),
        "curve": curve,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(),
    }


def _tune(plan: Plan, cell: Cell, inner: Part | None) -> tuple[Settings, float | None]:
    """The best of the drawn settings on the inner validation rows; of equals, the first."""
    drawn = plan.draw_settings(cell)
    if inner is None:
        return drawn[0], None
    scores = [_train(plan, cell, settings, inner)[0] for settings in drawn]
    best = int(np.argmax(scores))
    return drawn[best], scores[best]


def _train(plan: Plan, cell: Cell, settings: Settings, part: Part, curve: Curve | None = None) -> tuple[float, float]:
    """Train one model; its score and the seconds it took, without those for filling ``curve``."""
    candidate = CANDIDATES[cell.loss]
    classes = len(plan.data.classes)
    # The same initial weights and row order for every loss and every trial of a split.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.derive("weights", cell.repeat, cell.fold))
        model = _model(plan.model, part.fit_x.shape[1], classes)
    scoring = 0.0

    def after_epoch(loss: float) -> None:
        nonlocal scoring
        if curve is None:
            return
        begun = time.perf_counter()
        fitted = evaluate(plan.metric, part.fit_y.numpy(), _predict(model, part.fit_x))
        held_out = evaluate(plan.metric, part.score_y, _predict(model, part.score_x))
        curve.append((round(loss, 6) if math.isfinite(loss) else None, round(fitted, 6), round(held_out, 6)))
        scoring += time.perf_counter() - begun

    begun = time.perf_counter()
    config = candidate.config(replace(TrainingConfig(), epochs=plan.settings["epochs"]), settings)
    order = plan.derive("order", cell.repeat, cell.fold)
    fit(model, candidate.build(classes, settings), part.fit_x, part.fit_y, config, seed=order, after_epoch=after_epoch)
    seconds = time.perf_counter() - begun - scoring
    return evaluate(plan.metric, part.score_y, _predict(model, part.score_x)), seconds


def _model(name: str, features: int, classes: int) -> nn.Module:
    if name == "linear":
        return nn.Linear(features, classes)
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor) -> npt.NDArray[np.int64]:
    return model(x).argmax(-1).numpy()


def _prepare(plan: Plan, repeat: int, fold: int) -> tuple[Part, Part | None]:
    """The split itself, and inside its training rows the one to tune on; the encoder is fitted to each one's own rows."""
    train, test = plan.split(repeat, fold)
    whole = encode(plan, train, test)
    if plan.trials == 1:
        return whole, None
    parts = min(4, int(np.bincount(plan.data.target[train]).max()))
    quarters = StratifiedKFold(parts, shuffle=True, random_state=plan.derive("validation", repeat, fold))
    with warnings.catch_warnings():
        # A class of fewer than four rows stays as even as it can.
        warnings.filterwarnings("ignore", message="The least populated class in y")
        fitted, held = next(quarters.split(train, plan.data.target[train]))
    return whole, encode(plan, train[fitted], train[held])


@lru_cache(maxsize=1)
def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scikit-learn", "skrub")},
    }
