"""Linear classifiers that are trained for the metric which is reported, as scikit-learn estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from threadpoolctl import threadpool_limits

from lossmith.estimators.base import RoutesToSplitter, ScoreClassifier
from lossmith.estimators.calibration import sharpness_of
from lossmith.estimators.judge import Judge
from lossmith.estimators.metrics import metric_of
from lossmith.estimators.metrics.trained_metric import Floats, Rows, TrainedMetric
from lossmith.estimators.path import STAGES, Point, Training, likelihood_path, metric_path, scores_of
from lossmith.estimators.selection import Fold, Selection, choose, folds_of, ratio_of

NOISES = ("gumbel", "normal", "logistic")
SMALL = 100_000_000  # rows · features · classes up to which one thread is faster than two

_listener: ContextVar[Callable[[], None] | None] = ContextVar("_listener", default=None)


@contextmanager
def telling_of_folds(listener: Callable[[], None]) -> Iterator[None]:
    """Inside, ``MetricClassifierCV.fit`` calls ``listener`` twice for each fold: after its likelihood, and after its path."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class LinearMetricClassifier(ScoreClassifier):
    """What the linear estimators share: predictions from ``coef_`` and ``intercept_``, of dense or sparse features."""

    accept_sparse = "csr"

    def _set(self, coef: Floats) -> None:
        self.coef_, self.intercept_ = coef[:, :-1].copy(), coef[:, -1].copy()

    def _scores_of(self, X: Any) -> Floats:
        return scores_of(X, np.column_stack([self.coef_, self.intercept_]))


