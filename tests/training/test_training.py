import math
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lossmith import AccuracyLoss, training
from lossmith.surrogates import BetaBernoulliLoss, HingeLoss, SigmoidLoss
from lossmith.training import GradientNormalizer, QSchedule, ScaleSchedule, TrainingConfig, fit
from lossmith.training.schedules import Shape

ROUNDING = 1e-12
SHAPES = get_args(Shape)


@pytest.mark.parametrize(("start", "end", "steps"), [(10.0, 0.01, 16), (0.1, 3.0, 7), (5.0, 0.5, 2), (2.0, 2.0, 4)])
def test_schedule_is_geometric_and_reaches_its_end(start: float, end: float, steps: int) -> None:
    loss = AccuracyLoss()
    schedule = ScaleSchedule(loss, start, end, steps)
    scales = [loss.scale]
    for _ in range(steps - 1):
        schedule.step()
        scales.append(loss.scale)
    np.testing.assert_allclose(scales, np.geomspace(start, end, steps), rtol=ROUNDING)
    assert scales[0] == start
    for _ in range(3):
        schedule.step()
        assert loss.scale == pytest.approx(end, rel=ROUNDING)


def test_one_step_starts_at_the_start() -> None:
    loss = SigmoidLoss()
    schedule = ScaleSchedule(loss, 4.0, 1.0, 1)
    assert loss.scale == 4.0
    schedule.step()
    assert loss.scale == 1.0


def test_schedule_resumes_where_it_was() -> None:
    loss, resumed = AccuracyLoss(), AccuracyLoss()
    schedule = ScaleSchedule(loss, 10.0, 0.1, 9)
    for _ in range(4):
        schedule.step()
    other = ScaleSchedule(resumed, 1.0, 1.0, 2)
    other.load_state_dict(schedule.state_dict())
    assert resumed.scale == loss.scale
    for _ in range(6):
        schedule.step()
        other.step()
        assert resumed.scale == loss.scale
    assert other.state_dict() == schedule.state_dict()


LEAST = r"expected a finite scale > 0, got"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.0, 1.0, 3), f"start: {LEAST} 0.0"),
        ((1.0, 0.0, 3), f"end: {LEAST} 0.0"),
        ((1.0, -1.0, 3), f"end: {LEAST} -1.0"),
        ((math.nan, 1.0, 3), f"start: {LEAST} nan"),
        ((1.0, math.inf, 3), f"end: {LEAST} inf"),
        ((1.0, 1.0, 0), "steps: expected a whole number ≥ 1, got 0"),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_schedule_refuses_in_one_line(numbers: Any, words: str, shape: Any) -> None:
    loss = AccuracyLoss(scale=7.0)
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        ScaleSchedule(loss, *numbers, shape=shape)
    assert loss.scale == 7.0


