r"""Probabilities from scores: the temperature, and the offsets, whose likelihood on given rows is highest.

    temperature:  max over a of             Σ_i w_i log softmax(e^a s_i)_{y_i}
    calibration:  max over f ≥ 0, b of      Σ_i w_i Σ_k t_ik log softmax(f s_i + b)_k

The second is Platt's, for any number of classes: with N_k the weight of class k, in units of the mean weight, a row of class k
has t_ik = (N_k + 1) / (N_k + 2), and the other classes share the rest equally, so that scores which part few rows perfectly
give no certainty. It is concave, and neither the scale of the scores nor the order of the classes matters. Source: Platt,
"Probabilistic outputs for support vector machines", 1999; Guo et al., "On calibration of modern neural networks", ICML 2017
(vector scaling, here with one factor).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from lossmith.estimators.metrics.trained_metric import Floats, Rows, both_classes

COLDEST = 8.0  # nats by which a temperature may differ from 1


def sharpness_of(scores: Floats, rows: Rows) -> float:
    """The factor of the scores (n, K) whose softmax has the highest likelihood on the rows."""
    whole, at = both_classes(scores), (np.arange(len(scores)), rows.y)

    def loss(log_scale: float) -> float:
        return float(-rows.weight @ log_softmax(np.exp(log_scale) * whole, axis=1)[at])

    found = minimize_scalar(loss, bounds=(-COLDEST, COLDEST), method="bounded")
    return float(np.exp(found.x))


def calibrated(scores: Floats, rows: Rows) -> Floats:
    """Probabilities (n, C) of scores (n, K), calibrated on the rows, which all weigh something; 0 for a class without rows.

    Cost: some 20 evaluations of the softmax of all rows, more for many classes.
    """
    weight = rows.weight / rows.weight.mean()
    support = np.bincount(rows.y, weight, rows.classes)
    present = np.flatnonzero(support)
    probabilities = np.zeros((len(scores), rows.classes))
    if len(present) == 1:
        probabilities[:, present] = 1.0
        return probabilities
    by_class = np.ascontiguousarray(both_classes(scores)[:, present].T)  # (C, n): sums over few classes are faster in columns
    by_class -= by_class.mean(0)
    unit = np.sqrt(np.mean(by_class**2)) or 1.0
    by_class /= unit
    at = np.searchsorted(present, rows.y), np.arange(len(scores))
    wrong = weight / (support[rows.y] + 2) / (len(present) - 1)  # w t of each other class
    own = weight * (support[rows.y] + 1) / (support[rows.y] + 2) - wrong  # by how much that of a row's own class is more

    def loss(dials: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(dials[0] * by_class + dials[1:, None], axis=0)
        slope = np.exp(log_p) * weight - wrong
        slope[at] -= own
        value = -float(own @ log_p[at] + wrong @ log_p.sum(0))
        return value / len(weight), np.concatenate([[np.vdot(slope, by_class)], slope.sum(1)]) / len(weight)

    start = np.concatenate([[min(unit, 1.0)], np.zeros(len(present))])
    bounds = [(0.0, None), *[(None, None)] * len(present)]
    options = {"ftol": 1e-10, "gtol": 1e-7}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    probabilities[:, present] = softmax(found[0] * by_class + found[1:, None], axis=0).T
    return probabilities
