"""Wrong labels: in the training rows only, symmetric and pairwise, of images and of tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lossmith.compare import run
from lossmith.compare.methods import BASELINE, PATH
from lossmith.compare.over_sets import signed
from lossmith.compare.plan import Cell as TableCell
from lossmith.compare.plan import Plan
from lossmith.compare.store import Row
from lossmith.estimators import MetricClassifierCV
from lossmith.experiments.analysis import exceeds, mean_of
from lossmith.experiments.drop_in import BASE, CANDIDATE, DEFAULT, HISTORY, Budget, DropIns, Place, gain_section
from lossmith.experiments.figures import dots
from lossmith.experiments.objectives import Objective
from lossmith.experiments.study import Cell, Outcome, Prediction, Section, Study, derive
from lossmith.experiments.tasks import limited, tables_of, wrong_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISES = ("none", "symmetric-20", "symmetric-40", "pairwise-20", "pairwise-40")
PLACES = tuple(Place("fashion-mnist", model, noise=noise) for model, noise in product(("linear", "cnn"), NOISES))
EARLY = "cross-entropy, stopped early"
LOSSES = {
    BASE: Objective(named="cross-entropy"),
    EARLY: Objective(named="cross-entropy", early=True),
    "label smoothing 0.1": Objective(named="smoothing"),
    CANDIDATE: Objective("gumbel", 0.9, scale=0.7),
    DEFAULT: Objective("gumbel", 0.9),
    "Gumbel, scale 0.7, q = 0.8": Objective("gumbel", 0.8, scale=0.7),
    "Gumbel, scale 0.5, q = 0.8": Objective("gumbel", 0.8, scale=0.5),
    "Gumbel, scale 0.5, q = ½": Objective("gumbel", 0.5, scale=0.5),
    "Gumbel, q = ½": Objective("gumbel", 0.5),
    "GCE: Gumbel, q = 0.3": Objective("gumbel", 0.3),
    "1 − mean p after cross-entropy": Objective("gumbel", 0.0, after=True),
}
DROP_INS = DropIns(PLACES, LOSSES, dict.fromkeys(("linear", "cnn"), Budget(10_000, 12, 5)))
QUICK = DROP_INS.quick(
    [place for place in PLACES if place.noise in ("none", "symmetric-40")],
    {"linear": Budget(1000, 3, 2), "cnn": Budget(1000, 2, 1)},
)
TABLES = (  # of 600 rows or more and of all kinds, named before any row
    "banana", "letter", "mammographic", "penbased", "phoneme", "ring", "satimage", "segment", "spambase", "texture", "titanic",
    "twonorm", "vehicle", "vowel",
)  # fmt: skip
TABLE_NOISES = ("none", "symmetric-20", "symmetric-40")
TABLE_ROWS, FOLDS, SEED = {"quick": 300, "full": 1500}, 3, 2


def cells(size: str, rows: Sequence[Row]) -> Iterator[Cell]:
    """Images as in ``DropIns.cells``, then tables fold by fold."""
    yield from (DROP_INS if size == "full" else QUICK).cells(_of_images(rows))
    known = tables_of("keel")
    names = [f"keel/{name}" for name in (TABLES if size == "full" else TABLES[::4]) if f"keel/{name}" in known]
    for data, noise, fold in product(names, TABLE_NOISES, range(FOLDS)):
        yield {"phase": "table", "data": data, "noise": noise, "fold": fold, "rows": TABLE_ROWS[size]}


def compute(cell: Cell) -> dict[str, Any]:
    """One training, or both estimators on one fold of a table."""
    if cell["phase"] != "table":
        return DROP_INS.compute(cell)
    plan = Plan(limited(cell["data"], cell["rows"]), methods=(), folds=FOLDS, seed=SEED)
    part, _ = run.parts_of(plan, TableCell(PATH, 0, cell["fold"]))
    y = wrong_labels(part.fit_y, len(plan.data.classes), cell["noise"], derive(cell["data"], cell["noise"], cell["fold"]))
    values = {}
    for name, caution in ((BASELINE, np.inf), (PATH, 0.75)):
        found = MetricClassifierCV("accuracy", caution=caution).fit(part.fit_x.astype(np.float64), y)
        values[name] = 100 * float(np.mean(found.predict(part.score_x.astype(np.float64)) == part.score_y))
    return {"values": values, "took": found.selection_.took_metric, "diverged": False}


def table_gains(rows: Sequence[Row]) -> pd.DataFrame:
    """Points by which the path is ahead of likelihood: tables down, noise across."""
    found = [
        {
            "data": row["cell"]["data"].removeprefix("keel/"),
            "noise": row["cell"]["noise"],
            "gain": row["values"][PATH] - row["values"][BASELINE],
        }
        for row in rows
        if row["cell"]["phase"] == "table"
    ]
    return pd.DataFrame(found).pivot_table("gain", "data", "noise") if found else pd.DataFrame()


def _of_images(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["cell"]["phase"] != "table"]


def sections(rows: Sequence[Row]) -> list[Section]:
    """A table for each network, then the tables."""
    found = []
    images = _of_images(rows)
    by_seed = DROP_INS.gains(images)
    for model in ("linear", "cnn"):
        names = [place.name for place in PLACES if place.model == model]
        part = by_seed[by_seed.index.get_level_values("task").isin(names)]
        if len(part):
            text = (
                "Points of test accuracy, on clean labels, above cross-entropy at its own learning rate, which was tuned on "
                "training rows with the same wrong labels; mean over seeds (standard error)."
            )
            heading = "Fashion-MNIST, linear" if model == "linear" else "Fashion-MNIST, a small convolutional network"
            found.append(gain_section(heading, text, part, names, {}))
    if len(by_seed):
        absolute = DROP_INS.values(images).groupby("task")[BASE].mean()
        fitted = DROP_INS.values(images, "training").groupby("task")[BASE].mean()
        lines = [(p.name, f"{absolute[p.name]:.2f}", f"{fitted[p.name]:.2f}") for p in PLACES if p.name in absolute]
        text = "Test accuracy on clean labels, and accuracy on the training rows with their wrong ones, in percent."
        found += DROP_INS.notes(images)
        found.append(Section("Cross-entropy itself", text, ("task", "test", "training"), lines))
    gains = table_gains(rows)
    if len(gains):
        columns = [noise for noise in TABLE_NOISES if noise in gains]
        by_table = [[name, *(signed(float(gains[noise][name])) for noise in columns)] for name in gains.index]
        by_table.append(["mean", *(str(mean_of(gains[noise].dropna())) for noise in columns)])
        text = "Points by which `MetricClassifierCV` is ahead of tuned logistic regression on clean held-out rows, three folds."
        found.append(Section("Tables", text, ("table", *columns), by_table))
    return found


def _gain(rows: Sequence[Row], loss: str, words: str) -> Any:
    by_task = DROP_INS.means(_of_images(rows))[loss]
    return by_task[[name for name in by_task.index if words in name]]


def _forty(rows: Sequence[Row]) -> Outcome:
    found = _gain(rows, DEFAULT, "symmetric 40")
    held = bool((found >= 3).all()) if len(found) else None
    return Outcome(held, "; ".join(f"{name} {signed(gain)}" for name, gain in found.items()))


def _grows(rows: Sequence[Row]) -> Outcome:
    parts = [float(_gain(rows, "GCE: Gumbel, q = 0.3", words).mean()) for words in ("symmetric 20", "symmetric 40")]
    by_task = _gain(rows, "GCE: Gumbel, q = 0.3", "")
    clean = float(by_task[["%" not in name for name in by_task.index]].mean())
    numbers = f"clean {signed(clean)}, 20 % {signed(parts[0])}, 40 % {signed(parts[1])}"
    held = None if math.isnan(clean + sum(parts)) else bool(clean < parts[0] < parts[1])
    return Outcome(held, f"q = 0.3: {numbers}")


def _early(rows: Sequence[Row]) -> Outcome:
    network = [float(_gain(rows, loss, "cnn, symmetric 40").mean()) for loss in (EARLY, DEFAULT)]
    held = None if math.isnan(sum(network)) else network[0] > network[1]
    return Outcome(held, f"stopped early {signed(network[0])}, {DEFAULT} {signed(network[1])}")


def _tables(rows: Sequence[Row]) -> Outcome:
    gains = table_gains(rows)
    return exceeds(mean_of(gains["symmetric-40"].dropna() if len(gains) else []))


def figure(rows: Sequence[Row]) -> Figure:
    """Every task's gain of each loss."""
    kinds = {place.name: "clean" if place.noise == "none" else place.noise.replace("-", " ") + " %" for place in PLACES}
    return dots(DROP_INS.means(_of_images(rows)).drop(columns=BASE), kinds)


