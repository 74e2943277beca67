"""What a comparison found: the answer in sentences, cells of a table, and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lossmith.compare.methods import BASELINE, CEILING, METHODS, PATH, RULE, WEIGHTS
from lossmith.compare.metrics import Unit, unit_of
from lossmith.compare.plan import Plan
from lossmith.compare.statistics import Difference, Summary, difference

COLUMNS = ("method", "mean ± sd", "differs by", "95 % interval", "", "fit s (×)")
WORDS = {
    BASELINE: "logistic regression",
    RULE: "logistic regression with its decision rule",
    WEIGHTS: "logistic regression with class weights",
}
LIKELY = 0.8  # the chance of a gain from which on more repeats are worth their time
ADVICE = {BASELINE: "Stay with logistic regression", RULE: "Tune the decision rule", WEIGHTS: "Weigh the classes"}


class Answer(NamedTuple):
    """What to use, a sentence that says so, and what else there is to know; ``use`` is None where nothing can be said."""

    use: str | None
    text: str
    more: tuple[str, ...] = ()


def cells(summary: Summary, unit: Unit) -> tuple[str, ...]:
    """One row of the table, in the metric's unit."""
    spread = "" if math.isnan(summary.spread) else f" ± {_number(summary.spread, unit)}"
    found = summary.difference
    if summary.method == BASELINE:
        compared = ("", "baseline", "")
    else:
        if found.interval is not None:
            interval = _interval(found, unit)
        elif len(found.values) == 1:
            interval = ""
        else:  # an interval of no width would claim too much
            interval = "equal differences" if any(found.values) else "same scores"
        compared = (_signed(found.mean, unit), interval, found.verdict)
    time = f"{summary.seconds:.2f} ({summary.slowdown:.1f})"
    return (summary.method, f"{_number(summary.mean, unit)}{spread}", *compared, time)


def answer(plan: Plan, summaries: Sequence[Summary], ratio: float) -> Answer:
    """What to use, what it gains, and how sure that is.

    Args:
        plan: what was compared.
        summaries: of all methods.
        ratio: n_test / n_train.
    """
    found = {summary.method: summary for summary in summaries}
    base, unit = found[BASELINE], unit_of(plan.trained, plan.judge)
    if len(base.scores) == 1:
        return Answer(None, "A single split shows no spread: nothing can be said about the differences.")
    if len(found) == 1:
        return Answer(None, "Only logistic regression was fitted; name other methods to compare.")

    def over(method: str, opponent: str) -> Difference:
        return difference(found[method].scores, found[opponent].scores, ratio)

    use = BASELINE
    for name in (RULE, WEIGHTS):
        if name in found and over(name, BASELINE).verdict == "better" and found[name].mean > found[use].mean:
            use = name
    fair = RULE if RULE in found else BASELINE  # the opponent of training for the metric
    more = []
    if PATH in found and over(PATH, fair).verdict == over(PATH, use).verdict == "better":
        use = PATH
        what, gained = "Train for the metric", f", {_told(over(PATH, fair), unit)} over {WORDS[fair]}"
    else:
        what, gained = ADVICE[use], ""
        if use != BASELINE:
            gained = f", {_told(over(use, BASELINE), unit)} over {WORDS[BASELINE]}"
        if PATH in found:
            more.append(_of_path(found[PATH], over(PATH, fair), WORDS[fair], WORDS[use], unit))
    if use == BASELINE and RULE in found:
        more.append(f"With a decision rule logistic regression changes by {_told(over(RULE, BASELINE), unit)}.")
    rivals = [over(name, use) for name in (RULE, WEIGHTS, PATH) if name in found and name != use]
    if plan.repeats == 1 and any(not rival.verdict and (rival.chance or 0) > LIKELY for rival in rivals):
        more.append("One repeat leaves that open: --repeats 3 narrows the intervals.")
    for name in found:
        if (name == CEILING or name not in METHODS) and over(name, use).verdict == "better":
            reached = "Boosted trees reach" if name == CEILING else f"The loss {name} reaches"
            more.append(f"{reached} {_number(found[name].mean, unit)}, {_told(over(name, use), unit)} over that.")
    return Answer(use, f"{what}: {plan.reported} {_number(found[use].mean, unit)}{unit.name and ' %'}{gained}.", tuple(more))


def _of_path(path: Summary, gained: Difference, opponent: str, used: str, unit: Unit) -> str:
    if path.taken == 0:
        return "Training for the metric gained nothing sure on the inner folds of any split, so it was left out."
    where = f"taken in {path.taken} of {len(path.scores)} splits"
    sure = "no more than the splits themselves differ"
    if gained.verdict:
        sure = "which is worse" if gained.verdict == "worse" else f"not surely more than {used}"
    return f"Training for the metric, {where}, changes {opponent} by {_told(gained, unit)}: {sure}."


def _told(found: Difference, unit: Unit) -> str:
    """ "+2.10 points (95 % interval +0.40 to +3.80; probability of a gain 0.98)"."""
    points = " points" if unit.name else ""
    if found.interval is None or found.chance is None:
        return f"{_signed(found.mean, unit)}{points}"
    chance = "above 0.99" if found.chance > 0.99 else "below 0.01" if found.chance < 0.01 else f"{found.chance:.2f}"
    return f"{_signed(found.mean, unit)}{points} (95 % interval {_interval(found, unit)}; probability of a gain {chance})"


def _number(value: float, unit: Unit) -> str:
    return f"{unit.factor * value:.{unit.digits}f}".replace("-", "−")


def _signed(value: float, unit: Unit) -> str:
    text = f"{unit.factor * value:+.{unit.digits}f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def _interval(found: Difference, unit: Unit) -> str:
    return " to ".join(_signed(end, unit) for end in found.interval or ())


def as_json(plan: Plan, summaries: Sequence[Summary], found: Answer, report: Path) -> dict[str, Any]:
    """The outcome for programs: fractions, not percentages; seconds."""
    return {
        "settings": plan.settings | {"repeats": plan.repeats, "rows": len(plan.data.target)},
        "use": found.use,
        "answer": found.text,
        "more": found.more,
        "methods": [
            {
                "method": s.method,
                "mean": s.mean,
                "sd": None if math.isnan(s.spread) else s.spread,
                "difference": s.difference.mean,
                "interval": s.difference.interval,
                "chance": s.difference.chance,
                "verdict": s.difference.verdict,
                "seconds": s.seconds,
                "slowdown": s.slowdown,
                "diverged": s.diverged,
                "scores": s.scores,
            }
            for s in summaries
        ],
        "report": str(report),
    }
