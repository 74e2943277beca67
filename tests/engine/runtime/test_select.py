"""The choice of a kernel: obeyed or refused by every function, said when it costs, tried again after a lack of memory."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lossmith
from lossmith import functional
from lossmith.engine.argmax import fused
from lossmith.engine.runtime import select
from lossmith.engine.runtime.select import REFERENCE, Kernel
from lossmith.noise import StudentT

SCORES, TARGET = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)), torch.arange(40)
RANKED = TARGET < 10
CALLS: dict[str, Callable[[], Tensor]] = {
    "argmax_log_prob": lambda: functional.argmax_log_prob(SCORES, TARGET, noise=StudentT(0.25)),
    "argmax_log_probs": lambda: functional.argmax_log_probs(SCORES, noise="laplace"),
    "topk_log_prob": lambda: functional.topk_log_prob(SCORES[:4], TARGET[:4], 2, noise="laplace"),
    "expected_auc": lambda: functional.expected_auc(torch.linspace(0, 1e9, 40), RANKED, noise="normal"),
    "expected_average_precision": lambda: functional.expected_average_precision(SCORES.flatten()[:80], (RANKED.repeat(2))),
}


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_warned", set())
    monkeypatch.setattr(select, "broken", {})


@pytest.mark.parametrize("operation", CALLS)
def test_a_kernel_that_cannot_serve_is_refused_by_every_function(operation: str) -> None:
    for name in ("cpu", "cuda"):
        message = rf"^kernel: '{name}' cannot serve this call of {operation} \(.+\); expected one of: reference$"
        with lossmith.use_kernel(name), pytest.raises(ValueError, match=message):
            CALLS[operation]()


@pytest.mark.parametrize("operation", CALLS)
def test_every_function_says_what_ran(operation: str) -> None:
    functional.argmax_log_prob(SCORES, TARGET, noise="gumbel")
    assert lossmith.last_kernel() == "closed form"
    CALLS[operation]()
    assert lossmith.last_kernel() == "reference"
    with lossmith.use_kernel("reference"):
        CALLS[operation]()


@pytest.mark.parametrize("operation", ["argmax_log_prob", "argmax_log_probs", "topk_log_prob", "expected_average_precision"])
def test_a_price_is_said_once_at_the_users_line(operation: str) -> None:
    with pytest.warns(lossmith.PerformanceWarning, match=rf"^{operation}: .*slower \(.+\); .*Said once") as said:
        _ = [CALLS[operation]() for _ in range(2)]
    assert len(said) == 1
    assert said[0].filename == __file__


def test_float64_scores_are_named_as_the_reason_and_a_request_needs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lossmith.use_kernel("reference"):
            functional.argmax_log_prob(SCORES.double(), TARGET)
        functional.argmax_log_prob(SCORES[:4, :5].double(), TARGET[:4])  # small enough
    with pytest.warns(lossmith.PerformanceWarning, match="scores of torch.float64.; pass float32 scores"):
        lossmith.TopKAccuracyLoss(3)(SCORES.double(), TARGET)


def test_a_kernel_that_lacked_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = functional.argmax_log_prob(SCORES, TARGET)

    def lacking(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(fused, "run_team", lacking)
        with pytest.warns(RuntimeWarning, match="the reference runs instead, this once$") as said:
            found = functional.argmax_log_prob(SCORES, TARGET)
        assert said[0].filename == __file__
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(functional.argmax_log_prob(SCORES, TARGET), expected)
    assert lossmith.last_kernel() == "cpu"


def test_a_request_goes_along_into_a_thread_apart() -> None:
    from lossmith.engine.runtime.threads import apart

    with lossmith.use_kernel("reference"):
        assert apart(select.asked) == "reference"
    assert apart(select.asked) is None


def test_the_record_of_a_kernel_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="unknown name 'cpuu'; did you mean 'cpu'"):
        Kernel("cpuu")
    assert REFERENCE.refusal("anything", SCORES) == ""


@pytest.mark.parametrize("noise", ["normal", "logistic"])
def test_rows_that_a_kernel_passes_on_are_counted_and_said_once(noise: str) -> None:
    scores, target = 0.1 * SCORES, TARGET.clone()
    scores[:3, 7] = 1e4  # the target lies farther behind than the tables reach
    with pytest.warns(lossmith.PerformanceWarning, match=r"^argmax_log_prob: .*farther than the kernel's tables") as said:
        _ = [functional.argmax_log_prob(scores.repeat(10, 1), target.repeat(10), noise=noise) for _ in range(2)]
    assert len(said) == 1
    assert lossmith.last_kernel() == "cpu, 30 rows by reference"
    scores[4, :2] = 1e4  # the same for the two highest
    functional.topk_log_prob(scores, target, 2, noise=noise)
    assert lossmith.last_kernel() == "cpu, 1 row by reference"  # one rival alone far above takes one of the two places
    functional.argmax_log_prob(scores[5:], target[5:], noise=noise)
    assert lossmith.last_kernel() == "cpu"
