"""LinearAccuracyLoss: the numbers of AccuracyLoss of the layer's scores and of cross-entropy, whatever the chunks."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from lossmith import AccuracyLoss, LinearAccuracyLoss
from support.cases import NEW_TORCH

ROWS, WIDTH, CLASSES = 13, 4, 7
CLASS_WEIGHT = torch.linspace(0.2, 2.0, CLASSES)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
MEANS = [("sample", "mean"), ("sample", "sum"), ("sample", "none"), ("batch", "mean")]


def arguments(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (ROWS,)) -> tuple[list[Tensor], Tensor]:
    """Input, weight and bias of a layer and a scale, all leaves, and class indices, two of which do not count."""
    made = torch.Generator().manual_seed(0)
    sizes = ((*shape, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    leaves = [(0.5 * torch.randn(size, generator=made)).to(dtype).requires_grad_() for size in sizes]
    target = torch.randint(CLASSES, shape, generator=made)
    target.view(-1)[2:4] = -100
    return [*leaves, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)], target


def loss_of(x: Tensor, w: Tensor, target: Tensor, b: Tensor | None = None, noise: Any = "gumbel", **dials: Any) -> Tensor:
    """The loss with that weight and bias for its layer's."""
    loss = LinearAccuracyLoss(WIDTH, CLASSES, b is not None, noise=noise, **dials)
    layer = {"linear.weight": w} | ({} if b is None else {"linear.bias": b})
    return torch.func.functional_call(loss, layer, (x, target))


