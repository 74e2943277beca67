"""The command ``compare``: does another loss beat cross-entropy on your data?"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from lossmith.catalogue import CANDIDATES
from lossmith.cli.screen import print_table, progress, reason_of
from lossmith.errors import InputError

LOSSES = list(CANDIDATES)


def _split_names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not (names := tuple(value.replace(",", " ").split())):
        raise InputError(f"--losses: expected at least one name; choose from {', '.join(LOSSES)}")
    return names


@click.command(short_help="Does another loss beat cross-entropy on your data?")
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
    from lossmith.compare import page, report, statistics
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
            with progress(f"{plan.data.name}: {plan.metric}", len(list(plan.cells()))) as show:
                rows = run(plan, store, show)
            summaries = statistics.summarize(rows)
            page.write(plan, rows, summaries, command, path)
        except KeyboardInterrupt:
            text = f"stopped; finished rows are kept in {store.path}, and the same command goes on from there"
            raise click.Abort(text) from None
        except OSError as error:
            raise InputError(f"{reason_of(error)}; finished rows are kept in {store.path}") from None
    if as_json:
        print(json.dumps(report.as_json(plan, summaries, path), indent=2))
        return
    title = f"{plan.data.name}: {plan.metric} in %, {plan.folds} folds × {plan.repeats}, {plan.model} model"
    print_table(title, report.COLUMNS, [report.cells(s) for s in summaries])
    print(report.headline(plan, summaries))
    print(f"report: {path}")
