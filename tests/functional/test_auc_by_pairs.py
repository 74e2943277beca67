"""One-vs-rest and multi-label AUC by all pairs at once, against one column after the other and against scikit-learn."""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import lossmith
from lossmith.functional import columns

EACH = pytest.mark.parametrize("noise", ["normal", "gumbel"])


def value_and_gradient(loss: lossmith.AUCLoss, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = scores.clone().requires_grad_()
    value = loss(leaf, target)
    weights = torch.arange(1.0, 1 + value.numel(), dtype=value.dtype).view_as(value)
    return value.detach(), torch.autograd.grad((value * weights).sum(), leaf)[0]


def compare(loss: lossmith.AUCLoss, scores: Tensor, target: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Tensor:
        raise AssertionError("not by pairs")

    with monkeypatch.context() as patch:
        patch.setattr(columns, "_auc_by_column", fails)
        found = value_and_gradient(loss, scores, target)
        assert lossmith.last_kernel() == "closed form"
    with monkeypatch.context() as patch:
        patch.setattr(columns, "MOST_PAIRS", 0)
        expected = value_and_gradient(loss, scores, target)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@EACH
@pytest.mark.parametrize("average", ["macro", "weighted", "none"])
def test_one_class_against_the_rest(noise: str, average: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 7, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 5, (40,), generator=generator)  # classes 5 and 6 are absent
    target[3], scores[4] = -100, scores[5]  # an ignored sample, and ties
    loss = lossmith.AUCLoss("multiclass", average, noise, scale=0.7)  # type: ignore[arg-type]
    compare(loss, scores, target, monkeypatch)
    compare(loss, scores + 9 * torch.nn.functional.one_hot(target.clamp_min(0), 7), target, monkeypatch)


@EACH
def test_labels(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(30, 4, dtype=torch.float64, generator=generator)
    target = (torch.rand(30, 4, generator=generator) < 0.3).long()
    target[:, 3] = 0  # no positive
    target[2, 1] = -100
    compare(lossmith.AUCLoss("multilabel", noise=noise), scores, target, monkeypatch)
    compare(lossmith.AUCLoss("multilabel", "micro", noise=noise), scores, target, monkeypatch)


@EACH
def test_without_noise_it_is_that_of_scikit_learn(noise: str) -> None:
    generator = torch.Generator().manual_seed(2)
    scores, target = torch.randn(50, 3, generator=generator), torch.arange(50) % 3
    found = lossmith.AUCLoss("multiclass", noise=noise, scale=1e-7, q=0.0)(scores, target)
    assert lossmith.last_kernel() == "closed form"
    assert 1 - found.item() == pytest.approx(roc_auc_score(target, scores.softmax(-1), multi_class="ovr"), abs=1e-6)


@EACH
def test_derivatives(noise: str) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(6, 3, dtype=torch.float64, generator=generator).requires_grad_()
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    target = torch.arange(6) % 3

    def loss(z: Tensor, s: Tensor) -> Tensor:
        return lossmith.AUCLoss("multiclass", noise=noise, scale=s)(z, target)

    assert torch.autograd.gradcheck(loss, (scores, scale))
    assert torch.autograd.gradgradcheck(loss, (scores, scale))


@EACH
def test_near_perfection_and_many_pairs_go_column_by_column(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = torch.arange(12) % 3
    scores = 400.0 * torch.nn.functional.one_hot(target, 3).double()
    loss = lossmith.AUCLoss("multiclass", noise=noise)
    assert loss(scores, target) == 0
    assert torch.autograd.grad(loss(scores.requires_grad_(), target), scores)[0].isfinite().all()
    scores = scores.detach() / 400
    monkeypatch.setattr(columns, "MOST_PAIRS", 100)
    lossmith.AUCLoss("multiclass", noise=noise)(scores, target)
    assert lossmith.last_kernel() != "closed form"


@EACH
def test_a_class_whose_scores_are_not_finite_is_refused(noise: str) -> None:
    scores, target = torch.randn(12, 4, generator=torch.Generator().manual_seed(4)), torch.arange(12) % 3
    scores[:, 1] = -torch.inf
    with pytest.raises(ValueError, match=r"^scores: expected finite numbers, got -inf"):
        lossmith.AUCLoss("multiclass", noise=noise)(scores, target)
