"""MetricClassifier and MetricClassifierCV: scikit-learn's checks, likelihood first, the metric where it is surely better."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_iris, make_classification
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, RepeatedStratifiedKFold, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import lossmith
from lossmith.estimators import MetricClassifier, MetricClassifierCV, MetricPathDisplay
from lossmith.estimators.linear import telling_of_folds
from lossmith.estimators.metrics import METRICS
from lossmith.estimators.selection import folds_of

CHECKS = parametrize_with_checks([MetricClassifier(), MetricClassifierCV(Cs=(1.0,), cv=2)])


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def monk_3() -> tuple[np.ndarray, np.ndarray]:
    """All rows of the third MONK's problem, without its noise: (a5 = 3 and a4 = 1) or (a5 ≠ 4 and a2 ≠ 3)."""
    X = np.stack(np.meshgrid(*(np.arange(1, n + 1) for n in (3, 3, 2, 3, 4, 2)), indexing="ij"), -1).reshape(-1, 6)
    return StandardScaler().fit_transform(X), (((X[:, 4] == 3) & (X[:, 3] == 1)) | ((X[:, 4] != 4) & (X[:, 1] != 3))).astype(
        int
    )


def logistic_cv(**options: Any) -> LogisticRegressionCV:
    """The rival, judged by accuracy; its newer arguments where there are some, since it warns of their defaults."""
    newer = {"use_legacy_attributes": False, "l1_ratios": (0.0,)}
    known = "use_legacy_attributes" in LogisticRegressionCV().get_params()
    return LogisticRegressionCV(Cs=5, scoring="accuracy", **options, **(newer if known else {}))


BREAST = load_breast_cancer(return_X_y=True)
IRIS = load_iris(return_X_y=True)


@pytest.mark.parametrize(("X", "y"), [BREAST, IRIS], ids=["breast-cancer", "iris"])
def test_without_a_metric_point_it_is_logistic_regression(X: np.ndarray, y: np.ndarray) -> None:
    X = StandardScaler().fit_transform(X)
    found = MetricClassifierCV(Cs=5, caution=np.inf, tol=1e-12, max_iter=10_000).fit(X, y)
    cv = RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=0)
    expected = logistic_cv(cv=cv, solver="newton-cholesky", tol=1e-12, max_iter=10_000).fit(X, y)
    assert pytest.approx(float(np.max(expected.C_))) == found.C_
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.intercept_, expected.intercept_, rtol=1e-6, atol=1e-6)
    assert (found.sharpness_, found.q_, found.selection_.took_metric) == (0.0, 1.0, False)


def test_a_line_that_likelihood_does_not_find() -> None:
    X, y = monk_3()
    found = MetricClassifierCV(Cs=5).fit(X, y)
    plain = logistic_cv().fit(X, y)
    assert found.selection_.took_metric
    assert found.score(X, y) > plain.score(X, y) + 0.05
    assert found.selection_.gain > 0.75 * found.selection_.error
    assert "the metric point gains +" in found.selection_.reason


def test_where_nothing_is_to_be_gained_likelihood_stays() -> None:
    found = MetricClassifierCV().fit(StandardScaler().fit_transform(BREAST[0]), BREAST[1])
    assert not found.selection_.took_metric
    assert found.selection_.reason.endswith("so likelihood stays")


@pytest.mark.parametrize("metric", [name for name in METRICS if not name.endswith("_ovr")])
def test_the_training_metric_is_never_below_likelihoods(metric: str) -> None:
    for seed in range(3):
        X, y = make_classification(120, 5, n_redundant=0, flip_y=0.2, weights=[0.7], random_state=seed)
        start = LogisticRegression(tol=1e-8).fit(X, y)
        found = MetricClassifier(metric, sharpness=9.0, q=0.0).fit(X, y)
        plain = MetricClassifier(metric)
        plain.classes_, plain.coef_, plain.intercept_, plain.n_features_in_ = np.unique(y), start.coef_, start.intercept_, 5
        assert found.training_metric_ == pytest.approx(found.score(X, y), abs=1e-12)
        assert found.score(X, y) >= plain.score(X, y)


def test_under_a_decision_rule_ratios_of_counts_leave_the_penalty_to_likelihood() -> None:
    X, y = make_classification(300, weights=[0.85], flip_y=0.2, n_features=8, random_state=3)
    of = {name: MetricClassifierCV(name, Cs=6, caution=np.inf).fit(X, y) for name in ("f1", "balanced_accuracy", "log_loss")}
    assert of["f1"].C_ == of["log_loss"].C_
    assert of["f1"].selection_.base == of["f1"].best_index_
    for name in ("f1", "balanced_accuracy"):
        plain = MetricClassifierCV(name, Cs=6, caution=np.inf, decision_rule=False).fit(X, y)
        assert plain.Cs_[plain.likelihood_scores_.mean(0).argmax()] == plain.C_
    by_metric = of["balanced_accuracy"]
    assert by_metric.Cs_[by_metric.scores_[:, :6].mean(0).argmax()] == by_metric.C_
    assert len({of["f1"].C_, MetricClassifierCV("f1", Cs=6, caution=np.inf, decision_rule=False).fit(X, y).C_}) == 2


