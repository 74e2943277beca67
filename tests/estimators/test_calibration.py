"""Calibrated probabilities against scikit-learn's logistic regression, and against the truth."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from lossmith.estimators.calibration import calibrated
from lossmith.estimators.trained_metric import Rows


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


def test_only_the_ratios_of_weights_count() -> None:
    made = np.random.default_rng(2)
    scores, y = made.normal(size=(50, 3)), made.integers(0, 3, 50)
    one, thousand = (calibrated(scores, Rows(y, np.full(50, w), 3)) for w in (1.0, 1000.0))
    assert one == pytest.approx(thousand, abs=1e-12)
