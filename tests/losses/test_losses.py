"""AccuracyLoss: cross-entropy's interface and numbers, and each dial against its formula in numpy."""

import itertools
import math
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossmith import AccuracyLoss, TopKAccuracyLoss, functional
from support import oracles
from support.cases import gradient

ROUNDING = 1e-13  # float64, a few sums of rounded terms; cross-entropy itself is good to some 1e-15 of its largest term
BY_INTEGRATION = 1e-9
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
LAYOUTS = {"(C,)": (4,), "(N, C)": (5, 4), "(N, C, d1, d2)": (2, 4, 3, 2)}
SCORES = torch.tensor([[0.3, -0.4, 1.2], [2.0, 1.5, -1.0], [0.1, 0.0, -0.2], [1.0, 3.0, 0.5]], dtype=torch.float64)
TARGET = torch.tensor([1, 0, 2, 0])
IGNORED = torch.tensor([1, 0, -100, 0])
SOFT = torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4], [0.0, 0.5, 0.5]], dtype=torch.float64)
CLASS_WEIGHT = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)


def inputs(layout: str, kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = LAYOUTS[layout]
    scores = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    if kind == "probabilities":
        class_dim = 0 if len(shape) == 1 else 1
        return scores, torch.rand(shape, generator=generator, dtype=torch.float64).softmax(class_dim)
    return scores, torch.randint(4, shape[:1] + shape[2:] if len(shape) > 1 else (), generator=generator)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("make", [AccuracyLoss, partial(TopKAccuracyLoss, 1)], ids=["accuracy", "top one"])
def test_gumbel_and_q_one_are_cross_entropy(make: Any, layout: str, kind: str, reduction: Any, weight: Tensor | None) -> None:
    scores, target = inputs(layout, kind)
    ignored = [-100] if kind == "probabilities" else [-100, 1, int(target.flatten()[0])]
    for ignore_index, smoothing in itertools.product(ignored, [0.0, 0.1, 1.0]):
        options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction}
        options["label_smoothing"] = smoothing
        ours = make("gumbel", q=1.0, **options)(scores, target)
        theirs = cross_entropy(scores, target, **options)
        assert ours.shape == theirs.shape
        theirs = theirs.nan_to_num()  # the mean over nothing; nothing else is nan here
        torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)
        upstream = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view_as(ours)
        slopes = gradient(ours, scores, upstream), gradient(theirs, scores, upstream)
        torch.testing.assert_close(*slopes, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize(("noise", "q"), [("gumbel", 1.0), ("normal", 0.0), ("normal", 2.0)])
@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_to_learn_from_is_zero_with_no_gradient(rows: int, noise: str, q: float, over: Any) -> None:
    scores, target = SCORES[:rows].clone().requires_grad_(), torch.full((rows,), -100)
    for reduction in ("mean", "sum", "none") if over == "sample" else ("mean",):
        loss = AccuracyLoss(noise, q=q, over=over, reduction=reduction)(scores, target)  # type: ignore[arg-type]
        assert not loss.any()
        assert not gradient(loss.sum(), scores).any()


def probabilities(noise: str, scale: float) -> np.ndarray[Any, Any]:
    """(N, C) of SCORES, without the library."""
    z = SCORES.numpy() / scale
    if noise == "gumbel":
        return oracles.softmax(z)
    rows = [[oracles.log_p_mp(row[k], tuple((float(s), 1) for s in np.delete(row, k))) for k in range(3)] for row in z]
    return np.exp(rows)


def expected_loss(p: np.ndarray[Any, Any], mass: np.ndarray[Any, Any], total: float, q: float, over: str) -> float:
    """Σ_ik mass_ik · −log_q(p_ik) / total, or −log_q of the mass's mean of p."""
    if over == "batch":
        return float(oracles.neg_log_q((mass * p).sum() / mass.sum(), q))
    return float((mass * oracles.neg_log_q(p, q)).sum() / total)


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("q", [-2.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("noise", "scale"), [("normal", 1.0), ("normal", 0.5), ("gumbel", 2.0)])
def test_every_dial_is_its_formula(noise: str, scale: float, q: float, over: Any) -> None:
    p = probabilities(noise, scale)
    weight, soft = CLASS_WEIGHT.numpy(), SOFT.numpy()
    hard, kept = np.eye(3)[TARGET], np.array([[1.0], [1.0], [0.0], [1.0]])
    cases: list[tuple[Tensor, dict[str, Any], Any, float]] = [
        (TARGET, {}, hard, 4.0),
        (TARGET, {"weight": CLASS_WEIGHT}, hard * weight, weight[TARGET].sum()),
        (IGNORED, {"weight": CLASS_WEIGHT}, hard * weight * kept, (weight[TARGET] * kept[:, 0]).sum()),
        (IGNORED, {"label_smoothing": 0.3}, (hard * 0.7 + 0.1) * kept, 3.0),
        (SOFT, {}, soft, 4.0),
        (SOFT, {"weight": CLASS_WEIGHT, "label_smoothing": 0.3}, (soft * 0.7 + 0.1) * weight, 4.0),
    ]
    for target, options, mass, total in cases:
        loss = AccuracyLoss(noise, scale, q, over, **options)(SCORES, target)
        assert loss.item() == pytest.approx(expected_loss(p, mass, total, q, over), rel=10 * BY_INTEGRATION), options


def test_named_points() -> None:
    own = np.arange(4), TARGET.numpy()
    for over in ("sample", "batch"):
        for noise in ("normal", "gumbel"):
            mean = probabilities(noise, 1.0)[own].mean()
            loss = AccuracyLoss(noise, q=0, over=over)(SCORES, TARGET)  # type: ignore[arg-type]
            assert loss.item() == pytest.approx(1 - mean, rel=BY_INTEGRATION)  # EXACT; smooth accuracy
    probit = -np.log(probabilities("normal", 1.0)[own])
    assert AccuracyLoss("normal", q=1)(SCORES, TARGET).item() == pytest.approx(probit.mean(), rel=BY_INTEGRATION)
    outside = AccuracyLoss("normal", q=1, over="batch")(SCORES, TARGET)
    assert outside.item() == pytest.approx(-math.log(np.exp(-probit).mean()), rel=BY_INTEGRATION)


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("q", [-2.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("noise", ["normal", "gumbel"])
def test_gradcheck(noise: str, q: float, over: Any) -> None:
    scale = torch.tensor([[0.7], [1.0], [1.3], [2.0]], dtype=torch.float64, requires_grad=True)
    for target, options in [
        (TARGET, {}),
        (IGNORED, {"weight": CLASS_WEIGHT, "margin": 0.9}),
        (IGNORED, {"label_smoothing": 0.3, "standardize": True}),
        (SOFT, {"weight": CLASS_WEIGHT}),
        (SOFT, {"margin": 0.9}),
    ]:

        def loss(z: Tensor, s: Tensor, target: Tensor = target, options: Any = options) -> Tensor:
            return -2.5 * AccuracyLoss(noise, s, q, over, **options)(z, target)

        assert torch.autograd.gradcheck(loss, (SCORES.clone().requires_grad_(), scale), fast_mode=True), options


@pytest.mark.parametrize("noise", ["normal", "gumbel"])
@pytest.mark.parametrize("q", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("target", [torch.tensor([-100, 1]), torch.tensor([[0.0, 1.0, 0.0]] * 2)], ids=["ignored", "zero mass"])
def test_what_weighs_nothing_does_nothing(target: Tensor, q: float, noise: str) -> None:
    """A hopeless class in an ignored sample, or of target probability 0, whose loss overflows for q > 1."""
    scores = torch.tensor([[0.0, 1000.0, 1.0], [0.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = AccuracyLoss(noise, q=q)(scores, target)
    assert loss.isfinite()
    slopes = gradient(loss, scores)
    assert not slopes[0].abs().max() > 1e-9
    assert slopes.isfinite().all()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"over": "batch"}, {"weight": CLASS_WEIGHT}], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_ignored_row_may_hold_anything(bad: float, options: dict[str, Any], standardize: bool) -> None:
    """Padding of sequences, say: the loss and its gradient are those without the row."""
    loss = AccuracyLoss(standardize=standardize, **options)
    kept = [0, 1, 3]
    clean = SCORES[kept].clone().requires_grad_()
    expected = loss(clean, TARGET[kept])
    scores = SCORES.clone()
    scores[2] = bad
    scores.requires_grad_()
    value = loss(scores, IGNORED)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    slopes = gradient(value, scores)
    torch.testing.assert_close(slopes[kept], gradient(expected, clean), rtol=1e-9, atol=1e-14)
    assert not slopes[2].any()
    with pytest.raises(ValueError, match=r"^scores: expected [^\n]+ row 2"):
        AccuracyLoss(**options)(scores, TARGET)


def test_margin_with_soft_targets_caps_each_class() -> None:
    scores, margin = SCORES, 0.4
    soft = AccuracyLoss(margin=margin, reduction="none")(scores, SOFT)
    each = [AccuracyLoss(margin=margin, reduction="none")(scores, torch.full((4,), k)) for k in range(3)]
    torch.testing.assert_close(soft, (SOFT * torch.stack(each, -1)).sum(-1))
    scale = torch.tensor([[0.5], [1.0], [2.0], [3.0]], dtype=torch.float64)
    scaled = AccuracyLoss(scale=scale, margin=margin, reduction="none")(scores, SOFT)
    rows = [AccuracyLoss(scale=s.item(), margin=margin)(scores[i : i + 1], SOFT[i : i + 1]) for i, s in enumerate(scale)]
    torch.testing.assert_close(scaled, torch.stack(rows))


@pytest.mark.parametrize("noise", ["normal", "gumbel"])
def test_standardized_the_size_of_the_scores_does_not_matter(noise: str) -> None:
    loss = AccuracyLoss(noise, standardize=True)
    torch.testing.assert_close(loss(50 * SCORES - 7, IGNORED), loss(SCORES, IGNORED), rtol=1e-9, atol=0)
    plain = AccuracyLoss(noise)(functional.standardize_scores(SCORES[[0, 1, 3]]), TARGET[[0, 1, 3]])
    torch.testing.assert_close(loss(SCORES, IGNORED), plain, rtol=1e-6, atol=0)


def test_state_dict_is_cross_entropys() -> None:
    loss = AccuracyLoss(scale=0.25, weight=CLASS_WEIGHT)
    assert loss.state_dict().keys() == torch.nn.CrossEntropyLoss(weight=CLASS_WEIGHT).state_dict().keys()
    again = pickle.loads(pickle.dumps(loss))
    assert torch.equal(again(SCORES, TARGET), loss(SCORES, TARGET))


def test_a_learned_scale_stays_the_optimisers_parameter_after_loading() -> None:
    loss, other = (AccuracyLoss(scale=torch.nn.Parameter(torch.tensor(s, dtype=torch.float64))) for s in (0.5, 2.0))
    parameter = loss.scale
    loss.load_state_dict(other.state_dict())
    assert loss.scale is parameter
    assert parameter.item() == 2.0
    (slope,) = torch.autograd.grad(loss(SCORES, TARGET), parameter)
    assert slope != 0


def test_targets_of_bytes_are_indices_not_masks() -> None:
    loss = AccuracyLoss("gumbel", weight=CLASS_WEIGHT)
    assert torch.equal(loss(SCORES, TARGET.to(torch.uint8)), loss(SCORES, TARGET))


def test_weight_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^weight: expected shape \(3,\), one a class, got \(5,\)$"):
        AccuracyLoss(weight=torch.ones(5))(SCORES, TARGET)
    with pytest.raises(ValueError, match=r"^weight: expected shape \(3,\)"):
        AccuracyLoss(weight=torch.ones(5))(SCORES, SOFT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    for target in (TARGET, SOFT.to(dtype)):
        loss = AccuracyLoss(weight=CLASS_WEIGHT)(SCORES.to(dtype), target)
        assert loss.dtype == dtype
        expected = AccuracyLoss(weight=CLASS_WEIGHT)(
            SCORES.to(dtype).double(), target.double() if target is not TARGET else target
        )
        assert loss.item() == pytest.approx(expected.item(), rel=8 * torch.finfo(dtype).eps)


def test_inputs_are_left_as_they_were() -> None:
    scores, target, soft = SCORES.clone(), IGNORED.clone(), SOFT.clone()
    for noise in ("normal", "gumbel"):
        AccuracyLoss(noise, margin=0.5, label_smoothing=0.1, weight=CLASS_WEIGHT, standardize=True)(scores, target)
        AccuracyLoss(noise, weight=CLASS_WEIGHT)(scores, soft)
    for now, before in ((scores, SCORES), (target, IGNORED), (soft, SOFT)):
        assert torch.equal(now, before)


def test_repr_names_the_dials() -> None:
    text = repr(AccuracyLoss("gumbel", 0.5, 2.0, "batch", 3.0, standardize=True))
    for part in ("noise='gumbel'", "scale=0.5", "q=2.0", "over='batch'", "margin=3.0", "standardize=True"):
        assert part in text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise": "norml"}, ValueError, r"^noise: unknown name 'norml'; did you mean 'normal', 'uniform'\?$"),
        ({"q": math.nan}, ValueError, r"^q: expected a finite number, got nan; [^\n]+$"),
        ({"over": "samples"}, ValueError, r"^over: expected 'sample' or 'batch', got 'samples'$"),
        ({"over": "batch", "reduction": "sum"}, ValueError, r"^reduction: over='batch' [^\n]+ takes 'mean' only, got 'sum'$"),
        ({"reduction": "avg"}, ValueError, r"^reduction: expected 'mean', 'sum' or 'none', got 'avg'$"),
        ({"label_smoothing": 1.5}, ValueError, r"^label_smoothing: expected a number from 0 to 1, got 1.5$"),
        ({"margin": -0.1}, ValueError, r"^margin: expected a number ≥ 0 in units of the scores, got -0.1$"),
    ],
)
def test_constructor_refuses_in_one_line(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AccuracyLoss(**options)


@pytest.mark.parametrize(
    ("scores", "target", "error", "message"),
    [
        (torch.zeros(()), TARGET, ValueError, r"^scores: expected shape \(C,\), \(N, C\) or [^\n]+, got a single number$"),
        (SCORES.long(), TARGET, TypeError, r"^scores: expected a floating-point tensor, got torch.int64; [^\n]+$"),
        (SCORES[:, :1], TARGET * 0, ValueError, r"^scores: expected shape [^\n]+, got \(4, 1\)$"),
        (
            SCORES,
            TARGET[:3],
            ValueError,
            r"^target: expected class indices of shape \(4,\) or [^\n]+, got torch.int64 of shape \(3,\)$",
        ),
        (SCORES, SOFT[:, :2], ValueError, r"^target: expected [^\n]+ \(4, 3\), got torch.float64 of shape \(4, 2\)$"),
        (SCORES, TARGET + 2, ValueError, r"^target: expected class indices from 0 to 2, got 2 to 4$"),
        (SCORES, TARGET - 1, ValueError, r"^target: expected class indices from 0 to 2, got -1 to 1$"),
    ],
)
def test_forward_refuses_in_one_line(scores: Tensor, target: Tensor, error: type[Exception], message: str) -> None:
    for options in ({}, {"weight": CLASS_WEIGHT}, {"label_smoothing": 0.1}, {"standardize": True}):
        with pytest.raises(error, match=message):
            AccuracyLoss(**options)(scores, target)  # type: ignore[arg-type]


def test_a_scale_set_out_of_range_is_refused_when_used() -> None:
    loss = AccuracyLoss()
    loss.scale = 0.0
    with pytest.raises(ValueError, match=r"^scale: expected a positive number, got 0.0$"):
        loss(SCORES, TARGET)
