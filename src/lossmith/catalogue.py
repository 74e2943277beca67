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
    falling scale; the relaxations of the 0-1 loss all do, so that none is handicapped by its scale. ``plain`` makes the loss of
    raw scores and two classes, a value a sample, without any of that. ``colour`` is that of its line in every figure.
    """

    summary: str
    colour: str
    plain: Callable[[], nn.Module]
    build: Callable[[int, Settings], nn.Module]
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


CANDIDATES: dict[str, Candidate] = {
    "cross-entropy": Candidate(
        "softmax cross-entropy",
        "#1f4e79",
        lambda: AccuracyLoss("gumbel", reduction="none"),
        lambda classes, s: nn.CrossEntropyLoss(),
    ),
    "hinge": Candidate(
        "hinge over the strongest rival",
        "#c0504d",
        lambda: HingeLoss(reduction="none"),
        lambda classes, s: HingeLoss(s["margin"]),
        grid={"margin": (1.0, 0.1, 0.5, 5.0, 10.0)},
    ),
    "sigmoid": Candidate(
        "sigmoid relaxation of the 0-1 loss, annealed",
        "#e39b2f",
        lambda: SigmoidLoss(reduction="none"),
        lambda classes, s: SigmoidLoss(standardize=True),
        annealed=True,
    ),
    "beta-bernoulli": Candidate(
        "Beta-Bernoulli with trained prior, annealed",
        "#7f6084",
        lambda: BetaBernoulliLoss(reduction="none"),
        lambda classes, s: BetaBernoulliLoss(classes, standardize=True),
        annealed=True,
    ),
    "polynomial": Candidate(
        "cubic relaxation of the 0-1 loss, annealed",
        "#9bbb59",
        lambda: PolynomialLoss(reduction="none"),
        lambda classes, s: PolynomialLoss(standardize=True),
        annealed=True,
    ),
    "polyloss": Candidate(
        "Poly-1: cross-entropy + ε(1 − p)",
        "#4bacc6",
        lambda: PolyLoss(reduction="none"),
        lambda classes, s: PolyLoss(s["epsilon"]),
        grid={"epsilon": (1.0, 0.5, 2.0, 4.0)},
    ),
    "exact": Candidate(
        "EXACT: normal noise, q = 0, standardised scores, margin, annealed, normalised gradients",
        "#111111",
        lambda: AccuracyLoss("normal", q=0, reduction="none"),
        lambda classes, s: AccuracyLoss("normal", q=0, margin=s["margin"], standardize=True),
        grid={"margin": (5.0, 0.5, 1.0, 10.0, None)},
        annealed=True,
        normalize_gradients=True,
    ),
    "probit": Candidate(
        "AccuracyLoss() as it comes: normal noise, q = 1",
        "#2e8b57",
        lambda: AccuracyLoss("normal", reduction="none"),
        lambda classes, s: AccuracyLoss(),
    ),
    "smooth-accuracy": Candidate(
        "1 − mean softmax: Gumbel noise, q = 0",
        "#d16d9e",
        lambda: AccuracyLoss("gumbel", q=0, reduction="none"),
        lambda classes, s: AccuracyLoss("gumbel", q=0),
    ),
}
