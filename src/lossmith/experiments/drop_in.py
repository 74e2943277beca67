"""Losses in the place of cross-entropy, at its own tuned settings: what the studies of networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from lossmith.compare.over_sets import signed
from lossmith.compare.store import Row
from lossmith.data import public
from lossmith.experiments.analysis import mean_of, standard_error
from lossmith.experiments.objectives import Objective, train
from lossmith.experiments.study import Cell, Outcome, Prediction, Section
from lossmith.experiments.tasks import task

BASE = "cross-entropy"
REFERENCE = Objective()
RATES = tuple(0.02 * 2**k for k in range(6))
TUNING_SEEDS = 3  # of cross-entropy's rate, which all losses take over; a rate of one's own is tuned on the first of them
NOTE = (  # below every table of gains
    " Seeds draw the training rows, the weights and the order, and share the test rows; tasks that share their data are not "
    "independent, so an interval over tasks is rather too narrow."
)
HISTORY = (  # of the studies that decide about the new default
    "Committed before the first of these rows. The study [default](default.md), with linear models, n-grams and small layered "
    "networks, left over a candidate; only the networks here, which chose nothing, count for the predictions about it. "
    "“Gumbel, q = 0.9”, which leaves the scale alone, was added after the first rows of texts and before any of images, with "
    "a rule: of the two, the one becomes the default that is below cross-entropy by more than a standard error on fewer of "
    "the networks' tasks of images and texts. With five seeds that was the candidate, by one of eight tasks against three, and "
    "all within noise; so ten more seeds of both and of cross-entropy were added. With fifteen it is its rival, by one "
    "against two. “Gumbel, q = 0.9” became the default: it is also the one under which q = 1 stays cross-entropy. "
    "Cross-entropy with EXACT's tricks, and EXACT at the margin that its paper found for images, were added last."
)
CANDIDATE = "Gumbel, scale 0.7, q = 0.9"  # of the study "default"
DEFAULT = "Gumbel, q = 0.9"  # its rival, which ``AccuracyLoss()`` is now
FAR_BELOW = 20  # points
MORE_SEEDS = 10  # of cross-entropy and of both, so that small differences show


class Place(NamedTuple):
    """A task: data, network, optimiser, wrong training labels, and by how much its learning rates are multiplied."""

    data: str
    model: str
    optimizer: str = "sgd"
    noise: str = "none"
    rate: float = 1.0

    @property
    def name(self) -> str:
        """As in the tables."""
        words = [self.data.removeprefix("keel/"), self.model]
        words += [self.optimizer] * (self.optimizer != "sgd")
        words += [self.noise.replace("-", " ") + " %"] * (self.noise != "none")
        return ", ".join(words)


class Budget(NamedTuple):
    """Training rows, epochs, and seeds of the final trainings."""

    rows: int
    epochs: int
    seeds: int


def cell_of(phase: str, place: Place, objective: Objective, rate: float, seed: int, budget: Budget) -> Cell:
    """One training."""
    settings = {"rows": budget.rows, "epochs": budget.epochs, "rate": rate, "seed": seed}
    return {"phase": phase, "task": place.name, "objective": objective.settings, **settings}


@dataclass(frozen=True)
class DropIns:
    """Losses that take cross-entropy's place on some tasks.

    Args:
        places: the tasks.
        losses: by name, cross-entropy among them.
        budgets: of each network.
        rates: the grid of learning rates, before a place's factor.
        own_rate: names of the losses whose rate is tuned for themselves; the others take over cross-entropy's.
        more_seeds: of cross-entropy, the candidate and its rival, beyond the budget's.
    """

    places: Sequence[Place]
    losses: Mapping[str, Objective]
    budgets: Mapping[str, Budget]
    rates: Sequence[float] = RATES
    own_rate: Sequence[str] = ()
    more_seeds: int = 0

    def quick(self, places: Sequence[Place], budgets: Mapping[str, Budget]) -> DropIns:
        """The same in minutes: fewer tasks, smaller budgets, every other rate."""
        return replace(self, places=places, budgets=budgets, rates=self.rates[1::2], more_seeds=0)

    def cells(self, rows: Sequence[Row]) -> Iterator[Cell]:
        """First the learning rates, then, where ``rows`` settle these, each loss at its own."""
        tuned = best_rates(rows, self.rates, self.places)
        for place in filter(available, self.places):
            budget = self.budgets[place.model]
            own = {name: self.losses[name] for name in self.own_rate}
            for objective, rate in product((REFERENCE, *own.values()), self.rates):
                for seed in range(tuning_seeds(objective)):
                    yield cell_of("tune", place, objective, rate * place.rate, seed, budget)
            for seed, (name, objective) in product(range(budget.seeds + self.more_seeds), self.losses.items()):
                if seed >= budget.seeds and name not in (BASE, CANDIDATE, DEFAULT):
                    continue
                rate_of = tuned.get((place.name, budget.rows, own.get(name, REFERENCE)))
                if rate_of is not None:
                    yield cell_of("drop-in", place, objective, rate_of, seed, budget)

    def compute(self, cell: Cell) -> dict[str, Any]:
        """One training."""
        place = next(place for place in self.places if place.name == cell["task"])
        rows = task(place.data, place.model, cell["rows"], cell["seed"], cell["phase"] == "tune", place.noise)
        settings = {"learning_rate": cell["rate"], "optimizer": place.optimizer}
        return train(rows, place.model, Objective(**cell["objective"]), settings, cell["seed"], cell["epochs"])

    def values(self, rows: Sequence[Row], value: str = "accuracy") -> pd.DataFrame:
        """A value of the drop-ins: a line for each task and seed that has cross-entropy, a column for each loss."""
        names = {objective: name for name, objective in self.losses.items()}
        found = [
            {
                "task": row["cell"]["task"],
                "seed": row["cell"]["seed"],
                "loss": names.get(Objective(**row["cell"]["objective"])),
                "value": row[value],
            }
            for row in rows
            if row["cell"]["phase"] == "drop-in"
        ]
        if not found:
            index = pd.MultiIndex.from_arrays([[], []], names=["task", "seed"])
            return pd.DataFrame(index=index, columns=list(self.losses), dtype=float)
        wide = pd.DataFrame(found).dropna().pivot_table("value", ["task", "seed"], "loss")
        return wide.reindex(columns=list(self.losses)).dropna(subset=BASE)

    def gains(self, rows: Sequence[Row], value: str = "accuracy") -> pd.DataFrame:
        """Points above cross-entropy's, likewise."""
        found = self.values(rows, value)
        return found.sub(found[BASE], axis=0)

    def means(self, rows: Sequence[Row], value: str = "accuracy") -> pd.DataFrame:
        """Mean gains over seeds, (tasks, losses)."""
        return self.gains(rows, value).groupby("task").mean()

    def notes(self, rows: Sequence[Row]) -> list[Section]:
        """What qualifies the gains: trainings that failed, and the learning rates."""
        return [self._failed(rows), self.rate_section(rows)]

    def _failed(self, rows: Sequence[Row]) -> Section:
        """The trainings that came to nothing, which move a mean by whole points."""
        found = self.values(rows)
        usual = found[BASE].groupby("task").transform("median")
        failed = found.lt(usual - FAR_BELOW, axis=0)
        lines = []
        for loss in found:
            tasks = failed[loss].groupby("task").sum()
            words = ", ".join(f"{name} {count}" for name, count in tasks[tasks > 0].items())
            if words:
                lines.append((str(loss), f"{int(failed[loss].sum())} of {int(found[loss].notna().sum())}", words))
        text = (
            f"Trainings that end more than {FAR_BELOW} points below cross-entropy's median on the task; losses without any are "
        )
        text += "left out."
        return Section("Trainings that failed", text, ("loss", "failed", "on"), lines)

    def rate_section(self, rows: Sequence[Row]) -> Section:
        """The learning rates that were found; those at an end of their grid are marked."""
        grid = self.rates if best_rates(rows, self.rates, self.places) else self.rates[1::2]
        tuned = best_rates(rows, grid, self.places)
        lines = []
        for place in self.places:
            line = [place.name]
            for objective in (REFERENCE, *(self.losses[name] for name in self.own_rate)):
                found = [rate for (name, _, each), rate in tuned.items() if (name, each) == (place.name, objective)]
                ends = (grid[0] * place.rate, grid[-1] * place.rate)
                mark = "" if not found or not any(math.isclose(found[0], end) for end in ends) else " (end of the grid)"
                line.append(f"{found[0]:g}{mark}" if found else "–")
            lines.append(line)
        text = (
            f"On held-out training rows: cross-entropy's in the mean over {TUNING_SEEDS} seeds, others' on the first of them."
        )
        return Section("Learning rates", text, ("task", BASE, *self.own_rate), lines)

    def confirmations(self, networks: Sequence[str]) -> tuple[Prediction, ...]:
        """That the candidate, and that its rival, is safe on the tasks that chose nothing."""

        def outcome(loss: str) -> Callable[[Sequence[Row]], Outcome]:
            def judged(rows: Sequence[Row]) -> Outcome:
                by_seed = self.gains(rows)
                return safe(by_seed[by_seed.index.get_level_values("task").isin(networks)], loss)

            return judged

        text = "“{}” is at least cross-entropy on every network, within one standard error, and ahead in the mean."
        return tuple(Prediction(text.format(loss), outcome(loss)) for loss in (CANDIDATE, DEFAULT))


def best_rates(rows: Sequence[Row], grid: Sequence[float], places: Sequence[Place]) -> dict[tuple[str, int, Objective], float]:
    """Of each task, number of rows and objective that has tried the whole grid: its best rate in the mean over tuning seeds, on
    held-out training rows; of equals the lower."""
    factor = {place.name: place.rate for place in places}
    found: dict[tuple[str, int, Objective], dict[float, list[float]]] = {}
    for row in rows:
        cell = row["cell"]
        if cell["phase"] != "tune" or cell["task"] not in factor:
            continue
        if any(math.isclose(cell["rate"], rate * factor[cell["task"]]) for rate in grid):
            key = cell["task"], cell["rows"], Objective(**cell["objective"])
            tried = found.setdefault(key, {}).setdefault(cell["rate"], [])
            tried.append(0.0 if row["diverged"] else row["accuracy"])
    best = {}
    for key, by_rate in found.items():
        if len(by_rate) == len(grid) and all(len(each) == tuning_seeds(key[2]) for each in by_rate.values()):
            best[key] = max(sorted(by_rate), key=lambda rate: round(sum(by_rate[rate]) / len(by_rate[rate]), 6))
    return best


def tuning_seeds(objective: Objective) -> int:
    """How many trainings judge a rate."""
    return TUNING_SEEDS if objective == REFERENCE else 1