def outcome(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The loss and the gradients in the leaves, each element of the loss with an upstream of its own."""
    upstream = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view_as(loss)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, upstream)]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("over", "reduction"), MEANS)
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(("noise", "margin"), [("normal", None), ("gumbel", None), ("laplace", None), ("normal", 0.5)])
@pytest.mark.parametrize("q", [-2.0, 0.0, 0.5, 1.0, 2.0])
def test_is_the_loss_of_the_scores(
    q: float, noise: str, margin: float | None, weight: Tensor | None, over: Any, reduction: Any
) -> None:
    for dtype in (torch.float32, torch.float64):
        leaves, target = arguments(dtype)
        x, w, b, scale = leaves
        dials: dict[str, Any] = {"weight": weight, "reduction": reduction}
        expected = outcome(AccuracyLoss(noise, scale, q, over, margin, **dials)(linear(x, w, b), target), leaves)
        loss = loss_of(x, w, target, b, noise, scale=scale, q=q, over=over, margin=margin, batch_chunk_size=5, **dials)
        assert_same(outcome(loss, leaves), expected, TOLERANCE[dtype])


@NEW_TORCH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT.double()], ids=["unweighted", "weighted"])
def test_gumbel_is_torchs_linear_cross_entropy(weight: Tensor | None, reduction: Any) -> None:
    (x, w, b, _), target = arguments(torch.float64)
    expected = torch.nn.functional.linear_cross_entropy(x, w, target, linear_bias=b, weight=weight, reduction=reduction)
    loss = loss_of(x, w, target, b, q=1.0, weight=weight, reduction=reduction, batch_chunk_size=4)
    assert_same(outcome(loss, [x, w, b]), outcome(expected, [x, w, b]), 1e-12)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize(("over", "reduction"), MEANS)
def test_layouts(shape: tuple[int, ...], over: Any, reduction: Any) -> None:
    made = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, WIDTH, generator=made, dtype=torch.float64).requires_grad_()
    w = torch.randn(WIDTH, CLASSES, generator=made, dtype=torch.float64).requires_grad_()
    target = torch.randint(CLASSES, shape, generator=made)
    expected = AccuracyLoss(over=over, reduction=reduction)((x @ w).reshape(-1, CLASSES), target.reshape(-1))
    expected = expected.view(shape) if reduction == "none" else expected
    loss = loss_of(x, w.T, target, over=over, reduction=reduction, batch_chunk_size=2)  # no contiguous weight
    assert_same(outcome(loss, [x, w]), outcome(expected, [x, w]), 1e-12)


def test_input_that_is_not_contiguous_and_a_scale_for_each_row() -> None:
    (x, w, b, _), target = arguments(torch.float64)
    scale = torch.linspace(0.5, 2.0, ROWS, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    apart = x.detach().repeat(1, 2)[:, ::2].requires_grad_()
    assert not apart.is_contiguous()
    expected = outcome(AccuracyLoss(scale=scale)(linear(apart, w, b), target), [apart, w, b, scale])
    loss = loss_of(apart, w, target, b, scale=scale, batch_chunk_size=3)
    assert_same(outcome(loss, [apart, w, b, scale]), expected, 1e-12)


@pytest.mark.parametrize(("over", "reduction"), MEANS)
def test_half_types_and_autocast(over: Any, reduction: Any) -> None:
    dials: dict[str, Any] = {"over": over, "reduction": reduction}
    plain = AccuracyLoss(**dials)

    def chunked(x: Tensor, w: Tensor, target: Tensor, b: Tensor) -> Tensor:
        return loss_of(x, w, target, b, batch_chunk_size=5, **dials)

    (x, w, b, _), target = arguments(torch.bfloat16)
    found, expected = outcome(chunked(x, w, target, b), [x, w, b]), outcome(plain(linear(x, w, b), target), [x, w, b])
    assert_same(found, expected, TOLERANCE[torch.bfloat16])
    (x, w, b, _), target = arguments()
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected_loss = chunked(x, w, target, b), plain(linear(x, w, b), target)
    assert loss.dtype == torch.float32
    assert_same(outcome(loss, [x, w, b]), outcome(expected_loss, [x, w, b]), TOLERANCE[torch.bfloat16])


def test_rows_that_do_not_count_may_hold_anything() -> None:
    (x, w, b, _), target = arguments()
    with torch.no_grad():
        x[2] = torch.nan
    for over, reduction in MEANS:
        loss = loss_of(x, w, target, b, over=over, reduction=reduction, batch_chunk_size=5)
        for value in outcome(loss, [x, w, b]):
            assert value.isfinite().all()
    nothing = loss_of(x, w, torch.full((ROWS,), -100), b)
    assert not any(value.any() for value in outcome(nothing, [x, w, b]))


def test_a_second_backward_pass_is_the_first() -> None:
    leaves, target = arguments()
    x, w, b, scale = leaves
    loss = 3 * loss_of(x, w, target, b, scale=scale, batch_chunk_size=5)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert_same(list(second), list(first), 1e-6)


def test_only_what_needs_a_gradient_gets_one() -> None:
    leaves, target = arguments()
    for chosen in range(4):
        given = [leaf.detach().requires_grad_(i == chosen) for i, leaf in enumerate(leaves)]
        x, w, b, scale = given
        expected = outcome(AccuracyLoss(scale=scale)(linear(x, w, b), target), [given[chosen]])
        loss = loss_of(x, w, target, b, scale=scale, batch_chunk_size=5)
        assert_same(outcome(loss, [given[chosen]]), expected, 1e-5)
    with torch.no_grad():
        assert not loss_of(*leaves[:2], target).requires_grad


@pytest.mark.parametrize(("over", "reduction"), MEANS)
def test_second_derivatives_are_refused(over: Any, reduction: Any) -> None:
    (x, w, b, _), target = arguments()
    loss = loss_of(x, w, target, b, over=over, reduction=reduction).sum()
    with pytest.raises(NotImplementedError, match="differentiable once, got create_graph=True"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_torch_func_has_the_same_gradient() -> None:
    (x, w, b, _), target = arguments(torch.float64)
    expected = outcome(loss_of(x, w, target, b), [x])[1]
    found = torch.func.grad(lambda x: loss_of(x, w.detach(), target, b.detach()))(x.detach())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing: expected 0, got 0.1; "),
        ({"batch_chunk_size": 0}, "batch_chunk_size: expected an integer ≥ 1, got 0"),
        ({"margin": -1.0}, "margin: expected a number ≥ 0"),
        ({"over": "batch", "reduction": "sum"}, "reduction: over='batch'"),
        ({"in_features": 0}, "in_features: expected an integer ≥ 1, got 0"),
        ({"num_classes": 1}, "num_classes: expected an integer ≥ 2, got 1"),
    ],
)
def test_refuses_dials_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LinearAccuracyLoss(**{"in_features": 4, "num_classes": 7, **options})


def test_refuses_tensors_in_words() -> None:
    (x, w, b, _), target = arguments()
    bad: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((x, w.T, target), ValueError, r"linear_weight: expected shape \(C, d\)"),
        ((x, w, target, b[:3]), ValueError, r"linear_bias: expected shape \(7,\)"),
        ((x, w.double(), target), TypeError, "linear_weight: expected torch.float32, as the input"),
        ((x.long(), w, target), TypeError, "input: expected a floating-point tensor"),
        ((x, w, torch.rand(ROWS, CLASSES)), TypeError, "target: expected integer class indices, got torch.float32; "),
        ((x, w, target[:3]), ValueError, "target: expected shape"),
        ((x, w, torch.full((ROWS,), CLASSES)), ValueError, "target: expected class indices from 0 to 6"),
        ((x, w[:1], target), ValueError, "scores: expected shape"),
    ]
    for given, kind, message in bad:
        with pytest.raises(kind, match=f"^{message}"):
            loss_of(*given, batch_chunk_size=5)
    with torch.no_grad():
        x[11] = torch.nan
    with pytest.raises(ValueError, match=r"got nan in row 1; .*\(rows are counted from row 10 of the input\)"):
        loss_of(x, w, target, b, batch_chunk_size=5)


@pytest.mark.parametrize(("over", "reduction"), [("sample", "mean"), ("sample", "sum"), ("batch", "mean")])
def test_what_a_loss_is_multiplied_by_multiplies_its_gradients(over: Any, reduction: Any) -> None:
    leaves, target = arguments(torch.float64)
    x, w, b, scale = leaves
    loss = loss_of(x, w, target, b, scale=scale, over=over, reduction=reduction, batch_chunk_size=5)
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    found = torch.autograd.grad(2.5 * loss, leaves)
    for one, two in zip(once, found, strict=True):
        torch.testing.assert_close(2.5 * one, two)


def test_the_layer_is_its_own_and_can_be_shared() -> None:
    (x, _, _, _), target = arguments()
    loss = LinearAccuracyLoss(WIDTH, CLASSES)
    assert [name for name, _ in loss.named_parameters()] == ["linear.weight", "linear.bias"]
    torch.testing.assert_close(loss(x, target), AccuracyLoss()(loss.linear(x), target))
    head = torch.nn.Linear(WIDTH, CLASSES, bias=False)
    loss.linear = head
    loss(x, target).backward()
    assert head.weight.grad is not None
    assert "batch_chunk_size" not in repr(loss)
    assert LinearAccuracyLoss(WIDTH, CLASSES, dtype=torch.float64).linear.weight.dtype == torch.float64
