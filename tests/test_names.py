"""Names in the sources: none that points instead of naming, for a reader who comes new."""

import ast
from pathlib import Path

import pytest

import lossmith

ROOT = Path(lossmith.__file__).parent
POINTERS = {"there", "other", "room", "desk", "shelf", "borrowed", "hard", "together", "mine", "theirs", "gone", "late"}


def names_of(tree: ast.AST) -> set[str]:
    """Functions, classes, arguments and variables that a file defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_name_points_instead_of_naming(path: Path) -> None:
    assert names_of(ast.parse(path.read_text(encoding="utf-8"))) & POINTERS == set()
