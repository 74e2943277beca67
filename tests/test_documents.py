"""Python blocks and examples run, relative links lead somewhere, both READMEs say the same, and the reference is complete."""

import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest

import lossmith
from lossmith import estimators, functional, surrogates, training

ROOT = Path(__file__).parent.parent
READMES = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCUMENTS = [
    *READMES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *(ROOT / "docs").glob("*.md"),
]


BLOCKS = [
    (path.name, block)
    for path in DOCUMENTS
    if path != READMES[1]
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
]


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:.*dataloader")  # of Lightning's
@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_python_block_runs(name, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name, "exec"), {})


def test_there_are_python_blocks():
    assert {"README.md", "losses.md"} <= {name for name, _ in BLOCKS}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_runs_and_ends_accurate(path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [path.name])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    if "→" in lines[-1]:
        before, after = map(float, re.findall(r"\d\.\d+", lines[-1]))
        assert after > before + 0.03, lines[-1]
        return
    assert float(lines[-1].split("accuracy")[1]) > 0.8, lines[-1]
    for line in lines:
        if "chance" in line:
            _, chance, _, accuracy = line.rsplit(maxsplit=3)
            assert float(accuracy) > float(chance) + 0.2, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_be_filled_in(document):
    assert not re.search(r"@@|TODO|FIXME", document.read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_exist(document):
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def parts_of(readme: Path) -> dict[str, list[str]]:
    """What does not depend on the language: code, links, the levels of headings, and the numbers of each line of a table."""
    text = readme.read_text(encoding="utf-8")
    blocks = re.findall(r"```(.*?)```", text, re.DOTALL)
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    links = re.findall(r"\]\(([^)]+)\)", plain)
    rows = [line for line in plain.splitlines() if line.startswith("|")]
    return {
        "code": [re.sub(r"\s*#.*", "", block) for block in blocks],
        "links": sorted(link for link in links if not link.startswith("README")),
        "headings": re.findall(r"^#+", plain, re.MULTILINE),
        "numbers": [" ".join(sorted(re.findall(r"[−+]?\d(?:[\d.,]*\d)?", re.sub(r"\]\([^)]*\)", "", row)))) for row in rows],
        "names": ["".join(re.findall(r"`[^`]+`", row)) for row in rows],
    }


@pytest.mark.parametrize("part", ["code", "links", "headings", "numbers", "names"])
def test_both_readmes_say_the_same(part):
    english, chinese = (parts_of(readme)[part] for readme in READMES)
    assert english
    assert chinese == english


@pytest.mark.parametrize("module", [lossmith, functional, surrogates, training, estimators], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module):
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    of_module = re.search(rf"automodule:: {module.__name__}\n +:members:", text)
    names = [name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)]
    missing = [name for name in names if not of_module and not re.search(rf":: [\w.]*\b{name}\n", text)]
    assert not missing