def test_the_decision_rule_stands_in_the_intercept() -> None:
    X, y = make_classification(600, 6, weights=[0.9], flip_y=0.1, class_sep=0.5, random_state=1)
    found = MetricClassifierCV("f1", Cs=3, caution=np.inf).fit(X, y)
    plain = LogisticRegression(C=found.C_, tol=1e-8).fit(X, y)
    np.testing.assert_allclose(found.coef_, plain.coef_, rtol=1e-4)
    assert found.intercept_[0] > plain.intercept_[0] + 0.1
    assert found.score(X, y) == pytest.approx(f1_score(y, found.predict(X)))
    assert (found.predict(X) == found.classes_[found.predict_proba(X).argmax(1)]).all()
    assert (found.predict(X) == (found.decision_function(X) > 0)).all()


def test_classes_a_fold_lacks() -> None:
    X, y = make_classification(90, 5, n_informative=4, n_redundant=0, n_classes=3, random_state=0)
    y[y == 2] = 1
    y[:2] = 2
    for metric in ("accuracy", "f1_macro", "balanced_accuracy"):
        scores = MetricClassifierCV(metric, Cs=2, cv=4).fit(X, y).scores_
        assert len(scores) == 8
        assert np.isfinite(scores).all()


def test_attributes() -> None:
    X, y = IRIS
    found = MetricClassifierCV(Cs=[10.0, 0.1, 1.0], cv=3).fit(X, y)
    assert found.Cs_.tolist() == [0.1, 1.0, 10.0]
    assert found.scores_.shape == (6, len(found.points_))
    assert found.coefs_paths_.shape == (6, len(found.points_), 3, 5)
    assert found.best_score_ == found.scores_.mean(0)[found.best_index_]
    assert found.points_[found.best_index_] == found.selection_.point
    assert found.coef_.shape == (3, 4)


def test_equal_data_give_equal_classifiers() -> None:
    X, y = monk_3()
    one, two = (MetricClassifierCV(Cs=3, cv=3).fit(X, y) for _ in range(2))
    assert np.array_equal(one.coef_, two.coef_)
    assert np.array_equal(clone(one).fit(X, y).coef_, one.coef_)
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(again.predict_proba(X), one.predict_proba(X))


def test_sparse_features_frames_and_names() -> None:
    X, y = monk_3()
    dense = MetricClassifier().fit(X, y)
    np.testing.assert_allclose(MetricClassifier().fit(sparse.csr_matrix(X), y).coef_, dense.coef_, rtol=1e-6, atol=1e-9)
    frame = pd.DataFrame(X, columns=list("abcdef"))
    named = MetricClassifier().fit(frame, pd.Series(np.where(y, "yes", "no")))
    assert named.feature_names_in_.tolist() == list("abcdef")
    assert set(named.predict(frame)) == {"yes", "no"}
    assert MetricClassifier().fit(X.astype(np.float32), y).score(X.astype(np.float32), y) > 0.7


def test_class_weight_and_sample_weight_say_the_same() -> None:
    X, y = monk_3()
    one = MetricClassifier(class_weight={0: 1.0, 1: 3.0}).fit(X, y)
    two = MetricClassifier().fit(X, y, sample_weight=np.where(y == 1, 3.0, 1.0))
    np.testing.assert_allclose(one.coef_, two.coef_)


@pytest.mark.parametrize("noise", ["normal", "logistic"])
def test_other_noise(noise: str) -> None:
    X, y = monk_3()
    assert MetricClassifier(noise=noise).fit(X, y).score(X, y) > 0.7
    assert MetricClassifier(noise=noise).fit(*IRIS).score(*IRIS) > 0.95


def test_costs_and_own_metrics() -> None:
    X, y = make_classification(300, 5, flip_y=0.2, random_state=0)
    dear = MetricClassifierCV(np.array([[0.0, 1.0], [10.0, 0.0]]), Cs=2, cv=2).fit(X, y)
    assert dear.predict(X).mean() > y.mean() + 0.1
    own = lossmith.metric(lambda tp, fp, fn, tn: tp / (tp + fn + fp), average="binary")
    assert MetricClassifierCV(own, Cs=2, cv=2).fit(X, y).score(X, y) > 0.5


