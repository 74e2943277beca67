"""The losses in TRL's SFTTrainer, beside its own."""

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from lossmith import AccuracyLoss, FBetaLoss
from lossmith.integrations.transformers import TrainerLoss
from lossmith.integrations.trl import MetricSFTTrainer

WORDS = [
    "<pad>",
    "<eos>",
    *["the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree", "and", "then", "it", "slept"],
]
SENTENCES = ["the cat sat on a mat", "the dog ran under a tree and then it slept", "a dog sat", "the cat ran and then it slept"]
WORDS = ["<pad>", "<eos>", *sorted({word for sentence in SENTENCES for word in sentence.split()})]


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def language_model() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    calm = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **calm, bos_token_id=1, eos_token_id=1, pad_token_id=0))


def trained(make: Any, tmp_path: Any, loss_type: str = "nll") -> tuple[dict[str, torch.Tensor], list[float], list[float]]:
    arguments = SFTConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=3,
        learning_rate=0.5,
        optim="sgd",  # Adam would divide rounding by rounding
        loss_type=loss_type,
        report_to=[],
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_list([{"text": sentence} for sentence in SENTENCES])
    trainer = make(model=copy.deepcopy(language_model()), args=arguments, train_dataset=rows, processing_class=tokenizer())
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: weight.detach() for name, weight in trainer.model.named_parameters()}
    return weights, [entry["loss"] for entry in logged], [entry["mean_token_accuracy"] for entry in logged]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # TRL's own, about what it will remove
@pytest.mark.parametrize(("q", "loss_type"), [(1.0, "nll"), (0.0, "dft")])
def test_trls_own_losses_are_two_points(tmp_path: Any, q: float, loss_type: str) -> None:
    expected, losses, accuracies = trained(SFTTrainer, tmp_path, loss_type)
    loss = AccuracyLoss("gumbel", q=q)
    found, ours, watched = trained(lambda **given: MetricSFTTrainer(**given, metric_loss=loss), tmp_path)
    assert_same(found, expected)
    assert watched == pytest.approx(accuracies)
    if q == 1:
        assert ours == pytest.approx(losses, rel=1e-5)
    else:
        assert all(0 < value < 1 for value in ours)  # 1 − mean p; theirs, −mean p log p, falls and rises
    whole, again, _ = trained(lambda **given: SFTTrainer(**given, compute_loss_func=TrainerLoss(loss)), tmp_path)
    assert_same(whole, expected)
    assert again == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (FBetaLoss(), TypeError, r"^metric_loss: expected AccuracyLoss, got FBetaLoss; take SFTTrainer[^\n]*$"),
        (AccuracyLoss("normal"), ValueError, r"^metric_loss: expected Gumbel noise of scale 1[^\n]*$"),
        (AccuracyLoss(over="batch"), ValueError, r"^metric_loss: expected Gumbel noise of scale 1[^\n]*$"),
    ],
)
def test_other_losses_are_shown_the_other_way(loss: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        MetricSFTTrainer(model=None, metric_loss=loss)
