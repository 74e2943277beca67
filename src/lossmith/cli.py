"""The command line: commands parse, call and print. Imports that take seconds stand inside the commands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lossmith import __version__
from lossmith.errors import InputError

# Named here too, because the help must not wait for the imports that the losses need; a test compares.
LOSSES = ["cross-entropy", "hinge", "sigmoid", "beta-bernoulli", "polynomial", "polyloss", "exact", "probit", "smooth-accuracy"]


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lossmith")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train the metric you report."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run a command. Bad input is one line on standard error and exit code 2; an interrupt is 130."""
    try:
        cli.main(prog_name="lossmith", standalone_mode=False)
    except (InputError, click.UsageError) as error:
        text = error.format_message() if isinstance(error, click.UsageError) else str(error)
        print(f"lossmith: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output has gone
        raise SystemExit(1) from None
    except OSError as error:
        path = error.filename2 or error.filename  # of a renaming, the one to be replaced
        print(f"lossmith: {path}: cannot write there ({error.strerror}); finished rows are kept", file=sys.stderr)
        raise SystemExit(2) from None
    except (click.Abort, KeyboardInterrupt) as error:
        print(f"lossmith: {str(error) or 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None


def _split_names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not (names := tuple(value.replace(",", " ").split())):
        raise InputError(f"--losses: expected at least one name; choose from {', '.join(LOSSES)}")
    return names


@cli.command(short_help="Does another loss beat cross-entropy on your data?")
@click.argument("data", metavar="[DATA]", nargs=-1)
@click.option("--target", metavar="COLUMN", help="Column of the classes. Embedded sets, KEEL and most ARFF files know it.")
@click.option("--metric", default="accuracy", show_default=True, help="accuracy, balanced-accuracy or f1-macro.")
@click.option("--losses", metavar="A,B,…", callback=_split_names, help=f"Any of {', '.join(LOSSES)}.  [default: all]")
@click.option("--model", default="linear", show_default=True, help="linear, or mlp: one hidden layer of 64.")
@click.option("--folds", type=int, default=5, show_default=True, help="Folds of the stratified cross-validation.")
@click.option("--repeats", type=int, default=1, show_default=True, help="How often the rows are shuffled and split anew.")
@click.option("--trials", type=int, default=4, show_default=True, help="Settings tried for each loss and fold; 1: defaults.")
@click.option("--epochs", type=int, help="Passes over the training rows.  [default: 40, or enough for 400 steps]")
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes every random choice.")
@click.option("--out", metavar="DIR", help="Folder for rows and report.  [default: lossmith-DATA]")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of a table.")
def compare(
    data: tuple[str, ...],
    target: str | None,
    out: str | None,
    as_json: bool,
    losses: tuple[str, ...] | None,
    **options: Any,
) -> None:
    """Compare losses on DATA: does another one beat cross-entropy in the metric you report?

    DATA is an embedded set (breast-cancer, wine, iris, digits) or a file: .csv, .tsv, .parquet, .arff or KEEL's .dat.
    Columns may be numbers, text, categories or dates, with missing values. Finished rows are kept in DIR/rows.jsonl: an
    interrupted comparison goes on where it was when the same command is given again.
    """
    from lossmith.compare import report, statistics
    from lossmith.compare.plan import Plan
    from lossmith.compare.run import run
    from lossmith.compare.store import open_store
    from lossmith.data import load

    source, *extra = [name for name in data if losses is None or name not in LOSSES] or ["breast-cancer"]
    if extra:
        raise click.UsageError(f"expected one DATA, got also {', '.join(extra)}")
    if losses is not None:  # and those given after a blank instead of a comma
        options["losses"] = (*losses, *(name for name in data if name in LOSSES))
    plan = Plan(load(source, target), **options)
    folder = Path(out or f"lossmith-{plan.data.name}")
    path = folder / "report.html"
    command = shlex.join(["lossmith", *sys.argv[1:]])
    with open_store(folder) as store:
        try:
            with _progress(f"{plan.data.name}: {plan.metric}", len(list(plan.cells()))) as show:
                rows = run(plan, store, show)
        except KeyboardInterrupt:
            text = f"stopped; finished rows are kept in {store.path}, and the same command goes on from there"
            raise click.Abort(text) from None
        summaries = statistics.summarize(rows)
        report.write(plan, rows, summaries, command, path)
    if as_json:
        print(json.dumps(report.as_json(plan, summaries, path), indent=2))
        return
    title = f"{plan.data.name}: {plan.metric} in %, {plan.folds} folds × {plan.repeats}, {plan.model} model"
    _print_table(title, report.COLUMNS, [report.cells(s) for s in summaries])
    print(report.headline(plan, summaries))
    print(f"report: {path}")


@cli.command(short_help="Where each loss puts the threshold, on points on a line.")
@click.option("--out", metavar="DIR", default="lossmith-toy", show_default=True, help="Folder for toy.png and toy.svg.")
@click.option("--json", "as_json", is_flag=True, help="Print the optima as JSON instead of tables.")
def toy(out: str, as_json: bool) -> None:
    """Show on points on a line where each loss puts the threshold, with its scale fixed and free.

    f(x) = k (x − b) decides by its sign. Three points can be separated, for 0 < b < 0.25; of the five points of the
    second set at most four can be right. Takes about a minute.
    """
    from lossmith.experiments.toy import figure, optima

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("toy.png", "toy.svg"):
            (folder / name).touch()
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); pass another folder with --out") from None
    sets = (optima.THREE, optima.FIVE)
    with _progress("toy", 2 * len(optima.LOSSES)) as show:
        studies: dict[str, list[optima.Case]] = {points.name: [] for points in sets}
        for points in sets:
            for loss in optima.LOSSES:
                studies[points.name].append(optima.study_one(loss, points))
                show(sum(map(len, studies.values())))
    three, five = studies.values()
    critical = {case.loss: optima.critical_scale(case.loss, optima.THREE, edge=0.25) for case in three}
    paths = figure.save(figure.figure(three, five), folder)
    if as_json:
        print(json.dumps(figure.as_json(studies, critical, paths), indent=2))
        return
    for points, cases in zip(sets, (three, five), strict=True):
        signs = ", ".join(f"({x:g}, {'+' if label else '−'})" for x, label in zip(points.x, points.label, strict=True))
        title = f"{points.name}: {signs}; best accuracy {optima.best_accuracy(points):.3f}".replace("(-", "(−")
        rows = [figure.cells(case) for case in cases]
        columns = figure.COLUMNS
        if points is optima.THREE:
            columns = (*columns, "right from k")
            rows = [(*row, figure.number(critical[row[0]], digits=4)) for row in rows]
        _print_table(title, columns, rows)
    print("figure: " + ", ".join(map(str, paths)))


@cli.group(no_args_is_help=True)
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
    with _progress("accuracy", len(groups)) as show:
        results = list(study.measure(groups, show))
    if as_json:
        print(json.dumps(study.as_json(results), indent=2))
    else:
        for title, columns, rows in study.tables(results):
            _print_table(title, columns, rows)
    if not all(result.kept for result in results):
        raise SystemExit(1)


@bench.command(short_help="Time and memory of the loss beside cross-entropy's.")
@click.option("--classes", type=int, multiple=True, metavar="C", help="Class counts.  [default: 2, 10, 100, … 128256]")
@click.option("--noise", default="normal", show_default=True, metavar="NAME", help="The loss's noise.")
@click.option("--rival", "rivals", multiple=True, metavar="MODULE:NAME", help="A loss (scores, target) to measure as well.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a figure of time against classes.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of a table.")
def kernels(classes: tuple[int, ...], noise: str, rivals: tuple[str, ...], plot: Path | None, as_json: bool) -> None:
    """Print what forward and backward of AccuracyLoss cost beside cross-entropy, on flat and on peaked scores.

    The losses take turns on the same tensors; times are medians (20 % to 80 %) in milliseconds, memory is the peak in
    multiples of the scores'. Takes some seconds a batch; without --classes, further batches show how time grows with rows.
    """
    from lossmith import noise as noises
    from lossmith.bench import speed_argmax as study

    try:
        noises.get(noise)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    if classes and min(classes) < 2:
        raise InputError(f"--classes: expected at least 2, got {min(classes)}")
    others = {path: study.rival_of(path) for path in rivals}
    batches = study.shapes(classes)
    with _progress("kernels", 2 * len(batches)) as show:
        results = list(study.measure(batches, noise, others, show))
    if plot:
        study.plot(results, plot)
    if as_json:
        print(json.dumps(study.as_json(results), indent=2))
        return
    _print_table(study.title(), *study.table(results))
    if plot:
        print(f"figure: {plot}")


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
    with _progress("auc", 2 * len(counts)) as show:
        results = list(study.measure(tuple(counts), show))
    if as_json:
        print(json.dumps(study.as_json(results), indent=2))
    else:
        _print_table(study.title(), *study.table(results))


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error where that is a terminal; otherwise nothing."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(escape(title), total=total)
        yield lambda done: bar.update(task, completed=done)


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    styles = {"better": "green", "worse": "red"}
    for row in rows:
        table.add_row(*row, style=next((styles[cell] for cell in row if cell in styles), None))
    console = Console()
    if not console.is_terminal:  # a pipe or a log has no width of its own
        console.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
