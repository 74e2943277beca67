"""Module names of version 0.1.0, which load for one more release, with a ``DeprecationWarning``.

Pickles name the module of a class, so that losses saved by 0.1.0 need these names as well.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {  # old name: new name, both below the package; "" stands for a package of which only the modules have moved
    "bench.accuracy": "bench.numerics",
    "bench.auc": "bench.speed_auc",
    "bench.kernels": "bench.speed_argmax",
    "checks": "inputs",
    "choice": "distribution",
    "compare.candidates": "catalogue",
    "distributed": "parallel.classes",
    "groups": "parallel.samples",
    "layout": "losses.base",
    "losses.confusion": "losses.counts",
    "losses.multilabel": "losses.labels",
    "qlog": "maths.qlog",
    "ranking": "functional.ranking",
    "scan": "maths.scan",
    "special": "maths.special",
    "threshold": "",
    "threshold.argmax": "engine.argmax.autograd",
    "threshold.auc": "engine.ranking.autograd",
    "threshold.cells": "engine.argmax.kernels.cells",
    "threshold.compiled": "engine.runtime.compiled",
    "threshold.cpu": "engine.argmax.kernels.cpu",
    "threshold.cuda": "engine.argmax.kernels.cuda",
    "threshold.jobs": "engine.runtime.launch",
    "threshold.kinks": "engine.argmax.kinks",
    "threshold.opaque": "engine.runtime.custom_op",
    "threshold.pair_loops": "engine.ranking.kernels.loops",
    "threshold.pair_panels": "engine.ranking.kernels.panels",
    "threshold.pair_team": "engine.ranking.kernels.entry",
    "threshold.pairs": "engine.ranking.multipole",
    "threshold.panels": "engine.argmax.quadrature",
    "threshold.precision": "engine.ranking.average_precision",
    "threshold.rank": "engine.argmax.topk",
    "threshold.reference": "engine.argmax.reference",
    "threshold.select": "engine.runtime.select",
    "threshold.sharded": "engine.argmax.sharded.plain",
    "threshold.sharded_cpu": "engine.argmax.sharded.cpu",
    "threshold.sharded_rows": "engine.argmax.sharded.exchange",
    "threshold.tables": "engine.argmax.kernels.tables",
    "threshold.team": "engine.argmax.kernels.cpu_entry",
    "threshold.threads": "engine.runtime.threads",
    "threshold.vectors": "engine.runtime.simd",
    "toy": "experiments.toy",
    "toy.figure": "experiments.toy.figure",
    "toy.optima": "experiments.toy.optima",
}
PACKAGE, LAST = "lossmith", "0.2"  # the last release with the old names


class OldNames(MetaPathFinder, Loader):
    """Finds the modules of ``MOVED`` and loads, for an old name, the very module of the new name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of an old name, or None for every other module."""
        package, _, old = fullname.partition(".")
        if package != PACKAGE or old not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=MOVED[old] == "")

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of ``module``, the empty one that the import system has made."""
        new = MOVED[module.__name__.partition(".")[2]]
        place = f"has moved to {PACKAGE}.{new}" if new else f"has moved to {PACKAGE}.engine"
        warnings.warn(f"{module.__name__} {place}; the old name goes after {PACKAGE} {LAST}", DeprecationWarning, stacklevel=2)
        if new:
            sys.modules[module.__name__] = importlib.import_module(f"{PACKAGE}.{new}")


def install() -> None:
    """Let the import system know the old names. A second call changes nothing."""
    if not any(type(finder).__name__ == OldNames.__name__ for finder in sys.meta_path):
        # First: in the folder of a moved package the usual finder would load a second copy of its modules.
        sys.meta_path.insert(0, OldNames())
