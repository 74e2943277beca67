"""Running a plan: rows are computed once, survive a kill, follow from the seed, and never see their test rows."""

import dataclasses
import json
import math
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss

from lossmith import cli
from lossmith.compare import run as running
from lossmith.compare import sgd
from lossmith.compare.losses import NAMES
from lossmith.compare.methods import METHODS, PATH
from lossmith.compare.plan import Cell, Plan
from lossmith.compare.store import open_store
from lossmith.data import Dataset, load
from support.rows import timeless

IRIS = load("iris")
QUICK = {"methods": (), "losses": ("hinge",), "folds": 2, "trials": 1, "epochs": 2}


def run(folder, plan, after_row=None):
    with open_store(folder) as store:
        return running.run(plan, store, after_row)


def lines(folder):
    return (folder / "rows.jsonl").read_bytes().splitlines(keepends=True)


@pytest.fixture
def computed(monkeypatch):
    """The cells that are computed, in order."""
    cells = []
    compute = running.compute
    monkeypatch.setattr(running, "compute", lambda plan, cell: cells.append(cell) or compute(plan, cell))
    return cells


def mixed(tmp_path, thirds=20):
    """A table with all that real tables have; the class "rare" has three rows."""
    generator = np.random.default_rng(0)
    rows = 3 * thirds + 3
    label = np.array(["yes", "no", "no"] * thirds + ["rare"] * 3)
    frame = pd.DataFrame(
        {
            "number": np.where(generator.random(rows) < 0.2, np.nan, generator.normal(size=rows) + 3 * (label == "yes")),
            "colour": generator.choice(["red", "green", "", "blå"], rows),
            "text": [f"item {generator.integers(10**6)} of box {i}" for i in range(rows)],
            "when": pd.Timestamp("2020-01-31") + pd.to_timedelta(generator.integers(0, 999, rows), "D"),
            "flag": generator.random(rows) < 0.5,
            "nothing": "",
            "constant": 1,
            "y": label,
        }
    )
    path = tmp_path / "mixed.csv"
    frame.to_csv(path, index=False)
    return str(path)


# Every loss


@pytest.fixture(scope="module")
def defaults(tmp_path_factory):
    rows = run(tmp_path_factory.mktemp("defaults"), Plan(IRIS, methods=(), losses=NAMES, folds=2, trials=1))
    return {loss: [row for row in rows if row["method"] == loss] for loss in NAMES}


@pytest.mark.parametrize("loss", NAMES)
def test_every_loss_learns_iris_with_its_defaults(defaults, loss):
    assert len(defaults[loss]) == 2
    for row in defaults[loss]:
        assert len(row["curve"]) == 200  # 75 rows are two batches: 400 steps
        assert all(mean_loss is not None and math.isfinite(mean_loss) for mean_loss, _, _ in row["curve"])
        assert row["score"] > 0.6  # the largest class is a third
        assert row["curve"][-1][2] == pytest.approx(row["score"], abs=1e-6)
        assert (row["train_rows"], row["test_rows"], row["validation"]) == (75, 75, None)


# Going on


def test_an_interrupted_run_computes_only_what_is_missing(tmp_path, computed):
    plan = Plan(IRIS, **QUICK)
    whole = run(tmp_path / "whole", plan)
    computed.clear()
    seen = []

    def stop_after_two(done):
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", plan, stop_after_two)
    kept = lines(tmp_path / "cut")
    assert (len(kept), len(computed), seen) == (2, 2, [0, 1, 2])
    resumed = run(tmp_path / "cut", plan, seen.append)
    assert computed == list(plan.cells())
    assert seen == [0, 1, 2, 2, 3, 4]
    assert lines(tmp_path / "cut")[:2] == kept
    assert timeless(resumed) == timeless(whole)


def test_a_finished_run_computes_nothing(tmp_path, computed):
    first = run(tmp_path, Plan(IRIS, **QUICK))
    computed.clear()
    assert json.dumps(run(tmp_path, Plan(IRIS, **QUICK))) == json.dumps(first)
    assert computed == []


def test_a_loss_or_a_repeat_may_be_added_later(tmp_path, computed):
    run(tmp_path, Plan(IRIS, **QUICK))
    before = lines(tmp_path)
    computed.clear()
    more = Plan(IRIS, **{**QUICK, "losses": ("hinge", "polyloss"), "repeats": 2})
    rows = run(tmp_path, more)
    assert [Cell(row["method"], row["repeat"], row["fold"]) for row in rows] == list(more.cells())
    assert sorted(computed) == sorted(set(more.cells()) - set(Plan(IRIS, **QUICK).cells()))
    assert lines(tmp_path)[: len(before)] == before
    assert len(lines(tmp_path)) == len(rows) == 12


def test_other_settings_start_anew_and_delete_nothing(tmp_path, computed):
    run(tmp_path, Plan(IRIS, **QUICK))
    for change in ({"epochs": 3}, {"seed": 1}, {"metric": "f1_macro"}, {"trials": 2}):
        before = lines(tmp_path)
        computed.clear()
        assert len(run(tmp_path, Plan(IRIS, **(QUICK | change)))) == len(computed) == 4
        assert lines(tmp_path)[: len(before)] == before
    computed.clear()
    run(tmp_path, Plan(IRIS, **QUICK))  # the old rows still serve
    assert computed == []


