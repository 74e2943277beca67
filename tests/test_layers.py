"""One direction of imports, and what ``import lossmith`` leaves alone."""

import ast
import importlib
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lossmith

PACKAGE = "lossmith"
ROOT = Path(lossmith.__file__).parent

# A module imports only from entries above its own; an entry is a module or a whole package.
ORDER = [
    "moved",
    "errors",
    "inputs",
    "maths",
    "noise",
    "engine.runtime",
    "engine.argmax",
    "engine.ranking",
    "engine",
    "parallel",
    "functional",
    "distribution",
    "losses",
    "surrogates",
    "heads",
    "training",
    "recipe",
    "__init__",  # the public names of the core: what stands below may use them
    "integrations",
    "data",
    "estimators",
    "catalogue",
    "experiments.toy",
    "compare",
    "experiments",
    "bench",
    "cli",
    "__main__",
]
WINGS = ("engine.argmax", "engine.ranking")  # which do not know each other
CORE = {
    "functional",
    "heads",
    "moved",
    "noise",
    "recipe",
    "surrogates",
    "training",
    "distribution",
    "errors",
    "losses",
    "engine.runtime.select",
    "engine.warm_up",
}  # what __init__ gathers
HEAVY = {
    "sklearn",
    "entmax",
    "numba",
    "triton",
    "pandas",
    "matplotlib",
    "click",
    "rich",
    "skrub",
    "pyarrow",
    "jinja2",
    "scipy.optimize",
}


def dotted(path: Path) -> str:
    """Module of a file below the package, without the package's name; a package is its own __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}


def resolve(name: str) -> str:
    """The module that ``name``, dotted and without the package's name, lies in: itself or, for a function, its home."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or "__init__"


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == PACKAGE:
                found.add(resolve(rest))
    return found


def entry(module: str) -> str:
    """The entry of ORDER that a module belongs to: the longest that begins its name."""
    parts = module.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in ORDER), parts[0])


def violations(module: str, imported: set[str]) -> list[str]:
    """What ``module`` imports from beside or below its own entry of ORDER, other packages' insides apart."""
    own = ORDER.index(entry(module))
    return [other for other in sorted(imported) if entry(other) != entry(module) and ORDER.index(entry(other)) >= own]


def test_every_module_has_its_place() -> None:
    assert {entry(module) for module in FILES} - set(ORDER) == set()
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_upwards(module: str) -> None:
    assert violations(module, imports_of(FILES[module])) == []


@pytest.mark.parametrize("module", [module for module in FILES if entry(module) == "engine.runtime"])
def test_the_runtime_knows_no_mathematics(module: str) -> None:
    known = {entry(other) for other in imports_of(FILES[module])}
    assert known <= {"engine.runtime", "errors", "inputs", "noise"}


@pytest.mark.parametrize("module", [module for module in FILES if entry(module) in WINGS])
def test_the_wings_do_not_know_each_other(module: str) -> None:
    known = {entry(other) for other in imports_of(FILES[module])}
    assert known & set(WINGS) <= {entry(module)}


def test_the_public_names_come_from_the_core() -> None:
    assert imports_of(FILES["__init__"]) <= CORE


@pytest.mark.parametrize("module", [module for module in FILES if ORDER.index(entry(module)) < ORDER.index("__init__")])
def test_the_library_raises_errors_of_python(module: str) -> None:
    """``InputError`` is for the command line and what stands behind it."""
    raised = re.findall(r"raise InputError", FILES[module].read_text(encoding="utf-8"))
    assert raised == []


def test_no_circle_within_a_package() -> None:
    graph = {module: {other for other in imports_of(path) if other != module} for module, path in FILES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(FILES)


def test_the_rule_itself_tells_up_from_down() -> None:
    assert violations("functional", {"noise", "engine.argmax.reference"}) == []
    assert violations("engine.argmax.reference", {"noise", "functional"}) == ["functional"]
    assert violations("engine.argmax.reference", {"engine.ranking.multipole"}) == ["engine.ranking.multipole"]
    assert violations("maths.special", {"maths.special", "__init__"}) == ["__init__"]
    assert resolve("noise.Normal") == "noise"
    assert resolve("AccuracyLoss") == "__init__"


def test_importing_the_core_loads_no_heavy_package_and_checking_a_loss_no_matplotlib() -> None:
    steps = (f"import json, sys, torch, {PACKAGE}", f"{PACKAGE}.check_recipe(torch.nn.functional.cross_entropy)")
    code = "; print(json.dumps(sorted(sys.modules))); ".join([*steps, ""])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, checked = (set(json.loads(line)) for line in done.stdout.splitlines())
    assert {PACKAGE, "torch"} <= loaded
    assert loaded & (HEAVY | {f"{PACKAGE}.data"}) == set()
    assert "matplotlib" not in checked


@pytest.mark.parametrize("module", [module for module in FILES if entry(module) != "__main__"])
def test_every_name_in_all_exists(module: str) -> None:
    if module == "engine.argmax.kernels.cuda":
        pytest.importorskip("triton", reason="triton is not installed")
    if entry(module) == "integrations":
        pytest.importorskip(f"{PACKAGE}.{module}", exc_type=ModuleNotFoundError, reason="what it integrates is not installed")
    imported = importlib.import_module(PACKAGE if module == "__init__" else f"{PACKAGE}.{module}")
    names = getattr(imported, "__all__", [])
    assert isinstance(names, list | tuple)
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(imported, name)] == []
