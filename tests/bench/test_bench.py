"""The benchmarks: of accuracy, the stored values, the rivals and what the command says of them; of cost, what it prints."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy import stats

from lossmith.bench import numerics as accuracy
from lossmith.bench import rivals, values
from lossmith.bench import speed_argmax as kernels
from lossmith.bench import speed_auc as auc
from lossmith.bench.numerics import Errors
from lossmith.bench.subjects import SUBJECTS
from lossmith.bench.values import Case
from lossmith.cli import cli
from lossmith.errors import InputError

NOISES = {"normal", "gumbel", "logistic", "laplace", "studentt:1", "studentt:3", "uniform", "exponential"}


def case(target: float = 0.5, rivals: tuple[tuple[float, int], ...] = ((0.0, 1),), log_p: float = math.log(0.5)) -> Case:
    classes = 1 + sum(count for _, count in rivals)
    return Case("normal", classes, 1, "gap", target, rivals, log_p, math.log1p(-math.exp(log_p)), None)


def test_the_table_has_every_noise_at_every_class_count() -> None:
    cases = [c for c in values.load() if c.k == 1]
    assert {(c.noise, c.classes) for c in cases} == {(n, C) for n in NOISES for C in (2, 3, 10, 100, 1000, 50_000)}
    assert all(len(c.scores()) == c.classes for c in cases[:50])


def test_stored_values_are_the_closed_forms_where_there_are_any() -> None:
    for c in values.load():
        if c.kind == "gap" and c.target == 0 and c.noise != "uniform":
            assert c.log_p == pytest.approx(math.log(c.k / c.classes), rel=1e-14)
        if c.noise == "normal" and c.classes == 2:
            assert c.log_p == pytest.approx(stats.norm.logcdf((c.target - c.rivals[0][0]) / math.sqrt(2)), rel=1e-12)


@pytest.mark.parametrize("name", list(rivals.available()))
def test_every_rival_gives_the_two_class_probability(name: str) -> None:
    p = rivals.available()[name](case(0.5, ((0.0, 1),)))
    assert p == pytest.approx(stats.norm.cdf(0.5 / math.sqrt(2)), abs=5e-3)


def test_rivals_say_where_they_do_not_apply() -> None:
    many = case(rivals=((0.0, 999),))
    assert rivals.scipy_mvn(many) is None
    assert rivals.botorch_mvnxpb(many) is None
    assert rivals.gauss_hermite(16)(many._replace(noise="laplace")) is None


@pytest.mark.parametrize("noise", sorted(NOISES))
def test_our_errors_are_within_what_is_promised(noise: str) -> None:
    (group,) = accuracy.select([noise], [3], topk=False)
    (result,) = accuracy.measure([group], lambda done: None)
    assert result.kept, result.ours
    assert result.cases == len(group)


def test_a_wrong_value_is_seen() -> None:
    wrong = case(log_p=math.log(0.6))
    (result,) = accuracy.measure([[wrong]], lambda done: None)
    assert not result.kept
    p = stats.norm.cdf(0.5 / math.sqrt(2))
    assert result.ours.p == pytest.approx(abs(p - 0.6), rel=1e-9)
    assert result.ours.log_p == pytest.approx(abs(math.log(p / 0.6)), rel=1e-9)
    assert result.others["Hermite 64"] == pytest.approx((abs(p - 0.6), abs(math.log(p / 0.6))), rel=1e-6)


def test_a_rival_that_underflows_is_infinitely_wrong() -> None:
    (group,) = accuracy.select(["normal"], [3], topk=False)
    deep = [c for c in group if c.log_p < -600]
    (result,) = accuracy.measure([deep], lambda done: None)
    assert result.others["Hermite 16"] == (pytest.approx(0, abs=1e-200), math.inf)
    assert result.kept


def test_the_command_prints_json() -> None:
    outcome = CliRunner().invoke(cli, ["bench", "accuracy", "--noise", "gumbel", "--classes", "10", "--json"])
    assert outcome.exit_code == 0, outcome.output
    (result,) = json.loads(outcome.stdout)["results"]
    assert (result["noise"], result["classes"], result["kept"]) == ("gumbel", 10, True)
    assert 0 < result["ours"]["gradient"] < 1e-7
    assert result["others"]["scipy quad"]["p"] > result["ours"]["p"]
    assert result["others"]["scipy mvn"] is None


def test_the_command_prints_tables() -> None:
    outcome = CliRunner().invoke(cli, ["bench", "accuracy", "--noise", "exponential", "--classes", "2", "--classes", "3"])
    assert outcome.exit_code == 0, outcome.output
    assert "promised" in outcome.stdout
    assert outcome.stdout.count("exponential") == 6
    assert "scipy mvn" not in outcome.stdout  # which has nothing to say here


def test_top_k_has_no_rivals() -> None:
    outcome = CliRunner().invoke(cli, ["bench", "accuracy", "--noise", "laplace", "--classes", "3", "--topk"])
    assert outcome.exit_code == 0, outcome.output
    assert "scipy" not in outcome.stdout


def test_exceeding_a_promise_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "PROMISED", Errors(*[0.0] * 6))
    outcome = CliRunner().invoke(cli, ["bench", "accuracy", "--noise", "gumbel", "--classes", "3"])
    assert outcome.exit_code == 1
    assert "exceeded" in outcome.stdout


@pytest.mark.parametrize(
    ("noises", "classes", "message"),
    [
        (["norml"], None, r"^--noise: no stored values for 'norml'; did you mean 'normal'"),
        (None, [7], r"^--classes: no stored values for 7; choose from '2', '3', '10', '100', '1000', '50000'$"),
    ],
)
def test_what_the_table_lacks_is_refused(noises: list[str] | None, classes: list[int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        accuracy.select(noises, classes, topk=False)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SECONDS", 0.0)
    monkeypatch.setattr(auc, "SECONDS", 0.0)


@pytest.mark.usefixtures("_quick")
def test_kernels_beside_a_rival_as_json_and_as_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cost.png"
    rival = "torch.nn:MultiMarginLoss"
    asked = ["bench", "kernels", "--classes", "3", "--classes", "5000", "--rival", rival, "--plot", str(path)]
    outcome = CliRunner().invoke(cli, [*asked, "--json"])
    assert outcome.exit_code == 0, outcome.output
    results = json.loads(outcome.stdout)["results"]
    assert [(r["rows"], r["classes"], r["scores"], r["kernels"]["accuracy"]) for r in results] == [
        (256, 3, "flat", "cpu"),
        (256, 3, "peaked", "cpu"),
        (256, 5000, "flat", "cpu"),
        (256, 5000, "peaked", "cpu"),
    ]
    for result in results:
        assert set(result["costs"]) == {"cross-entropy", "accuracy", rival}
        assert result["costs"]["cross-entropy"]["ratio"] == 1
        ours = result["costs"]["accuracy"]
        assert 0 < ours["low"] <= ours["median"] <= ours["high"]
    assert results[2]["costs"]["accuracy"]["memory"] > 0.9  # the gradient at least
    assert path.stat().st_size > 10_000
    monkeypatch.setattr(kernels, "ROWS", 8)
    table = CliRunner().invoke(cli, ["bench", "kernels", "--classes", "3", "--loss", "top-k", "--noise", "laplace"])
    assert "reference" in table.stdout


@pytest.mark.usefixtures("_quick")
def test_kernels_measures_every_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SLOW", 0.0)
    asked = ["bench", "kernels", "--classes", "3", "--loss", "all", "--noise", "gumbel", "--dtype", "float64", "--json"]
    monkeypatch.setattr(kernels, "ROWS", 8)
    outcome = CliRunner().invoke(cli, asked)
    assert outcome.exit_code == 0, outcome.output
    flat, peaked = json.loads(outcome.stdout)["results"]
    for result in (flat, peaked):
        assert set(result["kernels"]) == set(SUBJECTS)
        assert set(result["costs"]) == {"cross-entropy", *SUBJECTS}
        assert all(cost["median"] > 0 for cost in result["costs"].values())


def test_growth_with_the_rows_is_drawn_beside_that_with_the_classes(tmp_path: Path) -> None:
    cost = kernels.Cost(1e-3, 9e-4, 2e-3, 1.0, 1.0)

    def result(shape: tuple[int, int], scores: str) -> kernels.Result:
        return kernels.Result(*shape, scores, {"accuracy": "cpu"}, {"cross-entropy": cost, "accuracy": cost})

    batches = kernels.shapes((), ["accuracy"])
    assert len({rows for rows, C in batches if C == kernels.GROWTH_CLASSES}) == len(kernels.GROWTH) + 1
    heights = []
    for shapes in (kernels.shapes((3, 5000), ["accuracy"]), batches):
        path = tmp_path / f"{len(shapes)}.png"
        kernels.plot([result(shape, scores) for shape in shapes for scores in ("flat", "peaked")], path)
        heights.append(int.from_bytes(path.read_bytes()[20:24], "big"))  # of a PNG
    assert heights[1] == 2 * heights[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rival", "torch.nn.functional"], "--rival: expected an import path like package.module:name"),
        (["--rival", "torch.nn:Nothing"], "--rival: expected an import path like package.module:name"),
        (["--rival", "math:pi"], "--rival: expected a callable of (scores, target), got float at 'math:pi'"),
        (["--classes", "1"], "--classes: expected at least 2, got 1"),
        (["--noise", "norml"], "--noise: unknown name 'norml'"),
        (["--loss", "topk"], "--loss: there is no 'topk'; did you mean 'top-k'?"),
    ],
)
def test_kernels_refuses_in_words(options: list[str], message: str) -> None:
    outcome = CliRunner().invoke(cli, ["bench", "kernels", *options])
    assert isinstance(outcome.exception, InputError)
    assert str(outcome.exception).startswith(message)


@pytest.mark.usefixtures("_quick")
def test_auc_beside_a_sort() -> None:
    outcome = CliRunner().invoke(cli, ["bench", "auc", "--scores", "300", "--json"])
    assert outcome.exit_code == 0, outcome.output
    results = json.loads(outcome.stdout)["results"]
    assert [(r["n"], r["dtype"]) for r in results] == [(300, "float32"), (300, "float64")]
    for result in results:
        assert set(result["costs"]) == {"torch.sort", *auc.NOISES}
        assert result["costs"]["torch.sort"]["ratio"] == 1
        for noise in auc.NOISES:
            cost = result["costs"][noise]
            assert cost["kernel"] == "cpu"
            assert 0 < cost["low"] <= cost["median"] <= cost["high"]
    table = CliRunner().invoke(cli, ["bench", "auc", "--scores", "2"])
    assert "beside torch.sort" in table.stdout
    refused = CliRunner().invoke(cli, ["bench", "auc", "--scores", "1"])
    assert isinstance(refused.exception, InputError)
    assert str(refused.exception) == "--scores: expected at least 2, got 1"


def test_linear_measures_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from lossmith.bench import speed_linear

    monkeypatch.setattr(speed_linear, "SECONDS", 0.0)
    asked = ["bench", "linear", "--rows", "6", "--hidden", "3", "--classes", "5"]
    outcome = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    assert {speed_linear.BASE, "LinearAccuracyLoss(noise='normal')"} <= set(outcome["results"])
    assert all(cost["low"] <= cost["median"] <= cost["high"] for cost in outcome["results"].values())
    assert "→ 5 classes" in CliRunner().invoke(cli, [*asked, "--noise", "gumbel"]).stdout
    refused = CliRunner().invoke(cli, [*asked, "--classes", "1"])
    assert str(refused.exception) == "--classes: expected at least 2, got 1"


def test_boosting_measures_every_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xgboost")
    pytest.importorskip("lightgbm")
    from lossmith.bench import speed_boosting

    for name, value in (("SECONDS", 0.0), ("ROUNDS", 2)):
        monkeypatch.setattr(speed_boosting, name, value)
    monkeypatch.setattr("lossmith.bench.timing.LEAST", 2)
    asked = ["bench", "boosting", "--rows", "200"]
    outcome = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    for library, own in speed_boosting.OWN.items():
        assert set(outcome[library]) == {*own, *speed_boosting.LOSSES}
        assert outcome[library][own[0]]["ratio"] == 1
    assert "200 rows of 20 features" in CliRunner().invoke(cli, asked).stdout
    assert "--rows: expected at least 100" in str(CliRunner().invoke(cli, ["bench", "boosting", "--rows", "5"]).exception)
    monkeypatch.setattr("lossmith.cli.bench.find_spec", lambda name: None)
    assert "pip install 'lossmith[boosting]'" in str(CliRunner().invoke(cli, asked).exception)


def test_trainer_measures_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from lossmith.bench import speed_trainer

    for name, value in (("SECONDS", 0.0), ("BATCH", 2), ("TOKENS", 4), ("WIDTH", 8), ("LAYERS", 1)):
        monkeypatch.setattr(speed_trainer, name, value)
    asked = ["bench", "trainer", "--classes", "5"]
    outcome = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    assert {speed_trainer.BASE, "TrainerLoss(gumbel, q=0)", "TrainerLoss(gumbel, q=0), fused"} <= set(outcome["results"])
    assert all(cost["low"] <= cost["median"] <= cost["high"] for cost in outcome["results"].values())
    assert "5 entries" in CliRunner().invoke(cli, asked).stdout
    monkeypatch.setattr("lossmith.cli.bench.find_spec", lambda name: None)
    refused = CliRunner().invoke(cli, asked)
    assert "pip install 'lossmith[transformers]'" in str(refused.exception)
