"""What a study is: its question, its predictions, its cells, and how finished rows become a page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lossmith.compare.store import Row

Cell = dict[str, Any]  # what identifies a row: plain JSON values
SIZES = ("quick", "full")


class Outcome(NamedTuple):
    """What became of a prediction: whether it held (None: not to be said from these rows), and the numbers."""

    held: bool | None
    numbers: str

    @property
    def verdict(self) -> str:
        """In words."""
        return "open" if self.held is None else "held" if self.held else "did not hold"


class Prediction(NamedTuple):
    """What was expected before any row of the study existed, and how the rows judge it."""

    text: str
    outcome: Callable[[Sequence[Row]], Outcome]


class Section(NamedTuple):
    """A part of a page: a heading, a paragraph, and a table (none where there are no columns)."""

    heading: str
    text: str
    columns: tuple[str, ...] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Study:
    """A study.

    Args:
        name: as on the command line.
        title, question: of its page.
        design: what is compared, on what, how, in Markdown.
        sets: the public sets that it needs.
        predictions: fixed before the first row.
        history: when they were, and what was changed since.
        cells: of a size, the rows to compute; those that depend on finished rows are left out until these are there.
        compute: a row's values, from its cell alone and, for a later phase, what the cell says.
        sections: what the rows show.
        figure: the same as a picture.
        protocol: rises when a row would come out otherwise, so that older rows are not taken for it.
    """

    name: str
    title: str
    question: str
    design: str
    sets: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    history: str
    cells: Callable[[str, Sequence[Row]], Iterator[Cell]]
    compute: Callable[[Cell], dict[str, Any]]
    sections: Callable[[Sequence[Row]], list[Section]]
    figure: Callable[[Sequence[Row]], Figure]
    protocol: int = 1


def key_of(cell: Cell) -> str:
    """The cell as text: equal cells have equal keys."""
    return json.dumps(cell, sort_keys=True)


def derive(*names: object) -> int:
    """A seed that depends on the names alone, so that a row can be computed without the others."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:4], "big")
