"""Tables to classify, embedded, fetched or from a file: raw columns, class codes and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lossmith.data import attributes, builtin, keel, openml, public, tables
from lossmith.errors import InputError

__all__ = ["BUILTIN", "Dataset", "load", "load_frame"]

BUILTIN = builtin.NAMES

_Reader = Callable[[bytes, str, str, "str | None"], "tuple[pd.DataFrame, str | None]"]
_READERS: dict[str, _Reader] = {
    ".csv": tables.separated,
    ".tsv": tables.separated,
    ".parquet": tables.parquet,
    ".pq": tables.parquet,
    ".arff": attributes.read,
    ".dat": attributes.read,
}
_CONTINUOUS = 20  # more different values than this, and a target that is not integer is no set of classes


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification task as it came: columns of any type, missing values in place, nothing encoded or scaled.

    ``features`` has n rows; ``target`` is int64 of shape (n,), where ``target[i]`` is the index of row i's label in
    ``classes``, which is sorted (labels that are all numbers as numbers) unless ``with_positive`` was called. ``name`` is that
    of the built-in set or of the public table, or the file's stem. ``fingerprint`` is 16 hexadecimal digits of a SHA-256 over
    column names, values and target: equal content has equal fingerprints, in every process and on every machine.
    """

    name: str
    features: pd.DataFrame
    target: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    target_name: str
    fingerprint: str

    def with_positive(self, label: str) -> Dataset:
        """The same with ``label``, one of two classes, as the last.

        Raises:
            InputError: it is no class, or there are more than two.
        """
        if label not in self.classes or len(self.classes) != 2:
            raise InputError(
                f"--positive: expected one of two classes, got {label!r}; the classes are {', '.join(self.classes)}"
            )
        if label == self.classes[1]:
            return self
        return replace(self, target=1 - self.target, classes=self.classes[::-1])


def load(source: str, target: str | None = None) -> Dataset:
    """Load a built-in set (a name in ``BUILTIN``), a public table or a .csv, .tsv, .parquet, .pq, .arff or .dat (KEEL) file.

    A public table is ``keel/NAME`` or ``keel-imbalanced/NAME``, of a set that ``lossmith data fetch`` has fetched, or
    ``openml/NAME`` or ``openml/NUMBER``, which is fetched at once.

    ``target`` names the column of classes. Without it, a built-in set and a public table take their own, KEEL files their only
    output and ARFF the attribute called ``class``; the other files need it. Anything that cannot be used raises ``InputError``.

    >>> data = load("iris")
    >>> data.features.shape, data.classes
    ((150, 4), ('setosa', 'versicolor', 'virginica'))
    """
    frame, default, where, name = _frame(source, target)
    if frame.empty:
        raise InputError(f"{where}: expected rows of data, but there is only a header; add rows or export it again")
    target_name = _target_name(target, default, list(frame.columns), where)
    features = frame.drop(columns=target_name)
    if features.columns.empty:
        raise InputError(
            f"{where}: expected feature columns beside the target {target_name!r}, but it is the only column; "
            "add features, or check the separator"
        )
    _check_finite(frame, where)
    codes, classes = _encode(frame[target_name], f"{where}: the target column {target_name!r}")
    fingerprint = _fingerprint(features, target_name, codes, classes)
    return Dataset(name, features, codes, classes, target_name, fingerprint)


def load_frame(source: str) -> pd.DataFrame:
    """Every column of what ``load`` loads, for data that need no target.

    >>> load_frame("iris").shape
    (150, 5)
    """
    frame, _, where, _ = _frame(source, None)
    if frame.empty:
        raise InputError(f"{where}: expected rows of data, but there is only a header; add rows or export it again")
    _check_finite(frame, where)
    return frame


