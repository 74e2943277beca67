"""The losses as objectives of XGBoost, LightGBM and CatBoost, beside their own."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.metrics import f1_score, roc_auc_score

from lossmith import (
    AccuracyLoss,
    AUCLoss,
    AveragePrecisionLoss,
    BalancedAccuracyLoss,
    CostLoss,
    FBetaLoss,
    TopKAccuracyLoss,
    metric,
)
from lossmith.integrations.boosting import BoostingObjective

COST = torch.tensor([[0.0, 1.0], [5.0, 0.0]])
NAN = float("nan")


def rows(n: int = 30, classes: int = 2) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    raw = 2 * random.normal(size=n if classes == 2 else (n, classes))
    return raw, random.integers(0, classes, n).astype(float)


def total(loss: Any, raw: Any, y: Any, weight: Any = None) -> float:
    """The sum over rows, from the loss's own value."""
    z, target = torch.tensor(raw), torch.tensor(y).long()
    if z.dim() == 1 and not isinstance(loss, AUCLoss | AveragePrecisionLoss) and getattr(loss, "average", "") != "binary":
        z = torch.stack([torch.zeros_like(z), z], 1)
    weights = getattr(loss, "weight", None)
    return float(loss(z, target)) * (len(y) if weights is None else float(weights[target].sum()))


def second_difference(loss: Any, raw: Any, y: Any, i: Any, step: float = 1e-4) -> tuple[float, float]:
    """First and second derivative of the sum in one raw score."""
    found = []
    for shift in (-step, 0.0, step):
        moved = raw.copy()
        moved[i] += shift
        found.append(total(loss, moved, y))
    return (found[2] - found[0]) / (2 * step), (found[2] - 2 * found[1] + found[0]) / step**2


LOSSES: list[tuple[Any, int, str]] = [
    (AccuracyLoss(q=1.0), 2, "exact"),
    (AccuracyLoss(q=0.0), 2, "exact"),
    (AccuracyLoss("normal", 0.7, q=0.5), 2, "exact"),
    (AccuracyLoss("laplace", q=-1.0), 2, "exact"),
    (BalancedAccuracyLoss(), 2, "exact"),
    (CostLoss(COST, q=0.5), 2, "exact"),
    (AccuracyLoss(q=1.0), 4, "exact"),
    (AccuracyLoss("gumbel", 0.5, q=0.3, weight=torch.tensor([1.0, 2.0, 0.5, 1.0])), 4, "exact"),
    (AccuracyLoss("normal"), 4, "bound"),
    (TopKAccuracyLoss(2), 4, "bound"),
    (FBetaLoss(average="binary", q=0.0), 2, "held"),
    (FBetaLoss(), 4, "bound"),
    (metric(lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt(), average="binary").loss, 2, "held"),
    (AUCLoss(), 2, "bound"),
    (AveragePrecisionLoss(), 2, "bound"),
]


@pytest.mark.parametrize(
    ("loss", "classes", "kind"), LOSSES, ids=lambda x: type(x).__name__ if not isinstance(x, int | str) else x
)
def test_derivatives_are_those_of_the_sum(loss: Any, classes: int, kind: str) -> None:
    raw, y = rows(200 if kind == "held" else 30, classes)
    step = 2.0
    gradient, second = BoostingObjective(loss, step=step).derivatives(raw, y)
    assert gradient.dtype == second.dtype == raw.dtype
    assert (second > 0).all()
    for i in [*np.ndindex(raw.shape)][:12]:
        slope, curvature = second_difference(loss, raw, y, i)
        assert gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-7)
        floor = abs(slope) / (step * loss.scale)
        if kind == "bound":
            assert second[i] == pytest.approx(abs(slope) / loss.scale, rel=1e-4, abs=1e-7)
        else:
            off = 0.02 if kind == "held" else 1e-4
            assert second[i] == pytest.approx(max(curvature, floor), rel=off, abs=off / 10)


