import math

import numpy as np
import pytest
import torch

from lossmith.functional import neg_log_q
from support import oracles

QS = pytest.mark.parametrize("q", [-9.0, -1.0, 0.0, 0.3, 0.5, 1.0, 1.5, 2.0])


@QS
def test_it_is_its_definition(q: float) -> None:
    m = np.array([1e-6, 0.01, 0.3, 0.5, 0.9, 1.0])
    got = neg_log_q(torch.tensor(np.log(m)), q)
    np.testing.assert_allclose(got.numpy(), oracles.neg_log_q(m, q), rtol=1e-10, atol=1e-15)


@QS
def test_value_zero_and_slope_minus_one_where_the_model_is_right(q: float) -> None:
    log_m = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = neg_log_q(log_m, q)
    (slope,) = torch.autograd.grad(loss, log_m)  # d/d log m = d/dm at m = 1
    assert loss.item() == 0.0
    assert slope.item() == -1.0


@QS
def test_no_digits_are_lost_near_one(q: float) -> None:
    log_m = -1e-12
    expected = -log_m * (1 + (1 - q) * log_m / 2)  # the next term is of relative size 1e-24
    assert neg_log_q(torch.tensor(log_m, dtype=torch.float64), q).item() == pytest.approx(expected, rel=1e-14, abs=0)


@pytest.mark.parametrize(("q", "bound"), [(-9.0, 0.1), (0.0, 1.0), (0.5, 2.0), (0.9, 10.0), (1.0, math.inf), (2.0, math.inf)])
def test_bounded_below_one_and_unbounded_from_one_on(q: float, bound: float) -> None:
    assert neg_log_q(torch.tensor(-math.inf, dtype=torch.float64), q).item() == pytest.approx(bound, rel=1e-14)


def test_overflows_at_the_stated_place() -> None:
    losses = neg_log_q(torch.tensor([-709.0, -710.0], dtype=torch.float64), 2.0)
    assert losses.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("near", [1 - 1e-9, 1 + 1e-9])
def test_continuous_at_one(near: float) -> None:
    log_m = torch.tensor([-20.0, -1.0, -1e-3], dtype=torch.float64)
    torch.testing.assert_close(neg_log_q(log_m, near), neg_log_q(log_m, 1.0), rtol=1e-7, atol=0)


@QS
def test_gradcheck(q: float) -> None:
    log_m = torch.tensor([-3.0, -0.7, -1e-2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: neg_log_q(x, q), log_m)
    assert torch.autograd.gradgradcheck(lambda x: neg_log_q(x, q), log_m)


@QS
def test_the_slope_keeps_its_digits_far_from_one(q: float) -> None:
    """−m^(1−q), to the rounding of float32 where the loss itself has long rounded to 1/(1 − q)."""
    log_m = torch.tensor([-1e-3, -0.9, -1.1, -17.0, -60.0], requires_grad=True)
    (slope,) = torch.autograd.grad(neg_log_q(log_m, q).sum(), log_m)
    expected = -((1 - q) * log_m.detach().double()).exp()
    torch.testing.assert_close(slope.double(), expected, rtol=1e-5, atol=torch.finfo(torch.float32).tiny)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_are_kept(dtype: torch.dtype) -> None:
    got = neg_log_q(torch.full((2, 1, 3), -0.5, dtype=dtype), 0.5)
    assert got.shape == (2, 1, 3)
    assert got.dtype == dtype


@pytest.mark.parametrize("q", [math.nan, math.inf, -math.inf])
def test_refuses_other_orders_in_one_line(q: float) -> None:
    with pytest.raises(ValueError, match=r"^q: expected a finite number, got [^\n]+$"):
        neg_log_q(torch.zeros(1), q)
