"""``bench fit``: times, and gains on a folder of tables, whose finished rows are kept."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from lossmith.bench import fit
from lossmith.cli import cli
from lossmith.errors import InputError


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    made = np.random.default_rng(0)
    for name, classes in (("two", 2), ("three", 3)):
        y = made.integers(0, classes, 90)
        colour = made.choice(["red", "blue", "?"], 90)
        frame = pd.DataFrame({"x": y + made.normal(size=90), "colour": colour, "y": [f" class{k}" for k in y]})
        frame.to_csv(tmp_path / f"{name}.dat", header=False, index=False)
    return tmp_path


def test_gains_are_rows_that_are_kept(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["bench", "fit", "--tables", str(tables), "--out", str(tables / "rows.jsonl"), "--json"]
    first = json.loads(CliRunner().invoke(cli, asked).stdout)
    assert len(first["rows"]) == 10
    assert set(first["gains"]) == {"two", "three"}
    assert first["summary"]["tables"] == 2
    for row in first["rows"]:
        assert 0 <= row["logistic"] <= 1
        assert row["took"] or row["ours"] == row["logistic"]

    def fails(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(fit, "_row", fails)
    assert json.loads(CliRunner().invoke(cli, asked).stdout) == first
    assert "of all tables" in CliRunner().invoke(cli, asked[:-1]).stdout


def test_a_metric_of_two_classes_passes_the_others_over(tables: Path) -> None:
    found = json.loads(CliRunner().invoke(cli, ["bench", "fit", "--tables", str(tables), "--metric", "f1", "--json"]).stdout)
    assert set(found["gains"]) == {"two"}


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SHAPES", ("breast-cancer",))
    monkeypatch.setattr(fit, "REPETITIONS", 1)
    (cost,) = json.loads(CliRunner().invoke(cli, ["bench", "fit", "--json"]).stdout)
    assert cost["data"] == "breast-cancer"
    assert 0 < cost["ours"]["low"] <= cost["ours"]["median"]


def test_summary_of_known_gains() -> None:
    gains = {"a": 2.0, "b": 0.0, "c": -1.0, "d": 0.5}
    found = fit.summary(gains)
    assert (found["tables"], found["mean"], found["lowest"]) == (4, 0.375, -1.0)
    assert (found["up by 0.5"], found["down by 0.5"], found["median"]) == (2, 1, 0.25)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tables", "nowhere"], "--tables: expected a folder of .dat files"),
        (["--tables", ".", "--metric", "g3"], "--metric: unknown"),
    ],
)
def test_refused_in_one_line(arguments: list[str], words: str) -> None:
    refused = CliRunner().invoke(cli, ["bench", "fit", *arguments])
    assert isinstance(refused.exception, InputError)
    assert str(refused.exception).startswith(words)
