"""The size of gradients, held about constant while a metric sharpens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class GradientNormalizer:
    r"""Divides gradients by a moving average of their norm: g ← g / max(average ‖g‖, min_norm).

    A smoothed metric has gradients whose size changes by orders of magnitude as its scale falls; this keeps the step size of
    SGD about constant. Under Adam, which is scale-invariant, it does next to nothing. A norm that is not finite leaves the
    average alone, so one bad batch does not spoil the rest; the bad gradient itself goes on to the optimiser, divided like any
    other, since only the caller knows whether to skip that step. Parameters without a gradient are passed over.

    Gradients may be of any floating types and on several devices. The norm is that of all together, in float32, or float64 if
    one of them is; half types are divided in float32 too, so a norm beyond their range is nothing special. Nothing waits for
    a GPU, unless some of the gradients lie on the CPU.

    Args:
        parameters: the parameters to normalise together.
        momentum: weight of the past in the average, in [0, 1); the first norm starts it.
        min_norm: lower bound of the divisor, > 0, in units of the gradient.

    Raises:
        ValueError: a number out of range.
        TypeError: something among the parameters is no tensor.

    Cost: one pass over the gradients for the norm and one for the division.
    Source: EXACT's code, where the average starts and runs the same, but one NaN stays in it for good.

    >>> layer = nn.Linear(2, 1)
    >>> layer(torch.tensor([[30.0, 40.0]])).sum().backward()
    >>> GradientNormalizer(layer.parameters()).step()
    >>> bool(torch.isclose(layer.weight.grad.norm() ** 2 + layer.bias.grad.norm() ** 2, torch.tensor(1.0)))
    True
    """

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.9, min_norm: float = 0.01) -> None:
        if not (0 <= momentum < 1 and min_norm > 0):
            raise ValueError(f"expected 0 ≤ momentum < 1 and min_norm > 0, got {momentum} and {min_norm}")
        if isinstance(parameters, Tensor):
            raise TypeError("parameters: expected an iterable of tensors, got a tensor; pass [parameter]")
        self.parameters = list(parameters)
        for p in self.parameters:
            if not isinstance(p, Tensor):
                raise TypeError(f"parameters: expected tensors, got {type(p).__name__}; pass model.parameters()")
        self.momentum, self.min_norm = momentum, min_norm
        self.average: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Normalise ``.grad`` in place; call between ``backward()`` and the optimiser's ``step()``."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return
        norm = _norm(gradients)
        past = norm if self.average is None else self.average.to(norm)
        mixed = self.momentum * past + (1 - self.momentum) * norm
        mixed = torch.where(norm.isfinite(), mixed, past)
        self.average = torch.where(past.isfinite(), mixed, norm)
        divisor = self.average.clamp_min(self.min_norm)
        for device in dict.fromkeys(g.device for g in gradients):
            _divide([g for g in gradients if g.device == device], divisor.to(device))

    def state_dict(self) -> dict[str, Tensor | None]:
        """What a checkpoint must keep."""
        return {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Tensor | None]) -> None:
        """Go on from a checkpoint, whatever device it was loaded to.

        Raises:
            ValueError: the state is not one of ``state_dict()``.
        """
        average = state.get("average")
        if set(state) != {"average"} or not (average is None or (isinstance(average, Tensor) and average.dim() == 0)):
            raise ValueError(f"state: expected {{'average': a scalar tensor or None}}, got {dict(state)}; pass state_dict()'s")
        self.average = average


def _norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar on the first one's device."""
    wide = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    device = gradients[0].device
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dtype=wide).to(device) for g in gradients]))


def _divide(gradients: list[Tensor], divisor: Tensor) -> None:
    """Gradients of one device, divided in place."""
    for dtype in dict.fromkeys(g.dtype for g in gradients):
        same = [g for g in gradients if g.dtype == dtype]
        if dtype.itemsize >= 4:
            torch._foreach_div_(same, divisor.to(dtype))
        else:  # a GPU may round the divisor to the half type, and float16 ends at 65504
            for g in same:
                torch.div(g.float(), divisor, out=g)
