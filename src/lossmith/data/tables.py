"""Reading files: finding the bytes, telling what they really are, and parsing CSV, TSV and Parquet."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lossmith.data import builtin
from lossmith.errors import InputError, near

_BOM = b"\xef\xbb\xbf"
_MAGIC = (
    (rb"PAR1(?![\s,;])", "a Parquet file; give it the ending .parquet"),  # but 'PAR1,...' may be a CSV header
    (rb"PK\x03\x04", "a ZIP archive or an Excel workbook; unpack it, or save its sheet as .csv"),
    (rb"\x1f\x8b", "compressed with gzip; unpack it first, for example with gunzip"),
)
_HEAD = 1 << 16  # characters that are enough to tell what a text file is
_LISTED = 12  # how many column names a message lists
# pandas before 3.1 rounds wrongly in the last digit unless told; later it does not, and warns of the option.
_EXACT: dict[str, Any] = {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


def one_line(text: object) -> str:
    """Return the text of a path or of another library's error, fit for a message of one line."""
    return " ".join(str(text).splitlines())


def listing(names: Sequence[str]) -> str:
    """Return the names quoted, cut after the first dozen."""
    more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


def hint(name: str, choices: Sequence[str]) -> str:
    """Return ``errors.near`` for a list that may be long: near names in any letter case, or the first dozen."""
    close = _close(name, choices)
    return near(name, close) if close else f"choose from {listing(choices)}"


def _close(name: str, choices: Sequence[str]) -> list[str]:
    same = [choice for choice in choices if choice.lower() == name.lower()]
    return same or difflib.get_close_matches(name, choices)


def find(source: str, endings: Collection[str]) -> Path:
    """Return the path of an existing file with one of these endings (any letter case), or raise ``InputError``."""
    path, where, known = Path(source), one_line(source), ", ".join(endings)
    try:
        if path.is_dir():
            raise InputError(f"{where}: is a folder; give a file in it that ends in one of {known}")
        found = path.exists()
    except OSError as error:
        raise _unreadable(where, error) from None
    if not found:
        names: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in endings)
        close = [str(path.with_name(name)) for name in _close(path.name, names)]
        close += _close(source, builtin.NAMES)
        remedy = near(source, close) if close else f"give the path of a file that ends in one of {known}"
        raise InputError(f"{where}: no such file, nor one of the built-in sets {listing(builtin.NAMES)}; {remedy}")
    if path.suffix.lower() not in endings:
        came = f"the ending {path.suffix!r} is unknown" if path.suffix else "the file name has no ending"
        raise InputError(f"{where}: {came}; convert or rename the file so that it ends in one of {known}")
    return path


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file; one that cannot be read or holds nothing but blanks raises ``InputError``."""
    where = one_line(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(where, error) from None
    if not data.removeprefix(_BOM).strip():
        raise InputError(f"{where}: the file is empty; expected a header and rows, so write or export it again")
    return data


def _unreadable(where: str, error: OSError) -> InputError:
    return InputError(f"{where}: the file cannot be read ({error.strerror}); check its path and permissions")


_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # byte-order marks


def decode(data: bytes, where: str) -> str:
    """Decode a text file (UTF-8, with or without a byte order mark); binary data and HTML raise ``InputError``."""
    for magic, what in _MAGIC:
        if re.match(magic, data):
            raise InputError(f"{where}: expected text, but the content is {what}")
    try:
        decoded = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected UTF-8 text, but the byte {data[error.start]:#04x} at offset {error.start} is not; "
            f"save the file as UTF-8, for example with iconv -f {'UTF-16' if data[:2] in _UTF16 else 'LATIN1'} -t UTF-8"
        ) from None
    if "\0" in decoded:
        raise InputError(
            f"{where}: expected text, but there is a NUL byte at offset {data.index(0)}; "
            "the file is binary or damaged, so export it as UTF-8 text"
        )
    decoded = decoded.removeprefix("\ufeff")
    if decoded.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
        raise InputError(f"{where}: expected a table, but the content is an HTML page; download the data file itself")
    return decoded


def check_names(names: Sequence[str], where: str) -> None:
    """Raise ``InputError`` if a column name comes more than once."""
    double = [name for name, times in Counter(names).items() if times > 1]
    if double:
        raise InputError(
            f"{where}: column names must differ, but {listing(double)} came more than once; rename the columns, "
            "or add a header if the file has none"
        )


def width_error(where: str, line: int, came: int, expected: int) -> InputError:
    """Return the error for a row with too many or too few fields."""
    amount = "many" if came > expected else "few"
    return InputError(
        f"{where}: line {line} has too {amount} fields: {came}, but the header names {expected} columns; "
        "correct that line; a value that holds a separator must be quoted, and every quote closed"
    )


def separated(data: bytes, where: str, ending: str, target: str | None) -> tuple[pd.DataFrame, None]:
    """Parse CSV (separated by commas or semicolons) or TSV; the second value says that there is no default target.

    Missing values are those of ``pandas.read_csv`` and ``?``. In the target column only an empty field, ``?``,
    ``NaN`` and ``nan`` are, because a class may well be called ``NA`` or ``None``.
    """
    content = decode(data, where)
    separator = _separator(content, where, ending)
    names = _header(content, separator, where)
    check_names(names, where)

    def parse(**options: Any) -> pd.DataFrame:
        # low_memory would guess the type of a column per block of rows, and so mix types within one.
        options |= {"sep": separator, "header": 0, "names": names, "skipinitialspace": True, "low_memory": False}
        table: pd.DataFrame = pd.read_csv(io.StringIO(content), **options, **_EXACT)
        return table

    try:
        frame = parse(na_values=["?"])
        if target in names:
            labels = parse(usecols=[target], dtype=str, keep_default_na=False, na_values=["", "?", "NaN", "nan"])
            frame[target] = _numbers(labels[target].str.strip(), decimal=".")
    except pd.errors.ParserError as error:
        raise InputError(f"{where}: cannot be parsed ({one_line(error)}); look for a quote left open near that row") from None
    if separator == ";":  # the countries that separate by semicolons write 1,5 for 1.5
        for name in names:
            frame[name] = _numbers(frame[name], decimal=",")
    return frame, None


def _separator(content: str, where: str, ending: str) -> str:
    lines = [line for line in content[:_HEAD].splitlines() if line.strip()] or [""]
    first_word = next((line.split()[0].lower() for line in lines if not line.lstrip().startswith("%")), "")
    if first_word == "@relation":
        raise InputError(f"{where}: expected {ending[1:].upper()}, but the content is ARFF; give it the ending .arff")
    bare = re.sub(r'"[^"]*("|$)', "", lines[0])
    present = [separator for separator in _SEPARATORS if separator in bare]
    fits, fitting_ending = (["\t"], ".csv") if ending == ".tsv" else ([",", ";"], ".tsv")
    found = next((separator for separator in fits + present if separator in present), fits[0])
    if found not in fits:
        raise InputError(
            f"{where}: a {ending} file is separated by {' or '.join(_SEPARATORS[fit] + 's' for fit in fits)}, "
            f"but the header is separated by {_SEPARATORS[found]}s; give the file the ending {fitting_ending}"
        )
    return found


def _header(content: str, separator: str, where: str) -> list[str]:
    """Return the column names, after checking that every row is as wide: pandas would pad and shift them silently."""
    names: list[str] = []
    line = 1  # where the row starts: a quoted field may span lines
    csv.field_size_limit(max(csv.field_size_limit(), min(len(content), 2**31 - 1)))  # pandas has no such limit
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=separator, skipinitialspace=True)
    for fields in rows:
        blank = not "".join(fields).strip() and len(fields) <= 1
        if not names and not blank:
            names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(fields)]  # as pandas names it
        elif not blank and len(fields) != len(names):
            raise width_error(where, line, len(fields), len(names))
        line = rows.line_num + 1
    return names


def _numbers(column: pd.Series[Any], decimal: str) -> pd.Series[Any]:
    """Return a text column as numbers if every value is one, otherwise as it is."""
    if pd.api.types.infer_dtype(column, skipna=True) != "string":
        return column
    texts = column.str.replace(decimal, ".", regex=False)
    try:
        numbers: pd.Series[Any] = pd.to_numeric(texts)
        if pd.api.types.is_float_dtype(numbers):
            numbers = texts.map(number, na_action="ignore").astype("float64")
        return numbers
    except ValueError:
        return column


def number(text: str) -> float:
    """Return ``float(text)``, which rounds right whatever the version of pandas, but without Python's ``1_000``."""
    return float(text.replace("_", "?"))


def parquet(data: bytes, where: str, ending: str, target: str | None) -> tuple[pd.DataFrame, None]:
    """Parse Parquet; the second value says that there is no default target. A stored pandas index is left out."""
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()  # read_table fails on double names
        check_names(table.column_names, where)
        for i, field in enumerate(table.schema):
            if pa.types.is_nested(field.type) or "binary" in str(field.type):
                raise InputError(
                    f"{where}: expected numbers, text, dates or categories, but the column {field.name!r} holds "
                    f"{one_line(field.type)}; flatten or drop it"
                )
            if pa.types.is_decimal(field.type):  # pandas would hold Decimal objects, which no model takes
                table = table.set_column(i, field.name, table.column(i).cast(pa.float64()))
        frame: pd.DataFrame = table.to_pandas(date_as_object=False)
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in many ways, down to KeyError and JSONDecodeError
        raise InputError(
            f"{where}: expected a Parquet file, but it is damaged or something else ({one_line(error)}); "
            "write it again, or give it the ending of what it is"
        ) from None
    return frame.set_axis([str(name) for name in frame.columns], axis=1).reset_index(drop=True), None
