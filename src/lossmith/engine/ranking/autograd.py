"""Expected AUC by the kernels for the CPU, ``kernels.entry``, as a function of autograd.

Smooth noise needs no sort. One pass adds each score to its panel of a lattice, and ``multipole`` says what the panels win. In
the backward pass, each score reads its gradient off the polynomial of its panel. For noise with kinks the scores are sorted,
and the kernel walks over them from both ends. The plain path computes second derivatives, and every call that the
kernels refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossmith.engine.ranking.kernels.record import EXPONENTIAL, LAPLACE, SURVEY_NUMBERS, UNIFORM, WINDOW_NUMBERS
from lossmith.engine.ranking.multipole import NEAR_PANELS, is_certain, panel_width, win_matrices
from lossmith.engine.runtime.compiling import announced
from lossmith.engine.runtime.select import REFERENCE, Kernel, asked, choose, give_up, record
from lossmith.engine.runtime.threads import run_team
from lossmith.inputs import compute_type, has_tangent, owns_memory
from lossmith.maths.chebyshev import TERMS, halves
from lossmith.noise import Exponential, Laplace, Noise, Uniform

Array = NDArray[Any]
Reference = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # of scores, who is positive, scale and weight

OPERATION = "expected_auc"
BEARABLE = 1 << 14  # scores up to which the plain path costs some milliseconds
LEAST_CHUNK = 1 << 15  # the fewest scores of a chunk
MOST_CHUNKS = 64
MOST_UNITS = 1e15  # the widest range of scores, in scales: further from 0, float64 cannot tell scores one scale apart
SPARE_PANELS = 4096  # the lattice may have so many panels, and one more for every eight scores
KINDS: dict[type[Noise], int] = {Laplace: LAPLACE, Exponential: EXPONENTIAL, Uniform: UNIFORM}
NO_WEIGHT = np.empty(0)  # the array of weights where all samples weigh the same


class ObstacleError(Exception):
    """The kernel cannot serve a call; the text says why."""


class Samples(NamedTuple):
    """What the kernels read, (n,) arrays, and what is known of it."""

    scores: Array  # float32 or float64
    side: Array  # uint8, 1 for the positives
    weight: Array  # float64; ``NO_WEIGHT`` if there is none
    numbers: Array  # the score that counts as 0, the scale, 1 / the width of a panel, the first panel
    totals: tuple[float, float]  # weight of the positives and of the negatives; for noise with kinks
    panels: int  # of the lattice; 0 for noise with kinks


def by_kernel(
    scores: Tensor, target: Tensor, noise: Noise, scale: float | Tensor, weight: Tensor | None, reference: Reference
) -> Tensor:
    """The expected AUC, a float64 scalar, by the kernel for the CPU.

    Raises:
        ObstacleError: the plain path has to run. Bad input is an obstacle; the plain path reports it.
        ValueError: the noise is too rough for the panels.
    """
    if asked() not in (None, "cpu"):
        raise ObstacleError(f"{asked()!r} was asked for")
    if refusal := CPU.refusal(OPERATION, scores, noise, target, scale, weight):
        raise ObstacleError(refusal)
    # Types change here, where autograd sees it: its function gets float32 or float64 scores, and the others in float64.
    s = compute_type(scores)
    sigma = (scale if isinstance(scale, Tensor) else torch.tensor(float(scale), dtype=torch.float64)).reshape(()).double()
    w = None if weight is None else weight.double()
    width = 0.0 if noise.kinks else panel_width(noise)
    try:
        samples = _survey(s, target, float(sigma.detach()), w, width)
        inputs = s, sigma, w
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
            auc: Tensor = _Auc.apply(*inputs, samples, noise, reference)  # type: ignore[no-untyped-call]
        else:
            auc = torch.tensor(_value(samples, noise, False)[0], dtype=torch.float64)
    except (ObstacleError, ValueError):
        raise
    except Exception as error:  # the plain path serves whatever the error is, and ``give_up`` tells the user
        give_up(OPERATION, "cpu", error)
        raise ObstacleError(f"it failed: {type(error).__name__}: {error}") from error
    record("cpu")
    return auc


def choose_reference(obstacle: str, scores: Tensor) -> None:
    """Note that the reference runs, since ``by_kernel`` met an obstacle.

    Raises:
        ValueError: ``use_kernel`` asks for another kernel.
    """
    record(choose(OPERATION, (HINDERED_CPU, REFERENCE), scores, obstacle, bearable=BEARABLE))


def _obstacle(scores: Tensor, noise: Noise, target: Tensor, scale: float | Tensor, weight: Tensor | None) -> str:
    """Why the kernel cannot serve, as far as that shows without a look at the values."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return "under torch.compile or torch.func"
    tensors = [x for x in (scores, target, scale, weight) if isinstance(x, Tensor)]
    if any(x.device.type != "cpu" or not owns_memory(x) for x in tensors):
        return "not all are plain tensors on the CPU"
    if any(has_tangent(x) for x in tensors):
        return "forward-mode differentiation"
    if not scores.is_floating_point() or scores.dim() != 1 or len(scores) == 0:
        return "scores out of range"
    if target.shape != scores.shape or target.is_floating_point() or target.is_complex():
        return "target out of range"
    if weight is not None and (weight.shape != scores.shape or weight.is_complex()):
        return "weight out of range"
    if isinstance(scale, Tensor) and (scale.numel() != 1 or scale.is_complex()):
        return "scale out of range"
    return "kinks without a formula" if noise.kinks and type(noise) not in KINDS else ""