def test_roots_and_ratios_of_one_class_have_a_decision_rule() -> None:
    """Expected counts are differences, which rounding would make a little less than 0."""
    X, y = make_classification(300, 6, n_informative=4, n_classes=3, weights=[0.7, 0.2], random_state=1)
    for function, average in (
        (lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt(), "binary"),
        (lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt(), "macro"),
        (lambda tp, fp, fn, tn: tp / (tp + fn), "macro"),
        (lambda tp, fp, fn, tn: tn / (tn + fp), "binary"),
    ):
        own, target = lossmith.metric(function, average=average), y if average == "macro" else y > 0
        assert 0.5 < MetricClassifierCV(own, Cs=2, cv=3, caution=np.inf).fit(X, target).score(X, target) <= 1


def test_inside_other_estimators() -> None:
    X, y = make_classification(200, 5, flip_y=0.1, random_state=0)
    inner = MetricClassifierCV(Cs=2, cv=2)
    assert make_pipeline(StandardScaler(), inner).fit(X, y).score(X, y) > 0.7
    assert CalibratedClassifierCV(inner, cv=2).fit(X, y).predict_proba(X).shape == (200, 2)
    assert TunedThresholdClassifierCV(MetricClassifier(), scoring="f1").fit(X, y).score(X, y) > 0.7
    search = GridSearchCV(MetricClassifier(), {"C": [0.1, 1.0], "metric": ["accuracy", "f1"]}, cv=2).fit(X, y)
    assert search.best_params_["metric"] in ("accuracy", "f1")


def test_polars_frames_and_labels() -> None:
    polars = pytest.importorskip("polars")
    X, y = IRIS
    frame = polars.DataFrame(dict(zip("abcd", X.T, strict=True)))
    labels = np.array(["x", "y", "z"])[y]
    found = MetricClassifierCV(Cs=2, cv=2).fit(frame, polars.Series(labels))
    assert found.feature_names_in_.tolist() == list("abcd")
    assert found.score(frame, polars.Series(labels)) == pytest.approx((found.predict(frame) == labels).mean())
    assert np.array_equal(found.coef_, MetricClassifierCV(Cs=2, cv=2).fit(X, labels).coef_)


def test_reports_of_skore() -> None:
    skore = pytest.importorskip("skore")
    X, y = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), MetricClassifierCV("f1", Cs=2, cv=2))
    one = skore.EstimatorReport(model, X_train=X[:400], y_train=y[:400], X_test=X[400:], y_test=y[400:])
    fitted = clone(model).fit(X[:400], y[:400])
    assert one.metrics.accuracy() == pytest.approx((fitted.predict(X[400:]) == y[400:]).mean())
    assert one.metrics.roc_auc() == pytest.approx(roc_auc_score(y[400:], fitted.predict_proba(X[400:])[:, 1]))
    folds = skore.CrossValidationReport(model, X, y, splitter=2)
    assert folds.metrics.accuracy().to_numpy()[0, 0] > 0.9


def test_of_many_rows_a_stratified_draw_chooses_and_all_are_fitted() -> None:
    X, y = make_classification(3000, 5, weights=[0.9], flip_y=0.1, random_state=0)
    folds = folds_of(5, X, y, 0, {}, fold_rows=500)
    drawn = np.unique(np.concatenate(folds[0]))
    assert len(drawn) == 500
    assert y[drawn].mean() == pytest.approx(y.mean(), abs=0.003)
    assert all(np.array_equal(np.sort(np.concatenate(fold)), drawn) for fold in folds)
    found = MetricClassifierCV("roc_auc", Cs=3, caution=np.inf, fold_rows=500).fit(X, y)
    plain = MetricClassifierCV("roc_auc", Cs=3, caution=np.inf, cv=folds).fit(X, y)
    assert np.array_equal(found.scores_, plain.scores_)
    np.testing.assert_allclose(found.coef_, LogisticRegression(C=found.C_, tol=1e-8).fit(X, y).coef_, rtol=1e-4)
    assert len(np.unique(np.concatenate(folds_of(5, X, y, 0, {}, fold_rows=None)[0]))) == 3000


def test_a_listener_is_told_of_each_fold() -> None:
    told: list[int] = []
    with telling_of_folds(lambda: told.append(1)):
        MetricClassifierCV(Cs=2, cv=2).fit(*IRIS)
    assert len(told) == 8
    MetricClassifierCV(Cs=2, cv=2).fit(*IRIS)
    assert len(told) == 8


def test_scores_far_apart_and_metrics_of_few_counts() -> None:
    made = np.random.default_rng(3)
    X, y = made.normal(size=(40, 1)), made.integers(3, size=40)
    assert np.isfinite(MetricClassifier("top_2_accuracy", C=1e4).fit(X, y).coef_).all()
    recall = lossmith.metric(lambda tp, fp, fn, tn: tp / (tp + fn))
    assert MetricClassifier(recall).fit(*IRIS).score(*IRIS) > 0.9


