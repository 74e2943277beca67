"""How kernels are compiled: numba's options, and a cache on disk that knows all their sources.

numba takes a cached function for fresh as long as its own file is what it was; but functions and constants of other files are
compiled into it, and an upgrade that changes only those would go on running the old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import numba

from lossmith.engine.runtime.compiling import announced, cache_folder

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


def kernel(*fastmath: str, signature: str | None = None, inlined: bool = False, from_python: bool = False) -> Decorator:
    """Compile without Python's lock.

    Args:
        fastmath: LLVM's flags.
        signature: compile at once, for these types; the function can then be called from Python.
        inlined: for what is called once a row.
        from_python: also compile what a call from Python needs. Without, such a call ends the process.
    """
    options: dict[str, Any] = {
        "nogil": True,
        "cache": cache_folder() is not None,
        "error_model": "numpy",
        "forceinline": inlined,
        "no_cpython_wrapper": signature is None and not from_python,
        "no_cfunc_wrapper": True,
    }
    options["fastmath"] = set(fastmath)
    decorate: Decorator = numba.njit(**options) if signature is None else numba.njit(signature, **options)
    return lambda function: decorate(fresh(function))


jit, inlined, python_jit = kernel(*FAST), kernel(*FAST, inlined=True), kernel(*FAST, from_python=True)


class TeamFunction:
    """A C function of the pointer to a job (``launch``), compiled when its address is first asked for.

    Args:
        function: of one void pointer, returning nothing.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self._function = function
        self._compiled: Any = None

    def compile(self) -> Any:
        """The function as numba's CFunc, from numba's cache if it is there; see ``announced``."""
        if self._compiled is None:
            with announced():
                if self._compiled is None:  # nor has another thread compiled meanwhile
                    decorate = numba.cfunc(numba.void(numba.types.voidptr), cache=cache_folder() is not None)
                    self._compiled = decorate(fresh(self._function))
        return self._compiled

    @cached_property  # a warm call then runs no Python for it
    def ctypes(self) -> Callable[[int], None]:
        """The function, callable from Python with an address, with Python's lock released."""
        called: Callable[[int], None] = self.compile().ctypes
        return called

    @cached_property
    def address(self) -> int:
        """The function's own address."""
        address: int = self.compile().address
        return address


def team_function(function: Callable[[Any], None]) -> TeamFunction:
    """A C function of the pointer to a job (``launch``), not compiled yet."""
    return TeamFunction(function)
