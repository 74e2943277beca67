"""What the metric losses refuse, when they are made and when they are called: where, expected, got, remedy."""

import inspect
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lossmith
from lossmith import (
    AccuracyLoss,
    AUCLoss,
    AveragePrecisionLoss,
    BalancedAccuracyLoss,
    CostLoss,
    FBetaLoss,
    JaccardLoss,
    SubsetAccuracyLoss,
    TopKAccuracyLoss,
    surrogates,
)

EYE = torch.eye(3)
MAKERS = {
    "AccuracyLoss": AccuracyLoss,
    "TopKAccuracyLoss": lambda **o: TopKAccuracyLoss(2, **o),
    "BalancedAccuracyLoss": BalancedAccuracyLoss,
    "CostLoss": lambda **o: CostLoss(EYE, **o),
    "FBetaLoss": FBetaLoss,
    "JaccardLoss": JaccardLoss,
    "AUCLoss": AUCLoss,
    "AveragePrecisionLoss": AveragePrecisionLoss,
    "SubsetAccuracyLoss": SubsetAccuracyLoss,
    "metric": lambda **o: lossmith.metric(lambda tp, fp, fn, tn: tp / (tp + fn), **o).loss,
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@EACH
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise": "normel"}, ValueError, "noise: unknown name 'normel'"),
        ({"noise": 3}, TypeError, "noise: expected "),
        ({"scale": 0.0}, ValueError, "scale: expected a positive number, got 0.0"),
        ({"scale": "1"}, TypeError, "scale: expected a number or a tensor, got str"),
        ({"q": float("inf")}, ValueError, "q: expected a finite number, got inf"),
        ({"q": "0"}, TypeError, "q: expected a number, got str"),
        ({"q": None}, TypeError, "q: expected a number, got NoneType"),
        ({"reduction": "average"}, ValueError, "reduction: "),
        ({"ignore_index": 1.5}, TypeError, "ignore_index: expected an integer, got float"),
        ({"process_group": "world"}, TypeError, "process_group: expected a torch.distributed.ProcessGroup, got str"),
    ],
)
def test_every_loss_checks_its_dials(make: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        make(**options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AccuracyLoss(weight=[1.0, 2.0]), TypeError, "weight: expected a torch.Tensor of shape (C,), got list"),
        (lambda: AccuracyLoss(weight=EYE), ValueError, "weight: expected shape (C,), one a class, got (3, 3)"),
        (lambda: AccuracyLoss(over="epoch"), ValueError, "over: expected 'sample' or 'batch', got 'epoch'"),
        (lambda: BalancedAccuracyLoss(over="batch", reduction="sum"), ValueError, "reduction: over='batch' gives one number"),
        (
            lambda: TopKAccuracyLoss(2, label_smoothing=2.0),
            ValueError,
            "label_smoothing: expected a number from 0 to 1",
        ),
        (lambda: TopKAccuracyLoss(0), ValueError, "k: expected an integer ≥ 1, got 0"),
        (lambda: AccuracyLoss(margin="1"), TypeError, "margin: expected a number or None, got str"),
        (lambda: AccuracyLoss(margin=-1.0), ValueError, "margin: expected a number ≥ 0 in units of the scores, got -1.0"),
        (lambda: AccuracyLoss(label_smoothing="a"), TypeError, "label_smoothing: expected a number, got str"),
        (lambda: FBetaLoss(label_smoothing="a"), TypeError, "label_smoothing: expected a number, got str"),
        (lambda: AccuracyLoss(over=["sample"]), ValueError, "over: expected 'sample' or 'batch', got ['sample']"),
        (lambda: FBetaLoss("1"), TypeError, "beta: expected a number, got str"),
        (lambda: AUCLoss(max_fpr="1"), TypeError, "max_fpr: expected a number or None, got str"),
        (lambda: surrogates.HingeLoss("1"), TypeError, "margin: expected a number, got str"),
        (lambda: surrogates.PolyLoss("1"), TypeError, "epsilon: expected a number, got str"),
        (lambda: surrogates.GammaCrossEntropyLoss("1"), TypeError, "gamma: expected a number, got str"),
        (lambda: surrogates.SmoothTopKLoss(0), ValueError, "k: expected an integer ≥ 1, got 0"),
        (lambda: TopKAccuracyLoss(1.5), TypeError, "k: expected an integer, got float"),
        (lambda: CostLoss(torch.ones(2, 3)), ValueError, "cost: expected shape (C, C) with C ≥ 2, got (2, 3)"),
        (lambda: CostLoss(EYE / 0), ValueError, "cost: expected finite numbers"),
        (lambda: FBetaLoss(beta=0), ValueError, "beta: expected a positive number, got 0"),
        (lambda: FBetaLoss(average="samples"), ValueError, "average: expected 'binary', 'macro', "),
        (lambda: FBetaLoss(task="binary"), ValueError, "task: expected 'multiclass' or 'multilabel', got 'binary'"),
        (lambda: FBetaLoss(average="binary", task="multilabel"), ValueError, "average: 'binary' is for one label"),
        (lambda: FBetaLoss(reduction="sum"), ValueError, "reduction: the metric is one of the whole batch"),
        (lambda: JaccardLoss(task="multilabel", weight=torch.ones(3)), ValueError, "weight: weighs samples by their class"),
        (lambda: JaccardLoss(memory=-1), ValueError, "memory: expected an integer ≥ 0, got -1"),
        (lambda: JaccardLoss(memory=2.5), TypeError, "memory: expected an integer, got float"),
        (lambda: AUCLoss("ternary"), ValueError, "task: expected 'binary', 'multiclass' or 'multilabel', got 'ternary'"),
        (lambda: AUCLoss(average="samples"), ValueError, "average: expected 'macro', 'weighted', 'micro' or 'none'"),
        (lambda: AUCLoss(max_fpr=0.0), ValueError, "max_fpr: expected a rate above 0 and at most 1, got 0.0"),
        (lambda: AUCLoss(weight=torch.ones(2)), ValueError, "weight: the metric does not depend on how much a class weighs"),
        (
            lambda: AUCLoss(scale=torch.ones(2)),
            ValueError,
            "scale: expected a number or a tensor of one element",
        ),
        (lambda: SubsetAccuracyLoss(weight=torch.ones(2)), ValueError, "weight: has no meaning for a subset of labels"),
        (lambda: SubsetAccuracyLoss(label_smoothing=0.1), ValueError, "label_smoothing: has no meaning for a subset of labels"),
    ],
)
def test_what_cannot_be_made(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


PUBLIC = {
    **{name: getattr(lossmith.losses, name) for name in lossmith.losses.__all__},
    **{name: getattr(surrogates, name) for name in surrogates.__all__},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_written_out(name: str) -> None:
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    assert [x.name for x in parameters if x.kind in (x.VAR_KEYWORD, x.VAR_POSITIONAL)] == []
    assert [x.name for x in parameters if x.annotation is x.empty] == []


class Operators(TorchDispatchMode):
    """The operators that run, but for those that make the empty buffers of a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "empty" not in str(function):
            self.names.append(str(function))
        return function(*args, **kwargs or {})


@EACH
def test_making_a_loss_runs_none(make: Any) -> None:
    AccuracyLoss("gumbel")(torch.zeros(1, 2), torch.tensor([0]))
    before = lossmith.last_kernel()
    assert before == "closed form"
    with lossmith.use_kernel("reference"):
        AccuracyLoss("laplace")(torch.zeros(1, 3), torch.tensor([0]))
    assert lossmith.last_kernel() == "reference"
    with Operators() as operators:
        make(**({} if make is MAKERS["CostLoss"] else {"scale": 2.0}))
    assert lossmith.last_kernel() == "reference"
    assert make is MAKERS["CostLoss"] or operators.names == []


CLASSES = ["AccuracyLoss", "TopKAccuracyLoss", "BalancedAccuracyLoss", "CostLoss", "FBetaLoss", "JaccardLoss", "metric"]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("scores", "target", "error", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4).long(), TypeError, "scores: expected a floating-point tensor"),
        (torch.zeros(4, 3), torch.zeros(5).long(), ValueError, "target: expected class indices of shape (4,)"),
        (torch.zeros(4, 3), torch.full((4,), 3), ValueError, "target: expected class indices from 0 to 2, got 3 to 3"),
        (torch.zeros(4, 1), torch.zeros(4).long(), ValueError, "scores: expected shape (…, C) with C ≥ 2 classes"),
        (torch.full((4, 3), torch.nan), torch.zeros(4).long(), ValueError, "scores: expected finite numbers or −inf, got nan"),
        (torch.zeros(4, 3), [0, 1, 2, 0], TypeError, "target: expected a torch.Tensor, got list"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64, device="meta"), ValueError, "target: expected on cpu, where"),
    ],
)
def test_what_classes_cannot_be(name: str, scores: Any, target: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        MAKERS[name]()(scores, target)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "loss",
    [SubsetAccuracyLoss(), FBetaLoss(task="multilabel"), AUCLoss("multilabel"), AUCLoss(), AveragePrecisionLoss()],
    ids=["subset", "F-beta", "AUC of labels", "AUC", "average precision"],
)
@pytest.mark.parametrize(
    ("scores", "target", "error", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3), TypeError, "scores: expected a floating-point tensor"),
        (torch.zeros(4, 3), torch.zeros(4), ValueError, "target: expected the shape of the scores (4, 3)"),
        (torch.zeros(4, 3), torch.full((4, 3), 2), ValueError, "target: expected 0 or 1 for each label, got 2"),
        (torch.zeros(4, 3), torch.full((4, 3), 1.5), ValueError, "target: expected 0 or 1 for each label, got 1.5"),
        (torch.full((4, 3), torch.inf), torch.ones(4, 3), ValueError, "scores: expected finite numbers or −inf, got inf"),
        (torch.zeros(4, 3), torch.zeros(4, 3, device="meta"), ValueError, "target: expected on cpu, where the scores are"),
    ],
)
def test_what_labels_cannot_be(loss: Any, scores: Any, target: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        loss(scores, target)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: TopKAccuracyLoss(4)(EYE, torch.arange(3)),
            ValueError,
            "k: expected an integer from 1 to the 3 classes",
        ),
        (
            lambda: AccuracyLoss(weight=torch.ones(2))(EYE, torch.arange(3)),
            ValueError,
            "weight: expected shape (3,), one a class",
        ),
        (lambda: CostLoss()(EYE, torch.arange(3)), TypeError, "cost: expected a matrix at the constructor or each sample's"),
        (lambda: CostLoss(EYE)(EYE), TypeError, "target: expected class indices or probabilities, got None"),
        (lambda: CostLoss()(EYE, cost=EYE[0]), ValueError, "cost: expected the shape of the scores (3, 3), got (3,)"),
        (lambda: CostLoss(torch.eye(4))(EYE, torch.arange(3)), ValueError, "cost: expected shape (3, 3) for 3 classes"),
        (lambda: FBetaLoss(average="binary")(EYE, torch.arange(3)), ValueError, "average: 'binary' expects one score a sample"),
        (lambda: AUCLoss("multiclass")(EYE, EYE), ValueError, "target: expected class indices, got class probabilities"),
        (
            lambda: AUCLoss()(EYE[0], torch.full((3,), 0.5)),
            ValueError,
            "target: expected 0 or 1 for each label",
        ),
        (
            lambda: FBetaLoss(average="binary", weight=torch.ones(2))(EYE[0], EYE[0]),
            ValueError,
            "weight: expected two scores a sample with it, got one",
        ),
    ],
)
def test_what_does_not_go_together(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
