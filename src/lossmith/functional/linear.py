"""The last linear layer and log P(the target wins) of its scores in one, by chunks of rows: never all scores at once.

A chunk's scores and their gradient are made, used up and forgotten. A sum over rows differentiates each chunk as it comes;
where each row's result goes its own way, the backward pass makes the chunks anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from lossmith import noise as noises
from lossmith.engine.argmax.autograd import NO_TARGET
from lossmith.engine.argmax.fused import checked_log_prob
from lossmith.functional.argmax import argmax_log_prob
from lossmith.inputs import (
    check_device,
    check_margin,
    check_scores,
    check_target_type,
    check_target_values,
    check_tensors,
    checked_count,
    checked_scale,
    compute_type,
    is_plain,
    rows_that_count,
)
from lossmith.maths.qlog import neg_log_q
from lossmith.noise import Noise

SCORES = 1 << 22  # of a chunk: 16 MB of float32, three times that with their gradient
LEAST_ROWS = 16  # of a chunk: with fewer, reading the layer's weight takes longer than multiplying by it
ONCE = (
    "differentiable once, got create_graph=True; take argmax_log_prob of torch.nn.functional.linear(…) for second derivatives"
)

Terms = Callable[[Tensor, slice], Tensor]  # from log p of some rows, and which they are, to their part of a sum


class Layer(NamedTuple):
    """The scores input · linear_weightᵀ + linear_bias that are not made yet, and what is asked of them; all checked."""

    input: Tensor  # (rows, d)
    linear_weight: Tensor  # (C, d) of the input's dtype
    linear_bias: Tensor | None  # (C,)
    target: Tensor  # (rows,) int64
    scale: Tensor  # (1,) or (rows,), of the dtype that scores are computed in
    noise: Noise
    margin: float | None
    ignored: int
    chunk_rows: int

    @property
    def whole(self) -> bool:
        """Whether chunks cannot serve: compiled, under ``torch.func``, in forward mode, or wrappers of tensors."""
        tensors = [x for x in self[:5] if isinstance(x, Tensor)]
        return not is_plain(*tensors)

    def part(self, rows: slice) -> Layer:
        """Some of the rows, those that do not count as zeros: what stands there, be it NaN, must not reach the weight."""
        target = self.target[rows]
        x = rows_that_count(self.input[rows], target != self.ignored)
        return self._replace(input=x, target=target, scale=self.scale[rows] if len(self.scale) > 1 else self.scale)

    def scores(self) -> Tensor:
        """(rows, C), in the dtype that they are computed in."""
        return compute_type(linear(self.input, self.linear_weight, self.linear_bias))

    def log_prob(self, scores: Tensor) -> Tensor:
        """log P(the target wins), (rows,), of ``scores()``; 0 without a gradient where the target is ignored."""
        return checked_log_prob(scores, self.target, self.noise, self.scale.unsqueeze(-1), self.margin, self.ignored)


def layer_of(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    noise: Noise,
    scale: float | Tensor,
    margin: float | None,
    ignore_index: int | None,
    batch_chunk_size: int | None,
) -> Layer:
    """The arguments of ``linear_argmax_log_prob``, checked and with all rows in one dimension."""
    check_tensors(input=input, linear_weight=linear_weight, **({} if linear_bias is None else {"linear_bias": linear_bias}))
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point tensor, got {input.dtype}; pass what the last layer takes")
    if input.dim() == 0 or linear_weight.dim() != 2 or input.shape[-1] != linear_weight.shape[1]:
        raise ValueError(
            f"linear_weight: expected shape (C, d) for input (…, d), got {tuple(linear_weight.shape)} for {tuple(input.shape)}"
        )
    classes = len(linear_weight)
    if linear_bias is not None and linear_bias.shape != (classes,):
        raise ValueError(f"linear_bias: expected shape ({classes},), one a class, got {tuple(linear_bias.shape)}")
    input, linear_weight, linear_bias = _as_autocast(input, linear_weight, linear_bias)
    for name, x in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if x is not None and x.dtype != input.dtype:
            raise TypeError(
                f"{name}: expected {input.dtype}, as the input, got {x.dtype}; convert one of them, or use autocast"
            )
        if x is not None and x.device != input.device:
            raise ValueError(f"{name}: expected on {input.device}, where the input is, got {x.device}; move it there")
    scores = compute_type(input.new_empty(())).expand(*input.shape[:-1], classes)  # stands for them, without their memory
    check_scores(scores)
    check_target_type(target, scores)
    check_device(target, input)
    ignored = NO_TARGET if ignore_index is None else ignore_index
    check_target_values(target, classes, ignored)
    sigma = checked_scale(scale, scores)
    if not isinstance(sigma, Tensor):
        sigma = scores.new_full((1,), sigma)
    elif isinstance(scale, Tensor) and scale.numel() == 1:
        sigma = scale.to(scores).reshape(1)
    rows = checked_rows(batch_chunk_size) or max(LEAST_ROWS, SCORES // classes)
    x, y = input.reshape(-1, input.shape[-1]), target.long().reshape(-1)
    return Layer(x, linear_weight, linear_bias, y, sigma.reshape(-1), noise, margin, ignored, rows)


def checked_rows(batch_chunk_size: int | None) -> int | None:
    """So many rows a chunk, or None for the default; refuses what is no integer ≥ 1."""
    if batch_chunk_size is not None and checked_count("batch_chunk_size", batch_chunk_size) == 0:
        raise ValueError("batch_chunk_size: expected an integer ≥ 1, got 0")
    return batch_chunk_size


def _as_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype that ``torch.nn.functional.linear`` would multiply them in."""
    kind = next(x.device.type for x in tensors if x is not None)
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def linear_argmax_log_prob(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    *,
    noise: str | Noise = "normal",
    scale: float | Tensor = 1.0,
    margin: float | None = None,
    ignore_index: int | None = None,
    batch_chunk_size: int | None = None,
) -> Tensor:
    r"""``argmax_log_prob`` of the scores input · linear_weightᵀ + linear_bias, which are never held all at once.

    Args:
        input: (…, d), what the last layer takes, any floating type.
        linear_weight: (C, d), C ≥ 2, of the input's dtype; under autocast of any.
        target: (…) integer class indices in [0, C).
        linear_bias: (C,), or None.
        noise, margin, ignore_index: as in ``argmax_log_prob``.
        scale: σ > 0: a number, or a tensor that broadcasts to (…, 1); a tensor receives gradients.
        batch_chunk_size: rows whose scores are held at once, ≥ 1. None: as many as have 4 million scores, at least 16.

    Returns:
        (…) log-probabilities, ≤ 0; dtype of the scores, device of the input; differentiable once, in input, weight, bias and
        scale.

    Raises:
        TypeError, ValueError: as ``argmax_log_prob``; shapes, dtypes or devices that do not fit.
        NotImplementedError: in a backward pass with ``create_graph=True``.

    Half types multiply in their type, or autocast's, and compute the rest in float32; the weight's gradient is summed over
    chunks in float32. Compiled, under ``torch.func``, in forward mode and with wrappers such as DTensor all scores are made at
    once, as ``argmax_log_prob`` would have them.

    Cost: ``argmax_log_prob``'s, and since the backward pass makes the scores anew, four products with the layer's weight where
    the layer itself takes three. ``LinearAccuracyLoss`` takes three. Memory: three times a chunk's scores.

    >>> x, weight = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.0], [0.0, 0.5], [1.0, 0.0]])
    >>> linear_argmax_log_prob(x, weight, torch.tensor([2]), noise="gumbel").exp()
    tensor([0.5465])
    """
    check_margin(margin)
    layer = layer_of(
        input, linear_weight, target, linear_bias, noises.get(noise), scale, margin, ignore_index, batch_chunk_size
    )
    return log_prob_of_layer(layer).view_as(target).to(layer.input.dtype)


