"""Which kernel computes an operation: records of the kernels, the choice between them, and what ran.

An operation lists its kernels in order of preference, the reference last; ``choose`` takes the first that serves the call, or
the one that ``use_kernel`` asks for, or refuses. What is asked for and what ran belong to a thread (or task), and go along into
threads of its own (``threads.apart``). A closed form is no kernel: where there is a formula, the formula serves, whatever is
asked for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossmith.errors import PerformanceWarning, near

KERNELS = ("cpu", "cuda", "reference")
LIBRARIES = ("lossmith", "torch", "concurrent", "threading", "contextlib")  # whose frames are not the user's

_asked: ContextVar[str | None] = ContextVar("lossmith_kernel_asked", default=None)
_ran: ContextVar[str | None] = ContextVar("lossmith_kernel_ran", default=None)
broken: dict[tuple[str, str], str] = {}  # (operation, kernel) -> how it failed, for the life of the process
_serving: dict[
    tuple[Any, ...], str
] = {}  # (operation, its kernels, kernel asked for, device, dtype, call) -> the kernel before the reference
_MOST = 256  # of those that are remembered
_warned: set[tuple[str, str]] = set()  # (operation, reason)


def _no_obstacle(scores: Tensor, *call: Any) -> str:
    return ""


@dataclass(frozen=True)
class Kernel:
    """One way to compute an operation.

    Attributes:
        name: as ``use_kernel`` and ``last_kernel`` know it.
        devices: types of device whose tensors it takes; none named: all.
        dtypes: of the scores that it takes; none named: all.
        obstacle: why it cannot serve a call of (scores, and what else the operation chooses by), in words; "reason; remedy" if
            there is one, and empty if it can.
    """

    name: str
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    obstacle: Callable[..., str] = _no_obstacle

    def __post_init__(self) -> None:
        if self.name not in KERNELS:
            raise ValueError(f"kernel: unknown name {self.name!r}; {near(self.name, KERNELS)}")

    def refusal(self, operation: str, scores: Tensor, *call: Any) -> str:
        """Why it cannot serve this call; empty if it can."""
        if self.devices and scores.device.type not in self.devices:
            return f"scores on {scores.device.type}"
        if self.dtypes and scores.dtype not in self.dtypes:
            served = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            return f"scores of {scores.dtype}; pass {served} scores"
        if broken and (how := broken.get((operation, self.name))):
            return f"it failed before: {how}; mend that, or take smaller batches"
        return self.obstacle(scores, *call)


REFERENCE = Kernel("reference")
BEARABLE = 1024  # scores up to which the reference costs no more than some milliseconds


def choose(operation: str, kernels: Sequence[Kernel], scores: Tensor, *call: Any, bearable: int = BEARABLE) -> str:
    """The name of the kernel for this call.

    Args:
        operation: what is computed, for messages.
        kernels: those that there are for it, in order of preference, the reference last.
        scores: any shape, in the type that they are computed in.
        call: what else ``Kernel.obstacle`` looks at, hashable; of the scores it looks at device and dtype only.
        bearable: scores up to which the reference costs no more than some milliseconds; beyond, a warning says why it runs.

    Raises:
        ValueError: the kernel that ``use_kernel`` names cannot serve.
    """
    name = _asked.get()
    question = operation, id(kernels), name, scores.device.type, scores.dtype, call
    if not broken and (known := _serving.get(question)) is not None:
        return known
    chosen = _chosen(operation, kernels, scores, call, name, bearable)
    if chosen != REFERENCE.name:
        if len(_serving) >= _MOST:
            _serving.clear()
        _serving[question] = chosen
    return chosen


def _chosen(
    operation: str, kernels: Sequence[Kernel], scores: Tensor, call: tuple[Any, ...], name: str | None, bearable: int
) -> str:
    """As ``choose``, where ``name`` is what was asked for."""
    if name is None:
        why = ""
        for kernel in kernels:
            if not (refusal := kernel.refusal(operation, scores, *call)):
                if kernel is REFERENCE and scores.numel() > bearable:
                    warn_of_price(operation, why)
                return kernel.name
            if not why or not refusal.startswith("scores on"):
                why = refusal
    refusals = {kernel.name: kernel.refusal(operation, scores, *call) for kernel in kernels}
    if against := refusals.get(str(name), "there is no such kernel for it"):
        able = ", ".join(kernel for kernel, refusal in refusals.items() if not refusal)
        raise ValueError(f"kernel: {name!r} cannot serve this call of {operation} ({against}); expected one of: {able}")
    return str(name)


def warn_of_price(operation: str, why: str) -> None:
    """Say once, for each reason, that the reference runs at a size where that costs."""
    why = why or "no kernel computes it; take Gumbel noise where it has a formula, or smaller batches"
    if (operation, why) in _warned:
        return
    _warned.add((operation, why))
    reason, _, remedy = why.partition("; ")
    warnings.warn(
        f"{operation}: expected a call that a kernel serves, got one for the plain-torch reference, tens to thousands of times "
        f"slower ({reason}); {remedy or 'take smaller batches'}. Said once.",
        PerformanceWarning,
        stacklevel=stack_level_of_user(),
    )


def give_up(operation: str, name: str, error: Exception) -> None:
    """Note that a kernel failed, and tell the user; for lack of memory it is tried again at the next call."""
    how = f"{type(error).__name__}: {error}"
    lacks_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(error)
    if not lacks_memory:
        broken[operation, name] = how
    once = ", this once" if lacks_memory else ""
    message = f"kernel {name!r} of {operation} failed ({how}); the reference runs instead{once}"
    warnings.warn(message, RuntimeWarning, stacklevel=stack_level_of_user())


def stack_level_of_user() -> int:
    """For ``warnings.warn`` in the caller: the level of the nearest frame that lies outside this library and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level


def last_kernel() -> str | None:
    """What computed the latest call of this thread: "cpu", "cuda", "reference" or "closed form"; None before the first.

    Every function of ``lossmith.functional`` with noise counts, and so do the losses on them. Rows that a kernel passes on (a
    target more than some 60 scales behind) are counted: "cpu, 3 rows by reference".
    """
    return _ran.get()


def record(name: str) -> None:
    """Note what ran."""
    if not torch.compiler.is_compiling():  # a graph holds no context of Python
        _ran.set(name)


def record_rows(operation: str, name: str, rows: int, classes: int) -> None:
    """Note that a kernel ran and passed some rows on to the reference; say so once where that costs."""
    record(f"{name}, {rows} row{'s' if rows > 1 else ''} by reference")
    if rows * classes > BEARABLE:
        reach = "rows of scores spread farther than the kernel's tables reach; scale the scores down or the noise up"
        warn_of_price(operation, reach)


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Within the context, this thread computes with that kernel only; where there is a formula, the formula still serves.

    Raises:
        ValueError: there is no such kernel; and where it is called, if it cannot serve the call.

    >>> with use_kernel("reference"):
    ...     pass
    """
    if name not in KERNELS:
        raise ValueError(f"kernel: unknown name {name!r}; {near(name, KERNELS)}")
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


def asked() -> str | None:
    """The kernel that ``use_kernel`` names; None outside."""
    return _asked.get()
