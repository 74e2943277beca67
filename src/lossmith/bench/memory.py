"""The most memory that a call holds at once."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

PAGE = 4096  # bytes
STATUS = Path("/proc/self/statm")


def peak_memory(call: Callable[[], object]) -> float:
    """Peak of the process's resident memory during one run above that before, in bytes; NaN where Linux does not tell.

    Sampled by a thread ten thousand times a second; of little meaning below some megabytes.
    """
    if not STATUS.exists() or not hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        return float("nan")

    def resident() -> int:
        return int(STATUS.read_text(encoding="ascii").split()[1])

    gc.collect()
    libc.malloc_trim(0)  # what is free but kept would hide what is taken
    peak, stop = resident(), threading.Event()
    before = peak

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, resident())
            time.sleep(1e-4)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    peak = max(peak, resident())
    stop.set()
    watcher.join()
    return float((peak - before) * PAGE)
