"""What the tests of kernels share: random rows, the reference in float64, and how near a kernel has to come to it."""

import torch
from torch import Tensor

import lossmith
from lossmith.engine.argmax import reference
from lossmith.noise import Noise

P, LOG_P = 1e-6, 1e-5  # what float32 promises: p absolute, log p relative


def scores_of(rows: int, classes: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores in float32 and targets."""
    made = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(rows, classes, generator=made)
    return scores, torch.randint(0, classes, (rows,), generator=made)


def exact(scores: Tensor, target: Tensor, noise: Noise | str = "normal", scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """log p and its gradient in the scores, in float64."""
    leaf = scores.detach().double().requires_grad_()
    log_p = reference.log_prob(leaf / scale, target, lossmith.noise.get(noise))
    return log_p.detach(), torch.autograd.grad(log_p[log_p.isfinite()].sum(), leaf)[0]


def assert_near(found: tuple[Tensor, Tensor], known: tuple[Tensor, Tensor], of_gradient: float) -> None:
    """log p and gradient are those known: the gradient within ``of_gradient`` of its row's norm."""
    (log_p, grad), (log_q, slope) = found, known
    torch.testing.assert_close(log_p.double().exp(), log_q.exp(), rtol=0, atol=P)
    tiny = log_q.abs() < 1e-30  # beside the smallest float32
    torch.testing.assert_close(torch.where(tiny, 0.0, log_p.double()), torch.where(tiny, 0.0, log_q), rtol=LOG_P, atol=0)
    error, norm = (grad.double() - slope).norm(dim=-1), slope.norm(dim=-1)
    assert (error <= of_gradient * norm + 1e-30).all(), (error / norm).max()
