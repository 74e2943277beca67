"""The command line: one line and exit code 2 for whatever a user can get wrong, and clean output for programs."""

import functools
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import lossmith
from lossmith import __main__, cli
from lossmith.cli import compare as command
from lossmith.compare import losses
from lossmith.compare.methods import METHODS
from lossmith.experiments.toy import figure as toy_figure
from lossmith.experiments.toy import optima

QUICK = ["--folds=2", "--trials=1", "--epochs=2", "--jobs=1", "--methods=likelihood", "--losses=hinge"]
BAR = re.compile("[\x1b\r━╸]")


@pytest.fixture
def lossmith_(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lossmith", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def refused(lossmith_, tmp_path):
    """Runs a command that must fail; returns its one line. No file or folder may be left behind."""

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = lossmith_(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("lossmith: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return call


def valid_json(text):
    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


# Help


def test_help_names_every_command(lossmith_):
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = lossmith_(*arguments)
        assert (code, err) == (0, "")
        assert {"Usage:", "compare", "toy", "--version"} <= set(out.split())


@pytest.mark.parametrize("command", list(cli.cli.commands))
def test_every_command_has_help(lossmith_, command):
    for option in ("--help", "-h"):
        code, out, err = lossmith_(command, option)
        assert (code, err) == (0, "")
        assert out.startswith(f"Usage: lossmith {command} ")
        for parameter in cli.cli.commands[command].params:
            assert parameter.opts[0].strip("-") in out.lower()
        assert max(map(len, out.splitlines())) <= 100


def test_help_names_every_method_and_loss(lossmith_):
    assert (*command.METHODS,) == (*METHODS,)
    assert (*command.LOSSES,) == losses.NAMES
    text = re.sub(r"-\s+", "-", lossmith_("compare", "--help")[1])  # a name may be broken at its hyphen
    words = re.split(r"[\s,.]+", text)
    assert {*METHODS, *losses.NAMES} <= set(words)


@pytest.mark.parametrize("given", [["iris", "--losses", "hinge", "exact"], ["--losses=hinge,exact", "iris"]])
def test_losses_after_commas_or_blanks(lossmith_, given):
    code, out, _ = lossmith_("compare", *QUICK, *given, "--json")
    assert code == 0
    assert {entry["method"] for entry in valid_json(out)["methods"]} == {"likelihood", "hinge", "exact"}


def test_version():
    done = subprocess.run([sys.executable, "-m", "lossmith", "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"lossmith, version {lossmith.__version__}\n", "")


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("click", "sklearn") else find(name))
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert printed.err == "lossmith: the command line needs click, sklearn: pip install 'lossmith[compare]'\n"


# What is refused


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (None, ["no.csv"], ["no.csv"]),
        (None, ["irsi"], ["irsi", "iris"]),
        ("x,y\n1,a\n2,b\n", ["t.csv", "--target=z"], ["'z'", "'y'"]),
        ("x,y\n1,a\n2,b\n", ["t.csv"], ["expected a target"]),
        ("", ["t.csv", "--target=y"], ["empty"]),
        ("x,y\n", ["t.csv", "--target=y"], ["header"]),
        ("x,y\n1,a\n2,a\n3,a\n", ["t.csv", "--target=y"], ["only one class"]),
        ("x,y\n" + "1,a\n2,b\n" * 5 + "3,c\n" * 3, ["t.csv", "--target=y"], ["'c'", "3 rows", "5 folds", "--folds 3"]),
        ("x,y\n1,a\n2,\n3,b\n", ["t.csv", "--target=y"], ["no value", "row 2"]),
        ("PAR1\0\0", ["t.csv", "--target=y"], ["Parquet"]),
        (None, ["iris", "--losses=hinje"], ["--losses", "did you mean 'hinge'?"]),
        (None, ["iris", "--metric=acuracy"], ["--metric", "did you mean 'accuracy'"]),
        (None, ["iris", "--methods=boost"], ["--methods", "did you mean 'boosting'?"]),
        (None, ["iris", "--metric=f1"], ["--metric", "f1_macro"]),
        (None, ["iris", "--judge=f2"], ["--judge", "no scorer 'f2'"]),
        (None, ["iris", "--positive=setosa"], ["--positive: expected one of two classes"]),
        (None, ["breast-cancer", "--positive=bad"], ["--positive", "benign, malignant"]),
        (None, ["iris", "--cluster=tcp://a:1"], ["--cluster: expected --backend dask or ray with it"]),
        (None, ["iris", "--jobs=0"], ["--jobs: expected 1 or more", "got 0"]),
        (None, ["iris", "--cost=no.csv"], ["--cost: no.csv: cannot read it (No such file or directory)"]),
        (None, ["iris", "--backend=spark"], ["--backend: there is no 'spark'"]),
        (None, ["iris", "--folds=1"], ["--folds: expected 2 or more"]),
        (None, ["iris", "--folds=two"], ["--folds", "'two'"]),
        (None, ["iris", "--folds=2.5"], ["--folds", "'2.5'"]),
        (None, ["iris", "--folds"], ["--folds"]),
        (None, ["iris", "--fodls=2"], ["--fodls", "--folds"]),
        (None, ["iris", "wine"], ["wine"]),
    ],
)
def test_bad_input_is_one_line(refused, tmp_path, content, arguments, words):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    line = refused("compare", *arguments)
    assert all(word in line for word in words)


def test_not_what_the_ending_says(refused, tmp_path):
    (tmp_path / "t.parquet").write_text("x,y\n1,a\n2,b\n")
    assert "expected a Parquet file" in refused("compare", "t.parquet", "--target=y")
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")
    assert "'.xlsx' is unknown" in refused("compare", "t.xlsx", "--target=y")


def test_unknown_command(refused):
    assert "'comprae'" in refused("comprae")
    assert "--nope" in refused("--nope")


@pytest.mark.parametrize("command", [["compare", "iris", *QUICK], ["toy"]])
@pytest.mark.parametrize("out", ["file", "file/below", "file/far/below"])
def test_an_output_folder_that_cannot_be(refused, tmp_path, command, out):
    (tmp_path / "file").write_text("mine")
    assert f"{out}: cannot write there" in refused(*command, f"--out={out}")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_interrupt_is_one_line(lossmith_, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lossmith.compare.run.run", interrupt)
    code, out, err = lossmith_("compare", "iris", *QUICK)
    assert (code, out) == (130, "")
    assert err.strip().startswith("lossmith: stopped;")
    assert err.strip().count("\n") == 0


def test_an_interrupt_while_the_commands_load_is_one_line(monkeypatch, capsys):
    class Interrupted:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "lossmith.cli", Interrupted())
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "lossmith: stopped\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(13, "Permission denied", "a"), "a: cannot read or write there (Permission denied)"),
        (OSError(13, "Permission denied", "a", None, "b"), "b: cannot read or write there (Permission denied)"),
        (OSError("could not get source code"), "could not get source code"),
        (OSError(), "OSError"),
    ],
)
def test_an_error_of_the_system_says_where_and_why(lossmith_, monkeypatch, error, words):
    def fail(*_):
        raise error

    monkeypatch.setattr("lossmith.compare.run.run", fail)
    kept = "; finished rows are kept in lossmith-iris/rows.jsonl"
    assert lossmith_("compare", "iris", *QUICK) == (2, "", f"lossmith: {words}{kept}\n")
    monkeypatch.setattr("lossmith.bench.speed_auc.measure", fail)
    assert lossmith_("bench", "auc") == (2, "", f"lossmith: {words}\n")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing/figure.png", "missing: cannot write there (No such file or directory); pass another with --plot"),
        ("figure.pgn", "--plot: figure.pgn: the ending '.pgn' is unknown; did you mean 'png'"),
    ],
)
def test_a_figure_that_cannot_be_is_refused_before_the_measurement(refused, monkeypatch, path, words):
    def measure(*_):
        raise AssertionError("measured")

    monkeypatch.setattr("lossmith.bench.speed_argmax.measure", measure)
    assert words in refused("bench", "kernels", f"--plot={path}")