def test_weights_that_leave_nothing() -> None:
    X, y = make_classification(60, 4, random_state=0)
    weight = np.where(y == 1, 0.0, 1.0)
    assert np.isfinite(MetricClassifier(class_weight="balanced").fit(X, y, weight).coef_).all()
    one = np.arange(60) == 0
    for metric in ("accuracy", "f1", "balanced_accuracy"):
        assert np.isfinite(MetricClassifierCV(metric, Cs=2, cv=2).fit(X, y, one.astype(float)).coef_).all()
    without = np.where(np.arange(60) < 20, 0.0, 1.0)  # the held-out rows weigh nothing
    folds = [(np.arange(10, 60), np.arange(10)), (np.r_[0:10, 20:60], np.arange(10, 20))]
    assert np.isfinite(MetricClassifierCV("f1", Cs=2, cv=folds).fit(X, y, without).coef_).all()
    with pytest.raises(ValueError, match=r"^class_weight: expected some above 0"):
        MetricClassifier(class_weight={0: 0, 1: 0}).fit(X, y)
    made = np.random.default_rng(2).random(60)
    folds = [(np.flatnonzero(y == 0)[:20], np.flatnonzero(y == 1)), (np.arange(30), np.arange(30, 60))]
    found = MetricClassifierCV("roc_auc", Cs=2, cv=folds).fit(X, y, made)
    assert (found.scores_[0] == 0.5).all()


def test_a_numpy_integer_of_folds_is_an_integer() -> None:
    one, two = (MetricClassifierCV(Cs=2, cv=cv).fit(*IRIS) for cv in (np.int64(3), 3))
    assert np.array_equal(one.scores_, two.scores_)


def test_groups_are_routed_to_the_splitter() -> None:
    X, y = make_classification(60, 4, random_state=0)
    groups = np.arange(60) % 6
    with sklearn.config_context(enable_metadata_routing=True):
        found = MetricClassifierCV(Cs=2, cv=GroupKFold(3)).fit(X, y, groups=groups)
    assert len(found.scores_) == 3


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        ({"C": 0.0}, None, "The 'C' parameter"),
        ({"sharpness": 0.5}, None, "The 'sharpness' parameter"),
        ({"noise": "laplace"}, None, "The 'noise' parameter"),
        ({"metric": "f1"}, IRIS[1], "metric: 'f1' is for two classes, got 3"),
        ({}, np.zeros(150), "y: expected samples of at least 2 classes, got only one class"),
    ],
)
def test_refuses_in_words(options: dict[str, Any], y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MetricClassifier(**options).fit(IRIS[0], IRIS[1] if y is None else y)


def test_odd_tables() -> None:
    made = np.random.default_rng(0)
    y = np.arange(60) % 2
    signal = y + made.normal(size=60)
    for name, X in {
        "constant": np.stack([signal, np.ones(60)], 1),
        "collinear": np.stack([signal, 2 * signal], 1),
        "ids": np.stack([signal, np.arange(60.0)], 1),
        "scales": np.stack([1e6 * signal, 1e-6 * made.normal(size=60)], 1),
    }.items():
        found = MetricClassifierCV(Cs=3, cv=3).fit(X, y)
        assert np.isfinite(found.coef_).all(), name
        assert found.score(X, y) >= 0.45, name


def test_one_row_and_too_few_rows_are_refused() -> None:
    for rows, message in ((1, "y: expected samples of at least 2 classes"), (2, "cv: expected two rows of one class or more")):
        with pytest.raises(ValueError, match=f"^{message}"):
            MetricClassifierCV().fit(np.arange(rows)[:, None], np.arange(rows))
    found = MetricClassifierCV(Cs=2).fit(np.arange(3.0)[:, None], [0, 0, 1])  # two folds; the second class is in one alone
    assert np.isfinite(found.coef_).all()


def test_the_display() -> None:
    found = MetricClassifierCV(Cs=3, cv=2).fit(*monk_3())
    shown = MetricPathDisplay.from_estimator(make_pipeline(found))
    assert shown.ax_.get_ylabel() == "accuracy, held out"
    assert len(shown.lines_) == 1 + len({point.C for point in found.points_ if not point.is_likelihood})
    assert shown.plot(shown.ax_).figure_ is shown.figure_
    assert shown.errorbar_[0].get_ydata()[0] == found.best_score_
    without = MetricPathDisplay.from_estimator(MetricClassifierCV(Cs=3, cv=2, caution=np.inf).fit(*IRIS))
    assert len(without.lines_) == 1
