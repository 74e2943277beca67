"""Compute the rows of a plan: encode, fit, score; several rows at a time."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.parallel import Parallel, delayed
from threadpoolctl import threadpool_limits
from torch import nn

from lossmith import __version__
from lossmith.compare.encode import Part, encode
from lossmith.compare.methods import METHODS, columns
from lossmith.compare.plan import Cell, Plan
from lossmith.compare.sgd import evaluate_scores, train_loss
from lossmith.compare.store import Row, Store
from lossmith.estimators import MetricClassifierCV
from lossmith.training import TrainingConfig, fit

_prepared: dict[str, tuple[Part, Part | None]] = {}  # the split that this process worked on last


def run(plan: Plan, store: Store, after_row: Callable[[int], None] | None = None, jobs: int = 1) -> list[Row]:
    """Compute the rows that the store lacks, append each as it is finished, and return all of the plan's rows.

    ``after_row`` is called with the number of rows that are there: once at the start, then after each. ``jobs`` rows are
    computed at a time by joblib, in its backend of the moment.
    """
    identity = plan.settings | {"version": __version__}
    found = {Cell(row["method"], row["repeat"], row["fold"]): row for row in store.rows() if row.get("plan") == identity}
    rows = {cell: found[cell] for cell in plan.cells() if cell in found}
    missing = [cell for cell in plan.cells() if cell not in rows]
    if after_row:
        after_row(len(rows))
    tasks = (delayed(compute)(plan, cell) for cell in missing)
    each = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)  # in a batch a finished row waits for others
    for cell, row in each(tasks):
        store.append({"plan": identity} | row)
        rows[cell] = {"plan": identity} | row
        if after_row:
            after_row(len(rows))
    return [rows[cell] for cell in plan.cells()]


@contextmanager
def one_thread() -> Iterator[None]:
    """These models are small: a second thread costs more than it brings, and makes times depend on the neighbours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _warm_up() -> None:
    """A first training loads parts of torch for seconds; it must not be one whose time is reported."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(1, 2)
    fit(model, nn.CrossEntropyLoss(), torch.zeros(2, 1), torch.tensor([0, 1]), TrainingConfig(epochs=1), seed=0)


def compute(plan: Plan, cell: Cell) -> tuple[Cell, Row]:
    """One row of a plan, whatever process this is."""
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        _warm_up()
        whole, inner = parts_of(plan, cell)
        started = time.perf_counter()
        if cell.method in METHODS:
            scores, found = _fit_method(plan, cell, whole)
        else:
            trained = train_loss(plan, cell, whole, inner)
            scores = trained.scores
            found = {"settings": trained.settings, "validation": trained.validation, "curve": trained.curve}
        seconds = time.perf_counter() - started
    return cell, {
        **cell._asdict(),
        "score": evaluate_scores(plan, whole, scores),
        **found,
        "seconds": round(seconds, 4),
        "train_rows": len(whole.fit_y),
        "test_rows": len(whole.score_y),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def _fit_method(plan: Plan, cell: Cell, part: Part) -> tuple[Any, dict[str, Any]]:
    """Scores for the rows to score; for a ``MetricClassifierCV`` also what was taken, and the mean of each point inside."""
    method = METHODS[cell.method].build(plan.trained, plan.derive("inner", cell.repeat, cell.fold))
    method.fit(part.fit_x.astype(np.float64), part.fit_y)
    scores = columns(method.decision_function(part.score_x.astype(np.float64)))
    if not isinstance(method, MetricClassifierCV):
        return scores, {"settings": {}}
    settings = {"C": method.C_, "sharpness": method.sharpness_, "q": method.q_, "gain": method.selection_.gain}
    means = zip(method.points_, method.scores_.mean(0), strict=True)
    points = [(point.C, point.sharpness, point.q, round(float(mean), 6)) for point, mean in means]
    return scores, {"settings": settings, "took_metric": method.selection_.took_metric, "points": points}


def parts_of(plan: Plan, cell: Cell) -> tuple[Part, Part | None]:
    """The split itself, and for a loss inside its training rows the one to tune on.

    The encoder is fitted to each one's own rows. A process keeps its last split: cells come split by split.
    """
    tuned = cell.method not in METHODS and plan.trials > 1
    key = f"{plan.settings} {cell.repeat} {cell.fold} {tuned}"
    if key not in _prepared:
        train, test = plan.split(cell.repeat, cell.fold)
        inner = encode(plan, *tuning_rows(plan, cell, train)) if tuned else None
        whole = encode(plan, train, test)
        _prepared.clear()
        _prepared[key] = whole, inner
    return _prepared[key]


def tuning_rows(plan: Plan, cell: Cell, train: Any) -> tuple[Any, Any]:
    """Rows to fit on and rows to tune on, among the training rows: a quarter of them."""
    parts = min(4, int(np.bincount(plan.data.target[train]).max()))
    quarters = StratifiedKFold(parts, shuffle=True, random_state=plan.derive("validation", cell.repeat, cell.fold))
    with warnings.catch_warnings():
        # A class of fewer than four rows stays as even as it can.
        warnings.filterwarnings("ignore", message="The least populated class in y")
        fitted, held = next(quarters.split(train, plan.data.target[train]))
    return train[fitted], train[held]


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """What a row was computed with."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scikit-learn", "skrub")},
    }
