"""Compile every kernel beforehand, for an image or a node on which trainings start."""

from __future__ import annotations

from pathlib import Path


def warm_up() -> Path | None:
    """Compile every kernel for the CPU that is not kept on disk yet, half a minute of work.

    Kernels are otherwise compiled at their first use. Processes that run at the same time compile once: the others wait.

    Returns:
        A folder with compiled kernels: a ``__pycache__`` of the package, or one below NUMBA_CACHE_DIR or the user's cache
        folder. None, after a RuntimeWarning, if none can be written and nothing is kept.

    Raises:
        ImportError: numba cannot be imported.
    """
    from lossmith.engine.runtime.compiling import announced, cache_folder

    with announced():
        from lossmith.engine.argmax.kernels import cpu_entry, double_entry, every_entry
        from lossmith.engine.argmax.sharded import exchange
        from lossmith.engine.ranking.kernels import columns_entry, entry, panels  # noqa: F401  # panels are compiled when imported
        from lossmith.engine.runtime.compiled import TeamFunction

        for module in (cpu_entry, every_entry, double_entry, entry, columns_entry):
            for value in vars(module).values():
                if isinstance(value, TeamFunction):
                    value.compile()
        exchange.kernels()
    return cache_folder()
