"""The command ``compare``: what is the best way to your metric on your data?"""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from lossmith.catalogue import CANDIDATES, METRIC_LOSS
from lossmith.cli.screen import given_costs, print_table, progress, reason_of
from lossmith.errors import InputError

LOSSES = (*CANDIDATES, METRIC_LOSS)
METHODS = ("likelihood", "decision-rule", "class-weights", "metric-path", "boosting")


def _split_names(_context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    known = LOSSES if parameter.name == "losses" else METHODS
    if not (names := tuple(value.replace(",", " ").split())):
        raise InputError(f"--{parameter.name}: expected at least one name; choose from {', '.join(known)}")
    return tuple(known) if names == ("all",) else names


@click.command(short_help="What is the best way to your metric on your data?")
@click.argument("data", metavar="[DATA]", nargs=-1)
@click.option("--target", metavar="COLUMN", help="Column of the classes. Embedded sets, KEEL and most ARFF files know it.")
@click.option(
    "--metric", default="accuracy", show_default=True, metavar="NAME", help="accuracy, f1, f2, f1_macro, roc_auc, log_loss, …"
)
@click.option("--positive", metavar="LABEL", help="The class of f1, jaccard and rankings.  [default: the last label]")
@click.option("--cost", metavar="FILE", type=click.Path(path_type=Path), help="A CSV matrix of costs instead of a metric.")
@click.option("--judge", metavar="SCORER", help="Report this scorer of scikit-learn instead of the metric.")
@click.option("--methods", metavar="A,B,…", callback=_split_names, help=f"Any of {', '.join(METHODS)}.  [default: all]")
@click.option(
    "--losses",
    metavar="A,B,…",
    callback=_split_names,
    help=f"Losses to train by SGD as well: all, or any of {', '.join(LOSSES)}.",
)
@click.option("--model", default="linear", show_default=True, help="Of the losses: linear, or mlp, one hidden layer of 64.")
@click.option("--folds", type=int, default=5, show_default=True, help="Folds of the stratified cross-validation.")
@click.option("--repeats", type=int, default=1, show_default=True, help="How often the rows are shuffled and split anew.")
@click.option("--trials", type=int, default=4, show_default=True, help="Settings tried for each loss and fold; 1: defaults.")
@click.option("--epochs", type=int, help="Passes of a loss over the rows.  [default: 40, or enough for 400 steps]")
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes every random choice.")
@click.option("--jobs", type=int, default=-1, show_default=True, help="Fits at the same time; -1: one a core.")
@click.option("--backend", metavar="NAME", help="dask or ray: fit on a cluster that is there.")
@click.option("--cluster", metavar="ADDRESS", help="Of the cluster's scheduler.  [default: as the backend finds it]")
@click.option("--out", metavar="DIR", help="Folder for rows and report.  [default: lossmith-DATA]")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON instead of a table.")
def compare(
    data: tuple[str, ...],
    target: str | None,
    positive: str | None,
    cost: Path | None,
    out: str | None,
    as_json: bool,
    methods: tuple[str, ...] | None,
    losses: tuple[str, ...] | None,
    jobs: int,
    backend: str | None,
    cluster: str | None,
    **options: Any,
) -> None:
    """Compare ways to a metric on DATA: logistic regression, its decision rule, class weights, training for the metric itself,
    and boosted trees as a ceiling.

    DATA is an embedded set (breast-cancer, wine, iris, digits, balance-scale, monks-1 to monks-3), a table of a public set
    (keel/NAME, openml/NAME: see lossmith data), or a file: .csv, .tsv, .parquet, .arff or KEEL's .dat.
    Columns may be numbers, text, categories or dates, with missing values. Finished rows are kept in DIR/rows.jsonl: an
    interrupted comparison goes on where it was when the same command is given again.
    """
    from lossmith.compare import page, report, statistics
    from lossmith.compare.cluster import cluster_of
    from lossmith.compare.metrics import unit_of
    from lossmith.compare.plan import Plan
    from lossmith.compare.run import run
    from lossmith.compare.store import open_store
    from lossmith.data import load

    listed = {name for given, names in ((losses, LOSSES), (methods, METHODS)) if given is not None for name in names}
    source, *extra = [name for name in data if name not in listed] or ["breast-cancer"]
    if extra:
        raise click.UsageError(f"expected one DATA, got also {', '.join(extra)}")
    for option, known, given in (("losses", LOSSES, losses), ("methods", METHODS, methods)):
        if given is not None:  # and those given after a blank instead of a comma
            options[option] = (*given, *(name for name in data if name in known))
    if cluster is not None and backend is None:
        raise InputError("--cluster: expected --backend dask or ray with it")
    if jobs == 0:
        raise InputError("--jobs: expected 1 or more, or -1 for one a core, got 0")
    table = load(source, target)
    if positive is not None:
        table = table.with_positive(positive)
    if cost is not None:
        options["cost"] = given_costs(cost, options["metric"], table.classes)
    plan = Plan(table, **options)
    folder = Path(out or f"lossmith-{plan.data.name}")
    path = folder / "report.html"
    command = shlex.join(["lossmith", *sys.argv[1:]])
    with cluster_of(backend, cluster) if backend else nullcontext(), open_store(folder) as store:
        try:
            with progress(f"{plan.data.name}: {plan.reported}", len(list(plan.cells()))) as show:
                rows = run(plan, store, show, jobs)
            summaries = statistics.summarize(rows)
            page.write(plan, rows, summaries, command, path)
        except KeyboardInterrupt:
            text = f"stopped; finished rows are kept in {store.path}, and the same command goes on from there"
            raise click.Abort(text) from None
        except OSError as error:
            raise InputError(f"{reason_of(error)}; finished rows are kept in {store.path}") from None
    found = report.answer(plan, summaries, statistics.ratio_of(rows))
    if as_json:
        print(json.dumps(report.as_json(plan, summaries, found, path), indent=2))
        return
    unit = unit_of(plan.trained, plan.judge)
    title = f"{plan.data.name}: {plan.reported}{' in %' if unit.name else ''}, {plan.folds} folds × {plan.repeats}"
    print_table(title, report.COLUMNS, [report.cells(s, unit) for s in summaries])
    print("\n".join((found.text, *found.more)))
    print(f"report: {path}")
