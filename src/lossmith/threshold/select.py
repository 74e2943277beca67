"""Which kernel computes log P(the target wins), chosen call by call; the choice is recorded.

"cpu" serves float32, and half types computed in float32, on the CPU, for noise that ``tables`` can follow; "reference" serves
everything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from lossmith import noise as noises
from lossmith.errors import near
from lossmith.noise import Noise
from lossmith.threshold.tables import Tables, tables

KERNELS = ("cpu", "reference")
_state = threading.local()
broken: dict[str, str] = {}  # kernels that failed, and how


def last_kernel() -> str | None:
    """What computed the latest ``argmax_log_prob`` of this thread: "cpu", "reference" or "closed form"; None before the first.

    ``expected_auc`` counts as well.

    A row the fast kernel passes on (a target more than some 60 scales behind) is computed by the reference and not recorded.
    """
    return getattr(_state, "last", None)


def record(name: str) -> None:
    """Note what ran."""
    _state.last = name


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Within the context, this thread computes with that kernel only.

    Raises:
        ValueError: there is no such kernel; and where it is called, if it cannot serve the call.

    >>> with use_kernel("reference"):
    ...     pass
    """
    if name not in KERNELS:
        raise ValueError(f"kernel: unknown name {name!r}; {near(name, KERNELS)}")
    before = getattr(_state, "asked", None)
    _state.asked = name
    try:
        yield
    finally:
        _state.asked = before


def asked() -> str | None:
    """The kernel that ``use_kernel`` names; None outside."""
    name: str | None = getattr(_state, "asked", None)
    return name


def choose(scores: Tensor, noise: Noise) -> str:
    """The kernel for scores (rows, C) in the type they are computed in."""
    against = obstacle(scores, noise)
    name = asked()
    if name is None:
        return "reference" if against else "cpu"
    if name == "cpu" and against:
        raise ValueError(f"kernel: 'cpu' cannot serve this call ({against}); expected one of: reference")
    return name


def obstacle(scores: Tensor, noise: Noise) -> str:
    """Why the kernel for the CPU cannot serve; empty if it can."""
    if scores.device.type != "cpu":
        return f"scores on {scores.device.type}"
    if scores.dtype != torch.float32:
        return f"scores of {scores.dtype}"
    if "cpu" in broken:
        return f"it failed before: {broken['cpu']}"
    if tables_of(noises.key(noise)) is None:
        return f"{noise} has kinks, far tails or narrow peaks"
    return ""


@lru_cache(maxsize=64)
def tables_of(key: str) -> Tables | None:
    """The tables of the noise with that ``noises.key``."""
    return tables(noises.by_key(key))
