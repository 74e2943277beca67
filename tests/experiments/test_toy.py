"""The toy: optima against closed forms, brute force and the numbers that others have published for these points."""

import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib import image
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.stats import norm

from lossmith.catalogue import CANDIDATES
from lossmith.experiments.toy import figure
from lossmith.experiments.toy.optima import (
    FIVE,
    LOSSES,
    THREE,
    Points,
    accuracy,
    best_accuracy,
    critical_scale,
    optimum,
    risk,
    study_one,
)

# Losses of the signed score y·f, by hand. With two classes the lead of normal noise has the variance 2.
BY_HAND = {
    "cross-entropy": lambda t: np.logaddexp(0, -t),
    "hinge": lambda t: np.maximum(0, 1 - t),
    "sigmoid": lambda t: 1 / (1 + np.exp(t)),
    "polyloss": lambda t: np.logaddexp(0, -t) + 1 / (1 + np.exp(t)),
    "exact": lambda t: norm.sf(t / math.sqrt(2)),
    "probit": lambda t: -norm.logcdf(t / math.sqrt(2)),
    "smooth-accuracy": lambda t: 1 / (1 + np.exp(t)),
}


def by_hand(loss, points, b, k):
    x, sign = np.array(points.x), 2 * np.array(points.label) - 1
    return BY_HAND[loss](sign * k * (x - np.asarray(b, dtype=float)[..., None])).mean(-1)


def lowest(loss, points, k, low=-40.0, high=40.0):
    """The best threshold by brute force, then refined."""
    grid = np.linspace(low, high, 8_001)
    best = grid[by_hand(loss, points, grid, k).argmin()]
    return minimize_scalar(
        lambda b: float(by_hand(loss, points, b, k)),
        bounds=(best - 0.02, best + 0.02),
        method="bounded",
        options={"xatol": 1e-9},
    ).x


def published(value):
    """A number as it was published: right to half a unit of its last digit."""
    digits = len(str(value).partition(".")[2])
    return pytest.approx(value, abs=0.5001 * 10**-digits)


@pytest.fixture(scope="module")
def three():
    return {loss: study_one(loss, THREE) for loss in ("hinge", "sigmoid", "exact", "0-1 loss")}


@pytest.fixture(scope="module")
def five():
    return {loss: study_one(loss, FIVE) for loss in ("cross-entropy", "hinge", "sigmoid", "exact")}


# The parts


@pytest.mark.parametrize("loss", BY_HAND)
def test_risk_is_the_mean_of_the_formula(loss):
    b = np.linspace(-8, 8, 33)
    for points in (THREE, FIVE):
        for k in (0.1, 1.0, 7.0):
            np.testing.assert_allclose(risk(loss, points, b, k), by_hand(loss, points, b, k), rtol=1e-8, atol=1e-14)


def test_accuracy_counts_the_points():
    assert accuracy(THREE, 0.1) == 1
    assert accuracy(THREE, -0.1) == accuracy(THREE, 1.0) == pytest.approx(2 / 3)
    assert accuracy(THREE, -9.0) == pytest.approx(1 / 3)
    assert accuracy(THREE, 0.0) == pytest.approx(2 / 3)  # a point on the threshold is wrong
    assert accuracy(FIVE, -5.5) == 0.8


def test_best_accuracy_is_that_of_a_search():
    generator = np.random.default_rng(0)
    for _ in range(50):
        x, label = generator.normal(size=7).round(1), generator.integers(0, 2, 7)
        b = np.linspace(-6, 6, 1201) + 0.005  # never on a point
        sign = 2 * label - 1
        searched = np.mean(sign * (x - b[:, None]) > 0, axis=1).max()
        assert best_accuracy(Points("", tuple(x), tuple(label))) == pytest.approx(searched)


@pytest.mark.parametrize("loss", ["cross-entropy", "exact", "sigmoid", "polyloss"])
def test_no_threshold_of_a_search_beats_the_optimum(loss):
    generator = np.random.default_rng(1)
    for k in (0.5, 2.0, 6.0):
        points = Points("", tuple(generator.normal(size=6) * 2), (0, 1, *generator.integers(0, 2, 4)))
        searched = by_hand(loss, points, np.linspace(-20, 20, 40_001), k).min()
        assert optimum(loss, points, k).risk <= searched + 1e-9


