"""What losses cost beside cross-entropy: time and peak memory of forward and backward, measured side by side in one run."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import lossmith
from lossmith.bench.memory import peak_memory
from lossmith.bench.subjects import DEFAULT, SUBJECTS, Loss
from lossmith.bench.timing import Times, take_turns
from lossmith.errors import InputError, near

CLASSES = (2, 10, 100, 1000, 10_000, 50_000, 128_256)
ELEMENTS = 3_200_000  # of a batch, at most
ROWS = 256  # at most
GROWTH = (16, 64, 1024, 4096, 16_384)  # rows of further batches, with GROWTH_CLASSES classes
GROWTH_CLASSES = 100
LEAD = 20.0  # of a trained model's targets, over scores of spread 2
SECONDS = 3.0  # a shape
SEEN = 1 << 20  # scores from which on memory can be told
SLOW = 1.0  # seconds of one call from which on it is not repeated
OVERVIEW = ((256, 10), (128, 100), (128, 1000), (32, 10_000))  # batches of several losses
BASE = "cross-entropy"


class Cost(NamedTuple):
    """Of one loss on one kind of scores; times in seconds, memory in multiples of the scores'."""

    median: float
    low: float  # the 20 % quantile
    high: float
    ratio: float  # of the median to cross-entropy's
    memory: float  # most held at once beyond what was held before, the gradient included


class Result(NamedTuple):
    """One shape and kind of scores."""

    rows: int
    classes: int
    scores: str  # "flat" as of an untrained model, "peaked" as of a trained one
    kernels: dict[str, str]  # what computed each of ours
    costs: dict[str, Cost]


def rival_of(path: str) -> Loss:
    """The callable of (scores, target) at an import path, "package.module:name".

    Raises:
        InputError: there is none.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--rival: expected an import path like package.module:name, got {path!r} ({error})") from None
    found = found() if isinstance(found, type) else found
    if not callable(found):
        raise InputError(f"--rival: expected a callable of (scores, target), got {type(found).__name__} at {path!r}")
    return found


def shapes(classes: tuple[int, ...], names: list[str]) -> list[tuple[int, int]]:
    """Rows and classes of the batches to measure; without class counts all that the figure shows, or few for several losses."""
    if not classes and names != [DEFAULT]:
        return list(OVERVIEW)
    chosen = [(min(ROWS, max(1, ELEMENTS // C)), C) for C in classes or CLASSES]
    return chosen if classes else chosen + [(rows, GROWTH_CLASSES) for rows in GROWTH]


def measure(
    batches: list[tuple[int, int]],
    names: list[str],
    noise: str,
    dtype: torch.dtype,
    rivals: dict[str, Loss],
    show: Callable[[int], None],
) -> Iterator[Result]:
    """Each batch (rows, classes), with flat and with peaked scores; the losses take turns.

    Args:
        batches: rows and classes of each.
        names: losses of ``subjects``.
        noise: a name of their noise.
        dtype: of the scores.
        rivals: other losses of scores and class indices, by name.
        show: is told how many kinds of scores are done.
    """
    done = 0
    for rows, C in batches:
        for kind in ("flat", "peaked"):
            scores, target = _scores(rows, C, kind)
            scores = scores.detach().to(dtype).requires_grad_()
            calls: dict[str, Callable[[], object]] = {
                name: partial(_run, loss, scores, target) for name, loss in {BASE: cross_entropy, **rivals}.items()
            }
            kernels = {}
            for name in names:
                subject = SUBJECTS[name]
                calls[name] = partial(_run, subject.build(noise, C), scores, subject.target(target, C))
                calls[name]()
                kernels[name] = str(lossmith.last_kernel())
            yield Result(rows, C, kind, kernels, _costs(calls, scores))
            done += 1
            show(done)


def _scores(rows: int, classes: int, kind: str) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(classes)
    scores = torch.randn(rows, classes, generator=made)
    target = torch.randint(0, classes, (rows,), generator=made)
    if kind == "peaked":
        scores = 2 * scores
        scores[torch.arange(rows), target] += LEAD
    return scores.requires_grad_(), target


def _run(loss: Loss, scores: Tensor, target: Tensor) -> None:
    scores.grad = None
    loss(scores, target).backward()


def _costs(calls: Mapping[str, Callable[[], object]], scores: Tensor) -> dict[str, Cost]:
    once = {name: _seconds(call) for name, call in calls.items()}
    quick = {name: call for name, call in calls.items() if name == BASE or once[name] < SLOW}
    times = take_turns(quick, SECONDS)
    times |= {name: Times(*3 * (once[name],)) for name in calls if name not in quick}
    base = times[BASE].median
    return {name: Cost(*times[name], times[name].median / base, _memory(call, scores)) for name, call in calls.items()}


def _seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _memory(call: Callable[[], object], scores: Tensor) -> float:
    """``peak_memory``, from no gradient on, in multiples of the scores'; of little meaning below some megabytes."""
    scores.grad = None
    return peak_memory(call) / (scores.numel() * scores.element_size())


