"""What the last layer and a loss cost in one, by chunks of rows, beside the two apart and beside torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lossmith.bench.memory import peak_memory
from lossmith.bench.timing import Times, take_turns
from lossmith.losses import AccuracyLoss, LinearAccuracyLoss

ROWS, HIDDEN, CLASSES = 4096, 512, 50_000
SECONDS = 1.0
BASE = "linear, then cross_entropy"


class Cost(NamedTuple):
    """Of one way; times in seconds, memory in bytes: the most held at once, gradients included."""

    times: Times
    memory: float


def measure(rows: int, hidden: int, classes: int, noise: str, show: Callable[[int], None]) -> dict[str, Cost]:
    """Each way, forward and backward into input, weight and bias, taking turns."""
    made = torch.Generator().manual_seed(classes)
    input = torch.randn(rows, hidden, generator=made).requires_grad_()
    layer = LinearAccuracyLoss(hidden, classes, noise=noise)
    loss, weight, bias = AccuracyLoss(noise), layer.linear.weight, layer.linear.bias
    target = torch.randint(0, classes, (rows,), generator=made)
    leaves = input, weight, bias
    ways: dict[str, Callable[[], Tensor]] = {
        BASE: lambda: F.cross_entropy(F.linear(input, weight, bias), target),
        f"linear, then AccuracyLoss({noise!r})": lambda: loss(F.linear(input, weight, bias), target),
        f"LinearAccuracyLoss(noise={noise!r})": lambda: layer(input, target),
    }
    if hasattr(F, "linear_cross_entropy"):  # torch 2.13
        ways["torch linear_cross_entropy"] = lambda: F.linear_cross_entropy(input, weight, target, linear_bias=bias)
        if hasattr(torch.nn, "LinearCrossEntropyOptions"):
            options = torch.nn.LinearCrossEntropyOptions()
            ways["the same, by chunks"] = lambda: F.linear_cross_entropy(
                input, weight, target, linear_bias=bias, options=options
            )
    calls = {name: partial(_run, way, leaves) for name, way in ways.items()}
    memory = {}
    for done, (name, call) in enumerate(calls.items()):
        call()
        _clear(leaves)
        memory[name] = peak_memory(call)
        show(done + 1)
    times = take_turns(calls, SECONDS)
    return {name: Cost(times[name], memory[name]) for name in calls}


def _run(way: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> None:
    _clear(leaves)
    way().backward()


def _clear(leaves: tuple[Tensor, ...]) -> None:
    for leaf in leaves:
        leaf.grad = None


def table(costs: dict[str, Cost]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of what the command prints; ratios to the first way."""
    base = next(iter(costs.values())).times.median
    rows: list[tuple[str, ...]] = [
        (name, str(cost.times), f"{cost.times.median / base:.2f}", f"{cost.memory / 1e6:.0f}") for name, cost in costs.items()
    ]
    return ("way", "milliseconds", "ratio", "megabytes"), rows


def title(rows: int, hidden: int, classes: int) -> str:
    """What the table shows."""
    threads = torch.get_num_threads()
    return f"last layer and loss, forward + backward, {rows:,} × {hidden:,} → {classes:,} classes, {threads} threads"


def as_json(costs: dict[str, Cost]) -> dict[str, Any]:
    """The outcome for ``--json``: seconds and bytes."""
    results = {name: {**cost.times._asdict(), "memory": cost.memory} for name, cost in costs.items()}
    return {"threads": torch.get_num_threads(), "results": results}
