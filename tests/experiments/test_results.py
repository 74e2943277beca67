"""The pages in docs/results are what their rows say."""

from pathlib import Path

import pytest

from lossmith.experiments import page
from lossmith.experiments.run import read_compressed
from lossmith.experiments.studies import STUDIES

RESULTS = Path(__file__).parents[2] / "docs" / "results"
MISSING = "**Missing**: "


SLOW = {"boosting", "default", "imbalance", "tabular"}  # many Bayesian tests, or many rows


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=pytest.mark.slow if x in SLOW else ()) for x in sorted(path.stem for path in RESULTS.glob("*.md"))],
)
def test_a_page_says_what_its_rows_say(name: str) -> None:
    study = STUDIES[name]
    path, picture, data = page.files(study, "full", RESULTS)
    text = path.read_text("utf-8")
    lost = [line.removeprefix(MISSING) for line in text.splitlines() if line.startswith(MISSING)]
    assert text == page.text_of(study, "full", read_compressed(data), lost)
    assert picture.exists()
