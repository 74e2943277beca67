"""A matrix of costs from a file: in the order of the classes, and refused in one line otherwise."""

from pathlib import Path

import pytest

from lossmith.data import load
from lossmith.data.costs import read_costs
from lossmith.errors import InputError

CLASSES = ("ill", "well")


def written(folder: Path, text: str) -> Path:
    path = folder / "costs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_say_the_order(tmp_path: Path) -> None:
    path = written(tmp_path, "true, well, ill\nwell, 0, 1.5\nill, 20, -1\n")
    assert read_costs(path, CLASSES) == ((-1.0, 20.0), (1.5, 0.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a header ',ill,well' (decisions) and a row for each of these labels (true classes) that begins with it"),
        ("0,1\n1,0\n", "got 1 in the header"),
        (",ill,well\nill,0,1\n", "got ill in the first column"),
        (",ill,well\nill,0,1\nill,0,1\n", "got ill, ill in the first column"),
        (",ill,well\nill,0,one\nwell,1,0\n", "expected a finite number for 'well' where 'ill' is true, got 'one'"),
        (",ill,well\nill,0,inf\nwell,1,0\n", "expected a finite number for 'well' where 'ill' is true, got 'inf'"),
        (",ill,well\nill,0,\nwell,1,0\n", "expected a finite number for 'well' where 'ill' is true, got nan"),
        (",ill,well,sick\nill,0,1,1\nwell,1,0,1\n", "got ill, well, sick in the header"),
        (b"\xff\xfe\x00".decode("latin-1"), "expected a header"),
    ],
)
def test_another_matrix_is_refused_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read_costs(written(tmp_path, text), CLASSES)
    assert words in str(refused.value)
    assert str(refused.value).startswith("--cost: ")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--cost: .*cannot read it \(No such file"):
        read_costs(tmp_path / "none.csv", CLASSES)
    with pytest.raises(InputError, match=r"^--cost: .*cannot read it \(Is a directory"):
        read_costs(tmp_path, CLASSES)


def test_the_positive_class_is_the_last() -> None:
    data = load("breast-cancer")
    for label in data.classes:
        found = data.with_positive(label)
        assert found.classes[1] == label
        assert [found.classes[code] for code in found.target] == [data.classes[code] for code in data.target]