def test_schedule_refuses_what_it_cannot_move() -> None:
    with pytest.raises(TypeError, match=r"^loss: expected an object with an attribute q, got HingeLoss$"):
        QSchedule(HingeLoss(), 1.0, 0.0, 3)
    with pytest.raises(TypeError, match=r"^loss\.scale: expected a number"):
        ScaleSchedule(AccuracyLoss(scale=torch.nn.Parameter(torch.tensor(1.0))), 10.0, 0.1, steps=5)
    with pytest.raises(TypeError, match=r"^steps: expected a whole number, got float$"):
        ScaleSchedule(AccuracyLoss(), 10.0, 0.1, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^shape: unknown name 'cosin'; did you mean 'cosine'\?$"):
        QSchedule(AccuracyLoss(), 1.0, 0.0, 3, shape="cosin")  # type: ignore[arg-type]


# By hand: five steps, so f = 0, 1/4, 1/2, 3/4, 1, and (1 − cos πf)/2 = 0, (2 − √2)/4, 1/2, (2 + √2)/4, 1.
COSINE = [0.0, (2 - math.sqrt(2)) / 4, 0.5, (2 + math.sqrt(2)) / 4, 1.0]


@pytest.mark.parametrize(
    ("shape", "start", "end", "expected"),
    [
        ("linear", 1.0, 0.0, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", 0.0, 2.0, [0.0, 0.5, 1.0, 1.5, 2.0]),
        ("cosine", 1.0, 0.0, [1 - share for share in COSINE]),
        ("cosine", 0.5, 4.5, [0.5 + 4 * share for share in COSINE]),
        ("exponential", 16.0, 1.0, [16.0, 8.0, 4.0, 2.0, 1.0]),
    ],
)
@pytest.mark.parametrize("kind", [ScaleSchedule, QSchedule])
def test_each_shape_gives_these_numbers(kind: Any, shape: Any, start: float, end: float, expected: list[float]) -> None:
    if kind is ScaleSchedule:  # which never reaches 0
        start, end, expected = start + 1, end + 1, [value + 1 for value in expected]
        if shape == "exponential":
            start, end, expected = 16.0, 1.0, [16.0, 8.0, 4.0, 2.0, 1.0]
    loss = AccuracyLoss()
    schedule = kind(loss, start, end, 5, shape=shape)
    got = [getattr(loss, kind.dial)]
    for _ in range(6):
        schedule.step()
        got.append(getattr(loss, kind.dial))
    np.testing.assert_allclose(got, [*expected, end, end], rtol=ROUNDING, atol=ROUNDING)
    assert got[0] == start
    assert got[-3:] == [end] * 3  # to the last digit


def test_the_shapes_that_need_not_be_named() -> None:
    loss = AccuracyLoss()
    ScaleSchedule(loss, 16.0, 1.0, 3).step()
    QSchedule(loss, 1.0, 0.0, 3).step()
    assert (loss.scale, loss.q) == (4.0, 0.5)


def test_q_keeps_its_range() -> None:
    loss = AccuracyLoss()
    schedule = QSchedule(loss, 1.0, -9.0, 3)
    schedule.step()
    assert loss.q == -4.0
    for start, end in ((math.nan, 1.0), (1.0, math.inf), (-math.inf, 1.0)):
        for shape in SHAPES:
            with pytest.raises(ValueError, match=r"^(start|end): expected a finite q[^\n]*, got (nan|inf|-inf)[^\n]*$"):
                QSchedule(AccuracyLoss(), start, end, 3, shape=shape)  # type: ignore[arg-type]
    for start, end in ((0.0, 1.0), (1.0, 0.0), (1.0, -0.5)):
        with pytest.raises(ValueError, match=r"^(start|end): expected a finite q > 0, got [-0-9.]+; [^\n]*'linear'[^\n]*$"):
            QSchedule(AccuracyLoss(), start, end, 3, shape="exponential")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [ScaleSchedule, QSchedule])
def test_each_shape_resumes_from_a_checkpoint(kind: Any, shape: Any, tmp_path: Path) -> None:
    loss, resumed = AccuracyLoss(), AccuracyLoss()
    schedule = kind(loss, 3.0, 0.5, 9, shape=shape)
    for _ in range(4):
        schedule.step()
    torch.save(schedule.state_dict(), tmp_path / "state")
    other = kind(resumed, 1.0, 1.0, 2, shape=shape)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for _ in range(6):
        assert getattr(resumed, kind.dial) == getattr(loss, kind.dial)
        schedule.step()
        other.step()


def test_a_state_of_another_schedule_is_refused() -> None:
    schedule = QSchedule(AccuracyLoss(), 1.0, 0.5, 5)
    schedule.step()
    before = schedule.state_dict()
    bad = [
        (ScaleSchedule(AccuracyLoss(), 1.0, 0.5, 5, shape="linear").state_dict(), "state: expected dial='q'"),
        (QSchedule(AccuracyLoss(), 1.0, 0.5, 5, shape="cosine").state_dict(), "state: expected shape='linear'"),
        ({"average": None}, "state: expected the entries ['dial', "),
        ({**before, "start": math.inf}, "start: expected a finite q"),
        ({**before, "taken": -1}, "taken: expected a whole number ≥ 0"),
        ({**before, "steps": 0, "end": 0.7}, "steps: expected a whole number ≥ 1"),
    ]
    for state, words in bad:
        with pytest.raises(ValueError, match=f"^{re.escape(words)}[^\n]*$"):
            schedule.load_state_dict(state)
        assert schedule.state_dict() == before
        assert schedule.loss.q == 0.875


def parameters_with(*gradients: list[float] | None) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(1 if g is None else len(g))) for g in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = None if g is None else torch.tensor(g)
    return parameters


def set_gradients(parameters: list[nn.Parameter], scale: float) -> np.ndarray[Any, Any]:
    base = [np.array([3.0, 0.5]) * scale, np.array([0.25, -4.0, 1.0]) * scale]
    for p, g in zip(parameters, base, strict=True):
        p.grad = torch.tensor(g, dtype=torch.float32)
    return np.concatenate(base)


