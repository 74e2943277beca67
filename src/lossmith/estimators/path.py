r"""The path of a linear classifier from likelihood to a metric.

**Likelihood.** Penalised softmax regression by scikit-learn for each C, strongest penalty first, each from the one before:

    min over W, b:   Σ_i w_i · −log softmax(W x_i + b)_{y_i} + ‖W‖² / (2 C)

**Metric.** From the coefficients at one C, multiplied by a sharpness s: a classifier with noise s times narrower. There

    min over W, b:   loss_q(W x + b) + λ ‖W‖² / (2 s²),      λ = LOOSER / (C Σ_i w_i)

by L-BFGS, loss_q that of ``metrics``. Each stage (s, q) of STAGES starts from where the one before ended. A stage whose counted
metric on the training rows is below that of its start is dropped, and the next stage starts from that start. Where the metric
on the training rows is perfect, there is nothing to train. Stages of q = 0, the metric itself, lead out of where q = ½ ends;
what may be taken are the ends of q = ½, which keep more of the likelihood's caution.

Coefficients are (K, d + 1), the intercept last; K is 1 for two classes, else C.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgWarning
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from lossmith.estimators.metrics.trained_metric import Floats, Rows, TrainedMetric

STAGES = ((1.0, 0.5), (1.0, 0.0), (3.0, 0.5), (3.0, 0.0), (9.0, 0.5))  # (sharpness, q)
LOOSER = 0.3
STEPS = 300  # of L-BFGS, a stage, at most
CLOSE = 1e-8  # relative fall of the loss in a step below which a stage ends
NEWTON_MOST = 150  # coefficients up to which Newton's method solves for the likelihood: its steps are few, and each is a matrix
NEWTON_TOL = 1e-8  # whose last steps cost little
MISSING = -30.0  # the intercept of a class that a fold lacks


@dataclass(frozen=True)
class Point:
    """A stage of the path: ``q`` 1 and ``sharpness`` 0 for likelihood."""

    C: float
    q: float
    sharpness: float

    @property
    def is_likelihood(self) -> bool:
        """Whether it is a solution of the likelihood's problem."""
        return self.sharpness == 0


@dataclass(frozen=True)
class Training:
    """What is fitted to: (n, d) features, dense or sparse, and the rest of ``Rows``."""

    X: Any
    rows: Rows
    fit_intercept: bool = True

    def scores(self, coef: Floats) -> Floats:
        """(n, K)."""
        return scores_of(self.X, coef)


def scores_of(X: Any, coef: Floats) -> Floats:
    """X W + b, (n, K) float64; features of float32 are multiplied in float32."""
    weights = coef[:, :-1].T.astype(X.dtype, copy=False)
    return np.asarray(X @ weights, dtype=np.float64) + coef[:, -1]


@dataclass(frozen=True)
class Likelihood:
    """Coefficients at each C, and the solver's steps."""

    coefs: list[Floats]
    iterations: list[int]


@dataclass(frozen=True)
class Step:
    """The end of a stage: its point, coefficients for scores at the likelihood's noise, and the metric on the training rows."""

    point: Point
    coef: Floats
    training_metric: float
    iterations: int


def likelihood_path(data: Training, Cs: Floats, tol: float, max_iter: int) -> Likelihood:
    """Coefficients at each C of the ascending ``Cs``."""
    rows, d = data.rows, data.X.shape[1]
    outputs = 1 if rows.classes == 2 else rows.classes
    used = rows.weight > 0
    X, y, weight = (data.X, rows.y, rows.weight) if used.all() else (data.X[used], rows.y[used], rows.weight[used])
    present = np.unique(y)
    if len(present) == 0:  # a fold whose rows weigh nothing
        return Likelihood([np.zeros((outputs, d + 1))] * len(Cs), [1] * len(Cs))
    if len(present) == 1:
        only = np.zeros((outputs, d + 1))
        only[:, -1] = (-MISSING if present[0] else MISSING) if outputs == 1 else MISSING
        if outputs > 1:
            only[present[0], -1] = 0.0
        return Likelihood([only] * len(Cs), [1] * len(Cs))
    newton = outputs * (d + 1) <= NEWTON_MOST
    solver, tol = ("newton-cholesky", min(tol, NEWTON_TOL)) if newton else ("lbfgs", tol)
    intercept = data.fit_intercept
    model = LogisticRegression(solver=solver, tol=tol, max_iter=max_iter, warm_start=True, fit_intercept=intercept)
    found, iterations = [], []
    for C in Cs:
        model.set_params(C=C)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", LinAlgWarning)  # of collinear features: L-BFGS then takes over
            model.fit(X, y, sample_weight=weight)
        coef = np.zeros((outputs, d + 1))
        if outputs > 1 and len(present) < outputs:
            coef[:, -1] = MISSING
        fitted = np.column_stack([model.coef_, np.broadcast_to(model.intercept_, len(model.coef_))]).astype(np.float64)
        if outputs > 1 and len(present) == 2:
            fitted = np.concatenate([-fitted / 2, fitted / 2])
        coef[present if outputs > 1 else slice(None)] = fitted
        found.append(coef)
        iterations.append(int(np.max(model.n_iter_)))
    return Likelihood(found, iterations)


def metric_path(
    data: Training, metric: TrainedMetric, start: Floats, C: float, noise: str, stages: tuple[tuple[float, float], ...] = STAGES
) -> list[Step]:
    """The end of each stage; its metric on the training rows is never below the start's."""
    if not data.rows.weight.any():
        return [Step(Point(float(C), q, sharpness), start, 0.0, 0) for sharpness, q in stages]
    best, best_metric, before = start, metric.counted(data.scores(start), data.rows), 1.0
    found = []
    for sharpness, q in stages:
        if best_metric >= metric.perfect:
            found.append(Step(Point(float(C), q, sharpness), best / before, best_metric, 0))
            continue
        decay = LOOSER / (C * data.rows.weight.sum()) / sharpness**2
        coef, iterations = minimise(data, metric, best * (sharpness / before), decay, noise, q)
        reached = metric.counted(data.scores(coef), data.rows)
        if reached >= best_metric:
            best, best_metric, before = coef, reached, sharpness
        found.append(Step(Point(float(C), q, sharpness), best / before, best_metric, iterations))
    return found


def minimise(data: Training, metric: TrainedMetric, start: Floats, decay: float, noise: str, q: float) -> tuple[Floats, int]:
    """The coefficients that L-BFGS ends at, and its steps."""
    shape, X, rows = start.shape, data.X, data.rows

    def objective(flat: Floats) -> tuple[float, Floats]:
        coef = flat.reshape(shape)
        loss, slope = metric.loss(data.scores(coef), rows, noise, q)
        grad = np.empty(shape)
        grad[:, :-1] = (X.T @ slope.astype(X.dtype, copy=False)).T
        grad[:, :-1] += decay * coef[:, :-1]
        grad[:, -1] = slope.sum(0) if data.fit_intercept else 0.0
        if not np.isfinite(grad).all():  # too far out: the search turns back
            return np.inf, np.zeros(grad.size)
        weights = coef[:, :-1].ravel()
        return loss + 0.5 * decay * float(weights @ weights), grad.ravel()

    options = {"maxiter": STEPS, "maxcor": 10, "ftol": CLOSE, "gtol": 1e-7}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(shape) if np.isfinite(found.x).all() else start), max(int(found.nit), 1)
