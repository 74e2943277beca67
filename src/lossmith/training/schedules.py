"""Schedules of a loss's dials, used like learning-rate schedulers."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from lossmith.errors import near

Shape = Literal["exponential", "linear", "cosine"]


class _Schedule:
    """Moves one attribute of a loss, ``dial``, from start to end; the subclasses say which, and whether it must be > 0."""

    dial: ClassVar[str]
    positive: ClassVar[bool]

    def __init__(self, loss: Any, start: float, end: float, steps: int, *, shape: Shape) -> None:
        if not hasattr(loss, self.dial):
            raise TypeError(f"loss: expected an object with an attribute {self.dial}, got {type(loss).__name__}")
        if isinstance(getattr(loss, self.dial), Tensor):
            what = f"loss.{self.dial}"
            raise TypeError(f"{what}: expected a number to be scheduled, got a tensor; a learned {self.dial} has no schedule")
        self.loss = loss
        self._set(start, end, steps, shape)
        self.taken = 0
        self._apply()

    def step(self) -> None:
        """One step further; sets the loss's dial."""
        self.taken += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: plain numbers and strings."""
        numbers = {"start": self.start, "end": self.end, "steps": self.steps, "taken": self.taken}
        return {"dial": self.dial, "shape": self.shape, **numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, with its start, end and steps; sets the loss's dial.

        Raises:
            ValueError: the state has other entries, moves another dial or has another shape. Then nothing is changed.
        """
        expected = self.state_dict()
        if set(state) != set(expected):
            raise ValueError(
                f"state: expected the entries {sorted(expected)}, got {sorted(state)}; pass what state_dict() gave"
            )
        for name in ("dial", "shape"):
            if state[name] != expected[name]:
                remedy = "make the schedule as the one that was saved"
                raise ValueError(
                    f"state: expected {name}={expected[name]!r} as in this schedule, got {state[name]!r}; {remedy}"
                )
        taken = _whole("taken", state["taken"], 0)
        self._set(state["start"], state["end"], state["steps"], self.shape)
        self.taken = taken
        self._apply()

    def _set(self, start: float, end: float, steps: int, shape: Shape) -> None:
        if shape not in get_args(Shape):
            raise ValueError(f"shape: unknown name {shape!r}; {near(str(shape), get_args(Shape))}")
        for name, value in (("start", start), ("end", end)):
            above = " > 0" if self.positive or shape == "exponential" else ""
            if not math.isfinite(value) or (above and value <= 0):
                remedy = "" if self.positive or value > 0 else "; ratios stay above 0, shape='linear' and 'cosine' do not"
                raise ValueError(f"{name}: expected a finite {self.dial}{above}, got {value}{remedy}")
        steps = _whole("steps", steps, 1)
        self.start, self.end, self.steps, self.shape = float(start), float(end), steps, shape

    def _apply(self) -> None:
        setattr(self.loss, self.dial, self._value())

    def _value(self) -> float:
        fraction = self.taken / max(self.steps - 1, 1)
        if fraction >= 1:
            return self.end  # to the last digit
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** fraction
        share = fraction if self.shape == "linear" else (1 - math.cos(math.pi * fraction)) / 2
        return self.start + (self.end - self.start) * share


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}") from None
    if number < least:
        raise ValueError(f"{name}: expected a whole number ≥ {least}, got {number}")
    return number


class ScaleSchedule(_Schedule):
    r"""Moves a loss's ``scale`` from start to end, exponentially unless asked otherwise.

    With f = min(t / (steps − 1), 1) after t calls of ``step()``:

        exponential  start · (end / start)^f
        linear       start + (end − start) · f
        cosine       start + (end − start) · (1 − cos πf) / 2

    Used like a learning-rate scheduler: the constructor sets the start, ``step()`` after each optimiser step goes on, and
    after ``steps − 1`` calls the scale stays at ``end``. (EXACT's code divides by ``steps``, and so never reaches the end.)

    Args:
        loss: any object with an attribute ``scale``, such as ``AccuracyLoss``.
        start: first scale, > 0, in units of the scores.
        end: last scale, > 0; above ``start`` the scale rises.
        steps: how many steps the training has, ≥ 1.
        shape: "exponential", "linear" or "cosine".

    Raises:
        ValueError: a number out of range, or an unknown shape.
        TypeError: the loss has no scale, or one that is a tensor; ``steps`` is no whole number.

    >>> from lossmith import AccuracyLoss
    >>> loss = AccuracyLoss()
    >>> schedule = ScaleSchedule(loss, start=10.0, end=0.1, steps=3)
    >>> scales = [loss.scale]
    >>> for _ in range(3):
    ...     schedule.step()
    ...     scales.append(round(loss.scale, 6))
    >>> scales
    [10.0, 1.0, 0.1, 0.1]
    """

    dial = "scale"
    positive = True

    def __init__(self, loss: Any, start: float, end: float, steps: int, *, shape: Shape = "exponential") -> None:
        super().__init__(loss, start, end, steps, shape=shape)


class QSchedule(_Schedule):
    r"""Moves a loss's ``q`` from start to end, linearly unless asked otherwise; the shapes are those of ``ScaleSchedule``.

    From q = 1 to 0 a training starts as cross-entropy, which pulls on wrong answers however far they are, and ends on
    the metric itself, which leaves alone what is lost.

    Args:
        loss: any object with an attribute ``q``, such as ``AccuracyLoss``.
        start: first q, a pure number.
        end: last q.
        steps: how many steps the training has, ≥ 1; after ``steps − 1`` calls of ``step()`` q stays at ``end``.
        shape: "linear", "cosine" or, if both ends are > 0, "exponential".

    Raises:
        ValueError: a number that is not finite, an unknown shape, or an end ≤ 0 with shape="exponential".
        TypeError: the loss has no q, or one that is a tensor; ``steps`` is no whole number.

    Source: of the ramp, for a loss between cross-entropy and 1 − p, arXiv 2302.13344.

    >>> from lossmith import AccuracyLoss
    >>> loss = AccuracyLoss(q=1.0)
    >>> schedule = QSchedule(loss, start=1.0, end=0.0, steps=3)
    >>> schedule.step()
    >>> loss.q
    0.5
    """

    dial = "q"
    positive = False

    def __init__(self, loss: Any, start: float, end: float, steps: int, *, shape: Shape = "linear") -> None:
        super().__init__(loss, start, end, steps, shape=shape)
