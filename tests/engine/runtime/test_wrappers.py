"""Tensors that own no memory, and operators called with other dtypes: refused or served, never read as memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import lossmith
from lossmith.functional import argmax_log_prob


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 300, generator=generator), torch.randint(300, (64,), generator=generator)


def test_fake_tensors_give_shapes() -> None:
    with FakeTensorMode():
        scores, target = torch.randn(64, 300, requires_grad=True), torch.zeros(64, dtype=torch.int64)
        loss = lossmith.AccuracyLoss("normal", q=1.0)(scores, target)
        loss.backward()
    assert loss.shape == ()
    assert scores.grad is not None
    assert scores.grad.shape == (64, 300)


def test_a_wrapper_of_two_tensors_computes_both() -> None:
    scores, target = batch()
    both = argmax_log_prob(TwoTensor(scores, 2 * scores), TwoTensor(target, target))
    assert isinstance(both, TwoTensor)
    torch.testing.assert_close(both.a, argmax_log_prob(scores, target))
    torch.testing.assert_close(both.b, argmax_log_prob(2 * scores, target))


class Named(Tensor):
    """A subclass with memory of its own."""


def test_a_subclass_with_memory_is_a_tensor() -> None:
    scores, target = batch()
    found = lossmith.AccuracyLoss("normal", q=1.0)(scores.as_subclass(Named), target)
    torch.testing.assert_close(
        torch.Tensor(found.detach().as_subclass(Tensor)), lossmith.AccuracyLoss("normal", q=1.0)(scores, target)
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("target", {"target": torch.zeros(64, dtype=torch.int32)}),
        ("target", {"target": torch.zeros(63, dtype=torch.int64)}),
        ("scale", {"scale": torch.ones(1, dtype=torch.float64)}),
        ("scale", {"scale": torch.ones(7)}),
        ("scores", {"scores": torch.zeros(64, 300, dtype=torch.float16)}),
    ],
)
def test_operators_refuse_what_they_would_misread(name: str, change: dict[str, Any]) -> None:
    scores, target = batch()
    arguments = {"scores": scores, "target": target, "scale": torch.ones(1), "noise": "normal", "ignored": -100, **change}
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        torch.ops.lossmith.target_log_prob(**arguments)
