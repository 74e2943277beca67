"""The toy as a table of text cells and as a figure."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmith.catalogue import CANDIDATES
from lossmith.experiments.toy.optima import FIVE, THREE, Case, Optimum, best_accuracy, risk

COLOURS = {**{name: candidate.colour for name, candidate in CANDIDATES.items()}, "0-1 loss": "#999999"}
FILES = ("toy.png", "toy.svg")
COLUMNS: tuple[str, ...] = ("loss", "b at k = 1", "accuracy", "free k", "b", "accuracy")


def cells(case: Case) -> tuple[str, ...]:
    """One row of the table, in the order of ``COLUMNS``."""
    if len({o.risk for o in case.trace}) == 1:
        free = "any", _threshold(case.free)
    elif case.free_limit == 0:  # a flat line that is moved away: only its sign is left
        free = "→ 0", number(math.copysign(math.inf, case.free.middle))
    elif case.free_limit == math.inf:
        free = "→ ∞", number(case.free.middle, digits=3)
    else:
        free = number(case.free.k, digits=3), _threshold(case.free)
    return (case.loss, _threshold(case.fixed), f"{case.fixed.accuracy:.3f}", *free, f"{case.free.accuracy:.3f}")


def _threshold(optimum: Optimum) -> str:
    if optimum.low == optimum.high:
        return number(optimum.low)
    return f"{number(optimum.low)} to {number(optimum.high)}"


def number(value: float, digits: int = 4) -> str:
    """A number for a reader, with a true minus; a limit as an arrow, and nothing for nan."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "→ ∞" if value > 0 else "→ −∞"
    return f"{value + 0.0:.{digits}g}".replace("-", "−")


def figure(three: list[Case], five: list[Case]) -> Figure:
    """Three panels: the loss over b at k = 1, the optimal b over k, and the accuracy on the five points over k.

    Dots mark optima: of b in the first panel, of b and k together in the third.
    """
    fig = Figure(figsize=(13, 4.6), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    risk_panel(left, [case.loss for case in three])
    _trace_panel(middle, three)
    _accuracy_panel(right, five)
    handles, labels = left.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return fig


def risk_panel(axes: Axes, losses: list[str]) -> None:
    """Mean loss on the three points over the threshold at k = 1, each from its least to its greatest value."""
    b = np.linspace(-1, 5, 1201)
    axes.axvspan(0, 0.25, color="#dff0d8", lw=0)
    for loss in losses:
        values = risk(loss, THREE, b, 1.0)
        values = (values - values.min()) / np.ptp(values)
        axes.plot(b, values, color=COLOURS[loss], label=loss, lw=1.6, ls=_style(loss))
        axes.plot(b[values.argmin()], 0, "o", color=COLOURS[loss], ms=4, clip_on=False)
    for x, label in zip(THREE.x, THREE.label, strict=True):
        axes.text(x, -0.06, "+" if label else "−", ha="center", va="center", fontsize=9)
    axes.set(
        title="Three points, scale 1: loss over threshold b",
        xlabel="b (green: all right)",
        ylabel="loss, from least to greatest",
    )
    axes.set_ylim(-0.1, 1.03)


def _trace_panel(axes: Axes, cases: list[Case]) -> None:
    axes.axhspan(0, 0.25, color="#dff0d8", lw=0)
    for case in cases:
        k = [o.k for o in case.trace]
        middle = [o.middle for o in case.trace]
        axes.plot(k, middle, color=COLOURS[case.loss], lw=1.6, ls=_style(case.loss))
    axes.set(xscale="log", xlim=(0.3, 20), ylim=(-0.05, 4), xlabel="scale k", ylabel="optimal b (green: all right)")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.set_title("Three points: the scale decides")


def _accuracy_panel(axes: Axes, cases: list[Case]) -> None:
    for offset, case in enumerate(cases):
        k = [o.k for o in case.trace]
        # A hair apart, so that lines of equal accuracy stay visible.
        values = [o.accuracy + 0.004 * (offset - len(cases) / 2) for o in case.trace]
        axes.plot(k, values, color=COLOURS[case.loss], lw=1.6, ls=_style(case.loss))
        if case.loss != "0-1 loss":
            axes.plot(case.free.k, np.interp(case.free.k, k, values), "o", color=COLOURS[case.loss], ms=5, clip_on=False)
    axes.axhline(best_accuracy(FIVE), color="#5a9e4b", lw=6, alpha=0.25)
    axes.set(xscale="log", ylim=(0.3, 0.9), xlabel="scale k", ylabel="accuracy at the optimal b (green: the best)")
    axes.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    axes.set_title("Five points: dots mark the free scale")


def _style(loss: str) -> str:
    return {"0-1 loss": ":", "smooth-accuracy": "--"}.get(loss, "-")


def as_json(studies: dict[str, list[Case]], critical: dict[str, float], paths: list[Path]) -> dict[str, Any]:
    """The optima for programs. A limit is the text "inf", "-inf"; no such scale is null."""

    def plain(value: float) -> float | str:
        return str(value) if math.isinf(value) else value

    def describe(optimum: Optimum) -> dict[str, float | str]:
        return {name: plain(value) for name, value in asdict(optimum).items()}

    cases = {
        name: [
            {"loss": c.loss, "fixed": describe(c.fixed), "free": describe(c.free) | {"k": plain(c.free_limit)}} for c in study
        ]
        for name, study in studies.items()
    }
    right_from = {loss: None if math.isnan(k) else k for loss, k in critical.items()}
    return {"points": cases, "three points right from k": right_from, "figures": [str(path) for path in paths]}


def save(fig: Figure, folder: Path) -> list[Path]:
    """Write toy.png and toy.svg; returns their paths. Either file is the old one or the new one, never a part."""
    paths = [folder / name for name in FILES]
    for path in paths:
        unfinished = path.with_name(f".{path.name}.part")
        try:
            fig.savefig(unfinished, format=path.suffix[1:], dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return paths
