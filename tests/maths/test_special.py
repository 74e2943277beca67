import math

import mpmath
import pytest
import torch
from mpmath import mp, mpf

from lossmith.maths.special import (
    inverse_mills,
    leader_from_rivals,
    log1mexp,
    log_ndtr,
    log_student_cdf,
    log_student_pdf,
    student_icdf,
)
from support import oracles
from support.cases import tensor

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


@pytest.mark.parametrize("x", [-1e-300, -1e-30, -1e-10, -0.3, -math.log(2), -0.7, -1.0, -30.0, -50.0, -700.0])
def test_log1mexp_and_its_derivatives_lose_no_digits(x: float) -> None:
    point = tensor(x, requires_grad=True)
    value = log1mexp(point)
    (slope,) = torch.autograd.grad(value, point, create_graph=True)
    with mpmath.workdps(700):
        e = mp.exp(mpf(x))
        expected = float(mp.log(1 - e)), float(-e / (1 - e))
    assert value.item() == pytest.approx(expected[0], rel=EXACT, abs=0)
    assert slope.item() == pytest.approx(expected[1], rel=EXACT, abs=0)
    if x < -1e-100:  # nearer to 0 the second derivative overflows
        with mpmath.workdps(700):
            curvature = float(-e / (1 - e) ** 2)
        assert torch.autograd.grad(slope, point)[0].item() == pytest.approx(curvature, rel=EXACT, abs=0)


def test_log1mexp_at_zero_is_minus_infinity_without_a_gradient() -> None:
    x = tensor([0.0, -1.0, -math.inf], requires_grad=True)
    value = log1mexp(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert value.tolist() == [-math.inf, pytest.approx(math.log1p(-math.exp(-1))), 0.0]
    assert slope.tolist() == [0.0, pytest.approx(-1 / (math.e - 1)), 0.0]


def test_log1mexp_in_float32() -> None:
    got = log1mexp(torch.tensor([-1e-30, -1e-3, -0.7, -20.0]))
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx([-69.07755, math.log(-math.expm1(-1e-3)), -0.686341, -math.exp(-20)], rel=SINGLE)


STUDENT_X = [-1e150, -1e30, -1e6, -300.0, -10.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 10.0, 300.0, 1e6, 1e30]
STUDENT = pytest.mark.parametrize("df", [0.5, 1.0, 3.0, 30.0, 200.0])


def student_mp(df: float, x: float) -> tuple[float, float]:
    """log F and log f; 1 − F is small against 1 by up to the digits that are carried."""
    with mpmath.workdps(60):
        x, df = mpf(x), mpf(df)
        # The series in df/(df + x²) keeps tails as far out as 1e-30000.
        tail = mp.betainc(df / 2, mpf(1) / 2, 0, df / (df + x * x), regularized=True) / 2
        log_cdf = mp.log(tail) if x < 0 else mp.log1p(-tail)
        log_pdf = -(df + 1) / 2 * mp.log1p(x * x / df) - mp.log(mp.sqrt(df) * mp.beta(df / 2, mpf(1) / 2))
        return float(log_cdf), float(log_pdf)


@STUDENT
@pytest.mark.parametrize("x", STUDENT_X)
def test_students_logarithms_and_derivative_hold_in_both_tails(x: float, df: float) -> None:
    log_cdf, log_pdf = student_mp(df, x)
    point = tensor([x], requires_grad=True)
    got = log_student_cdf(point, df)
    (slope,) = torch.autograd.grad(got, point)
    # Rounding of a logarithm of size l, times the power that it is raised to.
    assert got.item() == pytest.approx(log_cdf, rel=1e-12, abs=1e-300)
    assert log_student_pdf(point, df).item() == pytest.approx(log_pdf, rel=1e-13, abs=1e-13)
    rounding = 1e-15 * max(1.0, abs(log_pdf), abs(log_cdf))
    assert slope.item() == pytest.approx(math.exp(log_pdf - log_cdf), rel=1e-12 + 10 * rounding, abs=1e-300)


@STUDENT
def test_students_derivatives(df: float) -> None:
    x = tensor([-30.0, -2.0, 0.0, 0.5, 4.0], requires_grad=True)
    for function in (log_student_cdf, log_student_pdf):
        assert torch.autograd.gradcheck(lambda t, f=function: f(t, df), x)
        assert torch.autograd.gradgradcheck(lambda t, f=function: f(t, df), x)


@STUDENT
def test_the_second_derivative_of_students_cdf_holds_far_out(df: float) -> None:
    """(log F)″ = (f/F)(f′/f − f/F), which tends to df/x² as x → −∞."""
    x = tensor([-1e8, -1e5], requires_grad=True)
    (slope,) = torch.autograd.grad(log_student_cdf(x, df).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    # f/F and f′/f are near: their difference has lost a few digits.
    torch.testing.assert_close(curvature, df / x.detach().square(), rtol=1e-5, atol=0)


@STUDENT
def test_students_ends_and_quantile(df: float) -> None:
    assert log_student_cdf(tensor([-math.inf, math.inf]), df).tolist() == [-math.inf, 0.0]
    quantile = student_icdf(tensor([0.025, 0.5, 0.975]), df)
    assert quantile.tolist() == pytest.approx(oracles.stats.t.ppf([0.025, 0.5, 0.975], df), rel=1e-10, abs=1e-12)
    single = log_student_cdf(torch.tensor([-3.0, 2.0]), df)
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx([student_mp(df, -3.0)[0], student_mp(df, 2.0)[0]], rel=SINGLE)


def test_a_leader_takes_its_probability_from_its_rivals() -> None:
    """The leader's own value, rounded to 0, is not used; where no class has a half, nothing changes."""
    log_p = tensor([[-50.0, 0.0, -51.0], [-1.5, -1.0, -0.9]], requires_grad=True)
    got = leader_from_rivals(log_p)
    rest = math.exp(-50) + math.exp(-51)
    assert got[0].tolist() == [-50.0, pytest.approx(-rest, rel=EXACT), -51.0]
    assert torch.equal(got[1], log_p[1])
    (slopes,) = torch.autograd.grad(got[0, 1], log_p)
    assert slopes[0].tolist() == pytest.approx([-math.exp(-50), 0.0, -math.exp(-51)], rel=EXACT)


def test_a_leader_alone_is_certain() -> None:
    log_p = tensor([-math.inf, 0.0, -math.inf], requires_grad=True)
    got = leader_from_rivals(log_p)
    assert got.tolist() == [-math.inf, 0.0, -math.inf]
    assert not torch.autograd.grad(got[1], log_p)[0].any()
