"""What a step of ``transformers.Trainer`` costs with its own loss, with ours, and with the last layer fused."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from lossmith.bench.memory import peak_memory
from lossmith.bench.speed_linear import Cost
from lossmith.bench.timing import take_turns
from lossmith.integrations.transformers import TrainerLoss
from lossmith.losses import AccuracyLoss

BATCH, TOKENS, WIDTH, LAYERS = 8, 128, 256, 2
SECONDS = 20.0
BASE = "Trainer's own loss"
FUSED = "torch linear_cross_entropy, by chunks"


def measure(classes: int, noise: str, show: Callable[[int], None]) -> dict[str, Cost]:
    """Forward, backward and AdamW's step of a small causal language model, taking turns."""
    loss = AccuracyLoss(noise, q=0.0)
    ways: dict[str, Callable[[Any], Any]] = {
        BASE: lambda model: None,
        f"TrainerLoss({noise}, q=0)": lambda model: TrainerLoss(loss),
        f"TrainerLoss({noise}, q=0), fused": lambda model: TrainerLoss(loss, fuse=model),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch 2.13
        ways[FUSED] = _FusedCrossEntropy
    logging.getLogger("transformers").setLevel(logging.ERROR)
    calls = {name: _step(classes, way) for name, way in ways.items()}
    memory = {}
    for done, (name, call) in enumerate(calls.items()):
        call()
        memory[name] = peak_memory(call)
        show(done + 1)
    times = take_turns(calls, SECONDS)
    return {name: Cost(times[name], memory[name]) for name in calls}


def _step(classes: int, loss_of: Callable[[Any], Any]) -> Callable[[], object]:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=classes, n_positions=TOKENS, n_embd=WIDTH, n_layer=LAYERS, n_head=4, tie_word_embeddings=False
    )
    model: Any = GPT2LMHeadModel(config)
    loss = loss_of(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, report_to=[], use_cpu=True, per_device_train_batch_size=BATCH)
        trainer: Any = Trainer(model, arguments, train_dataset=[0], compute_loss_func=loss)
    trainer.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    ids = torch.randint(classes, (BATCH, TOKENS))
    items = torch.tensor(BATCH * (TOKENS - 1))

    def step() -> None:
        trainer.training_step(model, {"input_ids": ids, "labels": ids.clone()}, items)
        optimizer.step()
        optimizer.zero_grad()

    return step


class _FusedCrossEntropy:
    """torch's own fusion of the last layer with cross-entropy, at the same place."""

    def __init__(self, model: Any) -> None:
        fused = TrainerLoss(AccuracyLoss(), fuse=model)
        self.head: Any = fused.head
        self.options: Any = torch.nn.LinearCrossEntropyOptions()

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        target = F.pad(labels, (0, 1), value=-100)[..., 1:].flatten()
        taken = outputs.logits.flatten(0, -2)
        return (
            F.linear_cross_entropy(taken, self.head.weight, target, reduction="sum", options=self.options) / num_items_in_batch
        )


def title(classes: int) -> str:
    """What the table shows."""
    size = f"{BATCH} × {TOKENS} tokens, {LAYERS} layers of {WIDTH}, {classes:,} entries"
    return f"a step of Trainer, causal language model, {size}, {torch.get_num_threads()} threads"