def _known_obstacle(scores: Tensor, obstacle: str) -> str:
    return obstacle


CPU = Kernel("cpu", ("cpu",), (), _obstacle)
HINDERED_CPU = Kernel("cpu", obstacle=_known_obstacle)  # after ``by_kernel`` met an obstacle


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The compiled functions; loads numba, and compiles at the first call."""
    with announced():
        from lossmith.engine.ranking.kernels import entry, panels  # noqa: F401
    return entry


def _run(
    function: Any, n: int, chunk: int, arrays: dict[str, Array], panels: int = 0, kind: int = 0, wide: bool = False
) -> None:
    """Run a function of ``kernels.entry`` on a team of threads; the first array has an entry a sample."""
    numbers = {"samples": n, "chunk": chunk, "panels": panels, "kind": kind, "wide": wide}
    job = _kernels().LAYOUTS[function.__name__].job(numbers, arrays)
    # ``scan_team`` has two chunks, the directions; for few scores one thread walks in both.
    is_large = next(iter(arrays.values())).size > LEAST_CHUNK
    threads = max(1, min(torch.get_num_threads(), -(-n // chunk) if is_large else 1))
    run_team(function.ctypes, function.address, job.ctypes.data, threads)


def _chunk_size(n: int) -> int:
    """Scores of a chunk, whatever the number of threads."""
    return max(LEAST_CHUNK, -(-n // MOST_CHUNKS))


def _survey(scores: Tensor, target: Tensor, scale: float, weight: Tensor | None, width: float) -> Samples:
    """The samples, their values checked.

    Raises:
        ObstacleError: a value is out of range, or the scores span too many panels.
    """
    kernels = _kernels()
    s = scores.detach().contiguous().numpy()
    is_byte = target.dtype in (torch.bool, torch.uint8)
    y = (target.view(torch.uint8) if is_byte else target.long()).contiguous().numpy()
    w = NO_WEIGHT if weight is None else weight.detach().contiguous().numpy()
    n, chunk = len(s), _chunk_size(len(s))
    side, surveys = np.empty(n, np.uint8), np.empty((-(-n // chunk), SURVEY_NUMBERS))
    arrays = {"scores": s, "side": side, "weight": w, "target": y, "results": surveys}
    _run(kernels.survey_team, n, chunk, arrays, kind=is_byte, wide=s.dtype == np.float64)
    (low, _, valid, _, _, _), (_, high, _, _, heaviest_winner, heaviest_loser) = surveys.min(0), surveys.max(0)
    positives = int(surveys[:, 3].sum())
    if not valid or not 0 < positives < n or not (heaviest_winner > 0 and heaviest_loser > 0):
        raise ObstacleError("scores, target or weight out of range")
    if not (0 < scale < math.inf and high - low <= MOST_UNITS * scale):
        raise ObstacleError("scale out of range")
    origin = float(min(max(0.0, low), high))  # the score nearest to 0: a common offset costs no digits
    if not width:
        totals = (float(positives), float(n - positives))
        if w.size:
            totals = float(w[side == 1].sum()), float(w[side == 0].sum())
        return Samples(s, side, w, np.array([origin, scale, 0.0, 0.0]), totals, 0)
    first, last = (math.floor((float(end) - origin) / scale / width) for end in (low, high))
    panels = last - first + 1
    if panels > n // 8 + SPARE_PANELS:
        raise ObstacleError(f"the scores span {panels:,} panels")
    return Samples(s, side, w, np.array([origin, scale, 1 / width, first]), (0.0, 0.0), panels)


def _value(samples: Samples, noise: Noise, differentiate: bool) -> tuple[float, tuple[Array, ...]]:
    """The AUC and, if it is to be differentiated, the arrays for ``_gradients``."""
    return _by_panels(samples, noise, differentiate) if samples.panels else _by_rank(samples, noise, differentiate)


def _gradients(samples: Samples, saved: tuple[Array, ...], upstream: float, needs_weight: bool) -> tuple[Array, float, Array]:
    """The gradients of upstream · AUC in the scores, in the scale and, if needed, in the weights.

    ``saved`` are the arrays that ``_value`` gave for them.
    """
    scores, n = samples.scores, len(samples.scores)
    scale_sums = np.empty(-(-n // _chunk_size(n)))
    by_score, by_weight = np.empty_like(scores), np.empty(n if needs_weight else 0)
    function, arrays = (_read_off if samples.panels else _spread)(samples, saved, upstream)
    arrays |= {"by_score": by_score, "by_weight": by_weight, "scale_sums": scale_sums}
    _run(function, n, _chunk_size(n), arrays, panels=samples.panels, wide=scores.dtype == np.float64)
    return by_score, -float(scale_sums.sum()), by_weight


# Smooth noise


@lru_cache(maxsize=1)
def _powers() -> Array:
    """T_k as coefficients of powers, (TERMS, TERMS)."""
    rows = [np.polynomial.chebyshev.cheb2poly([0.0] * k + [1.0]) for k in range(TERMS)]
    return np.stack([np.pad(row, (0, TERMS - len(row))) for row in rows])


@lru_cache(maxsize=512)
def _matrices(noise: Noise, width: float, nearest: int, farthest: int) -> tuple[Array, Array, Array]:
    """The distances of ``win_matrices``, the matrices, and their transposes."""
    matrices = win_matrices(noise, width, nearest, farthest)
    stacked = np.stack([matrix.numpy() for matrix in matrices.values()])
    return np.array(list(matrices), np.int64), stacked, np.ascontiguousarray(stacked.transpose(0, 2, 1))


def _by_panels(samples: Samples, noise: Noise, differentiate: bool) -> tuple[float, tuple[Array, ...]]:
    """The AUC of smooth noise. Saved: the gradient in the sums of each panel, (2 · panels, TERMS), by powers of t."""
    from lossmith.engine.ranking.kernels.panels import transform

    scores, side, weight, numbers, _, panels = samples
    n, size = len(scores), 2 * panels * TERMS
    chunk = max(_chunk_size(n), size)  # each chunk has sums of its own: together no more than the scores
    sums = np.zeros((-(-n // chunk), size))
    arrays = {"scores": scores, "side": side, "weight": weight, "numbers": numbers, "sums": sums, "fine": np.zeros_like(sums)}
    _run(_kernels().deposit_team, n, chunk, arrays, panels=panels, wide=scores.dtype == np.float64)
    total = sums[0]
    for chunk_sums in sums[1:]:
        total += chunk_sums
    # A Chebyshev moment of high order is a small difference of large powers, but there H has next to nothing.
    moments, powers = np.zeros((2 * panels, TERMS)), _powers()
    transform(moments, total.reshape(-1, TERMS), np.ascontiguousarray(powers.T)[None])
    high, low = moments[:panels], moments[panels:]
    high_potential, low_potential = _potentials(high, low, int(numbers[3]), noise, 1 / float(numbers[2]))
    winners, losers = float(high[:, 0].sum()), float(low[:, 0].sum())
    auc = float((high * high_potential).sum()) / (winners * losers)
    if not differentiate:
        return auc, ()
    gradient = np.concatenate([high_potential, low_potential]) / (winners * losers)
    gradient[:panels, 0] -= auc / winners
    gradient[panels:, 0] -= auc / losers
    coefficients = np.zeros_like(gradient)
    transform(coefficients, gradient, powers[None])
    return auc, (coefficients,)


def _potentials(high: Array, low: Array, start: int, noise: Noise, width: float) -> tuple[Array, Array]:
    """The gradients of ``multipole.wins_of_panels`` in the moments of the winners and of the losers.

    Args:
        high: the winners' moments in every panel of the lattice, (panels, TERMS).
        low: the losers' moments, likewise.
        start: the place of the first panel on the lattice.
        noise: the distribution of ε.
        width: of the panels, in units of the noise.
    """
    from lossmith.engine.ranking.kernels.panels import gather, interact, scatter

    panels = len(high)
    high_potential, low_potential = np.zeros_like(high), np.zeros_like(low)
    # The count of (R7): 1 for each loser in a panel below the near ones, ½ for each in a near one.
    lower, higher = (np.pad(part[:, 0].cumsum(), (1, 0)) for part in (low, high))
    begin, end = (np.clip(np.arange(panels) + shift, 0, panels) for shift in (-NEAR_PANELS, NEAR_PANELS + 1))
    high_potential[:, 0] = (lower[begin] + lower[end]) / 2
    low_potential[:, 0] = higher[-1] - (higher[begin] + higher[end]) / 2
    interact(high, low, high_potential, low_potential, start, NEAR_PANELS, *_matrices(noise, width, 0, NEAR_PANELS))
    levels = []
    shifts = halves().numpy()
    level = high, low, high_potential, low_potential
    while len(level[0]) - 1 > NEAR_PANELS and not is_certain(NEAR_PANELS * width, noise):
        interact(*level, start, NEAR_PANELS, *_matrices(noise, width, NEAR_PANELS + 1, 2 * NEAR_PANELS + 1))
        levels.append((level, start))
        parents = ((start + len(level[0]) - 1) >> 1) - (start >> 1) + 1
        coarse = [np.zeros((parents, TERMS)) for _ in range(4)]
        for coarse_moments, moments in zip(coarse[:2], level[:2], strict=True):
            gather(coarse_moments, moments, start, shifts)
        level, start, width = (coarse[0], coarse[1], coarse[2], coarse[3]), start >> 1, 2 * width
    transposed = np.ascontiguousarray(shifts.transpose(0, 2, 1))
    for finer, finer_start in reversed(levels):
        for potential, coarse_potential in zip(finer[2:], level[2:], strict=True):
            scatter(potential, coarse_potential, finer_start, transposed)
        level = finer
    return high_potential, low_potential


def _read_off(samples: Samples, saved: tuple[Array, ...], upstream: float) -> tuple[Any, dict[str, Array]]:
    """The kernel of the gradients under smooth noise, and the arrays that it reads."""
    scores, side, weight, numbers, _, _ = samples
    values = upstream * saved[0]
    slopes = np.zeros_like(values)
    slopes[:, :-1] = values[:, 1:] * np.arange(1, TERMS) * (2 * numbers[2] / numbers[1])
    arrays = {"scores": scores, "side": side, "weight": weight, "numbers": numbers, "slopes": slopes, "values": values}
    return _kernels().read_off_team, arrays


# Noise with kinks


def _by_rank(samples: Samples, noise: Noise, differentiate: bool) -> tuple[float, tuple[Array, ...]]:
    """The AUC of noise with kinks. Saved: the first six arrays of ``spread_team``, and the AUC."""
    kernels, scores, n = _kernels(), samples.scores, len(samples.scores)
    order = np.argsort(scores)
    x, side, weight = np.empty(n), np.empty(n, np.uint8), np.empty_like(samples.weight)
    arrays = {
        "scores": scores,
        "side": samples.side,
        "weight": samples.weight,
        "numbers": samples.numbers,
        "order": order,
        "x": x,
        "sorted_side": side,
        "sorted_weight": weight,
    }
    _run(kernels.arrange_team, n, _chunk_size(n), arrays, wide=scores.dtype == np.float64)
    directions = 2 if differentiate else 1
    wins, memory = np.empty(directions), np.zeros((directions, WINDOW_NUMBERS))
    slope, lost = np.empty((2, n if differentiate else 0)), np.empty((2, n if differentiate else 0))
    kind = KINDS[type(noise)]
    arrays = {"x": x, "side": side, "weight": weight, "wins": wins, "memory": memory, "slope": slope, "lost": lost}
    _run(kernels.scan_team, directions, 1, arrays, kind=kind)
    auc = float(wins[0] / (samples.totals[0] * samples.totals[1]))
    return auc, (x, side, weight, order, slope, lost, np.array(auc)) if differentiate else ()


def _spread(samples: Samples, saved: tuple[Array, ...], upstream: float) -> tuple[Any, dict[str, Array]]:
    """The kernel of the gradients under noise with kinks, and the arrays that it reads."""
    x, side, weight, order, slope, lost, auc = saved
    winners, losers = samples.totals
    per_win = upstream / (winners * losers)
    factors = np.array([per_win / samples.numbers[1], per_win, upstream * float(auc) / winners, upstream * float(auc) / losers])
    arrays = {"x": x, "side": side, "weight": weight, "order": order, "slope": slope, "lost": lost, "factors": factors}
    return _kernels().spread_team, arrays


class _Auc(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, sigma: Tensor, weight: Tensor | None, samples: Samples, noise: Noise, reference: Reference
    ) -> Tensor:
        value, saved = _value(samples, noise, True)
        ctx.samples, ctx.saved, ctx.reference = samples, saved, reference
        ctx.save_for_backward(scores, sigma, weight)  # autograd then notices changes in place
        return torch.tensor(value, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, sigma, weight = inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # create_graph=True
            value = ctx.reference(scores, torch.from_numpy(ctx.samples.side) == 1, sigma, weight)
            leaves = [x for x, need in zip(inputs, needed, strict=True) if need]
            gradients = iter(torch.autograd.grad(value, leaves, upstream, create_graph=True))
            return *(next(gradients) if need else None for need in needed), None, None, None
        by_score, by_scale, by_weight = _gradients(ctx.samples, ctx.saved, float(upstream), needed[2])
        return (
            torch.from_numpy(by_score) if needed[0] else None,
            torch.tensor(by_scale, dtype=torch.float64) if needed[1] else None,
            torch.from_numpy(by_weight) if needed[2] else None,
            None,
            None,
            None,
        )
