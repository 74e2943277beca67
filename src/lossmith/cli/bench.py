"""The commands ``bench …``: the library beside stored values, and beside other software."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import click

from lossmith.cli.screen import check_paths, print_table, progress
from lossmith.errors import InputError, PerformanceWarning


def check_noise(noise: str) -> None:
    """Refuse a name that no noise has."""
    from lossmith import noise as noises

    try:
        noises.get(noise)
    except ValueError as error:
        raise InputError(f"--{error}") from None


@click.group(no_args_is_help=True)
def bench() -> None:
    """Measure the library against stored values, beside other software."""


@bench.command(short_help="Errors of log p and its gradient, beside SciPy's, BoTorch's and others'.")
@click.option("--noise", "noises", multiple=True, metavar="NAME", help="Of the table: normal, studentt:3, …  [default: all]")
@click.option("--classes", type=int, multiple=True, metavar="C", help="2, 3, 10, 100, 1000, 50000.  [default: all]")
@click.option("--topk", is_flag=True, help="Errors of being among the k highest instead of the highest.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of tables.")
def accuracy(noises: tuple[str, ...], classes: tuple[int, ...], topk: bool, as_json: bool) -> None:
    """Print the worst error against values of 25 digits for each noise and class count.

    --classes 10 takes half a minute, everything half an hour, most of it for 50,000 classes. Exit code 1 if an error exceeds
    what is promised.
    """
    from lossmith.bench import numerics as study

    groups = study.select(noises, classes, topk)
    with progress("accuracy", len(groups)) as show:
        results = list(study.measure(groups, show))
    if as_json:
        print(json.dumps(study.as_json(results), indent=2))
    else:
        for title, columns, rows in study.tables(results):
            print_table(title, columns, rows)
    if not all(result.kept for result in results):
        raise SystemExit(1)


@bench.command(short_help="Time and memory of the losses beside cross-entropy's.")
@click.option("--classes", type=int, multiple=True, metavar="C", help="Class counts.  [default: 2, 10, 100, … 128256]")
@click.option("--loss", "names", multiple=True, metavar="NAME|all", help="accuracy, top-k, auc, …  [default: accuracy]")
@click.option("--noise", default="normal", show_default=True, metavar="NAME", help="The losses' noise.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True, help="Of the scores.")
@click.option("--rival", "rivals", multiple=True, metavar="MODULE:NAME", help="A loss (scores, target) to measure as well.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a figure of time against classes.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of a table.")
def kernels(
    classes: tuple[int, ...],
    names: tuple[str, ...],
    noise: str,
    dtype: str,
    rivals: tuple[str, ...],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Print what forward and backward of the losses cost beside cross-entropy, on flat and on peaked scores.

    The losses take turns on the same tensors; times are medians (20 % to 80 %) in milliseconds, memory is the peak in
    multiples of the scores', shown from a million scores on. Takes some seconds a batch; without --classes and --loss, further
    batches show how time grows with rows. A loss that takes more than a second is run once.
    """
    import torch

    from lossmith.bench import speed_argmax as study
    from lossmith.bench import subjects

    check_noise(noise)
    if classes and min(classes) < 2:
        raise InputError(f"--classes: expected at least 2, got {min(classes)}")
    chosen = subjects.chosen(names)
    if plot:
        check_paths([plot], "--plot")
        study.check_plot(plot)
    others = {path: study.rival_of(path) for path in rivals}
    batches, kind = study.shapes(classes, chosen), getattr(torch, dtype)
    with progress("kernels", 2 * len(batches)) as show, warnings.catch_warnings():
        warnings.simplefilter("ignore", PerformanceWarning)  # the table says what ran
        results = list(study.measure(batches, chosen, noise, kind, others, show))
    if plot:
        study.plot(results, plot)
    if as_json:
        print(json.dumps(study.as_json(results), indent=2))
        return
    print_table(study.title(noise, kind), *study.table(results))
    if plot:
        print(f"figure: {plot}")


@bench.command(short_help="Time and memory of the last layer and its loss in one.")
@click.option("--rows", default=4096, show_default=True, help="Samples of the batch.")
@click.option("--hidden", default=512, show_default=True, help="Inputs of the layer.")
@click.option("--classes", default=50_000, show_default=True, help="Outputs of the layer.")
@click.option("--noise", default="normal", show_default=True, metavar="NAME", help="The loss's noise.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of a table.")
def linear(rows: int, hidden: int, classes: int, noise: str, as_json: bool) -> None:
    """Print what a linear layer and its loss cost in one and apart, beside torch's cross-entropy in one and apart.

    Memory is the most that is held at once beyond what was held before, gradients included. Takes some minutes.
    """
    from lossmith.bench import speed_linear as study

    check_noise(noise)
    for name, value, least in (("rows", rows, 1), ("hidden", hidden, 1), ("classes", classes, 2)):
        if value < least:
            raise InputError(f"--{name}: expected at least {least}, got {value}")
    with progress("linear", 5) as show:
        costs = study.measure(rows, hidden, classes, noise, show)
    if as_json:
        print(json.dumps(study.as_json(costs), indent=2))
    else:
        print_table(study.title(rows, hidden, classes), *study.table(costs))


