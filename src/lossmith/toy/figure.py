"""The toy as a table of text cells and as a figure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmith.toy.optima import FIVE, LOSSES, THREE, Case, Optimum, Points, best_accuracy, risk

COLOURS = {
    "cross-entropy": "#1f4e79",
    "hinge": "#c0504d",
    "sigmoid": "#e39b2f",
    "beta-bernoulli": "#7f6084",
    "polynomial": "#9bbb59",
    "polyloss": "#4bacc6",
    "exact": "#111111",
    "probit": "#2e8b57",
    "smooth-accuracy": "#d16d9e",
    "0-1 loss": "#999999",
}
COLUMNS = ("loss", "b at k = 1", "accuracy", "k, free", "b, k free", "accuracy, k free")


def cells(case: Case) -> tuple[str, ...]:
    """One row of the table, in the order of ``COLUMNS``."""
    if len({o.risk for o in case.trace}) == 1:
        free = "any", _threshold(case.free)
    elif case.free_limit == 0:  # a flat line that is moved away: only its sign is left
        free = "→ 0", _number(math.copysign(math.inf, case.free.middle))
    elif case.free_limit == math.inf:
        free = "→ ∞", _number(case.free.middle, digits=3)
    else:
        free = _number(case.free.k, digits=3), _threshold(case.free)
    return (case.loss, _threshold(case.fixed), f"{case.fixed.accuracy:.3f}", *free, f"{case.free.accuracy:.3f}")


def _threshold(optimum: Optimum) -> str:
    if optimum.low == optimum.high:
        return _number(optimum.low)
    return f"{_number(optimum.low)} to {_number(optimum.high)}"


def _number(value: float, digits: int = 4) -> str:
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
        axes.text(x, -0.06, "+" if label else "−", ha="center", va="center", fontsize=11, fontweight="bold")
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
    axes.set_title("Five points: a free scale (dots) does not rescue all")


def _style(loss: str) -> str:
    return {"0-1 loss": ":", "smooth-accuracy": "--"}.get(loss, "-")


def save(fig: Figure, folder: Path) -> list[Path]:
    """Write toy.png and toy.svg; returns their paths."""
    paths = [folder / "toy.png", folder / "toy.svg"]
    for path in paths:
        fig.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


__all__ = ["COLOURS", "COLUMNS", "FIVE", "LOSSES", "THREE", "Points", "cells", "figure", "risk_panel", "save"]
