"""Finished rows on disk: one JSON object a line, appended and synced; a kill at any moment loses none of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
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
        return parsed_rows(self.path.read_bytes(), self.path)

    def append(self, *rows: Row) -> None:
        """Add finished rows; on return they are on disk."""
        with self.path.open("ab") as file:
            file.write(b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


def parsed_rows(content: bytes, path: Path) -> list[Row]:
    """The rows of JSON lines.

    Raises:
        InputError: a line is no JSON object; ``path`` says where.
    """
    *lines, _ = content.split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            text = f"expected one JSON object a line, but line {number} is none; correct it, or move the file away"
            raise InputError(f"{path}: {text}")
        rows.append(row)
    return rows


class SharedStore(Store):
    """A store that several processes may have open. Each row is computed by the one that has claimed its key.

    A claim is a lock of the operating system, so a killed process leaves none behind.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.seen = 0  # bytes that ``new_rows`` has read
        self.claims = folder / "claims"
        try:
            self.claims.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(_unwritable(error, folder)) from None

    def append(self, *rows: Row) -> None:
        """As in a store of one process; what a killed one left unfinished is cut off first.

        Raises:
            InputError: the folder cannot be written, or the disk is full. Finished rows are as they were.
        """
        try:
            with FileLock(self.folder / ".lock"):
                _drop_unfinished_line(self.path)
                super().append(*rows)
        except OSError as error:
            raise InputError(_unwritable(error, self.path)) from None

    def new_rows(self) -> list[Row]:
        """Rows that were finished since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.seen)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        self.seen += len(content)
        return parsed_rows(content, self.path)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether the key is this process's until the end; False if another's."""
        lock = FileLock(self._claim_of(key), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def forget_claims(self, keys: Iterable[str]) -> None:
        """Remove the lock files of finished rows; other rows may still be in the hands of other processes."""
        for key in keys:
            self._claim_of(key).unlink(missing_ok=True)

    def _claim_of(self, key: str) -> Path:
        return self.claims / hashlib.sha256(key.encode()).hexdigest()[:16]


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
        lock.release()
        raise InputError(_unwritable(error, folder)) from None
    try:
        yield store
    finally:
        lock.release()


def _unwritable(error: OSError, folder: Path) -> str:
    return f"{error.filename or folder}: cannot write there ({error.strerror or error}); pass another folder with --out"


def _drop_unfinished_line(path: Path) -> None:
    """Cut off what a killed process left after the last line end, so that the next row starts on a line of its own."""
    if not path.exists():
        path.touch()
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
