"""The kernels for the GPU against the reference in float64: on a GPU where there is one, else under Triton's interpreter.

Triton has to know before it is loaded whether it interprets. So the tests here run in a process of their own, started by
``test_under_the_interpreter``; by hand, ``TRITON_INTERPRET=1 pytest tests/engine/argmax/test_cuda.py``.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lossmith
from lossmith import AccuracyLoss
from lossmith.engine.argmax import autograd as argmax
from lossmith.engine.argmax import dispatch, reference
from lossmith.engine.runtime import select
from lossmith.functional import argmax_log_prob, argmax_log_probs
from lossmith.noise import Custom, Logistic, Noise, Normal, StudentT
from support.kernels import assert_near, exact, scores_of

GRADIENT = 2e-5  # against its row's norm


def _mixed(log: Callable[[Noise, Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.logaddexp(math.log(0.7) + log(Normal(), x), math.log(0.3) + log(Normal(), x - 1))


def _log_cdf_of_mixed(x: Tensor) -> Tensor:
    above = torch.log1p(-_mixed(lambda n, x: n.log_sf(x), x).exp())
    return torch.where(x > 1, above, _mixed(lambda n, x: n.log_cdf(x), x))


def _quantile_of_mixed(p: Tensor) -> Tensor:
    low, high = torch.full_like(p, -40.0), torch.full_like(p, 40.0)
    for _ in range(100):
        middle = (low + high) / 2
        below = _log_cdf_of_mixed(middle).exp() < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


MIXED = Custom(lambda x: _mixed(lambda n, x: n.log_prob(x), x), _log_cdf_of_mixed, _quantile_of_mixed, name="mixed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HAS_TRITON = find_spec("triton") is not None
WHY_NOT = "triton is not installed" if not HAS_TRITON else "" if INTERPRETED or torch.cuda.is_available() else "no GPU here"
runs = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
outside = pytest.mark.skipif(INTERPRETED, reason="Triton interprets in this process")
NOISES = pytest.mark.parametrize("noise", [Normal(), Logistic(), MIXED], ids=lambda n: n.name)


def run(scores: Tensor, target: Tensor, noise: Noise | str = "normal", **options: Any) -> tuple[Tensor, Tensor]:
    """log p and its gradient in the scores, by the kernel."""
    leaf = scores.to(DEVICE).detach().requires_grad_()
    with lossmith.use_kernel("cuda"):
        log_p = argmax_log_prob(leaf, target.to(DEVICE), noise=noise, **options)
        (grad,) = torch.autograd.grad(log_p[log_p.isfinite()].sum(), leaf)
    assert str(lossmith.last_kernel()).split(",")[0] == "cuda"  # of which it may have passed on rows
    return log_p.detach().cpu(), grad.cpu()


def assert_right(scores: Tensor, target: Tensor, noise: Noise | str = "normal", scale: float = 1.0) -> None:
    assert_near(run(scores, target, noise, scale=scale), exact(scores, target, noise, scale), GRADIENT)


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by tiles, whatever their size."""
    if INTERPRETED:
        from lossmith.engine.argmax.kernels import tiles

        monkeypatch.setattr(tiles, "TILE", 512)


# Numbers


@runs
@NOISES
@pytest.mark.parametrize("classes", [3, 10, 100])
def test_random_rows(classes: int, noise: Noise, large_tiles: None) -> None:
    flat, target = scores_of(3, classes, 0.3)
    peaked = 4 * torch.randn(3, classes, generator=torch.Generator().manual_seed(1))
    assert_right(torch.cat([flat, peaked]), target.repeat(2), noise)


@runs
@pytest.mark.parametrize(("classes", "rows"), [(1000, 2), pytest.param(5000, 1, marks=pytest.mark.slow)])
def test_rows_of_many_classes(classes: int, rows: int, large_tiles: None) -> None:
    assert_right(*scores_of(rows, classes, 1.0))
    behind = torch.zeros(rows, classes)  # one of them flat, if there are two
    behind[0, 7] = -20.0  # the integrand is a tenth of a scale wide: the step has to follow
    assert_right(behind, torch.full((rows,), 7))