def test_a_stopped_toy_leaves_the_old_figure(lossmith_, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(optima, "study_one", interrupt)
    code, out, err = lossmith_("toy")
    assert (code, out, err.strip()) == (130, "", "lossmith: stopped")
    assert list((tmp_path / "lossmith-toy").iterdir()) == []
    (tmp_path / "lossmith-toy" / "toy.png").write_text("old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: path.write_text("half") and interrupt())
    with pytest.raises(KeyboardInterrupt):
        toy_figure.save(Figure(), tmp_path / "lossmith-toy")
    assert [path.name for path in (tmp_path / "lossmith-toy").iterdir()] == ["toy.png"]
    assert (tmp_path / "lossmith-toy" / "toy.png").read_text() == "old"


def test_a_figure_where_a_folder_stands_is_refused_before_any_work(refused, tmp_path):
    (tmp_path / "lossmith-toy" / "toy.svg").mkdir(parents=True)
    assert "lossmith-toy/toy.svg: cannot write there (Is a directory)" in refused("toy")


ODD = {
    "four rows": {"x": [1, 2, 3, 4], "y": [*"abab"]},
    "six rows": {"x": [1, 2, 3, 4, 5, 6], "y": [*"ababab"]},
    "beyond float32": {"x": [*range(39), 1e300], "y": [*"ab"] * 20},
    "only empty columns": {"x": [np.nan] * 40, "y": [*"ab"] * 20},
    "one value": {"x": [1] * 40, "y": [*"ab"] * 20},
    "one value a row": {"x": [f"id {i}" for i in range(40)], "y": [*"ab"] * 20},
}


@pytest.mark.parametrize("trials", [1, 2])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_table_works_or_is_refused_in_one_line(lossmith_, tmp_path, name, trials):
    pd.DataFrame(ODD[name]).to_csv(tmp_path / "t.csv", index=False)
    code, out, err = lossmith_("compare", "t.csv", "--target=y", *QUICK, f"--trials={trials}")
    assert (code, bool(out), err.count("\n")) in [(0, True, 0), (2, False, 1)]


# What is printed


def test_compare_prints_a_table_and_nothing_else(lossmith_, tmp_path):
    code, out, err = lossmith_("compare", "iris", *QUICK)
    assert (code, err) == (0, "")
    assert not BAR.search(out)
    assert out.startswith("iris: accuracy in %, 2 folds × 1\n")
    assert {"likelihood", "hinge"} <= set(out.split())
    assert out.endswith("report: lossmith-iris/report.html\n")
    assert (tmp_path / "lossmith-iris" / "report.html").exists()
    again = lossmith_("compare", "iris", *QUICK)
    assert again == (code, out, err)  # from the rows on disk


def test_compare_as_json(lossmith_, tmp_path):
    code, out, err = lossmith_("compare", "iris", *QUICK, "--json", "--out=o", "--metric=f1-macro")
    assert (code, err) == (0, "")
    read = valid_json(out)
    assert [entry["method"] for entry in read["methods"]] == ["likelihood", "hinge"]
    assert read["settings"]["metric"] == "f1_macro"
    assert read["report"] == "o/report.html"
    assert "lossmith compare iris" in (tmp_path / "o" / "report.html").read_text(encoding="utf-8")


def test_losses_may_be_separated_by_commas_and_blanks(lossmith_):
    out = lossmith_("compare", "iris", *QUICK, "--losses= hinge, polyloss,", "--json")[1]
    assert sorted(entry["method"] for entry in valid_json(out)["methods"]) == ["hinge", "likelihood", "polyloss"]


def test_a_file_name_is_no_markup(lossmith_, tmp_path):
    for name in ("size [cm]", "it's ünd <i>"):
        (tmp_path / f"{name}.csv").write_text("x,y\n" + "1,a\n2,b\n" * 10)
        code, out, err = lossmith_("compare", f"{name}.csv", "--target=y", *QUICK)
        assert (code, err) == (0, "")
        assert out.startswith(f"{name}: accuracy in %")


def test_parquet_with_types_of_its_own(lossmith_, tmp_path):
    frame = pd.DataFrame(
        {
            "number": pd.array([1, None, 3] * 12, dtype="Int64"),
            "kind": pd.Categorical(["red", "blå", None] * 12),
            "when": pd.Timestamp("2020-01-31") + pd.to_timedelta(range(36), "D"),
            "took": pd.to_timedelta(range(36), "min"),
            "flag": pd.array([True, False, None] * 12, dtype="boolean"),
            "nothing": np.full(36, np.nan),
            "class of it": ["yes", "no", "no"] * 11 + ["rare"] * 3,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    for folds in (2, 3):
        code, out, err = lossmith_("compare", "t.parquet", "--target=class of it", *QUICK, f"--folds={folds}", "--json")
        assert (code, err) == (0, "")
        assert [len(entry["scores"]) for entry in valid_json(out)["methods"]] == [folds, folds]


def test_toy(lossmith_, tmp_path, monkeypatch):
    monkeypatch.setattr(optima, "LOSSES", {"hinge": optima.LOSSES["hinge"]})  # all of them take a minute
    monkeypatch.setattr(optima, "study_one", functools.cache(optima.study_one))
    code, out, err = lossmith_("toy")
    assert (code, err) == (0, "")
    assert not BAR.search(out)
    titles = " ".join(out.split())
    assert "three points: (−0.25, −), (0, −), (0.25, +); best accuracy 1.000" in titles
    assert "five points: (−6, −), (−5, +), (−4, +), (0, −), (2, +); best accuracy 0.800" in titles
    assert re.search(r"\n  hinge +0.75 to 1 +0.667 +8 +0.125 +1.000 +4 *\n", out)
    assert out.endswith("figure: lossmith-toy/toy.png, lossmith-toy/toy.svg\n")
    assert {path.name for path in (tmp_path / "lossmith-toy").iterdir()} == {"toy.png", "toy.svg"}
    code, out, err = lossmith_("toy", "--json", "--out=o")
    assert (code, err) == (0, "")
    assert valid_json(out)["three points right from k"] == {"hinge": pytest.approx(4)}
    assert (tmp_path / "o" / "toy.png").stat().st_size > 10_000
