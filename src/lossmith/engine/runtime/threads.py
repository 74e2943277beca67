"""Threads for kernels: those of torch itself where its OpenMP runtime can be found, else Python's.

A kernel is a C function of one pointer, a "team" function: every thread of a team calls it with the same pointer, and each
takes work until none is left. torch's own OpenMP threads are the best to call: they are awake, since they wait for torch's next
operator in a busy loop, in which any other thread has to fight them for the core. OpenMP gives each Python thread that calls a
team of its own, and so does the pool of Python threads. numba's own layers do not: its work queue aborts the process when two
threads enter it at once. After ``fork`` a child has none of its parent's OpenMP threads and would wait for them for ever: there
Python's threads serve.
"""

from __future__ import annotations

import contextvars
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_is_child = False


def run_team(function: Callable[[int], Any], address: int, data: int, size: int) -> None:
    """Call the team function with ``data`` in ``size`` threads, this one among them, and wait for all.

    Args:
        function: the function, callable from Python with the lock released.
        address: the same, as an address.
        data: an address.
        size: threads, ≥ 1.
    """
    if size == 1:
        function(data)
    elif not _is_child and (parallel := _openmp()) is not None:
        parallel(address, data, size, 0)
    else:
        helpers = [_threads().submit(function, data) for _ in range(size - 1)]
        function(data)
        for helper in helpers:
            if not helper.cancel():  # a helper that no thread has begun has nothing left to do: waiting could last for ever
                helper.result()


@lru_cache(maxsize=1)
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel`` of the library that torch runs on; GNU's, LLVM's and Intel's have it."""
    try:
        runtime = openmp_of_torch(Path("/proc/self/maps").read_text(encoding="utf-8"), Path(torch.__file__).parent)
        parallel = ctypes.CDLL(runtime).GOMP_parallel if runtime else None
    except (OSError, AttributeError):
        return None
    if parallel is None:
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    found: Callable[[int, int, int, int], None] = parallel
    return found


def openmp_of_torch(maps: str, folder: Path) -> str | None:
    """Path of the OpenMP runtime that torch runs on, or None if that cannot be told.

    Other wheels, scikit-learn's among them, bring runtimes of their own. That of torch lies in the folder of torch, or in
    ``torch.libs`` beside it.

    Args:
        maps: /proc/self/maps; the path is a line's sixth field, and may hold spaces.
        folder: of torch.
    """
    fields = (line.split(maxsplit=5) for line in maps.splitlines())
    paths = {Path(field[5]) for field in fields if len(field) == 6}
    loaded = {path for path in paths if path.name.startswith(("libgomp", "libiomp", "libomp"))}
    of_torch = {path for path in loaded if {folder, folder.parent / "torch.libs"} & set(path.parents)} or loaded
    return str(of_torch.pop()) if len(of_torch) == 1 else None


def in_parts(work: Callable[[int, int], Any], count: int, size: int) -> None:
    """``work(first, last)`` over 0 … count in ``size`` Python threads, this one among them; for work without Python's lock."""
    step = max(1, -(-count // size))
    parts = [(first, min(first + step, count)) for first in range(step, count, step)]
    helpers = [_threads().submit(work, *part) for part in parts]
    work(0, min(step, count))
    for helper, part in zip(helpers, parts, strict=True):
        if helper.cancel():  # no thread has begun: they may all wait for this one
            work(*part)
        else:
            helper.result()


def apart(work: Callable[[], T]) -> T:
    """``work()`` in another thread: inside an operator of torch's, this one records nothing for differentiation."""
    # A thread of its own, not one of the pool: what runs here may itself ask the pool for help and wait.
    result: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result.set_result(context.run(work))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="lossmith-apart", daemon=True).start()
    return result.result()


@contextmanager
def announced() -> Iterator[None]:
    """For the import of kernels, of which the first on a machine compiles: it says so if it takes long."""
    import numba  # noqa: F401  # which on a busy machine takes long enough itself

    message = "lossmith: compiling its kernels for this CPU, once; about half a minute"
    notice = threading.Timer(4.0, lambda: print(message, file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="lossmith")
        return _pool


def _forget() -> None:
    """In a child process: its parent's threads, and whoever held the lock, are not here."""
    global _pool, _lock, _is_child
    _pool, _lock, _is_child = None, threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
