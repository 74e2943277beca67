"""One-vs-rest and multi-label AUC and AP by the kernel of columns: brute force, one column after the other, scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

import lossmith
from lossmith import noise as noises
from lossmith.engine.ranking import columns as kernel
from lossmith.functional import columns

EACH = pytest.mark.parametrize("noise", ["normal", "logistic", "gumbel"])
LOSS = pytest.mark.parametrize("kind", [lossmith.AUCLoss, lossmith.AveragePrecisionLoss], ids=["auc", "ap"])
Ranking = type[lossmith.AUCLoss] | type[lossmith.AveragePrecisionLoss]
LAWS = {"normal": stats.norm, "logistic": stats.logistic, "gumbel": stats.gumbel_r}


def value_and_gradient(loss: torch.nn.Module, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = scores.clone().requires_grad_()
    value = loss(leaf, target)
    weights = torch.arange(1.0, 1 + value.numel(), dtype=value.dtype).view_as(value)
    return value.detach(), torch.autograd.grad((value * weights).sum(), leaf)[0]


def compare(loss: torch.nn.Module, scores: Tensor, target: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel, and one column after the other."""
    found = value_and_gradient(loss, scores, target)
    assert lossmith.last_kernel() == "cpu"
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "serves", lambda *_: False)
        expected = value_and_gradient(loss, scores, target)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@EACH
@LOSS
@pytest.mark.parametrize("average", ["macro", "weighted", "none"])
def test_one_class_against_the_rest(kind: Ranking, noise: str, average: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 7, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 5, (40,), generator=generator)  # classes 5 and 6 are absent
    target[3], scores[4] = -100, scores[5]  # an ignored sample, and ties
    loss = kind("multiclass", average, noise, scale=0.7)  # type: ignore[arg-type]
    for lead in (0.0, 9.0):
        compare(loss, scores + lead * torch.nn.functional.one_hot(target.clamp_min(0), 7), target, monkeypatch)


@EACH
@LOSS
@pytest.mark.parametrize("samples", [30, 400])
def test_labels(kind: Ranking, noise: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    target = (torch.rand(samples, 4, generator=generator) < 0.3).long()
    target[:, 3] = 0  # no positive
    target[2, 1] = -100
    for spread in (0.0, 0.1, 1.0, 20.0):
        scores = spread * torch.randn(samples, 4, dtype=torch.float64, generator=generator)
        compare(kind("multilabel", noise=noise), scores, target, monkeypatch)
    compare(kind("multilabel", "micro", noise=noise), scores, target, monkeypatch)


@EACH
def test_against_sums_over_all_pairs_and_a_dense_integral(noise: str) -> None:
    generator = np.random.default_rng(3)
    scores, positive = generator.normal(size=25), np.arange(25) % 3 == 0
    law, u = LAWS[noise], np.linspace(-45, 45, 90_001)
    above = law.sf(u[:, None] - scores)
    areas = law.pdf(u[:, None] - scores[positive]).sum(-1) * law.cdf(u[:, None] - scores[~positive]).sum(-1)
    auc = trapezoid(areas, u) / (positive.sum() * (~positive).sum())
    precisions = 0.0
    for i in np.flatnonzero(positive):
        others = above.sum(-1) - above[:, i]
        right = above[:, positive].sum(-1) - above[:, i]
        precisions += trapezoid(law.pdf(u - scores[i]) * (1 + right) / (1 + others), u)
    z, y = torch.from_numpy(scores), torch.from_numpy(positive).long()
    for kind, expected in ((lossmith.AUCLoss, auc), (lossmith.AveragePrecisionLoss, precisions / positive.sum())):
        assert 1 - kind(noise=noise, q=0.0)(z, y).item() == pytest.approx(expected, abs=1e-9)
        assert lossmith.last_kernel() == "cpu"


@EACH
def test_without_noise_they_are_those_of_scikit_learn(noise: str) -> None:
    generator = torch.Generator().manual_seed(2)
    scores, target = torch.randn(50, 3, dtype=torch.float64, generator=generator), torch.arange(50) % 3
    found = lossmith.AUCLoss("multiclass", noise=noise, scale=1e-3, q=0.0)(scores, target)
    assert 1 - found.item() == pytest.approx(roc_auc_score(target, scores.softmax(-1), multi_class="ovr"), abs=1e-3)
    labels, column = (target == 0).long(), 1e4 * scores[:, 0]
    found = lossmith.AveragePrecisionLoss(noise=noise, scale=20.0, q=0.0)(column, labels)
    assert 1 - found.item() == pytest.approx(average_precision_score(labels, column), abs=1e-2)


@EACH
@LOSS
def test_derivatives(kind: Ranking, noise: str) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(6, 3, dtype=torch.float64, generator=generator).requires_grad_()
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    target = torch.arange(6) % 3

    def loss(z: Tensor, s: Tensor) -> Tensor:
        return kind("multiclass", noise=noise, scale=s)(z, target)

    assert torch.autograd.gradcheck(loss, (scores, scale))
    assert torch.autograd.gradgradcheck(loss, (scores, scale))


@EACH
@LOSS
def test_next_to_perfection_digits_are_kept_and_beyond_it_is_perfect(kind: Ranking, noise: str) -> None:
    target = torch.arange(12) % 3
    one_hot = torch.nn.functional.one_hot(target, 3).double()
    loss = kind("multilabel", noise=noise)
    last = 1.0
    for lead in (2.0, 4.0, 8.0):
        value = loss(lead * one_hot, one_hot).item()
        assert 0 < value < last
        last = value
    leaf = (400 * one_hot).requires_grad_()
    assert loss(leaf, one_hot) == 0
    assert torch.autograd.grad(loss(leaf, one_hot), leaf)[0].abs().max() == 0


def test_log_auc_next_to_perfection_and_next_to_nothing() -> None:
    """One pair each: log Φ(δ/√2)."""
    for lead in (-14.0, -7.0, 5.0, 9.0, 14.0):
        z = torch.tensor([[lead, 1.0], [0.0, 0.0]], dtype=torch.float64)
        state = torch.tensor([[True, True], [False, False]])
        log_auc = columns.log_auc_of_columns((z, state, torch.ones_like(state), z.new_tensor(1.0)), noises.get("normal"), 1.0)
        assert log_auc[0].item() == pytest.approx(stats.norm.logcdf(lead / 2**0.5), rel=1e-6)


def test_columns_that_the_kernel_leaves_are_counted() -> None:
    generator = torch.Generator().manual_seed(5)
    scores, target = (
        torch.randn(20, 3, generator=generator, dtype=torch.float64),
        (torch.arange(60).view(20, 3) % 4 == 0).long(),
    )
    scores[:, 1] *= 1e5
    found = lossmith.AveragePrecisionLoss("multilabel", "none")(scores, target)
    assert lossmith.last_kernel() == "cpu, 1 column by reference"
    one = lossmith.AveragePrecisionLoss()(scores[:, 1], target[:, 1])
    torch.testing.assert_close(found[1], one)


@pytest.mark.parametrize("noise", ["normal", "gumbel"])
def test_a_class_whose_scores_are_not_finite_is_refused(noise: str) -> None:
    scores, target = torch.randn(12, 4, generator=torch.Generator().manual_seed(4)), torch.arange(12) % 3
    scores[:, 1] = -torch.inf
    with pytest.raises(ValueError, match=r"^scores: expected finite numbers, got -inf"):
        lossmith.AUCLoss("multiclass", noise=noise)(scores, target)


@LOSS
def test_the_bits_do_not_depend_on_threads(kind: Ranking) -> None:
    scores, target = torch.randn(200, 60, generator=torch.Generator().manual_seed(6)), torch.arange(200) % 60
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(value_and_gradient(kind("multiclass", "none"), scores, target))
    finally:
        torch.set_num_threads(before)
    for value, grad in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=0, atol=0)
        torch.testing.assert_close(grad, found[0][1], rtol=1e-6, atol=0)


