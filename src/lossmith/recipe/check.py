"""``check_recipe`` and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from lossmith import noise as noises
from lossmith.noise import Noise
from lossmith.recipe import reading
from lossmith.recipe.probe import Loss, Probe, Task, grid
from lossmith.recipe.report import RecipeReport


def check_recipe(loss: Loss, *, task: Task = "multiclass", num_classes: int = 2, name: str | None = None) -> RecipeReport:
    r"""Whether a loss does what a good one should: three parts, read from its values and its slopes alone.

    A good loss (i) is a smooth upper bound or approximation of the error, (ii) agrees to first order with the expected error
    where the model is surely right, and (iii) grows without bound where it is surely wrong. The loss is fed batches in which
    every target leads all its rivals by the same t, balanced over the classes, t from −1000 to 1000 scales; so its value
    is a function L(t), which should be about 0-1 error = [t < 0] of a whole batch at once:

        (i)    c = min over t < 0 of L(t), if L ≥ 0; jumps of L and dL/dt, pinned down by halving; L(−∞) and L(∞)
        (ii)   dL/dt over d(1 − p)/dt for t → ∞, with p = P(z_y + σ ε_y > z_j + σ ε_j for all j): constant or not. The noise
               and σ are those the loss states (``loss.noise``, ``loss.scale``), if they fit; else σ is fitted, and if no noise
               is stated, each in ``lossmith.noise`` but the uniform one is tried
        (iii)  the exponent of dL/d log|t|, from a decade of t

    What is found holds along this line, and to grid and float64: with more than two classes all rivals are level, and a bound
    may be lower where they are not.

    Args:
        loss: maps (scores, target) to a scalar, in float64, the mean over the batch; a module or a function.
        task: "multiclass" feeds scores (C, C), ±t/2, and class indices (C,); "binary" scores (2,), ±t, and float targets 1, 0;
            "multilabel" scores (2, L), ±t, and float targets. In the last two a score's rival is 0, as for a sigmoid; a
            positive and a negative are 2t apart.
        num_classes: C ≥ 2, or L.
        name: for the report; None takes the function's name or the module's text.

    Returns:
        A ``RecipeReport``: print it, or ``.plot(path)``.

    Raises:
        ValueError: the loss cannot be called so, or gives no scalar, no gradient, NaN, or other values the second time.
        TypeError: the loss is no callable, or returns no tensor.

    Cost: some 400 forward and backward passes of a batch of C.
    Source: J. Su, "How to train your accuracy?" (kexue.fm, post 9098, 2022), for the recipe.

    >>> print(check_recipe(nn.functional.cross_entropy))
    cross_entropy follows the recipe
      error         smooth; an upper bound of 0.693 × the 0-1 error
      surely right  agrees with the expected error under gumbel noise of scale 1
      surely wrong  grows linearly, without bound
    """
    probe = Probe(loss, task, num_classes)
    unit = _stated_scale(loss)
    leads = grid(unit)
    values, slopes = probe.curve(leads)
    if not np.isfinite(values[leads > 0]).all():
        raise ValueError("loss: expected finite numbers where answers are right, got inf; check its sign and its arguments")
    kinks, jumps = reading.breaks(probe, leads, values, slopes, unit)
    growth = reading.growth(probe, leads, values, slopes, unit)
    rises = reading.rises_from(leads, values)
    found, ratio = None, math.nan
    if rises is None:
        rivals = num_classes if task == "multiclass" else 2
        found, ratio = reading.match(probe, leads, slopes, rivals, _stated_noise(loss), unit)
    last = float(values[-1])
    tends = growth.bound is not None and growth.bound > 0 and abs(last) <= 1e-3 * growth.bound
    factor = float(values[leads < 0].min())
    if values.min() < -1e-12 or factor < 1e-6 * abs(probe(-unit)[0]):  # a loss that starts from 0 bounds no error
        factor = 0.0
    return RecipeReport(
        name=name or _name(loss),
        task=task,
        num_classes=num_classes,
        leads=leads,
        values=values,
        slopes=slopes,
        error_factor=factor,
        kinks=kinks,
        jumps=jumps,
        error_limit=growth.bound if tends else None,
        noise=found.noise if found else None,
        noise_scale=found.scale if found else None,
        slope_ratio=found.ratio if found else ratio,
        flat_from=reading.flat_from(probe, leads, slopes),
        rises_from=rises,
        growth=growth.order,
        growth_exponent=growth.exponent,
        bound=growth.bound,
        infinite_from=growth.infinite_from,
        pull_vanishes=growth.pull_vanishes,
    )


def table(losses: Mapping[str, Loss], *, task: Task = "multiclass", num_classes: int = 2) -> str:
    """``check_recipe`` of each loss as a Markdown table, one row a loss, in the order given.

    >>> print(table({"cross-entropy": nn.functional.cross_entropy}))
    | loss | error | surely right | surely wrong | recipe |
    | --- | --- | --- | --- | --- |
    | cross-entropy | smooth; an upper bound of 0.693 × the 0-1 error | agrees with ... | yes |
    """
    lines = ["| loss | error | surely right | surely wrong | recipe |", "| --- | --- | --- | --- | --- |"]
    for name, loss in losses.items():
        report = check_recipe(loss, task=task, num_classes=num_classes, name=name)
        parts = (name, report.error_words, report.right_words, report.wrong_words, "yes" if report.follows else "no")
        lines.append("| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |")
    return "\n".join(lines)


def _stated_scale(loss: Any) -> float:
    """The scale the loss states, if it is one positive number; otherwise 1."""
    scale: Any = getattr(loss, "scale", None)
    if isinstance(scale, Tensor) and scale.numel() == 1:
        scale = float(scale.detach())
    if isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < math.inf:
        return float(scale)
    return 1.0


def _stated_noise(loss: Any) -> Noise | None:
    noise = getattr(loss, "noise", None)
    return noise if isinstance(noise, Noise) else noises.NOISES.get(noise) if isinstance(noise, str) else None


def _name(loss: Any) -> str:
    if isinstance(loss, nn.Module):
        text = repr(loss)
        return text if len(text) < 100 and "\n" not in text else type(loss).__name__
    return getattr(loss, "__name__", type(loss).__name__)
