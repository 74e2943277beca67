"""The named losses, for ``compare``, the toy and the command line: how each is built and trained, what to tune, its colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lossmith.losses import AccuracyLoss
from lossmith.surrogates import BetaBernoulliLoss, HingeLoss, PolyLoss, PolynomialLoss, SigmoidLoss
from lossmith.training import TrainingConfig

Settings = Mapping[str, Any]

ANNEAL = (10.0, 0.01)  # of the scale, on scores of variance 1: the range that EXACT's tabular runs use

# What every loss tunes. The first value of each is the default; trial 0 takes the defaults.
SHARED_GRID: dict[str, tuple[float, ...]] = {
    "learning_rate": (0.1, 0.01, 0.03, 0.3, 1.0),
    "weight_decay": (0.0, 1e-4, 1e-3, 1e-2),
}


@dataclass(frozen=True)
class Candidate:
    """A loss as its authors train it.

    ``build`` makes the module from the number of classes and the settings. An annealed loss gets standardised scores and a
    falling scale; the relaxations of the 0-1 loss all do, so that none is handicapped by its scale. ``plain``, of a loss of
    samples, makes that of raw scores and two classes, a value a sample, without any of that. ``colour`` is that of its line in
    every figure.
    """

    summary: str
    colour: str
    build: Callable[[int, Settings], nn.Module]
    plain: Callable[[], nn.Module] | None = None
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    annealed: bool = False
    normalize_gradients: bool = False

    def config(self, base: TrainingConfig, settings: Settings) -> TrainingConfig:
        """The training of ``base`` with these settings and what belongs to the loss."""
        return replace(
            base,
            learning_rate=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            scale=ANNEAL if self.annealed else None,
            normalize_gradients=self.normalize_gradients,
        )


METRIC_LOSS = "metric-loss"  # the loss of the metric that a comparison asks for

CANDIDATES: dict[str, Candidate] = {
    "cross-entropy": Candidate(
        "softmax cross-entropy",
        "#1f4e79",
        lambda classes, s: nn.CrossEntropyLoss(),
        lambda: AccuracyLoss("gumbel", q=1, reduction="none"),
    ),
    "hinge": Candidate(
        "hinge over the strongest rival",
        "#c0504d",
        lambda classes, s: HingeLoss(s["margin"]),
        lambda: HingeLoss(reduction="none"),
        grid={"margin": (1.0, 0.1, 0.5, 5.0, 10.0)},
    ),
    "sigmoid": Candidate(
        "sigmoid relaxation of the 0-1 loss, annealed",
        "#e39b2f",
        lambda classes, s: SigmoidLoss(standardize=True),
        lambda: SigmoidLoss(reduction="none"),
        annealed=True,
    ),
    "beta-bernoulli": Candidate(
        "Beta-Bernoulli with trained prior, annealed",
        "#7f6084",
        lambda classes, s: BetaBernoulliLoss(classes, standardize=True),
        lambda: BetaBernoulliLoss(reduction="none"),
        annealed=True,
    ),
    "polynomial": Candidate(
        "cubic relaxation of the 0-1 loss, annealed",
        "#9bbb59",
        lambda classes, s: PolynomialLoss(standardize=True),
        lambda: PolynomialLoss(reduction="none"),
        annealed=True,
    ),
    "polyloss": Candidate(
        "Poly-1: cross-entropy + ε(1 − p)",
        "#4bacc6",
        lambda classes, s: PolyLoss(s["epsilon"]),
        lambda: PolyLoss(reduction="none"),
        grid={"epsilon": (1.0, 0.5, 2.0, 4.0)},
    ),
    "exact": Candidate(
        "EXACT: normal noise, q = 0, standardised scores, margin, annealed, normalised gradients",
        "#111111",
        lambda classes, s: AccuracyLoss("normal", q=0, margin=s["margin"], standardize=True),
        lambda: AccuracyLoss("normal", q=0, reduction="none"),
        grid={"margin": (5.0, 0.5, 1.0, 10.0, None)},
        annealed=True,
        normalize_gradients=True,
    ),
    "probit": Candidate(
        "multinomial probit: normal noise, q = 1",
        "#2e8b57",
        lambda classes, s: AccuracyLoss("normal", q=1),
        lambda: AccuracyLoss("normal", q=1, reduction="none"),
    ),
    "smooth-accuracy": Candidate(
        "1 − mean softmax: Gumbel noise, q = 0",
        "#d16d9e",
        lambda classes, s: AccuracyLoss("gumbel", q=0),
        lambda: AccuracyLoss("gumbel", q=0, reduction="none"),
    ),
}
