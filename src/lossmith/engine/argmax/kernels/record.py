"""What forward tells backward about a row: columns, statuses and limits, written once for all kernels.

The records are (rows, COLUMNS) int32. This module loads neither numba nor Triton.
"""

from __future__ import annotations

from functools import cache

from lossmith.engine.argmax.kernels.tables import CELL, FARTHEST

# Columns of a record

LEVEL = 0
"""The level of the thresholds: neighbours are 2^(−1−level) scales apart."""
START = 1
"""The first threshold that is kept, in multiples of the level's step, counted from the strongest rival."""
COUNT = 2
"""How many thresholds are kept."""
CELLS = 3
"""How many cells below the strongest rival count."""
TOP = 4
"""The score of the strongest rival in 32 bits: of the CPU kernel an ordered key (``cells.key_of``), on a GPU the float32."""
STATUS = 5
"""What became of the row: one of the statuses below."""
COLUMNS = 6
"""How many columns a record has."""

# Statuses. Those above UNSERVED say that the row is still being computed; no row ends with them.

DONE = 0
"""log p and the weights of the thresholds are written."""
SURE = 1
"""log p is 0, and so is the gradient: the target is ignored, or no float32 tells p from 1."""
LOST = 2
"""log p is −inf, and the gradient is 0: the target's score is −inf."""
UNSERVED = 3
"""The row is left to the reference: the tables do not reach so far, or the thresholds to keep are too many."""
OPEN = 4
"""On the CPU: sums at the first thresholds are wanted."""
DIRECT = 5
"""On the CPU: sums at finer thresholds are wanted, for the integral of p."""
COMPLEMENT = 6
"""On the CPU: sums at finer thresholds are wanted, for the integral of 1 − p."""
BAD = 4
"""On a GPU: the row holds a value that cannot be, or its target is no class; log p is NaN."""

# Limits

KEPT_NORMAL = 96
"""The most thresholds of a row that are kept for backward, for normal noise."""
KEPT_OTHER = 192
"""The same for other noise, whose tails reach farther."""
MAX_CELLS = int(1.5 * FARTHEST / CELL)
"""The most cells of a row."""
NEGLIGIBLE = 1e-8
"""A threshold whose term is smaller than this share of the highest term is not kept."""
SINGLE_CLASSES = 48
"""The most classes of a row of which each is a cell of its own."""
CLASSES_PER_THREAD = 1 << 13
"""Classes, of all rows together, from which on one more thread pays."""
LEAST_DF, MOST_DF = 0.5, 20.0
"""Degrees of freedom of Student's t that have a kernel: below, panels are many; above, H (A36) needs a higher degree."""


@cache
def kept_thresholds(noise: str) -> int:
    """The most thresholds of a row that are kept for backward; ``noise`` is a ``Noise.key``."""
    return KEPT_NORMAL if noise == "normal" else KEPT_OTHER
