"""Which kernel is asked for, which ran, and which have failed; ``dispatch``, beside the kernels, chooses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lossmith.errors import near

KERNELS = ("cpu", "cuda", "reference")
_state = threading.local()
broken: dict[str, str] = {}  # kernels that failed, and how


def last_kernel() -> str | None:
    """What computed the latest ``argmax_log_prob`` of this thread: "cpu", "cuda", "reference" or "closed form"; None
    before the first.

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
