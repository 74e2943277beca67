"""What is to be run: checked before any work, and every random number fixed by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold

from lossmith.catalogue import SHARED_GRID
from lossmith.compare.losses import NAMES, loss_of
from lossmith.compare.methods import BASELINE, METHODS, PATH, RULE
from lossmith.compare.metrics import check_judge, evaluate
from lossmith.data import Dataset
from lossmith.errors import InputError, near
from lossmith.estimators.metrics import metric_of
from lossmith.training import TrainingConfig

LEAST_STEPS = 400  # of a training: fewer measure how fast a loss starts, not where it ends
MODELS = ("linear", "mlp")
LARGEST = 1e37  # of the features: models compute in float32
Indices = npt.NDArray[np.int64]


class Cell(NamedTuple):
    """One row to compute."""

    method: str  # a name of METHODS, or of ``losses.NAMES`` for a loss trained by SGD
    repeat: int
    fold: int


@dataclass(frozen=True)
class Plan:
    """A comparison: which methods and losses, on what, how often, and with what budget for each.

    Args:
        data: the table. The metric of one of two classes is that of the last.
        methods: names from ``METHODS``; the baseline is added where it is missing, and beside the metric path the decision
            rule, which is left out where the metric has none.
        losses: names from ``losses.NAMES``, trained by SGD.
        metric: a name, as for ``MetricClassifierCV``: what the methods train and tune for.
        cost: (C, C), row y the costs of each decision where y is true; then the metric is minus the mean cost.
        judge: a scorer of scikit-learn that is reported instead of the metric.
        model: of the losses: "linear", or "mlp" (one hidden layer of 64).
        folds: of the stratified cross-validation.
        repeats: how often it is shuffled anew.
        trials: settings tried for each loss and fold, on a quarter of the training rows held out; 1 takes the defaults.
        epochs: passes of a loss over the training rows; None takes 40, or as many more as give ``LEAST_STEPS`` steps.
        seed: all splits, initial weights, row orders and trials follow from it.

    Raises:
        InputError: anything that would stop the work later.
    """

    data: Dataset
    methods: tuple[str, ...] = tuple(METHODS)
    losses: tuple[str, ...] = ()
    metric: str = "accuracy"
    cost: tuple[tuple[float, ...], ...] | None = None
    judge: str | None = None
    model: str = "linear"
    folds: int = 5
    repeats: int = 1
    trials: int = 4
    epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", self.metric.replace("-", "_"))
        for name in self.methods:
            _known("--methods", name, METHODS)
        for name in self.losses:
            _known("--losses", name, NAMES)
        _known("--model", self.model, MODELS)
        if self.epochs is None:
            train_rows = len(self.data.target) * (self.folds - 1) // max(self.folds, 1)
            steps = -(-max(train_rows, 1) // TrainingConfig.batch_size)
            object.__setattr__(self, "epochs", max(TrainingConfig.epochs, -(-LEAST_STEPS // steps)))
        for option, least in (("folds", 2), ("repeats", 1), ("trials", 1), ("epochs", 1), ("seed", 0)):
            if getattr(self, option) < least:
                raise InputError(f"--{option}: expected {least} or more, got {getattr(self, option)}")
        methods = dict.fromkeys((BASELINE, *self.methods))
        if not self._check_metric():
            methods.pop(RULE, None)
        elif PATH in methods:
            methods.setdefault(RULE)  # the opponent of training for the metric
        object.__setattr__(self, "methods", tuple(methods))
        object.__setattr__(self, "losses", tuple(dict.fromkeys(self.losses)))
        _check_features(self.data)
        counts = np.bincount(self.data.target, minlength=len(self.data.classes))
        rarest = int(counts.argmin())
        if counts[rarest] < self.folds:
            raise InputError(_rare(self.data, counts, rarest, self.folds))
        most = int(counts.max())
        if most - -(-most // self.folds) < 2:  # a split might train on a single row of each class
            raise InputError(f"{self.data.name}: too few rows of each class to tune on; add rows")

    def _check_metric(self) -> bool:
        """Whether the metric has a decision rule.

        Raises:
            InputError: it is not known or not for so many classes, or the judge is not.
        """
        classes = len(self.data.classes)
        if self.judge is not None:
            check_judge(self.judge)
        try:
            found = metric_of(self.trained, classes)
        except ValueError as error:
            raise InputError(f"--{error}") from None
        target = np.arange(2 * classes) % classes
        scores = np.zeros((2 * classes, 1 if classes == 2 else classes))
        try:
            value = evaluate(self.trained, self.judge, target, scores, classes)
        except ValueError as error:
            raise InputError(f"--judge: {self.judge!r} is not for these classes ({' '.join(str(error).split())})") from None
        if not np.isfinite(value):
            raise InputError(f"--judge: {self.judge!r} is not defined for these classes; choose another")
        return found.shifts

    @property
    def trained(self) -> Any:
        """The metric as ``MetricClassifierCV`` takes it."""
        return self.metric if self.cost is None else np.array(self.cost)

    @property
    def trained_name(self) -> str:
        """The name of what is trained for."""
        return self.metric if self.cost is None else "minus the cost"

    @property
    def reported(self) -> str:
        """The name of what is reported."""
        return self.judge or self.trained_name

    @property
    def settings(self) -> dict[str, Any]:
        """All that a row depends on, beside its cell: rows of equal settings belong together."""
        names = ("metric", "judge", "model", "folds", "trials", "epochs", "seed")
        data = {"data": self.data.name, "fingerprint": self.data.fingerprint, "target": self.data.target_name}
        order = {"classes": list(self.data.classes), "cost": self.cost and [list(row) for row in self.cost]}
        return data | order | {name: getattr(self, name) for name in names}

    def cells(self) -> Iterator[Cell]:
        """Every row, split by split, so that an interrupted comparison has all methods on the splits it has done."""
        for repeat in range(self.repeats):
            for fold in range(self.folds):
                for method in (*self.methods, *self.losses):
                    yield Cell(method, repeat, fold)

    def split(self, repeat: int, fold: int) -> tuple[Indices, Indices]:
        """Row numbers to train and to test on; the same for every method."""
        shuffled = StratifiedKFold(self.folds, shuffle=True, random_state=self.derive("split", repeat))
        return list(shuffled.split(self.data.target, self.data.target))[fold]

    def derive(self, *names: object) -> int:
        """A seed that depends on ``seed`` and the names alone, so that a row can be computed without the others."""
        text = "/".join(map(str, (self.seed, *names)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def draw_settings(self, cell: Cell) -> list[dict[str, Any]]:
        """The settings to try, the defaults first; what the losses share is drawn alike for all of them."""
        own = loss_of(cell.method, self.trained).grid
        drawn = [{name: values[0] for name, values in (*SHARED_GRID.items(), *own.items())}]
        shared = np.random.default_rng(self.derive("shared", cell.repeat, cell.fold))
        special = np.random.default_rng(self.derive("own", cell.repeat, cell.fold, cell.method))
        for _ in range(self.trials - 1):
            settings = {name: values[shared.integers(len(values))] for name, values in SHARED_GRID.items()}
            drawn.append(settings | {name: values[special.integers(len(values))] for name, values in own.items()})
        return drawn


def _known(option: str, name: str, choices: Any) -> None:
    if name not in choices:
        raise InputError(f"{option}: there is no {name!r}; {near(name, choices)}")


def _check_features(data: Dataset) -> None:
    """Refuse what no encoder can turn into finite float32 numbers."""
    if not data.features.notna().to_numpy().any():
        raise InputError(f"{data.name}: every feature column is empty; add features, or check the separator")
    numbers = data.features.select_dtypes("number", exclude="timedelta").astype("float64").abs().max()
    for column in numbers.index[numbers > LARGEST]:
        raise InputError(
            f"{data.name}: the column {column!r} holds numbers up to {numbers[column]:.3g}, beyond {LARGEST:.0e}; rescale it"
        )


def _rare(data: Dataset, counts: Indices, rarest: int, folds: int) -> str:
    rows = int(counts[rarest])
    text = f"{data.name}: class {data.classes[rarest]!r} of {data.target_name!r} has {rows} row{'s' * (rows != 1)}"
    text += f", fewer than the {folds} folds"
    others = int((counts < folds).sum()) - 1
    if others:
        text += f", and {others} more class{'es have' if others > 1 else ' has'} too few"
    if rows == 1:
        return text + "; merge or drop classes of one row, or name a target with fewer classes"
    return text + f"; pass --folds {rows}, or merge or drop rare classes"
