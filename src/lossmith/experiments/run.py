"""Compute the rows of a study that its store lacks, in several processes, beside other runs of the same study."""

from __future__ import annotations

import json
import lzma
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from sklearn.utils.parallel import Parallel, delayed

from lossmith import __version__
from lossmith.compare.run import machine, one_thread
from lossmith.compare.store import Row, SharedStore, parsed_rows
from lossmith.errors import InputError
from lossmith.experiments.study import Cell, Study, key_of

WAIT = 2.0  # seconds until a look at what other processes have finished


def run(
    study: Study, size: str, store: SharedStore, jobs: int, show: Callable[[int, int], None]
) -> tuple[list[Row], list[str]]:
    """Compute and append the rows that are missing.

    Args:
        study: what to run.
        size: "quick" or "full".
        store: where rows are read and appended.
        jobs: rows computed at a time.
        show: called with the number of rows that are in the store and of those known to be needed.

    Returns:
        All rows of the study at that size, in the order of its cells; and why some are missing, a line for each.

    Raises:
        InputError: a process of the team was killed, or the disk is full. Finished rows are kept.
    """
    failures: dict[str, str] = {}
    while True:
        found = finished(study, store.rows())
        cells = list(study.cells(size, list(found.values())))
        missing = [cell for cell in cells if key_of(cell) not in found and key_of(cell) not in failures]
        done = len(cells) - len(missing)
        show(done, len(cells))
        if not missing:
            rows = [found[key_of(cell)] for cell in cells if key_of(cell) in found]
            store.forget_claims(key_of(row["cell"]) for row in rows)
            return rows, list(failures.values())
        computed = 0
        tasks = (delayed(_claimed_row)(study.name, cell, store.folder) for cell in missing)
        try:
            for key, count, failure in Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)(tasks):
                computed += count
                show(done + computed, len(cells))
                if failure:
                    failures[key] = failure
        except BrokenProcessPool:
            text = "a process was killed, as for want of memory; run it again, with fewer --jobs; finished rows are kept"
            raise InputError(f"reproduce {study.name}: {text}") from None
        if not computed and len(failures) < len(missing):  # the rest is in the hands of other processes
            time.sleep(WAIT)


def finished(study: Study, rows: Iterable[Row]) -> dict[str, Row]:
    """The study's rows by the key of their cell."""
    return {key_of(row["cell"]): row for row in rows if (row.get("study"), row.get("protocol")) == (study.name, study.protocol)}


def take_in(study: Study, store: SharedStore, rows: Iterable[Row]) -> None:
    """Add rows of the study that the store lacks."""
    known = finished(study, store.rows())
    store.append(*(row for key, row in finished(study, rows).items() if key not in known))


def _claimed_row(name: str, cell: Cell, folder: Path) -> tuple[str, int, str]:
    """Compute and append one row, whatever process this is.

    Returns:
        The cell's key; 1, or 0 where another process does, or has done, so; why it failed, if it did.
    """
    from lossmith.experiments.studies import STUDIES  # by name: functions of a study need not be pickled

    study, store, key = STUDIES[name], _store_of(folder), key_of(cell)
    with store.claim(key) as ours:
        _known[folder].update(finished(study, store.new_rows()))
        if not ours or key in _known[folder]:
            return key, 0, ""
        started = time.perf_counter()
        try:
            with one_thread():
                values = study.compute(cell)
            row = {"study": name, "protocol": study.protocol, "cell": cell, **values, **_provenance(started)}
            json.dumps(row, allow_nan=False)
        except Exception as error:  # one cell must not end a run of hours
            return key, 0, f"{key}: {type(error).__name__}: {' '.join(str(error).split())}"
        store.append(row)
    return key, 1, ""


_known: dict[Path, set[str]] = {}  # keys of the rows that this process has seen in a store


@lru_cache(maxsize=2)
def _store_of(folder: Path) -> SharedStore:
    _known[folder] = set()
    return SharedStore(folder)


def _provenance(started: float) -> dict[str, Any]:
    return {
        "seconds": round(time.perf_counter() - started, 3),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "machine": machine(),
    }


def write_compressed(path: Path, rows: Sequence[Row]) -> None:
    """Rows as JSON lines, compressed; the same rows give the same bytes, and a kill leaves the old file."""
    lines = "".join(f"{line}\n" for line in sorted(json.dumps(row, allow_nan=False) for row in rows))
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(lzma.compress(lines.encode(), preset=9))
    partial.replace(path)


def read_compressed(path: Path) -> list[Row]:
    """The rows of such a file; none where there is no file.

    Raises:
        InputError: it is not such a file.
    """
    if not path.exists():
        return []
    try:
        content = lzma.decompress(path.read_bytes())
    except lzma.LZMAError as error:
        raise InputError(f"{path}: expected rows as compressed JSON lines ({error}); restore the file or remove it") from None
    return parsed_rows(content, path)
