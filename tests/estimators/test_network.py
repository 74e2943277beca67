"""MetricNetworkClassifier: scikit-learn's checks; likelihood first, the metric where that is surely better; two ranks."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, make_classification
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

import lossmith
from lossmith.estimators import MetricNetworkClassifier

pytestmark = pytest.mark.filterwarnings("ignore:epochs:sklearn.exceptions.ConvergenceWarning")

QUICK: dict[str, Any] = {"hidden_layer_sizes": 8, "epochs": 8, "metric_epochs": 4, "cv": 2, "learning_rate": 0.05}
# float32 rounds by 1e-7: check_methods_subset_invariance and check_sample_weight_equivalence_on_dense_data ask for more digits.
CHECKS = parametrize_with_checks([MetricNetworkClassifier(**{**QUICK, "epochs": 4, "metric_epochs": 1}, precision="64-true")])


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def slow_module(n_features: int, n_classes: int) -> nn.Module:
    """With what differs between training and evaluation."""
    return nn.Sequential(nn.Linear(n_features, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, n_classes))


BREAST = load_breast_cancer(return_X_y=True)
IRIS = load_iris(return_X_y=True)


def imbalanced(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return make_classification(600, 6, weights=[0.9], flip_y=0.1, class_sep=0.5, random_state=seed)


def weights_of(found: MetricNetworkClassifier) -> list[np.ndarray]:
    return [value.numpy() for value in found.module_.state_dict().values()]


def test_without_caution_the_metric_is_trained_and_the_attributes_say_so() -> None:
    X, y = make_classification(400, 6, n_classes=3, n_informative=4, flip_y=0.2, random_state=0)
    found = MetricNetworkClassifier("accuracy", **{**QUICK, "cv": 3}, caution=0.0).fit(X, y)
    assert found.scores_.shape == (3, len(found.points_))
    assert found.best_score_ == found.scores_.mean(0)[found.best_index_]
    assert found.points_[found.best_index_] == found.selection_.point
    assert [point.epoch for point in found.points_ if point.is_likelihood] == list(range(1, 9))
    of_metric = [point for point in found.points_ if not point.is_likelihood]
    assert len(of_metric) == 4
    assert (of_metric[-1].q, of_metric[-1].scale) == (0.0, pytest.approx(1 / 9))
    assert all(0 < a.q < 0.5 and 1 / 9 < a.scale < 1 for a in of_metric[:-1])
    assert found.n_iter_ == sum(found.epochs_)
    assert found.selection_.took_metric == (found.epochs_[1] > 0)
    assert found.training_metric_ == pytest.approx(found.score(X, y))
    assert not found.module_.training


def test_with_caution_infinity_or_no_metric_epochs_it_is_cross_entropy() -> None:
    X, y = imbalanced()
    one = MetricNetworkClassifier("accuracy", **QUICK, caution=np.inf).fit(X, y)
    two = MetricNetworkClassifier("accuracy", **{**QUICK, "metric_epochs": 0}).fit(X, y)
    assert all(point.is_likelihood for point in one.points_)
    assert one.epochs_[1] == two.epochs_[1] == 0
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(one), weights_of(two), strict=True))


def test_a_linear_network_finds_a_line_that_likelihood_does_not() -> None:
    X = np.stack(np.meshgrid(*(np.arange(1, n + 1) for n in (3, 3, 2, 3, 4, 2)), indexing="ij"), -1).reshape(-1, 6)
    y = (((X[:, 4] == 3) & (X[:, 3] == 1)) | ((X[:, 4] != 4) & (X[:, 1] != 3))).astype(int)  # the third MONK's problem
    X = StandardScaler().fit_transform(X)
    options: dict[str, Any] = {"hidden_layer_sizes": (), "learning_rate": 0.05, "cv": 3}
    found = MetricNetworkClassifier("accuracy", **options).fit(X, y)
    plain = MetricNetworkClassifier("accuracy", **options, caution=np.inf).fit(X, y)
    assert found.selection_.took_metric
    assert found.score(X, y) > plain.score(X, y) + 0.05


def test_the_decision_rule_is_added_to_the_scores() -> None:
    X, y = imbalanced()
    found = MetricNetworkClassifier("f1", **QUICK, caution=np.inf).fit(X, y)
    plain = MetricNetworkClassifier("accuracy", **{**QUICK, "epochs": found.epochs_[0]}, caution=np.inf).fit(X, y)
    assert found.offsets_[0] > 0.1
    if plain.epochs_[0] == found.epochs_[0]:
        np.testing.assert_allclose(found.decision_function(X), plain.decision_function(X) + found.offsets_[0], rtol=1e-6)
    assert found.score(X, y) == pytest.approx(f1_score(y, found.predict(X)))
    assert (found.predict(X) == found.predict_proba(X).argmax(1)).all()


def test_the_sharpness_calibrates_on_held_out_rows() -> None:
    X, y = make_classification(600, 6, flip_y=0.4, random_state=0)
    found = MetricNetworkClassifier("accuracy", **{**QUICK, "metric_epochs": 10}, caution=0.0).fit(X, y)
    if found.selection_.took_metric:
        assert 0 < found.sharpness_ < 5
    held_out, labels = make_classification(600, 6, flip_y=0.4, random_state=0)
    assert found.predict_proba(held_out)[np.arange(600), labels].mean() < 0.9  # not as sure as the metric's scores are


@pytest.mark.parametrize(
    "metric",
    [
        "balanced_accuracy",
        "roc_auc_ovr",
        "average_precision_ovr",
        "jaccard_weighted",
        np.array([[0, 1, 2], [1, 0, 1], [5, 1, 0]]),
    ],
    ids=str,
)
def test_every_kind_of_metric(metric: Any) -> None:
    found = MetricNetworkClassifier(metric, **QUICK, caution=0.0).fit(*IRIS)
    assert found.score(*IRIS) > (0.85 if isinstance(metric, str) else -0.4)


def test_own_metrics() -> None:
    own = lossmith.metric(lambda tp, fp, fn, tn: tp / (tp + fn + fp), average="binary")
    assert MetricNetworkClassifier(own, **QUICK).fit(*imbalanced()).score(*imbalanced()) > 0.2


def test_equal_data_give_equal_weights_and_no_random_number_of_the_caller_is_drawn() -> None:
    X, y = IRIS
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = MetricNetworkClassifier(**QUICK, module=slow_module, batch_size=20).fit(X, y)
    assert torch.rand(1) == expected
    two = clone(one).fit(X, y)
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(one), weights_of(two), strict=True))
    other = clone(one).set_params(random_state=1).fit(X, y)
    assert not all(np.array_equal(a, b) for a, b in zip(weights_of(one), weights_of(other), strict=True))
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(again.predict_proba(X), one.predict_proba(X))
    assert np.array_equal(one.predict_proba(X), one.predict_proba(X))  # without dropout
    np.testing.assert_allclose(one.predict_proba(X[:1]), one.predict_proba(X)[:1], rtol=1e-5)  # with the running mean


def test_frames_pipelines_and_dtypes() -> None:
    X, y = IRIS
    frame, label = pd.DataFrame(X, columns=list("abcd")), pd.Series(np.array(["x", "y", "z"])[y])
    found = MetricNetworkClassifier(**QUICK).fit(frame, label)
    assert found.feature_names_in_.tolist() == list("abcd")
    assert set(found.predict(frame)) == {"x", "y", "z"}
    assert next(found.module_.parameters()).dtype == torch.float32
    assert make_pipeline(StandardScaler(), MetricNetworkClassifier(**QUICK)).fit(X, y).score(X, y) > 0.9
    narrow = MetricNetworkClassifier(**QUICK).fit(X.astype(np.float32), y)
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(found), weights_of(narrow), strict=True))
    with pytest.raises(TypeError, match="dense data is required"):
        MetricNetworkClassifier(**QUICK).fit(sparse.csr_matrix(X), y)


def test_half_precision() -> None:
    found = MetricNetworkClassifier("f1_macro", **QUICK, precision="bf16-mixed").fit(*IRIS)
    assert found.score(*IRIS) > 0.8


def test_weights_count_rows_in_both_phases_and_in_judging() -> None:
    X, y = make_classification(80, 5, flip_y=0.2, random_state=0)
    weight = np.arange(80) % 3
    folds = [(np.arange(40), np.arange(40, 80)), (np.arange(40, 80), np.arange(40))]
    places = np.repeat(np.arange(80), weight)
    repeated = [(np.flatnonzero(np.isin(places, a)), np.flatnonzero(np.isin(places, b))) for a, b in folds]
    options = {**QUICK, "precision": "64-true", "caution": 0.0}
    for metric in ("accuracy", "roc_auc"):
        one = MetricNetworkClassifier(metric, **{**options, "cv": folds}).fit(X, y, sample_weight=weight)
        two = MetricNetworkClassifier(metric, **{**options, "cv": repeated}).fit(X[places], y[places])
        np.testing.assert_allclose(one.scores_, two.scores_, rtol=1e-12)
        np.testing.assert_allclose(one.decision_function(X), two.decision_function(X), rtol=1e-7, atol=1e-9)
    by_class = MetricNetworkClassifier("f1", **options, class_weight={0: 1.0, 1: 3.0}).fit(X, y)
    assert by_class.predict(X).mean() > MetricNetworkClassifier("accuracy", **options).fit(X, y).predict(X).mean()


class Breaks(nn.Module):
    """Whose scores are nan from a step on; one linear layer until then."""

    def __init__(self, n_features: int, n_classes: int, last: int) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(n_features, n_classes), last
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, X: Tensor) -> Tensor:
        self.calls += self.training
        return self.layer(X) if self.calls <= self.last else self.layer(X) * torch.nan


@pytest.mark.parametrize(("last", "likelihood", "of_metric"), [(20, 2, 0), (80, 8, 2)])
def test_what_is_not_finite_ends_a_phase(last: int, likelihood: int, of_metric: int) -> None:
    X, y = make_classification(200, 5, flip_y=0.3, random_state=0)
    found = MetricNetworkClassifier(**QUICK, module=lambda d, C: Breaks(d, C, last)).fit(X, y)
    assert len([point for point in found.points_ if point.is_likelihood]) == likelihood
    assert len(found.points_) <= likelihood + 4
    assert np.isfinite(found.decision_function(X)).all()


def test_groups_are_routed_to_the_splitter() -> None:
    X, y = make_classification(60, 4, random_state=0)
    with sklearn.config_context(enable_metadata_routing=True):
        found = MetricNetworkClassifier(**{**QUICK, "cv": GroupKFold(3)}).fit(X, y, groups=np.arange(60) % 6)
    assert len(found.scores_) == 3


def test_classes_that_a_fold_lacks() -> None:
    X, y = make_classification(90, 5, n_informative=4, n_redundant=0, n_classes=3, random_state=0)
    y[y == 2] = 1
    y[:2] = 2
    for metric in ("f1_macro", "roc_auc_ovr"):
        assert np.isfinite(MetricNetworkClassifier(metric, **{**QUICK, "cv": 3}).fit(X, y).scores_).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "The 'epochs' parameter"),
        ({"noise": "laplace"}, "The 'noise' parameter"),
        ({"metric": "f1"}, "metric: 'f1' is for two classes, got 3"),
        ({"module": lambda d, C: nn.Linear(d, C + 1)}, r"module: expected scores \(75, 3\), got \(75, 4\); end it in"),
        ({"module": lambda d, C: Breaks(d, C, 0)}, "X: expected features on which a loss is finite"),
    ],
)
def test_refuses_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MetricNetworkClassifier(**{**QUICK, **options}).fit(*IRIS)


def test_features_beyond_float32_are_refused() -> None:
    X = IRIS[0].copy()
    X[0, 0] = 1e300
    with pytest.raises(ValueError, match=r"^X: expected features that float32 holds"):
        MetricNetworkClassifier(**QUICK).fit(X, IRIS[1])


def test_a_budget_that_ends_too_early_is_told() -> None:
    with pytest.warns(sklearn.exceptions.ConvergenceWarning, match="^epochs: the best of cross-entropy is"):
        MetricNetworkClassifier(**QUICK).fit(*load_digits(return_X_y=True))


def test_without_fabric_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match=r"pip install 'lossmith\[network\]'$"):
        MetricNetworkClassifier(**QUICK).fit(*IRIS)


RANKS = """
import json, os, sys, warnings
from sklearn.datasets import make_classification
from lossmith.estimators import MetricNetworkClassifier
warnings.simplefilter("ignore")
X, y = make_classification(401, 8, n_informative=6, n_classes=3, flip_y=0.1, random_state=0)
options = json.loads(sys.argv[2])
found = MetricNetworkClassifier("f1_macro", **options, devices=2).fit(X, y)
state = [value.tolist() for value in found.module_.state_dict().values()]
with open(os.path.join(sys.argv[1], os.environ["RANK"]), "w") as file:
    json.dump([state, found.epochs_, found.score(X, y)], file)
"""


def test_two_ranks_learn_what_one_process_learns(tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(RANKS)
    options = {**QUICK, "epochs": 3, "metric_epochs": 2, "caution": 0.0, "precision": "64-true"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*run, str(script), str(tmp_path), json.dumps(options)]
    paths = os.pathsep.join([str(Path(lossmith.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert first == second
    X, y = make_classification(401, 8, n_informative=6, n_classes=3, flip_y=0.1, random_state=0)
    alone = MetricNetworkClassifier("f1_macro", **options).fit(X, y)
    assert tuple(first[1]) == alone.epochs_
    assert first[2] == pytest.approx(alone.score(X, y), abs=1e-9)
    for of_ranks, own in zip(first[0], weights_of(alone), strict=True):
        np.testing.assert_allclose(of_ranks, own, rtol=1e-6, atol=1e-9)
