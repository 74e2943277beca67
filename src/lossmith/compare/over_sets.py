"""Statistics of methods over many data sets: gains over a baseline, mean ranks, and the figure of critical differences.

A table of scores is a mapping: method -> data set -> mean score in points, where 100 is the best. A data set that a method
lacks, or whose score is nan, is missing. It is left out wherever that method is compared, and it is counted.

Needs ``pip install 'lossmith[compare,reproduce]'``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lossmith.errors import InputError, near

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Mapping[str, Mapping[str, float]]
Floats = npt.NDArray[np.float64]

ROPE = 0.5  # points; up to this a difference is of no practical worth. Fixed before any result was seen
MARGIN = 1.0  # points; sets with a larger difference are counted
TRIM = 0.1  # share of the differences that the trimmed mean drops at each end
ALPHA = 0.05
DIGITS = 9  # of scores and differences; digits behind them are rounding errors, which would break ties
LEAST_METHODS = 3  # for the figure; two are one row of the table
LEAST_SETS = 6  # with 5, the lowest p that the signed-rank test can give is 2 / 2⁵ > 0.05
DRAWS = 50_000  # from the posterior, which give the three probabilities; their error is below 0.005
SEED = 0
GAIN_COLUMNS = (
    "method",
    "sets",
    "missing",
    "mean",
    "trimmed",
    "median",
    "lowest",
    "highest",
    "> +1",
    "< −1",
    "p",
    "p (Holm)",
    "worse",
    "equal",
    "better",
)
NUMBER = re.compile(r"[<>]?[+−-]?\d[\d.]*(?: ?%)?(?: ± \d[\d.]*| \(\d[\d.]*\))?")
BLUE = "#3f7fbf"  # of a method without a colour of its own


@dataclass(frozen=True)
class Gain:
    """How much more points a method has than the baseline, over data sets.

    Args:
        method: its name.
        sets: number of data sets that both have.
        missing: number of those in the table that one of the two lacks.
        mean: of the differences.
        trimmed: their mean without the lowest and the highest 10 %.
        median: of them.
        lowest: of them.
        highest: of them.
        above: share of sets where the method has more than 1 point more.
        below: share of sets where it has more than 1 point less.
        p: of Wilcoxon's signed-rank test, two-sided; 1 where no set differs.
        adjusted: ``p`` after Holm's correction for the number of methods.
        worse: posterior probability that the likeliest outcome is: worse by more than ``ROPE`` points.
        equal: the same for: within ``ROPE`` points.
        better: the same for: better by more than ``ROPE`` points.
    """

    method: str
    sets: int
    missing: int
    mean: float
    trimmed: float
    median: float
    lowest: float
    highest: float
    above: float
    below: float
    p: float
    adjusted: float
    worse: float
    equal: float
    better: float


@dataclass(frozen=True)
class Ranks:
    """The mean ranks of methods, and which of them differ.

    Args:
        means: mean rank of each method, best first; 1 is the best rank.
        sets: the data sets that all methods have.
        missing: number of those that some method lacks; they are left out.
        p_values: of each pair of methods, after Holm's correction for the number of pairs; rows and columns as in ``means``.
    """

    means: dict[str, float]
    sets: tuple[str, ...]
    missing: int
    p_values: pd.DataFrame = field(compare=False)


def gains(scores: Scores, baseline: str) -> list[Gain]:
    r"""What each method gains over the baseline; the highest mean first.

    Three questions. Is there any difference? Wilcoxon's signed-rank test, with Holm's correction:
    the i-th lowest of m values becomes p₍ᵢ₎' = max_{j ≤ i} min(1, (m − j + 1) · p₍ⱼ₎). Does it matter? The Bayesian signed-rank
    test: its outcomes are that the mean of the differences on two random sets is below −``ROPE``, within, or above, and
    it gives the posterior probability that each is the likeliest. How large is it? Mean, trimmed mean, and median.

    Args:
        scores: method -> data set -> mean score in points.
        baseline: one of the methods.

    Returns:
        One ``Gain`` a method, without the baseline. The same scores give the same numbers, whatever the order of the sets.

    Raises:
        InputError: an unknown baseline, a score out of range, or a method that shares no data set with the baseline.

    Sources: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7 (2006); Holm, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979); Benavoli et al., "Time for a
    change: a tutorial for comparing multiple classifiers through Bayesian analysis", JMLR 18 (2017).
    """
    table = _checked(scores)
    if baseline not in table:
        raise InputError(f"baseline: there is no method {baseline!r}; {near(baseline, table)}")
    everything = set().union(*table.values())
    differences: dict[str, Floats] = {}
    for method, found in table.items():
        if method == baseline:
            continue
        differences[method] = _differences(found, table[baseline], found.keys() & table[baseline].keys())
        if not len(differences[method]):
            raise InputError(
                f"scores: {method!r}: expected a data set that {baseline!r} has too, got none; leave the method out, or run it"
            )
    p_values = [_signed_rank(d) for d in differences.values()]
    found_gains = [
        _gain(method, d, len(everything) - len(d), p, adjusted)
        for (method, d), p, adjusted in zip(differences.items(), p_values, _holm(p_values), strict=True)
    ]
    return sorted(found_gains, key=lambda gain: (-gain.mean, gain.method))


def mean_ranks(scores: Scores) -> Ranks:
    """Mean rank of each method over the data sets that all have, and p of each pair.

    On each set the best method has rank 1, and equal scores share the mean of their ranks. A pair is compared by Wilcoxon's
    signed-rank test of its scores, not by its ranks: what the test says of two methods does not depend on the others.
    Sources: Demšar, JMLR 7 (2006); Benavoli, Corani & Mangili, "Should we really use post-hoc tests based on mean-ranks?",
    JMLR 17 (2016).

    Args:
        scores: method -> data set -> mean score in points.

    Returns:
        The ranks, the best first, and the p-values after Holm's correction. A pair without any difference has p = 1.

    Raises:
        InputError: a score out of range, or no data set that all methods have.
    """
    table = _checked(scores)
    everything = set().union(*table.values())
    shared = sorted(everything.intersection(*table.values()))
    if not shared:
        fewest = min(table, key=lambda method: len(table[method]))
        raise InputError(
            f"scores: expected a data set that all methods have, got none; leave out {fewest!r}, which has the fewest"
        )
    columns = np.array([[found[name] for name in shared] for found in table.values()]).round(DIGITS)
    found_means = dict(zip(table, stats.rankdata(-columns, axis=0).mean(axis=1).tolist(), strict=True))
    means = {method: found_means[method] for method in sorted(table, key=lambda method: (found_means[method], method))}
    # scikit-posthocs has this loop, but there a pair without a difference makes all adjusted values nan.
    pairs = list(combinations(means, 2))
    p_values = pd.DataFrame(1.0, index=list(means), columns=list(means))
    adjusted = _holm([_signed_rank(_differences(table[a], table[b], shared)) for a, b in pairs])
    for (a, b), p in zip(pairs, adjusted, strict=True):
        p_values.loc[a, b] = p_values.loc[b, a] = p
    return Ranks(means, tuple(shared), len(everything) - len(shared), p_values)


def critical_difference(ranks: Ranks, colours: Mapping[str, str] | None = None) -> Figure:
    """The mean ranks on a line; a bar joins methods that do not differ at ``ALPHA``.

    A dot on a bar marks a method that belongs to it. A bar may pass over a method that does not: the test is one of scores, the
    place on the line is one of ranks. Source: Demšar, JMLR 7 (2006).

    Args:
        ranks: of ``mean_ranks``.
        colours: of the methods' lines; those without one are blue. More names than needed do no harm.

    Raises:
        InputError: fewer than 3 methods, or so few data sets that no pair could differ.
    """
    if len(ranks.means) < LEAST_METHODS:
        raise InputError(
            f"critical_difference: expected at least {LEAST_METHODS} methods, got {len(ranks.means)}; read the table of gains"
        )
    if len(ranks.sets) < LEAST_SETS:
        raise InputError(
            f"critical_difference: expected at least {LEAST_SETS} data sets that all methods have, got {len(ranks.sets)}; "
            "run more, or leave out methods that lack some"
        )
    diagram = _package("scikit_posthocs").critical_difference_diagram
    from matplotlib import rc_context, rcParams
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from lossmith.compare.plots import STYLE  # needs scikit-learn, which the statistics do not

    best, worst = min(ranks.means.values()), max(ranks.means.values())
    low, high = math.floor(best), math.ceil(worst)
    if low == high:  # all ranks are equal
        low, high = low - 1, high + 1
    margin = 0.03 * (high - low)
    sides = {"right": low - margin, "left": high + margin}  # by how the text is aligned
    with rc_context({"font.size": STYLE["font.size"]}):
        ink = rcParams["text.color"]
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        axes.set_xlim(low - margin, high + margin)
        drawn: dict[str, list[Any]] = diagram(
            ranks.means,
            ranks.p_values,
            alpha=ALPHA,
            ax=axes,
            label_fmt_left="{label} ({rank:.2f}) ",
            label_fmt_right=" ({rank:.2f}) {label}",
            label_props={"parse_math": False},
            marker_props={"s": 36},
            elbow_props={"lw": 1.4},
            crossbar_props={"color": ink, "linewidth": 2.6, "marker": "o", "ms": 4.5, "solid_capstyle": "round"},
            color_palette={method: (colours or {}).get(method, BLUE) for method in ranks.means},
        )
        for label, elbow in zip(drawn["labels"], drawn["elbows"], strict=True):
            label.set_color(ink)  # a line's colour may be too light to read
            # At the ends of the axis: from inside, how far a text stands out depends on the axis' length, and it would be cut.
            edge = sides[label.get_ha()]
            label.set_x(edge)
            elbow.set_xdata([edge, *elbow.get_xdata()[1:]])
        for bar in (line for lines in drawn["crossbars"] for line in lines):
            bar.set_xdata(sorted(bar.get_xdata()))  # they come in the order of a set, which differs from run to run
        lowest = min(label.get_position()[1] for label in drawn["labels"])
        axes.set_ylim(lowest - 0.6, 0.6)
        axes.xaxis.set_label_position("top")
        axes.set_xlabel(f"mean rank over {len(ranks.sets)} data sets; 1 is the best", labelpad=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=14, integer=True))
        bars = "bar: no difference found" if drawn["crossbars"] else "every two methods differ"
        figure.supxlabel(f"{bars} at α = {ALPHA:g} (signed-rank test, Holm)", fontsize="small")
        letters = sum(max(len(x.get_text()) for x in drawn["labels"] if x.get_ha() == side) for side in sides)
        figure.set_size_inches(max(8.5, 4 + 0.09 * letters), 1.1 + 0.27 * (0.6 - lowest))
    return figure


def gain_table(found: Iterable[Gain]) -> list[tuple[str, ...]]:
    """Cells of text, one row a gain; the columns are ``GAIN_COLUMNS``."""
    return [
        (
            gain.method,
            str(gain.sets),
            str(gain.missing),
            *(signed(value) for value in (gain.mean, gain.trimmed, gain.median, gain.lowest, gain.highest)),
            f"{gain.above:.0%}",
            f"{gain.below:.0%}",
            *(_bounded(value, 3) for value in (gain.p, gain.adjusted)),
            *(_bounded(value, 2) for value in (gain.worse, gain.equal, gain.better)),
        )
        for gain in found
    ]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A table in Markdown; columns of numbers are aligned to the right.

    Args:
        columns: their names.
        rows: cells of text, as many as columns.

    Raises:
        InputError: a row of another length.

    >>> print(markdown_table(["loss", "mean"], [["hinge", "+1.20"], ["a|b", "−10"]]))
    | loss  |  mean |
    | :---- | ----: |
    | hinge | +1.20 |
    | a\|b  |   −10 |
    """
    table = [[_cell(text) for text in columns]]
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise InputError(f"rows: row {number}: expected {len(columns)} cells, got {len(row)}; pass one a column")
        table.append([_cell(text) for text in row])
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(columns))]
    numeric = [_is_numeric([row[i] for row in table[1:]]) for i in range(len(columns))]
    rule = ["-" * (width - 1) + ":" if right else ":" + "-" * (width - 1) for width, right in zip(widths, numeric, strict=True)]
    lines = [
        [text.rjust(width) if right else text.ljust(width) for text, width, right in zip(row, widths, numeric, strict=True)]
        for row in table
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def half(name: str) -> int:
    """0 or 1: which half of the data sets a set is in; choose on half 0, confirm on half 1.

    The last bit of the SHA-256 of the name, which no later set, order or random number changes.

    >>> half("iris"), half("wine")
    (1, 0)
    """
    return hashlib.sha256(name.encode()).digest()[-1] & 1


def _checked(scores: Scores) -> dict[str, dict[str, float]]:
    """The scores without nan."""
    table = {
        method: {name: round(float(score), DIGITS) for name, score in found.items() if not math.isnan(score)}
        for method, found in scores.items()
    }
    highest = 0.0
    for method, found in table.items():
        for name, score in found.items():
            if not abs(score) <= 100:
                raise InputError(f"scores: {method!r} on {name!r}: expected points up to 100, got {score:g}; check the score")
            highest = max(highest, abs(score))
    if not any(table.values()):
        raise InputError("scores: expected at least one method with a data set, got none; pass method -> data set -> points")
    # ROPE and MARGIN are points: fractions would all count as equal, and nobody would see why.
    if 0 < highest <= 1:
        raise InputError(f"scores: expected points, from 0 to 100, got at most {highest:g}; multiply by 100")
    return table


def _differences(found: Mapping[str, float], base: Mapping[str, float], names: Iterable[str]) -> Floats:
    """Sorted, so that sums and random draws do not depend on the order of the sets."""
    return np.sort(np.array([found[name] - base[name] for name in names], dtype=np.float64).round(DIGITS))


def _signed_rank(differences: Floats) -> float:
    # scipy divides 0 by 0 where no difference is left.
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def _holm(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    adjusted: list[float] = _package("statsmodels.stats.multitest").multipletests(p_values, method="holm")[1].tolist()
    return adjusted


def _gain(method: str, differences: Floats, missing: int, p: float, adjusted: float) -> Gain:
    worse, equal, better = _package("baycomp").SignedRankTest.probs(
        np.zeros_like(differences), differences, ROPE, nsamples=DRAWS, random_state=SEED
    )
    return Gain(
        method=method,
        sets=len(differences),
        missing=missing,
        mean=float(differences.mean()),
        trimmed=float(stats.trim_mean(differences, TRIM)),
        median=float(np.median(differences)),
        lowest=float(differences[0]),
        highest=float(differences[-1]),
        above=float((differences > MARGIN).mean()),
        below=float((differences < -MARGIN).mean()),
        p=p,
        adjusted=adjusted,
        worse=float(worse),
        equal=float(equal),
        better=float(better),
    )


def _package(name: str) -> Any:
    """A module of the extra ``reproduce``, loaded where it is used: some take seconds."""
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0].replace("_", "-")
        raise InputError(f"over_sets: expected the package {package}, found none; pip install 'lossmith[reproduce]'") from None


def signed(value: float) -> str:
    """Points, to two digits, with the sign of print; "–" for nan."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.2f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def _bounded(value: float, digits: int) -> str:
    """A probability; one that is not 0 or 1 is not written as if it were."""
    least = 10.0**-digits
    if value < least:
        return f"<{least:.{digits}f}"
    return f">{1 - least:.{digits}f}" if 1 - least < value < 1 else f"{value:.{digits}f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", r"\\").replace("|", r"\|")


def _is_numeric(cells: Sequence[str]) -> bool:
    filled = [text for text in cells if text]
    return bool(filled) and all(NUMBER.fullmatch(text) for text in filled)
