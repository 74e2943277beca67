"""Finished rows on disk: one JSON object a line, appended and synced; a kill at any moment loses none of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lossmith.errors import InputError

Row = dict[str, Any]


class Store:
    """The rows file of an output folder. Rows of other settings may stand in it too; they are left alone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.jsonl"

    def rows(self) -> list[Row]:
        """All finished rows. A last line without an end was being written when the process died: it is no row."""
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                text = f"expected one JSON object a line, but line {number} is none; correct it, or move the file away"
                raise InputError(f"{self.path}: {text}")
            rows.append(row)
        return rows

    def append(self, row: Row) -> None:
        """Add one finished row; on return it is on disk."""
        with self.path.open("ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store of a folder, made if need be, for this process alone.

    Raises:
        InputError: the folder cannot be written, or another process is at work in it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        store = Store(folder)
        _drop_unfinished_line(store.path)
    except Timeout:
        raise InputError(f"{folder}: another comparison is writing there; wait for it, or pass another --out") from None
    except OSError as error:
        reason = error.strerror or error
        lock.release()
        raise InputError(f"{error.filename or folder}: cannot write there ({reason}); pass another folder with --out") from None
    try:
        yield store
    finally:
        lock.release()


def _drop_unfinished_line(path: Path) -> None:
    """Cut off what a killed process left after the last line end, so that the next row starts on a line of its own."""
    if not path.exists():
        path.touch()
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