def test_layouts_of_the_callers() -> None:
    """(targets, raw) and (raw, data set); float32 stays; weights multiply."""

    class Data:
        def __init__(self, y: Any, weight: Any) -> None:
            self.get_label, self.get_weight = lambda: y, lambda: weight

    raw, y = rows()
    weight = np.linspace(0, 2, len(y))
    for loss in (AccuracyLoss(q=0.5), CostLoss(COST)):
        objective = BoostingObjective(loss)
        expected = objective.derivatives(raw, y)
        for found in (objective(y, raw), objective(raw, Data(y, None)), objective(raw, Data(y, np.zeros(0)))):
            np.testing.assert_array_equal(found, expected)
        for found in (objective(y, raw, weight), objective(raw, Data(y, weight)), objective(y, raw, sample_weight=weight)):
            np.testing.assert_allclose(found[0], weight * expected[0], rtol=1e-12)
            np.testing.assert_allclose(found[1], np.maximum(weight * expected[1], 1e-16), rtol=1e-12)
        assert loss.reduction == "mean"
        assert objective(y, raw.astype(np.float32))[0].dtype == np.float32
    with pytest.raises(ValueError, match=r"^sample_weight: AUCLoss of all rows takes none; leave the weights out$"):
        BoostingObjective(AUCLoss())(y, raw, weight)


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        (AccuracyLoss(), 2),
        (BalancedAccuracyLoss(), 2),
        (BalancedAccuracyLoss(), 3),
        (FBetaLoss(average="binary"), 2),
        (FBetaLoss(average="macro"), 3),
    ],
    ids=repr,
)
def test_a_row_of_weight_2_counts_twice(loss: Any, classes: int) -> None:
    raw, y = rows(classes=classes)
    weight = np.arange(len(y)) % 3
    objective = BoostingObjective(loss)
    found = objective(y, raw, weight)[0]
    repeated = objective(y.repeat(weight), raw.repeat(weight, 0))[0]
    each = np.split(repeated, np.cumsum(weight)[:-1])
    np.testing.assert_allclose(found, [part.sum(0) if len(part) else 0 * found[0] for part in each], rtol=1e-9, atol=1e-12)
    assert objective.counted(raw, y, weight) == pytest.approx(objective.counted(raw.repeat(weight, 0), y.repeat(weight)))


@pytest.fixture(scope="module")
def table() -> tuple[Any, ...]:
    X, y = make_classification(600, 8, n_informative=5, weights=[0.85], flip_y=0.1, random_state=3)
    return X[:400], y[:400], X[400:], y[400:]


def test_xgboosts_own_log_loss_is_q_1(table: Any) -> None:
    xgboost = pytest.importorskip("xgboost")
    X, y, held, _ = table
    options = {"n_estimators": 20, "base_score": 0.5, "learning_rate": 0.3, "n_jobs": 1}
    own = xgboost.XGBClassifier(**options).fit(X, y)
    ours = xgboost.XGBClassifier(objective=BoostingObjective(AccuracyLoss(q=1), step=np.inf), **options).fit(X, y)
    np.testing.assert_allclose(
        ours.predict(held, output_margin=True), own.predict(held, output_margin=True), rtol=1e-3, atol=1e-3
    )
    assert (ours.predict(held) == own.predict(held)).all()


def test_lightgbms_own_log_loss_is_q_1(table: Any) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    from lossmith.integrations.lightgbm import MetricLGBMClassifier

    X, y, held, _ = table
    options = {"n_estimators": 20, "boost_from_average": False, "verbose": -1, "n_jobs": 1}
    own = lightgbm.LGBMClassifier(**options).fit(X, y)
    objective = BoostingObjective(AccuracyLoss(q=1), step=np.inf)
    ours = clone(MetricLGBMClassifier(objective=objective, **options)).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(held), own.predict_proba(held), rtol=1e-6)
    assert (ours.predict(held) == own.predict(held)).all()
    assert ours.predict(held, raw_score=True).dtype == float
    assert ours.predict(held, pred_leaf=True).shape == (200, 20)
    again = pickle.loads(pickle.dumps(ours))
    assert (again.predict(held) == ours.predict(held)).all()


def test_lightgbm_of_names_and_of_three_classes(table: Any) -> None:
    pytest.importorskip("lightgbm")
    from lossmith.integrations.lightgbm import MetricLGBMClassifier

    X, y = make_classification(300, 6, n_informative=4, n_classes=3, random_state=0)
    names = np.array(["a", "b", "c"])[y]
    for loss in (AccuracyLoss(), AccuracyLoss("normal", q=0.5), FBetaLoss(), TopKAccuracyLoss(1)):
        model = MetricLGBMClassifier(objective=BoostingObjective(loss), n_estimators=30, verbose=-1, n_jobs=1).fit(X, names)
        assert model.score(X, names) > 0.9
        assert set(model.predict(X)) <= {"a", "b", "c"}
        assert model.predict_proba(X).sum(1) == pytest.approx(1)


