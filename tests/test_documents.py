"""The README's Python blocks and the examples run, and the relative links of the documents lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_readme_block_runs(block):
    exec(compile(block, "README.md", "exec"), {})


def test_readme_has_python_blocks():
    assert "```python\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_runs_and_ends_accurate(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    assert float(last.split("accuracy")[1]) > 0.8, last


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_exist(document):
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing
