"""How kernels are compiled: numba's options, and a cache on disk that knows all their sources.

numba takes a cached function for fresh as long as its own file is what it was; but functions and constants of other files are
compiled into it, and an upgrade that changes only those would go on running the old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import numba

Decorator = Callable[[Callable[..., Any]], Any]

FAST = ("nsz", "arcp", "contract", "reassoc")  # not "nnan" and "ninf": infinities are met


@lru_cache(maxsize=16)
def sources(folder: Path) -> str:
    """A hash of all that is compiled into a kernel of ``folder``: its files, those of the kernels beside it, the runtime."""
    folders = {folder, folder.parent / "kernels", Path(__file__).parent}
    files = sorted(file for each in folders for file in each.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def fresh(function: Any) -> FunctionType:
    """The function with ``sources`` as one more variable that it closes over: those are part of the key of numba's cache."""
    code = function.__code__.replace(co_freevars=(*function.__code__.co_freevars, "sources"))
    closure = (*(function.__closure__ or ()), CellType(sources(Path(function.__code__.co_filename).parent)))
    made = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__doc__, made.__module__, made.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    return made


def kernel(*fastmath: str, signature: str | None = None, inlined: bool = False) -> Decorator:
    """Compile without Python's lock; ``fastmath`` are LLVM's flags, ``inlined`` is for what is called once a row."""
    options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "forceinline": inlined}
    options["fastmath"] = set(fastmath)
    decorate: Decorator = numba.njit(**options) if signature is None else numba.njit(signature, **options)
    return lambda function: decorate(fresh(function))


jit, inlined = kernel(*FAST), kernel(*FAST, inlined=True)


def team_function(function: Callable[[Any], None]) -> Any:
    """A C function of the pointer to a job (``launch``)."""
    return numba.cfunc(numba.void(numba.types.voidptr), cache=True)(fresh(function))
