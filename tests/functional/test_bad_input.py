"""Bad input is one line that says where, what was expected and what came, before anything is computed."""

import math
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor

from lossmith import PerturbedArgmax
from lossmith.engine.argmax import reference
from lossmith.engine.runtime import select
from lossmith.functional import argmax_log_prob, argmax_log_probs, topk_log_prob
from lossmith.noise import Noise, Normal

INF, NAN = math.inf, math.nan
Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
FUNCTIONS = pytest.mark.parametrize("function", ["argmax_log_prob", "argmax_log_probs", "topk_log_prob", "PerturbedArgmax"])


def call(function: str, scores: Tensor, **options: Any) -> object:
    """The function on these scores, with good targets unless others are given."""
    target = options.pop("target", torch.zeros(scores.shape[:-1], dtype=torch.int64))
    if function == "argmax_log_prob":
        return argmax_log_prob(scores, target, **options)
    if function == "topk_log_prob":
        return topk_log_prob(scores, target, options.pop("k", 2), **options)
    return argmax_log_probs(scores, **options) if function == "argmax_log_probs" else PerturbedArgmax(scores, **options)


@pytest.fixture(autouse=True)
def _nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object, **__: object) -> None:
        raise AssertionError("computed before the input was checked")

    for name in ("log_prob", "log_probs"):
        monkeypatch.setattr(reference, name, reached)
    # The fast kernels look at the values themselves, in the pass that finds the strongest rival: test_cpu.py.
    monkeypatch.setattr(select, "_asked", ContextVar("asked", default="reference"))
    monkeypatch.setattr(Noise, "closed_form_log_probs", reached)
    monkeypatch.setattr(Normal, "closed_form_log_probs", reached)


def test_good_input_does_reach_the_computation() -> None:
    for function in ("argmax_log_prob", "argmax_log_probs", "topk_log_prob"):
        with pytest.raises(AssertionError, match="computed before"):
            call(function, Z)


def with_row(row: list[float], at: int = 2) -> Tensor:
    scores = torch.zeros(4, 3)
    scores[at] = torch.tensor(row)
    return scores


SCORES = {
    "integers": (Z.long(), TypeError, r"^scores: expected a floating-point tensor, got torch\.int64; [^\n]+$"),
    "booleans": (Z.bool(), TypeError, r"^scores: expected a floating-point tensor, got torch\.bool; [^\n]+$"),
    "complex": (Z.to(torch.complex64), TypeError, r"^scores: expected a floating-point tensor, got torch\.complex64; [^\n]+$"),
    "one class": (Z[:, :1], ValueError, r"^scores: expected shape \(…, C\) with C ≥ 2 classes, got \(4, 1\)$"),
    "no class": (Z[:, :0], ValueError, r"^scores: expected shape \(…, C\) with C ≥ 2 classes, got \(4, 0\)$"),
    "no dimension": (Z[0, 0], ValueError, r"^scores: expected shape [^\n]+, got \(\)$"),
    "nan": (with_row([0.0, NAN, 1.0]), ValueError, r"^scores: expected finite numbers or −inf, got nan in row 2; [^\n]+$"),
    "nan beside inf": (with_row([INF, NAN, 1.0]), ValueError, r"^scores: expected [^\n]+, got nan in row 2; [^\n]+$"),
    "nan in half": (with_row([NAN] * 3, 0).half(), ValueError, r"^scores: expected [^\n]+, got nan in row 0; [^\n]+$"),
    "inf": (with_row([0.0, INF, 1.0], 1), ValueError, r"^scores: expected [^\n]+, got inf in row 1; use −inf [^\n]+$"),
    "all removed": (
        with_row([-INF] * 3, 3),
        ValueError,
        r"^scores: expected a class that is not removed, got −inf for every class of row 3$",
    ),
    "one row": (torch.tensor([0.0, NAN]), ValueError, r"^scores: expected finite [^\n]+, got nan in the scores; [^\n]+$"),
    "one row removed": (torch.tensor([-INF, -INF]), ValueError, r"^scores: expected [^\n]+ every class of the scores$"),
    "three dimensions": (
        with_row([0.0, NAN, 1.0]).view(2, 2, 3),
        ValueError,
        r"^scores: expected [^\n]+, got nan in row \(1, 0\); [^\n]+$",
    ),
    "three dimensions removed": (
        with_row([-INF] * 3, 1).view(2, 2, 3),
        ValueError,
        r"^scores: expected [^\n]+, got −inf for every class of row \(0, 1\)$",
    ),
}


