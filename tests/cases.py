"""What many tests share: the noises under test, and small helpers for tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lossmith.noise import NOISES, Custom, Noise, StudentT

# "studentt:3" is what the tables of stored values and the oracles call it.
BY_NAME: dict[str, Noise] = {name: noise for name, noise in NOISES.items() if name != "studentt"}
BY_NAME |= {f"studentt:{df}": StudentT(df) for df in (1, 3)}

EACH = pytest.mark.parametrize("noise", BY_NAME.values(), ids=BY_NAME)
JUMPS = ("uniform", "exponential")  # the densities that jump, so that log p bends where scores tie


def tensor(values: Any, **options: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, **options)


def random_scores(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(value: Tensor, x: Tensor, upstream: Tensor | None = None, **options: Any) -> Tensor:
    return torch.autograd.grad(value, x, upstream, **options)[0]


def copy_of(noise: Noise) -> Custom:
    """A noise of one's own with the formulas of a built-in one, and so without its shortcuts."""
    return Custom(noise.log_prob, noise.log_cdf, noise.icdf, kinks=noise.kinks)
