"""The store: finished rows survive a kill, foreign rows are left alone, and only one process writes."""

import json
import subprocess
import sys

import pytest

from lossmith.compare.store import open_store
from lossmith.errors import InputError

ROWS = [{"loss": "hinge", "score": 0.1 + 0.2, "curve": [[None, 0.5, 0.25]]}, {"loss": "größer", "settings": {"margin": None}}]


def fill(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_bytes(text)


def test_rows_come_back_as_they_were(tmp_path):
    with open_store(tmp_path / "a" / "b") as store:
        assert store.rows() == []
        for row in ROWS:
            store.append(row)
        assert store.rows() == ROWS
    with open_store(tmp_path / "a" / "b") as store:
        assert store.rows() == ROWS


def test_a_row_is_one_line_on_disk_at_once(tmp_path):
    with open_store(tmp_path) as store:
        store.append({"text": "two\nlines"})
        assert store.path.read_bytes().count(b"\n") == 1
        assert json.loads(store.path.read_bytes()) == {"text": "two\nlines"}


def test_a_number_that_json_lacks_is_refused(tmp_path):
    with open_store(tmp_path) as store:
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.append({"score": float("nan")})
        assert store.rows() == []


@pytest.mark.parametrize("rest", [b'{"loss": "hin', b"{", b'{"loss": "whole"}', b"\xff\xfe"])
def test_a_half_written_last_line_is_no_row(tmp_path, rest):
    fill(tmp_path, b'{"n": 1}\n{"n": 2}\n' + rest)
    with open_store(tmp_path) as store:
        assert store.rows() == [{"n": 1}, {"n": 2}]
        assert store.path.read_bytes() == b'{"n": 1}\n{"n": 2}\n'
        store.append({"n": 3})
        assert store.rows() == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_half_written_only_line_is_no_row(tmp_path):
    fill(tmp_path, b'{"n": 1')
    with open_store(tmp_path) as store:
        assert store.rows() == []
        assert store.path.read_bytes() == b""


def test_what_stands_in_the_file_is_never_rewritten(tmp_path):
    foreign = b'{ "n" :1,   "other": true }\n'
    fill(tmp_path, foreign)
    with open_store(tmp_path) as store:
        store.append(ROWS[0])
    assert (tmp_path / "rows.jsonl").read_bytes().startswith(foreign)


@pytest.mark.parametrize("line", [b"not json", b'{"n": 1', b"", b'{"n": 1}{"n": 2}', b"\xff\xfe", b"3", b"[1, 2]", b"null"])
def test_a_line_that_is_no_row_is_refused(tmp_path, line):
    fill(tmp_path, b'{"n": 0}\n' + line + b'\n{"n": 2}\n')
    with (
        open_store(tmp_path) as store,
        pytest.raises(InputError, match=r"rows\.jsonl: expected one JSON object a line") as caught,
    ):
        store.rows()
    assert "\n" not in str(caught.value)
    assert "move the file away" in str(caught.value)
    assert line in (tmp_path / "rows.jsonl").read_bytes()  # nothing was thrown away


def test_a_second_process_is_refused(tmp_path):
    code = """
import sys
from pathlib import Path
from lossmith.compare.store import open_store
from lossmith.errors import InputError
try:
    with open_store(Path(sys.argv[1])):
        print("open")
except InputError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with open_store(tmp_path) as store:
        store.append(ROWS[0])
        second = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert store.rows() == ROWS[:1]
    assert second == f"{tmp_path}: another comparison is writing there; wait for it, or pass another --out\n"


def test_a_store_is_free_again_after_it_was_left(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_store(tmp_path):
        raise KeyboardInterrupt
    with open_store(tmp_path) as store:
        assert store.rows() == []


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "below", file / "far" / "below"):
        with (
            pytest.raises(InputError, match=r"cannot write there .*; pass another folder with --out") as caught,
            open_store(folder),
        ):
            pass
        assert str(caught.value).startswith(f"{folder}: ")
        assert "\n" not in str(caught.value)
    assert file.read_text() == "mine"


def test_rows_file_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(InputError, match=r"rows\.jsonl"), open_store(tmp_path):
        pass
