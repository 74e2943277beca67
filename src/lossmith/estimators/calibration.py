r"""Probabilities from scores: the temperature, and the offsets, whose likelihood on given rows is highest.

    temperature:  max over a of          Σ_i w_i log softmax(e^a s_i)_{y_i}
    calibration:  max over a, b of       Σ_i w_i log softmax(e^a s_i + b)_{y_i} − (a² + ‖b‖²) / 2,    mean w = 1, b_1 = 0

The second is Platt's: for two classes a logistic regression on the lead. Its penalty counts as much as half a row, so that
scores that part few rows perfectly give no certainty. Source: Platt, "Probabilistic outputs for support vector machines", 1999;
Guo et al., "On calibration of modern neural networks", ICML 2017 (vector scaling, here with one factor).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from lossmith.estimators.trained_metric import Floats, Rows, both_classes

COLDEST = 8.0  # nats by which a temperature may differ from 1


def sharpness_of(scores: Floats, rows: Rows) -> float:
    """The factor of the scores (n, K) whose softmax has the highest likelihood on the rows."""
    whole, at = both_classes(scores), (np.arange(len(scores)), rows.y)

    def loss(log_scale: float) -> float:
        return float(-rows.weight @ log_softmax(np.exp(log_scale) * whole, axis=1)[at])

    found = minimize_scalar(loss, bounds=(-COLDEST, COLDEST), method="bounded")
    return float(np.exp(found.x))


def calibrated(scores: Floats, rows: Rows) -> Floats:
    """Probabilities (n, C) of scores (n, K), calibrated on the rows: a factor for all, an offset for each class but the first.

    Cost: some 20 evaluations of the softmax of all rows.
    """
    by_class = np.ascontiguousarray(both_classes(scores).T)  # (C, n): sums over a few classes are faster along columns
    at, weight = (rows.y, np.arange(len(scores))), rows.weight / rows.weight.mean()

    def loss(dials: Floats) -> tuple[float, Floats]:
        hot = np.exp(dials[0]) * by_class
        log_p = log_softmax(hot + _offsets(dials), axis=0)
        slope = np.exp(log_p)
        slope[at] -= 1
        slope *= weight
        grad = np.concatenate([[np.vdot(slope, hot)], slope[1:].sum(1)]) + dials
        return float(dials @ dials / 2 - weight @ log_p[at]), grad

    bounds = [(-COLDEST, COLDEST), *[(None, None)] * (len(by_class) - 1)]
    found = minimize(loss, np.zeros(len(by_class)), jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.ascontiguousarray(softmax(np.exp(found[0]) * by_class + _offsets(found), axis=0).T)


def _offsets(dials: Floats) -> Floats:
    """(C, 1): 0 for the first class, then all but the first of the dials."""
    return np.concatenate([[0.0], dials[1:]])[:, None]
