"""Kernels count denormal numbers as zero, and leave the caller's thread as it was."""

import pytest
import torch

from lossmith.functional import argmax_log_prob, argmax_log_probs, topk_log_prob

TINY = 1e-40  # a denormal float32


def is_kept() -> bool:
    """Whether this thread computes with denormal numbers."""
    return bool((torch.full((64,), TINY) * 0.5 > 0).all())


@pytest.mark.parametrize("flush", [False, True])
def test_the_mode_of_the_callers_thread_is_restored(flush: bool) -> None:
    scores, target = torch.randn(300, 12), torch.arange(300) % 12
    if not torch.set_flush_denormal(flush):
        pytest.skip("torch cannot set the mode here")
    try:
        assert is_kept() is not flush
        for dtype in (torch.float32, torch.float64):
            leaf = scores.to(dtype).requires_grad_()
            log_p = [
                argmax_log_prob(leaf, target),
                argmax_log_prob(leaf, target, noise="gumbel"),
                topk_log_prob(leaf, target, 2),
            ]
            torch.autograd.grad(sum(x.sum() for x in log_p) + argmax_log_probs(leaf).sum(), leaf)
            assert is_kept() is not flush
    finally:
        torch.set_flush_denormal(False)
