"""Calibrated probabilities against scikit-learn's logistic regression, and against the truth."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from lossmith.estimators.calibration import calibrated
from lossmith.estimators.metrics.trained_metric import Rows


def test_two_classes_are_platts_logistic_regression() -> None:
    made = np.random.default_rng(0)
    lead = made.normal(size=5000)
    y = (made.random(5000) < 1 / (1 + np.exp(2 - 3 * lead))).astype(np.int64)
    weight = made.random(5000) + 0.5
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(lead[:, None], y, sample_weight=weight).predict_proba(lead[:, None])
    np.testing.assert_allclose(calibrated(lead[:, None], Rows(y, weight, 2)), expected, atol=2e-3)


def test_temperature_and_offsets_of_several_classes_are_found() -> None:
    made = np.random.default_rng(1)
    true = made.normal(size=(20_000, 4)) * 2
    p = softmax(true, axis=1)
    y = (p.cumsum(1) < made.random((len(p), 1))).sum(1)
    found = calibrated(0.2 * (true - [1.0, -2.0, 0.0, 3.0]), Rows(y, np.ones(len(y)), 4))
    assert np.abs(found - p).max() < 0.03


def test_few_rows_that_are_parted_give_no_certainty() -> None:
    scores, y = np.array([[-1.0], [-2.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
    found = calibrated(scores, Rows(y, np.ones(4), 2))
    assert (found.argmax(1) == y).all()
    assert found.max() < 0.999


def test_it_is_the_optimum_of_the_smoothed_likelihood() -> None:
    made = np.random.default_rng(3)
    y, weight, scores = made.choice(3, 40, p=[0.6, 0.3, 0.1]), made.random(40) + 0.2, made.normal(size=(40, 3))
    relative = weight / weight.mean()
    support = np.array([relative[y == k].sum() for k in range(3)])
    target = np.array([[(support[k] + 1 if j == k else 0.5) / (support[k] + 2) for j in range(3)] for k in y])

    def loss(dials: np.ndarray) -> float:
        return -np.sum(relative[:, None] * target * log_softmax(dials[0] * scores + dials[1:], axis=1))

    found = minimize(loss, [1.0, 0.0, 0.0, 0.0], method="Powell", options={"xtol": 1e-10, "ftol": 1e-14, "maxiter": 10**5}).x
    expected = softmax(found[0] * scores + found[1:], axis=1)
    np.testing.assert_allclose(calibrated(scores, Rows(y, weight, 3)), expected, atol=1e-4)


def test_only_the_ratios_of_weights_count() -> None:
    made = np.random.default_rng(2)
    scores, y, weight = made.normal(size=(50, 3)), made.integers(0, 3, 50), made.random(50) + 0.1
    one, thousand = (calibrated(scores, Rows(y, w * weight, 3)) for w in (1.0, 1000.0))
    assert one == pytest.approx(thousand, abs=1e-9)


def test_one_class_and_equal_scores() -> None:
    assert calibrated(np.ones((3, 2)), Rows(np.array([1, 1, 1]), np.ones(3), 2)).tolist() == [[0.0, 1.0]] * 3
    found = calibrated(np.zeros((4, 1)), Rows(np.array([0, 0, 0, 1]), np.ones(4), 2))
    np.testing.assert_allclose(found[:, 1], (3 / 5 + 2 / 3) / 4, atol=1e-5)  # the mean of the targets