def test_tables_exist_for_light_tails_only() -> None:
    assert all(kernel.coarsest(noises.get(name).key) for name in ("normal", "logistic", "gumbel"))
    for name in ("laplace", "studentt", "uniform"):
        assert kernel.tables(noises.get(name).key, True, 2) is None


def test_noise_without_tables_keeps_the_kernel_of_one_ranking() -> None:
    """Nothing is slow there, so nothing is said, and a request for the kernel is met."""
    scores, target = torch.randn(200, 20, generator=torch.Generator().manual_seed(7)), torch.arange(200) % 20
    for noise in ("laplace", "studentt"):
        with warnings.catch_warnings(), lossmith.use_kernel("cpu"):
            warnings.simplefilter("error")
            lossmith.AUCLoss("multiclass", noise=noise)(scores, target)
        assert lossmith.last_kernel() == "cpu"


@pytest.mark.parametrize("row", [[0.3, 0.3], [0.3, 0.3, -40.0], [1.0, 1.0, 1.0], [-2.0, 0.5, 0.5]])
def test_log_odds_of_scores_that_tie_have_one_slope(row: list[float]) -> None:
    """At a share of ½ the versions of torch differ in the slope of a clamp."""
    z, upstream = torch.tensor([row], dtype=torch.float64), torch.linspace(0.5, 1.5, len(row), dtype=torch.float64)

    def weighted(z: Tensor) -> Tensor:
        return (columns.log_odds(z) * upstream).sum()

    share, own = z[0].softmax(-1), torch.eye(len(row), dtype=torch.float64)
    of_rivals = (1 - own) * share / (1 - share).unsqueeze(-1)  # ∂ log Σ_{j ≠ c} e^{z_j} / ∂z_k
    expected = (upstream @ (own - of_rivals)).unsqueeze(0)
    leaf = z.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(weighted(leaf), leaf)[0], expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.func.grad(weighted)(z), expected, rtol=1e-12, atol=1e-15)