STUDY = Study(
    name="noise",
    title="Wrong labels",
    question="Does a bounded loss help where labels are wrong?",
    design=(
        "Labels of the training rows only are replaced: 20 or 40 % of them, by any other class (symmetric) or by the next one "
        "(pairwise). Images: Fashion-MNIST, a linear model and a small network, SGD, 10,000 training rows, twelve epochs, five "
        "seeds; every loss takes over the learning rate that was best for cross-entropy on a fifth of the training rows, wrong "
        "labels among them, for nobody has others. Its opponents: early stopping on a tenth of these rows, label smoothing, "
        "generalised cross-entropy (which is Gumbel noise, q = 0.3 here, 0.7 in its paper). Tables: 14 of KEEL, three folds, "
        "logistic regression and `MetricClassifierCV`, both tuned on folds with wrong labels."
    ),
    sets=("fashion-mnist", "keel"),
    predictions=(
        Prediction(
            "At 40 % symmetric noise the new default, “Gumbel, q = 0.9”, is at least three points ahead of cross-entropy.",
            _forty,
        ),
        Prediction("The gain of q = 0.3 grows with the noise.", _grows),
        Prediction("For the network, early stopping is worth more than the new default.", _early),
        Prediction("On tables with 40 % wrong labels the path is ahead of likelihood.", _tables),
    ),
    history=HISTORY,
    cells=cells,
    compute=compute,
    sections=sections,
    figure=figure,
)