# Three points


def test_cross_entropy_of_three_points():
    found = optimum("cross-entropy", THREE, 1.0)
    assert found.low == found.high == published(0.7001)
    assert found.middle == pytest.approx(
        minimize(lambda b: by_hand("cross-entropy", THREE, b[0], 1), [0.0], tol=1e-12).x[0], abs=1e-5
    )
    assert found.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize(("k", "b"), [(1, 0.700), (2, 0.360), (4, 0.201), (8, 0.139), (16, 0.126)])
def test_cross_entropy_over_scale(k, b):
    found = optimum("cross-entropy", THREE, k)
    assert found.middle == pytest.approx(b, abs=5.1e-4)
    assert found.middle == pytest.approx(lowest("cross-entropy", THREE, k), abs=1e-6)
    assert (found.accuracy == 1) == (k > 3.025)


@pytest.mark.parametrize(("k", "low", "high"), [(1, 0.75, 1), (2, 0.25, 0.5), (4, 0, 0.25), (8, 0.125, 0.125)])
def test_hinge_is_flat_at_its_minimum(k, low, high):
    found = optimum("hinge", THREE, k)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    kinks = np.array([x + sign / k for x in THREE.x for sign in (-1, 1)])  # its minimum is attained at a kink
    assert found.risk == pytest.approx(by_hand("hinge", THREE, kinks, k).min(), abs=1e-8)


def test_hinge_minimum_is_seven_twelfths():
    assert optimum("hinge", THREE, 1.0).risk == pytest.approx(7 / 12, abs=1e-12)


def test_all_points_are_right_between_0_and_a_quarter(three):
    fixed = three["0-1 loss"].fixed
    assert (fixed.low, fixed.high) == pytest.approx((0, 0.25), abs=1e-9)
    assert (fixed.risk, fixed.accuracy) == (0, 1)


@pytest.mark.parametrize(("sigma", "b"), [(1, 3.906), (0.5, 1.02), (0.3, 0.41), (0.25, 0.30), (0.2, 0.22), (0.1, 0.128)])
def test_exact_over_sigma(sigma, b):
    found = optimum("exact", THREE, 1 / sigma)
    assert found.middle == published(b)
    assert found.middle == pytest.approx(lowest("exact", THREE, 1 / sigma), abs=1e-5)
    assert found.accuracy == (1 if sigma < 0.22 else pytest.approx(2 / 3))


def test_from_which_scale_on_all_points_are_right():
    def slope_at_the_edge(k, loss):
        return np.diff(by_hand(loss, THREE, [0.25 - 1e-4, 0.25 + 1e-4], k))[0]

    for loss, k in {"cross-entropy": published(3.025), "exact": pytest.approx(1 / 0.220, abs=0.01)}.items():
        critical = critical_scale(loss, THREE, edge=0.25)
        assert critical == k
        assert critical == pytest.approx(brentq(slope_at_the_edge, 2, 6, args=(loss,)), abs=1e-5)
    assert critical_scale("hinge", THREE, edge=0.25) == pytest.approx(4)
    assert math.isnan(critical_scale("0-1 loss", THREE, edge=0.25))  # at any scale


def test_bounded_loss_runs_away_from_three_points_at_scale_1(three):
    fixed = three["sigmoid"].fixed
    assert fixed.low == fixed.high == math.inf
    assert fixed.accuracy == pytest.approx(2 / 3)
    falling = by_hand("sigmoid", THREE, np.linspace(5, 15, 50), 1)
    assert (np.diff(falling) < 0).all()


# Five points


def test_five_points_cannot_all_be_right(five):
    assert best_accuracy(FIVE) == 0.8
    assert five["cross-entropy"].fixed.middle == published(-4.225)
    assert five["cross-entropy"].fixed.accuracy == 0.6


