"""log AUC and log average precision of every column of scores by a kernel, for smooth noise with light tails on the CPU.

Value and gradient come in one pass. Columns that the kernel leaves, and second derivatives, are for the caller's function in
plain torch. docs/how/ranking.md, section 6, has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.ranking.kernels.record import COEFFICIENTS, UNSERVED, WIDTH
from lossmith.engine.runtime.compiling import announced
from lossmith.engine.runtime.select import Kernel, asked, give_up, record
from lossmith.engine.runtime.threads import apart, run_team
from lossmith.inputs import is_plain
from lossmith.noise import Noise

Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # z, positive, keep, scale -> log metrics (K,)

RATIOS = (1, 2, 4)  # thresholds a cell, from the widest step on
TAIL = 1e-13  # of the noise: beyond, it counts as none in average precision
FAR_TAIL = 1e-38  # the same in AUC, whose 1 − AUC may be as small
REACH = 100.0  # scales that the tails may reach
EXACT = 1e-12  # error of a sum over thresholds that is none
FIT = 1e-9  # error of a polynomial over a cell
MANY = 300  # samples from which on the precision bends so sharply that the step is halved (R27)
MOST_SAMPLES = 1 << 20  # of a column: the precision of more would bend too sharply for the finest step
WORK = 1 << 12  # samples of all columns from which on one more thread pays


@lru_cache(maxsize=64)
def tables(key: str, precision: bool, ratio: int) -> dict[str, NDArray[Any]] | None:
    """Polynomials of S, f and f' over a cell, seen from thresholds that are WIDTH / ratio apart.

    Args:
        key: of the noise (``Noise.key``).
        precision: for average precision, and not for AUC.
        ratio: thresholds a cell.

    Returns:
        lattice: (3,) int64: ratio; first, the lowest threshold that counts, from the lower end of a cell; span, how many there
        are. survival, density, slope: (COEFFICIENTS · span,) float64. None if polynomials do not follow the noise.
    """
    return apart(lambda: _tables(noises.by_key(key), TAIL if precision else FAR_TAIL, ratio))


def _tables(noise: Noise, tail: float, ratio: int) -> dict[str, NDArray[Any]] | None:
    if noise.kinks:
        return None
    distance = torch.arange(-REACH, REACH, WIDTH / ratio, dtype=torch.float64)
    some = (noise.log_cdf(distance) > math.log(tail)) & (noise.log_sf(distance) > math.log(tail))
    if some[0] or some[-1]:
        return None
    low, high = distance[some].min().item() - WIDTH / ratio, distance[some].max().item() + WIDTH / ratio
    first = math.floor(low / WIDTH * ratio)
    span = -(-(math.ceil(high / WIDTH * ratio) + ratio - first + 1) // 32) * 32
    u = (first + torch.arange(span, dtype=torch.float64)).unsqueeze(-1) * (WIDTH / ratio)
    powers = torch.arange(COEFFICIENTS, dtype=torch.float64)
    s = torch.cos((powers + 0.5) * (math.pi / COEFFICIENTS))
    inverse = torch.linalg.inv(s.unsqueeze(-1) ** powers).T
    check = torch.tensor([-1.0, -0.6, 0.0, 0.75, 1.0], dtype=torch.float64)

    def density(x: Tensor) -> Tensor:
        return noise.log_prob(x).exp()

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(noise.log_prob(leaf).sum(), leaf)[0] * density(x)

    made: dict[str, NDArray[Any]] = {"lattice": np.array([ratio, first, span], np.int64)}
    for name, function in (("survival", lambda x: noise.log_sf(x).exp()), ("density", density), ("slope", slope)):
        coefficients = function(u - WIDTH / 2 * (s + 1)) @ inverse
        error = coefficients @ (check ** powers.unsqueeze(-1)) - function(u - WIDTH / 2 * (check + 1))
        if not bool(error.abs().max() < FIT):
            return None
        made[name] = coefficients.T.contiguous().numpy().ravel()
    return made


@lru_cache(maxsize=64)
def coarsest(key: str) -> int | None:
    """The widest step, as thresholds a cell, at which ∫ f S is ½ wherever the thresholds fall; None if none is."""

    def found() -> int | None:
        noise = noises.by_key(key)
        for ratio in RATIOS:
            h = WIDTH / ratio
            u = torch.arange(-REACH, REACH, h, dtype=torch.float64) + torch.linspace(0, h, 5, dtype=torch.float64).unsqueeze(-1)
            if bool((h * (noise.log_prob(u) + noise.log_sf(u)).exp().sum(-1) - 0.5).abs().max() < EXACT):
                return ratio
        return None

    return apart(found)


def _ratio(key: str, precision: bool, samples: int) -> int | None:
    widest = coarsest(key)
    if widest is None or not precision:
        return widest
    return min(max(2 * widest, 2) * (2 if samples > MANY else 1), RATIOS[-1])


def _obstacle(scores: Tensor, key: str) -> str:
    served = coarsest(key) is not None and tables(key, True, RATIOS[-1]) is not None
    return "" if served else f"{noises.by_key(key)} has kinks or far tails; take normal, logistic or Gumbel noise"


CPU = Kernel("cpu", ("cpu",), (torch.float64,), _obstacle)


def serves(operation: str, tensors: Sequence[Tensor], noise: Noise) -> bool:
    """Whether ``log_metrics`` may be called: plain tensors on the CPU, in eager mode, and noise with tables.

    Where it may not, one column goes after the other, and the function of one column says by what, and what that costs.
    """
    if len(tensors[0]) > MOST_SAMPLES or asked() not in (None, CPU.name) or not is_plain(*tensors):
        return False
    return not CPU.refusal(operation, tensors[0], noise.key)


def log_metrics(
    operation: str, z: Tensor, positive: Tensor, keep: Tensor, scale: Tensor, noise: Noise, precision: bool, plain: Function
) -> Tensor:
    """log AUC, or log AP if ``precision``, of every column.

    Args:
        operation: its name, for messages.
        z: (n, K) float64. positive, keep: (n, K) bool: the positives, and the samples that count.
        scale: () float64, > 0.
        noise: one that ``serves`` has been asked about.
        plain: the same in plain torch, for columns that are left and for second derivatives.

    Returns:
        (K,) float64, differentiable twice in z and scale; 0 for a column without positives or without negatives.
    """
    return _Columns.apply(operation, z, positive, keep, scale, noise, precision, plain)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1)
def _kernels() -> Any:
    with announced():
        from lossmith.engine.ranking.kernels import columns_entry
    return columns_entry


@lru_cache(maxsize=64)
def _tail(key: str, precision: bool, ratio: int) -> tuple[NDArray[np.int64], Any]:
    """The last part of a job, and the arrays to keep alive for it."""
    arrays = tables(key, precision, ratio)
    assert arrays is not None
    return _kernels().COLUMNS.tail(arrays), arrays


def _run(z: Tensor, state: Tensor, scale: Tensor, noise: Noise, precision: bool, outputs: dict[str, Tensor]) -> bool:
    """Whether a column is left."""
    (rows, columns), kernels = z.shape, _kernels()
    ratio = _ratio(noise.key, precision, rows)
    assert ratio is not None
    size = max(1, min(torch.get_num_threads(), columns, rows * columns // WORK))
    numbers = {"turn": max(1, columns // (4 * size)), "rows": rows, "columns": columns, "precision": int(precision)}
    arrays = {"z": z, "state": state, **outputs, "scale": scale}
    job = kernels.COLUMNS.job(numbers, arrays, _tail(noise.key, precision, ratio)[0])
    team = kernels.columns_team
    run_team(team.ctypes, team.address, job.ctypes.data, size)
    return bool(job[kernels.COLUMNS.numbers.unserved])


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operation: str, z: Tensor, positive: Tensor, keep: Tensor, scale: Tensor, noise: Noise, precision: bool,
        plain: Function,
    ) -> Tensor:  # fmt: skip
        rows, columns = z.shape
        sigma, scores = scale.reshape(1).contiguous(), z.contiguous()
        state = (keep.to(torch.uint8) + (keep & positive).to(torch.uint8)).contiguous()
        status = torch.zeros(columns, dtype=torch.int32)
        outputs = {
            "log_m": z.new_zeros(columns),
            "status": status,
            "grad": z.new_zeros(rows, columns),
            "by_scale": z.new_zeros(columns),
        }
        left = None
        try:
            if _run(scores, state, sigma, noise, precision, outputs):
                left = status == UNSERVED
        except Exception as error:  # whatever it is, there is another way, and the user learns of it
            give_up(operation, "cpu", error)
            left = torch.ones(columns, dtype=torch.bool)
        log_m, grad, by_scale = outputs["log_m"], outputs["grad"], outputs["by_scale"] / scale
        record("cpu")
        if left is not None:
            with torch.enable_grad():
                part, one = z[:, left].detach().requires_grad_(), scale.detach().requires_grad_()
                value = plain(part, positive[:, left], keep[:, left], one)
                log_m[left] = value.detach()
                grad[:, left] = torch.autograd.grad(value.sum(), part, retain_graph=True)[0]
                by_scale[left] = torch.stack([torch.autograd.grad(v, one, retain_graph=True)[0] for v in value])
            number = int(left.sum())
            record(f"cpu, {number} column{'s' if number > 1 else ''} by reference")
        ctx.noise, ctx.plain = noise, plain
        ctx.save_for_backward(z, positive, keep, scale, grad, by_scale)
        return log_m

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        z, positive, keep, scale, grad, by_scale = ctx.saved_tensors
        needed = ctx.needs_input_grad[1], ctx.needs_input_grad[4]
        if torch.is_grad_enabled():  # create_graph=True
            value = ctx.plain(z, positive, keep, scale)
            asked = [x for x, need in zip((z, scale), needed, strict=True) if need]
            parts = iter(torch.autograd.grad(value, asked, upstream, create_graph=True))
            in_z, in_scale = (next(parts) if need else None for need in needed)
        else:
            in_z, in_scale = grad * upstream, (by_scale * upstream).sum() if needed[1] else None
        return None, in_z, None, None, in_scale, None, None, None