def table(results: list[Result]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of what the command prints."""
    rows: list[tuple[str, ...]] = []
    for r in results:
        for name, cost in r.costs.items():
            memory = f"{cost.memory:.1f}" if r.rows * r.classes > SEEN else ""
            batch = str(r.rows), f"{r.classes:,}", r.scores
            rows.append((*batch, name, r.kernels.get(name, ""), str(Times(*cost[:3])), f"{cost.ratio:.2f}", memory))
    return ("rows", "classes", "scores", "loss", "kernel", "milliseconds", "ratio", "memory"), rows


def title(noise: str, dtype: torch.dtype) -> str:
    """What the table shows."""
    kind = str(dtype).removeprefix("torch.")
    return f"forward + backward beside {BASE}, {noise} noise, {kind}, {torch.get_num_threads()} threads"


def as_json(results: list[Result]) -> dict[str, Any]:
    """The outcome for ``--json``: seconds, ratios to cross-entropy, and memory in multiples of the scores'."""
    return {
        "threads": torch.get_num_threads(),
        "results": [{**r._asdict(), "costs": {name: cost._asdict() for name, cost in r.costs.items()}} for r in results],
    }


def check_plot(path: Path) -> None:
    """Refuse, before any measurement, an ending that no figure can have."""
    from matplotlib.figure import Figure

    endings = Figure().canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in endings:  # without an ending the figure is a PNG
        raise InputError(f"--plot: {path}: the ending {path.suffix!r} is unknown; {near(path.suffix[1:], endings)}")


def plot(results: list[Result], path: Path) -> None:
    """Time a score against the number of classes and, where batches differ in their rows alone, against those, as a figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    by_classes = {r.classes: r for r in reversed(results)}  # the first of each
    parts = {"classes": [r for r in results if r.rows == by_classes[r.classes].rows]}
    by_rows = sorted((r for r in results if r.classes == GROWTH_CLASSES), key=lambda r: r.rows)
    if len({r.rows for r in by_rows}) > 1:
        parts[f"rows of {GROWTH_CLASSES} classes"] = by_rows
    figure, axes = plt.subplots(
        len(parts), 2, figsize=(9, 3.6 * len(parts)), sharey=True, sharex="row", squeeze=False, layout="constrained"
    )
    for line, (label, chosen) in zip(axes, parts.items(), strict=True):
        for axis, kind in zip(line, ("flat", "peaked"), strict=True):
            _draw(axis, [r for r in chosen if r.scores == kind], label.split()[0])
            axis.set(xlabel=label, title=f"{kind} scores")
        line[0].set_ylabel("forward + backward, ns a score")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(axis: Any, results: list[Result], field: str) -> None:
    x = [getattr(r, field) for r in results]
    for name in results[0].costs:
        each = [(r.costs[name], 1e9 / (r.rows * r.classes)) for r in results]
        axis.plot(x, [c.median * to for c, to in each], marker="o", markersize=4, label=name)
        axis.fill_between(x, [c.low * to for c, to in each], [c.high * to for c, to in each], alpha=0.2)
    axis.set(xscale="log", yscale="log")
    axis.grid(alpha=0.3)
