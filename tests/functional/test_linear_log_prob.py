"""linear_argmax_log_prob: its derivatives by differences, and its values beside the formula of Gumbel noise."""

from typing import Any

import numpy as np
import pytest
import torch

from lossmith import functional
from support import oracles
from support.cases import tensor


def arguments() -> tuple[Any, ...]:
    made = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(size, generator=made, dtype=torch.float64) for size in ((2, 3, 4), (5, 4), (5,)))
    return x, w, b, torch.randint(5, (2, 3), generator=made)


@pytest.mark.parametrize("noise", ["normal", "gumbel", "laplace"])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_gradients_by_differences(noise: str, margin: float | None) -> None:
    x, w, b, target = arguments()
    target[0, 1] = -100
    leaves = [t.requires_grad_() for t in (x, w, b, tensor(0.8))]
    options: dict[str, Any] = {"noise": noise, "margin": margin, "ignore_index": -100, "batch_chunk_size": 4}

    def log_p(*given: Any) -> Any:
        return functional.linear_argmax_log_prob(given[0], given[1], target, given[2], scale=given[3], **options)

    assert torch.autograd.gradcheck(log_p, leaves)


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_gumbel_noise_is_a_softmax(chunk: int | None) -> None:
    x, w, b, target = arguments()
    p = oracles.softmax((x.numpy() @ w.numpy().T + b.numpy()) / 0.5)
    expected = np.log(np.take_along_axis(p, target.numpy()[..., None], -1)[..., 0])
    found = functional.linear_argmax_log_prob(x, w, target, b, noise="gumbel", scale=0.5, batch_chunk_size=chunk)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_normal_noise_beside_its_integral() -> None:
    x, w, b, target = arguments()
    rows, index = (x.numpy() @ w.numpy().T + b.numpy()).reshape(-1, 5), target.flatten().tolist()
    expected = [
        float(oracles.log_p_mp(z[y], tuple((float(s), 1) for s in np.delete(z, y)))) for z, y in zip(rows, index, strict=True)
    ]
    found = functional.linear_argmax_log_prob(x, w, target, b, batch_chunk_size=4)
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-9)
