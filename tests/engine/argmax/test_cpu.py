"""The fused kernel for the CPU, against the reference in float64: any shape, layout, number of threads and transform."""

import math
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lossmith
from lossmith import AccuracyLoss
from lossmith.engine.argmax import autograd as argmax
from lossmith.engine.argmax import fused
from lossmith.engine.argmax.kernels import cpu
from lossmith.engine.argmax.kernels.tables import LEVELS, tables
from lossmith.engine.runtime import compiled, compiling, select, threads
from lossmith.functional import argmax_log_prob
from lossmith.noise import Custom, Logistic, Noise, Normal, StudentT
from support.kernels import assert_near, exact, scores_of

GRADIENT = 1e-5  # against its row's norm
OWN = Custom(
    lambda x: x - 2 * torch.nn.functional.softplus(x), lambda x: -torch.nn.functional.softplus(-x), torch.logit, name="own"
)
NOISES = pytest.mark.parametrize("noise", [Normal(), Logistic(), OWN], ids=lambda n: n.name)


@pytest.fixture(autouse=True)
def _only_the_kernel() -> Iterator[None]:
    with lossmith.use_kernel("cpu"):
        yield


def run(scores: Tensor, target: Tensor, noise: Noise | str = "normal", **options: object) -> tuple[Tensor, Tensor]:
    """log p and its gradient in the scores."""
    leaf = scores.detach().clone().requires_grad_() if scores.is_contiguous() else scores.detach().requires_grad_()
    log_p = argmax_log_prob(leaf, target, noise=noise, **options)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(log_p[log_p.isfinite()].sum(), leaf)
    return log_p.detach(), grad


def assert_right(scores: Tensor, target: Tensor, noise: Noise | str = "normal", scale: float = 1.0) -> None:
    assert_near(run(scores, target, noise, scale=scale), exact(scores, target, noise, scale), GRADIENT)


# Numbers


@NOISES
@pytest.mark.parametrize("spread", [0.0, pytest.param(0.1, marks=pytest.mark.slow), 1.0, 4.0, 15.0])
@pytest.mark.parametrize("classes", [3, 10, pytest.param(17, marks=pytest.mark.slow), 100, 1000])
def test_random_rows(classes: int, spread: float, noise: Noise) -> None:
    assert_right(*scores_of(12, classes, spread), noise)


@pytest.mark.parametrize("classes", [cpu.FINE_FROM - 1, cpu.FINE_FROM, cpu.FINE_FROM + 1, 20_000])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0])
def test_rows_of_many_classes(classes: int, spread: float) -> None:
    assert_right(*scores_of(2, classes, spread))


@NOISES
@pytest.mark.parametrize("classes", [3, 40])
def test_leads_and_gaps(classes: int, noise: Noise) -> None:
    leads = torch.cat([torch.linspace(-50, 50, 41), torch.tensor([-0.01, 0.01, 8.3])])
    scores = 0.3 * torch.randn(len(leads), classes, generator=torch.Generator().manual_seed(3))
    scores[:, 1] = scores[:, [0, *range(2, classes)]].amax(-1) + leads
    assert_right(scores, torch.ones(len(leads), dtype=torch.int64), noise)


@pytest.mark.parametrize("noise", ["normal", "logistic"])
@pytest.mark.parametrize("classes", [10, 100, 1000, 5000])
def test_no_row_that_training_meets_is_left_to_the_reference(classes: int, noise: str) -> None:
    leads = torch.linspace(-40, 30, 141)
    scores = torch.randn(len(leads), classes, generator=torch.Generator().manual_seed(classes))
    scores[:, 0] = scores[:, 1:].amax(-1) + leads
    assert not argmax._value(scores, torch.zeros(len(leads), dtype=torch.int64), torch.ones(1), noise, -100, "cpu")[1]
    assert_right(scores[::20], torch.zeros(8, dtype=torch.int64), noise)


@pytest.mark.parametrize("classes", [3, 5000])
@pytest.mark.parametrize("lead", [-30.0, -6.0, 0.0, 5.0, 12.0])
def test_one_rival_far_above_the_others(lead: float, classes: int) -> None:
    scores = torch.full((1, classes), -5.0)
    scores[0, 1], scores[0, 0] = 0.0, lead
    assert_right(scores, torch.tensor([0]))


@pytest.mark.parametrize("gap", [-20.0, -5.0, 0.0])
def test_the_target_behind_thousands_of_equals(gap: float) -> None:
    """The integrand is a tenth of a scale wide: the step has to follow."""
    scores = torch.zeros(1, 20_000)
    scores[0, 7] = gap
    assert_right(scores, torch.tensor([7]))


@pytest.mark.parametrize("scale", [1e-3, 0.37, 40.0])
def test_scales(scale: float) -> None:
    scores, target = scores_of(8, 30, scale)
    assert_right(scores + 1000 * scale, target, scale=scale)


def test_a_scale_for_each_row_and_its_gradient() -> None:
    scores, target = scores_of(6, 12, 1.0)
    found = []
    for dtype, kernel in ((torch.float32, "cpu"), (torch.float64, "reference")):
        z, sigma = scores.to(dtype).requires_grad_(), torch.linspace(0.5, 2, 6, dtype=dtype).unsqueeze(-1).requires_grad_()
        with lossmith.use_kernel(kernel):
            log_p = argmax_log_prob(z, target, scale=sigma)
            grads = torch.autograd.grad(log_p.sum(), (z, sigma), create_graph=True)
            found.append([log_p, *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (z, sigma))])
    for ours, exact_one in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact_one, rtol=2e-5, atol=2e-5)


def test_removed_classes() -> None:
    scores, target = scores_of(4, 9, 1.0)
    with_holes = torch.cat([scores, torch.full((4, 3), -math.inf)], -1)
    (one, grad), (other, wider) = run(scores, target), run(with_holes, target)
    assert torch.equal(one, other)
    assert torch.equal(torch.nn.functional.pad(grad, (0, 3)), wider)
    lost = with_holes.clone()
    lost[0, target[0]] = -math.inf
    log_p, grad = run(lost, target)
    assert log_p[0] == -math.inf
    assert (grad[0] == 0).all()
    alone = torch.full((1, 5), -math.inf)
    alone[0, 2] = 1.5
    assert run(alone, torch.tensor([2]))[0] == 0


def test_a_target_too_far_behind_goes_to_the_reference() -> None:
    scores, target = scores_of(3, 6, 1.0)
    scores[1, target[1]] = -500.0
    log_p, grad = run(scores, target)
    log_q, slope = exact(scores, target)
    torch.testing.assert_close(log_p.double(), log_q, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-5)
    leaf = scores.clone().requires_grad_()
    (first,) = torch.autograd.grad(argmax_log_prob(leaf, target).sum(), leaf, create_graph=True)
    assert torch.autograd.grad(first[:, 0].sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("df", [15, 30])
@pytest.mark.parametrize("classes", [2, 40])
def test_a_target_too_far_ahead_of_heavy_tails_goes_to_the_reference(classes: int, df: float) -> None:
    """What 1 − p has then lies farther below the target than the tables reach."""
    leads = torch.cat([torch.linspace(20, 85, 27), torch.tensor([130.0])])
    scores = torch.full((len(leads), classes), -3.0)
    scores[:, 1], scores[:, 0] = 0.0, leads
    assert_right(scores, torch.zeros(len(leads), dtype=torch.int64), StudentT(df))


# Shapes and layouts


def test_layouts_give_the_same_bits_and_nothing_is_written_to() -> None:
    scores, target = scores_of(16, 33, 1.0)
    log_p, grad = run(scores, target)
    wide = torch.zeros(33, 32)
    wide[:, ::2] = scores.T
    for other in (wide[:, ::2].T, scores.T.contiguous().T):
        before = other.clone()
        assert not other.is_contiguous()
        found = run(other, target)
        assert torch.equal(found[0], log_p)
        assert torch.equal(found[1], grad)
        assert torch.equal(other, before)
    row = scores[:1].expand(16, 33)
    assert torch.equal(run(row, target[:1].expand(16))[0], log_p[:1].expand(16))
    cube = run(scores.view(4, 4, 33), target.view(4, 4))
    assert torch.equal(cube[0].flatten(), log_p)


def test_images_with_channels_last_give_the_same_bits() -> None:
    scores = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(24).view(2, 3, 4) % 5
    other = scores.to(memory_format=torch.channels_last)
    assert other.stride() != scores.stride()
    found = []
    for leaf in (scores.requires_grad_(), other.requires_grad_()):
        value = AccuracyLoss("normal", q=1.0)(leaf, target)
        assert lossmith.last_kernel() == "cpu"
        value.backward()
        found.append((value.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 7), (1, 3)])
def test_few_rows(shape: tuple[int, ...]) -> None:
    log_p, grad = run(torch.zeros(shape), torch.zeros(shape[:-1], dtype=torch.int64))
    assert log_p.shape == shape[:-1]
    assert grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_compute_in_float32(dtype: torch.dtype) -> None:
    scores, target = scores_of(5, 8, 1.0)
    scores = scores.to(dtype)
    log_p, grad = run(scores, target)
    assert log_p.dtype == grad.dtype == dtype
    assert torch.equal(log_p, run(scores.float(), target)[0].to(dtype))


def test_upstream_gradients_scale_each_row() -> None:
    scores, target = scores_of(5, 8, 1.0)
    leaf = scores.clone().requires_grad_()
    upstream = torch.tensor([1.0, -2.0, 0.0, 1e-3, 5.0])
    (grad,) = torch.autograd.grad(argmax_log_prob(leaf, target), leaf, upstream)
    torch.testing.assert_close(grad, run(scores, target)[1] * upstream.unsqueeze(-1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("what", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(2, 3), (2, 0), (2, 7)])
def test_bad_rows_are_named(place: tuple[int, int], what: float) -> None:
    scores, target = scores_of(5, 8, 1.0)
    scores[place] = what
    target[2] = 3
    with pytest.raises(ValueError, match=r"^scores: expected finite numbers or −inf, got (nan|inf) in row 2; "):
        run(scores, target)
    scores[place] = -math.nan
    with pytest.raises(ValueError, match=r"got nan in row 2; "):
        run(scores, target)
    scores[2] = -math.inf
    with pytest.raises(ValueError, match="−inf for every class of row 2"):
        run(scores, target)


def test_a_target_out_of_range() -> None:
    for wrong in (8, -1, -100):
        with pytest.raises(
            ValueError, match=f"^target: expected class indices from 0 to 7, got {min(wrong, 0)} to {max(wrong, 0)}$"
        ):
            run(torch.zeros(2, 8), torch.tensor([0, wrong]))


def test_ignored_rows_may_hold_anything() -> None:
    scores, target = scores_of(5, 8, 1.0)
    target[1], target[3] = -100, -100
    scores[1], scores[3] = math.nan, -math.inf
    leaf = scores.clone().requires_grad_()
    loss = AccuracyLoss("normal", q=1.0)(leaf, target)
    loss.backward()
    keep = target != -100
    torch.testing.assert_close(loss, AccuracyLoss("normal", q=1.0)(scores[keep], target[keep]))
    assert leaf.grad is not None
    assert (leaf.grad[~keep] == 0).all()


# Threads


def test_the_bits_do_not_depend_on_threads() -> None:
    scores, target = scores_of(300, 200, 2.0)
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(run(scores, target))
        for log_p, grad in found[1:]:
            assert torch.equal(log_p, found[0][0])
            assert torch.equal(grad, found[0][1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("openmp", [True, False])
def test_several_python_threads_at_once(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not openmp:
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    scores, target = scores_of(200, 150, 2.0)
    expected = run(scores, target)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(20):
            found = run(scores, target)
            wrong.extend(n for n in range(2) if not torch.equal(found[n], expected[n]))

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


FORKED = """
import os, sys, torch
from lossmith.functional import argmax_log_prob
torch.set_num_threads(2)
scores = torch.randn(300, 100,  # less than torch itself would deal out to threads, which a child does not have
     generator=torch.Generator().manual_seed(0)).requires_grad_()
target = torch.arange(300) % 100
def run():
    log_p = argmax_log_prob(scores, target)
    return log_p.detach(), torch.autograd.grad(log_p.sum(), scores)[0]
expected = run()
child = os.fork()
if child == 0:
    found = run()
    os._exit(0 if all(torch.equal(a, b) for a, b in zip(found, expected)) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_fork() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=300, check=False)
    assert done.returncode == 0


FIRST_CALL = """
import sys, torch, lossmith
from lossmith.engine.runtime import compiling
compiling.NOTICE = float(sys.argv[1])
lossmith.functional.argmax_log_prob(torch.zeros(2, 5), torch.tensor([0, 1]), noise="uniform")
print(lossmith.last_kernel())
"""


def test_the_first_call_compiles_and_says_so_and_the_second_does_not(tmp_path: Path) -> None:
    def call(notice: float) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", FIRST_CALL, str(notice)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)

    first, second = call(0.5), call(compiling.NOTICE)  # uniform noise has the kernel that is compiled soonest
    assert first.stdout == second.stdout == "cpu\n"
    assert first.stderr == "lossmith: compiling its kernels for this CPU, once; about ten seconds\n"
    assert second.stderr == ""


# Transforms


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_compiled_in_one_graph_it_is_the_same() -> None:
    scores, target = scores_of(6, 9, 1.0)
    target[4] = -100
    scores[4] = math.nan
    for loss in (AccuracyLoss("normal", q=1.0), AccuracyLoss("normal", 0.7, 0.5, reduction="sum"), AccuracyLoss("laplace")):
        found = []
        for function in (loss, torch.compile(loss, fullgraph=True)):
            leaf = scores.clone().requires_grad_()
            with lossmith.use_kernel("reference" if loss.noise.name == "laplace" else "cpu"):
                value = function(leaf, target)
                value.backward()
            found.append((value.detach(), leaf.grad))
        torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_with_the_reference_ignored_rows_are_left_alone() -> None:
    scores, target = scores_of(4, 6, 1.0)
    target[2], scores[2] = -100, math.nan
    leaf = scores.clone().requires_grad_()
    with lossmith.use_kernel("reference"):
        torch.compile(AccuracyLoss("normal", q=1.0), fullgraph=True)(leaf, target).backward()
    assert leaf.grad is not None
    assert (leaf.grad[2] == 0).all()
    assert leaf.grad.isfinite().all()
    assert leaf.grad[0].abs().sum() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_with_any_number_of_rows_it_is_the_same() -> None:
    rows, loss = torch.export.Dim("rows"), AccuracyLoss("normal", q=0.5, scale=0.7)
    exported = torch.export.export(loss, scores_of(6, 9, 1.0), dynamic_shapes=({0: rows}, {0: rows})).module()
    scores, target = scores_of(11, 9, 1.0, seed=1)
    found = []
    for function in (loss, exported):
        leaf = scores.clone().requires_grad_()
        value = function(leaf, target)
        value.backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)  # eager mode multiplies a gradient that was rounded


def test_under_torch_func() -> None:
    scores, target = scores_of(5, 9, 1.0)
    log_p, grad = run(scores, target)

    def one(row: Tensor, index: Tensor) -> Tensor:
        return argmax_log_prob(row, index)

    def total(rows: Tensor) -> Tensor:
        return argmax_log_prob(rows, target).sum()

    torch.testing.assert_close(torch.func.grad(total)(scores), grad)
    torch.testing.assert_close(torch.func.vmap(one)(scores, target), log_p)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(one))(scores, target), grad)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(one), in_dims=(1, 0))(scores.T, target), grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_operators_pass_torchs_own_check() -> None:
    scores, target = scores_of(4, 6, 1.0)
    inputs = (scores.requires_grad_(), target, torch.ones(1), "normal", argmax.NO_TARGET)
    torch.library.opcheck(torch.ops.lossmith.target_log_prob.default, inputs)


# Which kernel


def test_what_ran_is_recorded() -> None:
    scores, target = scores_of(2, 4, 1.0)
    argmax_log_prob(scores, target)
    assert lossmith.last_kernel() == "cpu"
    with lossmith.use_kernel("reference"):
        argmax_log_prob(scores, target)
    assert lossmith.last_kernel() == "reference"
    argmax_log_prob(scores, target, noise="gumbel")
    assert lossmith.last_kernel() == "closed form"


def test_a_request_that_cannot_be_met_is_refused() -> None:
    scores, target = scores_of(2, 4, 1.0)
    no_kernel = StudentT(0.25)
    for bad, why in ((scores.double(), "float64"), (scores, r"StudentT\(df=0.25\) has kinks")):
        with pytest.raises(
            ValueError, match=f"^kernel: 'cpu' cannot serve this call of .*{why}.*; expected one of: reference$"
        ):
            argmax_log_prob(bad, target, noise=no_kernel)
    with pytest.raises(ValueError, match=r"^kernel: unknown name 'cup'; "), lossmith.use_kernel("cup"):
        pass


def test_a_kernel_that_fails_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, target = scores_of(3, 4, 1.0)
    expected = run(scores, target)

    def fails(*_: object) -> None:
        raise OSError("no such instruction")

    monkeypatch.setattr(fused, "run_team", fails)
    monkeypatch.setattr(select, "broken", {})
    monkeypatch.setattr(select, "_asked", ContextVar("asked", default=None))
    with pytest.warns(
        RuntimeWarning,
        match=r"^kernel 'cpu' of argmax_log_prob failed \(OSError: no such instruction\); the reference runs instead$",
    ):
        found = argmax_log_prob(scores, target)
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)
    assert lossmith.last_kernel() == "reference"
    leaf = scores.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(argmax_log_prob(leaf, target).sum(), leaf)[0], expected[1]
    )  # no second warning


# Compiling


def test_a_kernel_is_compiled_anew_when_any_source_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "of_two_files.py"
    source.write_text("def constant():\n    return NUMBER\n")

    def compiled_with(number: int) -> int:
        function = compiled.kernel(from_python=True)(runpy.run_path(str(source), {"NUMBER": number})["constant"])
        found: int = function()
        return found

    assert compiled_with(1) == 1
    assert compiled_with(2) == 1  # the file itself is what it was: numba's own cache sees no difference
    monkeypatch.setattr(compiled, "sources", lambda folder: "others")
    assert compiled_with(2) == 2


# Tables


@pytest.mark.parametrize("noise", [Normal(), Logistic(), StudentT(30)], ids=str)
def test_tables_exist_for_smooth_noise(noise: Noise) -> None:
    made = tables(noise)
    assert made is not None
    assert len(made.log_cdf) == LEVELS


@pytest.mark.parametrize("name", ["laplace", "uniform", "studentt"])
def test_no_tables_exist_for_noise_with_kinks_or_heavy_tails(name: str) -> None:
    assert tables(lossmith.noise.get(name)) is None
