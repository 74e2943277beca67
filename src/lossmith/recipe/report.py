"""What ``check_recipe`` found, in words, as a row of a table, and as a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from lossmith.recipe.probe import Array, Task


@dataclass(frozen=True, eq=False)
class RecipeReport:
    """A loss held against the recipe; leads are in units of the scores, losses and slopes a sample.

    Attributes:
        name: of the loss.
        task, num_classes: what it was fed.
        leads, values, slopes: the curve, (n,) each: t, L(t) and dL/dt. Where L is inf the slope is nan.
        error_factor: the largest c with L ≥ c · (0-1 error) at all leads; 0 if there is none. From 1 on L bounds the error.
        kinks: leads where the slope jumps.
        jumps: leads where the loss itself jumps.
        error_limit: c if L(α t) → c · (0-1 error) as α → ∞, otherwise None.
        noise, noise_scale: the noise whose expected error 1 − p has this slope at sure right answers, or None.
        slope_ratio: dL/dt over d(1 − p)/dt there: under that noise, or if none matches, at the end of the tail under the loss's
            own noise and scale, or Gumbel noise of its scale or 1; nan if there is no tail.
        flat_from: lead beyond which a right answer has no slope at all, or None.
        rises_from: lead beyond which a right answer costs more again, or None.
        growth: on sure wrong answers: "bounded", "logarithmic", "linear", "quadratic", "power", "exponential" (and anything
            faster than a power), "infinite" (from some lead on) or "falling".
        growth_exponent: k if L grows as t^k, 0 for a logarithm.
        bound: the limit, if growth is "bounded".
        infinite_from: how far behind the target must be for the loss to be inf in float64, or None.
        pull_vanishes: whether the slope at sure wrong answers is below a hundredth of the steepest.
    """

    name: str
    task: Task
    num_classes: int
    leads: Array = field(repr=False)
    values: Array = field(repr=False)
    slopes: Array = field(repr=False)
    error_factor: float
    kinks: tuple[float, ...]
    jumps: tuple[float, ...]
    error_limit: float | None
    noise: str | None
    noise_scale: float | None
    slope_ratio: float
    flat_from: float | None
    rises_from: float | None
    growth: str
    growth_exponent: float
    bound: float | None
    infinite_from: float | None
    pull_vanishes: bool

    @property
    def smooth(self) -> bool:
        """Whether neither the loss nor its slope jumps."""
        return not (self.kinks or self.jumps)

    @property
    def unbounded(self) -> bool:
        """Whether sure wrong answers cost more and more."""
        return self.growth not in ("bounded", "falling")

    @property
    def follows(self) -> bool:
        """Whether all three parts of the recipe hold."""
        return not self.misses

    @property
    def misses(self) -> tuple[str, ...]:
        """The parts of the recipe that do not hold, in a few words each."""
        stands_for_error = self.error_factor > 0 or self.error_limit is not None
        parts = (
            ("not smooth", self.smooth),
            ("no bound or approximation of the error", stands_for_error),
            ("no agreement where it is surely right", self.noise is not None),
            ("bounded where it is surely wrong", self.unbounded),
        )
        return tuple(text for text, holds in parts if not holds)

    @property
    def verdict(self) -> str:
        """One line on the whole."""
        return "follows the recipe" if self.follows else "falls short of the recipe: " + ", ".join(self.misses)

    @property
    def error_words(self) -> str:
        """What the loss has to do with the 0-1 error."""
        if self.jumps:
            parts = [f"jumps at a lead of {_list(self.jumps)}"]
        else:
            parts = [f"kink at a lead of {_list(self.kinks)}" if self.kinks else "smooth"]
        bounds = self.error_factor > 0
        parts.append(
            f"an upper bound of {_times(self.error_factor)}the 0-1 error" if bounds else "bounds no multiple of the error"
        )
        if self.error_limit is not None:
            parts.append(f"tends to {_times(self.error_limit)}the 0-1 error as the scores grow")
        return "; ".join(parts)

    @property
    def right_words(self) -> str:
        """What the loss does with sure right answers."""
        if self.rises_from is not None:
            return f"charges them again, from a lead of {_n(self.rises_from)} on"
        if self.noise is not None and self.noise_scale is not None:
            error = f"{_times(self.slope_ratio)}the expected error"
            return f"agrees with {error} under {self.noise} noise of scale {_n(self.noise_scale)}"
        if self.flat_from is not None:
            return "flat" if self.flat_from == 0 else f"flat beyond a lead of {_n(self.flat_from)}"
        if math.isnan(self.slope_ratio):
            return "agrees with no expected error"
        if 1e-3 < self.slope_ratio < 1e3:
            return f"agrees with no expected error: far out the ratio of slopes is {_n(self.slope_ratio)} and moves on"
        return f"agrees with no expected error: its slope dies out too {'slowly' if self.slope_ratio > 1 else 'fast'}"

    @property
    def wrong_words(self) -> str:
        """What the loss does with sure wrong answers."""
        if self.growth == "bounded":
            text = f"stops at {_n(self.bound or 0.0)}" + (", and pulls no more" if self.pull_vanishes else "")
        elif self.growth == "falling":
            text = "rewards them: the loss falls without bound"
        elif self.growth == "infinite":
            return f"infinite from {_n(self.infinite_from or 0.0)} behind"
        elif self.growth == "power":
            text = f"grows as lead^{_n(self.growth_exponent)}, without bound"
        else:
            adverb = {"logarithmic": "logarithmically", "quadratic": "quadratically"}.get(self.growth, "")
            adverb = adverb or {"linear": "linearly", "exponential": "exponentially or faster"}[self.growth]
            text = f"grows {adverb}, without bound" + (", though its pull fades" if self.pull_vanishes else "")
        return text + (f"; inf in float64 from {_n(self.infinite_from)} behind" if self.infinite_from is not None else "")

    def __str__(self) -> str:
        rows = (("error", self.error_words), ("surely right", self.right_words), ("surely wrong", self.wrong_words))
        return "\n".join([f"{self.name} {self.verdict}", *(f"  {part:<14}{text}" for part, text in rows)])

    def plot(self, path: str | Path) -> Path:
        """Draw loss, 0-1 error and slope over the lead into a file; its ending (.png, .svg, .pdf) says the format.

        Raises:
            ImportError: matplotlib, of the extra [compare], is not installed.
        """
        from lossmith.recipe.figure import figure  # matplotlib takes half a second, and is not of the core

        path = Path(path)
        figure(self).savefig(path, dpi=160)
        return path


def _n(value: float) -> str:
    """Three digits, with a true minus."""
    return f"{value + 0.0:.3g}".replace("-", "−")


def _times(factor: float) -> str:
    return "" if math.isclose(factor, 1, rel_tol=5e-3) else f"{_n(factor)} × "


def _list(leads: tuple[float, ...]) -> str:
    return ", ".join(_n(lead) for lead in leads)
