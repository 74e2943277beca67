"""A study's page in Markdown, with its figure and its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context

from lossmith.compare.over_sets import markdown_table
from lossmith.compare.store import Row
from lossmith.experiments.run import write_compressed
from lossmith.experiments.study import Study

VERDICTS = {True: "held", False: "**did not hold**", None: "open"}


def write(study: Study, size: str, rows: Sequence[Row], folder: Path, lost: Sequence[str] = ()) -> list[Path]:
    """Write NAME.md, NAME.png and NAME.jsonl.xz.

    Args:
        study, size, rows: what was run.
        folder: where to.
        lost: why sets could not be had, a line each.
    """
    page, picture, data = files(study, folder)
    write_compressed(data, rows)
    with rc_context({"font.size": 9, "figure.facecolor": "white", "svg.hashsalt": study.name}):
        study.figure(rows).savefig(picture, dpi=130, metadata={"Software": None})
    partial = page.with_name(page.name + ".part")
    partial.write_text(text_of(study, size, rows, picture.name, data.name, lost), encoding="utf-8")
    partial.replace(page)
    return [page, picture, data]


def files(study: Study, folder: Path) -> tuple[Path, Path, Path]:
    """The page, its figure and its rows."""
    return folder / f"{study.name}.md", folder / f"{study.name}.png", folder / f"{study.name}.jsonl.xz"


def text_of(study: Study, size: str, rows: Sequence[Row], picture: str, data: str, lost: Sequence[str] = ()) -> str:
    """The page."""
    parts = [f"# {study.title}", study.question, "## What was done", study.design]
    if size != "full":
        parts.append("**This is the quick size**: fewer rows, tables and seeds. It shows that the study runs, not what is so.")
    parts += [f"**Not fetched**: {reason}" for reason in lost]
    outcomes = [(prediction.text, prediction.outcome(rows)) for prediction in study.predictions]
    lines = [(text, VERDICTS[outcome.held], outcome.numbers) for text, outcome in outcomes]
    before = "Written down, and committed, before the first row of the full size was computed."
    parts += ["## Predictions and outcomes", before, markdown_table(("prediction", "outcome", "numbers"), lines)]
    parts.append(f"![{study.title}]({picture})")
    for section in study.sections(rows):
        parts += [f"## {section.heading}", section.text]
        if section.columns:
            parts.append(markdown_table(section.columns, section.rows))
    parts += ["## Rows", _provenance(study, size, rows, data)]
    return "\n\n".join(parts) + "\n"


def _provenance(study: Study, size: str, rows: Sequence[Row], data: str) -> str:
    diverged = sum(bool(row.get("diverged")) for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    days = sorted({row["finished"][:10] for row in rows})
    versions = Counter(row["machine"]["torch"] for row in rows)
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"{len(rows):,} rows, {seconds / 3600:.1f} hours of one processor core, {period}, "
        f"PyTorch {', '.join(sorted(versions))}; {diverged} trainings diverged and count as such. "
        f"They are in [{data}]({data}), JSON lines; "
        f"`lossmith reproduce {study.name} --size {size}` computes them again, or writes this page anew from that file."
    )