@bench.command(short_help="A step of transformers' Trainer, with its own loss and with ours.")
@click.option("--classes", type=int, default=32_000, show_default=True, metavar="C", help="Entries of the vocabulary.")
@click.option("--noise", default="gumbel", show_default=True, metavar="NAME", help="The loss's noise.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of a table.")
def trainer(classes: int, noise: str, as_json: bool) -> None:
    """Print what a step of a small language model costs by Trainer's own loss, by TrainerLoss, and with the last layer fused.

    Memory is the most that a step holds at once beyond what was held before, gradients included. Takes a minute.
    """
    check_noise(noise)
    if classes < 2:
        raise InputError(f"--classes: expected at least 2, got {classes}")
    if not find_spec("transformers") or not find_spec("accelerate"):
        raise InputError("bench trainer: needs transformers and accelerate; pip install 'lossmith[transformers]'")
    from lossmith.bench import speed_linear, speed_trainer

    with progress("trainer", 4) as show:
        costs = speed_trainer.measure(classes, noise, show)
    if as_json:
        print(json.dumps(speed_linear.as_json(costs), indent=2))
    else:
        print_table(speed_trainer.title(classes), *speed_linear.table(costs))


@bench.command(short_help="A training of XGBoost and LightGBM, with their own objectives and with ours.")
@click.option("--rows", type=int, default=100_000, show_default=True, metavar="N", help="Rows of the made table.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of a table.")
def boosting(rows: int, as_json: bool) -> None:
    """Print what a training costs with each metric as its objective, beside each library's own log loss and rankings.

    They take turns; seconds are medians, and multiples those of log loss. Takes some minutes.
    """
    if rows < 100:
        raise InputError(f"--rows: expected at least 100, got {rows}")
    if not find_spec("xgboost") and not find_spec("lightgbm"):
        raise InputError("bench boosting: needs xgboost or lightgbm; pip install 'lossmith[boosting]'")
    from lossmith.bench import speed_boosting as study

    with progress("boosting", len(study.LIBRARIES)) as show:
        found = study.measure(rows, show)
    if as_json:
        print(json.dumps(study.as_json(found), indent=2))
    else:
        print_table(study.title(rows), *study.table(found))


@bench.command(short_help="Time of the expected AUC beside a sort's.")
@click.option("--scores", "sizes", type=int, multiple=True, metavar="N", help="How many.  [default: 10000, 100000, 1000000]")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of a table.")
def auc(sizes: tuple[int, ...], as_json: bool) -> None:
    """Print what forward and backward of expected_auc cost with each noise, beside torch.sort of the same scores.

    They take turns; times are medians (20 % to 80 %) in milliseconds. Takes half a minute.
    """
    from lossmith.bench import speed_auc as study

    counts = sizes or study.SIZES
    if min(counts) < 2:
        raise InputError(f"--scores: expected at least 2, got {min(counts)}")
    with progress("auc", 2 * len(counts)) as show:
        results = list(study.measure(tuple(counts), show))
    if as_json:
        print(json.dumps(study.as_json(results), indent=2))
    else:
        print_table(study.title(), *study.table(results))


@bench.command(short_help="Time of MetricClassifierCV beside logistic regression's.")
@click.option("--large", type=int, metavar="ROWS", help="Time and memory of a fit to so many made rows of 20 features instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of tables.")
def fit(large: int | None, as_json: bool) -> None:
    """Print what a fit costs beside LogisticRegressionCV with as many folds and penalties. Takes some minutes.

    What it gains is the study `lossmith reproduce tabular`.
    """
    from lossmith.bench import fit as study

    if large is not None:
        if large < 100:
            raise InputError(f"--large: expected at least 100 rows, got {large}")
        one = study.large_fit(large)
        if as_json:
            print(json.dumps(one._asdict()))
        else:
            print_table("a fit to made rows", *study.large_table(one))
            print(one.reason)
        return
    with progress("fit", len(study.SHAPES)) as show:
        results = list(study.costs(show))
    if as_json:
        print(json.dumps([{"data": c.data, "ours": c.ours._asdict(), "logistic": c.logistic._asdict()} for c in results]))
    else:
        print_table("fits with ten folds and ten penalties", *study.cost_table(results))