def test_rows_of_other_data_do_not_serve(tmp_path, computed):
    run(tmp_path, Plan(IRIS, **QUICK))
    computed.clear()
    run(tmp_path, Plan(dataclasses.replace(IRIS, fingerprint="0" * 16), **QUICK))
    assert len(computed) == 4


def test_rows_of_another_shape_are_left_alone(tmp_path, computed):
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n')
    run(tmp_path, Plan(IRIS, **QUICK))
    assert (len(computed), len(lines(tmp_path)), lines(tmp_path)[0]) == (4, 5, b'{"n": 1}\n')


def test_a_killed_comparison_goes_on(tmp_path, monkeypatch, capsys):
    losses = ["--methods=likelihood", "--losses=hinge,polyloss", "--trials=1", "--epochs=60"]
    arguments = ["compare", "iris", *losses, "--folds=3", "--jobs=1", f"--out={tmp_path}"]
    path = tmp_path / "rows.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "lossmith", *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() != 0
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 2 <= kept.count(b"\n") < 9
    monkeypatch.setattr(sys, "argv", ["lossmith", *arguments])
    cli.main()
    assert path.read_bytes().startswith(kept)
    assert path.read_bytes().count(b"\n") == 9
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(f"\n  {loss} " in printed.out for loss in ("likelihood", "hinge", "polyloss"))
    assert (tmp_path / "report.html").exists()


# Seeds


def test_the_seed_fixes_the_scores_and_nothing_else_does(tmp_path):
    options = {**QUICK, "losses": ("exact", "beta-bernoulli"), "trials": 2, "epochs": 4, "model": "mlp"}
    first = run(tmp_path / "1", Plan(IRIS, **options))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (other people's code may draw from it)
    assert timeless(run(tmp_path / "2", Plan(IRIS, **options))) == timeless(first)
    assert timeless(run(tmp_path / "3", Plan(IRIS, **options, seed=1))) != timeless(first)


def test_the_seed_fixes_the_encoding_of_text(tmp_path):
    plan = Plan(load(mixed(tmp_path, thirds=40), "y"), **QUICK)
    np.random.seed(1)  # noqa: NPY002
    first = run(tmp_path / "1", plan)
    np.random.seed(2)  # noqa: NPY002
    assert timeless(run(tmp_path / "2", plan)) == timeless(first)


def test_a_row_does_not_depend_on_the_rows_before_it(tmp_path):
    alone = run(tmp_path / "alone", Plan(IRIS, **{**QUICK, "losses": ("exact",)}))
    among = run(tmp_path / "among", Plan(IRIS, **{**QUICK, "losses": ("beta-bernoulli", "hinge", "exact")}))
    assert timeless(row for row in among if row["method"] == "exact") == timeless(
        row for row in alone if row["method"] == "exact"
    )


# No look at the held-out rows


def encodings(monkeypatch, tmp_path, plan):
    """What each training of a loss was given: rows used, and the matrix."""
    used, matrices = [], []
    encode, fit = running.encode, sgd.fit
    with monkeypatch.context() as patched:
        patched.setattr(running, "encode", lambda p, rows, held: used.append((rows, held)) or encode(p, rows, held))
        patched.setattr(
            sgd, "fit", lambda m, loss, x, *rest, **more: matrices.append(x.clone()) or fit(m, loss, x, *rest, **more)
        )
        run(tmp_path, plan)
    return used, [matrix for matrix in matrices if matrix.shape[1] > 1]


def test_nothing_about_the_test_rows_enters_the_training_matrix(monkeypatch, tmp_path):
    generator = np.random.default_rng(0)
    features = pd.DataFrame({"x": generator.normal(size=80), "c": generator.choice(["red", "blue"], 80)})
    data = Dataset("t", features, np.tile([0, 1], 40), ("a", "b"), "y", "0" * 16)
    plan = Plan(data, **QUICK)
    _, test = plan.split(0, 0)
    changed = features.copy()
    changed.loc[test, "x"] = [1e9, np.nan] * (len(test) // 2)
    changed.loc[test, "c"] = "only here"
    _, before = encodings(monkeypatch, tmp_path / "1", plan)
    _, after = encodings(
        monkeypatch, tmp_path / "2", dataclasses.replace(plan, data=dataclasses.replace(data, features=changed))
    )
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])  # the second split trains on those rows
    assert before[0].mean(0).abs().max() < 1e-5


