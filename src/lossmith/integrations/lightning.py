"""The losses under Lightning's ``Trainer``: a schedule of their dials. The losses themselves need nothing more."""

from __future__ import annotations

from typing import Any

from torch import nn

from lossmith.errors import need
from lossmith.integrations.dials import Dials, Ends
from lossmith.training.schedules import Shape

need("lightning", "lightning")
from lightning.pytorch import Callback  # noqa: E402


class LossSchedule(Callback):
    """Moves the dials of a loss over the steps of a training: likelihood first, the metric after.

    Args:
        loss: the loss that the module trains with.
        q, scale: (start, end) of each dial that moves, as in ``training.QSchedule`` and ``ScaleSchedule``.
        shape: "linear", "cosine" or, for dials above 0, "exponential".
        steps: optimiser steps from start to end. None: those of the training, which must then have an end.

    Raises:
        TypeError, ValueError: no dial, as in the schedules, or, at the start, a training without an end.

    The dials depend on the number of the step alone, so that a training goes on from a checkpoint as if it had not stopped. The
    loss moves with them: stop early, and choose a checkpoint, by a metric. Lightning counts the steps of all optimisers: with
    several, pass ``steps``.

    >>> from lossmith import AccuracyLoss
    >>> loss = AccuracyLoss()
    >>> callback = LossSchedule(loss, q=(1.0, 0.0))  # Trainer(…, callbacks=[callback])
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        q: Ends | None = None,
        scale: Ends | None = None,
        shape: Shape = "linear",
        steps: int | None = None,
    ) -> None:
        self.dials = Dials(loss, q, scale, shape)
        self.steps = steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        steps = trainer.estimated_stepping_batches if self.steps is None else self.steps
        if not 0 < steps < float("inf"):
            raise ValueError(f"steps: expected a training with an end, got {steps}; pass max_epochs, or steps=…")
        self.dials.start(int(steps))
        self.dials.go_to(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.dials.go_to(trainer.global_step)
