"""What the studies of networks are made of: wrong labels, objectives, and one training."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lossmith import noise as noises
from lossmith.experiments import drop_in
from lossmith.experiments.nets import BUCKETS, LENGTH, NETS, VOCABULARY
from lossmith.experiments.objectives import MATCHED, Objective, percent_right, train
from lossmith.experiments.tasks import Task, wrong_labels
from lossmith.training import TrainingConfig, fit


def made(rows: int = 200, classes: int = 4) -> Task:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2 * rows, 5, generator=random)
    y = (x @ torch.randn(5, classes, generator=random)).argmax(1)
    return Task(x[:rows], y[:rows], x[rows:], y[rows:], classes)


@pytest.mark.parametrize(("noise", "share"), [("none", 0), ("symmetric-20", 0.2), ("symmetric-40", 0.4), ("pairwise-40", 0.4)])
def test_so_many_labels_are_wrong(noise: str, share: float) -> None:
    target = np.arange(1000) % 5
    found = wrong_labels(target, 5, noise, seed=3)
    moved = found != target
    assert moved.sum() == round(share * 1000)
    assert set(found) == set(range(5))
    np.testing.assert_array_equal(wrong_labels(target, 5, noise, seed=3), found)
    if noise.startswith("pairwise"):
        np.testing.assert_array_equal(found[moved], (target[moved] + 1) % 5)
    if noise == "symmetric-40":  # each of the four others as often
        steps = np.bincount((found - target)[moved] % 5, minlength=5)[1:]
        assert stats.chisquare(steps).pvalue > 1e-3


@pytest.mark.parametrize("noise", MATCHED)
def test_matched_noises_have_the_variance_of_gumbel(noise: str) -> None:
    sample = noises.get(noise).icdf((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    assert (MATCHED[noise] ** 2 * sample.var()).item() == pytest.approx(math.pi**2 / 6, rel=1e-3)


def test_the_reference_is_cross_entropy() -> None:
    task = made()
    ours = train(task, "linear", drop_in.REFERENCE, {"learning_rate": 0.1}, 0, 3)
    torchs = train(task, "linear", Objective(named="cross-entropy"), {"learning_rate": 0.1}, 0, 3)
    assert ours == torchs


def test_a_training_depends_on_its_seed_alone() -> None:
    task = made()
    objective = Objective("normal", 0.5, tricks=True, after=True)
    torch.manual_seed(1)
    first = train(task, "mlp", objective, {"learning_rate": 0.1}, 0, 4)
    torch.manual_seed(2)
    assert train(task, "mlp", objective, {"learning_rate": 0.1}, 0, 4) == first
    assert train(task, "mlp", objective, {"learning_rate": 0.1}, 1, 4) != first
    assert first["accuracy"] > 60


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sam"])
def test_every_optimiser_lowers_the_loss(optimizer: str) -> None:
    task = made()
    rate = 0.1 if optimizer == "adam" else 0.3
    found = train(task, "linear", drop_in.REFERENCE, {"learning_rate": rate, "optimizer": optimizer}, 0, 30)
    assert found["training"] > 85


def test_sharpness_aware_steps_follow_the_gradient_at_the_worst_neighbour() -> None:
    model = nn.Linear(2, 2)
    x, y = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0, 1])
    start = [p.detach().clone() for p in model.parameters()]
    slopes = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in slopes]).norm()
    moved = [p + 0.05 * g / norm for p, g in zip(start, slopes, strict=True)]
    leaves = [p.requires_grad_() for p in moved]
    there = torch.autograd.grad(nn.functional.cross_entropy(x @ leaves[0].T + leaves[1], y), leaves)
    fit(model, nn.CrossEntropyLoss(), x, y, TrainingConfig(epochs=1, batch_size=2, optimizer="sam"), seed=0)
    for after, before, slope in zip(model.parameters(), start, there, strict=True):
        torch.testing.assert_close(after.detach(), before - 0.1 * slope, rtol=1e-4, atol=1e-6)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer: there is no 'adm'; did you mean 'adam', 'sam'\?"):
        fit(nn.Linear(1, 2), nn.CrossEntropyLoss(), torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64),
            TrainingConfig(optimizer="adm"), seed=0)  # fmt: skip


def test_a_training_that_diverges_is_recorded() -> None:
    task = made()
    huge = Task(task.fit_x * 1e30, task.fit_y, task.score_x, task.score_y, task.classes)
    found = train(huge, "mlp", drop_in.REFERENCE, {"learning_rate": 1e8}, 0, 2)
    assert found["diverged"]
    assert math.isfinite(found["accuracy"])


def test_early_stopping_keeps_the_best_epoch() -> None:
    task = made(400)
    noisy = task._replace(fit_y=torch.from_numpy(wrong_labels(task.fit_y.numpy(), 4, "symmetric-40", 0)))
    settings = {"learning_rate": 0.3}
    last = train(noisy, "mlp", Objective(named="cross-entropy"), settings, 0, 60)
    early = train(noisy, "mlp", Objective(named="cross-entropy", early=True), settings, 0, 60)
    assert early["accuracy"] > last["accuracy"]
    assert early["training"] < last["training"]


@pytest.mark.parametrize("objective", [Objective(), Objective("normal", 0.3, "batch", True, True, 0.5), Objective(early=True)])
def test_an_objective_is_what_its_settings_say(objective: Objective) -> None:
    assert Objective(**objective.settings) == objective
    assert all(value != getattr(Objective(), name) for name, value in objective.settings.items())


def test_the_best_of_equal_rates_is_the_lower() -> None:
    place = drop_in.Place("iris", "linear", rate=2.0)
    budget = drop_in.Budget(10, 1, 1)
    rows = [
        {
            "cell": drop_in.cell_of("tune", place, Objective(), 2 * rate, seed, budget),
            "accuracy": right + seed,
            "diverged": lost,
        }
        for rate, right, lost in ((0.3, 90.0, False), (0.1, 90.0, False), (1.0, 99.0, True))
        for seed in range(drop_in.TUNING_SEEDS)
    ]
    assert drop_in.best_rates(rows, (0.1, 0.3, 1.0), [place]) == {("iris, linear", 10, Objective()): 0.2}
    assert drop_in.best_rates(rows[1:], (0.1, 0.3, 1.0), [place]) == {}  # not all have been tried


def test_percent_right_counts_the_highest() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 3.0, 2.0, 1.0], [math.nan] * 4])
    assert percent_right(scores[:2], torch.tensor([0, 2])) == 50
    assert percent_right(scores[:2], torch.tensor([0, 2]), 2) == 100
    assert percent_right(scores[2:], torch.tensor([0])) in (0, 100)


@pytest.mark.parametrize("name", NETS)
def test_every_network_scores_and_trains(name: str) -> None:
    texts = name in ("ngrams", "textcnn", "transformer")
    torch.manual_seed(0)
    net = NETS[name](784, 3)
    if texts:
        x = torch.randint(2, min(BUCKETS, VOCABULARY), (6, LENGTH))
        x[:3, 20:] = 0
        x[0] = 0  # a text of nothing
    else:
        x = torch.randn(6, 784)
    scores = net(x)
    assert scores.shape == (6, 3)
    nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2] * 2)).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["ngrams", "textcnn", "transformer"])
def test_padding_does_not_count(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name](784, 3).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                module.weight[0] = 0
    short = torch.randint(2, VOCABULARY, (4, 20))
    long = torch.cat([short, torch.zeros(4, LENGTH - 20, dtype=torch.int64)], 1)
    if name == "textcnn":  # its maximum runs over padding as well
        return
    torch.testing.assert_close(net(short), net(long), rtol=1e-4, atol=1e-5)
