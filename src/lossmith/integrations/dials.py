"""A loss's dials as functions of the step's number, for the callbacks of trainers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lossmith.training import QSchedule, ScaleSchedule
from lossmith.training.schedules import Shape

Ends = tuple[float, float]


class Dials:
    """The schedules of one loss.

    Args:
        loss: whose dials move.
        q, scale: (start, end) of each that moves, as in ``training.QSchedule`` and ``ScaleSchedule``.
        shape: of the way between.

    Raises:
        TypeError, ValueError: no dial, or as in the schedules.
    """

    def __init__(self, loss: nn.Module, q: Ends | None, scale: Ends | None, shape: Shape) -> None:
        if q is None and scale is None:
            raise ValueError("q, scale: expected (start, end) of one of them, got none")
        for name, ends in (("q", q), ("scale", scale)):
            if ends is not None and not (isinstance(ends, Sequence) and len(ends) == 2):
                raise ValueError(f"{name}: expected (start, end), got {ends!r}; a dial that stays is the loss's own argument")
        self.loss, self.q, self.scale, self.shape = loss, q, scale, shape
        self.start(1)  # so that what is wrong is said before the training

    def start(self, steps: int) -> None:
        """A training of so many steps begins."""
        self.schedules: list[QSchedule | ScaleSchedule] = []
        if self.q is not None:
            self.schedules.append(QSchedule(self.loss, *self.q, steps, shape=self.shape))
        if self.scale is not None:
            self.schedules.append(ScaleSchedule(self.loss, *self.scale, steps, shape=self.shape))

    def go_to(self, step: int) -> None:
        """So many steps have been taken, whether in this run or before a checkpoint."""
        for schedule in self.schedules:
            schedule.load_state_dict({**schedule.state_dict(), "taken": step})
