"""Rows of a study: computed once, by one of several processes, kept through kills, compressed and read again."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lossmith.compare.store import SharedStore
from lossmith.errors import InputError
from lossmith.experiments import run, studies
from lossmith.experiments.study import Study, key_of

PHASES = 2


def cells(size: str, rows: Any) -> Any:
    """Three cells, and a fourth that says how many rows its phase has seen."""
    count = 3 if size == "quick" else 12
    yield from ({"number": number} for number in range(count))
    if len([row for row in rows if "seen" not in row["cell"]]) >= count:
        yield {"number": -1, "seen": count}


def compute(cell: Any) -> dict[str, Any]:
    time.sleep(float(os.environ.get("STUDY_SLEEP", "0")))
    return {"value": cell["number"] ** 2}


def tiny(**changes: Any) -> Study:
    nothing: Any = lambda rows: []  # noqa: E731
    parts: dict[str, Any] = {
        "name": "tiny",
        "title": "",
        "question": "",
        "design": "",
        "sets": (),
        "predictions": (),
        "history": "",
    }
    return Study(**(parts | {"cells": cells, "compute": compute, "sections": nothing, "figure": nothing} | changes))


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(studies.STUDIES, "tiny", tiny())


def test_rows_are_computed_once_and_phases_follow(tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    rows, failures = run.run(tiny(), "quick", SharedStore(tmp_path), 1, lambda *numbers: shown.append(numbers))
    assert not failures
    assert [row["value"] for row in rows] == [0, 1, 4, 1]
    assert shown[0] == (0, 3)
    assert shown[-1] == (4, 4)
    assert {"seconds", "finished", "version", "machine", "protocol"} <= set(rows[0])
    stamp = (tmp_path / "rows.jsonl").read_bytes()
    assert run.run(tiny(), "quick", SharedStore(tmp_path), 1, lambda *_: None) == (rows, [])
    assert not list((tmp_path / "claims").iterdir())
    assert (tmp_path / "rows.jsonl").read_bytes() == stamp


def test_a_larger_size_takes_the_rows_of_the_smaller(tmp_path: Path) -> None:
    run.run(tiny(), "quick", SharedStore(tmp_path), 1, lambda *_: None)
    shown: list[tuple[int, int]] = []
    run.run(tiny(), "full", SharedStore(tmp_path), 1, lambda *numbers: shown.append(numbers))
    assert shown[0] == (3, 12)


def test_the_end_of_a_smaller_size_leaves_the_claims_of_a_larger_one(tmp_path: Path) -> None:
    store = SharedStore(tmp_path)
    with store.claim("a row of the full size") as ours:
        assert ours
        run.run(tiny(), "quick", SharedStore(tmp_path), 1, lambda *_: None)
        with SharedStore(tmp_path).claim("a row of the full size") as theirs:
            assert not theirs


def test_rows_of_another_protocol_do_not_count(tmp_path: Path) -> None:
    store = SharedStore(tmp_path)
    run.run(tiny(), "quick", store, 1, lambda *_: None)
    assert run.finished(tiny(protocol=2), store.rows()) == {}


def worker(folder: str) -> None:
    studies.STUDIES["tiny"] = tiny()
    os.environ["STUDY_SLEEP"] = "0.02"
    run.WAIT = 0.05
    run.run(tiny(), "full", SharedStore(Path(folder)), 1, lambda *_: None)


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=worker, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    keys = [key_of(row["cell"]) for row in SharedStore(tmp_path).rows()]
    assert len(keys) == len(set(keys)) == 13


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_study_run as module
module.worker(sys.argv[1])
"""


def test_a_kill_loses_no_finished_row(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    store = SharedStore(tmp_path)
    deadline = time.monotonic() + 60
    while len(store.rows()) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    before = store.rows()
    assert 3 <= len(before) < 13
    with store.path.open("ab") as file:
        file.write(b'{"study": "tiny", "cel')  # what a kill in the middle of a write leaves
    after, _ = run.run(tiny(), "full", store, 1, lambda *_: None)
    assert len(after) == 13
    assert store.rows()[: len(before)] == before
    assert all(isinstance(json.loads(line), dict) for line in store.path.read_text().splitlines())


def test_a_claim_is_for_one(tmp_path: Path) -> None:
    one, two = SharedStore(tmp_path), SharedStore(tmp_path)
    with one.claim("key") as first, two.claim("key") as second, two.claim("another") as third:
        assert (first, second, third) == (True, False, True)
    with two.claim("key") as later:
        assert later


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*: cannot write there \(.+\); pass another folder with --out$"):
        SharedStore(tmp_path / "file" / "store")


def test_rows_are_compressed_and_read_again(tmp_path: Path) -> None:
    rows, _ = run.run(tiny(), "quick", SharedStore(tmp_path / "store"), 1, lambda *_: None)
    path = tmp_path / "tiny.jsonl.xz"
    run.write_compressed(path, rows)
    first = path.read_bytes()
    run.write_compressed(path, rows[::-1])
    assert path.read_bytes() == first
    other = SharedStore(tmp_path / "other")
    run.take_in(tiny(), other, run.read_compressed(path))
    run.take_in(tiny(), other, run.read_compressed(path))
    assert sorted(map(str, other.rows())) == sorted(map(str, rows))
    assert run.read_compressed(tmp_path / "none.jsonl.xz") == []
    path.write_bytes(first[:-9])
    with pytest.raises(InputError, match=r"expected rows as compressed JSON lines .+ restore the file or remove it"):
        run.read_compressed(path)
