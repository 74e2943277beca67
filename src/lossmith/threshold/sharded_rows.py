"""float32 rows on the CPU whose classes lie on several ranks: the kernels of ``sharded_cpu`` and the exchanges between them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lossmith import noise as noises
from lossmith.noise import Noise
from lossmith.threshold.argmax import MOST, MOST_WIDE, WORTH
from lossmith.threshold.select import tables_of
from lossmith.threshold.threads import in_parts

STATUS, COUNT, DEPTH, COLUMNS, DONE, HARD, PENDING, STRIDE = (
    5,
    2,
    4,
    7,
    0,
    3,
    4,
    8,
)  # as in ``cpu`` and ``sharded_cpu``, which are loaded late
ELSEWHERE, SKIPPED = -1, -2  # the place of a target that is none of this rank's classes; of a row that is not looked at
BUDGET = 1 << 24  # moments of so many rows at a time
Total = Callable[[Tensor], Tensor]


@lru_cache(maxsize=1)
def kernels() -> Any:
    """The module ``sharded_cpu``, compiled. The first time on a machine takes a while, which is announced."""
    message = "lossmith: compiling its kernels for this CPU, once; about half a minute"
    notice = threading.Timer(2.0, lambda: print(message, file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        from lossmith.threshold import sharded_cpu

        _compile(sharded_cpu)
    finally:
        notice.cancel()
    return sharded_cpu


def _compile(module: Any) -> None:
    scores, place, sigma = torch.zeros(1, 3), torch.tensor([1]), torch.ones(1, dtype=torch.float64)
    top, _ = survey(scores, place, module)
    own = top.double()
    log_p, weights, where = log_prob(scores, place, top, own, sigma, noises.get("normal"), 3, place >= 0, lambda x: x, module)
    gradient(scores, place, top, sigma, noises.get("normal"), torch.ones_like(log_p), weights, where, module)


def survey(scores: Tensor, place: Tensor, module: Any = None) -> tuple[Tensor, Tensor]:
    """The strongest rival of each row here, (rows,) float32, and whether NaN (2) or +inf (1) stands in it, (rows,) int32.

    Args:
        scores: (rows, C_r) float32, contiguous.
        place: (rows,) int64, the target among these classes, or ELSEWHERE, or SKIPPED.
        module: the kernels, if not ``kernels()``.
    """
    top, state = scores.new_empty(len(scores)), torch.empty(len(scores), dtype=torch.int32)
    arrays = _arrays(scores.view(torch.int32), place, top, state)
    _over((module or kernels()).survey, *scores.shape, *arrays)
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
        total: the sum of a tensor over all ranks, which every rank calls as often: one to five times, first with some 30 to 130
            float32 numbers a row, then for the rows whose thresholds lie too far apart.
        module: the kernels, if not ``kernels()``.

    Returns:
        log p (rows,) float32, 0 where nothing was asked; and what ``gradient`` needs, weights (rows, most) and where (rows,
        COLUMNS), in which a status HARD says that the row is left to others.
    """
    module = module or kernels()
    made = tables_of(noises.key(noise))
    assert made is not None
    lead, inverse = (own.double() - top.double()) / sigma, 1 / sigma
    log_p = torch.zeros(len(scores))
    weights = torch.zeros(len(scores), MOST if noise.name == "normal" else MOST_WIDE)
    where = torch.zeros(len(scores), COLUMNS, dtype=torch.int32)
    where[:, STATUS] = torch.where(some & (lead < made.sure), PENDING, 1)
    guess = float(noise.icdf(torch.tensor(1 - 1 / classes, dtype=torch.float64)))
    state, t, per_unit = _arrays(where, lead, inverse)
    module.plan(t, per_unit, classes, made.lowest, made.depth, made.high, made.hopeless, guess, state)
    pending = (where[:, STATUS] == PENDING).nonzero().squeeze(-1)
    cells = int(where[:, DEPTH].max()) + 1 if len(pending) else 1
    for rows in pending.split(max(1, BUDGET // (cells * STRIDE))):
        moments = torch.zeros(len(rows), cells * STRIDE)
        args = _arrays(scores, scores.view(torch.int32), place, top, inverse, rows, where, moments)
        _over(module.collect, len(rows), scores.shape[1], *args)
        opening = True
        while len(waiting := (where[rows, STATUS] == PENDING).nonzero().squeeze(-1)):
            sums = torch.zeros(len(waiting), int(where[rows[waiting], COUNT].max()))
            args = _arrays(rows, where, sums)
            _over(module.add_up, len(waiting), 8 * cells, *_arrays(moments, waiting), made.log_cdf, *args)
            total(sums)
            module.conclude(*_arrays(sums, waiting, lead), made.log_prob, *_arrays(rows, where, weights, log_p), opening)
            opening = False
    return log_p, weights, where


def gradient(
    scores: Tensor,
    place: Tensor,
    top: Tensor,
    sigma: Tensor,
    noise: Noise,
    upstream: Tensor,
    weights: Tensor,
    where: Tensor,
    module: Any = None,
) -> tuple[Tensor, Tensor]:
    """Σ upstream · log p differentiated in this rank's rivals, (rows, C_r), 0 at the target; and its sums (rows,) float64."""
    made = tables_of(noises.key(noise))
    assert made is not None
    grad, rest = torch.empty_like(scores), torch.zeros(len(scores), dtype=torch.float64)
    args = _arrays(scores, scores.view(torch.int32), place, top, 1 / sigma)
    _over(
        (module or kernels()).backward,
        *scores.shape,
        *args,
        made.slope,
        *_arrays(upstream.contiguous(), weights, where, grad, rest),
    )
    return grad, rest


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


def _over(function: Any, rows: int, work: int, *args: Any) -> None:
    """Rows of the function in as many threads as torch has and the work, in classes a row, is worth."""
    size = max(1, min(torch.get_num_threads(), rows, rows * work // WORTH))
    in_parts(lambda first, last: function(*args, first, last), rows, size)
