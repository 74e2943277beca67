"""The report's figures, as SVG data URIs that stand inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lossmith.catalogue import BASELINE, CANDIDATES
from lossmith.compare.statistics import Summary
from lossmith.compare.store import Row
from lossmith.experiments.toy.figure import risk_panel
from lossmith.experiments.toy.optima import LOSSES


def data_uri(figure: Figure) -> str:
    """The figure as an SVG that an <img> can hold; the same figure gives the same text."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "lossmith"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def differences(summaries: Sequence[Summary], metric: str) -> Figure:
    """Each loss's differences from the baseline, in points: a dot a split, the mean, and its interval."""
    others = [s for s in summaries if s.loss != BASELINE][::-1]
    figure = Figure(figsize=(8, 1.1 + 0.42 * len(others)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=CANDIDATES[BASELINE].colour, lw=1.2)
    for y, summary in enumerate(others):
        colour = CANDIDATES[summary.loss].colour
        points = 100 * np.array(summary.differences)
        # Splits that agree would hide each other: spread them evenly across the row.
        lanes = np.linspace(-0.22, 0.22, len(points)) if len(points) > 1 else np.zeros(1)
        axes.plot(points, y + lanes, "o", color=colour, alpha=0.5, ms=5, mew=0)
        if summary.interval is not None:
            axes.plot(100 * np.array(summary.interval), [y, y], color=colour, lw=2.2, solid_capstyle="butt")
        axes.plot(100 * summary.difference, y, "D", color=colour, ms=7, mec="white")
    axes.set_yticks(range(len(others)), [s.loss for s in others])
    axes.set_ylim(-0.6, len(others) - 0.4)
    axes.set_xlabel(f"{metric}: points above or below {BASELINE} on the same split")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def curves(rows: Sequence[Row], metric: str) -> Figure:
    """The metric over epochs on training and on held-out rows, the mean over splits, one line a loss."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for loss in dict.fromkeys(row["loss"] for row in rows):
        curve = np.array([[epoch[1:] for epoch in row["curve"]] for row in rows if row["loss"] == loss]).mean(0)
        for axes, values in zip(panels, curve.T, strict=True):
            axes.plot(np.arange(1, len(values) + 1), values, color=CANDIDATES[loss].colour, lw=1.5, label=loss)
    for axes, title in zip(panels, ("training rows", "held-out rows"), strict=True):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(metric)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def toy(losses: Sequence[str]) -> Figure:
    """What each loss does to the three points of the toy."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    risk_panel(axes, [loss for loss in losses if loss in LOSSES])
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure
