"""``lossmith doctor`` and ``warm_up``: every kernel is compiled, and a line each says what serves."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from numba.core import caching

import lossmith
from lossmith import functional
from lossmith.bench import numerics
from lossmith.cli import cli
from lossmith.cli.doctor import NO_FOLDER
from lossmith.engine.runtime import compiling, threads


def rows_of(*arguments: str) -> dict[str, str]:
    """What the command prints, by the name of the line."""
    result = CliRunner().invoke(cli, ["doctor", *arguments])
    assert result.exit_code == 0, result.output
    return {line[:13].rstrip(): line[15:] for line in result.stdout.splitlines()}


def test_doctor_says_what_serves() -> None:
    rows = rows_of()
    assert list(rows) == [
        "lossmith", "Python", "torch", "numba", "Triton", "CUDA", "threads", "OpenMP", "kernels", "kernel cache", "warmed up",
        "stored values",
    ]  # fmt: skip
    assert rows["Python"] == platform.python_version()
    assert rows["torch"] == torch.__version__
    assert rows["threads"].split()[0] == str(torch.get_num_threads())
    assert rows["OpenMP"] == (threads.openmp_path() or "none found; Python's threads serve")
    assert rows["kernels"].startswith("cpu")
    assert rows["kernel cache"] == str(compiling.cache_folder())
    assert rows["warmed up"].startswith("not asked for")
    assert rows["stored values"].startswith("10 of 10 as promised; worst error of p ")


def test_doctor_names_values_that_are_wrong_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(scores: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        return functional.topk_log_prob(scores, *arguments, **options) / 2

    monkeypatch.setattr(numerics, "topk_log_prob", half)
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    assert "stored values  10 of 10 less accurate than promised: normal, 3 classes; " in result.stdout


def test_doctor_names_the_remedy_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    compiling.cache_folder.cache_clear()
    try:
        assert rows_of()["kernel cache"] == NO_FOLDER
    finally:
        compiling.cache_folder.cache_clear()


WARM_UP = """
import lossmith
from lossmith.engine.runtime import compiled, compiling
made = []
team_function = compiled.team_function
compiled.team_function = lambda function: made.append(team_function(function)) or made[-1]
assert lossmith.warm_up() == compiling.cache_folder()
assert all(team._compiled is not None for team in made)
from lossmith.engine.argmax.sharded import cpu
assert cpu.survey.signatures and cpu.backward.signatures
print(len(made))
"""


def test_warm_up_compiles_every_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", WARM_UP], capture_output=True, text=True, check=True, timeout=300)
    sources = Path(lossmith.__file__).parent.glob("engine/**/*.py")
    assert int(done.stdout) == sum(source.read_text().count("\n@team_function\n") for source in sources)
