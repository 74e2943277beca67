"""The report: numbers as a reader sees them, valid JSON, and a page that stands alone whatever the names in it."""

import dataclasses
import html
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from lossmith.compare import page as pages
from lossmith.compare import report
from lossmith.compare.losses import NAMES, described
from lossmith.compare.metrics import PERCENT, PLAIN
from lossmith.compare.plan import Plan
from lossmith.compare.run import run
from lossmith.compare.statistics import Difference, Summary, difference, summarize
from lossmith.compare.store import open_store
from lossmith.data import load

EVIL = '<script>alert("1")</script>'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and text; refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """A finished comparison of all losses whose names are hostile: plan, rows, summaries, page."""
    folder = tmp_path_factory.mktemp("report")
    hostile = {
        "name": EVIL,
        "classes": (EVIL + "a", "b & <i>", "'c' {{ 7 * 7 }}"),
        "target_name": '"><img src=x onerror=alert(1)>',
    }
    plan = Plan(dataclasses.replace(load("iris"), **hostile), losses=NAMES, folds=2, trials=1, epochs=2)
    with open_store(folder) as store:
        rows = run(plan, store)
    for row in rows:
        if row["method"] == "metric-path":  # which iris alone does not fill
            row["points"] = [*row["points"], (1.0, 3.0, 0.5, 0.95)]
    summaries = summarize(rows)
    path = folder / "report.html"
    path.write_text("an older report")
    pages.write(plan, rows, summaries, f"lossmith compare '{EVIL}.csv'", path)
    return plan, rows, summaries, path


@pytest.fixture(scope="module")
def text(outcome):
    return outcome[3].read_text(encoding="utf-8")


def summary(method="metric-path", scores=(0.8, 0.9), values=(0.1, 0.2), interval=(0.05, 0.25), chance=0.984, **others):
    difference = Difference(values, interval, None if interval is None else chance)
    return Summary(method, scores, difference, **({"seconds": 1.234, "slowdown": 2.34} | others))


BASE = summary("likelihood", (0.7, 0.7), (0.0, 0.0), None, slowdown=1.0)
BETTER, WORSE = summary("exact"), summary("hinge", (0.5, 0.6), (-0.2, -0.1), (-0.3, -0.01))
OPEN = summary("probit", (0.7, 0.71), (0.0, 0.01), (-0.02, 0.03))


# The table


def cells(found, unit=PERCENT):
    return report.cells(found, unit)


def test_cells_are_percentages_and_points():
    assert cells(BETTER) == ("exact", "85.00 ± 7.07", "+15.00", "+5.00 to +25.00", "better", "1.23 (2.3)")
    assert cells(WORSE)[2:5] == ("−15.00", "−30.00 to −1.00", "worse")
    assert cells(OPEN)[2:5] == ("+0.50", "−2.00 to +3.00", "")
    assert cells(BASE) == ("likelihood", "70.00 ± 0.00", "", "baseline", "", "1.23 (1.0)")
    assert len(report.COLUMNS) == len(cells(BASE))


def test_cells_of_a_metric_without_an_upper_end():
    found = summary(scores=(-0.5, -0.7), values=(0.1, 0.2))
    assert cells(found, PLAIN)[1:4] == ("−0.6000 ± 0.1414", "+0.1500", "+0.0500 to +0.2500")


def test_no_difference_has_no_sign_and_no_interval():
    same = summary(scores=(0.7, 0.7), values=(0.0, 0.0), interval=None)
    assert cells(same)[2:5] == ("0.00", "same scores", "")
    equal = summary(scores=(0.8, 0.7), values=(0.1, 0.1), interval=None)
    assert cells(equal)[2:5] == ("+10.00", "equal differences", "")
    tiny = summary(scores=(0.7, 0.7), values=(-1e-9, 1e-9), interval=(-1e-8, 1e-8))
    assert cells(tiny)[2:4] == ("0.00", "0.00 to 0.00")


def test_a_single_split_shows_neither_spread_nor_interval():
    assert cells(summary(scores=(0.8,), values=(0.1,), interval=None))[1:5] == ("80.00", "+10.00", "", "")


# The answer


def told(metric="accuracy", taken=2, repeats=1, **scores):
    """The answer for scores of methods on four splits, whose names have underscores here."""
    names = {name.replace("_", "-"): values for name, values in scores.items()}
    base = names["likelihood"]
    summaries = [Summary(name, tuple(values), difference(values, base, 0.25), 1.0, 1.0) for name, values in names.items()]
    summaries = [dataclasses.replace(s, taken=taken) if s.method == "metric-path" else s for s in summaries]
    return report.answer(Plan(load("iris"), metric=metric, repeats=repeats), summaries, 0.25)


