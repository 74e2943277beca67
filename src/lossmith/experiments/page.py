"""A study's page in Markdown, with its figure and its rows."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context

from lossmith.compare.over_sets import markdown_table
from lossmith.compare.store import Row
from lossmith.experiments.run import write_compressed
from lossmith.experiments.study import Study


def write(study: Study, size: str, rows: Sequence[Row], folder: Path, lost: Sequence[str] = ()) -> list[Path]:
    """Write the page, its figure and its rows; a kill leaves the old ones whole.

    Args:
        study, size, rows: what was run.
        folder: where to.
        lost: what is missing and why, a line each.
    """
    page, picture, data = files(study, size, folder)
    write_compressed(data, rows)
    drawn = io.BytesIO()
    with rc_context({"font.size": 9, "figure.facecolor": "white"}):
        study.figure(rows).savefig(drawn, dpi=130, metadata={"Software": None})
    _replace(picture, drawn.getvalue())
    _replace(page, text_of(study, size, rows, lost).encode())
    return [page, picture, data]


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    partial.replace(path)


def files(study: Study, size: str, folder: Path) -> tuple[Path, Path, Path]:
    """The page, its figure and its rows; those of the quick size never take the place of the full ones."""
    stem = study.name if size == "full" else f"{study.name}-{size}"
    return folder / f"{stem}.md", folder / f"{stem}.png", folder / f"{stem}.jsonl.xz"


def text_of(study: Study, size: str, rows: Sequence[Row], lost: Sequence[str] = ()) -> str:
    """The page."""
    _, picture, data = files(study, size, Path())
    parts = [f"# {study.title}", study.question, "## What was done", study.design]
    if size != "full":
        parts.append("**This is the quick size**: fewer rows, tables and seeds. It shows that the study runs, not what is so.")
    parts += [f"**Missing**: {reason}" for reason in lost]
    outcomes = [(prediction.text, prediction.outcome(rows)) for prediction in study.predictions]
    lines = [(text, f"**{o.verdict}**" if o.held is False else o.verdict, o.numbers) for text, o in outcomes]
    parts += ["## Predictions and outcomes", study.history, markdown_table(("prediction", "outcome", "numbers"), lines)]
    parts.append(f"![{study.title}]({picture})")
    for section in study.sections(rows):
        parts += [f"## {section.heading}", section.text]
        if section.columns:
            parts.append(markdown_table(section.columns, section.rows))
    parts += ["## Rows", _provenance(study, size, rows, data.name)]
    return "\n\n".join(parts) + "\n"


def _provenance(study: Study, size: str, rows: Sequence[Row], data: str) -> str:
    diverged = sum(bool(row.get("diverged")) for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    days = sorted({row["finished"][:10] for row in rows})
    versions = Counter(row["machine"]["torch"] for row in rows)
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"{len(rows):,} rows, {seconds / 3600:.1f} hours of one processor core, {period}, "
        f"PyTorch {', '.join(sorted(versions))}; {diverged} of the trainings diverged; their scores count as 0. "
        f"They are in [{data}]({data}), JSON lines; "
        f"`lossmith reproduce {study.name} --size {size}` computes them again, or writes this page anew from that file."
    )