def test_settings_are_tuned_inside_the_training_rows(monkeypatch, tmp_path):
    plan = Plan(IRIS, **QUICK | {"trials": 3})
    used, matrices = encodings(monkeypatch, tmp_path, plan)
    for fold in range(2):
        train, test = plan.split(0, fold)
        baseline, (inner, held), (fitted, scored) = used[3 * fold : 3 * fold + 3]
        assert [rows.tolist() for rows in baseline] == [train.tolist(), test.tolist()]
        assert (fitted.tolist(), scored.tolist()) == (train.tolist(), test.tolist())
        assert sorted([*inner, *held]) == sorted(train)
        assert len(held) == pytest.approx(len(train) / 4, abs=1)
    assert [len(matrix) for matrix in matrices[:4]] == [len(used[1][0])] * 3 + [75]


# Tables as they are


@pytest.mark.parametrize(
    ("folds", "trials", "model", "metric"), [(3, 1, "linear", "balanced-accuracy"), (2, 2, "mlp", "f1_macro")]
)
def test_a_mixed_table_with_a_rare_class(tmp_path, folds, trials, model, metric):
    data = load(mixed(tmp_path), "y")
    assert np.bincount(data.target).min() == 3
    options = {
        **QUICK,
        "methods": ("boosting",),
        "losses": ("exact",),
        "folds": folds,
        "trials": trials,
        "model": model,
        "metric": metric,
        "epochs": 4,
    }
    rows = run(tmp_path / "out", Plan(data, **options))
    assert len(rows) == 3 * folds
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert all(row["curve"][-1][0] is not None for row in rows if "curve" in row)


def test_a_mixed_table_from_the_command_line(tmp_path, monkeypatch, capsys):
    for folds in (2, 3):
        losses = ["--methods=likelihood", "--losses=exact", "--trials=1", "--epochs=2", "--jobs=1"]
        arguments = ["compare", mixed(tmp_path), "--target=y", f"--folds={folds}", *losses]
        monkeypatch.setattr(sys, "argv", ["lossmith", *arguments, f"--out={tmp_path / 'out'}", "--json"])
        cli.main()
        printed = capsys.readouterr()
        assert printed.err == ""
        assert [len(entry["scores"]) for entry in json.loads(printed.out)["methods"]] == [folds, folds]


# Every method


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    """Rows of each method for F1 on rows of two classes that overlap."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(1500, 3))
    y = (X[:, 0] + generator.normal(size=1500) > 1.5).astype(np.int64)
    data = Dataset("t", pd.DataFrame(X, columns=[*"abc"]), y, ("no", "yes"), "y", "0" * 16)
    plan = Plan(data, metric="f1", folds=2)
    rows = run(tmp_path_factory.mktemp("m"), plan)
    return plan, {method: [row for row in rows if row["method"] == method] for method in METHODS}


def test_methods_are_what_they_say(methods):
    plan, rows = methods
    train, test = plan.split(0, 0)
    encoded = running.encode(plan, train, test)
    for method, weight in (("likelihood", None), ("class-weights", "balanced")):
        C = rows[method][0]["settings"]["C"]
        model = LogisticRegression(C=C, class_weight=weight, tol=1e-8, max_iter=1000).fit(encoded.fit_x, encoded.fit_y)
        expected = f1_score(encoded.score_y, model.predict(encoded.score_x))
        assert rows[method][0]["score"] == pytest.approx(expected, abs=1e-12)
    assert sum(row["score"] for row in rows["decision-rule"]) > sum(row["score"] for row in rows["likelihood"])
    assert all(row["took_metric"] is False for row in rows["decision-rule"])


def test_rows_of_the_path_have_its_points(methods):
    _, rows = methods
    for row in rows[PATH]:
        means = [mean for _, _, _, mean in row["points"]]
        assert all(0 <= mean <= 1 for mean in means)
        assert len([sharpness for _, sharpness, _, _ in row["points"] if sharpness == 0]) == 10
    json.dumps(rows, allow_nan=False)


def test_rows_do_not_depend_on_the_processes(tmp_path):
    options = {"methods": ("metric-path",), "losses": ("hinge",), "folds": 2, "trials": 2, "epochs": 2}
    one = run(tmp_path / "1", Plan(IRIS, **options))
    with open_store(tmp_path / "2") as store:
        two = running.run(Plan(IRIS, **options), store, jobs=2)
    assert timeless(two) == timeless(one)


def test_a_scorer_of_scikit_learn_judges(tmp_path):
    rows = run(tmp_path, Plan(IRIS, **QUICK, judge="neg_log_loss"))
    assert all(row["score"] < 0 for row in rows)
    plan = Plan(IRIS, **QUICK, judge="neg_log_loss")
    part = running.encode(plan, *plan.split(0, 0))
    C = rows[0]["settings"]["C"]
    model = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(part.fit_x, part.fit_y)
    assert rows[0]["score"] == pytest.approx(-log_loss(part.score_y, model.predict_proba(part.score_x)), rel=1e-3)


def test_costs_judge(tmp_path):
    costs = ((0.0, 1.0, 4.0), (1.0, 0.0, 1.0), (1.0, 2.0, 0.0))
    plan = Plan(IRIS, **QUICK | {"methods": ("decision-rule",)}, cost=costs)
    rows = run(tmp_path, plan)
    assert plan.methods == ("likelihood", "decision-rule")
    assert all(-1 < row["score"] <= 0 for row in rows)
