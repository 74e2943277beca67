"""Compile every kernel beforehand, for an image or a node on which trainings start."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules


def warm_up() -> Path | None:
    """Compile every kernel for the CPU that is not kept on disk yet, one to two minutes of work.

    Kernels are otherwise compiled at their first use. Processes that run at the same time compile once: the others wait.

    Returns:
        A folder with compiled kernels: a ``__pycache__`` of the package, or one below NUMBA_CACHE_DIR or the user's cache
        folder. None, after a RuntimeWarning, if none can be written and nothing is kept.

    Raises:
        ImportError: numba cannot be imported.
    """
    from lossmith.engine.runtime.compiling import announced, cache_folder

    with announced():
        from lossmith.engine.argmax import kernels as argmax
        from lossmith.engine.argmax.sharded import exchange
        from lossmith.engine.ranking import kernels as ranking
        from lossmith.engine.ranking.kernels import panels  # noqa: F401  # compiled when it is imported
        from lossmith.engine.runtime.compiled import TeamFunction

        found = [
            module.name for package in (argmax, ranking) for module in iter_modules(package.__path__, package.__name__ + ".")
        ]
        for name in found:
            if name.endswith("entry"):
                for value in vars(import_module(name)).values():
                    if isinstance(value, TeamFunction):
                        value.compile()
        exchange.kernels()
    return cache_folder()
