"""A matrix of costs from a file: what each decision costs, for each true class."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lossmith.data import tables
from lossmith.errors import InputError


def read_costs(path: Path, classes: tuple[str, ...]) -> tuple[tuple[float, ...], ...]:
    """The costs (C, C) in the order of ``classes``: row y those of each decision where y is true.

    The file is CSV: a header with the labels of the decisions, and in each row the label of the true class and its costs.

    Raises:
        InputError: no such file, other labels than the classes, or what is no finite number.
    """
    where = tables.one_line(path)
    header = ",".join(classes[:4]) + (",…" if len(classes) > 4 else "")
    example = f"a header ',{header}' (decisions) and a row for each of these labels (true classes) that begins with it"
    wrong = f"--cost: {where}: expected {example}"
    try:
        frame = pd.read_csv(path, index_col=0, dtype=str, skipinitialspace=True)
    except OSError as error:
        raise InputError(f"--cost: {where}: cannot read it ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"{wrong}, got something else ({' '.join(str(error).split())[:80]})") from None
    for labels, what in ((frame.columns, "header"), (frame.index, "first column")):
        found = [str(label).strip() for label in labels]
        if sorted(found) != sorted(classes):
            raise InputError(f"{wrong}, got {', '.join(found[:6]) or 'nothing'} in the {what}")
    frame.columns, frame.index = frame.columns.map(str.strip), frame.index.map(lambda label: str(label).strip())
    numbers = frame.apply(pd.to_numeric, errors="coerce").loc[list(classes), list(classes)]
    bad = ~numbers.abs().lt(float("inf"))
    if bad.to_numpy().any():
        row, column = bad.stack().idxmax()
        got = frame.loc[row, column]
        raise InputError(f"--cost: {where}: expected a finite number for {column!r} where {row!r} is true, got {got!r}")
    return tuple(tuple(float(value) for value in row) for row in numbers.to_numpy())
