"""What the expected AUC costs beside a sort of the same scores: forward and backward, measured side by side in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lossmith
from lossmith.bench.timing import Times, take_turns
from lossmith.functional import expected_auc

SIZES = (10_000, 100_000, 1_000_000)
NOISES = ("normal", "logistic", "gumbel", "studentt", "laplace", "exponential", "uniform")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SECONDS = 5.0  # for a number of scores
SORT = "torch.sort"


class Result(NamedTuple):
    """One number of scores, of one dtype: times of the sort and of the AUC with each noise."""

    n: int
    dtype: str
    kernels: dict[str, str]  # what computed it, by noise
    times: dict[str, Times]

    def ratio(self, name: str) -> float:
        """Of the medians, to the sort's."""
        return self.times[name].median / self.times[SORT].median


def measure(sizes: tuple[int, ...], show: Callable[[int], None]) -> Iterator[Result]:
    """Each number of scores in float32 and in float64: standard normal scores, two of five positive, a scale of 1."""
    done = 0
    for n in sizes:
        for dtype in DTYPES:
            made = torch.Generator().manual_seed(n)
            scores = torch.randn(n, generator=made, dtype=DTYPES[dtype])
            target = torch.rand(n, generator=made) < 0.4
            target[:2] = torch.tensor([True, False])[:n]
            calls: dict[str, Callable[[], object]] = {SORT: partial(torch.sort, scores)}
            kernels = {}
            leaf = scores.clone().requires_grad_()
            for noise in NOISES:
                calls[noise] = partial(_run, leaf, target, noise)
                calls[noise]()
                kernels[noise] = str(lossmith.last_kernel())
            yield Result(n, dtype, kernels, take_turns(calls, SECONDS))
            done += 1
            show(done)


def _run(scores: Tensor, target: Tensor, noise: str) -> None:
    scores.grad = None
    expected_auc(scores, target, noise=noise).backward()


def table(results: list[Result]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of what the command prints."""
    rows: list[tuple[str, ...]] = []
    for r in results:
        for name, times in r.times.items():
            rows.append((f"{r.n:,}", r.dtype, name, r.kernels.get(name, ""), str(times), f"{r.ratio(name):.2f}"))
    return ("scores", "dtype", "noise", "kernel", "milliseconds", "ratio"), rows


def title() -> str:
    """What the table shows."""
    return f"expected AUC, forward + backward, beside {SORT}, {torch.get_num_threads()} threads"


def as_json(results: list[Result]) -> dict[str, Any]:
    """The outcome for ``--json``: seconds, and ratios to the sort."""
    return {
        "threads": torch.get_num_threads(),
        "results": [
            {
                "n": r.n,
                "dtype": r.dtype,
                "costs": {
                    name: {**t._asdict(), "ratio": r.ratio(name), "kernel": r.kernels.get(name)} for name, t in r.times.items()
                },
            }
            for r in results
        ],
    }
