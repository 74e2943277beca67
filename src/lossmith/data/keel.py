"""Tables of the KEEL collection, out of the fetched sets ``keel`` and ``keel-imbalanced``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from lossmith.data import public, tables
from lossmith.errors import InputError, near

__all__ = ["SETS", "TARGET", "names", "read"]

SETS = ("keel", "keel-imbalanced")
TARGET = "class"
_MISSING = ("?", "<null>", "")


def names(set_name: str) -> list[str]:
    """The tables of a fetched set, in order.

    Raises:
        InputError: the set is none of ``SETS``, or it was not fetched.
    """
    return sorted(path.stem for path in _folder(set_name).glob("*.dat"))


def read(set_name: str, table: str) -> pd.DataFrame:
    """Read a table of a fetched set: the columns ``x1`` to ``xd``, and ``class`` last, as text.

    A column is of float64 if every value is a number, otherwise of text. Missing values are NaN. The files have no header, so
    the names of their columns are not known.

    Raises:
        InputError: the set was not fetched, there is no such table, or its file is damaged.
    """
    folder, known = _folder(set_name), names(set_name)
    if table not in known:
        raise InputError(
            f"{tables.one_line(set_name)}/{tables.one_line(table)}: there is no such table; {tables.hint(table, known)}"
        )
    rows = _rows(folder / f"{table}.dat", f"{set_name}/{table}")
    width = len(rows[0])
    columns: dict[str, pd.Series[Any]] = {}
    for i, cells in enumerate(zip(*rows, strict=True), 1):
        column: pd.Series[Any] = pd.Series([math.nan if cell in _MISSING else cell for cell in cells], dtype=object)
        columns[TARGET if i == width else f"x{i}"] = column if i == width else _typed(column)
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


def _folder(set_name: str) -> Path:
    if set_name not in SETS:
        raise InputError(f"{tables.one_line(set_name)}: there is no such set of tables; {near(set_name, SETS)}")
    return public.need(set_name)


def _rows(path: Path, where: str) -> list[list[str]]:
    """The cells of the file, without the blanks around them."""
    lines = tables.decode(tables.read_bytes(path), where).splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise InputError(
                f"{where}: expected {width} fields in every row, got {len(row)} in row {number}; "
                f"delete {tables.one_line(path.parent)} and fetch the set again"
            )
    return rows


def _typed(column: pd.Series[Any]) -> pd.Series[Any]:
    """The column as numbers if every value is one, otherwise as it is."""
    try:
        return column.map(tables.number, na_action="ignore").astype("float64")
    except ValueError:
        return column