def read(parameters: list[nn.Parameter]) -> np.ndarray[Any, Any]:
    return np.concatenate([p.grad.numpy() for p in parameters if p.grad is not None])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_normalizer_divides_by_the_moving_average_of_the_norm(momentum: float) -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    normalizer = GradientNormalizer(parameters, momentum=momentum, min_norm=0.01)
    average = None
    for scale in (1.0, 10.0, 0.5, 1e-6, 1e-6):
        g = set_gradients(parameters, scale)
        norm = float(np.linalg.norm(g))
        average = norm if average is None else momentum * average + (1 - momentum) * norm
        normalizer.step()
        np.testing.assert_allclose(read(parameters), g / max(average, 0.01), rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_one_bad_gradient_does_not_spoil_the_rest(bad: float, first: bool) -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    normalizer, clean = GradientNormalizer(parameters), GradientNormalizer(parameters)
    for step, scale in enumerate((1.0, 2.0, 3.0)):
        if step == (0 if first else 1):
            set_gradients(parameters, bad)
            normalizer.step()
        set_gradients(parameters, scale)
        normalizer.step()
        got = read(parameters)
        set_gradients(parameters, scale)
        clean.step()
        np.testing.assert_allclose(got, read(parameters), rtol=1e-6)
        assert np.isfinite(got).all()


def test_parameters_without_a_gradient_are_passed_over() -> None:
    some = parameters_with([3.0, 4.0], None)
    GradientNormalizer(some).step()
    assert some[0].grad is not None
    torch.testing.assert_close(some[0].grad, torch.tensor([0.6, 0.8]))
    assert some[1].grad is None
    none = GradientNormalizer(parameters_with(None, None))
    none.step()
    assert none.state_dict() == {"average": None}
    GradientNormalizer([]).step()


def test_zero_gradients_stay_zero() -> None:
    parameters = parameters_with([0.0, 0.0])
    GradientNormalizer(parameters).step()
    assert parameters[0].grad is not None
    assert parameters[0].grad.tolist() == [0.0, 0.0]


def test_normalizer_resumes_where_it_was() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    normalizer, resumed = GradientNormalizer(parameters), GradientNormalizer(parameters)
    set_gradients(parameters, 7.0)
    normalizer.step()
    resumed.load_state_dict(normalizer.state_dict())
    results = []
    for one in (normalizer, resumed):
        set_gradients(parameters, 2.0)
        one.step()
        results.append(read(parameters))
    np.testing.assert_array_equal(*results)


def test_half_types_beyond_their_range() -> None:
    # Two gradients whose norm is 49984·√2 = 70688, more than float16 holds.
    parameters = [nn.Parameter(torch.zeros(1, dtype=torch.float16)) for _ in range(2)]
    for p in parameters:
        p.grad = torch.full((1,), 49984.0, dtype=torch.float16)
    normalizer = GradientNormalizer(parameters)
    normalizer.step()
    np.testing.assert_allclose(read(parameters), math.sqrt(0.5), rtol=1e-3)
    assert normalizer.average is not None
    assert float(normalizer.average) == pytest.approx(49984 * math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize(
    "types", [(torch.bfloat16, torch.float32), (torch.float16, torch.float64), (torch.float64, torch.float32)]
)
def test_parameters_of_several_types(types: tuple[torch.dtype, ...]) -> None:
    parameters = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in types]
    normalizer = GradientNormalizer(parameters)
    for size, average in ((1.0, 13.0), (2.0, 14.3)):  # 3-4-12-13; 0.9 · 13 + 0.1 · 26
        for p, g in zip(parameters, ([3.0, 4.0], [0.0, 12.0]), strict=True):
            p.grad = size * torch.tensor(g, dtype=p.dtype)
        normalizer.step()
        for p, g in zip(parameters, ([3.0, 4.0], [0.0, 12.0]), strict=True):
            assert p.grad is not None
            assert p.grad.dtype == p.dtype
            tolerance = 1e-6 if p.dtype.itemsize >= 4 else 4e-3
            np.testing.assert_allclose(p.grad.double().numpy(), size * np.array(g) / average, rtol=tolerance)


def test_nothing_waits_for_the_device_and_devices_may_differ() -> None:
    # Fake tensors have no values: whatever reads one raises. Their devices need not exist.
    with FakeTensorMode():
        parameters = [
            nn.Parameter(torch.empty(2, device="cuda:1")),
            nn.Parameter(torch.empty(3, dtype=torch.bfloat16, device="cuda:0")),
            nn.Parameter(torch.empty(3)),
        ]
        for p in parameters:
            p.grad = torch.empty_like(p)
        normalizer = GradientNormalizer(parameters)
        for _ in range(2):
            normalizer.step()
        assert normalizer.average is not None
        with pytest.raises(Exception, match=r"item|data-dependent|_local_scalar_dense"):
            normalizer.average.item()


def test_normalizer_state_survives_a_file(tmp_path: Path) -> None:
    parameters = parameters_with([3.0, 4.0])
    normalizer = GradientNormalizer(parameters)
    normalizer.step()
    torch.save(normalizer.state_dict(), tmp_path / "state")
    resumed = GradientNormalizer(parameters)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    parameters[0].grad = torch.tensor([6.0, 8.0])
    resumed.step()
    torch.testing.assert_close(parameters[0].grad, torch.tensor([6.0, 8.0]) / 5.5)  # 0.9 · 5 + 0.1 · 10
    for bad in ({}, {"average": [1.0]}, {"average": torch.ones(2)}, {"taken": 1}):
        with pytest.raises(ValueError, match=r"^state: expected \{'average': [^\n]+$"):
            resumed.load_state_dict(bad)  # type: ignore[arg-type]


def test_normalizer_wants_tensors() -> None:
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"^parameters: expected tensors, got dict; pass model\.parameters\(\)$"):
        GradientNormalizer(optimizer.param_groups)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^parameters: expected an iterable of tensors, got a tensor; [^\n]+$"):
        GradientNormalizer(layer.weight)


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"momentum": -0.1}, {"min_norm": 0.0}])
def test_normalizer_refuses_in_one_line(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^expected 0 ≤ momentum < 1 and min_norm > 0, got [^\n]+$"):
        GradientNormalizer([], **options)


def separable() -> tuple[Tensor, Tensor]:
    """Three clusters in the plane, as wide as a sixth of their distance."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 3.0], [3.0, -2.0], [-3.0, -2.0]])
    target = torch.arange(90) % 3
    return centres[target] + 0.5 * torch.randn(90, 2, generator=generator), target


def model() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(2, 3)


RECIPE = TrainingConfig(epochs=15, batch_size=16)


@pytest.mark.parametrize(
    ("loss", "recipe"),
    [
        (AccuracyLoss(), RECIPE),
        (AccuracyLoss("normal", q=1.0), RECIPE),
        (AccuracyLoss("normal", q=0.0, standardize=True), TrainingConfig(15, 16, scale=(10.0, 0.1), normalize_gradients=True)),
        (AccuracyLoss(over="batch"), TrainingConfig(15, 16, weight_decay=1e-3)),
        (HingeLoss(), RECIPE),
    ],
)
def test_fit_learns_what_can_be_separated(loss: nn.Module, recipe: TrainingConfig) -> None:
    features, target = separable()
    net, history = model(), []
    fit(net, loss, features, target, recipe, seed=0, after_epoch=history.append)
    assert (net(features).argmax(-1) == target).all()
    assert len(history) == recipe.epochs
    assert not net.training
    if recipe.scale is None:
        assert history[-1] < history[0]
    else:
        assert loss.scale == pytest.approx(recipe.scale[1], rel=ROUNDING)  # type: ignore[arg-type]


def test_same_seed_same_weights_bit_for_bit() -> None:
    features, target = separable()
    weights = []
    for seed in (3, 3, 4):
        net = model()
        fit(net, AccuracyLoss(), features, target, TrainingConfig(epochs=3, batch_size=16), seed=seed)
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_fit_leaves_the_global_generator_alone() -> None:
    features, target = separable()
    net = model()
    before = torch.get_rng_state()
    fit(net, AccuracyLoss(), features, target, TrainingConfig(epochs=1), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_first_step_is_sgd_with_the_stated_rate_and_decay() -> None:
    features, target = separable()
    net, twin, loss = model(), model(), HingeLoss()
    fit(net, loss, features, target, TrainingConfig(epochs=1, batch_size=90, learning_rate=0.2, weight_decay=0.5), seed=0)
    slopes = torch.autograd.grad(loss(twin(features), target), [twin.weight, twin.bias])
    torch.testing.assert_close(net.weight, twin.weight - 0.2 * (slopes[0] + 0.5 * twin.weight), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.bias, twin.bias - 0.2 * slopes[1], rtol=1e-5, atol=1e-6)  # no decay


@pytest.mark.parametrize("normalize", [False, True])
def test_fit_trains_the_losss_own_parameters(normalize: bool) -> None:
    features, target = separable()
    often = (target != 2) | (torch.arange(90) < 15)  # an even prior would have nothing to learn
    loss = BetaBernoulliLoss(3)
    fit(
        model(),
        loss,
        features[often],
        target[often],
        TrainingConfig(epochs=5, batch_size=16, normalize_gradients=normalize),
        seed=0,
    )
    assert all(p.detach().abs().max() > 1e-3 for p in loss.parameters())


@pytest.mark.parametrize("module", [training, training.loop])
def test_the_old_name_of_the_config(module: Any) -> None:
    with pytest.warns(DeprecationWarning, match=r"^lossmith\.training\.Recipe is now TrainingConfig; the old name goes after"):
        assert module.Recipe is TrainingConfig
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing
