"""The trip of the scores from a loss to its kernel: few files, and no check twice."""

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import lossmith
from lossmith import AccuracyLoss

ROOT = Path(lossmith.__file__).parent
KERNEL = ("engine/runtime/threads.py", "run_team")  # which hands the arrays to compiled code
FILES = {
    "inputs.py",
    "losses/accuracy.py",
    "engine/argmax/fused.py",
    "engine/runtime/select.py",  # which kernel
    "engine/runtime/launch.py",  # its job
    "engine/runtime/threads.py",  # which calls it
}


def calls_of(loss: Any, scores: Tensor, target: Tensor) -> list[tuple[str, str]]:
    """The library's functions that a warm call enters, each as its file and its name, in order."""
    loss(scores, target)
    seen: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            seen.append((path.relative_to(ROOT).as_posix(), frame.f_code.co_name))

    sys.setprofile(note)
    try:
        loss(scores, target)
    finally:
        sys.setprofile(None)
    return seen


def checks(calls: list[tuple[str, str]]) -> Counter[str]:
    """How often each check is called."""
    return Counter(name for _, name in calls if name.startswith("check"))


SCORES, TARGET = torch.zeros(8, 5), torch.arange(8) % 5


def test_the_default_loss_reaches_its_kernel_through_six_files() -> None:
    calls = calls_of(AccuracyLoss(), SCORES, TARGET)
    assert KERNEL in calls
    way = calls[: calls.index(KERNEL) + 1]
    assert {file for file, _ in way} <= FILES
    assert [name for name, count in checks(way).items() if count > 1] == []
    assert way.count(("inputs.py", "wrapped")) == 1  # the change of dtype


@pytest.mark.parametrize("noise", ["normal", "gumbel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"weight": torch.ones(5)}, {"margin": 1.0}, {"standardize": True}])
def test_no_tensor_is_checked_twice(noise: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    calls = calls_of(AccuracyLoss(noise, **options), SCORES.to(dtype), TARGET)
    counts = checks(calls)
    assert {"check_scores", "check_device", "check_tensors", "checked_scale"} <= set(counts)
    numbers = {"check_number", "check_order", "check_scale", "check_margin"}  # of the dials, not of tensors
    assert {name: count for name, count in counts.items() if count > 1 and name not in numbers} == {}
