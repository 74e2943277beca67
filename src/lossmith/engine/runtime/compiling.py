"""When kernels are compiled: one thread of one process at a time, with a word to the user, into a folder that keeps them.

Processes that start together, such as the ranks of a training, would otherwise compile the same kernels side by side. Here the
first compiles, and the others wait and load what the first has kept.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

LOCK = "lossmith.lock"  # a file in the folder of compiled kernels
PATIENCE = 300.0  # seconds after which a process compiles for itself: whoever holds the lock may hang
PAUSE = 0.05  # seconds between two looks at the lock
NOTICE = 4.0  # seconds of silence

_lock = threading.RLock()
_depth = 0  # how many contexts of ``announced`` the thread that holds _lock is in


@contextmanager
def announced() -> Iterator[None]:
    """For the import and the compilation of kernels, which no other thread or process does meanwhile; says if it takes long."""
    global _depth
    import numba  # noqa: F401  # which on a busy machine takes long enough itself

    with _lock:
        if _depth:  # the lock is held by this very thread
            yield
            return
        notice = threading.Timer(NOTICE, _tell)
        notice.daemon = True
        _depth = 1
        try:
            with _locked(cache_folder()):
                notice.start()
                yield
        finally:
            _depth = 0
            notice.cancel()


@lru_cache(maxsize=1)  # one line a process, though forward and backward are compiled one after the other
def _tell() -> None:
    print("lossmith: compiling its kernels for this CPU, once; about ten seconds", file=sys.stderr, flush=True)


@lru_cache(maxsize=1)
def cache_folder() -> Path | None:
    """The folder in which numba keeps compiled kernels of this folder; None, with a warning, if none can be written."""
    from numba.core.caching import FunctionCache

    try:
        return Path(FunctionCache(_probe).cache_path)  # type: ignore[no-untyped-call]
    except RuntimeError:  # numba found no folder
        warnings.warn(
            f"kernels: expected a folder that can be written for compiled code, got neither {Path(__file__).parent} nor the "
            "user's cache folder, and each process compiles anew; set NUMBA_CACHE_DIR to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _probe() -> None:
    """A function of this folder, for which numba looks for a folder."""


@contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """While no other process is in here with the same folder; without a lock where there is none to be had."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    if folder is None:
        yield
        return
    try:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # of another user
        yield
        return
    try:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: a child by fork does not hold the lock
                break
            except (BlockingIOError, PermissionError):  # another process holds the lock
                time.sleep(PAUSE)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(file)  # which also gives the lock back


def _forget() -> None:
    """In a child process, whoever held the lock is not here."""
    global _lock, _depth
    _lock, _depth = threading.RLock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
