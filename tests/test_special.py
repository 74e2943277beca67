import math

import pytest
import torch

import oracles
from lossmith.special import inverse_mills, log_ndtr

POINTS = [-1000.0, -300.0, -50.0, -37.5, -10.0, -5.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 8.0, 20.0, 37.0]
EXACT = 1e-14  # float64: a few units in the last place
SINGLE = 1e-6  # float32: the same

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, SINGLE)])


@DTYPES
@pytest.mark.parametrize("x", POINTS)
def test_log_ndtr_and_its_derivative_hold_in_both_tails(x: float, dtype: torch.dtype, tolerance: float) -> None:
    point = torch.tensor(x, dtype=dtype, requires_grad=True)
    value = log_ndtr(point)
    (slope,) = torch.autograd.grad(value, point)
    tiny = torch.finfo(dtype).tiny
    assert value.dtype == dtype
    # erfc(x/√2) carries x² units of rounding where log Φ itself is nearly zero.
    assert value.item() == pytest.approx(oracles.log_ndtr_mp(x), rel=tolerance * max(1.0, x * x), abs=tiny)
    assert slope.item() == pytest.approx(
        oracles.inverse_mills_mp(x), rel=tolerance * max(1.0, x * x if x > 0 else 1.0), abs=tiny
    )


@pytest.mark.parametrize("x", POINTS)
def test_inverse_mills_is_the_ratio(x: float) -> None:
    ratio = inverse_mills(torch.tensor(x, dtype=torch.float64))
    expected = oracles.inverse_mills_mp(x)
    assert ratio.item() == pytest.approx(expected, rel=EXACT * max(1.0, x * x if x > 0 else 1.0), abs=1e-300)


@pytest.mark.parametrize("x", [x for x in POINTS if -50 <= x <= 20])
def test_second_derivative_loses_x_squared_units(x: float) -> None:
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_ndtr(point), point, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, point)
    m = oracles.inverse_mills_mp(x)
    assert curvature.item() == pytest.approx(-m * (x + m), rel=1e-15 * max(10.0, x**4), abs=1e-15 * max(1.0, x * x) * m)


@pytest.mark.parametrize(
    ("x", "value", "slope"), [(math.inf, 0.0, 0.0), (-math.inf, -math.inf, math.inf), (math.nan, math.nan, math.nan)]
)
def test_infinities_and_nan(x: float, value: float, slope: float) -> None:
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    result = log_ndtr(point)
    (got,) = torch.autograd.grad(result, point)
    assert result.item() == pytest.approx(value, nan_ok=True)
    assert got.item() == pytest.approx(slope, nan_ok=True)


def test_curvature_is_zero_at_plus_infinity() -> None:
    point = torch.tensor(math.inf, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_ndtr(point), point, create_graph=True)
    assert torch.autograd.grad(slope, point)[0].item() == 0.0


def test_gradcheck_twice() -> None:
    x = torch.tensor([-6.0, -1.0, 0.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_ndtr, x)
    assert torch.autograd.gradgradcheck(log_ndtr, x)
    assert torch.autograd.gradcheck(inverse_mills, x)


def test_upstream_gradient_multiplies() -> None:
    x = torch.tensor([-2.0, 1.0], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([3.0, -0.5], dtype=torch.float64)
    (scaled,) = torch.autograd.grad(log_ndtr(x), x, upstream)
    torch.testing.assert_close(scaled, upstream * inverse_mills(x.detach()))
