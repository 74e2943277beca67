"""Equations of docs/how/argmax.md and docs/how/numbers.md that comments cite, and numbers of the page that the code makes."""

import re
from pathlib import Path

import pytest

import lossmith
from lossmith.engine.argmax.kernels.tables import tables_of

ROOT = Path(lossmith.__file__).parent
PAGES = {letter: ROOT.parents[1] / "docs/how" / name for letter, name in (("A", "argmax.md"), ("N", "numbers.md"))}
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
CITING = [(letter, path) for letter in PAGES for path, text in SOURCES.items() if re.search(rf"\({letter}\d", text)]
LEADS = {"normal": "normal", "logistic": "logistic", "Student's t, 30": "studentt:30.0", "Student's t, 15": "studentt:15.0"}


def text_of(letter: str) -> str:
    return PAGES[letter].read_text(encoding="utf-8")


def equations(letter: str) -> list[int]:
    return [int(number) for number in re.findall(rf"\\tag\{{{letter}(\d+)\}}", text_of(letter))]


@pytest.mark.parametrize("letter", PAGES)
def test_equations_are_numbered_in_order(letter: str) -> None:
    numbers = equations(letter)
    assert numbers
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    ("letter", "source"), CITING, ids=lambda x: x if isinstance(x, str) else x.relative_to(ROOT).as_posix()
)
def test_every_cited_equation_exists(letter: str, source: Path) -> None:
    cited = {int(number) for number in re.findall(rf"\({letter}(\d+)", SOURCES[source])}
    assert cited <= set(equations(letter))


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda path: path.stem)
@pytest.mark.parametrize("letter", PAGES)
def test_the_pages_cite_equations_that_exist(letter: str, page: Path) -> None:
    cited = {int(number) for number in re.findall(rf"\({letter}(\d+)\)", page.read_text(encoding="utf-8"))}
    assert cited <= set(equations(letter))


@pytest.mark.parametrize("name", LEADS)
def test_the_page_has_the_leads_of_the_tables(name: str) -> None:
    row = re.search(rf"^\| {re.escape(name)}[^|]*\|(.*)\|$", text_of("A"), re.MULTILINE)
    made = tables_of(LEADS[name])
    assert row
    assert made
    given = [float(cell.replace("−", "-")) for cell in row[1].split("|")]
    assert given == pytest.approx([made.least_lead, made.most_lead, made.sure_lead], abs=0.005)