class MetricClassifier(LinearMetricClassifier):
    r"""A linear classifier at one point of the path from likelihood to a metric.

    Penalised logistic regression first; from its coefficients, the smooth metric by L-BFGS (``lossmith.estimators.path``), in
    stages of rising sharpness. A stage is dropped if it ends with a lower metric on the training rows, so the metric there is
    never below that of logistic regression.

    Args:
        metric: "accuracy", "balanced_accuracy", "top_3_accuracy", "f1", "f2", "jaccard" (class 1 of two; "_macro", "_micro" and
            "_weighted" for more), "roc_auc", "average_precision" ("_ovr" for more than two), "log_loss"; a matrix of costs
            (C, C), row y those of each decision where y is true; what ``lossmith.metric`` made, or a loss of counts such as
            ``FBetaLoss(2.0)``.
        C: inverse strength of the penalty, as in ``LogisticRegression``, > 0.
        sharpness: by how much the noise is narrower than the likelihood's, ≥ 1.
        q: from metric to loss (N6); 1 is likelihood for accuracy, 0 the smooth metric itself.
        noise: "gumbel", "normal" or "logistic".
        fit_intercept: whether there is an intercept, which is not penalised.
        class_weight: as in ``LogisticRegression``, for training.
        tol, max_iter: of the likelihood's solver.

    Attributes:
        classes_: (C,).
        coef_: (1, d) for two classes, else (C, d).
        intercept_: (1,) or (C,).
        training_metric_: the metric on the training rows.
        n_iter_: (1,), steps of the solvers.

    Raises:
        ValueError, TypeError: an argument out of range; a metric that is not for so many classes; one class; weights all zero.

    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [2.0], [30.0]]), np.array([0, 0, 1, 1])
    >>> MetricClassifier("accuracy").fit(X, y).score(X, y)
    1.0
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "metric": "no_validation",  # type: ignore[dict-item]
        "C": [Interval(Real, 0, None, closed="neither")],
        "sharpness": [Interval(Real, 1, None, closed="left")],
        "q": [Interval(Real, None, None, closed="neither")],
        "noise": [StrOptions(set(NOISES))],
        "fit_intercept": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        metric: Any = "accuracy",
        *,
        C: float = 1.0,
        sharpness: float = 3.0,
        q: float = 0.5,
        noise: str = "gumbel",
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = 1e-4,
        max_iter: int = 1000,
    ) -> None:
        self.metric = metric
        self.C = C
        self.sharpness = sharpness
        self.q = q
        self.noise = noise
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MetricClassifier:
        """Fit to features (n, d), dense or sparse, and classes (n,)."""
        X, rows, judged = self._rows(X, y, sample_weight)
        metric = metric_of(self.metric, rows.classes)
        data = Training(X, rows, self.fit_intercept)
        found = likelihood_path(data, np.array([self.C]), self.tol, self.max_iter)
        before = tuple(stage for stage in STAGES if stage[0] < self.sharpness)
        stages = (*before, (float(self.sharpness), float(self.q)))
        steps = metric_path(data, metric, found.coefs[0], self.C, self.noise, stages)
        coef = _tempered(data, steps[-1].coef)
        self._set(coef)
        self.training_metric_ = metric.counted(data.scores(coef), Rows(rows.y, judged, rows.classes))
        self.n_iter_ = np.array([found.iterations[0] + sum(step.iterations for step in steps)])
        return self


class MetricClassifierCV(RoutesToSplitter, LinearMetricClassifier):
    r"""A linear classifier for a metric, which stays logistic regression unless the metric's own training is surely better.

    1. Logistic regression at each of ``Cs``, on inner folds.
    2. For a metric of decisions (F-beta, balanced accuracy, Jaccard, cost), its decision rule: an offset for each class, put
       into ``intercept_``, of the highest expected metric under probabilities calibrated on held-out rows (``rule``). A fold is
       judged with offsets from the other folds. Likelihood's best C is then the one of the highest metric on held-out rows;
       for F-beta, Jaccard and one's own counts, which hang on few rows of a rare class, the one of the lowest cross-entropy.
    3. From the best C and its two neighbours, the path of the smooth metric: see ``MetricClassifier``.
    4. The metric's best point is taken if its mean gain over likelihood at its best C, with its decision rule, exceeds
       ``caution`` corrected standard errors. Ties go to the stronger penalty and to likelihood.

    Args:
        metric: as in ``MetricClassifier``.
        Cs: inverse strengths of the penalty; an integer stands for so many from 1e-4 to 1e4, evenly in the logarithm.
        cv: folds: an integer k stands for k stratified folds, twice; or a splitter, or an iterable of (train, test) indices.
        fold_rows: rows that the folds of an integer ``cv`` divide, at most: of more, a stratified draw chooses the point, and
            that is fitted to all. None: all rows.
        caution: corrected standard errors (Nadeau & Bengio, 2003) that the gain has to exceed, ≥ 0; infinity: no metric point.
            None: 1 for F-beta, Jaccard and one's own counts, 0.75 for all others.
        decision_rule: whether step 2 has one; without it, likelihood is judged as it is.
        noise, fit_intercept, class_weight, tol, max_iter: as in ``MetricClassifier``.
        n_jobs: folds that are fitted at the same time, as in scikit-learn.
        random_state: of the folds, where ``cv`` is an integer. 0: equal data give equal classifiers.

    Attributes:
        classes_, coef_, intercept_, n_iter_, training_metric_: as in ``MetricClassifier``.
        selection_: a ``Selection``: which point, its gain, the standard error, and the reason in words.
        C_, sharpness_, q_: of the point taken; sharpness 0 and q 1 for likelihood.
        best_score_, best_index_: its mean metric on the held-out folds, and its place among the points.
        Cs_: the penalties, ascending.
        points_: all points.
        scores_: (folds, points), the metric on held-out rows.
        likelihood_scores_: (folds, Cs), the metric of logistic regression without a decision rule.
        coefs_paths_: (folds, points, K, d + 1), the intercept last.

    Raises:
        ValueError, TypeError: as ``MetricClassifier``.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> MetricClassifierCV("accuracy", Cs=3).fit(X, y).selection_.took_metric
    False
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{
            name: limits
            for name, limits in MetricClassifier._parameter_constraints.items()
            if name not in ("C", "sharpness", "q")
        },
        "Cs": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "cv": ["cv_object"],
        "fold_rows": [Interval(Integral, 4, None, closed="left"), None],
        "caution": [Interval(Real, 0, None, closed="both"), None],
        "decision_rule": ["boolean"],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        metric: Any = "accuracy",
        *,
        Cs: Any = 10,
        cv: Any = 5,
        fold_rows: int | None = 25_000,
        caution: float | None = None,
        decision_rule: bool = True,
        noise: str = "gumbel",
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = 1e-4,
        max_iter: int = 1000,
        n_jobs: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.metric = metric
        self.Cs = Cs
        self.cv = cv
        self.fold_rows = fold_rows
        self.caution = caution
        self.decision_rule = decision_rule
        self.noise = noise
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.n_jobs = n_jobs
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> MetricClassifierCV:
        """Fit to features (n, d), dense or sparse, and classes (n,); ``params`` are routed to the splitter."""
        split_params = self._split_params(params)
        X, rows, judged = self._rows(X, y, sample_weight)
        metric = metric_of(self.metric, rows.classes)
        data = Training(X, rows, self.fit_intercept)
        self.Cs_ = np.logspace(-4, 4, self.Cs) if isinstance(self.Cs, Integral) else np.sort(np.asarray(self.Cs, dtype=float))
        if self.Cs_.ndim != 1 or len(self.Cs_) == 0 or not (self.Cs_ > 0).all():
            raise ValueError(f"Cs: expected numbers above 0, got {self.Cs!r}")
        folds = folds_of(self.cv, X, rows.y, self.random_state, split_params, fold_rows=self.fold_rows)
        likelihood = self._of_folds(delayed(_likelihood)(data, fold, self.Cs_, self.tol, self.max_iter) for fold in folds)
        held_scores = _held_scores(X, folds, likelihood)
        rule = metric.shifts and self.decision_rule
        judge = Judge(metric, Rows(rows.y, judged, rows.classes), [held for _, held in folds], rule)
        by_C = list(zip(*held_scores, strict=True))
        self.likelihood_scores_ = np.array([judge.plain_scores(of_folds) for of_folds in by_C]).T
        scores = np.array([judge.scores(of_folds) for of_folds in by_C]).T
        best = judge.best_likelihood(by_C, scores, rows)
        self.points_ = [Point(float(C), 1.0, 0.0) for C in self.Cs_]

        caution = metric.caution if self.caution is None else self.caution
        tried = caution < np.inf and not metric.likelihood
        near = np.arange(max(best - 1, 0), min(best + 2, len(self.Cs_)) if tried else 0)
        paths = self._of_folds(
            delayed(_metric)(data, fold, metric, [coefs[at] for at in near], self.Cs_[near], self.noise)
            for fold, coefs in zip(folds, likelihood, strict=True)
        )
        self.points_ += [Point(float(C), q, sharpness) for C in self.Cs_[near] for sharpness, q in STAGES if q > 0]
        by_point = zip(*_held_scores(X, folds, paths), strict=True)
        of_paths = [judge.plain_scores(of_folds) for of_folds in by_point]
        self.scores_ = np.ascontiguousarray(np.array([*scores.T, *of_paths]).T)
        self.coefs_paths_ = np.array([[*a, *b] for a, b in zip(likelihood, paths, strict=True)])
        self.selection_ = choose(self.points_, self.scores_, ratio_of(folds), caution, best)
        self._finish(data, metric, self.selection_, judge, by_C)
        return self

    def _of_folds(self, tasks: Iterable[Any]) -> list[Any]:
        """What each fold's task returns."""
        found, listener = [], _listener.get()
        for one in Parallel(n_jobs=self.n_jobs, return_as="generator")(tasks):
            found.append(one)
            if listener is not None:
                listener()
        return found

    def _finish(
        self, data: Training, metric: TrainedMetric, selection: Selection[Point], judge: Judge, by_C: list[tuple[Floats, ...]]
    ) -> None:
        """Fit the point that was taken to all rows."""
        point, at = selection.point, int(np.searchsorted(self.Cs_, selection.point.C))
        with _few_threads(data):
            found = likelihood_path(data, self.Cs_[: at + 1], self.tol, self.max_iter)
        coef, iterations = found.coefs[-1], sum(found.iterations)
        if selection.took_metric:
            stages = STAGES[: STAGES.index((point.sharpness, point.q)) + 1]
            with _few_threads(data):
                steps = metric_path(data, metric, coef, point.C, self.noise, stages)
            coef, iterations = _tempered(data, steps[-1].coef), iterations + sum(step.iterations for step in steps)
        elif judge.rule:
            coef = coef.copy()
            coef[:, -1] += judge.offsets(by_C[at])
        self._set(coef)
        self.C_, self.sharpness_, self.q_ = point.C, point.sharpness, point.q
        self.best_index_, self.best_score_ = selection.index, float(self.scores_[:, selection.index].mean())
        self.training_metric_ = metric.counted(data.scores(coef), judge.rows)
        self.n_iter_ = np.array([iterations])


