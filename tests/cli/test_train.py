"""``lossmith train`` and ``predict``: the route of a user with a file, and what is refused."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from lossmith.cli import cli
from lossmith.data import load
from lossmith.errors import InputError
from lossmith.estimators.table_model import TableModel


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(x) for x in arguments])


def table(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    made = np.random.default_rng(seed)
    colour = made.choice(["red", "green", "blue"], rows)
    size = made.normal(size=rows)
    size[::17] = np.nan
    label = np.where((colour == "red") ^ (made.random(rows) < 0.1), "yes", "no")
    return pd.DataFrame({"colour": colour, "size": size, "day": pd.date_range("2026-01-01", periods=rows), "bought": label})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    table().to_csv(folder / "shop.csv", index=False)
    done = run("train", folder / "shop.csv", "--target", "bought", "--metric", "f1", "--positive", "yes", "--cv", 2,
               "--out", folder / "model.lossmith")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "shop: f1 of 'yes' on 4 inner folds" in done.stdout
    assert "logistic regression with its decision rule" in done.stdout
    assert "taken: " in done.stdout
    assert "its probabilities are moved by the rule" in done.stdout
    return folder


def test_predictions_of_new_rows(trained: Path) -> None:
    new = table(30, 1).drop(columns="bought").assign(extra=1)
    new.loc[0, "colour"] = "violet"
    new.to_csv(trained / "new.csv", index=False)
    done = run("predict", trained / "model.lossmith", trained / "new.csv", "--out", trained / "predictions.csv")
    assert done.exit_code == 0, done.output
    found = pd.read_csv(trained / "predictions.csv")
    assert list(found) == ["prediction", "p(no)", "p(yes)"]
    assert len(found) == 30
    assert ((found["prediction"] == "yes") == (found["p(yes)"] > 0.5)).all()
    assert ((found["prediction"] == "yes") == (new["colour"] == "red")).mean() > 0.9
    assert "30 rows: " in done.stdout


def test_a_target_that_looks_like_a_number_is_said(tmp_path: Path) -> None:
    frame = table(100).assign(age=lambda rows: np.arange(len(rows)) // 3)
    frame.to_csv(tmp_path / "ages.csv", index=False)
    done = run("train", tmp_path / "ages.csv", "--target", "age", "--cv", 2, "--out", tmp_path / "model.lossmith")
    assert "--target: 34 classes in 100 rows: 'age' looks like a number, and this is a classifier" in done.output


def refusal(done: Result) -> str:
    assert isinstance(done.exception, InputError), done.output
    return str(done.exception)


def test_a_table_that_does_not_fit_the_model(trained: Path) -> None:
    new = table(30, 1)
    out = ("--out", trained / "p.csv")
    new.drop(columns="size").to_csv(trained / "less.csv", index=False)
    assert "but there is no 'size'" in refusal(run("predict", trained / "model.lossmith", trained / "less.csv", *out))
    new.astype({"size": str}).assign(size="big").to_csv(trained / "text.csv", index=False)
    message = refusal(run("predict", trained / "model.lossmith", trained / "text.csv", *out))
    assert "expected numbers in the column 'size', got 'big' in data row 1" in message
    new.iloc[:0].to_csv(trained / "empty.csv", index=False)
    assert "only a header" in refusal(run("predict", trained / "model.lossmith", trained / "empty.csv", *out))
    assert not (trained / "p.csv").exists()


def test_a_file_that_is_no_model(trained: Path) -> None:
    model = trained / "model.lossmith"
    (trained / "noise.lossmith").write_bytes(b"no model")
    for path, words in (("noise.lossmith", "got something else"), ("absent.lossmith", "there is no such file")):
        assert words in refusal(run("predict", trained / path, "iris", "--out", trained / "p.csv"))
    cut = trained / "cut.lossmith"
    cut.write_bytes(model.read_bytes()[:-500])
    assert "got something else" in refusal(run("predict", cut, "iris", "--out", trained / "p.csv"))
    strange = trained / "strange.lossmith"
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(strange, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(
                name, content.replace(b'"MetricClassifierCV"', b'"Popen"').replace(b"lossmith.estimators.linear", b"subprocess")
            )
    message = refusal(run("predict", strange, "iris", "--out", trained / "p.csv"))
    assert "holds subprocess.Popen, which is not trusted" in message


def test_another_format_is_told(trained: Path) -> None:
    from skops.io import dump

    dump({"format": 99}, trained / "later.lossmith")
    with pytest.raises(InputError, match="expected a model of lossmith train of format 1, got 99; train it again"):
        TableModel.load(trained / "later.lossmith")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("iris", "--metric", "f2_"), "--metric: unknown name 'f2_'"),
        (("iris", "--metric", "f1"), "metric: 'f1' is for two classes, got 3"),
        (("breast-cancer", "--positive", "maybe"), "--positive: expected one of two classes, got 'maybe'"),
        (("breast-cancer", "--cv", "1"), "--cv: expected 2 or more, got 1"),
        (("nothing.csv", "--target", "y"), "nothing.csv"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    message = refusal(run("train", *arguments, "--out", tmp_path / "model"))
    assert words in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_numbers_as_text_and_labels_in_brackets(tmp_path: Path) -> None:
    code = np.random.default_rng(0).choice(["1", "2", "x"], 200)
    label = np.where(code == "1", "[low]", "[/hi]")
    pd.DataFrame({"code": code, "y": label}).to_csv(tmp_path / "a.csv", index=False)
    assert run("train", tmp_path / "a.csv", "--target", "y", "--cv", 2, "--out", tmp_path / "m").exit_code == 0
    (tmp_path / "b.csv").write_text("code,other\n1,0\n2,0\n,0\n", encoding="utf-8")
    done = run("predict", tmp_path / "m", tmp_path / "b.csv", "--out", tmp_path / "p.csv")
    assert done.exit_code == 0, done.output
    assert "[/hi]" in done.stdout
    assert pd.read_csv(tmp_path / "p.csv")["prediction"].tolist()[:2] == ["[low]", "[/hi]"]


def test_costs_decide(tmp_path: Path) -> None:
    costs = tmp_path / "costs.csv"
    costs.write_text("true,malignant,benign\nmalignant,0,50\nbenign,1,0\n", encoding="utf-8")
    done = run("train", "breast-cancer", "--cost", costs, "--cv", 2, "--out", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert "breast-cancer: minus the cost on 4 inner folds" in done.stdout
    data = load("breast-cancer")
    found = TableModel.load(tmp_path / "model").predict(data.features, "")["prediction"]
    truth = np.array(data.classes)[data.target]
    assert (found[truth == "malignant"] == "malignant").mean() > 0.99
    assert "got both" in refusal(run("train", "iris", "--metric", "f1_macro", "--cost", costs, "--out", tmp_path / "m"))


def test_an_output_that_cannot_be(tmp_path: Path) -> None:
    assert "cannot write there" in refusal(run("train", "iris", "--out", tmp_path / "absent" / "model"))