@runs
@NOISES
def test_leads_and_gaps(noise: Noise) -> None:
    leads = torch.tensor([-50.0, -31.3, -12.0, -4.0, 0.0, 0.01, 1.0, 3.0, 8.3, 17.0, 40.0])
    scores = 0.3 * torch.randn(len(leads), 5, generator=torch.Generator().manual_seed(3))
    scores[:, 1] = scores[:, [0, 2, 3, 4]].amax(-1) + leads
    assert_right(scores, torch.ones(len(leads), dtype=torch.int64), noise)


@runs
def test_ties_of_all_classes() -> None:
    log_p, grad = run(torch.full((1, 7), 3.0), torch.tensor([2]))
    torch.testing.assert_close(log_p, torch.tensor([-math.log(7)]), rtol=1e-6, atol=0)
    torch.testing.assert_close(grad[0, :2], grad[0, 3:5], rtol=1e-5, atol=0)


@runs
@pytest.mark.parametrize("scale", [1e-3, 40.0])
def test_scales(scale: float) -> None:
    scores, target = scores_of(3, 6, scale)
    assert_right(scores + 1000 * scale, target, scale=scale)


@runs
def test_a_scale_for_each_row_and_second_derivatives() -> None:
    scores, target = scores_of(4, 5, 1.0)
    found = []
    for dtype, kernel in ((torch.float32, "cuda"), (torch.float64, "reference")):
        z = scores.to(DEVICE, dtype).requires_grad_()
        sigma = torch.linspace(0.5, 2, 4, dtype=dtype, device=DEVICE).unsqueeze(-1).requires_grad_()
        with lossmith.use_kernel(kernel):
            log_p = argmax_log_prob(z, target.to(DEVICE), scale=sigma)
            assert lossmith.last_kernel() == kernel
            grads = torch.autograd.grad(log_p.sum(), (z, sigma), create_graph=True)
            found.append([log_p, *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), (z, sigma))])
    for ours, exact_one in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact_one, rtol=2e-5, atol=2e-5)


@runs
def test_the_size_of_tiles_and_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from lossmith.engine.argmax.kernels import tiles

    scores, target = scores_of(3, 45, 1.0)
    scores[:, 16:32] -= 200.0  # blocks of nothing near: passed over
    target[:] = torch.tensor([0, 20, 44])
    scores[1, 20] += 200.0
    expected = run(scores, target)
    monkeypatch.setattr(tiles, "WIDE", 16)
    monkeypatch.setattr(tiles, "TILE", 4)
    found = run(scores, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert (found[1][0, 16:32] == 0).all()


# Rows without an integral


@runs
def test_removed_classes_and_sure_rows() -> None:
    scores, target = scores_of(4, 9, 1.0)
    with_holes = torch.cat([scores, torch.full((4, 3), -math.inf)], -1)
    (one, grad), (other, wider) = run(scores, target), run(with_holes, target)
    assert torch.equal(one, other)
    assert torch.equal(torch.nn.functional.pad(grad, (0, 3)), wider)
    scores[0, target[0]] = -math.inf  # lost
    scores[1] = -math.inf
    scores[1, target[1]] = 1.5  # alone
    scores[2, target[2]] = 100.0
    log_p, grad = run(scores, target)
    assert log_p[:3].tolist() == [-math.inf, 0.0, 0.0]
    assert (grad[:3] == 0).all()
    assert torch.equal(log_p[3], one[3])


@runs
def test_a_target_too_far_behind_goes_to_the_reference() -> None:
    scores, target = scores_of(3, 6, 1.0)
    scores[1, target[1]] = -500.0
    log_p, grad = run(scores, target)
    log_q, slope = exact(scores, target)
    torch.testing.assert_close(log_p.double(), log_q, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-5)


@runs
def test_a_target_too_far_ahead_of_heavy_tails_goes_to_the_reference() -> None:
    scores = torch.tensor([[39.01, -21.26], [25.0, 0.0], [80.0, 0.0]])
    assert_right(scores, torch.zeros(3, dtype=torch.int64), StudentT(30))


@runs
@pytest.mark.parametrize("rows", [1, 4])
def test_ignored_rows_may_hold_anything(rows: int) -> None:
    scores, target = scores_of(rows + 2, 8, 1.0)
    target[0], target[2] = -100, -100
    scores[0], scores[2] = math.nan, -math.inf
    leaf = scores.to(DEVICE).requires_grad_()
    with lossmith.use_kernel("cuda"):
        loss = AccuracyLoss("normal", q=1.0)(leaf, target.to(DEVICE))
        loss.backward()
    keep = target != -100
    torch.testing.assert_close(loss.cpu(), AccuracyLoss("normal", q=1.0)(scores[keep], target[keep]), rtol=1e-5, atol=1e-6)
    assert leaf.grad is not None
    assert (leaf.grad.cpu()[~keep] == 0).all()
    assert (leaf.grad.cpu()[keep] != 0).any()


@runs
@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_bad_rows(what: float) -> None:
    """They raise where values can be looked at, and are NaN on a GPU."""
    scores, target = scores_of(3, 6, 1.0)
    scores[1, 2:] = what
    scores[1, :2] = what if what == -math.inf else 0.0
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match=r"^scores: expected .* row 1"):
            run(scores, target)
        return
    leaf = scores.to(DEVICE).requires_grad_()
    log_p = argmax_log_prob(leaf, target.to(DEVICE))
    log_p.sum().backward()
    assert leaf.grad is not None
    assert log_p.isnan().tolist() == [False, True, False]
    assert leaf.grad.isnan().any(-1).tolist() == [False, True, False]


