import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from lossmith import AccuracyLoss, PerturbedArgmax
from lossmith.heads import PerturbedHead

KINDS: tuple[Any, ...] = ("learned", "input", 2.5)


def head(kind: Any, **options: Any) -> PerturbedHead:
    """One whose σ is not what it started with."""
    torch.manual_seed(3)
    made = PerturbedHead(5, 4, scale=kind, **options)
    with torch.no_grad():
        if kind == "learned":
            made.raw_scale.fill_(-0.7)
        elif kind == "input":
            made.raw_scale_of.weight.normal_()
    return made


def by_numpy(layer: PerturbedHead, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """μ and σ from the state_dict's numbers alone."""
    state = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    mean = x @ state["mean.weight"].T + state.get("mean.bias", 0.0)
    if isinstance(layer.scale, float):
        return mean, np.full((*x.shape[:-1], 1), layer.scale)
    raw = x @ state["raw_scale_of.weight"].T + state["raw_scale_of.bias"] if layer.scale == "input" else state["raw_scale"]
    return mean, np.broadcast_to(np.log1p(np.exp(raw)) + layer.min_scale, (*x.shape[:-1], 1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (0,)])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_mean_over_the_scale(kind: Any, lead: tuple[int, ...], bias: bool) -> None:
    layer = head(kind, bias=bias, dtype=torch.float64)
    assert (layer.mean.bias is not None) == bias
    x = torch.randn(*lead, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, sigma = by_numpy(layer, x.numpy())
    np.testing.assert_allclose(layer(x).detach(), mean / sigma, rtol=1e-12)
    for got, expected in zip(layer.mean_and_scale(x), (mean, sigma), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got.detach(), expected, rtol=1e-12)
    assert (layer(x).argmax(-1).numpy() == mean.argmax(-1)).all()


@pytest.mark.parametrize("kind", ["learned", "input"])
def test_a_learned_scale_starts_at_one_and_keeps_its_bound(kind: Any) -> None:
    layer = PerturbedHead(5, 4, scale=kind, min_scale=0.02)
    x = torch.randn(7, 5)
    torch.testing.assert_close(layer.mean_and_scale(x)[1], torch.ones(7, 1), rtol=1e-6, atol=0.0)
    with torch.no_grad():
        (layer.raw_scale if kind == "learned" else layer.raw_scale_of.bias).fill_(-1e4)
    assert layer.mean_and_scale(x)[1].flatten().tolist() == pytest.approx([0.02] * 7)
    assert layer(x).isfinite().all()
    layer.reset_parameters()
    torch.testing.assert_close(layer.mean_and_scale(x)[1], torch.ones(7, 1), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_mean_with_that_scale(kind: Any) -> None:
    layer = head(kind, dtype=torch.float64)
    x, target = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 4
    mean, sigma = layer.mean_and_scale(x)
    expected = -PerturbedArgmax(mean, scale=sigma).log_prob(target).mean()
    torch.testing.assert_close(AccuracyLoss("normal", q=1.0)(layer(x), target), expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind: Any) -> None:
    layer = head(kind, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(lambda x, *p: functional_call(layer, dict(zip(names, p, strict=True)), (x,)), (x, *values))
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_which_parameters_there_are() -> None:
    # 5·4 + 4 of the mean; 1 of a learned scale; 5 + 1 of one from the input; none of a number.
    counts = [sum(p.numel() for p in PerturbedHead(5, 4, scale=kind).parameters()) for kind in KINDS]
    assert counts == [25, 30, 24]


def test_a_noisier_sample_is_told_apart() -> None:
    # The second coordinate says whether the label is a coin's throw; only σ(x) can say so with a linear μ.
    generator = torch.Generator().manual_seed(0)
    side, noisy = torch.rand(400, generator=generator) < 0.5, torch.rand(400, generator=generator) < 0.5
    target = torch.where(noisy, torch.rand(400, generator=generator) < 0.5, side).long()
    x = torch.stack([2.0 * side - 1, noisy.float()], -1)
    torch.manual_seed(0)
    layer = PerturbedHead(2, 2, scale="input")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        AccuracyLoss("gumbel")(layer(x), target).backward()
        optimizer.step()
    _, sigma = layer.mean_and_scale(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert sigma[1] > 5 * sigma[0]


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_goes_round(kind: Any) -> None:
    layer = head(kind)
    torch.manual_seed(9)
    other = PerturbedHead(5, 4, scale=kind)
    x = torch.randn(6, 5)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("kind", KINDS)
def test_half_types_come_out_in_float32(kind: Any) -> None:
    layer = head(kind)
    x = torch.randn(6, 5)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(x)
        mean, sigma = layer.mean_and_scale(x)
    assert (scores.dtype, mean.dtype, sigma.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    torch.testing.assert_close(scores, exact, rtol=0.05, atol=0.05)
    half = head(kind).to(torch.float16)
    assert half(x.half()).dtype == torch.float32
    torch.testing.assert_close(half(x.half()), exact, rtol=0.01, atol=0.01)
    AccuracyLoss("normal", q=1.0)(half(x.half()), torch.arange(6) % 4).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_without_a_break(kind: Any) -> None:
    layer, x = head(kind), torch.randn(6, 5)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_by_vmap(kind: Any) -> None:
    x = torch.randn(6, 5)
    layers = [head(kind) for _ in range(3)]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            for p in layer.parameters():
                p.add_(0.1 * i)
    stacked = {name: torch.stack([layer.state_dict()[name] for layer in layers]) for name in layers[0].state_dict()}
    got = vmap(lambda state: functional_call(layers[0], state, (x,)))(stacked)
    torch.testing.assert_close(got, torch.stack([layer(x) for layer in layers]))
    torch.testing.assert_close(vmap(layers[1])(x), layers[1](x))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"in_features": 0}, ValueError, "in_features: expected a whole number ≥ 1, got 0"),
        ({"num_classes": 1}, ValueError, "num_classes: expected a whole number ≥ 2, got 1"),
        ({"scale": "inputs"}, ValueError, "scale: expected 'learned', 'input' or a number > 0, got 'inputs'"),
        ({"scale": 0.0}, ValueError, "scale: expected 'learned', 'input' or a finite number > 0, got 0.0"),
        ({"scale": math.nan}, ValueError, "scale: expected 'learned', 'input' or a finite number > 0, got nan"),
        ({"scale": True}, TypeError, "scale: expected 'learned', 'input' or a number > 0, got bool"),
        ({"scale": None}, TypeError, "scale: expected 'learned', 'input' or a number > 0, got NoneType"),
        ({"min_scale": 0.0}, ValueError, "min_scale: expected a number between 0 and 1, where σ starts, got 0.0"),
        ({"min_scale": 1.0}, ValueError, "min_scale: expected a number between 0 and 1, where σ starts, got 1.0"),
    ],
)
def test_bad_arguments_get_one_line(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        PerturbedHead(**{"in_features": 5, "num_classes": 4, **arguments})
    assert str(caught.value) == words


def test_bad_input_gets_one_line() -> None:
    layer = PerturbedHead(5, 4)
    for shape in ((), (6,), (6, 4)):
        with pytest.raises(ValueError, match=r"^x: expected shape \(…, 5\), got \([^\n]*\)$"):
            layer(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"^x: expected a floating-point tensor, got torch\.int64$"):
        layer(torch.zeros(2, 5, dtype=torch.int64))


def test_what_it_shows() -> None:
    assert "scale='input', min_scale=0.001" in repr(nn.Sequential(PerturbedHead(5, 4, scale="input")))