def available(place: Place) -> bool:
    """Whether the place's data are on this machine."""
    name = place.data.partition("/")[0]
    return name not in public.SETS or public.folder(name) is not None


def errors_of(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Standard errors over the seeds of each task, (tasks, losses)."""
    return by_seed.groupby("task").agg(_error)


def _error(gains: pd.Series) -> float:
    return standard_error(gains.dropna())  # losses of more seeds leave empty places to others


def gain_section(
    heading: str, text: str, by_seed: pd.DataFrame, order: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> Section:
    """Losses down; tasks across (mean and standard error over seeds), then the mean over groups of tasks with an interval."""
    by_task, errors = by_seed.groupby("task").mean(), errors_of(by_seed)
    shown = [name for name in order if name in by_task.index]
    lines = []
    for loss in by_seed:
        if loss == BASE:
            continue
        line = [str(loss)]
        for name in shown:
            gain, error = float(by_task[loss][name]), float(errors[loss][name])
            line.append(signed(gain) + (f" ({error:.2f})" if math.isfinite(error) else ""))
        for names in groups.values():
            line.append(str(mean_of(by_task[loss][[name for name in names if name in by_task.index]])))
        lines.append(line)
    return Section(heading, text + NOTE, ("loss", *shown, *groups), lines)


def safe(by_seed: pd.DataFrame, loss: str) -> Outcome:
    """Whether a loss is below cross-entropy on no task by more than a standard error, and ahead in the mean over tasks."""
    if by_seed.empty:
        return Outcome(None, "no rows")
    by_task, errors = by_seed[loss].groupby("task").mean(), errors_of(by_seed)[loss].fillna(0.0)
    below = [f"{name} {signed(by_task[name])} ({errors[name]:.2f})" for name in by_task.index if by_task[name] < -errors[name]]
    numbers = f"{loss}: mean {mean_of(by_task)} over {len(by_task)} tasks; below: {', '.join(below) or 'nowhere'}"
    return Outcome(bool(not below and by_task.mean() > 0), numbers)
