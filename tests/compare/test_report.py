"""The report: numbers as a reader sees them, valid JSON, and a page that stands alone whatever the names in it."""

import base64
import dataclasses
import html
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from lossmith.catalogue import CANDIDATES
from lossmith.compare import page as pages
from lossmith.compare import report
from lossmith.compare.plan import Plan
from lossmith.compare.run import run
from lossmith.compare.statistics import Summary, summarize
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
    plan = Plan(dataclasses.replace(load("iris"), **hostile), folds=2, trials=1, epochs=2)
    with open_store(folder) as store:
        rows = run(plan, store)
    summaries = summarize(rows)
    path = folder / "report.html"
    path.write_text("an older report")
    pages.write(plan, rows, summaries, f"lossmith compare '{EVIL}.csv'", path)
    return plan, rows, summaries, path


@pytest.fixture(scope="module")
def text(outcome):
    return outcome[3].read_text(encoding="utf-8")


def summary(loss="hinge", scores=(0.8, 0.9), differences=(0.1, 0.2), interval=(0.05, 0.25), **others):
    return Summary(loss, scores, differences, interval, **({"seconds": 1.234, "slowdown": 2.34, "diverged": 0} | others))


BASE = summary("cross-entropy", (0.7, 0.7), (0.0, 0.0), None, slowdown=1.0)
BETTER, WORSE = summary("exact"), summary("hinge", (0.5, 0.6), (-0.2, -0.1), (-0.3, -0.01))
OPEN = summary("probit", (0.7, 0.71), (0.0, 0.01), (-0.02, 0.03))


# The table


def test_cells_are_percentages_and_points():
    assert report.cells(BETTER) == ("exact", "85.00 ± 7.07", "+15.00", "+5.00 to +25.00", "better", "1.23 (2.3)")
    assert report.cells(WORSE)[2:5] == ("−15.00", "−30.00 to −1.00", "worse")
    assert report.cells(OPEN)[2:5] == ("+0.50", "−2.00 to +3.00", "")
    assert report.cells(BASE) == ("cross-entropy", "70.00 ± 0.00", "", "baseline", "", "1.23 (1.0)")
    assert len(report.COLUMNS) == len(report.cells(BASE))


def test_no_difference_has_no_sign_and_no_interval():
    same = summary(scores=(0.7, 0.7), differences=(0.0, 0.0), interval=None)
    assert report.cells(same)[2:5] == ("0.00", "same scores", "")
    equal = summary(scores=(0.8, 0.7), differences=(0.1, 0.1), interval=None)
    assert report.cells(equal)[2:5] == ("+10.00", "equal differences", "")
    tiny = summary(scores=(0.7, 0.7), differences=(-1e-9, 1e-9), interval=(-1e-8, 1e-8))
    assert report.cells(tiny)[2:4] == ("0.00", "0.00 to 0.00")


def test_a_single_split_shows_neither_spread_nor_interval():
    assert report.cells(summary(scores=(0.8,), differences=(0.1,), interval=None))[1:5] == ("80.00", "+10.00", "", "")


def test_headlines():
    plan = Plan(load("iris"))
    assert report.headline(plan, [BASE, BETTER]) == "In accuracy, exact did better than cross-entropy."
    assert report.headline(plan, [BASE, BETTER, OPEN, WORSE]) == (
        "In accuracy, exact did better than cross-entropy and hinge did worse than cross-entropy; "
        "for probit the interval includes zero."
    )
    two = report.headline(plan, [BASE, BETTER, dataclasses.replace(BETTER, loss="probit")])
    assert two == "In accuracy, exact and probit each did better than cross-entropy."
    assert report.headline(plan, [BASE, OPEN]).startswith("No loss differs from cross-entropy in accuracy")
    assert report.headline(plan, [BASE]).startswith("Only cross-entropy was run")


# JSON


def test_json_is_valid_and_complete(outcome):
    def refuse(name):
        raise AssertionError(name)

    plan, rows, summaries, path = outcome
    read = json.loads(json.dumps(report.as_json(plan, summaries, path)), parse_constant=refuse)
    assert {entry["loss"] for entry in read["losses"]} == set(CANDIDATES)
    assert (read["settings"]["rows"], read["settings"]["repeats"], read["settings"]["folds"]) == (150, 1, 2)
    assert read["report"] == str(path)
    by_hand = {loss: [row["score"] for row in rows if row["loss"] == loss] for loss in CANDIDATES}
    for entry in read["losses"]:
        assert entry["scores"] == by_hand[entry["loss"]]
        assert entry["mean"] == pytest.approx(sum(entry["scores"]) / 2)  # a fraction, not a percentage


def test_json_has_null_where_there_is_no_number(outcome):
    single = summary(scores=(0.8,), differences=(0.1,), interval=None)
    assert math.isnan(single.spread)
    entry = report.as_json(outcome[0], [single], outcome[3])["losses"][0]
    assert (entry["sd"], entry["interval"]) == (None, None)


# The page


def test_the_page_is_well_formed_and_no_draft_is_left(outcome, text):
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert {"html", "head", "title", "body", "table", "figure", "img", "pre"} <= set(page.tags)
    assert not {"{{", "{%"} & set(re.findall(r"\{[{%]", text.replace("{{ 7 * 7 }}", "")))  # no template code is left
    assert sorted(path.name for path in outcome[3].parent.iterdir()) == [".lock", "report.html", "rows.jsonl"]


def test_the_page_loads_nothing_from_elsewhere(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action", "style")]
    assert len(links) == 3
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert not re.search(r"@import|url\(|https?:|file:", text)


def test_the_figures_are_svg_and_stand_alone(text):
    for encoded in re.findall(r"base64,([^\"]+)", text):
        svg = ET.fromstring(base64.b64decode(encoded, validate=True))
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        links = [value for element in svg.iter() for name, value in element.attrib.items() if name.endswith("href")]
        assert all(link.startswith("#") for link in links)


def test_every_loss_is_in_the_table_with_its_numbers(outcome, text):
    for row in outcome[2]:
        assert f"<td>{row.loss}<small>" in text
        assert html.escape(CANDIDATES[row.loss].summary) in text
        assert all(f"<td>{cell}" in text for cell in report.cells(row)[1:4])


def test_hostile_names_are_text(outcome, text):
    page = Page(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name in (*outcome[0].data.classes, outcome[0].data.target_name, f"lossmith compare '{EVIL}.csv'"):
        assert name in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert page.text.count(f"{EVIL}: accuracy by loss") == 2  # title and heading


def test_images_have_a_text_and_the_language_is_named(text):
    page = Page(text)
    assert len([value for name, value in page.attributes if name == "alt" and value]) == 3
    assert ("lang", "en") in page.attributes


def test_the_same_rows_give_the_same_page(outcome, text, tmp_path):
    plan, rows, summaries, _ = outcome
    pages.write(plan, rows, summaries, f"lossmith compare '{EVIL}.csv'", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def test_the_baseline_alone_and_a_broken_training_are_reported(outcome, tmp_path):
    plan, rows, summaries, _ = outcome
    path = tmp_path / "report.html"
    pages.write(dataclasses.replace(plan, losses=()), rows[:1], summaries[:1], "", path)
    assert "Paired differences" not in path.read_text(encoding="utf-8")
    broken = [summaries[0], dataclasses.replace(summaries[1], diverged=2)]
    pages.write(plan, rows, broken, "", path)
    page = Page(path.read_text(encoding="utf-8"))
    assert f"{broken[1].loss}: the loss was not finite at the end of 2" in page.text
