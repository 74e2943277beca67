"""What a comparison found, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lossmith.catalogue import METRIC_LOSS
from lossmith.compare import plots, report
from lossmith.compare.losses import described
from lossmith.compare.methods import BASELINE, CEILING, PATH
from lossmith.compare.metrics import unit_of
from lossmith.compare.plan import Plan
from lossmith.compare.statistics import Summary, ratio_of
from lossmith.compare.store import Row


def write(plan: Plan, rows: Sequence[Row], summaries: Sequence[Summary], command: str, path: Path) -> None:
    """Write the page; an older one is replaced at once, never left half-written."""
    environment = Environment(loader=PackageLoader("lossmith.compare", "."), autoescape=True, undefined=StrictUndefined)
    counts = [int((plan.data.target == code).sum()) for code in range(len(plan.data.classes))]
    metric, unit = plan.reported, unit_of(plan.trained, plan.judge)
    figures = {}
    if len(summaries) > 1:
        text = f"Each method's difference from {BASELINE}, split by split, with mean and interval"
        figures["differences"] = plots.svg(partial(plots.differences, summaries, metric, unit), "differences", text)
    if plots.has_path(rows):
        text = "What each stage of the path gains over likelihood on the inner folds, a line a split"
        figures["path"] = plots.svg(partial(plots.path, rows, plan.trained_name, unit_of(plan.trained, None)), "path", text)
    if plan.losses:
        text = "Metric over epochs on training and on held-out rows, for each loss"
        figures["curves"] = plots.svg(partial(plots.curves, rows, metric), "curves", text)
    if set(plan.losses) - {METRIC_LOSS}:
        text = "Loss over the threshold b on three points, for each loss"
        figures["toy"] = plots.svg(partial(plots.toy, plan.losses), "toy", text)
    page = environment.get_template("report.html").render(
        plan=plan,
        unit=unit,
        answer=report.answer(plan, summaries, ratio_of(rows)),
        columns=report.COLUMNS,
        table=[(report.cells(s, unit), s.difference.verdict, described(s.method).summary) for s in summaries],
        classes=list(zip(plan.data.classes, counts, strict=True)),
        largest=max(counts) / sum(counts),
        splits=plan.folds * plan.repeats,
        diverged=[(s.method, s.diverged) for s in summaries if s.diverged],
        baseline=BASELINE,
        path_run=PATH in plan.methods,
        boosting_run=CEILING in plan.methods,
        figures={name: Markup(figure) for name, figure in figures.items()},
        command=command,
        version=rows[0]["plan"]["version"],
        machine=rows[0]["machine"],
        first=min(row["finished"] for row in rows),
        last=max(row["finished"] for row in rows),
    )
    draft = path.with_suffix(".tmp")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