def log_prob_of_layer(layer: Layer) -> Tensor:
    """log P(the target wins), (rows,), in the dtype that scores are computed in."""
    with torch.autocast(layer.input.device.type, enabled=False):
        if layer.whole:
            return _of_whole(layer)
        log_p: Tensor = _LogProb.apply(*layer)  # type: ignore[no-untyped-call]
        return log_p


def sum_of_layer(layer: Layer, weight: Tensor, q: float) -> Tensor:
    """Σ_i weight_i · −log_q(p_i) (N6), p_i = P(row i's target wins), differentiable once, in one pass over the chunks.

    Args:
        layer: what has the scores.
        weight: (rows,) of the dtype that scores are computed in, without a gradient; 0 where a row does not count.
        q: the order.
    """
    with torch.autocast(layer.input.device.type, enabled=False):
        if layer.whole:
            return _weighted(_of_whole(layer), weight, q)
        total: Tensor = _Sum.apply(*layer, weight, q)  # type: ignore[no-untyped-call]
        return total


def _of_whole(layer: Layer) -> Tensor:
    ignored = None if layer.ignored == NO_TARGET else layer.ignored
    options: dict[str, Any] = {"noise": layer.noise, "margin": layer.margin, "ignore_index": ignored}
    return argmax_log_prob(layer.scores(), layer.target, scale=layer.scale.unsqueeze(-1), **options)


def _weighted(log_p: Tensor, weight: Tensor, q: float) -> Tensor:
    return (weight * neg_log_q(torch.where(weight == 0, 0.0, log_p), q)).sum()


