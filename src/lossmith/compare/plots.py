"""The report's figures, as SVG elements that stand inside the page and take its colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lossmith.compare.losses import described
from lossmith.compare.methods import BASELINE, PATH
from lossmith.compare.metrics import Unit
from lossmith.compare.statistics import Summary
from lossmith.compare.store import Row
from lossmith.experiments.toy.figure import risk_panel
from lossmith.experiments.toy.optima import LOSSES

INK = "#010203"  # stands for the page's own text colour
BLACK = "#111111"  # of a line, which the dark page would hide
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def svg(draw: Callable[[], Figure], name: str, text: str) -> str:
    """The figure as an <svg> element; the same figure gives the same text.

    Args:
        draw: makes the figure.
        name: of the figure on its page, which keeps the names inside apart.
        text: what it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    found = buffer.getvalue()
    found = re.sub(r"<metadata>.*?</metadata>", "", found[found.index("<svg") :], count=1, flags=re.DOTALL)
    found = re.sub(r' (?:width|height)="[\d.]+pt"', "", found, count=2)
    found = re.sub(f"{INK}|{BLACK}", "currentColor", found)
    return found.replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def differences(summaries: Sequence[Summary], metric: str, unit: Unit) -> Figure:
    """Each method's differences from the baseline: a dot a split, the mean, and its interval."""
    others = [s for s in summaries if s.method != BASELINE][::-1]
    figure = Figure(figsize=(6.4, 1.1 + 0.42 * len(others)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=described(BASELINE).colour, lw=1.4)
    for y, summary in enumerate(others):
        colour = described(summary.method).colour
        values = unit.factor * np.array(summary.difference.values)
        # Splits that agree would hide each other: spread them evenly across the row.
        lanes = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(values, y + lanes, "o", color=colour, alpha=0.5, ms=5, mew=0)
        if summary.difference.interval is not None:
            ends = unit.factor * np.array(summary.difference.interval)
            axes.plot(ends, [y, y], color=colour, lw=2.2, solid_capstyle="butt")
        axes.plot(unit.factor * summary.difference.mean, y, "D", color=colour, ms=7)
    axes.set_yticks(range(len(others)), [s.method for s in others])
    axes.set_ylim(-0.6, len(others) - 0.4)
    axes.set_xlabel(f"{metric}{', points' if unit.name else ''}: difference from {BASELINE} on the same split")
    _plain(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def has_path(rows: Sequence[Row]) -> bool:
    """Whether there are rows of the metric path, with points of it."""
    return any(row["method"] == PATH and any(sharpness for _, sharpness, _, _ in row["points"]) for row in rows)


def path(rows: Sequence[Row], metric: str, unit: Unit) -> Figure:
    """What each stage of the path gains over likelihood on the inner folds: a line a split; a dot where its point was taken."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=described(BASELINE).colour, lw=1.4)
    stages: list[float] = []
    for row in rows:
        if row["method"] != PATH:
            continue
        base = max(mean for _, sharpness, _, mean in row["points"] if sharpness == 0)
        best: dict[float, float] = {}
        for _, sharpness, _, mean in row["points"]:
            if sharpness:
                best[sharpness] = max(best.get(sharpness, -np.inf), unit.factor * (mean - base))
        stages = stages or list(best)
        places = range(len(best) + 1) if best else [0]
        axes.plot(places, [0, *best.values()], color=described(PATH).colour, lw=1.2, alpha=0.6)
        if row["took_metric"]:
            at = list(best).index(row["settings"]["sharpness"])
            axes.plot(at + 1, best[row["settings"]["sharpness"]], "o", color=described(PATH).colour, ms=7)
    axes.set_xticks(range(len(stages) + 1), [BASELINE, *(f"noise / {stage:g}" for stage in stages)])
    axes.set_ylabel(f"{metric}{', points' if unit.name else ''}")
    _plain(axes)
    return figure


def curves(rows: Sequence[Row], metric: str) -> Figure:
    """The metric over epochs on training and on held-out rows, the mean over splits, one line a loss."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    trained = [row for row in rows if "curve" in row]
    for loss in dict.fromkeys(row["method"] for row in trained):
        curve = np.array([[epoch[1:] for epoch in row["curve"]] for row in trained if row["method"] == loss]).mean(0)
        for axes, values in zip(panels, curve.T, strict=True):
            axes.plot(np.arange(1, len(values) + 1), values, color=described(loss).colour, lw=1.5, label=loss)
    for axes, title in zip(panels, ("training rows", "held-out rows"), strict=True):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        _plain(axes)
    panels[0].set_ylabel(metric)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def toy(losses: Sequence[str]) -> Figure:
    """What each loss does to the three points of the toy."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    risk_panel(axes, [loss for loss in losses if loss in LOSSES])
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure
