"""What many tests share: the noises and losses under test, and small helpers for tensors."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import lossmith
from lossmith.noise import NOISES, Custom, Noise, StudentT

# "studentt:3" is what the tables of stored values and the oracles call it.
BY_NAME: dict[str, Noise] = {name: noise for name, noise in NOISES.items() if name != "studentt"}
BY_NAME |= {f"studentt:{df}": StudentT(df) for df in (1, 3)}

# Student's t of 3 degrees of freedom goes the way of 1, and is the slowest.
CASES = [
    pytest.param(noise, id=name, marks=pytest.mark.slow if name == "studentt:3" else ()) for name, noise in BY_NAME.items()
]
EACH = pytest.mark.parametrize("noise", CASES)
# torch.compile of older versions does not trace all that a loss does, and their forward mode knows fewer operations.
NEW_TORCH = pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="needs torch 2.13")
JUMPS = ("uniform", "exponential")  # the densities that jump, so that log p bends where scores tie


def tensor(values: Any, **options: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, **options)


def random_scores(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(value: Tensor, x: Tensor, upstream: Tensor | None = None, **options: Any) -> Tensor:
    return torch.autograd.grad(value, x, upstream, **options)[0]


def copy_of(noise: Noise) -> Custom:
    """A noise of one's own with the formulas of a built-in one, and so without its shortcuts."""
    return Custom(noise.log_prob, noise.log_cdf, noise.icdf, kinks=noise.kinks)


IGNORED = -100


class Case(NamedTuple):
    name: str
    options: dict[str, Any] = {}  # noqa: RUF012  # a tuple has no class attributes
    kind: str = "classes"  # of targets

    def loss(self, group: Any = None) -> nn.Module:
        """With a scale to learn."""
        options = {**self.options, "process_group": group}
        options["scale"] = nn.Parameter(tensor(options.get("scale", 0.7)))
        if self.name == "metric":
            return lossmith.metric(g_mean, **options).loss
        return getattr(lossmith, self.name)(**options)


def g_mean(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    return ((tp + 1e-9) / (tp + fn + 1e-9) * (tn + 1e-9) / (tn + fp + 1e-9)).sqrt()


WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.25], dtype=torch.float64)
COST = torch.tensor([[0, 1, 2, 5], [3, -1, 1, 1], [1, 1, 0, 4], [2, 7, 1, 0]], dtype=torch.float64)
BATCH: dict[str, Any] = {"over": "batch", "weight": WEIGHT}
PROBIT: dict[str, Any] = {"noise": "normal", "q": 1.0}
LOSSES = [
    Case("AccuracyLoss", PROBIT),
    Case("AccuracyLoss", {"q": 1.0, "reduction": "sum", "weight": WEIGHT}),
    Case("AccuracyLoss", {"noise": "normal", "q": 2.0, "weight": WEIGHT, "label_smoothing": 0.1}),
    Case("AccuracyLoss", {**PROBIT, **BATCH}),
    Case("AccuracyLoss", {**PROBIT, "standardize": True}),
    Case("AccuracyLoss", {**PROBIT, "over": "batch", "scale": 0.01}),  # each rank's mean lies below the smallest number
    Case("AccuracyLoss"),
    Case("BalancedAccuracyLoss", {"q": 1.0}),
    Case("BalancedAccuracyLoss", {**PROBIT, "reduction": "sum"}),
    Case("BalancedAccuracyLoss", {**BATCH, "q": 1.0, "label_smoothing": 0.1}),
    Case("TopKAccuracyLoss", {"k": 2}),
    Case("TopKAccuracyLoss", {"k": 2, **BATCH}),
    Case("CostLoss", {"cost": COST}),
    Case("CostLoss", {"cost": COST, "reduction": "sum", "noise": "normal"}),
    Case("CostLoss", {"cost": COST, **BATCH}),
    *(Case("FBetaLoss", {"average": average, "weight": WEIGHT}) for average in ("macro", "micro", "weighted")),
    Case("FBetaLoss", {"average": "binary", "beta": 2.0}, "binary"),
    Case("FBetaLoss", {"task": "multilabel", "noise": "normal"}, "labels"),
    Case("FBetaLoss", {"memory": 8}),
    Case("JaccardLoss", {"average": "micro"}),
    Case("metric"),
    Case("AUCLoss", {}, "binary"),
    Case("AUCLoss", {"max_fpr": 0.35}, "binary"),
    Case("AUCLoss", {"memory": 7}, "binary"),
    Case("AUCLoss", {"task": "multiclass", "average": "weighted"}),
    Case("AveragePrecisionLoss", {}, "binary"),
    Case("AveragePrecisionLoss", {"task": "multilabel", "memory": 30}, "labels"),
    Case("SubsetAccuracyLoss", {}, "labels"),
    Case("SubsetAccuracyLoss", {"over": "batch"}, "labels"),
]


def target_of(kind: str, samples: int, classes: int, seed: int = 0) -> Tensor:
    shape = (samples, classes) if kind == "labels" else (samples,)
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, classes if kind == "classes" else 2, shape, generator=made)