TRAINED = [FBetaLoss(average="binary"), AUCLoss(), AveragePrecisionLoss(), CostLoss(COST), BalancedAccuracyLoss()]


@pytest.mark.parametrize("loss", TRAINED, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
def test_each_trains_and_stops_by_the_counted_metric(loss: Any, library: str, table: Any) -> None:
    X, y, held, expected = table
    objective = BoostingObjective(loss)
    options = {"n_estimators": 60, "learning_rate": 0.2, "objective": objective, "n_jobs": 1}
    if library == "xgboost":
        boosters = pytest.importorskip("xgboost")
        watch = objective.xgboost_metric
        model = boosters.XGBClassifier(**options, eval_metric=watch, early_stopping_rounds=10)
        model.fit(X, y, eval_set=[(held, expected)], verbose=False)
        logged = model.evals_result()["validation_0"]["xgboost_metric"]
        raw = model.predict(held, output_margin=True)
        best = min(logged)
    else:
        boosters = pytest.importorskip("lightgbm")
        from lossmith.integrations.lightgbm import MetricLGBMClassifier

        stop = [boosters.early_stopping(10, verbose=False)]
        model = MetricLGBMClassifier(**options, verbose=-1, metric="None")  # else it stops by log loss as well
        model.fit(X, y, eval_set=[(held, expected)], eval_metric=objective.lightgbm_metric, callbacks=stop)
        logged = model.evals_result_["valid_0"][objective.name]
        raw = model.predict(held, raw_score=True)
        best = max(logged) if loss.higher_is_better else min(logged)
    metric = objective.counted(raw, expected)
    if library == "xgboost" and loss.higher_is_better:
        metric = 1 - metric
    assert metric == pytest.approx(best, abs=1e-6)
    start = objective.counted(np.zeros(len(expected)), expected)
    found = objective.counted(raw, expected)
    assert found > start + 0.1 if loss.higher_is_better else found < start - 0.1


def test_counted_is_scikit_learns(table: Any) -> None:
    raw, y = rows()
    assert BoostingObjective(FBetaLoss(average="binary")).counted(raw, y) == pytest.approx(f1_score(y, raw > 0))
    assert BoostingObjective(AUCLoss()).counted(raw, y) == pytest.approx(roc_auc_score(y, raw))


def test_native_interfaces(table: Any) -> None:
    X, y, held, expected = table
    objective = BoostingObjective(FBetaLoss(average="binary"))
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    data = xgboost.DMatrix(X, y)
    seen: dict[str, Any] = {}
    booster = xgboost.train(
        {"min_child_weight": 0, "disable_default_eval_metric": True, "nthread": 1},
        data,
        20,
        obj=objective,
        custom_metric=objective.xgboost_metric,
        evals=[(xgboost.DMatrix(held, expected), "held")],
        evals_result=seen,
        verbose_eval=False,
    )
    margin = booster.predict(xgboost.DMatrix(held), output_margin=True)
    assert seen["held"]["1-FBeta"][-1] == pytest.approx(1 - f1_score(expected, margin > 0), abs=1e-5)
    parts = lightgbm.Dataset(X, y, free_raw_data=False)
    trained = lightgbm.train(
        {"objective": objective, "verbose": -1, "n_jobs": 1},
        parts,
        20,
        valid_sets=[lightgbm.Dataset(held, expected, reference=parts)],
        feval=objective.lightgbm_metric,
        callbacks=[lightgbm.record_evaluation(seen)],
    )
    assert seen["valid_0"]["FBeta"][-1] == pytest.approx(f1_score(expected, trained.predict(held) > 0))


def test_weights_of_held_rows_count_in_what_is_watched(table: Any) -> None:
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    X, y, held, expected = table
    weight = np.where(expected == 1, 0.3, 1.0 + np.arange(len(expected)) % 5)
    objective = BoostingObjective(FBetaLoss(average="binary"))
    grown = xgboost.XGBClassifier(n_estimators=5, objective=objective, eval_metric=objective.xgboost_metric, n_jobs=1)
    grown.fit(X, y, eval_set=[(held, expected)], sample_weight_eval_set=[weight], verbose=False)
    choice = grown.predict(held, output_margin=True) > 0
    logged = grown.evals_result()["validation_0"]["xgboost_metric"][-1]
    assert 1 - logged == pytest.approx(f1_score(expected, choice, sample_weight=weight), rel=1e-6)
    grown = lightgbm.LGBMClassifier(n_estimators=5, objective=objective, metric="None", verbose=-1, n_jobs=1)
    grown.fit(X, y, eval_X=held, eval_y=expected, eval_sample_weight=[weight], eval_metric=objective.lightgbm_metric)
    choice = grown.predict(held, raw_score=True) > 0
    logged = grown.evals_result_["valid_0"]["FBeta"][-1]
    assert logged == pytest.approx(f1_score(expected, choice, sample_weight=weight), rel=1e-6)


def test_catboost(table: Any) -> None:
    catboost = pytest.importorskip("catboost")
    X, y, held, expected = table
    options = {"iterations": 20, "verbose": 0, "allow_writing_files": False, "random_seed": 0, "thread_count": 1}
    plain = {"boost_from_average": False, "leaf_estimation_method": "Newton", "leaf_estimation_iterations": 1}
    objective = BoostingObjective(AccuracyLoss(q=1), step=np.inf)
    own = catboost.CatBoostClassifier(**options, **plain, loss_function="Logloss").fit(X, y)
    ours = catboost.CatBoostClassifier(
        **options, **plain, loss_function=objective.catboost(), eval_metric=objective.catboost_metric
    ).fit(X, y, eval_set=(held, expected))
    np.testing.assert_allclose(
        ours.predict(held, prediction_type="RawFormulaVal"),
        own.predict(held, prediction_type="RawFormulaVal", ntree_end=ours.tree_count_),
        rtol=1e-4,
        atol=1e-4,
    )
    options["iterations"] = 8
    several = make_classification(200, 6, n_informative=4, n_classes=3, random_state=0)
    objective = BoostingObjective(AccuracyLoss(q=0.5))
    watch = {"loss_function": objective.catboost(), "eval_metric": objective.catboost_metric}
    named = catboost.CatBoostClassifier(**options, **watch, class_names=("no", "yes"))
    words = np.array(["no", "yes"])
    for model in (named, clone(named)):
        assert (model.fit(X, words[y]).predict(held) == words[expected]).mean() > 0.8
    model = catboost.CatBoostClassifier(**options, loss_function=objective.catboost(), eval_metric="MultiClass").fit(*several)
    assert (model.predict(several[0]).ravel() == several[1]).mean() > 0.8
    with pytest.raises(ValueError, match=r"^catboost: FBetaLoss is a metric of all rows, [^\n]*take XGBoost or LightGBM"):
        BoostingObjective(FBetaLoss()).catboost()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BoostingObjective(torch.nn.CrossEntropyLoss()), TypeError, "^loss: expected a metric loss such as"),
        (lambda: BoostingObjective(AccuracyLoss(scale=torch.ones(()))), TypeError, "^scale: expected a number"),
        (lambda: BoostingObjective(AUCLoss(memory=5)), ValueError, "^process_group, memory: expected none"),
        (lambda: BoostingObjective(AccuracyLoss(), step=0.0), ValueError, "^step: expected a number > 0, got 0.0"),
        (lambda: BoostingObjective(FBetaLoss(average="none")), ValueError, "^average: expected one number"),
        (
            lambda: BoostingObjective(FBetaLoss(average="binary", weight=torch.ones(2))),
            ValueError,
            "^weight: expected none with average='binary'; give the booster sample_weight",
        ),
        (
            lambda: BoostingObjective(AccuracyLoss())([0.3, 1.0], np.zeros(2)),
            ValueError,
            "^target: expected class codes 0, 1, …, got 0.3; a metric of decisions has no fractions",
        ),
        (lambda: BoostingObjective(AccuracyLoss())([NAN, 1.0], np.zeros(2)), ValueError, "^target: .* got nan"),
        (
            lambda: BoostingObjective(AUCLoss())([1.0, 2.0], np.zeros(2)),
            ValueError,
            "^target: expected class indices from 0 to 1",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
