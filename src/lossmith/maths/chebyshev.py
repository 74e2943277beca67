r"""Chebyshev moments and series of weighted points in panels, and Gauss–Legendre panels.

The equations (R…) are in ``docs/how/ranking.md``, (N…) in ``docs/how/numbers.md``. All numbers are float64, on any device.
``nodes``, ``from_values`` and ``halves`` depend on the order alone: each is made once, on the CPU, and the caller moves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

TERMS = 16  # Chebyshev polynomials of a panel: a panel of the width of the noise needs that many for 13 digits
BATCH = 16384  # points of one step: 128 kB a column stay in the cache, and torch works on so few in one thread


class Weighted(NamedTuple):
    """Scores in units of the noise and their weights, both (n,) float64."""

    x: Tensor
    weight: Tensor


def total(x: Tensor) -> Tensor:
    """Sum of (n,) or (n, k) to a scalar, in one order for any number of threads."""
    if x.dim() > 1:
        x = x.sum(-1)
    # One thread sums a row; torch would split one long sum among them.
    rows = -(-len(x) // BATCH)
    return torch.nn.functional.pad(x, (0, rows * BATCH - len(x))).view(rows, BATCH).sum(-1).sum()


# Chebyshev moments: two operations, adjoint to each other, whose derivatives are again these two.


def moments(t: Tensor, weight: Tensor, panel: Tensor, panels: int) -> Tensor:
    """Σ_{i in panel} weight_i T_k(t_i), (panels, TERMS), as in (R4).

    t: places in [−1, 1], (n,) float64; weight: (n,) float64; panel: ascending panel indices, (n,) int64.
    """
    return _Moments.apply(t, weight, panel, panels)  # type: ignore[no-untyped-call]


def series(coefficients: Tensor, t: Tensor, panel: Tensor) -> Tensor:
    """Σ_k coefficients[panel_i, k] T_k(t_i), (n,): the adjoint of ``moments``, with the same t and panel."""
    return _Series.apply(coefficients, t, panel)  # type: ignore[no-untyped-call]


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, weight: Tensor, panel: Tensor, panels: int) -> Tensor:
        ctx.save_for_backward(t, weight, panel)
        result = t.new_zeros(TERMS, panels)
        for batch in _batches(len(t)):
            first, last = int(panel[batch.start]), int(panel[batch.stop - 1])
            within, twice = panel[batch] - first, 2 * t[batch]
            term, before = weight[batch], weight[batch] * t[batch]
            for row in result:
                # A batch is summed apart and then added: the rounding grows with the batch and not with n.
                row[first : last + 1].add_(t.new_zeros(last + 1 - first).index_add_(0, within, term))
                term, before = twice * term - before, term
        return result.T.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        t, weight, panel = ctx.saved_tensors
        by_t = weight * series(grad @ _derivative().to(grad), t, panel) if ctx.needs_input_grad[0] else None
        by_weight = series(grad, t, panel) if ctx.needs_input_grad[1] else None
        return by_t, by_weight, None, None


class _Series(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, t: Tensor, panel: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients, t, panel)
        columns = coefficients.T.contiguous()
        result = torch.empty_like(t)
        for batch in _batches(len(t)):
            first, last = int(panel[batch.start]), int(panel[batch.stop - 1])
            within, twice = panel[batch] - first, 2 * t[batch]
            later = latest = torch.zeros_like(twice)
            for column in columns[1:, first : last + 1].flip(0):  # Clenshaw's recursion (N10)
                later, latest = column.index_select(0, within) + twice * later - latest, later
            result[batch] = columns[0, first : last + 1].index_select(0, within) + t[batch] * later - latest
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, t, panel = ctx.saved_tensors
        by_coefficients = moments(t, grad, panel, len(coefficients)) if ctx.needs_input_grad[0] else None
        by_t = grad * series(coefficients @ _derivative().to(grad), t, panel) if ctx.needs_input_grad[1] else None
        return by_coefficients, by_t, None


def _batches(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def _fixed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache of a constant that autograd may use, even if the first call runs in inference mode."""

    @lru_cache
    def made(*args: int) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return make(*args)

    return made


@_fixed
def nodes(terms: int) -> Tensor:
    """Chebyshev points in (−1, 1)."""
    return torch.cos(math.pi * (torch.arange(terms, dtype=torch.float64, device="cpu") + 0.5) / terms)


def polynomials(t: Tensor, terms: int) -> Tensor:
    """T_k(t), (…, terms), for t in [−1, 1]."""
    values = [torch.ones_like(t), t]
    while len(values) < terms:
        values.append(2 * t * values[-1] - values[-2])
    return torch.stack(values, -1)


@_fixed
def from_values(terms: int) -> Tensor:
    """Values at the Chebyshev points (columns) → coefficients, (terms, terms)."""
    scaled = 2 * polynomials(nodes(terms), terms).T / terms
    return torch.cat([scaled[:1] / 2, scaled[1:]])


@_fixed
def _derivative() -> Tensor:
    """Coefficients (row vectors) of a series → those of its derivative: T_k' = 2k (T_{k−1} + T_{k−3} + …), T_0 halved."""
    order = torch.arange(TERMS, dtype=torch.float64, device="cpu").unsqueeze(1)
    matrix = torch.where((order > order.T) & ((order - order.T) % 2 == 1), 2 * order, 0.0)
    return torch.cat([matrix[:, :1] / 2, matrix[:, 1:]], 1)


@_fixed
def halves() -> Tensor:
    """The matrices S of (R9), (2, TERMS, TERMS): of the left half, then of the right half; they multiply row vectors."""
    points = (nodes(TERMS) + torch.tensor([[-1.0], [1.0]], dtype=torch.float64, device="cpu")) / 2
    return from_values(TERMS) @ polynomials(points, TERMS)


def gauss_legendre(edges: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights between edges (…, e), ascending: both (…, (e − 1) · count)."""
    place, weight = (edges.new_tensor(part) for part in np.polynomial.legendre.leggauss(count))
    half = edges.diff(dim=-1).unsqueeze(-1) / 2
    return (edges[..., :-1, None] + half * (1 + place)).flatten(-2), (half * weight).flatten(-2)
