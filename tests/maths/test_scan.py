"""Σ_{i<r} terms_i · exp(level_i − level_r), against the double loop in numpy."""

from typing import Any

import numpy as np
import pytest
import torch

from lossmith.maths.scan import BLOCK, decayed_cumsum
from support.cases import tensor


def double_loop(terms: np.ndarray[Any, Any], level: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    total = np.zeros_like(terms)
    for r in range(terms.shape[-1]):
        total[..., r] = (terms[..., :r] * np.exp(level[..., :r] - level[..., r : r + 1])).sum(-1)
    return total


# One block, its edges, several, and enough for blocks of blocks.
@pytest.mark.parametrize("n", [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 100, BLOCK**2, BLOCK**2 + BLOCK + 1])
@pytest.mark.parametrize("climb", [0.0, 0.05, 3.0, 1e5], ids=lambda c: f"climb {c}")
def test_it_is_the_sum_over_everything_before(n: int, climb: float) -> None:
    generator = np.random.default_rng(n)
    terms = generator.normal(size=(2, 3, n))
    level = climb * generator.exponential(size=(2, 3, n)).cumsum(-1)
    got = decayed_cumsum(tensor(terms), tensor(level))
    np.testing.assert_allclose(got.numpy(), double_loop(terms, level), rtol=1e-11, atol=1e-11)


def test_equal_levels_give_the_plain_sum_before_each_element() -> None:
    terms = torch.arange(100.0)
    assert torch.equal(decayed_cumsum(terms, torch.full((100,), 7.0)), terms.cumsum(0) - terms)


@pytest.mark.parametrize("n", [1, 3, BLOCK + 3])
def test_derivatives(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(2, n, generator=generator, dtype=torch.float64, requires_grad=True)
    level = torch.rand(2, n, generator=generator, dtype=torch.float64).cumsum(-1).requires_grad_()
    assert torch.autograd.gradcheck(decayed_cumsum, (terms, level))
    assert torch.autograd.gradgradcheck(decayed_cumsum, (terms, level), atol=1e-6)


def test_levels_that_climb_beyond_the_range_of_exp_have_finite_gradients() -> None:
    level = torch.linspace(0, 1e6, 3 * BLOCK, dtype=torch.float64).requires_grad_()
    terms = torch.ones(3 * BLOCK, dtype=torch.float64, requires_grad=True)
    total = decayed_cumsum(terms, level)
    assert not total.any()  # a step is e⁻¹⁰⁰⁰⁰
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(total.sum(), (terms, level)))


def test_single_precision_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    terms, level = torch.rand(200, generator=generator), torch.rand(200, generator=generator).cumsum(0)
    got = decayed_cumsum(terms, level)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), double_loop(terms.double().numpy(), level.double().numpy()), rtol=2e-5)
