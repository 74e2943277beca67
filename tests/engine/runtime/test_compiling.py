"""When kernels are compiled: at their first use, by one process of several, and without a cache where none can be written."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from numba.core import caching

from lossmith.engine.runtime import compiled, compiling

FIRST_FORWARD = """
import torch
from lossmith.functional import argmax_log_prob, argmax_log_probs
from lossmith.engine.argmax.kernels import every_entry
assert every_entry.one_pass_team._compiled is None
scores = torch.zeros(2, 5, requires_grad=True)
argmax_log_prob(scores, torch.tensor([0, 1])).sum().backward()
assert every_entry.one_pass_team._compiled is not None
log_p = argmax_log_probs(scores)
assert every_entry.every_team._compiled is not None
assert every_entry.every_gradient_team._compiled is None
log_p[:, 0].sum().backward()
assert every_entry.every_gradient_team._compiled is not None
assert every_entry.softmax_team._compiled is None
"""


def test_each_kernel_is_compiled_at_its_first_use() -> None:
    subprocess.run([sys.executable, "-c", FIRST_FORWARD], check=True, timeout=300)


MODULE = """
from lossmith.engine.runtime.compiled import team_function

@team_function
def nothing(data):
    total = 0
    for k in range(10):
        total += k
"""


def test_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    code = "import module; module.nothing.address; print(module.nothing.compile()._cache_hits)"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
        for _ in range(2)
    ]
    assert sorted(process.communicate(timeout=120)[0] for process in started) == ["0\n", "1\n"]


IN_AND_OUT = """
import sys, time
from pathlib import Path
from lossmith.engine.runtime import compiling
folder = Path(sys.argv[1])
def note(word):
    with (folder / "log").open("a") as log:
        log.write(word + sys.argv[2] + "\\n")
for _ in range(5):
    with compiling._locked(folder):
        note("in ")
        time.sleep(0.1)
        note("out ")
    time.sleep(0.1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_the_lock_holds_one_process_at_a_time(tmp_path: Path) -> None:
    started = [subprocess.Popen([sys.executable, "-c", IN_AND_OUT, str(tmp_path), str(number)]) for number in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    assert len(lines) == 20
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert (entered.split()[0], left.split()[0]) == ("in", "out")
        assert entered.split()[1] == left.split()[1]


HOLD = """
import sys
from pathlib import Path
from lossmith.engine.runtime import compiling
with compiling._locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_a_lock_that_is_never_given_back_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "PATIENCE", 0.2)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with compiling._locked(tmp_path):
            assert holder.poll() is None
        holder.communicate("")


@pytest.fixture
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """numba finds no folder for its cache, as where neither the package nor the home can be written."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    compiling.cache_folder.cache_clear()
    yield
    compiling.cache_folder.cache_clear()


@pytest.mark.usefixtures("_no_folder")
def test_without_a_folder_kernels_are_compiled_after_one_warning() -> None:
    def double(x):  # type: ignore[no-untyped-def]
        return 2 * x

    with pytest.warns(RuntimeWarning, match=r"^kernels: expected a folder .* set NUMBA_CACHE_DIR to a folder"):
        function = compiled.kernel(from_python=True)(double)
    assert function(21) == 42
    assert compiled.team_function(lambda data: None).address  # no second warning, which would be an error
