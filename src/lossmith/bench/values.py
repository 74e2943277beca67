"""The stored reference values, 25 digits each, which ``tests/make_values.py`` computed without this library."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from lossmith.noise import Noise, StudentT, get


class Case(NamedTuple):
    """One probability: its scores, and what it must be. Numbers too small for a double are 0 here."""

    noise: str  # "studentt:3" for three degrees of freedom
    classes: int
    k: int  # among how many highest the target must be
    kind: str
    target: float
    rivals: tuple[tuple[float, int], ...]  # (score, how many)
    log_p: float
    log_q: float  # log(1 − p)
    gradient: tuple[float, ...] | None  # d log p / d z of the target and of one of each group of rivals; None where p is 0

    def scores(self) -> list[float]:
        """All scores, the target's first."""
        return [self.target, *(score for score, count in self.rivals for _ in range(count))]


@cache
def load() -> tuple[Case, ...]:
    """Every stored case."""
    folder = files("lossmith.bench") / "values"
    names = ("argmax.jsonl", "topk.jsonl")
    return tuple(_parse(line) for name in names for line in (folder / name).read_text(encoding="utf-8").splitlines())


def noise_of(name: str) -> Noise:
    """The noise of a table's name.

    >>> noise_of("studentt:3")
    StudentT(df=3)
    """
    base, _, df = name.partition(":")
    return StudentT(float(df)) if df else get(base)


def _parse(line: str) -> Case:
    row = json.loads(line)
    gradient = None
    if row["grad_target"] is not None:
        gradient = (float(row["grad_target"]), *map(float, row.get("grad_rivals", ())))
    return Case(
        noise=row["noise"],
        classes=row["classes"],
        k=row.get("k", 1),
        kind=row["case"],
        target=row["target"],
        rivals=tuple((score, count) for score, count in row["rivals"]),
        log_p=float(row["log_p"]),
        log_q=float(row["log_q"]),
        gradient=gradient,
    )
