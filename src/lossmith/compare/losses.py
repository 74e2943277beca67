"""The losses that ``compare`` trains by SGD: those of the catalogue, and that of the metric asked for."""

from __future__ import annotations

from typing import Any

from lossmith.catalogue import CANDIDATES, METRIC_LOSS, Candidate
from lossmith.compare.methods import METHODS, Method
from lossmith.estimators.torch_losses import torch_loss

NAMES = (*CANDIDATES, METRIC_LOSS)


def loss_of(name: str, metric: Any) -> Candidate:
    """The loss of a name in ``NAMES``, for a metric as ``MetricClassifierCV`` takes it."""
    if name != METRIC_LOSS:
        return CANDIDATES[name]
    return Candidate(
        "the loss of the metric itself: Gumbel noise, q tuned",
        "#6b8e23",
        lambda classes, s: torch_loss(metric, classes, q=s["q"]),
        grid={"q": (0.5, 1.0, 0.0)},
    )


def described(name: str) -> Method | Candidate:
    """The method or the loss of a name, for its summary and its colour."""
    return METHODS[name] if name in METHODS else loss_of(name, "accuracy")
