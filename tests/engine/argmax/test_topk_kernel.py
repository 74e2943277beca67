"""The kernel of the k highest in float32 against the reference in float64, on rows of every kind that training meets."""

import itertools

import pytest
import torch
from torch import Tensor

import lossmith
from lossmith import noise as noises
from lossmith.engine.argmax import fused, reference
from lossmith.functional import topk_log_prob
from lossmith.noise import Noise

EACH = pytest.mark.parametrize("noise", [noises.get(name) for name in ("normal", "logistic", "gumbel")], ids=str)
SIZES = [(4, 2), (6, 3), (10, 2), (10, 5), (12, 9), (16, 11), (30, 5), (100, 5), (150, 100), (200, 20), (300, 3), (1000, 5)]
BOTH = {(6, 3), (30, 5)}  # of which every noise has its turn
LARGE = {(150, 100), (200, 20), (300, 3), (1000, 5)}  # of which the reference takes many seconds; make test-all runs them


def rows_of(classes: int, rank: int, spread: float, rows: int = 10) -> tuple[Tensor, Tensor]:
    """Scores (rows, classes) and targets, whose leads over the k-th highest go from −6 to 8 scales."""
    generator = torch.Generator().manual_seed(classes * rank + int(10 * spread))
    scores = spread * torch.randn(rows, classes, generator=generator)
    target = torch.randint(0, classes, (rows,), generator=generator)
    scores[torch.arange(rows), target] = scores.topk(rank).values[:, -1] + torch.linspace(-6, 8, rows)
    return scores, target


def compare(scores: Tensor, target: Tensor, rank: int, noise: Noise, scale: float = 1.0) -> None:
    """log p and its gradient, both relative to their size."""
    leaf, wide = scores.clone().requires_grad_(), scores.double().requires_grad_()
    log_p = topk_log_prob(leaf, target, rank, noise=noise, scale=scale)
    assert lossmith.last_kernel() == "cpu"
    expected = reference.log_prob(wide / scale, target, noise, rank)
    torch.testing.assert_close(log_p.double(), expected, rtol=1e-5, atol=1e-30)
    (grad,) = torch.autograd.grad(log_p.sum(), leaf)
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    off = (grad.double() - slope).norm(dim=-1)  # beside p = 1, to take a trial out costs digits
    assert (off <= 1e-5 * slope.norm(dim=-1).clamp_min(1e-15)).all()


@pytest.fixture(autouse=True)
def _no_row_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("a row is left to plain torch")

    monkeypatch.setattr(fused, "_by_plain_torch", fails)


@pytest.mark.parametrize(
    ("noise", "classes", "rank"),
    [
        pytest.param(noise, *size, marks=pytest.mark.slow if size in LARGE or (noise != "normal" and size not in BOTH) else ())
        for noise, size in itertools.product(["normal", "logistic", "gumbel"], SIZES)
    ],
)
def test_rows_of_every_spread(noise: str, classes: int, rank: int) -> None:
    for spread in (0.0, 0.3, 1.0, 3.0, 10.0):
        compare(*rows_of(classes, rank, spread), rank, noises.get(noise))


@EACH
def test_strong_rivals_and_scales(noise: Noise) -> None:
    """Some classes lie so far above the target that they are among the k for sure; and any unit of the scores serves."""
    for above, scale in itertools.product((0, 1, 2, 3), (1e-3, 1.0, 1e4)):
        scores, target = rows_of(40, 4, 1.0)
        scores[:, :above] += 12.0 + torch.arange(above)
        compare(scale * scores, target.clamp_min(above), 4, noise, scale)


@EACH
def test_rivals_far_above_are_certain_to_exceed_the_target(noise: Noise) -> None:
    """They take a place each, and the tables need not reach them."""
    scores, target = rows_of(20, 3, 1.0)
    more = torch.cat([scores, scores.new_tensor([70.0, 200.0]).expand(len(scores), 2)], -1)
    compare(more, target, 5, noise)
    torch.testing.assert_close(topk_log_prob(more, target, 5, noise=noise), topk_log_prob(scores, target, 3, noise=noise))


@EACH
def test_probabilities_of_all_classes_sum_to_k(noise: Noise) -> None:
    scores, _ = rows_of(30, 7, 2.0, rows=1)
    p = topk_log_prob(scores.expand(30, 30), torch.arange(30), 7, noise=noise).double().exp()
    assert p.sum() == pytest.approx(7, rel=2e-7)


@EACH
def test_removed_classes_lost_targets_and_certain_ones(noise: Noise) -> None:
    scores, target = rows_of(12, 3, 1.0, rows=4)
    scores[0, :4], target[0] = -torch.inf, 5  # eight classes are left
    scores[1, :10], target[1] = -torch.inf, 11  # two are left, and both are among three
    scores[2, 3], target[2] = -torch.inf, 3
    leaf = scores.clone().requires_grad_()
    log_p = topk_log_prob(leaf, target, 3, noise=noise)
    (grad,) = torch.autograd.grad(log_p[torch.tensor([0, 1, 3])].sum(), leaf)
    few = topk_log_prob(scores[:1, 4:], target[:1] - 4, 3, noise=noise)
    assert log_p.tolist() == pytest.approx([few.item(), 0.0, -torch.inf, log_p[3].item()], rel=1e-6)
    assert grad[0, :4].tolist() == [0.0] * 4
    assert grad[1:3].abs().max() == 0
    assert grad[0].sum().abs() < 1e-6


def test_bad_rows_are_named() -> None:
    scores, target = rows_of(6, 2, 1.0, rows=4)
    with pytest.raises(ValueError, match=r"^target"):
        topk_log_prob(scores, torch.tensor([0, 1, 6, 2]), 2)
    for value, word in ((torch.nan, "nan"), (torch.inf, "inf")):
        bad = scores.clone()
        bad[2, 1] = value
        with pytest.raises(ValueError, match=rf"^scores: .*{word}"):
            topk_log_prob(bad, target, 2)


def test_the_bits_do_not_depend_on_threads_nor_on_the_gradient() -> None:
    scores, target = rows_of(50, 5, 1.0, rows=60)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = scores.clone().requires_grad_()
            log_p = topk_log_prob(leaf, target, 5)
            found.append((log_p.detach(), torch.autograd.grad(log_p.sum(), leaf)[0]))
    finally:
        torch.set_num_threads(before)
    for log_p, grad in found[1:]:
        assert torch.equal(log_p, found[0][0])
        assert torch.equal(grad, found[0][1])
    torch.testing.assert_close(topk_log_prob(scores, target, 5), found[0][0], rtol=1e-6, atol=0)


@EACH
def test_the_scale_and_second_derivatives(noise: Noise) -> None:
    scores, target = rows_of(8, 3, 1.0, rows=3)
    leaf, scale = scores.clone().requires_grad_(), torch.tensor(0.8, requires_grad=True)
    wide, sigma = scores.double().requires_grad_(), torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    log_p = topk_log_prob(leaf, target, 3, noise=noise, scale=scale).sum()
    expected = reference.log_prob(wide / sigma, target, noise, 3).sum()
    found, right = (
        torch.autograd.grad(value, leaves, create_graph=True)
        for value, leaves in ((log_p, (leaf, scale)), (expected, (wide, sigma)))
    )
    for f, r in zip(found, right, strict=True):
        torch.testing.assert_close(f.double(), r, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(found[0].square().sum(), leaf)[0].double(),
        torch.autograd.grad(right[0].square().sum(), wide)[0],
        rtol=1e-4,
        atol=1e-5,
    )
