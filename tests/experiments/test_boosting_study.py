"""What the study of boosted trees does with one split."""

import numpy as np
import pytest

from lossmith.experiments import boosting
from lossmith.experiments.imbalance import judged


def data() -> tuple[boosting.Data, np.ndarray]:
    """A tenth of the rows positive, and no line between."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1200, 4))
    y = ((np.abs(x[:, 0]) > 1.2) & (np.abs(x[:, 1]) > 0.7)).astype(np.int64)
    return boosting.Data(x[:600], y[:600], x[600:800], y[600:800], x[800:]), y[800:]


@pytest.mark.filterwarnings("ignore:Can.t optimze")  # of CatBoost, which compiles no method
@pytest.mark.parametrize("metric", boosting.MADE)
@pytest.mark.parametrize("library", boosting.LIBRARIES)
def test_every_way_finds_the_rare_class(library: str, metric: str) -> None:
    pytest.importorskip(library.lower())
    rows, target = data()
    ways = {name.split(", ", 1)[1] for name in boosting.methods_of(metric) if name.startswith(library)}
    for way in ways - {boosting.THRESHOLD, boosting.BOTH}:
        held, test = boosting.TRAINERS[library](rows, metric, way)
        assert held.shape == (200,)
        cut = 0.0 if metric == "average_precision" else boosting.threshold(metric, rows.held_y, held)
        assert judged(metric, target, test - cut) > 80, way


def test_the_threshold_is_where_the_metric_is_highest() -> None:
    scores, target = np.array([-3.0, -1.0, 0.5, 2.0, 4.0]), np.array([0, 0, 1, 0, 1])
    assert boosting.threshold("f1", target, scores) == -0.25  # 2 · 2 / (2 + 3) beats one of one and two of four
    assert boosting.threshold("balanced_accuracy", np.array([0, 0, 1, 1, 1]), scores) == -0.25


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "catboost", None)
    with pytest.raises(boosting.InputError, match=r"^boosting: needs the package catboost: pip install"):
        boosting.library("catboost")
