"""Compute the rows of a study that its store lacks, in several processes, beside other runs of the same study."""

from __future__ import annotations

import json
import lzma
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sklearn.utils.parallel import Parallel, delayed

from lossmith import __version__
from lossmith.compare.run import machine, one_thread
from lossmith.compare.store import Row, SharedStore, parsed_rows
from lossmith.errors import InputError
from lossmith.experiments.study import Cell, Study, key_of

WAIT = 2.0  # seconds until a look at what other processes have finished


def run(study: Study, size: str, store: SharedStore, jobs: int, show: Callable[[int, int], None]) -> list[Row]:
    """All rows of the study at a size, in the order of its cells; those that are missing are computed and appended.

    Args:
        study: what to run.
        size: "quick" or "full".
        store: where rows are read and appended.
        jobs: rows computed at a time.
        show: called with the number of rows that are there and of those known to be needed.
    """
    while True:
        found = finished(study, store.rows())
        cells = list(study.cells(size, list(found.values())))
        missing = [cell for cell in cells if key_of(cell) not in found]
        done = len(cells) - len(missing)
        show(done, len(cells))
        if not missing:
            return [found[key_of(cell)] for cell in cells]
        computed = 0
        tasks = (delayed(_claimed_row)(study.name, cell, store.folder) for cell in missing)
        for own in Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks):
            computed += own
            show(done + computed, len(cells))
        if not computed:  # the rest is in the hands of other processes
            time.sleep(WAIT)


def finished(study: Study, rows: Iterable[Row]) -> dict[str, Row]:
    """The study's rows by the key of their cell."""
    return {key_of(row["cell"]): row for row in rows if (row.get("study"), row.get("protocol")) == (study.name, study.protocol)}


def take_in(study: Study, store: SharedStore, rows: Iterable[Row]) -> None:
    """Add rows of the study that the store lacks."""
    known = finished(study, store.rows())
    store.append(*(row for key, row in finished(study, rows).items() if key not in known))


def _claimed_row(name: str, cell: Cell, folder: Path) -> int:
    """Compute and append one row, whatever process this is; 0 where another one does, or has done, so."""
    from lossmith.experiments.studies import STUDIES  # by name: functions of a study need not be pickled

    study, store = STUDIES[name], SharedStore(folder)
    with store.claim(key_of(cell)) as ours:
        if not ours or key_of(cell) in finished(study, store.rows()):
            return 0
        started = time.perf_counter()
        with one_thread():
            values = study.compute(cell)
        store.append({"study": name, "protocol": study.protocol, "cell": cell, **values, **_provenance(started)})
    return 1


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
