"""What ``MetricClassifierCV`` costs beside logistic regression: times on embedded data, time and memory of many rows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.preprocessing import StandardScaler

from lossmith.bench.memory import peak_memory
from lossmith.bench.timing import Times
from lossmith.estimators import MetricClassifierCV

SHAPES = ("breast-cancer", "digits", "100,000 × 50")
LARGE_FEATURES = 20
REPETITIONS, LARGE = 3, 10_000  # of rows; fits to as many are timed once


class Cost(NamedTuple):
    """Times of one data set, in seconds."""

    data: str
    ours: Times
    logistic: Times


def _data(name: str) -> tuple[Any, Any]:
    if name == "breast-cancer":
        X, y = load_breast_cancer(return_X_y=True)
    elif name == "digits":
        X, y = load_digits(return_X_y=True)
    else:
        X, y = make_classification(100_000, 50, n_informative=20, flip_y=0.1, random_state=0)
    return StandardScaler().fit_transform(X), y


def costs(show: Callable[[int], None]) -> Iterator[Cost]:
    """Fits of ``MetricClassifierCV`` and of ``LogisticRegressionCV`` with as many folds and penalties, in turns."""
    for done, name in enumerate(SHAPES):
        X, y = _data(name)
        cv = RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=0)
        logistic = LogisticRegressionCV(Cs=10, cv=cv, max_iter=1000)
        calls = {"ours": partial(MetricClassifierCV().fit, X, y), "logistic": partial(logistic.fit, X, y)}
        taken: dict[str, list[float]] = {kind: [] for kind in calls}
        for _ in range(REPETITIONS if len(X) < LARGE else 1):
            for kind, call in calls.items():
                start = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    call()
                taken[kind].append(time.perf_counter() - start)
        yield Cost(name, *(Times(sorted(t)[len(t) // 2], min(t), max(t)) for t in taken.values()))
        show(done + 1)


class Large(NamedTuple):
    """A fit to many made rows: bytes of the features, the most bytes that it takes beyond the data, seconds, what it found."""

    rows: int
    data: int
    memory: float
    seconds: float
    training_metric: float
    likelihood: float
    reason: str


def large_fit(rows: int) -> Large:
    """``MetricClassifierCV`` on made float32 features, of which some lie far out on the wrong side: there the metric pays."""
    made = np.random.default_rng(0)
    X = made.standard_normal((rows, LARGE_FEATURES), dtype=np.float32)
    y = X @ made.standard_normal(LARGE_FEATURES, dtype=np.float32) + made.standard_normal(rows, dtype=np.float32) > 0
    wrong = rows // 20
    X[:wrong] *= 5
    y[:wrong] = ~y[:wrong]
    classifier, start = MetricClassifierCV(), time.perf_counter()
    memory = peak_memory(lambda: classifier.fit(X, y))
    seconds = time.perf_counter() - start
    likelihood = classifier.scores_[:, _best(classifier)].mean()
    found = classifier.training_metric_, float(likelihood), classifier.selection_.reason
    return Large(rows, X.nbytes, memory, seconds, *found)


def _best(fitted: MetricClassifierCV) -> int:
    """The likelihood point of the highest mean metric."""
    mean = fitted.scores_.mean(0)
    return int(np.argmax([m if point.is_likelihood else -np.inf for m, point in zip(mean, fitted.points_, strict=True)]))


def cost_table(results: list[Cost]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of what the command prints."""
    rows: list[tuple[str, ...]] = [
        (cost.data, f"{cost.ours.median:.2f}", f"{cost.logistic.median:.2f}", f"{cost.ours.median / cost.logistic.median:.1f}")
        for cost in results
    ]
    return ("data", "MetricClassifierCV, s", "LogisticRegressionCV, s", "ratio"), rows


def large_table(found: Large) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of what the command prints."""
    columns = ("rows", "features, GB", "beyond them, GB", "fit, s", "accuracy in training", "likelihood, held out")
    row = (f"{found.rows:,}", f"{found.data / 1e9:.2f}", f"{found.memory / 1e9:.2f}", f"{found.seconds:.0f}")
    return columns, [(*row, f"{found.training_metric:.4f}", f"{found.likelihood:.4f}")]
