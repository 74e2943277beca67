"""A network in training by Lightning Fabric: on one device, or on several, where each rank has a share of every batch.

All ranks know the same batches, those that one process would have, and a rank takes every world-th row of each. A loss is that
of all ranks' rows, and DDP averages the gradients, so the weights are those of one process, but for rounding and for what
modules draw at random.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lossmith.estimators.metrics.trained_metric import Floats, Rows
from lossmith.estimators.torch_losses import WeighedLoss, torch_loss
from lossmith.inputs import compute_type
from lossmith.parallel import samples as groups
from lossmith.training import QSchedule, ScaleSchedule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LEAST_STEPS = 8  # of an epoch: few rows are gone through more than once
AT_ONCE = 8192  # rows that are predicted at once
FIRST_Q, LAST_Q = 0.5, 0.0  # of the metric's loss
SHARPEST = 9.0  # by how much its noise is narrower at the end than the likelihood's


def log_probabilities(network: nn.Module, X: Tensor, classes: int) -> Tensor:
    """log softmax of the network's scores, (n, C) of float32 or float64: its decisions, and rankings that compare rows.

    Raises:
        ValueError: the network's output has another shape.
    """
    scores = network(X)
    if not isinstance(scores, Tensor) or scores.shape != (len(X), classes):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"module: expected scores ({len(X)}, {classes}), got {got}; end it in a layer of n_classes outputs")
    return compute_type(scores).log_softmax(1)


def predicted_scores(network: nn.Module, X: Floats, classes: int) -> Floats:
    """Scores (n, K) float64, as ``metrics`` has them: log p, or the lead of the second of two classes."""
    network.eval()
    parameter = next(network.parameters())
    with torch.no_grad():
        parts = [
            log_probabilities(network, torch.tensor(X[i : i + AT_ONCE]).to(parameter), classes).double().cpu()
            for i in range(0, len(X), AT_ONCE)
        ]
    log_p = torch.cat(parts).numpy()
    return np.asarray(log_p[:, 1:] - log_p[:, :1] if classes == 2 else log_p)


class Objective(nn.Module):
    """The loss of a batch, nan where a score of any rank is not finite; one module, so that Fabric sees loss and network."""

    def __init__(self, network: nn.Module, loss: WeighedLoss, classes: int, group: ProcessGroup | None) -> None:
        super().__init__()
        self.network, self.loss, self.classes, self.group = network, loss, classes, group

    def forward(self, X: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Of features (n, d), class codes (n,) and weights (n,); without these all weigh the same."""
        log_p = log_probabilities(self.network, X, self.classes)
        strange = groups.total((~log_p.detach().isfinite().all()).float(), self.group)
        return self.loss(log_p, y, weight) if strange == 0 else torch.full((), math.nan)


class Learner:
    """A network and the rows that it learns from.

    Args:
        fabric: of ``lightning.fabric``, launched.
        network: maps features (n, d) to scores (n, C).
        X: (n, d) features, float32 or float64.
        rows: classes and weights (n,); rows that weigh nothing are left out.
        batch_size: rows a step of all ranks together, at most.
        learning_rate, weight_decay: of AdamW; the decay is that of matrices, not of biases.
        seed: of the order of the rows.
    """

    def __init__(
        self,
        fabric: Any,
        network: nn.Module,
        X: Floats,
        rows: Rows,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        used = rows.weight > 0
        weight = rows.weight[used].astype(X.dtype)
        self.X, self.y = (fabric.to_device(torch.from_numpy(x[used])) for x in (X, rows.y))
        self.weight = fabric.to_device(torch.from_numpy(weight)) if len(np.unique(weight)) > 1 else None
        self.fabric, self.network, self.classes = fabric, network, rows.classes
        self.group = torch.distributed.group.WORLD if fabric.world_size > 1 else None
        self.schedules: list[QSchedule | ScaleSchedule] = []
        self.batches = max(1, -(-len(self.y) // batch_size))
        self.passes = -(-LEAST_STEPS // self.batches)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.generator = torch.Generator().manual_seed(seed)

    def start_likelihood(self) -> None:
        """Go on by cross-entropy."""
        self._start(torch_loss("accuracy", self.classes, noise="gumbel", q=1.0, process_group=self.group))

    def start_metric(self, metric: Any, noise: str, epochs: int) -> None:
        """Go on by the metric's loss, whose q and scale reach their ends after so many epochs."""
        self._start(torch_loss(metric, self.classes, noise=noise, process_group=self.group))
        steps = epochs * self.batches * self.passes
        self.schedules = [QSchedule(self.loss, FIRST_Q, LAST_Q, steps), ScaleSchedule(self.loss, 1.0, 1 / SHARPEST, steps)]

    def _start(self, loss: WeighedLoss) -> None:
        """A loss, without a schedule, and a new optimiser."""
        parameters = list(self.network.parameters())
        matrices = {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay}
        others = {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([matrices, others], lr=self.learning_rate)
        objective = Objective(self.network, loss, self.classes, self.group)
        self.objective, self.optimizer = self.fabric.setup(objective, optimizer)
        self.loss, self.schedules = loss, []

    @property
    def dials(self) -> tuple[float, float]:
        """q and scale of the loss."""
        return float(self.loss.q), float(self.loss.scale)

    def epochs(self, number: int) -> int:
        """Learn for so many epochs, or until one is not finite; the epochs that were."""
        return next((t for t in range(number) if not self.epoch()), number)

    def epoch(self) -> bool:
        """Learn for an epoch. Where a loss or a weight is not finite: False, and the weights of before."""
        before = self.state()
        self.network.train()
        for batch in self._order():
            share = batch[self.fabric.global_rank :: self.fabric.world_size].to(self.y.device)
            self.optimizer.zero_grad()
            loss = self.objective(self.X[share], self.y[share], None if self.weight is None else self.weight[share])
            if not loss.isfinite():
                self.load(before)
                return False
            self.fabric.backward(loss)
            self.optimizer.step()
            for schedule in self.schedules:
                schedule.step()
        if not all(parameter.isfinite().all() for parameter in self.network.parameters()):
            self.load(before)
            return False
        return True

    def _order(self) -> list[Tensor]:
        """The rows of each batch of an epoch; batches are of one size, or differ by a row."""
        n = len(self.y)
        if self.batches == 1:
            return [torch.arange(n)] * self.passes * (n > 0)
        orders = [torch.randperm(n, generator=self.generator) for _ in range(self.passes)]
        return [batch for order in orders for batch in order.tensor_split(self.batches)]

    def scores(self, X: Floats) -> Floats:
        """See ``predicted_scores``; the first rank's, on every rank."""
        found = predicted_scores(self.network, X, self.classes)
        return found if self.fabric.world_size == 1 else self.fabric.broadcast(found)

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights and buffers."""
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take weights and buffers."""
        self.network.load_state_dict(state)

    def finished(self) -> nn.Module:
        """The network on the CPU, as the first rank has it."""
        if self.fabric.world_size > 1:
            self.load(self.fabric.broadcast(self.state()))
        return self.network.cpu().eval()
