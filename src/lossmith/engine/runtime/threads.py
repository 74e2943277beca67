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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_is_child = False
_parallel: Callable[[int, int, int, int], None] | None = None  # of OpenMP, once it has been found
_modules_at_search = 0  # how many modules had been imported when OpenMP was last looked for


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
        _share([lambda: function(data)] * size)


def _openmp() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel`` of the OpenMP runtime that torch runs on; GNU's, LLVM's and Intel's runtimes have it.

    A runtime that was found is kept. Where none was found, the search is repeated once another module has been imported.
    """
    global _parallel, _modules_at_search
    if _parallel is None and _modules_at_search != len(sys.modules):
        _modules_at_search = len(sys.modules)
        path = openmp_path()
        _parallel = None if path is None else _gomp_parallel(path)
    return _parallel


def openmp_path() -> str | None:
    """Path of the OpenMP runtime that torch runs on; None if that cannot be told, and on systems without /proc."""
    try:
        # File names are bytes of any encoding.
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return openmp_of_torch(maps, Path(torch.__file__).parent)


def _gomp_parallel(path: str) -> Callable[[int, int, int, int], None] | None:
    """The function of a loaded library; None where the library has no such function."""
    try:
        parallel = ctypes.CDLL(path).GOMP_parallel
    except (OSError, AttributeError):
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
    homes = {home for each in (folder, folder.resolve()) for home in (each, each.parent / "torch.libs")}  # maps resolves links
    of_torch = {path for path in loaded if homes & set(path.parents)} or loaded
    return str(of_torch.pop()) if len(of_torch) == 1 else None


def in_parts(work: Callable[[int, int], Any], count: int, size: int) -> None:
    """``work(first, last)`` over 0 … count in ``size`` Python threads, this one among them; for work without Python's lock."""
    step = max(1, -(-count // size))
    _share([partial(work, first, min(first + step, count)) for first in range(0, count, step)] or [partial(work, 0, 0)])


def _share(tasks: Sequence[Callable[[], Any]]) -> None:
    """Do the tasks, in this thread and in those of the pool, and return when all are done.

    Each thread takes the next task until none is left, this one too. It thus waits only for tasks that another thread has
    begun, never for a place in the pool, which callers that wait might fill.

    Raises:
        BaseException: the first that a task raised, after all tasks have ended: their arrays belong to the caller.
    """
    waiting, ended, errors = deque(tasks), threading.Semaphore(0), list[BaseException]()

    def take_all() -> None:
        while waiting:
            try:
                task = waiting.popleft()
            except IndexError:  # another thread took the last
                return
            try:
                task()
            except BaseException as error:
                errors.append(error)
            finally:
                ended.release()

    with suppress(RuntimeError):  # no thread can be started, at the end of the process for one: this thread does the work
        for _ in tasks[1:]:
            _threads().submit(take_all)
    take_all()
    for _ in tasks:
        ended.acquire()
    if errors:
        raise errors[0]


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