def test_a_free_scale_does_not_save_cross_entropy(five):
    free = five["cross-entropy"].free
    assert (free.k, free.middle, free.accuracy) == (published(0.072), published(-8.33), 0.6)
    starts = [(math.log(k), b) for k in (0.05, 0.5, 3) for b in (-8, -5, 0)]
    searched = [minimize(lambda v: by_hand("cross-entropy", FIVE, v[1], math.exp(v[0])), start, tol=1e-12) for start in starts]
    best = min(searched, key=lambda result: result.fun)
    assert free.risk == pytest.approx(best.fun, abs=1e-9)
    assert (free.k, free.middle) == pytest.approx((math.exp(best.x[0]), best.x[1]), rel=1e-3)


def test_a_free_scale_does_not_save_hinge(five):
    assert (five["hinge"].free_limit, five["hinge"].free.accuracy) == (0, 0.6)


@pytest.mark.parametrize("loss", ["exact", "sigmoid"])
def test_a_free_scale_saves_the_metric(five, loss):
    assert (five[loss].free_limit, five[loss].free.accuracy) == (math.inf, 0.8)
    assert five[loss].free.middle == pytest.approx(-5.5, abs=0.01)
    assert five[loss].fixed.accuracy == 0.6


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3, 0.5, 0.7])
def test_exact_is_right_on_five_points_at_small_sigma(sigma):
    assert optimum("exact", FIVE, 1 / sigma).accuracy == 0.8
    assert -6 < lowest("exact", FIVE, 1 / sigma) < -5


# Table, JSON, figure


def test_cells(three, five):
    assert figure.cells(three["hinge"]) == ("hinge", "0.75 to 1", "0.667", "8", "0.125", "1.000")
    assert figure.cells(three["exact"]) == ("exact", "3.906", "0.667", "→ ∞", "0.125", "1.000")
    assert figure.cells(three["sigmoid"]) == ("sigmoid", "→ ∞", "0.667", "→ ∞", "0.125", "1.000")
    assert figure.cells(three["0-1 loss"]) == ("0-1 loss", "0 to 0.25", "1.000", "any", "0 to 0.25", "1.000")
    assert figure.cells(five["cross-entropy"]) == ("cross-entropy", "−4.225", "0.600", "0.0717", "−8.326", "0.600")
    assert figure.cells(five["hinge"]) == ("hinge", "−5", "0.600", "→ 0", "→ −∞", "0.600")


def test_numbers_for_a_reader():
    values = (math.nan, math.inf, -math.inf, -0.0, -1.25, 1 / 3)
    assert [figure.number(v) for v in values] == ["", "→ ∞", "→ −∞", "0", "−1.25", "0.3333"]


def test_every_loss_has_a_colour():
    assert list(LOSSES) == [*CANDIDATES, "0-1 loss"] == list(figure.COLOURS)
    assert len(set(figure.COLOURS.values())) == len(figure.COLOURS)


def test_json_is_valid(three, five, tmp_path):
    def refuse(name):
        raise AssertionError(name)

    studies = {"three points": list(three.values()), "five points": list(five.values())}
    critical = {"exact": 4.5, "0-1 loss": math.nan}
    text = json.dumps(figure.as_json(studies, critical, [tmp_path / "toy.png"]))
    read = json.loads(text, parse_constant=refuse)
    assert read["three points right from k"] == {"exact": 4.5, "0-1 loss": None}
    assert read["figures"] == [str(tmp_path / "toy.png")]
    sigmoid = next(case for case in read["points"]["three points"] if case["loss"] == "sigmoid")
    assert (sigmoid["fixed"]["low"], sigmoid["free"]["k"]) == ("inf", "inf")
    assert next(case for case in read["points"]["five points"] if case["loss"] == "hinge")["free"]["k"] == 0


def test_figure_is_readable(three, five, tmp_path):
    paths = figure.save(figure.figure(list(three.values()), list(five.values())), tmp_path)
    assert [path.name for path in paths] == ["toy.png", "toy.svg"]
    pixels = image.imread(paths[0])
    assert min(pixels.shape[:2]) > 500
    assert pixels.std() > 0.05  # something is drawn
    assert ET.parse(paths[1]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
