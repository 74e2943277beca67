"""Recent samples, for metrics of which a small batch says little."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lossmith.inputs import checked_count, is_wrapped


class ScoreMemory(nn.Module):
    """The last ``size`` samples: their scores, without a gradient, and their targets. They are buffers, and in the state_dict.

    In training all are remembered as they come, ignored ones too, and with a process group those of all ranks in rank order;
    under ``torch.func``, where there is no state, that raises NotImplementedError. In evaluation none enters or is kept.

    Scores of some steps ago are those of a model that has moved on: they say against what the batch is ranked, no more.

    Args:
        size: samples, ≥ 0; 0 remembers nothing.
    """

    scores: Tensor
    target: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = checked_count("memory", size)
        self.register_buffer("scores", torch.empty(0))
        self.register_buffer("target", torch.empty(0))

    def forward(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The samples (n, …) and those remembered; in training, the new ones are remembered."""
        if not self.size or not self.training:
            return scores, target
        if is_wrapped(scores) or is_wrapped(target):
            raise NotImplementedError(
                "memory: expected a plain call in training, got one under torch.func, which keeps no state; "
                "call loss.eval() first, or leave memory out"
            )
        if len(self.scores) and (self.scores.shape[1:], self.target.shape[1:]) != (scores.shape[1:], target.shape[1:]):
            raise ValueError(
                f"memory: expected samples of shape {tuple(self.scores.shape[1:])} as before, got {tuple(scores.shape[1:])}; "
                "make a new loss for another task"
            )
        if len(self.scores):
            last = slice(-self.size, None)  # a larger memory may have been loaded
            scores = torch.cat([self.scores[last].to(scores), scores])
            target = torch.cat([self.target[last].to(target), target])
        self.scores, self.target = (x[-self.size :].detach().clone() for x in (scores, target))
        return scores, target

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name in ("scores", "target"):  # how many there are depends on how far a training has come
            if isinstance(found := state_dict.get(prefix + name), Tensor):
                setattr(self, name, torch.empty_like(found, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """The size."""
        return f"size={self.size}"
