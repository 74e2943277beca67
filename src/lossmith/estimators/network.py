"""Networks that are trained by likelihood first and then for the metric which is reported, as a scikit-learn classifier."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from lossmith.estimators.base import RoutesToSplitter, ScoreClassifier
from lossmith.estimators.calibration import sharpness_of
from lossmith.estimators.judge import Judge
from lossmith.estimators.learner import Learner, predicted_scores
from lossmith.estimators.linear import NOISES
from lossmith.estimators.metrics import metric_of
from lossmith.estimators.metrics.trained_metric import Codes, Floats, Rows
from lossmith.estimators.selection import CLOSE, choose, folds_of, ratio_of


@dataclass(frozen=True)
class EpochPoint:
    """The end of an epoch: ``epoch`` counts from 1 in its phase; q and scale are the loss's there, 1 and 1 for likelihood."""

    epoch: int
    q: float
    scale: float

    @property
    def is_likelihood(self) -> bool:
        """Whether it is an epoch of cross-entropy."""
        return self.q == 1


@dataclass
class Phase:
    """A phase of all folds' trainings: its epochs, the metric (folds,) after each, and the held-out scores at the best."""

    points: list[EpochPoint]
    scores: list[list[float]]
    held_scores: list[Floats]
    best: int  # place among the points; −1 before the first

    @property
    def best_mean(self) -> float:
        """The highest mean over the folds."""
        return float(np.mean(self.scores[self.best])) if self.points else -np.inf


