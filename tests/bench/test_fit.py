"""``bench fit``: times beside logistic regression's."""

import json

import pytest
from click.testing import CliRunner

from lossmith.bench import fit
from lossmith.cli import cli
from lossmith.errors import InputError


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SHAPES", ("breast-cancer",))
    monkeypatch.setattr(fit, "REPETITIONS", 1)
    (cost,) = json.loads(CliRunner().invoke(cli, ["bench", "fit", "--json"]).stdout)
    assert cost["data"] == "breast-cancer"
    assert 0 < cost["ours"]["low"] <= cost["ours"]["median"]


def test_a_large_fit() -> None:
    found = json.loads(CliRunner().invoke(cli, ["bench", "fit", "--large", "2000", "--json"]).stdout)
    assert (found["rows"], found["data"]) == (2000, 2000 * 20 * 4)
    assert found["training_metric"] > 0.5
    refused = CliRunner().invoke(cli, ["bench", "fit", "--large", "10"])
    assert isinstance(refused.exception, InputError)
    assert str(refused.exception) == "--large: expected at least 100 rows, got 10"