class _Sums:
    """Gradients in input, weight, bias and scale, summed chunk by chunk; None for what needs none."""

    def __init__(self, layer: Layer, needed: tuple[bool, ...]) -> None:
        kept = layer.scale.dtype  # of the weight's sum, also for half types
        self.input = torch.zeros_like(layer.input) if needed[0] else None
        self.linear_weight = torch.zeros_like(layer.linear_weight, dtype=kept) if needed[1] else None
        bias = layer.linear_bias
        self.linear_bias = torch.zeros_like(bias, dtype=kept) if bias is not None and needed[2] else None
        self.scale = torch.zeros_like(layer.scale) if needed[4] else None

    def add(self, part: Layer, rows: slice, in_scores: Tensor | None, in_scale: Tensor | None) -> None:
        """Count the gradients in a chunk's scores and scale."""
        if self.scale is not None and in_scale is not None:
            self.scale[rows if len(self.scale) > 1 else slice(None)] += in_scale
        if in_scores is None:
            return
        if self.linear_bias is not None:
            self.linear_bias += in_scores.sum(0)
        in_scores = in_scores.to(part.input.dtype)
        if self.input is not None:
            self.input[rows] = in_scores @ part.linear_weight
        if self.linear_weight is not None and self.linear_weight.dtype == in_scores.dtype:
            self.linear_weight.addmm_(in_scores.T, part.input)
        elif self.linear_weight is not None:
            self.linear_weight += in_scores.T @ part.input

    def gradients(self, layer: Layer) -> list[Tensor | None]:
        """Of each field of ``Layer``."""
        weight, bias = self.linear_weight, self.linear_bias
        weight = None if weight is None else weight.to(layer.linear_weight.dtype)
        bias = None if bias is None else bias.to(layer.input.dtype)
        return [self.input, weight, bias, None, self.scale, None, None, None, None]


def _by_chunks(layer: Layer, use: Callable[[Layer, slice], None]) -> None:
    """Call ``use`` with each chunk of rows; an error in its scores says where their rows begin."""
    for start in range(0, len(layer.input), layer.chunk_rows):
        rows = slice(start, start + layer.chunk_rows)
        try:
            use(layer.part(rows), rows)
        except ValueError as error:
            if start and str(error).startswith("scores:"):
                raise ValueError(f"{error} (rows are counted from row {start} of the input)") from None
            raise


def _differentiated(layer: Layer, terms: Terms, needed: tuple[bool, ...]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of all terms, and its gradient in each field of the layer."""
    sums, total = _Sums(layer, needed), layer.scale.new_zeros(())
    of_scores, of_scale = any(needed[:3]), needed[4]

    def add(part: Layer, rows: slice) -> None:
        scores = part.scores().requires_grad_(of_scores)
        scale = part.scale.detach().requires_grad_(of_scale)
        leaves = [x for x in (scores, scale) if x.requires_grad]
        with torch.enable_grad():
            term = terms(part._replace(scale=scale).log_prob(scores), rows)
        total.add_(term.detach())
        found = list(torch.autograd.grad(term, leaves)) if leaves else []
        del term, scores, leaves  # their memory is free before the products are made
        in_scores = found.pop(0) if of_scores else None
        sums.add(part, rows, in_scores, found.pop() if of_scale else None)

    with torch.no_grad(), torch.autocast(layer.input.device.type, enabled=False):
        _by_chunks(layer, add)
    return total, sums.gradients(layer)


def _save(ctx: Any, layer: Layer, *others: Tensor) -> None:
    tensors, ctx.options = layer[:5], layer[5:]
    ctx.save_for_backward(*tensors, *others)


def _saved(ctx: Any) -> tuple[Layer, list[Tensor]]:
    if torch.is_grad_enabled():  # create_graph=True
        raise NotImplementedError(f"scores of a linear layer by chunks: expected to be {ONCE}")
    tensors = ctx.saved_tensors
    return Layer(*tensors[:5], *ctx.options), list(tensors[5:])


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *fields: Any) -> Tensor:
        layer = Layer(*fields)
        log_p = layer.scale.new_empty(len(layer.input))

        def write(part: Layer, rows: slice) -> None:
            log_p[rows] = part.log_prob(part.scores())

        _by_chunks(layer, write)
        _save(ctx, layer)
        return log_p

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        layer, _ = _saved(ctx)
        return tuple(_differentiated(layer, lambda log_p, rows: upstream[rows].dot(log_p), ctx.needs_input_grad)[1])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        layer, (weight, ctx.q) = Layer(*inputs[:-2]), inputs[-2:]
        total, ctx.gradients = _differentiated(layer, _terms(weight, ctx.q), ctx.needs_input_grad)
        _save(ctx, layer, weight)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        layer, (weight,) = _saved(ctx)
        gradients, ctx.gradients = ctx.gradients, None  # handed on, not copied: they are the weight's size
        if gradients is None:  # a second backward pass
            gradients = _differentiated(layer, _terms(weight, ctx.q), ctx.needs_input_grad)[1]
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(upstream)
        return *gradients, None, None


def _terms(weight: Tensor, q: float) -> Terms:
    return lambda log_p, rows: _weighted(log_p, weight[rows], q)
