"""Statistics over many data sets: by hand, by brute force, and by scipy, statsmodels and scikit-posthocs."""

import io
import itertools
import math
import re
import sys

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lossmith.compare import over_sets
from lossmith.compare.over_sets import (
    GAIN_COLUMNS,
    critical_difference,
    gain_table,
    gains,
    half,
    markdown_table,
    mean_ranks,
)
from lossmith.compare.plots import svg
from lossmith.errors import InputError


def column(values, names=None):
    return dict(zip(names or [f"set-{i}" for i in range(len(values))], map(float, values), strict=True))


def random_scores(methods, sets, seed=0, step=0.4, noise=0.8):
    """Methods that differ by ``step`` on average, with noise."""
    draw = np.random.default_rng(seed)
    level = draw.uniform(50, 90, sets)
    return {f"method-{j}": column(level + step * j + draw.normal(0, noise, sets)) for j in range(methods)}


def brute_signed_rank(differences):
    """p of the signed-rank test: the share of all choices of signs with a sum of ranks as far from its mean."""
    d = np.array([value for value in differences if value])
    ranks = stats.rankdata(abs(d))
    far = abs(ranks[d > 0].sum() - ranks.sum() / 2)
    sums = [ranks[list(signs)].sum() for signs in itertools.product([False, True], repeat=len(d))]
    return np.mean([abs(total - ranks.sum() / 2) >= far - 1e-9 for total in sums])


# Ten differences from the baseline, all absolute values distinct: only −0.2 and −1.5 are negative.
BASE = column([70, 71, 72, 73, 74, 75, 76, 77, 78, 79])
DIFFERENCES = [0.1, -0.2, 0.3, 0.6, 0.8, 1.2, -1.5, 2.0, 2.5, 30.0 - 9]
GAINED = {name: base + d for (name, base), d in zip(BASE.items(), DIFFERENCES, strict=True)}


RANKS = mean_ranks(random_scores(3, 8))


@pytest.fixture(scope="module", autouse=True)
def _fewer_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(over_sets, "DRAWS", 5000)
        yield


@pytest.fixture(scope="module")
def gain():
    return gains({"base": BASE, "other": GAINED}, "base")[0]


@pytest.fixture(scope="module")
def several():
    scores = random_scores(5, 12, seed=3)
    return scores, gains(scores, "method-0")


# Gains


def test_a_gain_in_numbers(gain):
    assert (gain.method, gain.sets, gain.missing) == ("other", 10, 0)
    assert gain.mean == pytest.approx(2.68)  # 26.8 / 10
    assert gain.trimmed == pytest.approx(7.3 / 8)  # without −1.5 and 21
    assert gain.median == pytest.approx(0.7)
    assert (gain.lowest, gain.highest) == pytest.approx((-1.5, 21))
    assert (gain.above, gain.below) == (0.4, 0.1)


def test_p_of_a_gain_is_the_share_of_choices_of_signs(gain):
    """The negative ranks are 2 and 7: 9 of 55."""
    assert gain.p == pytest.approx(brute_signed_rank(DIFFERENCES), abs=1e-12)
    assert gain.p == gain.adjusted  # one method needs no correction


def test_a_difference_of_just_one_point_is_not_beyond_it():
    """In floating point 16.1 − 15.1 is more than 1."""
    assert 16.1 - 15.1 > 1
    found = gains({"base": column([15.1, 16.1]), "other": column([16.1, 15.1])}, "base")[0]
    assert (found.above, found.below) == (0, 0)


def test_rounding_errors_do_not_break_ties():
    base = [70.3, 60.1, 33.3, 12.7, 88.8, 91.9]
    signs = [0.1, 0.1, -0.1, 0.1, 0.1, 0.1]
    assert len(set(abs(np.add(base, signs) - base))) > 1
    found = gains({"base": column(base), "other": column(np.add(base, signs))}, "base")[0]
    assert found.p == pytest.approx(brute_signed_rank(signs), abs=1e-12)


