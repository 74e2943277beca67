"""The torch loss of each metric is that of ``TrainedMetric``: its value, its gradient, weights; on several ranks, as on one."""

from typing import Any

import numpy as np
import pytest
import torch

import lossmith
from lossmith import FBetaLoss
from lossmith.estimators.metrics import METRICS, metric_of
from lossmith.estimators.metrics.trained_metric import Rows
from lossmith.estimators.torch_losses import torch_loss
from lossmith.training import QSchedule, ScaleSchedule

N = 40
COST = np.array([[0.0, 1.0, 2.0], [3.0, -1.0, 1.0], [0.5, 0.5, 0.0]])
G_MEAN = lossmith.metric(lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt(), average="macro", q=0.3)
OTHERS = {"top2": "top_2_accuracy", "cost": COST, "own": G_MEAN, "f2": FBetaLoss(2.0, "weighted", noise="normal")}


def given_of(name: str, classes: int) -> Any:
    given = OTHERS.get(name, name)
    given = given[:classes, :classes] if isinstance(given, np.ndarray) else given
    try:
        metric_of(given, classes)
    except ValueError:
        pytest.skip("for two classes")
    return given


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
@pytest.mark.parametrize("q", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", [*METRICS, *OTHERS])
@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_the_loss_of_the_trained_metric(name: str, noise: str, q: float, classes: int) -> None:
    given = given_of(name, classes)
    made = np.random.default_rng(classes)
    z, y = made.normal(size=(N, classes)), made.integers(0, classes, N)
    columns = z[:, 1:] - z[:, :1] if classes == 2 else z
    loss = torch_loss(given, classes, noise=noise, q=q)
    for weight in (None, made.integers(0, 3, N).astype(float)):
        rows = Rows(y, np.ones(N) if weight is None else weight, classes)
        expected, slope = metric_of(given, classes).loss(columns, rows, noise, q)
        leaf = torch.from_numpy(z).requires_grad_()
        found = loss(leaf, torch.from_numpy(y), None if weight is None else torch.from_numpy(weight))
        (grad,) = torch.autograd.grad(found, leaf)
        single = name == "top2"  # its TrainedMetric computes in float32
        assert found.item() == pytest.approx(expected, rel=1e-5 if single else 1e-9, abs=1e-12)
        of_two = np.concatenate([-slope, slope], 1) if classes == 2 else slope
        np.testing.assert_allclose(grad.numpy(), of_two, rtol=1e-4 if single else 1e-6, atol=1e-6 if single else 1e-9)


def test_the_dials_can_be_scheduled() -> None:
    for name in set(METRICS) - {"log_loss"}:
        loss = torch_loss(name, 2, q=0.5)
        ScaleSchedule(loss, 1.0, 0.5, 2).step()
        QSchedule(loss, 0.5, 0.0, 2).step()
        assert (loss.q, loss.scale, loss.loss.q, loss.loss.scale) == (0.0, 0.5, 0.0, 0.5)
        scores = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        target = torch.arange(20) % 2
        wide = torch_loss(name, 2, q=0.0)(2 * scores, target)
        assert loss(scores, target).item() == pytest.approx(wide.item(), rel=1e-9)


def test_a_users_loss_stays_as_it_is() -> None:
    given = FBetaLoss(2.0, "macro", weight=torch.tensor([1.0, 2.0]), memory=5)
    made = torch_loss(given, 2, q=0.0).loss
    assert (made.beta, made.q, made.weight, made.memory.size) == (2.0, 0.0, None, 0)
    assert given.q == 1.0
    assert given.weight.tolist() == [1.0, 2.0]
    assert given.memory.size == 5


def test_where_nothing_weighs_anything_it_is_0() -> None:
    scores = torch.randn(6, 3, requires_grad=True)
    for name in METRICS:
        if given_of_three(name):
            for y in (torch.zeros(6, dtype=torch.int64), torch.arange(6) % 3):
                loss = torch_loss(name, 3)(scores, y, torch.zeros(6))
                loss.backward()
                assert loss.item() == 0.0
    assert not scores.grad.any()


def given_of_three(name: str) -> bool:
    try:
        metric_of(name, 3)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("given", "classes", "message"),
    [("f1", 3, "metric: 'f1' is for two classes"), ("acuracy", 2, "metric: unknown name")],
)
def test_refuses_in_words(given: str, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        torch_loss(given, classes)


def test_sample_weights_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^sample_weight: expected one a sample, 3, got shape"):
        FBetaLoss()(torch.zeros(3, 2), torch.tensor([0, 1, 1]), torch.ones(2))
