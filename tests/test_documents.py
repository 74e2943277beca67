"""The README's Python blocks and the examples run, and the relative links of the documents lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]


BLOCKS = [(path.name, block) for path in DOCUMENTS for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:.*dataloader")  # of Lightning's
@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_python_block_runs(name, block):
    exec(compile(block, name, "exec"), {})


def test_there_are_python_blocks():
    assert {"README.md", "losses.md"} <= {name for name, _ in BLOCKS}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_runs_and_ends_accurate(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[-1].split("accuracy")[1]) > 0.8, lines[-1]
    for line in lines:
        if "chance" in line:
            _, chance, _, accuracy = line.rsplit(maxsplit=3)
            assert float(accuracy) > float(chance) + 0.2, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_exist(document):
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing
