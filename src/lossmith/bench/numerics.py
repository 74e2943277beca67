"""How far the library's numbers, and those of other software, are from the stored 25-digit values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lossmith.bench import rivals, values
from lossmith.bench.values import Case
from lossmith.errors import InputError, near
from lossmith.functional import topk_log_prob

BATCH = 1 << 18  # most scores evaluated in one call


class Errors(NamedTuple):
    """The worst errors over the cases of one noise, class count and k. What is promised stands in ``PROMISED``."""

    log_p: float  # float64: of log p, relative to max(1, |log p|)
    sure: float  # float64: of log p relative to itself, which for p → 1 is the relative error of 1 − p
    p: float  # float64: of p, absolute
    gradient: float  # float64: norm of the error over the norm
    p_32: float  # float32: of p, absolute
    log_p_32: float  # float32: of log p, relative to itself


PROMISED = Errors(log_p=1e-9, sure=1e-9, p=1e-9, gradient=1e-7, p_32=1e-6, log_p_32=1e-5)
SMALLEST = 1e-280  # |log p| and gradients below it are next to underflow; their relative error says nothing
SMALLEST_32 = 1e-30


class Result(NamedTuple):
    """One line of the outcome."""

    noise: str
    classes: int
    k: int
    cases: int
    ours: Errors
    others: dict[str, tuple[float, float] | None]  # worst error of p, and of log p relative to max(1, |log p|)

    @property
    def kept(self) -> bool:
        """Whether every error is within what is promised."""
        return all(error <= promise for error, promise in zip(self.ours, PROMISED, strict=True))


def select(noises: Iterable[str] | None, classes: Iterable[int] | None, topk: bool) -> list[list[Case]]:
    """The stored cases asked for, grouped by noise, class count and k.

    Raises:
        InputError: a noise or class count that the table does not have.
    """
    cases = [case for case in values.load() if topk == (case.k > 1)]
    for wanted, known, what in (
        (noises, {c.noise for c in cases}, "--noise"),
        (classes, {c.classes for c in cases}, "--classes"),
    ):
        for value in wanted or ():
            if value not in known:
                raise InputError(f"{what}: no stored values for {value!r}; {near(str(value), map(str, sorted(known)))}")
    chosen = [c for c in cases if (not noises or c.noise in noises) and (not classes or c.classes in classes)]
    return [list(group) for _, group in groupby(chosen, key=lambda c: (c.noise, c.classes, c.k))]


def measure(groups: list[list[Case]], show: Callable[[int], None]) -> Iterator[Result]:
    """The result of each group; ``show`` is told how many are done."""
    methods = rivals.available()
    for done, group in enumerate(groups, start=1):
        others = {name: _worst(method, group) if group[0].k == 1 else None for name, method in methods.items()}
        yield Result(group[0].noise, group[0].classes, group[0].k, len(group), _ours(group), others)
        show(done)


def spot_check(count: int = 10) -> list[Result]:
    """Our results for ``count`` stored values, each of another noise or class count, with p as near as can be to 1/e."""
    chosen = [min(group, key=lambda case: abs(case.log_p + 1)) for group in select(None, (3, 10), topk=False)]
    return [Result(case.noise, case.classes, case.k, 1, _ours([case]), {}) for case in chosen[:count]]


def tables(results: list[Result]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, columns and rows of what the command prints: our errors, then those of the others."""

    def head(r: Result) -> tuple[str, ...]:
        return (r.noise, f"{r.classes:,}") if r.k == 1 else (r.noise, f"{r.classes:,}", str(r.k))

    names = ("noise", "classes") if all(r.k == 1 for r in results) else ("noise", "classes", "k")
    limits = [f"≤ {promise:.0e}" for promise in PROMISED]
    yield (
        "lossmith: worst error against 25-digit values",
        (*names, "cases", "log p", "log p, relative", "p", "gradient", "p, float32", "log p, float32", ""),
        [("promised", *[""] * len(names), *limits, "")]
        + [(*head(r), str(r.cases), *map(_short, r.ours), "" if r.kept else "exceeded") for r in results],
    )
    compared = [r for r in results if any(r.others.values())]
    methods = [name for name in rivals.available() if any(r.others[name] for r in compared)]
    for part, own, what in ((1, "log_p", "log p, relative to max(1, |log p|)"), (0, "p", "p, absolute")):
        if compared:
            yield (
                f"worst error of {what}, float64",
                (*names, "lossmith", *methods),
                [(*head(r), _short(getattr(r.ours, own)), *(_of_rival(r.others[m], part) for m in methods)) for r in compared],
            )


