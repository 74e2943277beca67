"""Chinese reviews of books, hotels and goods, positive and negative, out of the fetched set ``reviews``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lossmith.data import public, tables

__all__ = ["reviews"]


def reviews() -> tuple[list[str], npt.NDArray[np.int64]]:
    """Texts and labels, 1 for positive: 8,332 positive ones, then 9,031 negative ones, in the order of the files.

    A line of a file is a text, without the blanks around it. The files repeat about half of their lines: of equal lines the
    first stays. The 47 texts that stand in both files are dropped. Some lines are parts of a longer review, such as a heading.

    Raises:
        InputError: the set was not fetched, or a file cannot be read.
    """
    folder = public.need("reviews")
    positive, negative = (
        dict.fromkeys(text for line in tables.decode(tables.read_bytes(path), path.name).split("\n") if (text := line.strip()))
        for path in (folder / "pos.txt", folder / "neg.txt")
    )
    kept = [
        [text for text in texts if text not in opposite] for texts, opposite in ((positive, negative), (negative, positive))
    ]
    labels = np.repeat(np.array([1, 0], dtype=np.int64), [len(texts) for texts in kept])
    return kept[0] + kept[1], labels