def _of_fold(data: Training, fold: Fold) -> Training:
    train, _ = fold
    return Training(data.X[train], data.rows.at(train), data.fit_intercept)


def _held_scores(X: Any, folds: list[Fold], coefs: list[list[Floats]]) -> list[list[Floats]]:
    """Of each fold, the scores of the rows that it holds out, by each of its coefficients."""
    found = []
    for (_, held), of_fold in zip(folds, coefs, strict=True):
        rows = X[held]  # a copy, once a fold
        found.append([scores_of(rows, coef) for coef in of_fold])
    return found


def _few_threads(data: Training) -> Any:
    """One thread of BLAS where products are small: two pools of threads, NumPy's and SciPy's, would wait for each other."""
    small = data.X.shape[0] * data.X.shape[1] * data.rows.classes < SMALL
    return threadpool_limits(1, user_api="blas") if small else nullcontext()


def _likelihood(data: Training, fold: Fold, Cs: Floats, tol: float, max_iter: int) -> list[Floats]:
    with _few_threads(data):
        return likelihood_path(_of_fold(data, fold), Cs, tol, max_iter).coefs


def _metric(data: Training, fold: Fold, metric: TrainedMetric, starts: list[Floats], Cs: Floats, noise: str) -> list[Floats]:
    """The coefficients of each metric point, from those of likelihood at each C on."""
    of_fold = _of_fold(data, fold)
    with _few_threads(data):
        paths = [metric_path(of_fold, metric, start, C, noise) for start, C in zip(starts, Cs, strict=True)]
    return [step.coef for steps in paths for step in steps if step.point.q > 0]


def _tempered(data: Training, coef: Floats) -> Floats:
    """The multiple of the coefficients whose likelihood on the training rows is highest: ``predict`` stays what it is."""
    return sharpness_of(data.scores(coef), data.rows) * coef
