"""What ``MetricClassifierCV`` costs and gains beside logistic regression: times on embedded data, the metric on tables.

A table is a file without a header, the class in its last column (the raw files of the KEEL collection). Each of five outer
folds is a row of the outcome: the metric on its held-out rows, of logistic regression whose C is chosen by the metric on the
inner folds (with its decision rule, for a metric that has one), and of the classifier. Rows are appended to a file as they are
finished, and read back.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from lossmith.bench.memory import peak_memory
from lossmith.bench.timing import Times
from lossmith.errors import InputError
from lossmith.estimators import MetricClassifierCV

FOLDS = 5
MISSING = ("?", "<null>", "")
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


def tables_in(folder: Path) -> list[Path]:
    """The tables of a folder, in the order of their names.

    Raises:
        InputError: there is none.
    """
    found = sorted(path for path in folder.glob("*.dat") if path.is_file()) if folder.is_dir() else []
    if not found:
        raise InputError(f"--tables: expected a folder of .dat files, got {folder}")
    return found


def read(path: Path, most: int) -> tuple[pd.DataFrame, Any]:
    """Features and class codes of a table, at most so many rows, drawn without order."""
    frame = pd.read_csv(path, header=None, na_values=list(MISSING), skipinitialspace=True)
    if len(frame) > most:
        frame = frame.sample(most, random_state=0)
    target = frame.iloc[:, -1].astype(str).str.strip()
    kept = target.isin(target.value_counts().loc[lambda counts: counts >= 2 * FOLDS].index)
    features = frame.loc[kept, frame.columns[:-1]]
    return features.rename(columns=str), np.unique(target[kept], return_inverse=True)[1]


def gains(
    paths: list[Path], metric: str, most: int, seed: int, out: Path | None, jobs: int, show: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Every row of every table, those of ``out`` read and the others computed; none of a table that the metric does not fit."""
    rows: list[dict[str, Any]] = []
    if out is not None and out.exists():
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    known = {
        (row["table"], row["fold"]): row for row in rows if (row["metric"], row["most"], row["seed"]) == (metric, most, seed)
    }
    for done, path in enumerate(paths):
        features, y = read(path, most)
        outer = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for fold, (train, test) in enumerate(outer.split(features, y)):
            if (path.stem, fold) in known:
                continue
            try:
                row = _row(features, y, train, test, metric, jobs)
            except ValueError as error:
                if not str(error).startswith("metric:"):
                    raise
                break
            row = {"table": path.stem, "fold": fold, "metric": metric, "most": most, "seed": seed, **row}
            known[path.stem, fold] = row
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        show(done + 1)
    return list(known.values())


def _row(features: pd.DataFrame, y: Any, train: Any, test: Any, metric: str, jobs: int) -> dict[str, Any]:
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    texts = make_pipeline(
        OneHotEncoder(handle_unknown="ignore", drop="if_binary", sparse_output=False), StandardScaler(with_std=False)
    )
    encoder = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")), (texts, make_column_selector(dtype_exclude="number"))
    )
    X, held = encoder.fit_transform(features.iloc[train]), encoder.transform(features.iloc[test])
    start = time.perf_counter()
    ours = MetricClassifierCV(metric, n_jobs=jobs).fit(X, y[train])
    seconds = time.perf_counter() - start
    found = {"ours": ours.score(held, y[test]), "training": ours.training_metric_, "seconds": round(seconds, 2)}
    if not ours.selection_.took_metric:
        return {**found, "logistic": found["ours"], "training_logistic": found["training"], "took": False}
    C = ours.points_[_best(ours)].C
    likelihood = MetricClassifierCV(metric, caution=math.inf, n_jobs=jobs, Cs=[C]).fit(X, y[train])
    score, training = likelihood.score(held, y[test]), likelihood.training_metric_
    return {**found, "logistic": score, "training_logistic": training, "took": True}


def _best(fitted: MetricClassifierCV) -> int:
    """The likelihood point of the highest mean metric."""
    mean = fitted.scores_.mean(0)
    return int(np.argmax([m if point.is_likelihood else -np.inf for m, point in zip(mean, fitted.points_, strict=True)]))


def by_table(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The mean gain of each table, in points."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["table"], []).append(100 * (row["ours"] - row["logistic"]))
    return {table: float(np.mean(each)) for table, each in found.items() if len(each) == FOLDS}


def summary(found: dict[str, float]) -> dict[str, float]:
    """Of the tables' gains: what ``bench fit`` prints."""
    values = np.array(list(found.values()))
    moved = values[values != 0]
    return {
        "tables": len(values),
        "mean": float(values.mean()),
        "trimmed mean": float(stats.trim_mean(values, 0.1)),
        "median": float(np.median(values)),
        "lowest": float(values.min()),
        "up by 0.5": int((values >= 0.5).sum()),
        "down by 0.5": int((values <= -0.5).sum()),
        "Wilcoxon p": float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0,
    }


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


def gain_table(found: dict[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of what the command prints."""
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    return ("table", "gain, points"), [(name, f"{gain:+.2f}") for name, gain in ordered]
