"""What a comparison found, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from lossmith.catalogue import BASELINE, CANDIDATES
from lossmith.compare import plots, report
from lossmith.compare.plan import Plan
from lossmith.compare.statistics import Summary
from lossmith.compare.store import Row


def write(plan: Plan, rows: Sequence[Row], summaries: Sequence[Summary], command: str, path: Path) -> None:
    """Write the page; an older one is replaced at once, never left half-written."""
    environment = Environment(loader=PackageLoader("lossmith.compare", "."), autoescape=True, undefined=StrictUndefined)
    counts = [int((plan.data.target == code).sum()) for code in range(len(plan.data.classes))]
    page = environment.get_template("report.html").render(
        plan=plan,
        headline=report.headline(plan, summaries),
        columns=report.COLUMNS,
        table=[(report.cells(s), s.verdict, CANDIDATES[s.loss].summary) for s in summaries],
        classes=list(zip(plan.data.classes, counts, strict=True)),
        largest=max(counts) / sum(counts),
        splits=plan.folds * plan.repeats,
        diverged=[(s.loss, s.diverged) for s in summaries if s.diverged],
        baseline=BASELINE,
        differences=plots.data_uri(plots.differences(summaries, plan.metric)) if len(summaries) > 1 else None,
        curves=plots.data_uri(plots.curves(rows, plan.metric)),
        toy=plots.data_uri(plots.toy(plan.losses)),
        command=command,
        version=rows[0]["plan"]["version"],
        machine=rows[0]["machine"],
        first=min(row["finished"] for row in rows),
        last=max(row["finished"] for row in rows),
    )
    draft = path.with_suffix(".tmp")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
