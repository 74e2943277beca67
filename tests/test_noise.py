"""Every noise against SciPy where that has its digits, and against mpmath in the tails."""

import copy
import gc
import math
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, stats

from lossmith import AccuracyLoss
from lossmith import noise as noises
from lossmith.noise import Custom, Exponential, Gumbel, Noise, Normal, StudentT
from support import oracles
from support.cases import tensor

BY_NAME = {name: StudentT(float(name[9:])) if ":" in name else noises.get(name) for name in oracles.SCIPY}
EACH = pytest.mark.parametrize("name", BY_NAME)
X = np.array([-6.0, -3.0, -1.0, -0.2, 0.25, 0.7, 2.0, 5.0, 12.0])
# Of each noise, points deep in its tails: where F or 1 − F is far below the rounding of 1.
FAR = {
    "normal": [-1000.0, -39.0, 9.0, 30.0],
    "gumbel": [-700.0, -6.0, 40.0, 600.0],
    "logistic": [-1e4, -700.0, 40.0, 700.0],
    "laplace": [-1e4, -700.0, 40.0, 700.0],
    "studentt:1": [-1e150, -1e18, 1e9, 1e18],
    "studentt:3": [-1e18, -1e6, 1e4, 1e18],
    "studentt:30": [-1e18, -1e3, 1e2, 1e9],
    "uniform": [1e-300, 1e-20, 0.5, 1 - 2.0**-53],
    "exponential": [-1e4, -700.0, -1e-20, -1e-300],
}
TAILS = [(name, x) for name, points in FAR.items() for x in points]


def differentiable(values: NDArray[np.float64] | list[float]) -> torch.Tensor:
    return tensor(values, requires_grad=True)


