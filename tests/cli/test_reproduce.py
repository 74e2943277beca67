"""``lossmith reproduce``: a study through its command, its refusals, and sets that cannot be fetched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lossmith.cli import cli
from lossmith.compare import store
from lossmith.data import public
from lossmith.errors import InputError
from lossmith.experiments import studies
from lossmith.experiments.study import Outcome, Prediction, Section, Study


def figure(rows: Any) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(2, 1))


def tiny(calls: list[int], sets: tuple[str, ...] = ()) -> Study:
    def compute(cell: Any) -> dict[str, Any]:
        calls.append(cell["number"])
        return {"value": cell["number"]}

    return Study(
        name="text",
        title="Numbers",
        question="Which numbers?",
        design="Counting.",
        sets=sets,
        predictions=(Prediction("There are some.", lambda rows: Outcome(True, f"{len(rows)}")),),
        history="Before.",
        cells=lambda size, rows: ({"number": number} for number in range(2 if size == "quick" else 4)),
        compute=compute,
        sections=lambda rows: [Section("Sum", f"{sum(row['value'] for row in rows)}")],
        figure=figure,
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setitem(studies.STUDIES, "text", tiny(found))
    return found


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["reproduce", *arguments])


def test_a_study_runs_once_and_grows(tmp_path: Path, calls: list[int]) -> None:
    out = tmp_path / "results"
    first = call("text", "--out", str(out), "--jobs", "1")
    assert first.exit_code == 0, first.output
    assert "There are some." in first.stdout
    assert "written:" in first.stdout
    assert calls == [0, 1]
    assert "## Sum\n\n1\n" in (out / "text-quick.md").read_text()
    assert call("text", "--out", str(out), "--size", "full", "--jobs", "1").exit_code == 0
    assert calls == [0, 1, 2, 3]
    assert "## Sum\n\n6\n" in (out / "text.md").read_text()


def test_rows_that_come_with_a_page_are_not_computed_again(tmp_path: Path, calls: list[int]) -> None:
    call("text", "--out", str(tmp_path / "a"), "--jobs", "1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "text-quick.jsonl.xz").write_bytes((tmp_path / "a" / "text-quick.jsonl.xz").read_bytes())
    assert call("text", "--out", str(tmp_path / "b"), "--jobs", "1").exit_code == 0
    assert calls == [0, 1]
    assert (tmp_path / "b" / "text-quick.md").read_bytes() == (tmp_path / "a" / "text-quick.md").read_bytes()


def test_a_set_that_cannot_be_fetched_is_named_in_the_page(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOSSMITH_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(public, "run_tool", lambda command, place: (1, "E: no network"))
    monkeypatch.setitem(studies.STUDIES, "text", tiny(calls, ("mnist",)))
    result = call("text", "--out", str(tmp_path / "out"), "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "missing: mnist:" in result.stdout
    assert "**Missing**: mnist:" in (tmp_path / "out" / "text-quick.md").read_text()


def test_a_cell_that_fails_is_named_and_the_others_are_kept(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(cell: Any) -> dict[str, Any]:
        if cell["number"] == 1:
            raise ZeroDivisionError("nothing to\ndivide by")
        return {"value": float("nan") if cell["number"] == 2 else cell["number"]}

    monkeypatch.setitem(studies.STUDIES, "text", replace(tiny(calls), compute=compute))
    result = call("text", "--out", str(tmp_path), "--size", "full", "--jobs", "1")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "text.md").read_text()
    assert '**Missing**: {"number": 1}: ZeroDivisionError: nothing to divide by' in page
    assert '**Missing**: {"number": 2}: ValueError' in page
    assert "2 rows" in page


def test_a_full_disk_is_one_line_and_loses_no_row(tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def fsync(number: int) -> None:
        synced.append(number)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", fsync)
    result = call("text", "--out", str(tmp_path), "--size", "full", "--jobs", "1")
    assert isinstance(result.exception, InputError)
    where = tmp_path / "text" / "rows.jsonl"
    assert str(result.exception) == f"{where}: cannot write there (No space left on device); pass another folder with --out"
    assert call("text", "--out", str(tmp_path), "--size", "full", "--jobs", "1").exit_code == 0
    assert len(where.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabula"], "NAME: there is no 'tabula'; did you mean 'tabular'?"),
        (["text", "--size", "ful"], "--size: there is no 'ful'; did you mean 'full'?"),
        (["text", "--jobs", "0"], "--jobs: expected 1 or more, or -1 for one a processor, got 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, calls: list[int], arguments: list[str], message: str) -> None:
    result = call(*arguments, "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == message
    assert not calls
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_seen_before_any_work(tmp_path: Path, calls: list[int]) -> None:
    (tmp_path / "file").write_text("")
    result = call("text", "--out", str(tmp_path / "file" / "out"))
    assert isinstance(result.exception, InputError)
    assert "pass another with --out" in str(result.exception)
    assert not calls
