"""float32 rows on the CPU whose classes lie on several ranks: the kernels of ``sharded_cpu`` and the exchanges between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.argmax.kernels.record import (
    CELLS,
    CLASSES_PER_THREAD,
    COLUMNS,
    COUNT,
    OPEN,
    SINGLE_CLASSES,
    STATUS,
    SURE,
    UNSERVED,
    kept_thresholds,
)
from lossmith.engine.argmax.kernels.tables import MOMENTS, backward_arrays, forward_arrays
from lossmith.engine.runtime.compiling import announced
from lossmith.engine.runtime.threads import in_parts
from lossmith.noise import Noise

ELSEWHERE, SKIPPED = -1, -2  # the place of a target that is none of this rank's classes; of a row that is not looked at
BUDGET = 1 << 24  # numbers that stand for so many rows at a time
Total = Callable[[Tensor], Tensor]


@lru_cache(maxsize=1)
def kernels() -> Any:
    """The module ``sharded_cpu``, compiled. The first time on a machine takes a while, which is announced."""
    with announced():
        from lossmith.engine.argmax.sharded import cpu as sharded_cpu

        _compile(sharded_cpu)
    return sharded_cpu


def _compile(module: Any) -> None:
    scores, place, sigma = torch.zeros(1, 3), torch.tensor([1]), torch.ones(1, dtype=torch.float64)
    top, _ = survey(scores, place, module)
    own = top.double()
    log_p, weights, records = log_prob(scores, place, top, own, sigma, noises.get("normal"), 3, place >= 0, lambda x: x, module)
    gradient(scores, place, top, sigma, noises.get("normal"), torch.ones_like(log_p), weights, records, module)


def survey(scores: Tensor, place: Tensor, module: Any = None) -> tuple[Tensor, Tensor]:
    """The strongest rival of each row here, (rows,) float32, and whether NaN (2) or +inf (1) stands in it, (rows,) int32.

    Args:
        scores: (rows, C_r) float32, contiguous.
        place: (rows,) int64, the target among these classes, or ELSEWHERE, or SKIPPED.
        module: the kernels, if not ``kernels()``.
    """
    rows, C = scores.shape
    top, state = scores.new_empty(rows), torch.empty(rows, dtype=torch.int32)
    bits, *others = _arrays(scores.view(torch.int32).flatten(), place, top, state)
    _over((module or kernels()).survey, rows, C, bits, others[0], C, *others[1:])
    return top, state


def log_prob(
    scores: Tensor,
    place: Tensor,
    top: Tensor,
    own: Tensor,
    sigma: Tensor,
    noise: Noise,
    classes: int,
    some: Tensor,
    total: Total,
    module: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """log p of the rows that ``some`` selects.

    Args:
        scores, place: as for ``survey``.
        top: (rows,) float32, the strongest rival on all ranks.
        own: (rows,) the target's score.
        sigma: (rows,) float64.
        noise: the distribution of ε, one that has tables.
        classes: on all ranks.
        some: (rows,) boolean.
        total: the sum of a tensor over all ranks, which every rank calls as often: one to five times, first with 32 to 128
            float32 numbers a row, then some 32 to 64 for rows whose thresholds lie too far apart: 47 to 130 in all with normal
            noise, 95 to 115 with logistic noise but for targets so far ahead that the row is left to others (up to 640).
        module: the kernels, if not ``kernels()``.

    Returns:
        log p (rows,) float32, 0 where nothing was asked; and what ``gradient`` needs, weights (rows, most) and records (rows,
        COLUMNS), in which a status UNSERVED says that the row is left to others.
    """
    module = module or kernels()
    log_cdf, log_density, lowest, depth, numbers = forward_arrays(noise.key, classes).values()
    high, least_lead, most_lead, sure_lead, coarsest, guess, steepness = numbers.tolist()
    B, C = scores.shape
    most = kept_thresholds(noise.key)
    log_p, weights, records = torch.zeros(B), torch.zeros(B, most), torch.zeros(B, COLUMNS, dtype=torch.int32)
    lead = (own.double() - top.double()) / sigma
    records[:, STATUS] = torch.where(some & (lead < sure_lead), OPEN, SURE)
    z, bits, y, t, highest, per_unit, state, out, shares = _arrays(
        scores.flatten(), scores.view(torch.int32).flatten(), place, lead, top, 1 / sigma, records, log_p, weights.flatten()
    )
    module.plan(t, per_unit, lowest, depth, high, least_lead, most_lead, int(coarsest), guess, state)
    pending = (records[:, STATUS] > UNSERVED).nonzero().squeeze(-1)
    width = module.WHOLE * (
        1 + max(SINGLE_CLASSES, int(records[:, CELLS].max()) if B else 0) // module.WHOLE
    )  # on all ranks the same
    for some_rows in pending.split(BUDGET // ((MOMENTS + 2) * width)):
        rows, size = some_rows.numpy(), len(some_rows)
        whole = torch.zeros(size, MOMENTS * width), *torch.empty(3, size, width, dtype=torch.int32)
        cells = _arrays(*whole)
        _over(module.collect, size, C, z, bits, y, C, highest, per_unit, rows, state, *cells)
        while len(waiting := (records[some_rows, STATUS] > UNSERVED).nonzero().squeeze(-1)):
            counts = records[some_rows[waiting], COUNT].long()
            sums = torch.empty(int(counts.sum()))
            those, totals, at = _arrays(waiting, sums, counts.cumsum(0) - counts)
            _over(module.add_up, len(waiting), 8 * width, those, *cells, log_cdf, rows, state, totals, at)
            total(sums)
            args = those, rows, totals, at, log_density, t, steepness, out, shares, most, state
            _over(module.conclude, len(waiting), width, *args)
    return log_p, weights, records


def gradient(
    scores: Tensor,
    place: Tensor,
    top: Tensor,
    sigma: Tensor,
    noise: Noise,
    upstream: Tensor,
    weights: Tensor,
    records: Tensor,
    module: Any = None,
) -> tuple[Tensor, Tensor]:
    """Σ upstream · log p differentiated in this rank's rivals, (rows, C_r), 0 at the target; and its sums (rows,) float64."""
    slope_by_cell, slope = backward_arrays(noise.key).values()
    B, C = scores.shape
    grad, rest = torch.empty_like(scores), torch.zeros(B, dtype=torch.float64)
    z, bits, y, highest, per_unit, up, shares, state, out, sums = _arrays(
        scores.flatten(), scores.view(torch.int32).flatten(), place, top, 1 / sigma, upstream.contiguous(), weights.flatten(),
        records, grad.view(-1), rest,
    )  # fmt: skip
    args = z, bits, y, C, highest, per_unit, slope_by_cell, slope, up, shares, weights.shape[1], state, out, sums
    _over((module or kernels()).backward, B, C, *args)
    return grad, rest


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


def _over(function: Any, rows: int, work: int, *args: Any) -> None:
    """Rows of the function in as many threads as torch has and the work, in classes a row, is worth."""
    size = max(1, min(torch.get_num_threads(), rows, rows * work // CLASSES_PER_THREAD))
    in_parts(lambda first, last: function(*args, first, last), rows, size)
