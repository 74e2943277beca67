"""Equations of docs/how/ranking.md that comments cite, and constants that stand in two places."""

import re
from pathlib import Path

import pytest

import lossmith
from lossmith.engine.ranking.kernels import record
from lossmith.maths import chebyshev

ROOT = Path(lossmith.__file__).parent
PAGE = ROOT.parents[1] / "docs/how/ranking.md"
SOURCES = [*sorted((ROOT / "engine/ranking").rglob("*.py")), ROOT / "maths/chebyshev.py"]


def test_equations_are_numbered_in_order() -> None:
    numbers = [int(number) for number in re.findall(r"\\tag\{R(\d+)\}", PAGE.read_text(encoding="utf-8"))]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_cited_equation_exists(source: Path) -> None:
    last = PAGE.read_text(encoding="utf-8").count(r"\tag{R")
    cited = {int(number) for number in re.findall(r"\(R(\d+)\)", source.read_text(encoding="utf-8"))}
    assert cited <= set(range(1, last + 1))


def test_a_panel_has_as_many_powers_in_the_kernels_as_chebyshev_polynomials() -> None:
    assert record.POWERS == chebyshev.TERMS
