"""Threads of the kernels: which OpenMP serves, and that nobody waits for ever."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lossmith.engine.runtime import threads

TORCH = Path("/a folder/site-packages/torch")
LINE = "7f0000-7f1000 r-xp 00000000 08:01 1234   {path}\n"


def maps(*paths: str) -> str:
    return "7f00-7f01 rw-p 00000000 00:00 0\n" + "".join(LINE.format(path=path) for path in paths)


SKLEARN = "/a folder/site-packages/scikit_learn.libs/libgomp-1.so"
OWN = f"{TORCH}/lib/libgomp-2.so.1"


@pytest.mark.parametrize(
    ("loaded", "runtime"),
    [
        ([OWN], OWN),
        ([SKLEARN, OWN], OWN),
        ([SKLEARN, "/a folder/site-packages/torch.libs/libgomp-3.so"], "/a folder/site-packages/torch.libs/libgomp-3.so"),
        (["/usr/lib/libgomp.so.1"], "/usr/lib/libgomp.so.1"),
        (["/usr/lib/libgomp.so.1", SKLEARN], None),
        ([], None),
    ],
)
def test_the_openmp_runtime_is_torchs_own(loaded: list[str], runtime: str | None) -> None:
    assert threads.openmp_of_torch(maps(*loaded), TORCH) == runtime


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_scikit_learn_imported_first_takes_no_openmp_away() -> None:
    code = (
        "import sklearn.linear_model, torch; from lossmith.engine.runtime import threads as t; assert t._openmp() is not None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_callers_that_wait_for_each_other_all_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight callers on a pool of one thread, each in a thread apart that asks the pool for help."""
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    monkeypatch.setattr(threads, "_pool", threads.ThreadPoolExecutor(max_workers=1))
    done: list[int] = []

    def whole() -> None:
        def part(first: int, last: int) -> None:
            threads.run_team(lambda data: done.append(data), 0, 1, 3)

        threads.apart(lambda: threads.in_parts(part, 4, 4))

    callers = [threading.Thread(target=whole, daemon=True) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=30)
    assert not any(caller.is_alive() for caller in callers)
    assert len(done) >= 8 * 4


def test_an_error_in_a_part_reaches_the_caller() -> None:
    def fail(first: int, last: int) -> None:
        if first:
            raise RuntimeError("part")

    with pytest.raises(RuntimeError, match="part"):
        threads.in_parts(fail, 4, 2)
    with pytest.raises(RuntimeError, match="part"):
        threads.apart(lambda: fail(1, 2))