def test_holm_by_hand(several):
    """The lowest of m values times m, the next times m − 1, and so on; never lower than the one before, never above 1."""
    _, found = several
    by_p = sorted(found, key=lambda gain: gain.p)
    adjusted, before = [], 0.0
    for place, gain in enumerate(by_p):
        before = max(before, min(1.0, (len(by_p) - place) * gain.p))
        adjusted.append(before)
    assert [gain.adjusted for gain in by_p] == pytest.approx(adjusted, rel=1e-12)
    assert any(gain.adjusted > gain.p for gain in by_p)


def test_p_values_are_those_of_scipy(several):
    scores, found = several
    for gain in found:
        theirs = stats.wilcoxon(list(scores[gain.method].values()), list(scores["method-0"].values())).pvalue
        assert gain.p == pytest.approx(theirs, rel=1e-9)
        trimmed = sorted(np.subtract(list(scores[gain.method].values()), list(scores["method-0"].values())))[1:-1]
        assert gain.trimmed == pytest.approx(np.mean(trimmed))


def test_the_highest_mean_comes_first_and_the_baseline_is_not_listed(several):
    scores, found = several
    means = {m: np.mean(list(scores[m].values())) for m in scores}
    assert [gain.method for gain in found] == sorted(set(scores) - {"method-0"}, key=means.__getitem__, reverse=True)


def test_probabilities_are_those_of_the_dirichlet_process(several):
    """Weights of the sets and of a difference 0 with weight 1/2; the shares of the pairs' means on each side are compared."""
    scores, found = several
    draw = np.random.default_rng(7)
    for gain in found:
        d = np.array([0, *np.subtract(list(scores[gain.method].values()), list(scores["method-0"].values()))])
        weights = draw.dirichlet([0.5, *[1] * (len(d) - 1)], 20_000)
        means = (d[:, None] + d) / 2
        below, above = ((weights @ side * weights).sum(1) for side in (means < -0.5, means > 0.5))
        winners = np.argmax([below, 1 - below - above, above], axis=0)
        expected = np.bincount(winners, minlength=3) / len(winners)
        assert (gain.worse, gain.equal, gain.better) == pytest.approx(expected, abs=0.02)
        assert gain.worse + gain.equal + gain.better == pytest.approx(1)


@pytest.mark.parametrize(("shift", "side"), [(-2.0, "worse"), (0.3, "equal"), (-0.3, "equal"), (2.0, "better")])
def test_probabilities_go_the_right_way(shift, side):
    found = gains({"base": BASE, "other": {name: score + shift for name, score in BASE.items()}}, "base")[0]
    assert getattr(found, side) > 0.95
    assert found.p == pytest.approx(2 / 2**10)


def test_the_order_of_sets_and_methods_changes_nothing(several):
    scores, found = several
    turned = {method: dict(reversed(of.items())) for method, of in reversed(scores.items())}
    assert gains(turned, "method-0") == found


def test_equal_scores_are_equal():
    found = gains({"base": BASE, "copy": dict(BASE)}, "base")[0]
    assert (found.mean, found.p, found.adjusted) == (0, 1, 1)
    assert (found.worse, found.equal, found.better) == (0, 1, 0)


def test_equal_scores_leave_the_correction_of_the_others():
    found = {g.method: g for g in gains({"base": BASE, "copy": dict(BASE), "other": GAINED}, "base")}
    assert found["copy"].adjusted == 1
    assert found["other"].adjusted == pytest.approx(2 * brute_signed_rank(DIFFERENCES))


def test_one_method_gains_nothing():
    assert gains({"base": BASE}, "base") == []


