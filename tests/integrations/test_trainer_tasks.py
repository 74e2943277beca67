"""Trainings by transformers' Trainer on real texts: this repository's own, a token a byte."""

import io
import math
import os
import tokenize
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from lossmith import AccuracyLoss, FBetaLoss  # noqa: E402
from lossmith.integrations.transformers import LossSchedule, TrainerLoss  # noqa: E402
from support.ranks import Ranks  # noqa: E402

ROOT = Path(__file__).parents[2]
SIZES = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64}
Rows = list[dict[str, Any]]

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory")


def trainer_of(model: Any, rows: Rows, folder: Path, loss: TrainerLoss, callbacks: Any = (), **options: Any) -> Trainer:
    settings = {"per_device_train_batch_size": 32, "learning_rate": 0.01, "lr_scheduler_type": "constant"} | options
    settings |= {"logging_steps": 1, "save_strategy": "no"}
    arguments = TrainingArguments(str(folder), **settings, report_to=[], use_cpu=True, disable_tqdm=True)
    return Trainer(model, arguments, train_dataset=rows, compute_loss_func=loss, callbacks=list(callbacks))


def split(rows: Rows) -> tuple[Rows, Rows]:
    """Rows to train on, and every fourth to look at."""
    return [row for place, row in enumerate(rows) if place % 4], rows[::4]


def scores_of(model: Any, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([row["input_ids"] for row in rows])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits, torch.tensor([row["labels"] for row in rows])


def language_model() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **still, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False))


def bytes_of(name: str) -> Rows:
    parts = torch.tensor(list((ROOT / name).read_bytes())).split(32)[:-1]
    return [{"input_ids": part.tolist(), "labels": part.tolist()} for part in parts]


def test_a_language_model_reads_a_licence(tmp_path: Path) -> None:
    """Likelihood first, then 1 − mean p, whose logged value is the share of bytes that the noisy model gets wrong."""
    rows, held = split(bytes_of("LICENSE"))
    model = language_model()
    loss = TrainerLoss(AccuracyLoss("gumbel", q=1))
    trainer = trainer_of(model, rows, tmp_path, loss, [LossSchedule(loss, q=(1.0, 0.0))], max_steps=200)
    trainer.train()
    logits, ids = scores_of(model, held)
    right = (logits[:, :-1].argmax(-1) == ids[:, 1:]).double().mean().item()
    commonest = ids.flatten().bincount().max().item() / ids.numel()
    assert right > commonest + 0.1
    train_logits, train_ids = scores_of(model, rows)
    p = train_logits[:, :-1].softmax(-1).gather(-1, train_ids[:, 1:, None]).mean().item()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] == pytest.approx(1 - p, abs=0.05)  # of the last batch


def kinds_of(name: str) -> Rows:
    """Bytes of a Python file, each with the kind of token that it belongs to; −100 between tokens."""
    text = (ROOT / name).read_text(encoding="utf-8")
    kinds = {tokenize.NAME: 0, tokenize.OP: 1, tokenize.STRING: 2, tokenize.COMMENT: 2, tokenize.NUMBER: 2}
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    labels = [-100] * len(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            first, end = starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1]
            labels[first:end] = [kinds[token.type]] * (end - first)
    ids = [min(ord(letter), 255) for letter in text]
    return [{"input_ids": ids[at : at + 32], "labels": labels[at : at + 32]} for at in range(0, len(text) - 32, 32)]


def test_tokens_of_a_program_are_told_apart(tmp_path: Path) -> None:
    rows, held = split(kinds_of("src/lossmith/noise.py"))
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(**SIZES, **PLAIN, num_labels=3))
    trainer_of(model, rows, tmp_path, TrainerLoss(AccuracyLoss(q=0.5)), max_steps=80).train()
    scores, labels = scores_of(model, held)
    counts = labels != -100
    right = (scores.argmax(-1) == labels)[counts].double().mean().item()
    commonest = labels[counts].bincount().max().item() / int(counts.sum())
    assert right > commonest + 0.1


def test_rare_lines_of_a_program_are_found_by_a_metric_of_the_batch(tmp_path: Path) -> None:
    """F1 of the lines that define something, some 4 % of a file: the step is one batch."""
    lines = [line for line in (ROOT / "src/lossmith/noise.py").read_text(encoding="utf-8").splitlines() if line.strip()]
    ids = [[min(ord(letter), 255) for letter in line.ljust(32)[:32]] for line in lines]
    rows = [{"input_ids": row, "labels": int("def " in line)} for row, line in zip(ids, lines, strict=True)]
    rows, held = split(rows)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, **PLAIN, num_labels=2))
    loss = TrainerLoss(FBetaLoss(average="binary", q=0.5))
    trainer_of(model, rows, tmp_path, loss, max_steps=120, per_device_train_batch_size=len(rows)).train()
    assert FBetaLoss(average="binary").counted(*scores_of(model, held)).item() > 0.8


def weights_after_training(group: Any, folder: str, rows: Rows, per_device: int) -> list[torch.Tensor]:
    """On a rank."""
    ranks = {"RANK": dist.get_rank(group), "LOCAL_RANK": dist.get_rank(group), "WORLD_SIZE": dist.get_world_size(group)}
    os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    model = language_model().double()  # by Adam, rounding of float32 becomes steps
    loss = TrainerLoss(AccuracyLoss("normal", q=0.5))
    options = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": 2, "max_steps": 3}
    trainer_of(model, rows, Path(folder), loss, **options, ddp_backend="gloo", max_grad_norm=math.inf).train()
    return [weight.detach().clone() for weight in model.parameters()]


def test_two_devices_learn_what_one_learns(tmp_path: Path) -> None:
    """Rows of unequal numbers of labels that count: the mean is that of the step, over micro-batches and ranks."""
    rows = bytes_of("LICENSE")[:24]
    for place, row in enumerate(rows):
        row["labels"] = [-100] * (place % 9) + row["labels"][place % 9 :]
    with Ranks(tmp_path / "store", 2, [(0,)]) as ranks:
        first, second = ranks((0, 1), weights_after_training, str(tmp_path), rows, 2)
    model = language_model().double()
    loss = TrainerLoss(AccuracyLoss("normal", q=0.5))
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3, "max_grad_norm": math.inf}
    trainer_of(model, rows, tmp_path, loss, **options).train()
    for ours, theirs, alone in zip(first, second, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        torch.testing.assert_close(ours, alone, rtol=1e-6, atol=1e-9)
