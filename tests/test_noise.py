import math

import numpy as np
import pytest
import torch
from scipy import stats

import oracles
from lossmith import noise
from lossmith.noise import Gumbel, Noise, Normal

SCIPY = {"normal": stats.norm, "gumbel": stats.gumbel_r}
EACH = pytest.mark.parametrize("name", list(SCIPY))
X = np.array([-6.0, -3.0, -1.0, -0.2, 0.0, 0.7, 2.0, 5.0, 12.0])


def test_every_noise_is_tested() -> None:
    assert set(noise.NOISES) == set(SCIPY)


@EACH
@pytest.mark.parametrize(("method", "counterpart"), [("log_prob", "logpdf"), ("log_cdf", "logcdf"), ("cdf", "cdf")])
def test_density_and_distribution_function_are_scipys(name: str, method: str, counterpart: str) -> None:
    ours = getattr(noise.get(name), method)(torch.tensor(X))
    theirs = getattr(SCIPY[name], counterpart)(X)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-13, atol=1e-300)


@EACH
def test_distribution_function_keeps_its_digits_far_out(name: str) -> None:
    far = torch.tensor([-6.0, 30.0], dtype=torch.float64)
    left, right = noise.get(name).log_cdf(far).tolist()
    if name == "normal":
        expected = oracles.log_ndtr_mp(-6.0), oracles.log_ndtr_mp(30.0)
    else:
        expected = -math.exp(6.0), -math.exp(-30.0)
    assert left == pytest.approx(expected[0], rel=1e-14, abs=0)
    assert right == pytest.approx(expected[1], rel=1e-12, abs=0)


@EACH
def test_quantile_inverts_the_distribution_function(name: str) -> None:
    p = np.array([1e-12, 1e-3, 0.1, 0.5, 0.9, 0.999])
    ours = noise.get(name).icdf(torch.tensor(p))
    np.testing.assert_allclose(ours.numpy(), SCIPY[name].ppf(p), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(noise.get(name).cdf(ours).numpy(), p, rtol=1e-9)


@EACH
@pytest.mark.parametrize(
    ("function", "derivatives"), [("log_prob", ("score", "score_slope")), ("log_cdf", ("hazard", "hazard_slope"))]
)
def test_derivatives_of_log_f_and_of_log_cdf(name: str, function: str, derivatives: tuple[str, str]) -> None:
    distribution = noise.get(name)
    x = torch.tensor(X, requires_grad=True)
    (first,) = torch.autograd.grad(getattr(distribution, function)(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    for method, expected in zip(derivatives, (first, second), strict=True):
        torch.testing.assert_close(getattr(distribution, method)(x), expected, rtol=1e-12, atol=1e-300)


@EACH
def test_log_cdf_is_flat_at_plus_infinity(name: str) -> None:
    distribution, far = noise.get(name), torch.tensor([math.inf, 1e4], dtype=torch.float64)
    for method in (distribution.log_cdf, distribution.hazard, distribution.hazard_slope):
        assert method(far).tolist() == [0.0, 0.0]


@EACH
def test_the_density_peaks_at_the_mode(name: str) -> None:
    distribution = noise.get(name)
    assert distribution.score(torch.tensor(distribution.mode, dtype=torch.float64)).item() == 0.0


@EACH
def test_what_the_engine_requires(name: str) -> None:
    """log f and log F are concave, and their derivatives convex."""
    x = torch.linspace(-6, 12, 2001, dtype=torch.float64)
    rounding = 1e-9
    for function in (noise.get(name).log_prob, noise.get(name).log_cdf):
        values = function(x)
        assert (values.diff(n=2) <= rounding * values[1:-1].abs().clamp_min(1)).all()
        assert (values.diff(n=3) >= -rounding * values[2:-1].abs().clamp_min(1)).all()


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_samples_follow_the_distribution(name: str, dtype: torch.dtype) -> None:
    """Kolmogorov–Smirnov at level 1e-6: with a fixed seed it passes or fails for good."""
    torch.manual_seed(0)
    drawn = noise.get(name).sample((200, 100), like=torch.zeros((), dtype=dtype))
    assert drawn.shape == (200, 100)
    assert drawn.dtype == dtype
    assert stats.kstest(drawn.double().flatten().numpy(), SCIPY[name].cdf).pvalue > 1e-6


@EACH
def test_samples_repeat_with_the_global_seed(name: str) -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(noise.get(name).sample((5,), like=torch.zeros(())))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_zero_from_the_generator_gives_a_finite_gumbel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(*shape, **options))
    assert Gumbel().sample((3,), like=torch.zeros(())).isfinite().all()


def test_closed_forms() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    gumbel = Gumbel().closed_form_log_probs(scores)
    assert gumbel is not None
    np.testing.assert_allclose(gumbel.exp().numpy(), oracles.softmax(scores.numpy()), rtol=1e-14)
    normal = Normal().closed_form_log_probs(scores[:, :2])
    assert normal is not None
    np.testing.assert_allclose(normal.exp().numpy(), [stats.norm.cdf([1.3 / math.sqrt(2), -1.3 / math.sqrt(2)])], rtol=1e-14)
    assert Normal().closed_form_log_probs(scores) is None


def test_get_takes_a_name_or_a_noise() -> None:
    own = Normal()
    assert noise.get(own) is own
    assert isinstance(noise.get("gumbel"), Gumbel)
    assert repr(noise.get("normal")) == "Normal()"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("norml", ValueError, r"^noise: unknown name 'norml'; did you mean 'normal'\?$"),
        ("gumble", ValueError, r"^noise: unknown name 'gumble'; did you mean 'gumbel'\?$"),
        ("zzz", ValueError, r"^noise: unknown name 'zzz'; choose from 'normal', 'gumbel'$"),
        (3, TypeError, r"^noise: expected a name or a lossmith\.noise\.Noise, got int$"),
        (Normal, TypeError, r"^noise: expected a name or a lossmith\.noise\.Noise, got .+$"),
    ],
)
def test_get_refuses_in_one_line(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        noise.get(given)  # type: ignore[arg-type]


def test_noise_itself_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Noise()  # type: ignore[abstract]
