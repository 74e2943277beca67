"""Expected AUC by the kernels for the CPU, ``pair_team``, as a function of autograd.

Smooth noise needs no sort: one pass adds each score to its panel of a lattice, the few panels go through ``pairs``, and in the
backward pass one more reads the gradient off its panel's polynomial. With kinks, scores are sorted and walked over from both
ends. Second derivatives are those of the plain path, which also serves whatever these kernels do not.
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
from torch.autograd import forward_ad

from lossmith.engine.ranking import multipole as pairs
from lossmith.engine.ranking.kernels.record import EXPONENTIAL, LAPLACE, SURVEY_NUMBERS, UNIFORM, WINDOW_NUMBERS
from lossmith.engine.runtime.compiling import announced
from lossmith.engine.runtime.select import REFERENCE, Kernel, asked, choose, give_up, record
from lossmith.engine.runtime.threads import run_team
from lossmith.inputs import compute_type, owns_memory
from lossmith.maths.chebyshev import TERMS, halves
from lossmith.noise import Exponential, Laplace, Noise, Uniform

Array = NDArray[Any]
Reference = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # of scores, who is positive, scale and weight

OPERATION = "expected_auc"
BEARABLE = 1 << 14  # scores up to which the plain path costs some milliseconds
CHUNK = 1 << 15  # scores of a chunk, at least
MOST_CHUNKS = 64
MOST_UNITS = 1e15  # beyond, float64 cannot tell scores one unit of noise apart
SPARE_PANELS = 4096  # of the lattice, beyond one for every eight scores
KINDS: dict[type[Noise], int] = {Laplace: LAPLACE, Exponential: EXPONENTIAL, Uniform: UNIFORM}
NOTHING = np.empty(0)


class Samples(NamedTuple):
    """What the kernels read, and what is known of it: all (n,), weight (0,) if there is none."""

    scores: Array  # float32 or float64
    side: Array  # uint8, 1 for the positives
    weight: Array
    numbers: Array  # the score that counts as 0, the scale, 1 / the width of a panel, the first panel
    totals: tuple[float, float]  # weight of the positives and of the negatives; for noise with kinks
    panels: int  # of the lattice; 0 for noise with kinks


def by_kernel(
    scores: Tensor, target: Tensor, noise: Noise, scale: float | Tensor, weight: Tensor | None, reference: Reference
) -> Tensor | str:
    """The expected AUC in float64, or why the plain path has to run, bad input, which it reports, among the reasons.

    Raises:
        ValueError: the noise is too rough for the panels.
    """
    if asked() not in (None, "cpu"):
        return f"{asked()!r} was asked for"
    if against := CPU.refusal(OPERATION, scores, noise, target, scale, weight):
        return against
    # Outside autograd's function, as dtypes may differ: it gets float32 or float64 scores, and the others in float64.
    s = compute_type(scores)
    sigma = (scale if isinstance(scale, Tensor) else torch.tensor(float(scale), dtype=torch.float64)).reshape(()).double()
    w = None if weight is None else weight.double()
    width = 0.0 if noise.kinks else pairs.panel_width(noise)
    try:
        samples = _survey(s, target, float(sigma.detach()), w, width)
        if isinstance(samples, str):
            return samples
        inputs = s, sigma, w
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
            result: Tensor = _Auc.apply(*inputs, samples, noise, reference)  # type: ignore[no-untyped-call]
        else:
            result = torch.tensor(_value(samples, noise, False)[0], dtype=torch.float64)
    except ValueError:
        raise
    except Exception as error:  # whatever it is, there is another way, and the user learns of it
        give_up(OPERATION, "cpu", error)
        return f"it failed: {type(error).__name__}: {error}"
    record("cpu")
    return result


def refuse(against: str, scores: Tensor) -> None:
    """Note that the reference runs.

    Raises:
        ValueError: the kernel was asked for.
    """
    cpu = Kernel("cpu", obstacle=lambda *call: against)
    record(choose(OPERATION, (cpu, REFERENCE), scores, bearable=BEARABLE))


def _obstacle(scores: Tensor, noise: Noise, target: Tensor, scale: float | Tensor, weight: Tensor | None) -> str:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return "under torch.compile or torch.func"
    tensors = [x for x in (scores, target, scale, weight) if isinstance(x, Tensor)]
    if any(x.device.type != "cpu" or not owns_memory(x) for x in tensors):
        return "not all are plain tensors on the CPU"
    if any(x.is_floating_point() and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
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


CPU = Kernel("cpu", ("cpu",), (), _obstacle)


@lru_cache(maxsize=1)
def _kernels() -> Any:
    with announced():
        from lossmith.engine.ranking.kernels import entry as pair_team
        from lossmith.engine.ranking.kernels import panels as pair_panels  # noqa: F401
    return pair_team


def _run(function: Any, n: int, chunk: int, arrays: list[Array], panels: int = 0, kind: int = 0, wide: bool = False) -> None:
    from lossmith.engine.runtime.launch import slots

    head = np.array([0, 1, n, chunk, panels, kind, wide], np.int64)
    job = np.concatenate([head, slots(arrays)])
    # Two directions of few scores are one thread's work.
    size = max(1, min(torch.get_num_threads(), -(-n // chunk) if arrays[0].size > CHUNK else 1))
    run_team(function.ctypes, function.address, job.ctypes.data, size)


def _chunk(n: int) -> int:
    """Scores of a chunk, whatever the number of threads."""
    return max(CHUNK, -(-n // MOST_CHUNKS))


def _survey(scores: Tensor, target: Tensor, scale: float, weight: Tensor | None, width: float) -> Samples | str:
    """The samples, or what is wrong with them."""
    kernels = _kernels()
    s = scores.detach().contiguous().numpy()
    byte = target.dtype in (torch.bool, torch.uint8)
    y = (target.view(torch.uint8) if byte else target.long()).contiguous().numpy()
    w = NOTHING if weight is None else weight.detach().contiguous().numpy()
    n, chunk = len(s), _chunk(len(s))
    side, found = np.empty(n, np.uint8), np.empty((-(-n // chunk), SURVEY_NUMBERS))
    _run(kernels.survey_team, n, chunk, [s, side, w, y, found], kind=byte, wide=s.dtype == np.float64)
    (low, _, well, _, _, _), (_, high, _, _, heavy, other) = found.min(0), found.max(0)
    positives = int(found[:, 3].sum())
    if not well or not 0 < positives < n or not (heavy > 0 and other > 0):
        return "scores, target or weight out of range"
    if not (0 < scale < math.inf and high - low <= MOST_UNITS * scale):
        return "scale out of range"
    origin = float(min(max(0.0, low), high))  # the score nearest to 0: a common offset costs no digits
    if not width:
        totals = (float(positives), float(n - positives))
        if w.size:
            totals = float(w[side == 1].sum()), float(w[side == 0].sum())
        return Samples(s, side, w, np.array([origin, scale, 0.0, 0.0]), totals, 0)
    first, last = (math.floor((float(end) - origin) / scale / width) for end in (low, high))
    panels = last - first + 1
    if panels > n // 8 + SPARE_PANELS:
        return f"the scores span {panels:,} panels"
    return Samples(s, side, w, np.array([origin, scale, 1 / width, first]), (0.0, 0.0), panels)


def _value(samples: Samples, noise: Noise, differentiate: bool) -> tuple[float, tuple[Array, ...]]:
    """The AUC and, if it is to be differentiated, the arrays for ``_gradients``."""
    return _by_panels(samples, noise, differentiate) if samples.panels else _by_rank(samples, noise, differentiate)


def _gradients(samples: Samples, kept: tuple[Array, ...], upstream: float, by_weight: bool) -> tuple[Array, float, Array]:
    """Of upstream · AUC in the scores, in the scale and, if asked for, in the weights."""
    scores, n = samples.scores, len(samples.scores)
    moved = np.empty(-(-n // _chunk(n)))
    in_scores, in_weight = np.empty_like(scores), np.empty(n if by_weight else 0)
    function, arrays = (_read_off if samples.panels else _spread)(samples, kept, upstream)
    arrays += [in_scores, in_weight, moved]
    _run(function, n, _chunk(n), arrays, panels=samples.panels, wide=scores.dtype == np.float64)
    return in_scores, -float(moved.sum()), in_weight


# Smooth noise


@lru_cache(maxsize=1)
def _powers() -> Array:
    """T_k as coefficients of powers, (TERMS, TERMS)."""
    rows = [np.polynomial.chebyshev.cheb2poly([0.0] * k + [1.0]) for k in range(TERMS)]
    return np.stack([np.pad(row, (0, TERMS - len(row))) for row in rows])


@lru_cache(maxsize=512)
def _matrices(noise: Noise, width: float, nearest: int, farthest: int) -> tuple[Array, Array, Array]:
    """Distances, and the matrices of ``pairs`` for them with their transposes."""
    kernels = pairs.win_matrices(noise, width, nearest, farthest)
    stacked = np.stack([kernel.numpy() for kernel in kernels.values()])
    return np.array(list(kernels), np.int64), stacked, np.ascontiguousarray(stacked.transpose(0, 2, 1))


def _by_panels(samples: Samples, noise: Noise, differentiate: bool) -> tuple[float, tuple[Array, ...]]:
    """Kept: the gradient in the sums of each panel, (2 · panels, TERMS), the coefficients of powers of t."""
    from lossmith.engine.ranking.kernels.panels import transform

    scores, side, weight, numbers, _, panels = samples
    n, size = len(scores), 2 * panels * TERMS
    chunk = max(_chunk(n), size)  # each chunk has sums of its own: together no more than the scores
    sums = np.zeros((-(-n // chunk), size))
    arrays = [scores, side, weight, numbers, sums, np.zeros_like(sums)]
    _run(_kernels().deposit_team, n, chunk, arrays, panels=panels, wide=scores.dtype == np.float64)
    summed = sums[0]
    for more in sums[1:]:
        summed += more
    # Chebyshev moments are small differences of large powers where k is high, but there H has next to nothing.
    moments, powers = np.zeros((2 * panels, TERMS)), _powers()
    transform(moments, summed.reshape(-1, TERMS), np.ascontiguousarray(powers.T)[None])
    high, low = moments[:panels], moments[panels:]
    by_high, by_low = _potentials(high, low, int(numbers[3]), noise, 1 / float(numbers[2]))
    winners, losers = float(high[:, 0].sum()), float(low[:, 0].sum())
    auc = float((high * by_high).sum()) / (winners * losers)
    if not differentiate:
        return auc, ()
    by = np.concatenate([by_high, by_low]) / (winners * losers)
    by[:panels, 0] -= auc / winners
    by[panels:, 0] -= auc / losers
    coefficients = np.zeros_like(by)
    transform(coefficients, by, powers[None])
    return auc, (coefficients,)


def _potentials(high: Array, low: Array, start: int, noise: Noise, width: float) -> tuple[Array, Array]:
    """``pairs.wins_of_panels`` differentiated in the moments of either side, all (panels, TERMS), the first at ``start``."""
    from lossmith.engine.ranking.kernels.panels import gather, interact, scatter

    near, panels = pairs.NEAR_PANELS, len(high)
    by_high, by_low = np.zeros_like(high), np.zeros_like(low)
    # As counted: 1 against panels further down than those near, ½ against those.
    lower, higher = (np.pad(part[:, 0].cumsum(), (1, 0)) for part in (low, high))
    begin, end = (np.clip(np.arange(panels) + shift, 0, panels) for shift in (-near, near + 1))
    by_high[:, 0] = (lower[begin] + lower[end]) / 2
    by_low[:, 0] = higher[-1] - (higher[begin] + higher[end]) / 2
    interact(high, low, by_high, by_low, start, near, *_matrices(noise, width, 0, near))
    levels = []
    shifts = halves().numpy()
    level = high, low, by_high, by_low
    while len(level[0]) - 1 > near and not pairs.is_certain(near * width, noise):
        interact(*level, start, near, *_matrices(noise, width, near + 1, 2 * near + 1))
        levels.append((level, start))
        parents = ((start + len(level[0]) - 1) >> 1) - (start >> 1) + 1
        coarse = [np.zeros((parents, TERMS)) for _ in range(4)]
        for whole, part in zip(coarse[:2], level[:2], strict=True):
            gather(whole, part, start, shifts)
        level, start, width = (coarse[0], coarse[1], coarse[2], coarse[3]), start >> 1, 2 * width
    transposed = np.ascontiguousarray(shifts.transpose(0, 2, 1))
    for finer, finer_start in reversed(levels):
        for part, whole in zip(finer[2:], level[2:], strict=True):
            scatter(part, whole, finer_start, transposed)
        level = finer
    return by_high, by_low


def _read_off(samples: Samples, kept: tuple[Array, ...], upstream: float) -> tuple[Any, list[Array]]:
    scores, side, weight, numbers, _, _ = samples
    values = upstream * kept[0]
    slopes = np.zeros_like(values)
    slopes[:, :-1] = values[:, 1:] * np.arange(1, TERMS) * (2 * numbers[2] / numbers[1])
    return _kernels().read_off_team, [scores, side, weight, numbers, slopes, values]


# Noise with kinks


def _by_rank(samples: Samples, noise: Noise, differentiate: bool) -> tuple[float, tuple[Array, ...]]:
    """Kept: x, side and weight sorted, the order, slopes and wins as ``scan_team`` leaves them, and the AUC."""
    kernels, scores, n = _kernels(), samples.scores, len(samples.scores)
    order = np.argsort(scores)
    x, side, weight = np.empty(n), np.empty(n, np.uint8), np.empty_like(samples.weight)
    arrays = [*samples[:4], order, x, side, weight]
    _run(kernels.arrange_team, n, _chunk(n), arrays, wide=scores.dtype == np.float64)
    directions = 2 if differentiate else 1
    wins, room = np.empty(directions), np.zeros((directions, WINDOW_NUMBERS))
    slope, lost = np.empty((2, n if differentiate else 0)), np.empty((2, n if differentiate else 0))
    kind = KINDS[type(noise)]
    _run(kernels.scan_team, directions, 1, [x, side, weight, wins, room, slope, lost], kind=kind)
    auc = float(wins[0] / (samples.totals[0] * samples.totals[1]))
    return auc, (x, side, weight, order, slope, lost, np.array(auc)) if differentiate else ()


def _spread(samples: Samples, kept: tuple[Array, ...], upstream: float) -> tuple[Any, list[Array]]:
    *arrays, auc = kept
    winners, losers = samples.totals
    each = upstream / (winners * losers)
    factors = np.array([each / samples.numbers[1], each, upstream * float(auc) / winners, upstream * float(auc) / losers])
    return _kernels().spread_team, [*arrays, factors]


class _Auc(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, sigma: Tensor, weight: Tensor | None, samples: Samples, noise: Noise, reference: Reference
    ) -> Tensor:
        value, kept = _value(samples, noise, True)
        ctx.samples, ctx.kept, ctx.reference = samples, kept, reference
        ctx.save_for_backward(scores, sigma, weight)  # also to be told of changes in place
        return torch.tensor(value, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, sigma, weight = inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # create_graph=True
            value = ctx.reference(scores, torch.from_numpy(ctx.samples.side) == 1, sigma, weight)
            wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
            found = iter(torch.autograd.grad(value, wanted, upstream, create_graph=True))
            return *(next(found) if need else None for need in needed), None, None, None
        by_score, by_scale, by_weight = _gradients(ctx.samples, ctx.kept, float(upstream), needed[2])
        return (
            torch.from_numpy(by_score) if needed[0] else None,
            torch.tensor(by_scale, dtype=torch.float64) if needed[1] else None,
            torch.from_numpy(by_weight) if needed[2] else None,
            None,
            None,
            None,
        )