LOW, HIGH, HIGHEST = [0.70, 0.71, 0.70, 0.71], [0.75, 0.77, 0.76, 0.76], [0.90, 0.92, 0.91, 0.92]
NOISY = [0.76, 0.66, 0.75, 0.69]


def test_training_for_the_metric_is_the_answer_where_it_gains():
    found = told(likelihood=LOW, metric_path=HIGH)
    assert found.use == "metric-path"
    assert re.fullmatch(
        r"Train for the metric: accuracy 76\.00 %, \+5\.50 points \(95 % interval \+[\d.]+ to \+[\d.]+; "
        r"probability of a gain above 0\.99\) over logistic regression\.",
        found.text,
    )
    assert found.more == ()


def test_likelihood_stays_where_nothing_is_sure():
    found = told(likelihood=LOW, metric_path=NOISY)
    assert (found.use, found.text) == ("likelihood", "Stay with logistic regression: accuracy 70.50 %.")
    assert found.more[0].startswith(
        "Training for the metric, taken in 2 of 4 splits, changes logistic regression by +1.00 points"
    )
    assert found.more[0].endswith("no more than the splits themselves differ.")
    assert "left out" in told(taken=0, likelihood=LOW, metric_path=LOW).more[0]
    assert "by 0.00 points: no more than" in told(likelihood=LOW, metric_path=LOW).more[0]
    assert told(likelihood=HIGH, metric_path=LOW).more[0].endswith("which is worse.")


def test_more_repeats_are_advised_where_a_gain_is_likely_and_not_sure():
    likely, advice = [x + y for x, y in zip(LOW, (0.0, 0.03, 0.01, 0.03), strict=True)], "--repeats 3"
    assert advice in told(likelihood=LOW, metric_path=likely).more[-1]
    assert all(advice not in sentence for sentence in told(repeats=2, likelihood=LOW, metric_path=likely).more)
    assert all(advice not in sentence for sentence in told(likelihood=LOW, metric_path=NOISY).more)
    assert all(advice not in sentence for sentence in told(likelihood=LOW, metric_path=HIGH).more)


def test_class_weights_are_the_answer_where_they_gain():
    found = told("f1_macro", likelihood=LOW, class_weights=HIGH, metric_path=LOW)
    assert (found.use, found.text[:30]) == ("class-weights", "Weigh the classes: f1_macro 76")


def test_training_for_the_metric_must_beat_what_would_be_used():
    worse = [x - 0.1 for x in LOW]
    found = told("f1_macro", likelihood=LOW, decision_rule=worse, metric_path=[x + 0.001 * i for i, x in enumerate(LOW)])
    assert found.use == "likelihood"
    assert found.more[0].endswith("not surely more than logistic regression.")


def test_the_decision_rule_is_the_opponent():
    found = told("f1_macro", likelihood=LOW, decision_rule=HIGH, metric_path=[x + 0.001 * i for i, x in enumerate(HIGH)])
    assert found.use == "decision-rule"
    assert found.text.startswith("Tune the decision rule: f1_macro 76.00 %, +5.50 points")
    assert "changes logistic regression with its decision rule by +0.15 points" in found.more[0]
    best = told("f1_macro", likelihood=LOW, decision_rule=HIGH, metric_path=HIGHEST)
    assert best.use == "metric-path"
    assert best.text.endswith("over logistic regression with its decision rule.")


def test_richer_models_and_losses_are_named_where_they_are_better():
    found = told(likelihood=LOW, metric_path=LOW, boosting=HIGHEST, hinge=HIGH, exact=LOW)
    assert found.use == "likelihood"
    assert [sentence.split(",")[0] for sentence in found.more[1:]] == [
        "Boosted trees reach 91.25",
        "The loss hinge reaches 76.00",
    ]


def test_where_nothing_can_be_said():
    assert told(likelihood=LOW[:1], metric_path=HIGH[:1]) == report.Answer(
        None, "A single split shows no spread: nothing can be said about the differences."
    )
    assert told(likelihood=LOW).use is None


# JSON