def _frame(source: str, target: str | None) -> tuple[pd.DataFrame, str | None, str, str]:
    """The columns, the target that the file itself names, where they come from, for messages, and the set's name."""
    if source in BUILTIN:
        return builtin.read(source), "target", source, source
    if source in public.SETS:
        raise _whole(source)
    collection, _, table = source.partition("/")
    if table and Path(source).suffix.lower() not in _READERS:  # a file in a folder of that name keeps its ending
        where = tables.one_line(source)
        if collection in keel.SETS:
            return keel.read(collection, table), keel.TARGET, where, table
        if collection == "openml":
            frame, default, name = openml.read(table)
            return frame, default, where, name
    path = tables.find(source, _READERS)
    where, ending = tables.one_line(path), path.suffix.lower()
    frame, default = _READERS[ending](tables.read_bytes(path), where, ending, target)
    return frame, default, where, path.stem


def _whole(name: str) -> InputError:
    """The error for the name of a public set where a table is expected."""
    if name not in keel.SETS:
        use = public.SETS[name].use
        return InputError(f"{name}: expected a table, but this public set is none; its arrays come from {use}")
    choices = [f"{name}/{table}" for table in keel.names(name)]
    return InputError(f"{name}: is a set of tables, not a table; choose one of {tables.listing(choices)}")


def _target_name(target: str | None, default: str | None, columns: list[str], where: str) -> str:
    name = default if target is None else target
    if name is None:
        raise InputError(
            f"{where}: expected a target, but none was given and the file does not say which column is the class; "
            f"name one of {tables.listing(columns)}"
        )
    if name not in columns:
        raise InputError(f"{where}: there is no target column {name!r}; {tables.hint(name, columns)}")
    return name


def _check_finite(frame: pd.DataFrame, where: str) -> None:
    for name, column in frame.items():
        if not pd.api.types.is_numeric_dtype(column):
            continue
        infinite = np.isinf(column.to_numpy(dtype=float, na_value=np.nan))
        if infinite.any():
            raise InputError(
                f"{where}: expected finite numbers, but the column {name!r} is infinite in data row "
                f"{infinite.argmax() + 1}; correct it, or leave it empty for a missing value"
            )


def _encode(column: pd.Series[Any], what: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return each row's class code, int64 of shape (n,), and the sorted class labels."""
    rows = len(column)
    values = column.astype(object)
    labels = values.map(_label, na_action="ignore")
    missing = (labels.isna() | (labels == "")).to_numpy()
    if missing.any():
        raise InputError(
            f"{what} has no value in {missing.sum()} of {rows} rows, first in data row {missing.argmax() + 1}; "
            "drop these rows or fill in their class"
        )
    different = sorted(set(labels))
    if len(different) == 1:
        raise InputError(
            f"{what} has only one class, {different[0]!r}; expected two or more, so name another column or add rows "
            "of other classes"
        )
    fractional = any(isinstance(value, float) and not value.is_integer() for value in values)
    # Half the rows, but never fewer than two: otherwise a file of a few rows would pass.
    if fractional and len(different) > min(_CONTINUOUS, max(2, rows // 2)):
        raise InputError(
            f"{what} looks continuous: {len(different)} different values in {rows} rows, such as {different[0]}; "
            "expected classes, so bin it into classes or name another column"
        )
    try:
        classes = tuple(sorted(different, key=float))
    except ValueError:
        classes = tuple(different)
    codes = labels.map({label: code for code, label in enumerate(classes)})
    return codes.to_numpy(dtype=np.int64), classes


def _label(value: Any) -> str:
    """Return a target value as text: 1.0 is the class '1', and blanks around text do not count."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()


def _fingerprint(features: pd.DataFrame, target_name: str, codes: npt.NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """Hash the content, not how pandas holds it: its own hashes differ between types of column and versions."""
    digest = hashlib.sha256()
    for name, column in features.items():
        numeric = pd.api.types.is_numeric_dtype(column)
        digest.update(json.dumps([name, numeric, len(column)]).encode())
        if numeric:
            values = column.to_numpy(dtype="<f8", na_value=np.nan) + 0.0  # -0.0 becomes 0.0
            digest.update(np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes())  # one pattern of NaN
        else:
            cells = [None if missing else str(cell) for cell, missing in zip(column, column.isna(), strict=True)]
            digest.update(json.dumps(cells).encode())
    digest.update(json.dumps([target_name, classes]).encode())
    digest.update(codes.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
