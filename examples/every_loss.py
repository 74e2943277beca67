"""The same little network, trained from scratch with every loss; one line changes."""

from importlib.util import find_spec

import torch
from sklearn.datasets import load_wine

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

features, target = (torch.as_tensor(x) for x in load_wine(return_X_y=True))
features = ((features - features.mean(0)) / features.std(0)).float()
one_hot = torch.nn.functional.one_hot(target)  # each class as a label of its own, for the multi-label losses
test = torch.arange(len(target)) % 3 == 0
chance = target[test].bincount().max() / test.sum()


def accuracy_after(loss_fn: torch.nn.Module, target: torch.Tensor) -> float:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(13, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss_fn(model(features[~test]), target[~test]).backward()
        optimizer.step()
    return (model(features[test]).argmax(-1) == one_hot[test].argmax(-1)).double().mean().item()


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
    CostLoss(1 - torch.eye(3)),
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
    surrogates.EMOLoss(torch.eye(3)),
    *sparse,
    surrogates.SmoothTopKLoss(2),
):
    print(f"{type(loss_fn).__name__:28s} chance {chance:.3f}  accuracy {accuracy_after(loss_fn, target):.3f}")
for loss_fn in (  # a 0 or 1 for each label
    SubsetAccuracyLoss(),
    FBetaLoss(task="multilabel"),
    AUCLoss("multilabel"),
    surrogates.ZLPRLoss(),
    surrogates.F1WeightedCrossEntropyLoss(),
):
    print(f"{type(loss_fn).__name__:28s} chance {chance:.3f}  accuracy {accuracy_after(loss_fn, one_hot):.3f}")