class MetricNetworkClassifier(RoutesToSplitter, ScoreClassifier):
    r"""A network for a metric, which stays the one of cross-entropy unless the metric's own training is surely better.

    1. Cross-entropy on inner folds, all folds an epoch further at a time. The phase ends when the mean metric on held-out rows
       has not risen for ``patience`` epochs. For a metric of decisions (F-beta, balanced accuracy, Jaccard, cost) each epoch is
       judged with the decision rule of ``MetricClassifierCV``, on the other folds' held-out rows.
    2. From the best of these epochs, the loss of the metric (``torch_losses.torch_loss``). Over ``metric_epochs`` its q goes
       from ½ to 0 and its scale from 1 to 1/9, step by step. The phase may end early, as the first.
    3. The best epoch of 2 is taken if its mean gain over the best of 1 exceeds ``caution`` corrected standard errors, else the
       best of 1 with its decision rule: the rule of ``MetricClassifierCV``.
    4. The same on all rows, for as many epochs.

    Args:
        metric: as in ``MetricClassifier``.
        hidden_layer_sizes: units of each hidden layer, with ReLU between; () is a linear classifier.
        module: a function of (n_features, n_classes) that makes a ``torch.nn.Module`` from features (n, d) to scores (n, C),
            C = 2 for two classes; in place of ``hidden_layer_sizes``. Pickle takes functions of a module, not lambdas.
        noise: "gumbel", "normal" or "logistic", of the metric's loss.
        epochs: of cross-entropy, at most. An epoch is a pass over the rows, or as many passes as make 8 steps.
        metric_epochs: of the metric's loss; 0: only cross-entropy.
        patience: epochs without a better mean metric that end a phase.
        batch_size: rows a step, at most; up to as many rows are one batch. The loss of a metric of counts or of a ranking is
            that of its batch, a biased estimate of that of all rows: such metrics want large batches.
        learning_rate, weight_decay: of AdamW, in both phases. Matrices decay, biases do not.
        cv: folds: an integer k stands for k stratified folds, once; or a splitter, or an iterable of (train, test) indices.
        caution: corrected standard errors that the gain has to exceed, ≥ 0; infinity: only cross-entropy. None: as in
            ``MetricClassifierCV``.
        class_weight: as in ``LogisticRegression``, for training.
        accelerator, devices, precision: of ``lightning.fabric.Fabric``. The default is the CPU: there the same data give the
            same weights to the bit, and the networks of tables are small. "32-true" computes in float32, "64-true" in float64,
            also predictions. Under ``torchrun --nproc-per-node 2``, ``devices=2``: each rank has a share of every batch.
        random_state: of the folds, the first weights and the order of the rows. 0: equal data give equal weights.

    Attributes:
        classes_: (C,).
        module_: the network, on the CPU, for evaluation.
        offsets_: (K,), the decision rule, K = 1 for two classes, else C; scores are sharpness · log softmax + offsets.
        sharpness_: the factor of the scores that makes the likelihood of held-out rows highest, which calibrates
            ``predict_proba``; 1 for likelihood.
        selection_: a ``Selection``: which epoch, its gain, the standard error, and the reason in words.
        points_: all epochs of the folds, ``EpochPoint``.
        scores_: (folds, points), the metric on held-out rows.
        best_index_, best_score_: of the point taken: its place, and its mean metric on the held-out folds.
        epochs_: (2,), epochs of each phase in the last training.
        n_iter_: their sum.
        training_metric_: the metric on the training rows.

    Raises:
        ValueError, TypeError: as ``MetricClassifier``; sparse features; a module with another output; no finite epoch at all.
        ImportError: ``lightning-fabric`` is missing.

    Features are not standardised: put a ``StandardScaler`` before it. A loss that is not finite ends its phase at the epoch
    before. A batch norm under several ranks has each rank's own batch. The caller's random numbers of torch stay as they were.
    Where the best epoch of cross-entropy is among the last ``patience`` of ``epochs``, there is a ``ConvergenceWarning``: then
    the metric's epochs may gain by being more epochs, and not by the metric.

    Cost: folds + 1 trainings of both phases, all folds' weights and rows in memory at the same time.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> MetricNetworkClassifier("accuracy", hidden_layer_sizes=8, patience=5, cv=2).fit(X, y).score(X, y) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "metric": "no_validation",  # type: ignore[dict-item]
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "module": [callable, None],
        "noise": [StrOptions(set(NOISES))],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "metric_epochs": [Interval(Integral, 0, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "cv": ["cv_object"],
        "caution": [Interval(Real, 0, None, closed="both"), None],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        metric: Any = "accuracy",
        *,
        hidden_layer_sizes: Any = (64,),
        module: Callable[[int, int], nn.Module] | None = None,
        noise: str = "gumbel",
        epochs: int = 100,
        metric_epochs: int = 30,
        patience: int = 15,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        cv: Any = 5,
        caution: float | None = None,
        class_weight: Any = None,
        accelerator: str = "cpu",
        devices: Any = 1,
        precision: Any = "32-true",
        random_state: Any = 0,
    ) -> None:
        self.metric = metric
        self.hidden_layer_sizes = hidden_layer_sizes
        self.module = module
        self.noise = noise
        self.epochs = epochs
        self.metric_epochs = metric_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.cv = cv
        self.caution = caution
        self.class_weight = class_weight
        self.accelerator = accelerator
        self.devices = devices
        self.precision = precision
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> MetricNetworkClassifier:
        """Fit to dense features (n, d) and classes (n,); ``params`` are routed to the splitter."""
        fabric = _launched(self.accelerator, self.devices, self.precision)
        split_params = self._split_params(params)
        X, rows, judged = self._rows(X, y, sample_weight)
        metric = metric_of(self.metric, rows.classes)
        with np.errstate(over="ignore"):
            X = X.astype(np.float64 if str(self.precision).startswith("64") else np.float32, copy=False)
        if not np.isfinite(X).all():
            raise ValueError("X: expected features that float32 holds, got larger ones; standardise them or take '64-true'")
        seed = fabric.broadcast(int(check_random_state(self.random_state).randint(2**31 - 1)))
        folds = folds_of(self.cv, X, rows.y, seed, split_params, repeats=1)
        judge = Judge(metric, Rows(rows.y, judged, rows.classes), [held for _, held in folds], metric.shifts)
        with _own_random_numbers(self.accelerator):
            learners = [self._learner(fabric, X, rows, seed, train) for train, _ in folds]
            likelihood, of_metric = self._phases(learners, [X[held] for _, held in folds], judge)
            self.points_ = likelihood.points + of_metric.points
            self.scores_ = np.array(likelihood.scores + of_metric.scores).T
            self.selection_ = choose(
                self.points_, self.scores_, ratio_of(folds), metric.caution if self.caution is None else self.caution
            )
            learner = self._learner(fabric, X, rows, seed)
            learner.start_likelihood()
            wanted = [likelihood.points[likelihood.best].epoch, self.selection_.point.epoch * self.selection_.took_metric]
            epochs = [learner.epochs(wanted[0]), 0]
            if wanted[1]:
                learner.start_metric(self.metric, self.noise, self.metric_epochs)
                epochs[1] = learner.epochs(wanted[1])
            if epochs != wanted:
                text = f"on all rows a loss was not finite: training ended after {sum(epochs)} of {sum(wanted)} epochs"
                warnings.warn(f"{text}; standardise the features or lower learning_rate", ConvergenceWarning, stacklevel=2)
        self.best_index_, self.best_score_ = self.selection_.index, float(self.scores_[:, self.selection_.index].mean())
        self.epochs_, self.n_iter_ = tuple(epochs), sum(epochs)
        self.sharpness_, self.offsets_ = 1.0, np.zeros(1 if rows.classes == 2 else rows.classes)
        if self.selection_.took_metric:
            self.sharpness_ = sharpness_of(np.concatenate(of_metric.held_scores), rows.at(np.concatenate(judge.held)))
        elif metric.shifts:
            self.offsets_ = judge.offsets(likelihood.held_scores)
        self.module_ = learner.finished()
        self.training_metric_ = metric.counted(self._scores_of(X), judge.rows)
        return self

    def _learner(self, fabric: Any, X: Floats, rows: Rows, seed: int, train: Codes | slice = slice(None)) -> Learner:
        """A new network, the same for the same seed, and the rows ``train``."""
        torch.default_generator.manual_seed(seed)
        if self.accelerator != "cpu":
            torch.manual_seed(seed)  # also of devices
        make = self.module or partial(perceptron, np.ravel(self.hidden_layer_sizes).tolist())
        network = make(X.shape[1], rows.classes)
        return Learner(fabric, network, X[train], rows.at(train), self.batch_size, self.learning_rate, self.weight_decay, seed)

    def _phases(self, learners: list[Learner], held: list[Floats], judge: Judge) -> tuple[Phase, Phase]:
        """Cross-entropy and the metric on the folds; the second without an epoch where there is nothing to gain or to try."""
        metric, perfect = judge.metric, judge.metric.perfect
        for learner in learners:
            learner.start_likelihood()
        likelihood = self._follow(learners, held, judge.scores, self.epochs, perfect)
        if not likelihood.points:
            raise ValueError("X: expected features on which a loss is finite; standardise them or lower learning_rate")
        if metric.likelihood or likelihood.best_mean >= perfect or self.metric_epochs == 0 or self.caution == np.inf:
            return likelihood, Phase([], [], [], -1)
        if self.epochs - 1 - likelihood.best < self.patience:
            text = (
                f"epochs: the best of cross-entropy is {likelihood.best + 1} of {self.epochs}, so it may still rise; take more"
            )
            warnings.warn(text, ConvergenceWarning, stacklevel=4)  # at the line that calls fit
        for learner in learners:
            learner.start_metric(self.metric, self.noise, self.metric_epochs)
        return likelihood, self._follow(learners, held, judge.plain_scores, self.metric_epochs, perfect)

    def _follow(
        self,
        learners: list[Learner],
        held: list[Floats],
        judged: Callable[[list[Floats]], list[float]],
        epochs: int,
        perfect: float,
    ) -> Phase:
        """Train all folds, an epoch of each at a time, and leave them at the best.

        Args:
            learners: one a fold, started.
            held: the features of the rows that each holds out.
            judged: from scores of these rows to the metric of each fold.
            epochs: at most.
            perfect: the highest metric, which ends the phase.
        """
        phase, best_states = Phase([], [], [], -1), [learner.state() for learner in learners]
        for t in range(epochs):
            if not all(learner.epoch() for learner in learners):
                break
            scores = [learner.scores(X) for learner, X in zip(learners, held, strict=True)]
            if not all(np.isfinite(of_fold).all() for of_fold in scores):
                break
            best_before = phase.best_mean
            phase.points.append(EpochPoint(t + 1, *learners[0].dials))
            phase.scores.append(judged(scores))
            if np.mean(phase.scores[t]) > best_before + CLOSE:
                phase.best, phase.held_scores = t, scores
                best_states = [learner.state() for learner in learners]
            if phase.best_mean >= perfect or t - phase.best >= self.patience:
                break
        for learner, state in zip(learners, best_states, strict=True):
            learner.load(state)
        return phase

    def _scores_of(self, X: Any) -> Floats:
        return self.sharpness_ * predicted_scores(self.module_, X, len(self.classes_)) + self.offsets_


def perceptron(hidden_layer_sizes: list[int], n_features: int, n_classes: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    sizes = [n_features, *hidden_layer_sizes, n_classes]
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _launched(accelerator: str, devices: Any, precision: Any) -> Any:
    """Lightning Fabric, with its processes."""
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise ImportError(
            "MetricNetworkClassifier: expected the package lightning-fabric, found none; pip install 'lossmith[network]'"
        ) from None
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)
    fabric.launch()
    return fabric


@contextmanager
def _own_random_numbers(accelerator: str) -> Iterator[None]:
    """What is drawn inside leaves the caller's random numbers as they were."""
    with torch.random.fork_rng([] if accelerator == "cpu" else list(range(torch.cuda.device_count()))):
        yield
