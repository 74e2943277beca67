"""Public tables: KEEL's out of a fetched set, OpenML's through scikit-learn."""

from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest

from lossmith.data import keel, load, load_frame, openml
from lossmith.errors import InputError


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Writes a table into a set as if the set were fetched."""
    monkeypatch.setenv("LOSSMITH_DATA", str(tmp_path))

    def write(set_name, table, text):
        (tmp_path / set_name).mkdir(exist_ok=True)
        (tmp_path / set_name / f"{table}.dat").write_text(text, encoding="utf-8")

    return write


def refused(source, *words):
    with pytest.raises(InputError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_columns_get_names_and_types(cached):
    cached("keel", "toy", "1.5, red, 7, ?, a \n<null>,,8,?,b\n-2e3 , NA,9,?, a\n\n")
    frame = keel.read("keel", "toy")
    expected = {"x1": [1.5, np.nan, -2000.0], "x2": ["red", np.nan, "NA"], "x3": [7.0, 8.0, 9.0], "x4": [np.nan] * 3,
                "class": ["a", "b", "a"]}  # fmt: skip
    pd.testing.assert_frame_equal(frame, pd.DataFrame(expected), check_dtype=False)
    assert [frame[name].dtype.kind for name in ("x1", "x3", "x4")] == ["f"] * 3


def test_a_table_is_named_without_its_set(cached):
    cached("keel", "monk-9", "1,10\n2,9\n3,10\n")
    data = load("keel/monk-9")
    assert (data.name, data.target_name, data.classes) == ("monk-9", "class", ("9", "10"))
    assert data.target.tolist() == [1, 0, 1]
    assert load_frame("keel/monk-9").shape == (3, 2)


def test_the_rare_class_is_the_last(cached):
    cached("keel-imbalanced", "rare", "1,positive\n2,negative\n3,negative\n")
    assert load("keel-imbalanced/rare").classes == ("negative", "positive")


def test_names_are_sorted(cached):
    for name in ("b", "a"):
        cached("keel", name, "1,a\n2,b\n")
    assert keel.names("keel") == ["a", "b"]


def test_a_set_that_was_not_fetched(cached):
    refused("keel/monk-2", "keel: expected a fetched set", "run: lossmith data fetch keel")
    refused("keel", "run: lossmith data fetch keel")


def test_a_set_is_no_table(cached):
    for number in range(20):
        cached("keel", f"t{number:02}", "1,a\n2,b\n")
    refused("keel", "keel: is a set of tables", "'keel/t00'", "(20 in all)")


def test_unknown_tables_and_sets(cached):
    cached("keel", "monk-2", "1,a\n2,b\n")
    refused("keel/monk-3", "keel/monk-3: there is no such table", "did you mean 'monk-2'?")
    refused("keel/../monk-2", "there is no such table")
    with pytest.raises(InputError, match="there is no such set of tables; did you mean 'keel'"):
        keel.read("kel", "monk-2")


def test_rows_of_other_lengths(cached):
    cached("keel", "odd", "1,a\n2,3,b\n")
    refused("keel/odd", "keel/odd: expected 2 fields in every row, got 3 in row 2", "fetch the set again")


def test_a_file_in_a_folder_called_keel(cached, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached("keel", "own", "@relation r\n@attribute a real\n@attribute c {p,q}\n@output c\n@data\n1,p\n2,q\n")
    assert load("keel/own.dat").target_name == "c"


def bunch(targets, **details):
    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0], "kind": pd.Categorical(["u", None, "v"]), "good": ["no", "yes", "no"]})
    return SimpleNamespace(frame=frame, target_names=targets, details=details)


@pytest.mark.parametrize(("source", "wanted"), [("credit-g", {"name": "credit-g"}), ("31", {"data_id": 31})])
def test_openml(monkeypatch, tmp_path, source, wanted):
    asked = []
    monkeypatch.setenv("LOSSMITH_DATA", str(tmp_path))
    monkeypatch.setattr(openml, "fetch_openml", lambda **options: asked.append(options) or bunch(["good"], name="credit-g"))
    data = load(f"openml/{source}")
    assert (data.name, data.target_name, data.classes) == ("credit-g", "good", ("no", "yes"))
    assert data.features.shape == (3, 2)
    assert asked == [{**wanted, "as_frame": True, "data_home": str(tmp_path / "openml"), "n_retries": 1}]


def test_openml_without_one_target(monkeypatch):
    monkeypatch.setattr(openml, "fetch_openml", lambda **options: bunch([]))
    refused("openml/credit-g", "openml/credit-g: expected a target")
    assert load("openml/credit-g", "good").classes == ("no", "yes")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (URLError("no name"), ["openml/x: OpenML cannot be reached", "no name", "check the network"]),
        (ConnectionResetError(), ["ConnectionResetError"]),
        (ValueError("No known\ndataset"), ["openml/x: expected a table of OpenML, got No known dataset"]),
    ],
)
def test_openml_fails_in_a_line(monkeypatch, error, words):
    def fail(**options):
        raise error

    monkeypatch.setattr(openml, "fetch_openml", fail)
    refused("openml/x", *words)
