"""Times of calls that take turns in one run: only their ratios mean something on a machine that does other work too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

LEAST = 5  # repetitions


class Times(NamedTuple):
    """Seconds."""

    median: float
    low: float  # the 20 % quantile
    high: float

    def __str__(self) -> str:
        return f"{1e3 * self.median:.2f} ({1e3 * self.low:.2f}–{1e3 * self.high:.2f})"


def take_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Each call once, untimed, and then all in turn for so many seconds, or ``LEAST`` times."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < LEAST:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
        rounds += 1
    quantiles = {name: statistics.quantiles(times, n=5) for name, times in taken.items()}
    return {name: Times(statistics.median(taken[name]), low, high) for name, (low, *_, high) in quantiles.items()}
