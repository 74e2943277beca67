"""Reports against what is known of each loss by hand: values at a lead of 0, limits, slopes of the tails, margins."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor, nn

import lossmith
from lossmith import AccuracyLoss, check_recipe
from lossmith.recipe import RecipeReport, table
from lossmith.recipe.probe import Loss
from lossmith.surrogates import BetaBernoulliLoss, HingeLoss, PolyLoss, PolynomialLoss, SigmoidLoss

LOG2 = math.log(2)


def of_lead(function: Callable[[Tensor], Tensor]) -> Loss:
    """A loss of two classes from a function of the lead."""

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        own = scores.gather(1, target[:, None])[:, 0]
        return function(2 * own - scores.sum(1)).mean()

    return loss


def one_minus_softmax(scores: Tensor, target: Tensor) -> Tensor:
    return 1 - scores.softmax(1).gather(1, target[:, None]).mean()


def squared_error(scores: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(scores, F.one_hot(target, scores.shape[1]).to(scores))


# loss: c of the bound, limit as an approximation, (noise, scale, ratio) or None, growth, its bound or None
KNOWN: dict[str, tuple[Loss, float, float | None, tuple[str, float, float] | None, str, float | None]] = {
    "cross-entropy": (F.cross_entropy, LOG2, None, ("gumbel", 1, 1), "linear", None),
    "cross-entropy, bits": (lambda s, t: F.cross_entropy(s, t) / LOG2, 1.0, None, ("gumbel", 1, 1 / LOG2), "linear", None),
    "cooler": (lambda s, t: F.cross_entropy(s / 5, t), LOG2, None, ("gumbel", 5, 1), "linear", None),
    "1 - softmax": (one_minus_softmax, 0.5, 1.0, ("gumbel", 1, 1), "bounded", 1.0),
    "sigmoid": (SigmoidLoss(scale=0.01), 0.5, 1.0, ("gumbel", 0.01, 1), "bounded", 1.0),
    "hinge": (HingeLoss(), 1.0, None, None, "linear", None),
    "polynomial": (PolynomialLoss(), 0.5, 1.0, None, "bounded", 1.0),
    # −log(¼ + p/2) at p = ½, 1, 0, less log of the value at p = 1, which stays: log 4/3 there, log 4 at p = 0
    "beta-bernoulli": (BetaBernoulliLoss(), LOG2, None, ("gumbel", 1, 2 / 3), "bounded", math.log(4)),
    "poly-1": (PolyLoss(), LOG2 + 0.5, None, ("gumbel", 1, 2), "linear", None),
    "exponential": (of_lead(lambda t: torch.exp(-t)), 1.0, None, ("gumbel", 1, 1), "exponential", None),
    "probit, no name": (of_lead(lambda t: -torch.special.log_ndtr(t)), LOG2, None, ("normal", 0.5**0.5, 1), "quadratic", None),
    "log of a log": (
        of_lead(lambda t: torch.log1p(torch.exp(-t)).log1p()),
        math.log1p(LOG2),
        None,
        ("gumbel", 1, 1),
        "logarithmic",
        None,
    ),
    "cube": (of_lead(lambda t: F.softplus(-t) ** 3), LOG2**3, None, None, "power", None),
    "squared error": (squared_error, 0.5, None, None, "quadratic", None),
    "perceptron": (of_lead(lambda t: (-t).clamp_min(0)), 0.0, None, None, "linear", None),
    "constant": (lambda s, t: 0 * s.sum() + 1, 1.0, None, None, "bounded", 1.0),
    "wrong sign": (lambda s, t: -F.cross_entropy(s, t), 0.0, None, None, "falling", None),
    "softsign": (of_lead(lambda t: (1 - F.softsign(t)) / 2), 0.5, 1.0, None, "bounded", 1.0),
    "normal, q = 0": (AccuracyLoss("normal", q=0.0), 0.5, 1.0, ("normal", 1, 1), "bounded", 1.0),
    "normal, q = ½": (AccuracyLoss("normal", q=0.5), 2 - 2**0.5, 2.0, ("normal", 1, 1), "bounded", 2.0),
    "normal, q = 1": (AccuracyLoss("normal", scale=3.0, q=1.0), LOG2, None, ("normal", 3, 1), "quadratic", None),
    "normal, q = 2": (AccuracyLoss("normal", q=2.0), 1.0, None, ("normal", 1, 1), "exponential", None),
    "gumbel, q = 0": (AccuracyLoss("gumbel", q=0.0), 0.5, 1.0, ("gumbel", 1, 1), "bounded", 1.0),
    "gumbel, q = ½": (AccuracyLoss("gumbel", q=0.5), 2 - 2**0.5, 2.0, ("gumbel", 1, 1), "bounded", 2.0),
    "gumbel, q = 1": (AccuracyLoss("gumbel", q=1.0), LOG2, None, ("gumbel", 1, 1), "linear", None),
    "gumbel, q = 2": (AccuracyLoss("gumbel", q=2.0), 1.0, None, ("gumbel", 1, 1), "exponential", None),
    "exponential noise": (AccuracyLoss("exponential", q=1.0), LOG2, None, ("exponential", 1, 1), "linear", None),
}


@cache
def known(name: str) -> RecipeReport:
    return check_recipe(KNOWN[name][0], name=name)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_of_a_loss_is_found(name: str) -> None:
    _, factor, limit, match, growth, bound = KNOWN[name]
    report = known(name)
    assert report.error_factor == pytest.approx(factor, rel=1e-6, abs=1e-12)
    assert report.error_limit == (None if limit is None else pytest.approx(limit, rel=2e-3))
    assert (report.growth, report.bound) == (growth, None if bound is None else pytest.approx(bound, rel=2e-3))
    if match is None:
        assert report.noise is None
    else:
        assert (report.noise, report.noise_scale, report.slope_ratio) == (
            match[0],
            pytest.approx(match[1], 1e-4),
            pytest.approx(match[2], 1e-3),
        )
    assert report.smooth == (name not in ("hinge", "perceptron"))
    assert report.unbounded == (growth not in ("bounded", "falling"))
    assert report.follows == (report.smooth and report.unbounded and match is not None)


def test_the_curve_is_the_loss() -> None:
    report = check_recipe(AccuracyLoss("normal", q=1.0))
    # Two classes, normal noise: p = Φ(t/√2), so L = −log Φ(t/√2) and dL/dt = −φ(t/√2)/(√2 Φ(t/√2)).
    x = report.leads / math.sqrt(2)
    np.testing.assert_allclose(report.values, -norm.logcdf(x), rtol=1e-9, atol=1e-300)
    slopes = -np.exp(norm.logpdf(x) - norm.logcdf(x)) / math.sqrt(2)
    np.testing.assert_allclose(report.slopes, slopes, rtol=1e-6, atol=1e-300)
    assert (np.diff(report.leads) > 0).all()
    assert (report.leads[0], report.leads[-1]) == (-1000, 1000)


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.7, 200.0])
def test_a_hinge_is_flat_from_its_margin_and_bends_there(margin: float) -> None:
    report = check_recipe(HingeLoss(margin=margin))
    assert report.kinks == (pytest.approx(margin, rel=1e-6),)
    assert report.flat_from == pytest.approx(margin, rel=1e-6)
    assert report.error_factor == pytest.approx(margin, rel=1e-6)


def test_kinks_and_jumps_are_told_apart_and_bends_are_neither() -> None:
    huber = of_lead(lambda t: torch.where(t < 0, 0.5 - t, (1 - t).clamp_min(0) ** 2 / 2))  # slope −1 from both sides of 0
    assert check_recipe(huber).smooth
    assert check_recipe(huber).flat_from == pytest.approx(1, rel=1e-6)
    two = check_recipe(of_lead(lambda t: (1 - t).clamp_min(0) + (-2.5 - t).clamp_min(0)))
    assert two.kinks == (pytest.approx(-2.5), pytest.approx(1.0))
    step = check_recipe(of_lead(lambda t: F.softplus(-t) + (t < 0)))
    assert (step.jumps, step.kinks) == ((pytest.approx(0, abs=1e-8),), ())
    assert step.error_factor == pytest.approx(1 + LOG2)
    assert check_recipe(of_lead(lambda t: F.softplus(300 * (1 - t)) / 300)).smooth  # sharp, not broken


def test_underflow_is_not_flatness() -> None:
    assert check_recipe(F.cross_entropy).flat_from is None
    assert check_recipe(one_minus_softmax).flat_from is None  # its slope is rounded to 0 from 37 on
    assert check_recipe(AccuracyLoss("normal", q=1.0)).flat_from is None
    for noise in ("normal", "gumbel"):
        assert check_recipe(AccuracyLoss(noise, margin=2.0)).flat_from == pytest.approx(2, rel=1e-6)
    assert known("perceptron").flat_from == 0


def test_label_smoothing_charges_sure_right_answers() -> None:
    # Two classes, smoothing 0.1: L = log(1 + e^−t) + t/20, lowest where sigmoid(−t) = 1/20, at t = log 19.
    report = check_recipe(nn.CrossEntropyLoss(label_smoothing=0.1))
    assert report.rises_from == pytest.approx(math.log(19), abs=0.1)  # to the grid
    assert report.noise is None
    assert "charges them again" in str(report)


def test_what_dies_out_otherwise_than_any_expected_error() -> None:
    assert "too slowly" in known("softsign").right_words
    focal = check_recipe(of_lead(lambda t: torch.sigmoid(-t) ** 2 * F.softplus(-t)))  # slope ~ −3 e^−3t
    assert focal.noise is None
    assert "too fast" in focal.right_words


def test_overflow_and_infinity() -> None:
    # 1/p − 1 = e^s for gumbel noise, twice in the batch's sum: float64 ends at e^709.78.
    assert known("gumbel, q = 2").infinite_from == pytest.approx(709.78 - LOG2, abs=0.01)
    report = check_recipe(of_lead(lambda t: -torch.log1p(t.clamp(-1, 1)) + LOG2))
    assert (report.growth, report.infinite_from) == ("infinite", pytest.approx(1, rel=1e-6))
    assert report.unbounded


def test_pull_far_out() -> None:
    vanish = {name: known(name).pull_vanishes for name in ("1 - softmax", "log of a log", "cross-entropy", "cube")}
    assert vanish == {"1 - softmax": True, "log of a log": True, "cross-entropy": False, "cube": False}


def test_power() -> None:
    report = known("cube")
    assert report.growth_exponent == pytest.approx(3, abs=1e-3)
    assert "grows as lead^3" in report.wrong_words


@pytest.mark.parametrize("classes", [3, 10])
def test_more_classes(classes: int) -> None:
    report = check_recipe(F.cross_entropy, num_classes=classes)
    assert report.error_factor == pytest.approx(math.log(classes), rel=1e-6)  # level rivals
    assert (report.noise, report.noise_scale, report.slope_ratio) == ("gumbel", pytest.approx(1, 1e-3), pytest.approx(1, 2e-2))
    own = check_recipe(AccuracyLoss("gumbel", q=0.0), num_classes=classes)
    assert (own.error_factor, own.slope_ratio) == (pytest.approx(1 - 1 / classes), pytest.approx(1, 1e-6))


def test_binary_and_multilabel() -> None:
    for task, labels in (("binary", 2), ("multilabel", 2), ("multilabel", 5)):
        report = check_recipe(nn.BCEWithLogitsLoss(), task=task, num_classes=labels)  # type: ignore[arg-type]
        assert (report.noise, report.noise_scale, report.slope_ratio) == (
            "gumbel",
            pytest.approx(1, 1e-4),
            pytest.approx(1, 1e-3),
        )
        assert (report.error_factor, report.growth) == (pytest.approx(LOG2), "linear")

    def f1_loss(scores: Tensor, target: Tensor) -> Tensor:  # of one positive and one negative, each right with p: F1 = p
        p = torch.sigmoid(scores)
        return 1 - 2 * (p * target).sum() / (p + target).sum()

    report = check_recipe(f1_loss, task="binary")
    assert (report.error_factor, report.bound, report.slope_ratio) == (
        pytest.approx(0.5),
        pytest.approx(1),
        pytest.approx(1, 1e-3),
    )


BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no callable": (1.0, {}, TypeError, "loss: expected a callable of (scores, target), got float"),
    "a list of losses": (
        nn.CrossEntropyLoss(reduction="none"),
        {},
        ValueError,
        "loss: expected one real number a batch, got (2,) float64",
    ),
    "a number": (lambda s, t: 1.0, {}, TypeError, "loss: expected a scalar tensor, got float"),
    "the error itself": (
        lambda s, t: (s.argmax(1) != t).double().mean(),
        {},
        ValueError,
        "loss: expected a value that depends on",
    ),
    "nan": (lambda s, t: s.sum() * math.nan, {}, ValueError, "loss: expected finite numbers or inf, got nan at a lead of"),
    "nan on one side": (
        of_lead(lambda t: (t + 3).log()),
        {},
        ValueError,
        "loss: expected finite numbers or inf, got nan at a lead of -1000;",
    ),
    "nan slope": (of_lead(lambda t: (t * (t > 0)).sqrt()), {}, ValueError, "loss: expected a finite gradient, got "),
    "infinite when right": (
        of_lead(torch.exp),
        {},
        ValueError,
        "loss: expected finite numbers where answers are right, got inf",
    ),
    "random": (lambda s, t: (s * torch.randn(2, 2)).sum(), {}, ValueError, "loss: expected the same value for the same input"),
    "wrong task": (
        nn.BCEWithLogitsLoss(),
        {},
        ValueError,
        "loss: expected a loss of scores (2, 2) float64 and target (2,) int64, got ValueError: ",
    ),
    "float32 weights": (
        nn.CrossEntropyLoss(weight=torch.ones(2)),
        {},
        ValueError,
        "loss: expected a loss of scores (2, 2) float64",
    ),
    "task": (
        F.cross_entropy,
        {"task": "multilabels"},
        ValueError,
        "task: unknown name 'multilabels'; did you mean 'multilabel'",
    ),
    "one class": (F.cross_entropy, {"num_classes": 1}, ValueError, "num_classes: expected a whole number ≥ 2, got 1"),
    "binary": (
        F.cross_entropy,
        {"task": "binary", "num_classes": 3},
        ValueError,
        "num_classes: expected 2 for task='binary', got 3;",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_loss_gets_one_line(case: str) -> None:
    loss, options, error, words = BAD[case]
    with pytest.raises(error) as caught:
        check_recipe(loss, **options)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_parameters_get_no_gradient() -> None:
    loss = BetaBernoulliLoss(2).double()
    check_recipe(loss)
    assert all(p.grad is None for p in loss.parameters())


def test_the_report_reads_well_and_stays_as_it_is() -> None:
    report = check_recipe(HingeLoss(), name="hinge")
    assert str(report).split("\n") == [
        "hinge falls short of the recipe: not smooth, no agreement where it is surely right",
        "  error         kink at a lead of 1; an upper bound of the 0-1 error",
        "  surely right  flat beyond a lead of 1",
        "  surely wrong  grows linearly, without bound",
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.name = "other"  # type: ignore[misc]
    assert check_recipe(F.cross_entropy).name == "cross_entropy"
    assert check_recipe(HingeLoss()).name == "HingeLoss()"


def test_table_has_a_row_a_loss() -> None:
    lines = table({"a|b": F.cross_entropy, "hinge": HingeLoss()}).split("\n")
    assert [line.count("|") - line.count("\\|") for line in lines] == [6] * 4
    assert lines[2].startswith(r"| a\|b | smooth; ")
    assert lines[2].endswith(" | yes |")
    assert lines[3].endswith(" | no |")


@pytest.mark.parametrize("name", ["cross-entropy", "hinge", "constant", "wrong sign", "normal, q = 2"])
def test_plot_is_a_picture(name: str, tmp_path: Path) -> None:
    path = known(name).plot(tmp_path / "loss.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_checking_is_of_the_core() -> None:
    assert lossmith.check_recipe is check_recipe
