"""A loss over the lead beside the 0-1 error, and its slope below."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lossmith import noise as noises
from lossmith.recipe.reading import log_expected_slope

INK, LOSS, ERROR, METRIC = "#333333", "#1f4e79", "#999999", "#d9822b"
WRONG, RIGHT = "#fbeeee", "#eef5ec"


def figure(report: Any) -> Figure:
    """Two panels over one axis of leads: the loss above the 0-1 error, and the pull −dL/dt beside the metric's own.

    ``report`` is a ``RecipeReport``, whose module imports this one.
    """
    reach = 8 * float(report.leads[-1]) / 1000
    shown = np.abs(report.leads) <= reach
    t, values, pull = report.leads[shown], report.values[shown], -report.slopes[shown]
    breaks = [lead for lead in (*report.kinks, *report.jumps) if abs(lead) < reach]
    where = np.searchsorted(t, breaks)
    across, pull = np.insert(t, where, breaks), np.insert(pull, where, np.nan)  # no line over what the slope leaps
    fig = Figure(figsize=(8.6, 6.6), layout="constrained")
    above, below = fig.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes in (above, below):
        _ground(axes, reach)
    above.plot([-reach, 0, 0, reach], [1, 1, 0, 0], color=ERROR, lw=1.6, label="0-1 error")
    if report.error_factor > 0 and abs(report.error_factor - 1) > 5e-3:
        c = report.error_factor
        above.plot(
            [-reach, 0, 0], [c, c, 0], color=ERROR, lw=1.2, ls=(0, (4, 3)), label=f"{c:.3g} × 0-1 error, its lower bound"
        )
    above.plot(t, values, color=LOSS, lw=2.4, label="loss", solid_capstyle="round")
    below.plot(across, pull, color=LOSS, lw=2.4, label="pull of the loss, −slope", solid_capstyle="round")
    if report.noise is not None and report.noise_scale is not None:
        label = f"the expected error's, {report.noise} noise of scale {report.noise_scale:.3g}"
        metric = _metric_pull(report, t)
        below.plot(t, metric, color=METRIC, lw=1.8, ls=(0, (5, 2)), label=label)
        _frame(below, np.concatenate([pull, metric[np.isfinite(metric)]]))
    else:
        _frame(below, pull)
    _frame(above, np.append(values, 1.0))
    above.set_ylabel("loss a sample")
    below.set_ylabel("pull a sample")
    below.set_xlabel("lead of the target over its rivals, in units of the scores")
    above.legend(loc="upper right", frameon=False)
    below.legend(loc="upper right", frameon=False)
    above.text(
        -0.98 * reach, above.get_ylim()[0], "wrong", color="#b05050", ha="left", va="bottom", fontsize=11, style="italic"
    )
    above.text(
        0.98 * reach, above.get_ylim()[0], "right", color="#5a8a4b", ha="right", va="bottom", fontsize=11, style="italic"
    )
    words = (("error", report.error_words), ("surely right", report.right_words), ("surely wrong", report.wrong_words))
    lines = [report.verdict[0].upper() + report.verdict[1:], *(f"{part}: {text}" for part, text in words)]
    above.set_title("\n".join(fill(line, 105) for line in lines), loc="left", fontsize=9.5, color=INK, linespacing=1.45)
    fig.suptitle(fill(report.name, 80), x=0.015, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    fig.draw_without_rendering()  # the first layout does not know how wide the tick labels are
    return fig


def _ground(axes: Axes, reach: float) -> None:
    axes.axvspan(-reach, 0, color=WRONG, lw=0)
    axes.axvspan(0, reach, color=RIGHT, lw=0)
    axes.axhline(0, color="white", lw=1.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ERROR)
    axes.tick_params(color=ERROR, labelcolor=INK)
    axes.set_xlim(-reach, reach)


def _frame(axes: Axes, heights: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    """Limits that show the middle; of a loss that shoots up, no more than some twelve times its median."""
    heights = heights[np.isfinite(heights)]
    low, high = float(min(heights.min(), 0.0)), float(heights.max())
    high = min(high, max(12 * float(np.median(np.abs(heights))), 6.0))
    low = max(low, -high) if high > 0 else low
    gap = 0.08 * (high - low or 1.0)
    axes.set_ylim(low - gap, high + 5 * gap)  # the legend's place


def _metric_pull(report: Any, t: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    assert report.noise is not None
    assert report.noise_scale is not None
    classes = report.num_classes if report.task == "multiclass" else 2
    slopes = log_expected_slope(noises.get(report.noise), t / report.noise_scale, classes)
    return report.slope_ratio * np.exp(slopes) / report.noise_scale
