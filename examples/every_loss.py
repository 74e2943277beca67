"""The same network, trained on digits with every loss; one line changes. Times are multiples of cross-entropy's."""

import time
from importlib.util import find_spec

import torch
from sklearn.datasets import load_digits

from lossmith import (
    AccuracyLoss,
    AUCLoss,
    AveragePrecisionLoss,
    BalancedAccuracyLoss,
    CostLoss,
    FBetaLoss,
    JaccardLoss,
    SubsetAccuracyLoss,
    TopKAccuracyLoss,
    metric,
    surrogates,
)

torch.set_num_threads(1)  # with batches so small, more threads wait for each other
features, target = (torch.as_tensor(x) for x in load_digits(return_X_y=True))
features = (features / 16).float()
one_hot = torch.nn.functional.one_hot(target)  # each class as a label of its own, for the multi-label losses
test = torch.arange(len(target)) % 3 == 0
chance = target[test].bincount().max() / test.sum()
seconds: dict[str, float] = {}


def train(loss_fn: torch.nn.Module, target: torch.Tensor) -> None:
    """Six epochs of batches of 256; print the accuracy on the test part, and the time."""
    torch.manual_seed(0)
    x, y = features[~test], target[~test]
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=0.005)
    for _ in range(3):  # the first call compiles the kernel
        loss_fn(model(x[:256]), y[:256]).backward()
    start = time.perf_counter()
    for batch in (torch.randperm(len(x)) for _ in range(6)):
        for rows in batch.split(256):
            optimizer.zero_grad()
            loss_fn(model(x[rows]), y[rows]).backward()
            optimizer.step()
    name = type(loss_fn).__name__
    seconds[name] = time.perf_counter() - start
    accuracy = (model(features[test]).argmax(-1) == one_hot[test].argmax(-1)).double().mean()
    times = seconds[name] / seconds["CrossEntropyLoss"]
    print(f"{name:28s} time {times:4.1f}  chance {chance:.3f}  accuracy {accuracy:.3f}")


g_mean = metric(lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt())

sparse: list[torch.nn.Module] = []
if find_spec("entmax") is None:
    print("SparsemaxLoss, Entmax15Loss     left out: they need the package entmax")
else:
    sparse = [surrogates.SparsemaxLoss(), surrogates.Entmax15Loss()]

for loss_fn in (
    torch.nn.CrossEntropyLoss(),
    AccuracyLoss(),
    AccuracyLoss(q=0.0),
    TopKAccuracyLoss(2),
    BalancedAccuracyLoss(),
    CostLoss(1 - torch.eye(10)),
    FBetaLoss(),
    JaccardLoss(),
    g_mean.loss,
    AUCLoss("multiclass"),
    AveragePrecisionLoss("multiclass"),
    surrogates.HingeLoss(),
    surrogates.SigmoidLoss(),
    surrogates.PolynomialLoss(scale=3.0),
    surrogates.BetaBernoulliLoss(),
    surrogates.PolyLoss(),
    surrogates.GammaCrossEntropyLoss(),
    surrogates.EMOLoss(torch.eye(10)),
    *sparse,
    surrogates.SmoothTopKLoss(2),
):
    train(loss_fn, target)
for loss_fn in (  # a 0 or 1 for each label
    SubsetAccuracyLoss(),
    FBetaLoss(task="multilabel"),
    AUCLoss("multilabel"),
    surrogates.ZLPRLoss(),
    surrogates.F1WeightedCrossEntropyLoss(),
):
    train(loss_fn, one_hot)