@runs
def test_what_bad_rows_come_to_on_a_gpu() -> None:
    from lossmith.engine.argmax.kernels import cuda

    scores, target = (x.to(DEVICE) for x in scores_of(5, 6, 1.0))
    scores[0, 2], scores[1, target[1]], scores[2] = math.nan, math.inf, -math.inf
    target[3] = 6
    kept = argmax._outputs(scores, "normal")
    one, grad = torch.ones(1, device=DEVICE), torch.zeros_like(scores)
    assert cuda.forward(scores, target, one, "normal", -100, *kept) == (True, False)
    assert kept[0].isnan().tolist() == [True, True, True, True, False]
    cuda.backward(scores, target, one, "normal", torch.ones(5, device=DEVICE), kept[1], kept[2], grad)
    assert grad.isnan().all(-1)[[0, 1, 2]].all()
    assert grad[3].isnan().all()
    assert grad[4].isfinite().all()


# Shapes and layouts


@runs
def test_layouts_give_the_same_bits() -> None:
    scores, target = scores_of(3, 33, 1.0)
    log_p, grad = run(scores, target)
    wide = torch.zeros(33, 6, device=DEVICE)
    wide[:, ::2] = scores.T.to(DEVICE)
    padded = torch.zeros(3, 40, device=DEVICE)
    padded[:, :33] = scores.to(DEVICE)
    for other in (wide[:, ::2].T, padded[:, :33]):
        assert not other.is_contiguous()
        found = run(other, target)
        assert torch.equal(found[0], log_p)
        assert torch.equal(found[1], grad)
    expanded = run(scores[:1].to(DEVICE).expand(2, 33), target[:1].expand(2))[0]
    assert torch.equal(expanded, log_p[:1].expand(2))
    cube = run(scores.view(1, 3, 33), target.view(1, 3))
    assert torch.equal(cube[0].flatten(), log_p)


@runs
@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 7), (1, 3)])
def test_few_rows(shape: tuple[int, ...]) -> None:
    log_p, grad = run(torch.zeros(shape), torch.zeros(shape[:-1], dtype=torch.int64))
    assert log_p.shape == shape[:-1]
    assert grad.shape == shape


@runs
def test_upstream_gradients_scale_each_row() -> None:
    scores, target = (x.to(DEVICE) for x in scores_of(4, 8, 1.0))
    leaf, upstream = scores.clone().requires_grad_(), torch.tensor([1.0, -2.0, 0.0, 1e-3], device=DEVICE)
    with lossmith.use_kernel("cuda"):
        (grad,) = torch.autograd.grad(argmax_log_prob(leaf, target), leaf, upstream)
    torch.testing.assert_close(grad, run(scores, target)[1].to(DEVICE) * upstream.unsqueeze(-1), rtol=1e-6, atol=1e-9)


