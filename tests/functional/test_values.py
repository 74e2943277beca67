"""The functions against the tables of 25-digit values, which ``make_values.py`` made without the library.

The promise, where |log p| is not so small that no float of its type can hold it:

* float64: log p within 1e-9 relative, whatever its size: a sure right answer keeps the digits of 1 − p; the gradient within
  1e-7 of its norm;
* float32: p within 1e-6 and log p within 1e-5 relative.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lossmith
from lossmith.functional import argmax_log_prob, topk_log_prob
from support.cases import BY_NAME, gradient

FOLDER = Path(lossmith.__file__).parent / "bench" / "values"
Row = dict[str, Any]
SLOW = pytest.mark.slow  # where another noise has as many classes

LOG_P_64, GRADIENT_64, LEAST_64 = 1e-9, 1e-7, 1e-280
P_32, LOG_P_32, LEAST_32 = 1e-6, 1e-5, 1e-30


def read(name: str) -> list[Row]:
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def together(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that can be computed in one call."""
    groups = defaultdict(list)
    for row in rows:
        groups[f"{row['noise']} C={row['classes']} k={row.get('k', 1)}"].append(row)
    return groups


ARGMAX, TOPK = read("argmax.jsonl"), read("topk.jsonl")
SMALL = together([row for row in ARGMAX if row["classes"] <= 1000] + [row for row in TOPK if row["classes"] <= 100])
# At 50,000 classes a row takes seconds; the top 10 and 100 of 1000 are slow too.
LARGE = together(
    [
        row
        for row in ARGMAX
        if row["classes"] == 50_000
        and (row["case"], row["target"]) == ("gap", 0.0 if row["noise"] == "uniform" else 3.0)
        and row["noise"] != "studentt:3"
    ]
    + [
        row
        for row in TOPK
        if (row["classes"], row["k"], row["case"], row["target"]) == (1000, 10, "gap", 0.0)
        and row["noise"] in ("normal", "gumbel", "uniform")
    ]
    + [row for row in TOPK if (row["noise"], row["classes"], row["k"], row["case"]) == ("normal", 1000, 100, "leaders")]
)


def scores_of(rows: Sequence[Row], dtype: torch.dtype) -> Tensor:
    """(rows, C) with the target last."""
    values = [[score for score, count in row["rivals"] for _ in range(count)] + [row["target"]] for row in rows]
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def log_p_of(rows: Sequence[Row], scores: Tensor) -> Tensor:
    noise, target = BY_NAME[rows[0]["noise"]], torch.full((len(rows),), scores.shape[1] - 1)
    if (k := rows[0].get("k")) is None:
        return argmax_log_prob(scores, target, noise=noise)
    return topk_log_prob(scores, target, k, noise=noise)


def expected_log_p(rows: Sequence[Row]) -> np.ndarray[Any, Any]:
    return np.array([float(row["log_p"]) for row in rows])


def check_in_float64(rows: Sequence[Row]) -> None:
    scores = scores_of(rows, torch.float64)
    log_p = log_p_of(rows, scores)
    slopes = gradient(log_p.sum(), scores).numpy()
    assert len(rows) == len(log_p)
    for row, got, slope in zip(rows, log_p.tolist(), slopes, strict=True):
        where, expected = (row["case"], row["target"], row["rivals"]), float(row["log_p"])
        if expected == -math.inf:  # out of reach of a bounded noise
            assert got == -math.inf, where
            assert not slope.any(), where
            continue
        assert abs(got - expected) <= LOG_P_64 * max(abs(expected), LEAST_64), where
        if "grad_rivals" in row:
            counts = [count for _, count in row["rivals"]]
            exact = np.append(np.repeat([float(g) for g in row["grad_rivals"]], counts), float(row["grad_target"]))
        else:
            exact, slope = np.array([float(row["grad_target"])]), slope[-1:]
        size = np.linalg.norm(exact)
        assert np.linalg.norm(slope - exact) <= GRADIENT_64 * max(size, LEAST_64), where


def test_the_tables_are_whole() -> None:
    assert {row["noise"] for row in ARGMAX} == set(BY_NAME)
    assert {row["classes"] for row in ARGMAX} == {2, 3, 10, 100, 1000, 50_000}
    assert len(SMALL) == len(BY_NAME) * 5 + (len(BY_NAME) - 1) * 4
    assert len(LARGE) == len(BY_NAME) - 1 + 3 + 1


@pytest.mark.parametrize("group", [pytest.param(g, marks=SLOW if g == "studentt:3 C=1000 k=1" else ()) for g in SMALL])
def test_float64(group: str) -> None:
    check_in_float64(SMALL[group])


@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=SLOW if g in ("studentt:1 C=50000 k=1", "laplace C=50000 k=1") else ()) for g in LARGE]
)
def test_float64_and_many_classes(group: str) -> None:
    check_in_float64(LARGE[group])


@pytest.mark.parametrize("group", [group for group in SMALL if group != "studentt:3 C=1000 k=1"])  # half a minute less
def test_float32_and_bfloat16(group: str) -> None:
    rows = SMALL[group]
    with torch.no_grad():
        scores = scores_of(rows, torch.float32)
        single = log_p_of(rows, scores)
        got, expected = single.double().numpy(), expected_log_p(rows)
        for row, g, x in zip(rows, got, expected, strict=True):
            where = (row["case"], row["target"], row["rivals"], g, x)
            assert abs(math.exp(g) - math.exp(x)) <= P_32, where
            assert g == x or abs(g - x) <= LOG_P_32 * max(abs(x), LEAST_32), where
        if scores.shape[1] > 100:
            return
        half = scores.bfloat16()  # all scores of the tables have few digits
        assert torch.equal(half.float(), scores)
        assert torch.equal(log_p_of(rows, half), single.bfloat16())
