"""Rare classes: F1, balanced accuracy, AUC and average precision of linear models on a hundred imbalanced tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import TunedThresholdClassifierCV

from lossmith.compare import run
from lossmith.compare.losses import described
from lossmith.compare.methods import BASELINE, PATH, RULE, WEIGHTS
from lossmith.compare.over_sets import GAIN_COLUMNS, ROPE, gain_table, gains
from lossmith.compare.plan import Cell as TableCell
from lossmith.compare.plan import Plan
from lossmith.compare.store import Row
from lossmith.estimators import MetricClassifierCV
from lossmith.experiments.analysis import all_of, exceeds, lowest, mean_of, scores_by_method, ties
from lossmith.experiments.figures import ranking
from lossmith.experiments.study import Cell, Outcome, Prediction, Section, Study
from lossmith.experiments.tasks import limited, tables_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKINGS = ("roc_auc", "average_precision")
LIKELIHOOD = "likelihood, C by log loss"
THRESHOLDS = {"tuned threshold": "predict_proba", "tuned threshold on scores": "decision_function"}
ADJUSTED, PLUG_IN = "logit adjustment", "expected-F1 plug-in"
OPPONENTS = {  # of each metric, beside LIKELIHOOD, which is the baseline
    "f1": (*THRESHOLDS, WEIGHTS, ADJUSTED, PLUG_IN, RULE),
    "balanced_accuracy": (*THRESHOLDS, WEIGHTS, ADJUSTED, RULE),
    "roc_auc": (BASELINE, WEIGHTS),
    "average_precision": (BASELINE, WEIGHTS),
}
RIVAL = {"f1": RULE, "balanced_accuracy": ADJUSTED, "roc_auc": BASELINE, "average_precision": BASELINE}  # fixed in advance
WORDS = {"f1": "F1", "balanced_accuracy": "Balanced accuracy", "roc_auc": "ROC AUC", "average_precision": "Average precision"}
CONFIRMING = slice(1, None, 2)  # of the sources in the order of their names: those by which no decision rule was chosen
SEED = 2
FOLDS = 3
SIZE = {"quick": (300, 6), "full": (1000, None)}  # rows of a table, tables


def cells(size: str, rows: Sequence[Row]) -> Iterator[Cell]:
    """Fold by fold; a row holds all methods of a metric."""
    return cells_of(size, OPPONENTS)


def cells_of(size: str, metrics: Iterable[str]) -> Iterator[Cell]:
    """A cell for each fold of each table and each metric."""
    most, count = SIZE[size]
    names = tables_of("keel-imbalanced")
    names = names if count is None else names[:: len(names) // count or 1]
    for name, fold, metric in product(names, range(FOLDS), metrics):
        yield {"data": name, "metric": metric, "fold": fold, "rows": most}


def compute(cell: Cell) -> dict[str, Any]:
    """The metric of the held-out fold by each method, in points."""
    metric = cell["metric"]
    plan = Plan(limited(cell["data"], cell["rows"], least=FOLDS), methods=(), metric=metric, folds=FOLDS, seed=SEED)
    values = dict.fromkeys((LIKELIHOOD, *OPPONENTS[metric], PATH), math.nan)
    took = False
    for method in (BASELINE, RULE, WEIGHTS, PATH):
        if method in values:
            _, row = run.compute(plan, TableCell(method, 0, cell["fold"]))
            values[method] = 100 * row["score"]
            took = row.get("took_metric", False)
    part, _ = run.parts_of(plan, TableCell(PATH, 0, cell["fold"]))
    x, y, held = part.fit_x.astype(np.float64), part.fit_y, part.score_x.astype(np.float64)
    C = MetricClassifierCV("log_loss", random_state=plan.derive("inner", 0, cell["fold"])).fit(x, y).C_
    model = LogisticRegression(C=C, max_iter=1000).fit(x, y)
    scores = model.decision_function(held)
    values[LIKELIHOOD] = judged(metric, part.score_y, scores)
    for method, response in THRESHOLDS.items():
        if method in values:
            tuned = TunedThresholdClassifierCV(model, scoring=metric, response_method=response, cv=_inner(y), random_state=0)
            values[method] = judged(metric, part.score_y, tuned.fit(x, y).predict(held) - 0.5)
    if ADJUSTED in values:
        prior = math.log(np.mean(y == 1)) - math.log(np.mean(y == 0))
        values[ADJUSTED] = judged(metric, part.score_y, scores - prior)
    if PLUG_IN in values:
        values[PLUG_IN] = judged(metric, part.score_y, expected_f1_choice(1 / (1 + np.exp(-scores))) - 0.5)
    return {"values": values, "took": took}


def _inner(y: Any) -> int:
    return max(2, min(5, int(np.bincount(y).min())))


def judged(metric: str, target: Any, scores: Any) -> float:
    """The metric as scikit-learn counts it, in points; positive where the score is above 0."""
    if metric == "roc_auc":
        return 100 * float(roc_auc_score(target, scores))
    if metric == "average_precision":
        return 100 * float(average_precision_score(target, scores))
    if metric == "f1":
        return 100 * float(f1_score(target, scores > 0, zero_division=0.0))
    return 100 * float(balanced_accuracy_score(target, scores > 0))


def expected_f1_choice(p: Any) -> Any:
    """Which rows to call positive for the highest expected F1, were each positive by itself with probability p, (n,).

    The k rows of the highest p, with the k of the highest 2 Σ p / (k + Σ of all p). Source: Ye et al., "Optimizing F-measures:
    a tale of two approaches", ICML 2012 (there exact; here the ratio of expectations, which differs by O(1/n)).
    """
    order = np.argsort(-p, kind="stable")
    k = np.arange(1, len(p) + 1)
    ratio = 2 * np.cumsum(p[order]) / (k + p.sum())
    chosen = np.zeros(len(p), dtype=bool)
    chosen[order[: int(np.argmax(ratio)) + 1]] = True
    return chosen


def table_means(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    """Mean over the folds of each table (index) by each method (columns), in points; only tables with all folds."""
    of_metric = [row for row in rows if row["cell"]["metric"] == metric]
    if not of_metric:
        return pd.DataFrame()
    names = [row["cell"]["data"].removeprefix("keel-imbalanced/") for row in of_metric]
    by_table = pd.DataFrame([row["values"] for row in of_metric]).groupby(names)
    return by_table.mean()[by_table.size() == FOLDS]


def source_means(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    """The same averaged over the tables of each source: those are cuts of the same rows, and no tests of their own."""
    means = table_means(rows, metric)
    return means.groupby([source_of(str(name)) for name in means.index]).mean() if len(means) else means


def source_of(table: str) -> str:
    """The data set that a table was cut from.

    >>> source_of("ecoli-0-1_vs_5"), source_of("yeast3"), source_of("kr-vs-k-zero_vs_eight")
    ('ecoli', 'yeast', 'kr-vs-k')
    """
    if table.startswith("kr-vs-k"):
        return "kr-vs-k"
    name = re.split(r"[0-9]", table)[0]
    return name if name in ("new-thyroid", "page-blocks") else name.split("-")[0]


def sections(rows: Sequence[Row]) -> list[Section]:
    """A table of gains a metric, and the path against its rival."""
    found, pairs = [], []
    for metric, words in WORDS.items():
        means = source_means(rows, metric)
        if means.empty:
            continue
        text = (
            f"Points of {words} above logistic regression whose C is tuned by log loss and whose threshold is ½, over "
            f"{len(means)} sources, each the mean of its tables; Wilcoxon's p with Holm's correction; the chances are those "
            f"of the Bayesian signed-rank test with ±{ROPE:g} points as practically equal."
        )
        found.append(Section(words, text, GAIN_COLUMNS, gain_table(gains(scores_by_method(means), LIKELIHOOD))))
        gain = gains(scores_by_method(means[[RIVAL[metric], PATH]]), RIVAL[metric])
        took = np.mean([row["took"] for row in rows if row["cell"]["metric"] == metric])
        pairs.append((words, RIVAL[metric], *gain_table(gain)[0][1:], f"{took:.0%}"))
    text = (
        "`MetricClassifierCV` against the one opponent that was named for each metric before any row existed; the last column "
        "is the share of folds in which it took a point that was trained for the metric."
    )
    columns = ("metric", "opponent", *GAIN_COLUMNS[1:], "took it")
    return [Section("The path against its opponent", text, columns, pairs), *found]


def _gain(rows: Sequence[Row], metric: str, method: str, rival: str) -> Any:
    means = source_means(rows, metric)
    return means[method] - means[rival] if len(means) else pd.Series(dtype=float)


def _threshold(rows: Sequence[Row]) -> Outcome:
    threshold = mean_of(_gain(rows, "f1", RULE, LIKELIHOOD))
    path = mean_of(_gain(rows, "f1", PATH, RULE))
    held = None if math.isnan(path.half) else bool(threshold.value > 3 * max(path.value, 0.0) and threshold.low > 0)
    return Outcome(held, f"the threshold {threshold} points, training on top of it {path}")


def _f1_ahead(rows: Sequence[Row]) -> Outcome:
    return exceeds(mean_of(_gain(rows, "f1", PATH, RULE)))


def _f1_lowest(rows: Sequence[Row]) -> Outcome:
    means = table_means(rows, "f1").reindex(columns=[PATH, RULE])
    return lowest(means[PATH] - means[RULE], lambda points: points >= -1.5)


def _rule_ahead(rows: Sequence[Row]) -> Outcome:
    return exceeds(mean_of(_gain(rows, "f1", RULE, "tuned threshold").iloc[CONFIRMING]), 1.0)


def _rule_lowest(rows: Sequence[Row]) -> Outcome:
    return lowest(_gain(rows, "f1", RULE, LIKELIHOOD).iloc[CONFIRMING], lambda points: points > -1)


def _adjusted(rows: Sequence[Row]) -> Outcome:
    found = mean_of(_gain(rows, "balanced_accuracy", PATH, ADJUSTED))
    return Outcome(ties(found, ROPE), f"{found} points")


def _responses(rows: Sequence[Row]) -> Outcome:
    return exceeds(mean_of(_gain(rows, "f1", "tuned threshold on scores", "tuned threshold")))


def _rankings(rows: Sequence[Row]) -> Outcome:
    found = [mean_of(_gain(rows, metric, PATH, BASELINE)) for metric in RANKINGS]
    return Outcome(
        all_of(ties(mean, ROPE) for mean in found),
        "; ".join(f"{WORDS[metric]} {mean}" for metric, mean in zip(RANKINGS, found, strict=True)),
    )


def figure(rows: Sequence[Row]) -> Figure:
    """Mean ranks of F1's methods."""
    colours = {name: described(name).colour for name in (RULE, WEIGHTS, PATH)}
    return ranking(source_means(rows, "f1"), colours)


