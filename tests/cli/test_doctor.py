"""``lossmith doctor`` and ``warm_up``: every kernel is compiled, and a line each says what serves."""

import platform
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from numba.core import caching

from lossmith.cli import cli
from lossmith.cli.doctor import NO_FOLDER
from lossmith.engine.runtime import compiling, threads


def rows_of(*arguments: str) -> dict[str, str]:
    """What the command prints, by the name of the line."""
    result = CliRunner().invoke(cli, ["doctor", *arguments])
    assert result.exit_code == 0, result.output
    return {line[:12].rstrip(): line[14:] for line in result.stdout.splitlines()}


def test_doctor_says_what_serves() -> None:
    rows = rows_of()
    assert list(rows) == [
        "lossmith", "Python", "torch", "numba", "Triton", "CUDA", "threads", "OpenMP", "kernels", "kernel cache", "warmed up",
    ]  # fmt: skip
    assert rows["Python"] == platform.python_version()
    assert rows["torch"] == torch.__version__
    assert rows["threads"].split()[0] == str(torch.get_num_threads())
    assert rows["OpenMP"] == (threads.openmp_path() or "none found; Python's threads serve")
    assert rows["kernels"].startswith("cpu")
    assert rows["kernel cache"] == str(compiling.cache_folder())
    assert rows["warmed up"].startswith("not asked for")


def test_doctor_names_the_remedy_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    compiling.cache_folder.cache_clear()
    try:
        assert rows_of()["kernel cache"] == NO_FOLDER
    finally:
        compiling.cache_folder.cache_clear()


WARM_UP = """
import lossmith
from lossmith.engine.runtime import compiling
assert lossmith.warm_up() == compiling.cache_folder()
from lossmith.engine.argmax.kernels import cpu_entry, every_entry
from lossmith.engine.argmax.sharded import cpu
from lossmith.engine.ranking.kernels import entry
for module in (cpu_entry, every_entry, entry):
    teams = [value for name, value in vars(module).items() if name.endswith("_team")]
    assert teams and all(team._compiled is not None for team in teams)
assert cpu.survey.signatures and cpu.backward.signatures
"""


def test_warm_up_compiles_every_kernel() -> None:
    subprocess.run([sys.executable, "-c", WARM_UP], check=True, timeout=300)
