"""The plan: what is refused before any work, and that every split, seed and setting is the same for every loss."""

import json

import numpy as np
import pandas as pd
import pytest

from lossmith.catalogue import SHARED_GRID
from lossmith.compare.losses import NAMES, loss_of
from lossmith.compare.methods import METHODS
from lossmith.compare.plan import Cell, Plan
from lossmith.data import Dataset, load
from lossmith.errors import InputError


def dataset(**counts):
    """A table of one column with so many rows of each class."""
    target = np.repeat(np.arange(len(counts)), list(counts.values()))
    features = pd.DataFrame({"x": np.arange(len(target), dtype=float)})
    return Dataset("t", features, target, tuple(counts), "y", "0" * 16)


DATA = dataset(a=12, b=7, c=5)


def refusal(data=DATA, **options):
    with pytest.raises(InputError) as caught:
        Plan(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is refused


def test_unknown_names_come_with_the_near_ones():
    assert refusal(losses=("hinje",)) == "--losses: there is no 'hinje'; did you mean 'hinge'?"
    assert refusal(losses=("hinge", "cross-entropie")).endswith("did you mean 'cross-entropy'?")
    assert refusal(methods=("boostin",)) == "--methods: there is no 'boostin'; did you mean 'boosting'?"
    assert refusal(metric="acuracy").startswith("--metric: unknown name 'acuracy'; did you mean 'accuracy'")
    assert refusal(judge="acuracy").startswith("--judge: there is no scorer 'acuracy'; did you mean 'accuracy'")
    assert refusal(model="mlpp") == "--model: there is no 'mlpp'; did you mean 'mlp'?"


def test_unknown_names_without_near_ones_come_with_all():
    assert refusal(model="zzz") == "--model: there is no 'zzz'; choose from 'linear', 'mlp'"
    assert "choose from 'accuracy', 'balanced_accuracy'" in refusal(metric="zzz")
    assert all(repr(method) in refusal(methods=("zzz",)) for method in METHODS)
    assert all(repr(loss) in refusal(losses=("zzz",)) for loss in NAMES)


@pytest.mark.parametrize(("option", "least"), [("folds", 2), ("repeats", 1), ("trials", 1), ("epochs", 1), ("seed", 0)])
def test_numbers_have_a_least_value(option, least):
    assert refusal(**{option: least - 1}) == f"--{option}: expected {least} or more, got {least - 1}"
    assert getattr(Plan(DATA, **{option: least}), option) == least


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "f1"}, "--metric: 'f1' is for two classes, got 3; take 'f1_macro'"),
        ({"metric": "top_3_accuracy"}, "--metric: expected k from 1 to 2 for 3 classes"),
        ({"judge": "f1"}, "--judge: 'f1' is not for these classes (Target is multiclass"),
        ({"judge": "roc_auc"}, "--judge: 'roc_auc' is not "),
        ({"cost": ((0.0, 1.0), (1.0, 0.0))}, "--metric: expected a cost matrix (3, 3), got (2, 2)"),
    ],
)
def test_metrics_that_do_not_fit_the_classes(options, words):
    assert refusal(**options).startswith(words)


def test_class_rarer_than_the_folds():
    text = refusal(dataset(a=9, b=4), folds=5)
    assert text == "t: class 'b' of 'y' has 4 rows, fewer than the 5 folds; pass --folds 4, or merge or drop rare classes"
    assert Plan(dataset(a=9, b=4), folds=4).folds == 4


def test_class_of_one_row_cannot_be_split_at_all():
    text = refusal(dataset(a=9, b=1), folds=2)
    assert "class 'b' of 'y' has 1 row, fewer than the 2 folds; merge or drop classes of one row" in text
    assert "--folds" not in text


def test_several_rare_classes_are_counted_and_the_rarest_named():
    assert "class 'b' of 'y' has 2 rows, fewer than the 5 folds, and 2 more classes have too few;" in refusal(
        dataset(a=9, b=2, c=3, d=4)
    )
    assert "and 1 more class has too few;" in refusal(dataset(a=9, b=3, c=2))
    assert "pass --folds 2" in refusal(dataset(a=9, b=3, c=2))


# What is run


def test_the_baseline_is_always_there_and_first():
    assert Plan(DATA, methods=()).methods == ("likelihood",)
    assert Plan(DATA, methods=("boosting", "metric-path")).methods == ("likelihood", "boosting", "metric-path")
    assert Plan(DATA, methods=("boosting", "likelihood")).methods == ("likelihood", "boosting")
    assert Plan(DATA, metric="f1_macro").methods == tuple(METHODS)
    assert Plan(DATA).losses == ()


def test_a_metric_without_a_decision_rule_has_none():
    assert "decision-rule" not in Plan(DATA).methods
    assert "decision-rule" not in Plan(DATA, methods=("decision-rule",), metric="roc_auc_ovr").methods
    assert "decision-rule" in Plan(DATA, cost=((0, 1, 2), (1, 0, 1), (1, 1, 0))).methods