def test_json_is_valid_and_complete(outcome):
    def refuse(name):
        raise AssertionError(name)

    plan, rows, summaries, path = outcome
    found = report.answer(plan, summaries, 1.0)
    read = json.loads(json.dumps(report.as_json(plan, summaries, found, path)), parse_constant=refuse)
    assert {entry["method"] for entry in read["methods"]} == {*plan.methods, *NAMES}
    assert (read["use"], read["answer"], tuple(read["more"])) == found
    assert (read["settings"]["rows"], read["settings"]["repeats"], read["settings"]["folds"]) == (150, 1, 2)
    assert read["report"] == str(path)
    for entry in read["methods"]:
        assert entry["scores"] == [row["score"] for row in rows if row["method"] == entry["method"]]
        assert entry["mean"] == pytest.approx(sum(entry["scores"]) / 2)  # a fraction, not a percentage


def test_json_has_null_where_there_is_no_number(outcome):
    single = summary(scores=(0.8,), values=(0.1,), interval=None)
    assert math.isnan(single.spread)
    entry = report.as_json(outcome[0], [single], report.Answer(None, ""), outcome[3])["methods"][0]
    assert (entry["sd"], entry["interval"], entry["chance"]) == (None, None, None)


# The page


def test_the_page_is_well_formed_and_no_draft_is_left(outcome, text):
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert {"html", "head", "title", "body", "table", "figure", "svg", "pre"} <= set(page.tags)
    assert not {"{{", "{%"} & set(re.findall(r"\{[{%]", text.replace("{{ 7 * 7 }}", "")))  # no template code is left
    assert sorted(path.name for path in outcome[3].parent.iterdir()) == [".lock", "report.html", "rows.jsonl"]


def test_the_page_loads_nothing_from_elsewhere(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "srcset", "data", "action") or name.endswith("href")]
    assert all(link.startswith("#") for link in links)  # inside a figure
    bare = re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert not re.search(r"@import|https?:|file:", bare)
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", bare))


def test_the_figures_are_svg_that_takes_the_page_s_colours(text):
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 4
    names = [name for figure in figures for name in re.findall(r' id="([^"]+)"', figure) if re.search(r"\d[0-9a-f]{8}", name)]
    assert len(names) == len(set(names))  # clip paths of one figure do not cut another
    for figure in figures:
        root = ET.fromstring(figure)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert {"viewBox", "role", "aria-label"} <= set(root.attrib)
        assert not {"width", "height"} & set(root.attrib)
        assert "currentColor" in figure
        assert not re.search("#010203|#000000|#111111", figure)


def test_every_method_is_in_the_table_with_its_numbers(outcome, text):
    for row in outcome[2]:
        assert f"<td>{row.method}<small>" in text
        assert html.escape(described(row.method).summary) in text
        assert all(
            f'data-label="{label}">{cell}' in text for label, cell in list(zip(report.COLUMNS, cells(row), strict=True))[1:4]
        )


def test_hostile_names_are_text(outcome, text):
    page = Page(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name in (*outcome[0].data.classes, outcome[0].data.target_name, f"lossmith compare '{EVIL}.csv'"):
        assert name in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert page.text.count(f"{EVIL}: accuracy") == 2  # title and heading


def test_the_answer_comes_first(outcome, text):
    page = Page(text)
    found = report.answer(outcome[0], outcome[2], 1.0)
    assert text.index('class="lead"') < text.index("<table")
    assert all(sentence in page.text for sentence in (found.text, *found.more))


def test_figures_have_a_text_and_the_language_is_named(text):
    page = Page(text)
    assert len([value for name, value in page.attributes if name == "aria-label" and value]) == 4
    assert ("lang", "en") in page.attributes


def test_the_same_rows_give_the_same_page(outcome, text, tmp_path):
    plan, rows, summaries, _ = outcome
    pages.write(plan, rows, summaries, f"lossmith compare '{EVIL}.csv'", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def test_the_baseline_alone_and_a_broken_training_are_reported(outcome, tmp_path):
    plan, rows, summaries, _ = outcome
    path = tmp_path / "report.html"
    pages.write(dataclasses.replace(plan, methods=(), losses=()), rows[:1], summaries[:1], "", path)
    assert "Paired differences" not in path.read_text(encoding="utf-8")
    broken = [summaries[0], dataclasses.replace(summaries[1], diverged=2)]
    pages.write(plan, rows, broken, "", path)
    page = Page(path.read_text(encoding="utf-8"))
    assert f"{broken[1].method}: the loss was not finite at the end of 2" in page.text
