"""The command ``reproduce``: a study of this project, computed again on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from lossmith.cli.screen import check_paths, print_table, progress
from lossmith.errors import InputError, near

NAMES = ("tabular", "imbalance", "boosting", "vision", "text", "noise", "default")


@click.command(short_help="Compute a study of this project again: rows, page and figure.")
@click.argument("name", metavar="NAME")
@click.option("--size", default="quick", show_default=True, help="quick: minutes, shows that it runs; full: hours, resumable.")
@click.option("--out", metavar="DIR", default="lossmith-results", show_default=True, help="Folder for page, figure and rows.")
@click.option("--jobs", metavar="N", default=-1, show_default=True, help="Rows computed at a time; -1: one a processor.")
def reproduce(name: str, size: str, out: str, jobs: int) -> None:
    """Compute the study NAME: tabular, imbalance, boosting, vision, text, noise or default.

    Finished rows are kept, so an interrupted study goes on, and several processes may share a folder. DIR/NAME.md is the page,
    DIR/NAME-quick.md that of the quick size. Rows of a DIR/NAME.jsonl.xz that is there already are taken as they are.
    """
    from lossmith.experiments.study import SIZES

    for option, value, choices in (("NAME", name, NAMES), ("--size", size, SIZES)):
        if value not in choices:
            raise InputError(f"{option}: there is no {value!r}; {near(value, choices)}")
    if jobs == 0:
        raise InputError("--jobs: expected 1 or more, or -1 for one a processor, got 0")
    folder = Path(out)
    from lossmith.compare.store import SharedStore
    from lossmith.experiments import page
    from lossmith.experiments.run import read_compressed, run, take_in
    from lossmith.experiments.studies import STUDIES

    study = STUDIES[name]
    check_paths(page.files(study, size, folder), "--out", make=True)
    store = SharedStore(folder / name)
    for known in SIZES:
        take_in(study, store, read_compressed(page.files(study, known, folder)[2]))
    lost = _fetch(study.sets)
    with progress(f"reproduce {name}", 1) as show:
        rows, failures = run(study, size, store, jobs, show)
    if not rows:
        raise InputError(f"reproduce {name}: nothing could be computed; {'; '.join((lost + failures)[:1])}")
    written = page.write(study, size, rows, folder, lost + failures)
    verdicts = [(prediction.text, prediction.outcome(rows).verdict) for prediction in study.predictions]
    print_table(study.question, ("prediction", "outcome"), verdicts)
    for reason in lost + failures:
        click.echo(f"missing: {reason}")
    click.echo("written: " + ", ".join(map(str, written)))


def _fetch(names: tuple[str, ...]) -> list[str]:
    """Fetch the public sets that are not here; why one cannot be had, a line each."""
    from lossmith.data import public

    lost = []
    for name in names:
        try:
            public.fetch(name)
        except InputError as error:
            lost.append(str(error))
    return lost
