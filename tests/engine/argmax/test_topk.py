"""The law of the k-th highest rival at a threshold, against a convolution in many digits."""

import numpy as np
import pytest
import torch

from lossmith.engine.argmax.topk import log_tails
from lossmith.noise import Noise
from support import oracles
from support.cases import BY_NAME, EACH, random_scores, tensor

# From thresholds that all rivals exceed to those that none does; for normals as far as either tail is a float.
THRESHOLDS = {"normal": [-6.0, -1.0, 0.3, 2.0, 9.0, 20.0], "uniform": [-1.4, 0.05, 0.3, 0.9, 1.3]}
ELSEWHERE = [-7.0, -1.0, -0.1, 2.0, 20.0]


@pytest.mark.parametrize("k", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("name", BY_NAME)
def test_both_tails(name: str, k: int) -> None:
    rivals = [-0.5, 0.0, 0.0, 0.25, 1.0, -1.5, 0.1, 0.2, 0.3, -0.25, 0.4]
    thresholds = THRESHOLDS.get(name, ELSEWHERE)
    below, above = log_tails(tensor([rivals]), tensor([thresholds]), BY_NAME[name], k)
    for i, u in enumerate(thresholds):
        expected = oracles.log_tails_mp(name, rivals, u, k - 1)
        # Of the two, the engine uses the small one: only that one keeps its digits, however few there are of it.
        for got, right in zip((below[0, i].item(), above[0, i].item()), expected, strict=True):
            if right > -700:  # beyond, P(N ≥ k) underflows
                assert got == pytest.approx(right, rel=1e-10, abs=1e-13), u


@pytest.mark.parametrize("k", [2, 10, 60])
def test_the_chance_of_few_among_hundreds_that_are_likely_keeps_its_digits(k: int) -> None:
    """Expected far above k: the tilted product carries it."""
    rivals = np.linspace(0, 3, 300).tolist()
    below, _ = log_tails(tensor([rivals]), tensor([[0.0, 2.0]]), BY_NAME["normal"], k)
    for i, u in enumerate((0.0, 2.0)):
        exact, _ = oracles.log_tails_mp("normal", rivals, u, k - 1, digits=50)
        assert below[0, i].item() == pytest.approx(exact, rel=1e-10)


@EACH
def test_blocks_of_thresholds_change_nothing(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[torch.Tensor]:
        rivals = random_scores(2, 6).requires_grad_()
        u = torch.linspace(-0.5, 0.9, 10, dtype=torch.float64).expand(2, 10)
        below, above = log_tails(rivals, u, noise, 3)
        total = sum(t[t.isfinite()].sum() for t in (below, above))
        return [below, above, torch.autograd.grad(total, rivals)[0]]

    whole = run()
    monkeypatch.setattr("lossmith.engine.argmax.topk.BUDGET", 1)
    torch.testing.assert_close(run(), whole, rtol=1e-12, atol=1e-14)
