"""Threads of the kernels: which OpenMP serves, and that nobody waits for ever."""

import contextvars
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

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


def test_a_link_to_torch_leads_to_its_openmp_runtime(tmp_path: Path) -> None:
    (tmp_path / "store" / "torch").mkdir(parents=True)
    (tmp_path / "torch").symlink_to(tmp_path / "store" / "torch")
    runtime = f"{tmp_path.resolve()}/store/torch/lib/libgomp-2.so.1"
    assert threads.openmp_of_torch(maps(SKLEARN, runtime), tmp_path / "torch") == runtime


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_openmp_is_looked_for_again_after_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([None, OWN])
    monkeypatch.setattr(threads, "_parallel", None)
    monkeypatch.setattr(threads, "_modules_at_search", 0)
    monkeypatch.setattr(threads, "openmp_of_torch", lambda *_: next(found))
    monkeypatch.setattr(threads, "_gomp_parallel", lambda path: path)
    assert threads._openmp() is None
    assert threads._openmp() is None  # nothing has been imported since: no second search
    monkeypatch.setitem(sys.modules, "another", threads)
    assert threads._openmp() == OWN  # type: ignore[comparison-overlap]
    assert threads._openmp() == OWN  # type: ignore[comparison-overlap]


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


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_is_raised_when_all_parts_have_ended(failing: int) -> None:
    """The parts write into arrays of the caller, who frees them when an error is raised."""
    ended: list[int] = []

    def work(first: int, last: int) -> None:
        if first == failing:
            raise RuntimeError("part")
        time.sleep(0.2)
        ended.append(first)

    with pytest.raises(RuntimeError, match="part"):
        threads.in_parts(work, 3, 3)
    assert sorted(ended) == [part for part in range(3) if part != failing]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_an_error_in_a_team_reaches_the_caller_when_all_have_ended(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of Python's threads fails; the team's data belong to the caller, who may then run another."""
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    turns, ended = iter(range(size)), list[int]()

    def work(data: int) -> None:
        if next(turns) == 0:
            raise RuntimeError("worker")
        time.sleep(0.1)
        ended.append(data)

    with pytest.raises(RuntimeError, match="worker"):
        threads.run_team(work, 0, 7, size)
    assert ended == [7] * (size - 1)
    threads.run_team(ended.append, 0, 8, size)
    assert ended == [7] * (size - 1) + [8] * size


def test_a_thread_apart_has_the_context_of_its_caller_and_the_threads_of_torch() -> None:
    name = contextvars.ContextVar("name", default="")
    token, before = name.set("caller"), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch.no_grad():
            assert threads.apart(lambda: (name.get(), torch.get_num_threads(), torch.is_grad_enabled())) == ("caller", 3, True)
    finally:
        name.reset(token)
        torch.set_num_threads(before)


TRANSFORMED = """
import sys, threading
import torch, lossmith
from lossmith.engine.runtime import threads
threads._openmp = lambda: None
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
scores, target = torch.randn(100_000, generator=generator), torch.rand(100_000, generator=generator) < 0.3
loss = lossmith.AUCLoss()
step = torch.func.grad(lambda s: loss(s, target))
def by_autograd():
    leaf = scores.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, target), leaf)[0]
expected = by_autograd()
def work():
    for _ in range(5):
        torch.testing.assert_close(step(scores), expected)
        passed.append(1)
passed = []
callers = [threading.Thread(target=work) for _ in range(4)]
for caller in callers: caller.start()
for caller in callers: caller.join()
sys.exit(0 if len(passed) == 20 else 1)
"""


def test_auc_under_torch_func_in_four_threads_without_openmp_ends() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", TRANSFORMED], timeout=120, check=False)
    assert done.returncode == 0


FORKED = """
import os, sys
from lossmith.engine.runtime import threads
done = []
def use():
    done.clear()
    threads.apart(lambda: threads.in_parts(lambda first, last: done.append((first, last)), 4, 4))
    return sorted(done) == [(0, 1), (1, 2), (2, 3), (3, 4)]
assert use()
child = os.fork()
if child == 0:
    os._exit(0 if use() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_threads_serve_after_fork() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=60, check=False)
    assert done.returncode == 0