@FUNCTIONS
@pytest.mark.parametrize("case", SCORES)
def test_scores(case: str, function: str) -> None:
    scores, error, message = SCORES[case]
    with pytest.raises(error, match=message):
        call(function, scores)


@pytest.mark.parametrize("function", ["argmax_log_prob", "topk_log_prob"])
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (Y.float(), TypeError, r"^target: expected integer class indices, got torch\.float32$"),
        (Y.bool(), TypeError, r"^target: expected integer class indices, got torch\.bool$"),
        (Y[:3], ValueError, r"^target: expected shape \(4,\) for scores \(4, 3\), got \(3,\)$"),
        (Y.view(4, 1), ValueError, r"^target: expected shape \(4,\) for scores \(4, 3\), got \(4, 1\)$"),
        (Y + 3, ValueError, r"^target: expected class indices from 0 to 2, got 3 to 3$"),
        (Y - 1, ValueError, r"^target: expected class indices from 0 to 2, got -1 to -1$"),
    ],
)
def test_targets(target: Tensor, error: type[Exception], message: str, function: str) -> None:
    with pytest.raises(error, match=message):
        call(function, Z, target=target)


@FUNCTIONS
@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (0.0, ValueError, r"^scale: expected a positive number, got 0\.0$"),
        (-1, ValueError, r"^scale: expected a positive number, got -1$"),
        (NAN, ValueError, r"^scale: expected a positive number, got nan$"),
        (INF, ValueError, r"^scale: expected a positive number, got inf$"),
        ("1", TypeError, r"^scale: expected a number or a tensor, got str$"),
        (None, TypeError, r"^scale: expected a number or a tensor, got NoneType$"),
        (torch.ones(4), ValueError, r"^scale: expected a shape that broadcasts to \(4, 1\), got \(4,\)$"),
        (torch.ones(5, 1), ValueError, r"^scale: expected a shape that broadcasts to \(4, 1\), got \(5, 1\)$"),
        (-torch.ones(4, 1), ValueError, r"^scale: expected positive numbers, got a tensor with -1\.0$"),
        (torch.tensor([[1.0], [NAN], [1.0], [0.0]]), ValueError, r"^scale: expected positive numbers, got a tensor with nan$"),
        (torch.tensor(INF), ValueError, r"^scale: expected positive numbers, got a tensor with inf$"),
        (torch.tensor(0), ValueError, r"^scale: expected positive numbers, got a tensor with 0\.0$"),
    ],
    ids=str,
)
def test_scales(scale: Any, error: type[Exception], message: str, function: str) -> None:
    with pytest.raises(error, match=message):
        call(function, Z, scale=scale)


@FUNCTIONS
@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        ("gumble", ValueError, r"^noise: unknown name 'gumble'; did you mean 'gumbel'\?$"),
        (1, TypeError, r"^noise: expected a name or a [^\n]+, got int$"),
    ],
)
def test_noises(noise: Any, error: type[Exception], message: str, function: str) -> None:
    with pytest.raises(error, match=message):
        call(function, Z, noise=noise)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, r"^k: expected an integer from 1 to the 3 classes, got 0$"),
        (-1, ValueError, r"^k: expected an integer from 1 to the 3 classes, got -1$"),
        (4, ValueError, r"^k: expected an integer from 1 to the 3 classes, got 4$"),
        (1.5, TypeError, r"^k: expected an integer, got float$"),
        (True, TypeError, r"^k: expected an integer, got bool$"),
        ("2", TypeError, r"^k: expected an integer, got str$"),
    ],
)
def test_ranks(k: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        topk_log_prob(Z, Y, k)
    with pytest.raises(error, match=message):
        PerturbedArgmax(Z).topk_log_prob(Y, k)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_values_and_scales_are_looked_at_for_every_rank(k: int) -> None:
    with pytest.raises(ValueError, match=r"^scores: [^\n]+ nan in row 2"):
        topk_log_prob(with_row([0.0, NAN, 1.0]), Y, k)
    with pytest.raises(ValueError, match=r"^scale: [^\n]+ got -1.0$"):
        topk_log_prob(Z, Y, k, scale=-1.0)


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        (-1.0, r"^margin: expected a number ≥ 0 in units of the scores, got -1\.0$"),
        (NAN, r"^margin: expected [^\n]+, got nan$"),
    ],
)
def test_margins(margin: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        argmax_log_prob(Z, Y, margin=margin)


def test_an_empty_batch_is_not_bad() -> None:
    with pytest.raises(AssertionError, match="computed before"):
        argmax_log_probs(Z[:0])