def test_missing_sets_are_left_out_and_counted():
    short = {name: score + 2 for name, score in list(BASE.items())[:6]} | {"elsewhere": 50.0, "broken": math.nan}
    found = gains({"base": BASE, "short": short, "full": {**GAINED, "broken": 40.0}}, "base")
    counts = {g.method: (g.sets, g.missing) for g in found}
    assert counts == {"short": (6, 6), "full": (10, 2)}  # 12 sets: the base's 10, "elsewhere" and "broken"
    assert next(g.mean for g in found if g.method == "short") == pytest.approx(2)


# Ranks


def test_ranks_by_hand():
    """Set by set: a 1, b 2, c 3; a and b 1.5, c 3; c 1, a and b 2.5."""
    found = mean_ranks({"c": column([70, 80, 90]), "a": column([90, 85, 80]), "b": column([80, 85, 80])})
    assert found.means == pytest.approx({"a": 5 / 3, "b": 2, "c": 7 / 3})
    assert list(found.means) == ["a", "b", "c"]
    assert list(found.p_values.index) == list(found.p_values.columns) == ["a", "b", "c"]


def test_ranks_of_many_by_counting():
    scores = random_scores(6, 15)
    found = mean_ranks(scores)
    for method, of in scores.items():
        ranks = [sum(others[name] >= of[name] for others in scores.values()) for name in of]
        assert found.means[method] == pytest.approx(np.mean(ranks))
    assert list(found.means.values()) == sorted(found.means.values())


def test_pairs_are_those_of_scikit_posthocs_and_of_statsmodels():
    scores = random_scores(5, 14, seed=2)
    found = mean_ranks(scores).p_values
    order = list(found.index)
    theirs = scikit_posthocs.posthoc_wilcoxon([list(scores[m].values()) for m in order], p_adjust="holm")
    assert found.to_numpy() == pytest.approx(theirs.to_numpy(), rel=1e-9)
    plain = [
        stats.wilcoxon(list(scores[a].values()), list(scores[b].values())).pvalue for a, b in itertools.combinations(order, 2)
    ]
    assert found.to_numpy()[np.triu_indices(5, 1)] == pytest.approx(multipletests(plain, method="holm")[1], rel=1e-9)
    assert 0 < (found < 0.05).to_numpy().sum() < 20  # some pairs differ and some do not


def test_a_pair_without_a_difference_has_p_1_and_the_others_have_theirs():
    found = mean_ranks({"base": BASE, "copy": dict(BASE), "other": GAINED})
    assert found.p_values.loc["base", "copy"] == 1
    assert found.p_values.loc["other", "base"] == pytest.approx(3 * brute_signed_rank(DIFFERENCES))
    assert found.means["base"] == found.means["copy"] == pytest.approx((8 * 2.5 + 2 * 1.5) / 10)


def test_ranks_count_what_a_method_lacks():
    found = mean_ranks(
        {"a": column([90, 80, 70]), "b": column([80, math.nan, 75]), "c": {**column([70, 75, 60]), "more": 50.0}}
    )
    assert (found.sets, found.missing) == (("set-0", "set-2"), 2)
    assert found.means == pytest.approx({"a": 1.5, "b": 1.5, "c": 3})


def test_one_method_is_first():
    found = mean_ranks({"only": BASE})
    assert (found.means, found.p_values.to_numpy().tolist()) == ({"only": 1.0}, [[1.0]])


# The figure


