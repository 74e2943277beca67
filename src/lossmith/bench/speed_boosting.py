"""What a training of XGBoost and LightGBM costs with a metric as its objective, beside their own objectives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_classification

from lossmith import AccuracyLoss, AUCLoss, AveragePrecisionLoss, CostLoss, FBetaLoss
from lossmith.bench.timing import Times, take_turns
from lossmith.integrations.boosting import BoostingObjective

FEATURES, ROUNDS = 20, 50
SECONDS = 60.0
LIBRARIES = ("xgboost", "lightgbm")
OWN = {"xgboost": ("binary:logistic", "rank:map", "rank:pairwise"), "lightgbm": ("binary",)}  # the first is the unit
LOSSES: dict[str, Callable[[], Any]] = {
    "AccuracyLoss()": AccuracyLoss,
    'AccuracyLoss("normal", q=0.5)': lambda: AccuracyLoss("normal", q=0.5),
    'FBetaLoss(average="binary")': lambda: FBetaLoss(average="binary"),
    "CostLoss(cost)": lambda: CostLoss(torch.tensor([[0.0, 1.0], [5.0, 0.0]])),
    "AUCLoss()": AUCLoss,
    "AveragePrecisionLoss()": AveragePrecisionLoss,
}


def measure(rows: int, show: Callable[[int], None]) -> dict[str, dict[str, Times]]:
    """Whole trainings of each library that is there, each objective in turn."""
    X, y = make_classification(rows, FEATURES, n_informative=FEATURES // 2, weights=[0.9], random_state=0)
    found = {}
    for done, library in enumerate(library for library in LIBRARIES if find_spec(library)):
        calls = {name: partial(TRAINERS[library], X, y, name) for name in OWN[library]}
        calls |= {name: partial(TRAINERS[library], X, y, BoostingObjective(make())) for name, make in LOSSES.items()}
        found[library] = take_turns(calls, SECONDS)
        show(done + 1)
    return found


def by_xgboost(X: Any, y: Any, objective: Any) -> object:
    """A training of 50 trees."""
    xgboost = import_module("xgboost")
    options: dict[str, Any] = {"nthread": torch.get_num_threads(), "verbosity": 0}
    if not isinstance(objective, str):
        return xgboost.train(options, xgboost.DMatrix(X, y), ROUNDS, obj=objective)
    group = {"qid": np.zeros(len(y), dtype=int)} if objective.startswith("rank") else {}
    return xgboost.train(options | {"objective": objective}, xgboost.DMatrix(X, y, **group), ROUNDS)


def by_lightgbm(X: Any, y: Any, objective: Any) -> object:
    """A training of 50 trees."""
    lightgbm = import_module("lightgbm")
    options = {"objective": objective, "num_threads": torch.get_num_threads(), "verbose": -1}
    return lightgbm.train(options, lightgbm.Dataset(X, y), ROUNDS)


TRAINERS = {"xgboost": by_xgboost, "lightgbm": by_lightgbm}


def table(found: dict[str, dict[str, Times]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows."""
    rows: list[tuple[str, ...]] = []
    for library, times in found.items():
        unit = times[OWN[library][0]].median
        rows += [(library, name, f"{time.median:.2f}", f"{time.median / unit:.2f}") for name, time in times.items()]
    return ("library", "objective", "seconds", "×"), rows


def as_json(found: dict[str, dict[str, Times]]) -> dict[str, Any]:
    """The outcome for ``--json``, in seconds and as ratios to the library's log loss."""
    return {
        library: {
            name: {**time._asdict(), "ratio": time.median / times[OWN[library][0]].median} for name, time in times.items()
        }
        for library, times in found.items()
    }


def title(rows: int) -> str:
    """What the table shows."""
    return f"a training of {ROUNDS} trees, {rows:,} rows of {FEATURES} features, {torch.get_num_threads()} threads"