def scipys_log(name: str, x: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    """log F or log(1 − F), from whichever of the two is small; SciPy's own logarithms are not all made so."""
    scipys = oracles.SCIPY[name]
    small, large = (scipys.cdf(x), scipys.sf(x)) if method == "log_cdf" else (scipys.sf(x), scipys.cdf(x))
    with np.errstate(divide="ignore"):
        return np.where(large < 0.5, np.log1p(-large), np.log(small))


def test_every_noise_is_tested() -> None:
    assert {name.partition(":")[0] for name in oracles.SCIPY} == set(noises.NOISES) == {n.name for n in BY_NAME.values()}


@EACH
def test_density_is_scipys(name: str) -> None:
    np.testing.assert_allclose(BY_NAME[name].log_prob(tensor(X)).numpy(), oracles.SCIPY[name].logpdf(X), rtol=1e-13)


@EACH
@pytest.mark.parametrize("method", ["log_cdf", "log_sf"])
def test_distribution_and_survival_function_are_scipys(name: str, method: str) -> None:
    ours = getattr(BY_NAME[name], method)(tensor(X)).numpy()
    np.testing.assert_allclose(ours, scipys_log(name, X, method), rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(BY_NAME[name].cdf(tensor(X)).numpy(), oracles.SCIPY[name].cdf(X), rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize(("name", "x"), TAILS)
def test_both_logarithms_keep_their_digits_far_out(name: str, x: float) -> None:
    got = [getattr(BY_NAME[name], method)(tensor([x])).item() for method in ("log_cdf", "log_sf")]
    expected = [oracles.log_cdf_mp(name, x), oracles.log_sf_mp(name, x)]
    # log Φ carries x² units of rounding where it is nearly 0.
    tolerance = 1e-14 * max(1.0, x * x) if name == "normal" and x > 0 else 1e-13
    absolute = 1e-16 if name == "uniform" else 1e-307  # its log(1 − F) near 0 is good to the rounding of 1
    assert got == pytest.approx(expected, rel=tolerance, abs=absolute)


@EACH
def test_the_ends_of_the_line(name: str) -> None:
    ends = tensor([-math.inf, math.inf])
    assert BY_NAME[name].log_cdf(ends).tolist() == [-math.inf, 0.0]
    assert BY_NAME[name].log_sf(ends).tolist() == [0.0, -math.inf]


@EACH
def test_quantile_inverts_the_distribution_function(name: str) -> None:
    p = np.array([1e-12, 1e-3, 0.1, 0.5, 0.9, 0.999])
    ours = BY_NAME[name].icdf(tensor(p))
    np.testing.assert_allclose(ours.numpy(), oracles.SCIPY[name].ppf(p), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(BY_NAME[name].cdf(ours).numpy(), p, rtol=1e-9)


@EACH
def test_the_derivative_of_log_cdf_is_the_density_over_the_cdf(name: str) -> None:
    x = differentiable(X)
    log_cdf = BY_NAME[name].log_cdf(x)
    (slope,) = torch.autograd.grad(log_cdf[log_cdf.isfinite()].sum(), x)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = oracles.SCIPY[name].pdf(X) / oracles.SCIPY[name].cdf(X)
    np.testing.assert_allclose(slope.numpy(), np.nan_to_num(ratio), rtol=1e-12, atol=1e-300)


@EACH
@pytest.mark.parametrize("method", ["log_prob", "log_cdf", "log_sf"])
def test_derivatives_up_to_the_third(name: str, method: str) -> None:
    """Away from the kinks, where uniform and exponential have nothing outside their supports."""
    inside = {"uniform": [0.1, 0.45, 0.9], "exponential": [-3.0, -0.5, -0.1]}
    x = differentiable(inside.get(name, [-2.0, -0.3, 0.4, 1.5]))
    function = getattr(BY_NAME[name], method)
    if function(x).requires_grad:  # the uniform density is constant
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


@EACH
def test_kinks_are_where_scipys_density_is_not_smooth(name: str) -> None:
    density, h = oracles.SCIPY[name].pdf, 1e-6
    x = np.arange(-3.0, 3.25, 0.25)
    left, right = density(x - h), density(x + h)
    left_slope, right_slope = (left - density(x - 2 * h)) / h, (density(x + 2 * h) - right) / h
    rough = (abs(right - left) > 100 * h) | (abs(right_slope - left_slope) > 100 * h + 1e-4)
    assert tuple(x[rough]) == BY_NAME[name].kinks


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_type_and_shape_are_kept(name: str, dtype: torch.dtype) -> None:
    x = torch.full((2, 3), 0.25, dtype=dtype)
    for method in ("log_prob", "log_cdf", "log_sf", "cdf", "icdf"):
        got = getattr(BY_NAME[name], method)(x)
        assert got.dtype == dtype, method
        assert got.shape == (2, 3), method


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_samples_follow_the_distribution(name: str, dtype: torch.dtype) -> None:
    """Kolmogorov–Smirnov at level 1e-6: with a fixed seed it passes or fails for good."""
    torch.manual_seed(0)
    drawn = BY_NAME[name].sample((200, 100), like=torch.zeros((), dtype=dtype))
    assert drawn.shape == (200, 100)
    assert drawn.dtype == dtype
    assert stats.kstest(drawn.double().flatten().numpy(), oracles.SCIPY[name].cdf).pvalue > 1e-6


@EACH
def test_samples_repeat_with_the_global_seed(name: str) -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(BY_NAME[name].sample((5,), like=torch.zeros(())))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@EACH
def test_a_zero_from_the_generator_gives_a_finite_sample(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(*shape, **options))
    assert BY_NAME[name].sample((3,), like=torch.zeros(())).isfinite().all()


def test_closed_forms() -> None:
    scores = np.array([[0.3, -1.0, 2.0]])
    gumbel = Gumbel().closed_form_log_probs(tensor(scores))
    assert gumbel is not None
    np.testing.assert_allclose(gumbel.exp().numpy(), oracles.softmax(scores), rtol=1e-14)
    normal = Normal().closed_form_log_probs(tensor(scores[:, :2]))
    assert normal is not None
    np.testing.assert_allclose(normal.exp().numpy(), [stats.norm.cdf([1.3 / math.sqrt(2), -1.3 / math.sqrt(2)])], rtol=1e-14)
    exponential = Exponential().closed_form_log_probs(tensor(scores))
    assert exponential is not None
    for k, z in enumerate(scores[0]):  # minus an exponential variable is e⁻ᵗ dense at z − t
        others = np.delete(scores[0], k)
        breaks = [z - s for s in others if s < z]
        p = integrate.quad(
            lambda t, z=z, o=others: np.exp(-t + np.minimum(z - t - o, 0).sum()), 0, 60, points=breaks, epsabs=1e-12
        )[0]
        assert exponential[0, k].exp().item() == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ("gumbel", "exponential")])
def test_no_other_closed_form(name: str) -> None:
    assert not BY_NAME[name].has_closed_form(3)
    assert BY_NAME[name].has_closed_form(2) == (name == "normal")


def test_get_takes_a_name_or_a_noise() -> None:
    own = Normal()
    assert noises.get(own) is own
    assert isinstance(noises.get("gumbel"), Gumbel)
    assert [repr(noises.get(name)) for name in ("normal", "studentt")] == ["Normal()", "StudentT(df=3)"]


def wider(noise: Noise, width: float = 2.0, name: str = "wide", **functions: Any) -> Custom:
    """A built-in noise stretched, with other functions in the place of its own where they are given."""
    own: dict[str, Any] = {
        "log_prob": lambda x: noise.log_prob(x / width) - math.log(width),
        "log_cdf": lambda x: noise.log_cdf(x / width),
        "icdf": lambda p: width * noise.icdf(p),
    }
    return Custom(**{**own, **functions}, kinks=[width * kink for kink in noise.kinks], name=name)


def test_custom_is_made_of_its_functions() -> None:
    own = wider(noises.Laplace())
    x = tensor([-1.0, 0.0, 3.0])
    assert own.log_prob(x).tolist() == pytest.approx([math.log(0.25) - 0.5, math.log(0.25), math.log(0.25) - 1.5])
    assert own.cdf(x).tolist() == pytest.approx([math.exp(-0.5) / 2, 0.5, 1 - math.exp(-1.5) / 2])
    assert own.log_sf(x).tolist() == pytest.approx([math.log1p(-math.exp(-0.5) / 2), math.log(0.5), math.log(0.5) - 1.5])
    assert own.icdf(tensor([0.25, 0.5])).tolist() == pytest.approx([-2 * math.log(2), 0.0])
    assert wider(noises.Uniform()).kinks == (0.0, 2.0)
    assert repr(noises.get(own)) == "Custom(name='wide', quartiles=(-1.386, 0, 1.386))"


NORMAL = Normal()
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"icdf": NORMAL.icdf}, r"icdf: expected the inverse of exp\(log_cdf\), but F\(F⁻¹\(0\.\d+\)\) is 0\.\d+; correct icdf"),
    (
        {"log_prob": NORMAL.log_prob},
        r"log_prob: expected the logarithm of the derivative of exp\(log_cdf\), but at -?\d.+ correct",
    ),
    ({"log_prob": torch.zeros_like}, r"log_prob: expected the logarithm of the derivative"),
    ({"log_cdf": lambda x: NORMAL.cdf(x / 2)}, r"icdf: expected the inverse"),
    (
        {"log_cdf": lambda x: NORMAL.log_cdf(x / 2).detach()},
        r"log_cdf: expected a function that torch.autograd can differentiate$",
    ),
    (
        {"log_cdf": lambda x: NORMAL.log_cdf(x / 2).double()},
        r"log_cdf: expected torch.float32 of shape \(2, 3\) as its input, got",
    ),
    ({"log_prob": lambda x: NORMAL.log_prob(x).sum()}, r"log_prob: expected .+, got torch.float32 of shape \(\)$"),
    ({"icdf": lambda p: p.tolist()}, r"icdf: expected torch.float32 of shape \(2, 3\) as its input, got list$"),
    ({"log_prob": lambda x: x * math.nan}, r"log_prob: expected numbers at quantiles, got nan$"),
    ({"icdf": lambda p: 1 / 0}, r"icdf: expected values at probabilities in \(0, 1\), got ZeroDivisionError: .+$"),
]


@pytest.mark.parametrize(("functions", "message"), WRONG)
def test_custom_refuses_functions_that_contradict_each_other(functions: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^noise 'wide': {message}"):
        wider(NORMAL, **functions)


@EACH
@pytest.mark.parametrize("width", [1e-6, 1.0, 1e6])
def test_custom_accepts_every_distribution(name: str, width: float) -> None:
    with torch.inference_mode():
        own = wider(BY_NAME[name], width)
    assert noises.by_key(own.key) is own


@EACH
def test_built_in_noises_are_final(name: str) -> None:
    kind = type(BY_NAME[name])
    with pytest.raises(
        TypeError, match=rf"^Own: expected a subclass .+ built-in {kind.__name__}, .+; subclass Noise, or use Custom$"
    ):
        type("Own", (kind,), {})
    assert issubclass(type("Own", (Custom,), {}), Noise)


def test_a_noise_of_ones_own_is_not_kept_alive() -> None:
    own = wider(NORMAL)
    key, alive = own.key, weakref.ref(own)
    assert noises.by_key(key) is own
    del own
    gc.collect()
    assert alive() is None
    with pytest.raises(ValueError, match=r"^noise: expected one that is in use in this process, got the key 'own:\d+'"):
        noises.by_key(key)


def test_a_gradient_outlives_the_loss_that_has_the_noise() -> None:
    scores, target = differentiable([[0.3, 0.0, -0.2]] * 2), torch.tensor([0, 1])
    for twice in (False, True):
        loss = AccuracyLoss(wider(NORMAL))(scores, target)
        gc.collect()
        (grad,) = torch.autograd.grad(loss, scores, create_graph=twice)
        gc.collect()
        assert grad.isfinite().all()
    assert torch.autograd.grad(grad.sum() + grad[0, 0], scores)[0].isfinite().all()


def test_copies_have_keys_of_their_own() -> None:
    own = wider(NORMAL)
    copies = [copy.copy(own), copy.deepcopy(own)]
    assert len({noise.key for noise in (own, *copies)}) == 3
    assert all(noises.by_key(noise.key) is noise for noise in copies)
    assert pickle.loads(pickle.dumps(StudentT(5))).key == "studentt:5.0"


def test_identity_tells_distributions_apart() -> None:
    each = [*BY_NAME.values(), wider(NORMAL), wider(NORMAL, 2.001), wider(NORMAL, name="other"), wider(Gumbel())]
    assert len({noises.identity(noise) for noise in each}) == len(each)
    assert noises.identity(wider(NORMAL)) == noises.identity(wider(NORMAL))
    assert noises.identity(StudentT(3)) == noises.identity(noises.get("studentt"))


NAMES = r"'normal', 'gumbel', 'logistic', 'laplace', 'studentt', 'uniform', 'exponential'"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("norml", ValueError, r"^noise: unknown name 'norml'; did you mean 'normal', 'uniform'\?$"),
        ("gumble", ValueError, r"^noise: unknown name 'gumble'; did you mean 'gumbel'\?$"),
        ("zzz", ValueError, rf"^noise: unknown name 'zzz'; choose from {NAMES}$"),
        (3, TypeError, r"^noise: expected a name or a lossmith\.noise\.Noise, got int$"),
        (Normal, TypeError, r"^noise: expected a name or a lossmith\.noise\.Noise, got .+$"),
    ],
)
def test_get_refuses_in_one_line(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        noises.get(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("df", [0.0, -1.0, math.inf, math.nan])
def test_degrees_of_freedom_are_positive_and_finite(df: float) -> None:
    with pytest.raises(ValueError, match=rf"^df: expected a finite number of degrees of freedom > 0, got {df}$"):
        StudentT(df)


def test_noise_itself_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Noise()  # type: ignore[abstract]
