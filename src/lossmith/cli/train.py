"""The commands ``train`` and ``predict``: a classifier for a metric from a table, and its predictions for another."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

import click

from lossmith.cli.screen import check_metric, check_paths, given_costs, print_table, progress
from lossmith.errors import InputError

ONE_CLASS = r"f[\d.]+|jaccard|average_precision"  # metrics of two classes that are those of one of them


@click.command(short_help="Train a classifier for a metric on a table.")
@click.argument("data")
@click.option("--target", metavar="COLUMN", help="Column of the classes. Embedded sets, KEEL and most ARFF files know it.")
@click.option("--metric", default="accuracy", show_default=True, metavar="NAME", help="accuracy, f1, f1_macro, roc_auc, …")
@click.option("--positive", metavar="LABEL", help="The class of f1, jaccard and rankings.  [default: the last label]")
@click.option("--cost", metavar="FILE", type=click.Path(path_type=Path), help="A CSV matrix of costs instead of a metric.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The model's file, such as model.lossmith.")
@click.option("--cv", default=5, show_default=True, help="Inner folds, drawn twice.")
@click.option(
    "--caution",
    type=float,
    show_default="0.75; for F-beta, Jaccard and counts 1",
    help="Standard errors that a gain over likelihood has to exceed.",
)
@click.option("--jobs", default=1, show_default=True, help="Folds that are fitted at the same time; -1: one a core.")
@click.option("--seed", default=0, show_default=True, help="Of the folds.")
def train(
    data: str,
    target: str | None,
    metric: str,
    positive: str | None,
    cost: Path | None,
    out: Path,
    cv: int,
    caution: float | None,
    jobs: int,
    seed: int,
) -> None:
    """Train a linear classifier for METRIC on DATA, and say how it compares with logistic regression.

    DATA is an embedded set (breast-cancer, wine, iris, digits, balance-scale, monks-1 to monks-3), a table of a public set
    (keel/NAME, openml/NAME: see lossmith data), or a file: .csv, .tsv, .parquet, .arff or KEEL's .dat.
    Numbers are standardised, text becomes columns of 0 and 1, and missing values are filled. The classifier stays logistic
    regression unless training for the metric gains more than its own error on inner folds.
    """
    from lossmith.data import load

    check_metric(metric)
    for name, value, least in (("cv", cv, 2), ("caution", caution, 0)):
        if value is not None and value < least:
            raise InputError(f"--{name}: expected {least} or more, got {value}")
    check_paths([out], "--out")
    from lossmith.estimators.linear import telling_of_folds
    from lossmith.estimators.metrics import metric_of
    from lossmith.estimators.table_model import TableModel

    dataset = load(data, target)
    if len(dataset.classes) > max(20, len(dataset.target) // 10):
        many = f"{len(dataset.classes)} classes in {len(dataset.target)} rows"
        click.echo(
            f"lossmith: --target: {many}: {dataset.target_name!r} looks like a number, and this is a classifier", err=True
        )
    if positive is not None:
        dataset = dataset.with_positive(positive)
    trained: Any = metric if cost is None else given_costs(cost, metric, dataset.classes)
    done = count(1)
    with progress("training on folds", 4 * cv) as show, telling_of_folds(lambda: show(next(done))):
        model = TableModel.train(dataset, trained, cv=cv, caution=caution, n_jobs=jobs, random_state=seed)
    model.save(out)
    fitted = model.classifier
    name = metric if cost is None else "minus the cost"
    columns, rows = _summary(fitted)
    of_class = (
        f" of {dataset.classes[-1]!r}" if cost is None and re.fullmatch(ONE_CLASS, metric) and len(dataset.classes) == 2 else ""
    )
    print_table(f"{dataset.name}: {name}{of_class} on {len(fitted.scores_)} inner folds", columns, rows)
    rule = " with its decision rule" if metric_of(fitted.metric, len(fitted.classes_)).shifts else ""
    taken = "trained for the metric" if fitted.selection_.took_metric else f"logistic regression{rule}"
    print(f"taken: {taken}; {fitted.selection_.reason}")
    if rule:
        print("its probabilities are moved by the rule: the predicted class is the likeliest, the frequencies are not theirs")
    print(f"model: {out}")


def _summary(fitted: Any) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The mean metric on held-out rows of each way: with likelihood's penalty, and of the best point of the metric."""
    from lossmith.estimators.metrics import metric_of

    kinds = [point.is_likelihood for point in fitted.points_]
    mean = fitted.scores_.mean(0)
    rows: list[tuple[str, ...]] = [("logistic regression", f"{fitted.likelihood_scores_.mean(0)[fitted.selection_.base]:.4f}")]
    metric = metric_of(fitted.metric, len(fitted.classes_))
    if metric.shifts:
        rows.append(("logistic regression with its decision rule", f"{mean[fitted.selection_.base]:.4f}"))
    if trained := [m for m, kind in zip(mean, kinds, strict=True) if not kind]:
        rows.append(("trained for the metric", f"{max(trained):.4f}"))
    return ("", "held out"), rows


@click.command(short_help="Predict with a model of lossmith train.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A CSV file for the predictions.")
def predict(model: Path, data: str, out: Path) -> None:
    """Write the class of each row of DATA, and the probability of each class, as the MODEL has them.

    DATA needs the columns that the model was trained on; others are passed over. A value of text that is new counts as none of
    those known.
    """
    from lossmith.data import load_frame
    from lossmith.estimators.table_model import TableModel

    check_paths([out], "--out")
    fitted = TableModel.load(model)
    frame = load_frame(data)
    found = fitted.predict(frame, data)
    found.to_csv(out, index=False)
    print(f"{len(found)} rows: {out}")
    counts = found["prediction"].value_counts()
    print_table("predicted", ("class", "rows"), [(str(label), str(number)) for label, number in counts.items()])