STUDY = Study(
    name="imbalance",
    title="Rare classes",
    question="Does training for F1, balanced accuracy, AUC or average precision beat likelihood with a good decision rule?",
    design=(
        "100 two-class tables of the KEEL collection with a rare class (at most 1,000 rows of each), three outer folds. The "
        "baseline is logistic regression with C tuned by log loss and the threshold at ½. Its rivals: the same with a "
        "threshold tuned by `TunedThresholdClassifierCV`, on probabilities (scikit-learn's default) and on scores; balanced "
        "class weights; logit adjustment, which for one linear score with a free intercept is the same after training and "
        "in the loss; the plug-in rule that calls positive the k likeliest of the rows to decide, with the highest expected "
        "F1, and so knows them all at once; and lossmith's own decision rule, a threshold for any later row, of the highest "
        "expected metric under probabilities that are calibrated on 5 × 2 pooled inner folds. `MetricClassifierCV` starts from "
        "that last one. For rankings, which no threshold changes: C tuned by the metric, and class weights."
    ),
    sets=("keel-imbalanced",),
    predictions=(
        Prediction("F1 is mostly a threshold: it brings more than three times what training for F1 brings on top.", _threshold),
        Prediction("Training for F1 is ahead of the tuned threshold in the mean.", _f1_ahead),
        Prediction("On no table does it lose more than 1.5 points to the threshold.", _f1_lowest),
        Prediction(
            "On the 13 sources that did not choose it, the decision rule is a point of F1 ahead of the tuned threshold.",
            _rule_ahead,
        ),
        Prediction("On none of these does the decision rule lose a point of F1 to the threshold at ½.", _rule_lowest),
        Prediction("For balanced accuracy it ties with logit adjustment, which costs nothing.", _adjusted),
        Prediction(
            "A threshold tuned on scores is ahead of one tuned on probabilities, whose grid is coarse for rare classes.",
            _responses,
        ),
        Prediction("Training for AUC or average precision ties with likelihood: within half a point.", _rankings),
    ),
    history=(
        "Committed before the first of these rows, but for the two of the decision rule. In a first run that rule counted the "
        "held-out rows and chose C by the metric: +4.40 points of F1, +8.64 of balanced accuracy, and on one source −41.83 of "
        "F1. It was changed on every other source; a trial of an earlier calibration on the rest had shown +7.2 points of F1, "
        "and +6.2 for the first rule. The caution of F1 became 1 after a look at 101 of 300 folds. Of the first run's rows "
        "those values that do not depend on the rule were kept."
    ),
    cells=cells,
    compute=compute,
    sections=sections,
    figure=figure,
    protocol=2,
)
