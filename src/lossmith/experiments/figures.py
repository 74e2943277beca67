"""Figures that the studies of networks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lossmith.compare.over_sets import LEAST_SETS, critical_difference, mean_ranks
from lossmith.experiments.analysis import scores_by_method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f4e79", "#c0504d", "#2e8b57", "#e39b2f", "#7f6084")
LIMIT = 6.0  # points; farther gains are drawn at the edge, as triangles


def ranking(means: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """Mean ranks of methods (columns) over data sets (index) and which differ; without enough sets, their means alone."""
    from matplotlib.figure import Figure

    if len(means) >= LEAST_SETS:
        return critical_difference(mean_ranks(scores_by_method(means)), colours)
    drawn = Figure(figsize=(7, 3), layout="constrained")
    axis = drawn.subplots()
    found = means.mean().sort_values()
    axis.barh([str(name) for name in found.index], found.to_list(), color="#3f7fbf")
    axis.set_xlabel(f"mean over {len(means)} data sets: too few to rank")
    return drawn


def dots(by_task: pd.DataFrame, kinds: Mapping[str, str], words: str = "points above cross-entropy") -> Figure:
    """A line a loss, a dot a task, a bar at the mean.

    Args:
        by_task: gains in points, tasks down, losses across.
        kinds: of each task, its colour's name in the legend.
        words: of the axis.
    """
    from matplotlib.figure import Figure

    losses = [str(loss) for loss in by_task]
    drawn = Figure(figsize=(8.5, 1.4 + 0.33 * len(losses)), layout="constrained")
    axis = drawn.subplots()
    axis.axvline(0, color="#888888", lw=0.8)
    known = list(dict.fromkeys(kinds[name] for name in by_task.index))
    for line, loss in enumerate(losses):
        for number, kind in enumerate(known):
            gain = by_task[loss][[kinds[name] == kind for name in by_task.index]].to_numpy(dtype=float)
            place = line + 0.12 * (number - (len(known) - 1) / 2) * np.ones(len(gain))
            label = kind if line == 0 else None
            colour = COLOURS[number % len(COLOURS)]
            inside = np.abs(gain) <= LIMIT
            axis.scatter(gain[inside], place[inside], s=22, color=colour, alpha=0.75, linewidths=0, label=label)
            for sign, marker in ((-1, "<"), (1, ">")):
                beyond = sign * gain > LIMIT
                axis.scatter(np.full(beyond.sum(), sign * LIMIT), place[beyond], s=26, color=colour, marker=marker)
        mean = float(by_task[loss].mean())
        if abs(mean) <= LIMIT:
            axis.plot([mean, mean], [line - 0.3, line + 0.3], color="#222222", lw=1.6)
    axis.set_yticks(range(len(losses)), losses)
    axis.invert_yaxis()
    axis.set_xlabel(f"{words}: a dot is a task, the bar their mean, a triangle lies beyond ±{LIMIT:g}")
    axis.spines[["top", "right"]].set_visible(False)
    drawn.legend(loc="outside upper right", ncols=len(known), frameon=False, fontsize=8)
    return drawn
