"""ARFF (Weka) and KEEL files: a header of ``@attribute`` lines, then ``@data`` and rows separated by commas."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lossmith.data import tables
from lossmith.errors import InputError

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ATTRIBUTE = re.compile(rf"@attribute\s+({_QUOTED}|[^\s{{'\"][^\s{{]*)\s*(.*)", re.IGNORECASE)
_FIELD = re.compile(rf"(?:^|,)\s*({_QUOTED}|[^,]*?)\s*(?=,|$)")
_MISSING = ("?", "<null>")
_NUMERIC = ("numeric", "real", "integer")
_TEXT = ("string", "date")  # a date stays text: its format is Java's, and vectorisers recognise dates
_INPUTS, _OUTPUTS = ("@input", "@inputs"), ("@output", "@outputs")
_KEYWORDS = ("@relation", "@attribute", *_INPUTS, *_OUTPUTS, "@data")

_Lines = Iterator[tuple[int, str]]


@dataclass
class _Header:
    """What the lines above ``@data`` declare."""

    kinds: dict[str, str | list[str]] = field(default_factory=dict)  # a type's name, or a nominal's values
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def read(data: bytes, where: str, ending: str, target: str | None) -> tuple[pd.DataFrame, str | None]:
    """Parse an ARFF or KEEL file and find its default target: the only output, or the attribute called ``class``.

    Numeric attributes become float64, nominal ones categories of text, strings and dates text. Attributes that are
    neither inputs nor outputs (nor ``target``) are left out if the header lists inputs.
    """
    file = io.StringIO(tables.decode(data, where), newline=None)
    lines = ((number, line.strip()) for number, line in enumerate(file, 1))
    lines = ((number, line) for number, line in lines if line and not line.startswith("%"))
    header = _header(lines, where, "a KEEL" if ending == ".dat" else "an ARFF")
    frame = _body(lines, header, where)
    if header.inputs:
        used = {*header.inputs, *header.outputs, target}
        frame = frame.drop(columns=[name for name in frame.columns if name not in used])
    candidates = header.outputs
    if ending == ".arff":
        candidates = candidates or [name for name in frame.columns if name.lower() == "class"]
    return frame, candidates[0] if len(candidates) == 1 else None


def _header(lines: _Lines, where: str, kind: str) -> _Header:
    header, names = _Header(), []
    for number, line in lines:
        keyword, rest = [*line.split(maxsplit=1), ""][:2]
        keyword = keyword.lower()
        if keyword == "@data":
            break
        if keyword == "@attribute":
            name, attribute = _attribute(line, f"{where}: line {number}")
            names.append(name)
            header.kinds[name] = attribute
        elif keyword in _INPUTS:
            header.inputs += [name for name in _split(rest) if name]
        elif keyword in _OUTPUTS:
            header.outputs += [name for name in _split(rest) if name]
        elif not keyword.startswith("@"):
            raise InputError(
                f"{where}: line {number}: expected {kind} header (@attribute lines, then @data), but came "
                f"{line[:40]!r}; write that header, or give the file the ending of what it is"
            )
        elif keyword != "@relation":
            raise InputError(
                f"{where}: line {number}: {keyword[:40]!r} is no keyword of {kind} header; {tables.hint(keyword, _KEYWORDS)}"
            )
    else:
        raise InputError(f"{where}: expected {kind} file, but there is no @data line; add it between header and rows")
    if not names:
        raise InputError(f"{where}: expected {kind} file, but no @attribute line comes before @data; add the header")
    tables.check_names(names, where)
    for name in header.inputs + header.outputs:
        if name not in header.kinds:
            raise InputError(
                f"{where}: {name!r} is listed as an input or output, but no @attribute line declares it; "
                f"{tables.hint(name, names)}"
            )
    return header


def _attribute(line: str, where: str) -> tuple[str, str | list[str]]:
    """Return the name and type of an ``@attribute`` line; KEEL's range of a number is not needed."""
    match = _ATTRIBUTE.match(line)
    if match is None:
        raise InputError(f"{where}: expected '@attribute name type', but came {line[:60]!r}; correct that line")
    name, declared = _plain(match[1]), match[2]
    if declared.startswith("{") and "}" in declared:
        values = _FIELD.findall(declared[1 : declared.rindex("}")].strip())
        return name, list(dict.fromkeys(_plain(value) for value in values))
    kind = re.split(r"[\s\[%]", declared, maxsplit=1)[0].lower()
    if kind in _NUMERIC + _TEXT:
        return name, kind
    raise InputError(
        f"{where}: expected {', '.join(_NUMERIC + _TEXT)} or {{values}} as the type of {name!r}, "
        f"but came {declared[:40]!r}; correct or drop that attribute"
    )


def _plain(text: str) -> str:
    """Take the quotes off, and the backslashes within them."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def _split(text: str) -> list[str | None]:
    """Split at the commas outside quotes; a missing value is ``None``, but a quoted '?' is text."""
    return [None if value in _MISSING else _plain(value) for value in _FIELD.findall(text)]


def _body(lines: _Lines, header: _Header, where: str) -> pd.DataFrame:
    rows: list[list[str | None]] = []
    numbers: list[int] = []
    for number, line in lines:
        if line.startswith("{"):
            raise InputError(
                f"{where}: line {number}: sparse ARFF rows, such as {{0 1, 3 2}}, are not supported; convert the file "
                "to dense rows, for example with Weka's SparseToNonSparse filter"
            )
        row = _split(line)
        if len(row) != len(header.kinds):
            raise tables.width_error(where, number, len(row), len(header.kinds))
        rows.append(row)
        numbers.append(number)
    cells = zip(*rows, strict=True) if rows else [()] * len(header.kinds)
    columns = {
        name: _column(name, kind, column, numbers, where)
        for (name, kind), column in zip(header.kinds.items(), cells, strict=True)
    }
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


def _column(name: str, kind: str | list[str], cells: tuple[str | None, ...], numbers: list[int], where: str) -> pd.Series[Any]:
    """Return one column in its type; ``numbers`` are the rows' line numbers, for the error."""
    if isinstance(kind, list):
        declared = {None, *kind}
        for cell, number in zip(cells, numbers, strict=True):
            if cell not in declared:
                raise InputError(
                    f"{where}: line {number}: {cell!r} is not a declared value of {name!r}; {tables.hint(str(cell), kind)}"
                )
        nominal: pd.Series[Any] = pd.Series(pd.Categorical(cells, categories=kind))
        return nominal
    if kind in _TEXT:
        text: pd.Series[Any] = pd.Series(cells, dtype=object)
        return text
    values = []
    for cell, number in zip(cells, numbers, strict=True):
        try:
            values.append(math.nan if cell is None else tables.number(cell))
        except ValueError:
            raise InputError(
                f"{where}: line {number}: expected a number for {name!r}, but came {cell!r}; "
                "correct it, or write ? for a missing value"
            ) from None
    return pd.Series(values, dtype="float64")
