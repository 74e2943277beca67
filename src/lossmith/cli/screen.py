"""What commands show: a progress bar on standard error, and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lossmith.errors import InputError


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error where that is a terminal; otherwise nothing.

    What it gives is called with what is done, and with the total where that has changed.
    """
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
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


def print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table of text cells below its title, each row in the colour of the verdict in it; in a pipe, as wide as it needs."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    styles = {"better": "green", "worse": "red"}
    for row in rows:
        table.add_row(*map(escape, row), style=next((styles[cell] for cell in row if cell in styles), None))
    console = Console()
    if not console.is_terminal:  # a pipe or a log has no width of its own
        console.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def check_paths(paths: Sequence[Path], option: str, make: bool = False) -> None:
    """Refuse, before any work, files that could not be written at its end. Nothing is left behind but folders made.

    Args:
        paths: files of one folder, which may exist.
        option: the option that chooses them, for the message.
        make: whether to make the folder.

    Raises:
        InputError: one line with the path and the reason.
    """
    folder = paths[0].parent
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror or error}); pass another with {option}") from None
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path}: cannot write there (Is a directory); pass another with {option}")


def check_metric(name: str) -> None:
    """Refuse a name of ``--metric`` that estimators do not know.

    Raises:
        InputError: one line with the names that are near.
    """
    from lossmith.estimators.metrics import named

    try:
        named(name)
    except ValueError as error:
        raise InputError(f"--{error}") from None


def given_costs(path: Path, metric: str, classes: tuple[str, ...]) -> tuple[tuple[float, ...], ...]:
    """The matrix of ``--cost``, in the order of the classes.

    Raises:
        InputError: it is none, or ``--metric`` is given too.
    """
    from lossmith.data.costs import read_costs

    if metric != "accuracy":
        raise InputError("--cost: expected a matrix or --metric, got both; leave one out")
    return read_costs(path, classes)


def reason_of(error: OSError) -> str:
    """One line that says which path an operation failed at, where the system names one, and why."""
    path = error.filename if error.filename2 is None else error.filename2  # of a renaming, the one to be replaced
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return reason if path is None else f"{path}: cannot read or write there ({reason})"
