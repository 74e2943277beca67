"""What users pass by mistake: the error names the cause, at no price."""

from typing import Any

import pytest
import torch
from torch import nn

import lossmith
from lossmith import surrogates
from lossmith.functional import argmax_log_prob, expected_auc, expected_average_precision

SCORES = torch.zeros(3, 5)


def test_an_ignored_row_hides_no_other_error() -> None:
    scores = SCORES.clone()
    scores[0] = torch.nan
    with pytest.raises(ValueError, match=r"^target: expected class indices from 0 to 4, got 1 to 7"):
        argmax_log_prob(scores, torch.tensor([-100, 7, 1]), ignore_index=-100)
    scores[2] = torch.nan
    with pytest.raises(ValueError, match=r"got nan in row 2"):
        argmax_log_prob(scores, torch.tensor([-100, 3, 1]), ignore_index=-100)
    with pytest.raises(ValueError, match=r"^kernel: 'cuda' cannot serve"), lossmith.use_kernel("cuda"):
        argmax_log_prob(scores[:2], torch.tensor([-100, 3]), ignore_index=-100)


@pytest.mark.parametrize(
    "loss",
    [
        lossmith.AccuracyLoss(),
        lossmith.CostLoss(torch.eye(5)),
        lossmith.FBetaLoss(),
        lossmith.FBetaLoss(average="binary"),
        lossmith.AUCLoss(),
        lossmith.AveragePrecisionLoss("multilabel"),
        lossmith.SubsetAccuracyLoss(),
        surrogates.EMOLoss(torch.eye(5)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_list_is_no_target(loss: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"^target: expected a torch.Tensor, got list"):
        loss(SCORES, [0, 1, 2])


@pytest.mark.parametrize("function", [expected_auc, expected_average_precision])
def test_nor_in_the_functions(function: Any) -> None:
    with pytest.raises(TypeError, match=r"^target: expected a torch.Tensor, got list"):
        function(torch.zeros(2), [0, 1])
    with pytest.raises(TypeError, match=r"^cost: expected a torch.Tensor, got list"):
        lossmith.CostLoss()(SCORES, torch.zeros(3, dtype=torch.int64), [[0.0]])


def test_a_huge_k_costs_nothing() -> None:
    loss = lossmith.TopKAccuracyLoss(10**13)
    with pytest.raises(ValueError, match=r"^k: expected an integer from 1 to the 5 classes, got 10000000000000"):
        loss(SCORES, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^k: expected an integer ≥ 1, got 0"):
        lossmith.TopKAccuracyLoss(0)


def test_log_odds_of_many_classes_need_no_square_of_them() -> None:
    """10,000 × 1,000 log-odds: 80 MB, where (n, C, C) float32 would take 40 GB; against the definition, far tails included."""
    from lossmith.functional.columns import log_odds

    scores = 30 * torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[0] = torch.tensor([1e38, -1e38, 0.0, 5.0, 1e38, -torch.inf])
    expected = torch.stack(
        [scores[:, k] - torch.cat([scores[:, :k], scores[:, k + 1 :]], -1).logsumexp(-1) for k in range(6)], -1
    )
    torch.testing.assert_close(log_odds(scores), expected, rtol=1e-14, atol=0)
    assert log_odds(torch.zeros(10_000, 1_000)).shape == (10_000, 1_000)


def test_a_half_type_rounds_no_scale() -> None:
    choice = lossmith.PerturbedArgmax(torch.zeros(2, dtype=torch.bfloat16), scale=torch.tensor(0.3))
    assert float(choice.scale) == pytest.approx(0.3, rel=1e-7)
    lossmith.PerturbedArgmax(torch.zeros(2, dtype=torch.float16), scale=1e-5)


@pytest.mark.parametrize(
    ("loss", "remedy"),
    [
        (lossmith.FBetaLoss(1), "; for one score a sample use average='binary'"),
        (lossmith.AccuracyLoss(), "; for one score a sample"),
    ],
)
def test_one_score_a_sample_is_told_the_remedy(loss: nn.Module, remedy: str) -> None:
    with pytest.raises(ValueError, match=r"^target: expected class indices of shape \(\) or ") as caught:
        loss(torch.zeros(256), torch.zeros(256, dtype=torch.int64))
    assert remedy in str(caught.value)
    with pytest.raises(ValueError, match=r"; of one-hot targets pass target\.float\(\)$"):
        loss(SCORES, torch.zeros(3, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    "loss", [lossmith.AUCLoss(), lossmith.AveragePrecisionLoss(), lossmith.FBetaLoss(average="binary")], ids=["AUC", "AP", "F"]
)
def test_an_infinite_score_of_one_label_speaks_of_no_class(loss: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^scores: expected finite numbers, got −inf for every label of row 1"):
        loss(torch.tensor([1.0, -torch.inf]), torch.tensor([1, 0]))


def test_scores_too_wide_for_the_noise_are_told_so() -> None:
    scores = 1e38 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"^scale: expected at least "):
        lossmith.AUCLoss("multiclass")(scores, torch.arange(8) % 3)


def test_a_metric_gives_a_tensor() -> None:
    made = lossmith.metric(lambda tp, fp, fn, tn: (tp / (tp + fn)).mean().item())
    for function in made:
        with pytest.raises(TypeError, match=r"^metric: expected a function that gives a torch\.Tensor, got float; leave "):
            function(SCORES, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"over": "batch"}, {"standardize": True}])
def test_scores_that_are_not_finite_may_give_nan(noise: str, options: dict[str, Any]) -> None:
    target = torch.tensor([0, 1, -100])
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[2] = torch.nan  # ignored
    right, found = (scores.clone().requires_grad_() for _ in range(2))
    refusing = lossmith.AccuracyLoss(noise, q=1.0, **options)
    passing = lossmith.AccuracyLoss(noise, q=1.0, nonfinite="propagate", **options)
    refusing(right, target).backward()
    passing(found, target).backward()
    assert torch.equal(refusing(right, target), passing(found, target))
    assert torch.equal(right.grad[:2], found.grad[:2])
    for value in (torch.nan, torch.inf):
        bad = scores.clone()
        bad[1, 3] = value
        with pytest.raises(ValueError, match=r"^scores: "):
            refusing(bad, target)
        bad.requires_grad_()
        loss = passing(bad, target)
        loss.backward()
        assert loss.isnan()
        assert bad.grad[1].isnan().any()
    with pytest.raises(ValueError, match=r"^nonfinite: expected 'raise' or 'propagate', got 'ignore'"):
        lossmith.AccuracyLoss(nonfinite="ignore")