def _of_rival(errors: tuple[float, float] | None, part: int) -> str:
    return _short(errors[part]) if errors else ""


def _short(error: float) -> str:
    return "∞" if math.isinf(error) else f"{error:.0e}"


def as_json(results: list[Result]) -> dict[str, Any]:
    """The outcome for ``--json``; an infinite error is null."""

    def finite(x: float) -> float | None:
        return x if math.isfinite(x) else None

    def one(result: Result) -> dict[str, Any]:
        others = {name: pair and {"p": finite(pair[0]), "log_p": finite(pair[1])} for name, pair in result.others.items()}
        ours = {key: finite(value) for key, value in result.ours._asdict().items()}
        return {**result._asdict(), "ours": ours, "others": others, "kept": result.kept}

    return {"promised": PROMISED._asdict(), "results": [one(result) for result in results]}


def _ours(group: list[Case]) -> Errors:
    step = max(1, BATCH // group[0].classes)
    batches = [group[i : i + step] for i in range(0, len(group), step)]
    worst = np.max([_errors(batch) for batch in batches], axis=0)
    return Errors(*map(float, worst))


def _errors(batch: list[Case]) -> Errors:
    log_p, gradient = _evaluate(batch, torch.float64)
    log_p_32, _ = _evaluate(batch, torch.float32)
    exact = torch.tensor([case.log_p for case in batch], dtype=torch.float64)
    size = exact.abs()
    possible = exact.isfinite()
    error, error_32 = _difference(log_p, exact), _difference(log_p_32, exact)
    return Errors(
        log_p=_most(error / torch.where(possible, size, 1.0).clamp_min(1)),
        sure=_most((error / size)[possible & (size > SMALLEST)]),
        p=_most((log_p.exp() - exact.exp()).abs()),
        gradient=max((_gradient_error(case, row) for case, row in zip(batch, gradient, strict=True)), default=0.0),
        p_32=_most((log_p_32.exp() - exact.exp()).abs()),
        log_p_32=_most((error_32 / size)[possible & (size > SMALLEST_32)]),
    )


def _evaluate(batch: list[Case], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """log p in float64, and its gradient in the scores where p > 0."""
    scores = torch.tensor([case.scores() for case in batch], dtype=dtype, requires_grad=True)
    target = torch.zeros(len(batch), dtype=torch.long)
    log_p = topk_log_prob(scores, target, batch[0].k, noise=values.noise_of(batch[0].noise))
    (gradient,) = torch.autograd.grad(log_p[log_p.isfinite()].sum(), scores, allow_unused=True, materialize_grads=True)
    return log_p.detach().double(), gradient.double()


def _gradient_error(case: Case, row: Tensor) -> float:
    """The norm of the gradient's error over the gradient's norm; where only the target's derivative is stored, of that."""
    if case.gradient is None:
        return 0.0
    counts = torch.tensor([1, *(count for _, count in case.rivals)])[: len(case.gradient)]
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    exact = torch.tensor(case.gradient, dtype=torch.float64)
    norm = float((counts * exact.square()).sum().sqrt())
    error = float((counts * (row[first] - exact).square()).sum().sqrt())
    return error / norm if norm > SMALLEST else 0.0


def _worst(method: Callable[[Case], float | None], group: list[Case]) -> tuple[float, float] | None:
    errors = []
    for case in group:
        if (p := method(case)) is None:
            return None
        log_p = math.log(p) if p > 0 else -math.inf
        exact = case.log_p
        size = max(1.0, abs(exact)) if math.isfinite(exact) else 1.0
        log_error = 0.0 if log_p == exact else abs(log_p - exact) / size
        errors.append((abs(p - math.exp(exact)), math.inf if math.isnan(p) else log_error))
    worst = np.max(errors, axis=0)
    return float(worst[0]), float(worst[1])


def _difference(value: Tensor, exact: Tensor) -> Tensor:
    return torch.where(value == exact, 0.0, (value - exact).abs())  # −inf where −inf is right


def _most(errors: Tensor) -> float:
    return float(errors.nan_to_num(nan=math.inf).max()) if errors.numel() else 0.0
