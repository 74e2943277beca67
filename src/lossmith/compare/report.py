"""What a comparison found, as cells of a table, as a sentence and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmith.catalogue import BASELINE
from lossmith.compare.plan import Plan
from lossmith.compare.statistics import Summary

COLUMNS = ("loss", "mean ± sd", "differs by", "95 % interval", "", "train s (×)")


def cells(summary: Summary) -> tuple[str, ...]:
    """One row of the table: percentages, and differences in percentage points."""
    spread = "" if math.isnan(summary.spread) else f" ± {100 * summary.spread:.2f}"
    if summary.loss == BASELINE:
        compared = ("", "baseline", "")
    else:
        if summary.interval is not None:
            interval = " to ".join(_points(end) for end in summary.interval)
        elif len(summary.differences) == 1:
            interval = ""
        else:  # an interval of no width would claim too much
            interval = "equal differences" if any(summary.differences) else "same scores"
        compared = (_points(summary.difference), interval, summary.verdict)
    return (
        summary.loss,
        f"{100 * summary.mean:.2f}{spread}",
        *compared,
        f"{summary.seconds:.2f} ({summary.slowdown:.1f})",
    )


def _points(value: float) -> str:
    text = f"{100 * value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def headline(plan: Plan, summaries: Sequence[Summary]) -> str:
    """The outcome in one sentence or two."""
    by_verdict = {verdict: [s.loss for s in summaries if s.verdict == verdict] for verdict in ("better", "worse")}
    parts = [
        f"{_join(losses)} {'did' if len(losses) == 1 else 'each did'} {verdict} than {BASELINE}"
        for verdict, losses in by_verdict.items()
        if losses
    ]
    if len(summaries) == 1:
        return f"Only {BASELINE} was run; name other losses to compare."
    if len(summaries[1].differences) == 1:
        return "A single split shows no spread: nothing can be said about the differences."
    if not parts:
        return f"No loss differs from {BASELINE} in {plan.metric} by more than the splits themselves do."
    rest = [s.loss for s in summaries if not s.verdict and s.loss != BASELINE]
    tail = f"; for {_join(rest)} the interval includes zero" if rest else ""
    return f"In {plan.metric}, {' and '.join(parts)}{tail}."


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def as_json(plan: Plan, summaries: Sequence[Summary], report: Path) -> dict[str, Any]:
    """The outcome for programs: fractions, not percentages; seconds."""
    return {
        "settings": plan.settings | {"repeats": plan.repeats, "rows": len(plan.data.target)},
        "headline": headline(plan, summaries),
        "losses": [
            {
                "loss": s.loss,
                "mean": s.mean,
                "sd": None if math.isnan(s.spread) else s.spread,
                "difference": s.difference,
                "interval": s.interval,
                "verdict": s.verdict,
                "train_seconds": s.seconds,
                "slowdown": s.slowdown,
                "diverged": s.diverged,
                "scores": s.scores,
            }
            for s in summaries
        ],
        "report": str(report),
    }