def painted(figure):
    """The share of pixels that are not white, and whether one of them stands on the rim."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=80)
    pixels = np.frombuffer(buffer.getvalue(), np.uint8)
    width, height = (int(inches * 80) for inches in figure.get_size_inches())
    inked = pixels.reshape(height, width, 4)[..., :3].min(2) < 200
    return inked.mean(), inked[[0, -1]].any() or inked[:, [0, -1]].any()


@pytest.mark.parametrize("methods", [3, 4, 9, 12, 14])
def test_figure_shows_every_method_and_cuts_none(methods):
    scores = {f"a name of some length {m}": of for m, of in random_scores(methods, 20).items()}
    ranks = mean_ranks(scores)
    figure = critical_difference(ranks)
    texts = [text.get_text().strip() for text in figure.axes[0].texts]
    first = (methods + 1) // 2
    expected = [f"{m} ({rank:.2f})" for m, rank in list(ranks.means.items())[:first]]
    expected += [f"({rank:.2f}) {m}" for m, rank in list(ranks.means.items())[first:]]
    assert sorted(texts) == sorted(expected)
    share, cut = painted(figure)
    assert share > 0.01
    assert not cut
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(box.x0 > 0 and box.x1 < figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_bars_join_what_does_not_differ():
    """a and b are equal, and c, d are; the pairs across differ on each of 12 sets by about 5 points."""
    draw = np.random.default_rng(1)
    level = draw.uniform(60, 80, 12)
    scores = {m: column(level + plus + draw.normal(0, 0.5, 12)) for m, plus in {"a": 5, "b": 5, "c": 0, "d": 0}.items()}
    ranks = mean_ranks(scores)
    lines = [line for line in critical_difference(ranks).axes[0].lines if line.get_marker() == "o"]
    joined = {tuple(round(float(x), 9) for x in line.get_xdata()) for line in lines}
    assert joined == {tuple(sorted(round(ranks.means[m], 9) for m in pair)) for pair in ("ab", "cd")}


def test_figure_of_equal_methods():
    ranks = mean_ranks(dict.fromkeys("abcde", BASE))
    assert set(ranks.means.values()) == {3.0}
    assert not painted(critical_difference(ranks))[1]


def test_figure_takes_the_colours_it_is_given():
    figure = critical_difference(mean_ranks(random_scores(3, 8)), {"method-1": "#2e8b57", "unknown": "#000000"})
    elbows = [line.get_color() for line in figure.axes[0].lines if line.get_marker() != "o"]
    assert sorted(elbows) == ["#2e8b57", over_sets.BLUE, over_sets.BLUE]


def test_a_name_is_not_read_as_a_formula():
    scores = {f"{m} $x$ {{0}}": of for m, of in random_scores(3, 8).items()}
    figure = critical_difference(mean_ranks(scores))
    texts = re.findall("<text[^>]*>([^<]*)</text>", svg(lambda: figure, "name", "text"))
    assert sum("$x$ {0}" in text for text in texts) == 3


def test_the_same_scores_give_the_same_figure():
    ranks = mean_ranks(random_scores(7, 12, step=0.2))
    assert len({svg(lambda: critical_difference(ranks), "cd", "ranks") for _ in range(2)}) == 1
    bars = [line for line in critical_difference(ranks).axes[0].lines if line.get_marker() == "o"]
    assert len(bars) > 1
    for bar in bars:  # the order of a set of names differs from process to process
        assert list(bar.get_xdata()) == sorted(bar.get_xdata())


# Text


def test_a_row_of_text():
    gain = over_sets.Gain("a", 9, 1, 1.234, -0.5, 0.0, -12.0, -0.001, 0.25, 0.5, 0.0004, 0.0123, 0.0, 0.996, 1.0)
    row = dict(zip(GAIN_COLUMNS, gain_table([gain])[0], strict=True))
    assert row["method"] == "a"
    assert (row["sets"], row["missing"]) == ("9", "1")
    assert [row[c] for c in ("mean", "trimmed", "median", "lowest", "highest")] == ["+1.23", "−0.50", "0.00", "−12.00", "0.00"]
    assert [row[c] for c in ("> +1", "< −1")] == ["25%", "50%"]
    assert [row[c] for c in ("p", "p (Holm)")] == ["<0.001", "0.012"]
    assert [row[c] for c in ("worse", "equal", "better")] == ["<0.01", ">0.99", "1.00"]


def test_numbers_are_aligned_to_the_right_and_text_is_not():
    rows = [("a|b", "+1.5", "<0.001", "25%", "yes", ""), ("c\\d\ne", "−10", "1", "", "2", "")]
    lines = markdown_table(["method", "mean", "p", "share", "mixed", "none"], rows).splitlines()
    assert lines[0] == "| method | mean |      p | share | mixed | none |"
    assert lines[1] == "| :----- | ---: | -----: | ----: | :---- | :--- |"
    assert lines[2] == r"| a\|b   | +1.5 | <0.001 |   25% | yes   |      |"
    assert lines[3] == r"| c\\d e |  −10 |      1 |       | 2     |      |"


def test_the_table_of_gains_is_numbers_but_for_the_names(several):
    lines = markdown_table(GAIN_COLUMNS, gain_table(several[1])).splitlines()
    rule = [cell.strip() for cell in lines[1].strip("|").split("|")]
    assert rule[0].startswith(":")
    assert all(cell.endswith("-:") for cell in rule[1:])
    assert len(lines) == 2 + 4
    assert len({len(line) for line in lines}) == 1


def test_a_table_without_rows():
    assert markdown_table(["a", "b"], []).splitlines() == ["| a   | b   |", "| :-- | :-- |"]


@pytest.mark.parametrize(  # by `printf NAME | sha256sum`: odd if the last digit is
    ("name", "digit"), [("iris", "3"), ("wine", "8"), ("monks-3", "c"), ("breast-cancer", "e"), ("ä", "c")]
)
def test_half_is_the_last_bit(name, digit):
    assert half(name) == int(digit, 16) % 2


def test_halves_are_about_equal():
    assert 450 < sum(half(f"set {i}") for i in range(1000)) < 550


# What is refused


@pytest.mark.parametrize(
    ("scores", "baseline", "text"),
    [
        ({}, "base", "scores: expected at least one method"),
        ({"base": {}}, "base", "scores: expected at least one method"),
        ({"base": BASE, "other": GAINED}, "bsae", "did you mean 'base'"),
        ({"base": BASE, "other": {"elsewhere": 5.0}}, "base", "'other': expected a data set that 'base' has too"),
        ({"base": {"a": 101.0}}, "base", "'base' on 'a': expected points up to 100, got 101"),
        ({"base": {"a": -math.inf}}, "base", "expected points up to 100, got -inf"),
        ({"base": {"a": 0.9}, "other": {"a": 0.8}}, "base", "multiply by 100"),
    ],
)
def test_bad_scores_are_refused_in_one_line(scores, baseline, text):
    with pytest.raises(InputError) as caught:
        gains(scores, baseline)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranks_need_a_set_that_all_have():
    with pytest.raises(InputError, match="leave out 'b', which has the fewest"):
        mean_ranks({"a": {"x": 50.0, "y": 50.0}, "b": {"z": 40.0}})


def test_figure_needs_methods_and_sets():
    with pytest.raises(InputError, match="expected at least 3 methods, got 2"):
        critical_difference(mean_ranks(random_scores(2, 10)))
    with pytest.raises(InputError, match="expected at least 6 data sets that all methods have, got 5"):
        critical_difference(mean_ranks(random_scores(3, 5)))
    critical_difference(mean_ranks(random_scores(3, 6)))


def test_five_sets_could_not_show_a_difference():
    assert brute_signed_rank([1, 2, 3, 4, 5]) > over_sets.ALPHA > brute_signed_rank([1, 2, 3, 4, 5, 6])


def test_rows_of_another_length_are_refused():
    with pytest.raises(InputError, match="row 1: expected 2 cells, got 3"):
        markdown_table(["a", "b"], [["1", "2"], ["1", "2", "3"]])


@pytest.mark.parametrize(
    ("module", "call", "package"),
    [
        ("baycomp", lambda: gains({"base": BASE, "other": GAINED}, "base"), "baycomp"),
        ("statsmodels.stats.multitest", lambda: mean_ranks(random_scores(3, 8)), "statsmodels"),
        ("scikit_posthocs", lambda: critical_difference(RANKS), "scikit-posthocs"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, call, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"expected the package {package}, found none; pip install 'lossmith\[reproduce\]'"):
        call()