def test_a_name_given_twice_is_run_once():
    plan = Plan(DATA, methods=("boosting", "boosting"), losses=("hinge", "exact", "hinge"))
    assert (plan.methods, plan.losses) == (("likelihood", "boosting"), ("hinge", "exact"))


def test_cells_cover_every_method_on_every_split_once():
    plan = Plan(DATA, methods=("boosting",), losses=("hinge",), folds=3, repeats=2)
    cells = list(plan.cells())
    assert len(cells) == len(set(cells)) == 3 * 3 * 2
    assert cells[:4] == [Cell("likelihood", 0, 0), Cell("boosting", 0, 0), Cell("hinge", 0, 0), Cell("likelihood", 0, 1)]


def test_repeats_and_methods_do_not_change_what_a_row_depends_on():
    assert Plan(DATA, repeats=3, losses=("hinge",), methods=()).settings == Plan(DATA).settings
    for option, value in {
        "metric": "f1_macro",
        "judge": "recall_macro",
        "model": "mlp",
        "folds": 4,
        "trials": 2,
        "epochs": 9,
        "seed": 1,
    }.items():
        assert Plan(DATA, **{option: value}).settings != Plan(DATA).settings
    assert json.loads(json.dumps(Plan(DATA).settings)) == Plan(DATA).settings


# Splits


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_splits_partition_the_rows(folds):
    plan = Plan(DATA, folds=folds, repeats=2)
    for repeat in range(2):
        splits = [plan.split(repeat, fold) for fold in range(folds)]
        assert sorted(np.concatenate([test for _, test in splits])) == list(range(24))
        for train, test in splits:
            assert sorted([*train, *test]) == list(range(24))


def test_splits_are_stratified():
    plan = Plan(load("iris"), folds=5)
    for fold in range(5):
        train, test = plan.split(0, fold)
        assert np.bincount(plan.data.target[test]).tolist() == [10, 10, 10]
        assert np.bincount(plan.data.target[train]).tolist() == [40, 40, 40]


def test_every_class_is_in_every_test_part_even_if_rare():
    plan = Plan(dataset(a=40, b=3), folds=3)
    assert all(np.bincount(plan.data.target[plan.split(0, fold)[1]])[1] == 1 for fold in range(3))


def test_splits_depend_on_seed_and_repeat_but_not_on_the_losses():
    def test_rows(repeat=0, **options):
        return Plan(DATA, **options).split(repeat, 0)[1].tolist()

    assert test_rows() == test_rows() == test_rows(losses=("hinge",), repeats=9, metric="f1_macro", trials=1)
    assert test_rows() != test_rows(repeat=1)
    assert test_rows() != test_rows(seed=1)


# Seeds and settings


def test_derived_seeds_are_those_of_sha256():
    """The first eight hexadecimal digits of sha256("0/split/0") and of sha256("3/weights/1/4")."""
    assert Plan(DATA).derive("split", 0) == 0x10644276
    assert Plan(DATA, seed=3).derive("weights", 1, 4) == 0x3BBE6994


def test_derived_seeds_differ():
    plan = Plan(DATA)
    seeds = {
        plan.derive(name, repeat, fold) for name in ("order", "weights", "shared") for repeat in range(9) for fold in range(9)
    }
    assert len(seeds) == 3 * 81


@pytest.mark.parametrize("loss", NAMES)
def test_the_first_trial_takes_the_defaults(loss):
    grid = {**SHARED_GRID, **loss_of(loss, "accuracy").grid}
    first, *others = Plan(DATA, trials=5).draw_settings(Cell(loss, 0, 0))
    assert first == {name: values[0] for name, values in grid.items()}
    assert len(others) == 4  # the same number for every loss
    for settings in others:
        assert settings.keys() == grid.keys()
        assert all(settings[name] in values for name, values in grid.items())


def test_shared_settings_are_drawn_alike_for_every_loss():
    plan = Plan(DATA, trials=6)
    for fold in range(3):
        drawn = [plan.draw_settings(Cell(loss, 0, fold)) for loss in NAMES]
        shared = [[{name: s[name] for name in SHARED_GRID} for s in settings] for settings in drawn]
        assert all(settings == shared[0] for settings in shared)


def test_settings_differ_between_splits_and_more_trials_go_on_from_fewer():
    cells = [Cell("hinge", repeat, fold) for repeat in range(2) for fold in range(2)]
    drawn = [json.dumps(Plan(DATA, trials=6).draw_settings(cell)) for cell in cells]
    assert len(set(drawn)) == 4
    assert Plan(DATA, trials=3).draw_settings(cells[0]) == Plan(DATA, trials=6).draw_settings(cells[0])[:3]


def test_small_tables_get_enough_steps():
    few, many = dataset(a=60, b=60), dataset(a=6000, b=6000)
    assert Plan(few).settings["epochs"] == 200  # 96 rows are two batches of 64: 400 steps
    assert Plan(many).settings["epochs"] == 40
    assert Plan(few, epochs=3).settings["epochs"] == 3