@runs
def test_under_torch_func_and_as_an_operator() -> None:
    scores, target = (x.to(DEVICE) for x in scores_of(3, 6, 1.0))
    log_p, grad = (x.to(DEVICE) for x in run(scores, target))
    with lossmith.use_kernel("cuda"):
        mapped = torch.func.vmap(torch.func.grad(argmax_log_prob))(scores, target)
        leaf = scores.clone().requires_grad_()
        value = argmax.operator(leaf, target, torch.ones(1, device=DEVICE), "normal", argmax.NO_TARGET)[0]
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(mapped, grad)
    assert torch.equal(value, log_p)
    assert torch.equal(slope, grad)


# Every class


def run_every(scores: Tensor, noise: Noise | str, upstream: Tensor, scale: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """log p of every class, and the gradient of its product with ``upstream``, by the kernel."""
    leaf = scores.to(DEVICE).detach().requires_grad_()
    sigma = scale.to(DEVICE) if isinstance(scale, Tensor) else scale
    with lossmith.use_kernel("cuda"):
        log_p = argmax_log_probs(leaf, noise=noise, scale=sigma)
        (grad,) = torch.autograd.grad(log_p, leaf, upstream.to(DEVICE))
    assert lossmith.last_kernel() == "cuda"
    return log_p.detach().cpu(), grad.cpu()


@runs
@NOISES
@pytest.mark.parametrize(
    ("classes", "spread"),
    [
        (3, 1.0),
        pytest.param(10, 0.1, marks=pytest.mark.slow),
        (10, 3.0),
        (100, 1.0),
        pytest.param(600, 1.0, marks=pytest.mark.slow),
    ],
)
def test_every_class(classes: int, spread: float, noise: Noise, large_tiles: None) -> None:
    scores, scale = spread * scores_of(3, classes, 1.0)[0], torch.tensor([[0.8], [1.0], [2.5]])
    upstream = torch.rand(3, classes, generator=torch.Generator().manual_seed(2))
    log_p, grad = run_every(scores, noise, upstream, scale)
    leaf = scores.double().requires_grad_()
    expected = reference.log_probs(leaf / scale, noise)
    (slope,) = torch.autograd.grad(expected, leaf, upstream.double())
    torch.testing.assert_close(log_p.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    assert ((grad.double() - slope).norm(dim=-1) <= GRADIENT * slope.norm(dim=-1)).all()


@runs
def test_far_classes_as_on_the_cpu(large_tiles: None) -> None:
    scores = 25 * scores_of(4, 40, 1.0)[0]
    scores[0, 3], scores[1, 1:] = -math.inf, -math.inf
    upstream = torch.rand(4, 40, generator=torch.Generator().manual_seed(2))
    log_p, grad = run_every(scores, "normal", upstream)
    leaf = scores.clone().requires_grad_()
    with lossmith.use_kernel("cpu"):
        expected = argmax_log_probs(leaf)
        (slope,) = torch.autograd.grad(expected, leaf, upstream)
    torch.testing.assert_close(log_p, expected.detach(), rtol=5e-5, atol=1e-6)
    torch.testing.assert_close(grad, slope, rtol=1e-3, atol=1e-3)


@runs
def test_losses_of_every_class(large_tiles: None) -> None:
    scores, target = scores_of(6, 5, 1.0)
    for loss in (lossmith.FBetaLoss(1.0), AccuracyLoss("normal", q=1.0, label_smoothing=0.1)):
        found = {}
        for name, device in (("cuda", DEVICE), ("cpu", "cpu")):
            leaf = scores.to(device).requires_grad_()
            with lossmith.use_kernel(name):
                value = loss(leaf, target.to(device))
            found[name] = value.detach().cpu(), torch.autograd.grad(value, leaf)[0].cpu()
        torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-4, atol=1e-6)


@runs
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_row_of_every_class_is_refused(value: float) -> None:
    scores = scores_of(3, 5, 1.0)[0].to(DEVICE)
    scores[1, 2] = value
    with lossmith.use_kernel("cuda"), pytest.raises(ValueError, match=r"^scores: .* in row 1"):
        argmax_log_probs(scores)


# Which kernel


@runs
def test_a_kernel_that_fails_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from lossmith.engine.argmax.kernels import cuda

    scores, target = (x.to(DEVICE) for x in scores_of(3, 4, 1.0))
    expected = run(scores, target)

    def fails(*_: object) -> None:
        raise OSError("no such instruction")

    def both(leaf: Tensor) -> Tensor:
        log_p = argmax_log_prob(leaf, target)
        torch.testing.assert_close(log_p.detach().cpu(), expected[0], rtol=1e-5, atol=1e-6)
        return torch.autograd.grad(log_p.sum(), leaf)[0]

    leaf = scores.clone().requires_grad_()
    message = r"^kernel 'cuda' of argmax_log_prob failed \(OSError: no such instruction\); the reference runs instead$"
    for way in ("backward", "forward"):
        monkeypatch.setattr(select, "broken", {})
        monkeypatch.setattr(cuda, way, fails)
        with pytest.warns(RuntimeWarning, match=message):
            grad = both(leaf)
        assert lossmith.last_kernel() == ("cuda" if way == "backward" else "reference")
        torch.testing.assert_close(grad.cpu(), expected[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="it failed before: OSError"):
        run(scores, target)


@runs
def test_a_request_that_cannot_be_met() -> None:
    scores, target = (x.to(DEVICE) for x in scores_of(2, 4, 1.0))
    for bad, noise, why in ((scores.double(), "normal", "float64"), (scores, "laplace", r"Laplace\(\) has kinks")):
        with (
            pytest.raises(
                ValueError, match=f"^kernel: .cuda. cannot serve this call of .*{why}.*; expected one of: (cpu, )?reference$"
            ),
            lossmith.use_kernel("cuda"),
        ):
            argmax_log_prob(bad, target, noise=noise)


@outside
def test_a_request_on_the_cpu_names_what_can_serve() -> None:
    scores, target = scores_of(2, 4, 1.0)
    message = r"^kernel: 'cuda' cannot serve this call of argmax_log_prob \(scores on cpu\); expected one of: cpu, ref"
    with pytest.raises(ValueError, match=message), lossmith.use_kernel("cuda"):
        argmax_log_prob(scores, target)


def test_without_triton_the_obstacle_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "interpreted", lambda: True)
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    monkeypatch.setattr(select, "_serving", {})  # which may remember a call that was served
    scores, target = scores_of(2, 4, 1.0)
    message = (
        r"^kernel: 'cuda' cannot serve this call of argmax_log_prob \(triton is not installed; install it\); expected .* cpu"
    )
    with pytest.raises(ValueError, match=message), lossmith.use_kernel("cuda"):
        argmax_log_prob(scores, target)


# In processes of their own


@outside
@needs_triton
def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(Path(__file__))]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


COMPILES = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lossmith.engine.argmax.kernels import cuda, cuda_every, tiles

types = dict.fromkeys(["stride", "scale_stride", "capacity", "C"], "i32") | dict.fromkeys(["Q", "WIDE", "TILE"], "constexpr")
types |= dict.fromkeys(["high", "guess", "least_lead", "most_lead", "sure_lead", "least"], "fp32")
types |= dict.fromkeys(["depth", "records"], "*i32")
types |= {"target": "*i64", "ignored": "i64"}
module, capacity = {"target": (cuda, 96), "every class": (cuda_every, 256)}[sys.argv[1]]
for kernel in (module._forward, module._backward):
    options = tiles.launch_options(1000, capacity)
    sizes = {name: options.pop(name) for name in ("Q", "WIDE", "TILE")}
    source = ASTSource(kernel, {name: types.get(name, "*fp32") for name in kernel.arg_names}, sizes)
    made = compile(source, GPUTarget("cuda", 80, 32), options)
    assert made.asm["cubin"]
    assert "atom." not in made.asm["ptx"]
"""


@outside
@needs_triton
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's compiler comes for Linux")
@pytest.mark.parametrize("of", ["target", pytest.param("every class", marks=pytest.mark.slow)])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path, of: str) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILES, of], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
