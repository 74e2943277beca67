"""The losses in transformers' own Trainer, beside its own loss."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: E402
from transformers.modeling_outputs import (  # noqa: E402
    CausalLMOutput,
    MoeCausalLMOutputWithPast,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from lossmith import AccuracyLoss, AUCLoss, FBetaLoss, LinearAccuracyLoss, SubsetAccuracyLoss, TopKAccuracyLoss  # noqa: E402
from lossmith.integrations.transformers import LossSchedule, TrainerLoss  # noqa: E402

VOCABULARY = 48
CONFIG = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0}
CONFIG |= {"eos_token_id": 0, "pad_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def language_model(dtype: torch.dtype = torch.float64, tied: bool = True) -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**CONFIG, tie_word_embeddings=tied)).to(dtype)


def rows_of_text(rows: int = 12) -> list[dict[str, list[int]]]:
    """Token numbers of equal length; the labels of each row's first tokens do not count, of one row none does."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for row in range(rows):
        ids = torch.randint(1, VOCABULARY, (10,), generator=generator)
        labels = ids.clone()
        labels[: row % 7] = -100
        if row == 5:
            labels[:] = -100
        found.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return found


def trained(model: Any, rows: Any, tmp_path: Any, loss: TrainerLoss | None, **options: Any) -> tuple[Any, list[float]]:
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 4, "learning_rate": 0.01}
    arguments = TrainingArguments(
        str(tmp_path),
        **(settings | options),
        report_to=[],
        logging_steps=1,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, compute_loss_func=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses.append(trainer.evaluate()["eval_loss"])
    return trainer.model, losses


@pytest.mark.filterwarnings("ignore:labels. none of a micro-batch")
@pytest.mark.parametrize("fused", [False, True])
def test_a_language_model_learns_what_it_learns_by_trainers_own_loss(tmp_path: Any, fused: bool) -> None:
    model = language_model()
    expected, own = trained(copy.deepcopy(model), rows_of_text(), tmp_path, None)
    loss = TrainerLoss(AccuracyLoss("gumbel", q=1), fuse=model if fused else None)
    found, ours = trained(model, rows_of_text(), tmp_path, loss)
    assert ours == pytest.approx(own, rel=2e-7)  # Trainer's own loss is made in float32, even of float64
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(dict(found.named_parameters())[name], weight, rtol=1e-5, atol=1e-6)


def test_a_loss_is_the_sum_over_labels_that_count_per_item() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7, dtype=torch.float64), torch.randint(7, (3, 5))
    labels[0, :3] = -100
    ahead = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)  # the next token's
    for loss, target, output, shift in (
        (AccuracyLoss("normal", q=0.5), ahead, CausalLMOutput(logits=logits), None),
        (AccuracyLoss(q=-1, label_smoothing=0.1), labels, TokenClassifierOutput(logits=logits), None),
        (TopKAccuracyLoss(2), ahead, {"logits": logits}, True),
        (torch.nn.CrossEntropyLoss(), labels, CausalLMOutput(logits=logits), False),
    ):
        each = copy.copy(loss)
        each.reduction = "none"
        expected = each(logits.reshape(-1, 7), target.reshape(-1)).sum()
        wrapped = TrainerLoss(loss, shift=shift)
        assert wrapped(output, labels, torch.tensor(40)).item() == pytest.approx(expected.item() / 40, rel=1e-12)
        assert wrapped(output, labels, 40).item() == pytest.approx(expected.item() / 40, rel=1e-12)
        count = int((target != -100).sum())
        assert wrapped(output, labels).item() == pytest.approx(expected.item() / count, rel=1e-12)
        assert loss.reduction == "mean"  # the loss that was given is left alone


def test_gumbel_q_0_is_dft_with_a_value_that_can_be_read() -> None:
    """Its gradient is that of −sg(p) log p, its value 1 − mean p."""
    logits = torch.randn(4, 6, 9, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(9, (4, 6))
    loss = TrainerLoss(AccuracyLoss("gumbel", q=0))(CausalLMOutput(logits=logits), labels, 20)
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:, None]).squeeze(-1)
    dft = (-log_p.exp().detach() * log_p).sum() / 20
    (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(dft, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-16)
    assert loss.item() == pytest.approx((1 - log_p.exp()).sum().item() / 20, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_scores_are_made_float32(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(2, 300, 50).to(dtype), torch.randint(50, (2, 300))
    loss = TrainerLoss(AccuracyLoss(q=1))(CausalLMOutput(logits=logits), labels)
    assert loss.dtype == torch.float32
    own = torch.nn.functional.cross_entropy(logits[:, :-1].float().reshape(-1, 50), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(loss, own)


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
def test_fused_the_loss_is_the_same_and_no_score_is_made(noise: str) -> None:
    model, labels = language_model(tied=False), torch.randint(VOCABULARY, (2, 9))
    model.train()
    loss = AccuracyLoss(noise, q=0.5, weight=torch.linspace(0.5, 2, VOCABULARY, dtype=torch.float64))
    expected = TrainerLoss(loss)(model(input_ids=labels), labels, 30)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    fused = TrainerLoss(loss, fuse=model)
    outputs = model(input_ids=labels)
    assert outputs.logits.shape[-1] == CONFIG["n_embd"]
    found = fused(outputs, labels, 30)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for slope, other in zip(torch.autograd.grad(found, list(model.parameters())), slopes, strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-9, atol=1e-14)
    with torch.no_grad():
        assert model(input_ids=labels).logits.shape[-1] == VOCABULARY
    model.eval()
    assert fused(model(input_ids=labels), labels, 30).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_fused_model_is_saved_and_copied_as_it_was(tmp_path: Any) -> None:
    model = language_model(torch.float32, tied=False)
    TrainerLoss(AccuracyLoss(), fuse=model)
    ids = torch.randint(VOCABULARY, (1, 5))
    scores = model.eval()(input_ids=ids).logits
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(input_ids=ids).logits, scores)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(GPT2LMHeadModel.from_pretrained(tmp_path)(input_ids=ids).logits, scores)


def test_dials_move_with_the_steps_and_go_on_after_a_checkpoint(tmp_path: Any) -> None:
    class Watch(transformers.TrainerCallback):
        def __init__(self, loss: TrainerLoss) -> None:
            self.loss, self.seen = loss, []  # type: ignore[var-annotated]

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen.append((state.global_step, self.loss.loss.q, self.loss.loss.scale))

    def train(resume: bool) -> list[tuple[int, float, float]]:
        loss = TrainerLoss(AccuracyLoss())
        watch = Watch(loss)
        settings = {"per_device_train_batch_size": 4, "max_steps": 5, "save_steps": 2, "logging_steps": 10**6}
        arguments = TrainingArguments(str(tmp_path), **settings, report_to=[], use_cpu=True, disable_tqdm=True)
        rows = [row for row in rows_of_text() if row["labels"][-1] >= 0]
        callbacks = [LossSchedule(loss, q=(1.0, 0.0), scale=(2.0, 1.0)), watch]
        model = language_model(torch.float32)
        trainer = Trainer(model, arguments, train_dataset=rows, compute_loss_func=loss, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
        return watch.seen

    whole = train(resume=False)
    assert whole == [(0, 1.0, 2.0), (1, 0.75, 1.75), (2, 0.5, 1.5), (3, 0.25, 1.25), (4, 0.0, 1.0)]
    assert train(resume=True) == whole[2:]


def test_a_metric_of_the_batch_is_refused_where_the_step_has_several() -> None:
    outputs, labels = SequenceClassifierOutput(logits=torch.randn(8, 2)), torch.arange(8) % 2
    ranking = AUCLoss(task="multiclass")
    for loss in (FBetaLoss(average="binary"), ranking, AccuracyLoss(over="batch"), AccuracyLoss(standardize=True)):
        expected = loss(outputs.logits, labels)
        assert TrainerLoss(loss)(outputs, labels, torch.tensor(8)).item() == expected.item()
        assert TrainerLoss(loss)(outputs, labels).item() == expected.item()
        with pytest.raises(
            ValueError, match=r"^\w+Loss: a metric of the whole batch, expected all 16 labels [^\n]*accumulation"
        ):
            TrainerLoss(loss)(outputs, labels, torch.tensor(16))


def test_a_metric_of_the_batch_is_counted_as_trainer_counts_before_the_shift() -> None:
    logits, labels = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
    loss = FBetaLoss()
    found = TrainerLoss(loss)(CausalLMOutput(logits=logits), labels, torch.tensor(20))
    torch.testing.assert_close(found, loss(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1)))


def test_a_fused_model_must_be_the_one_that_is_trained() -> None:
    labels = torch.randint(VOCABULARY, (2, 9))
    loss = TrainerLoss(AccuracyLoss(), fuse=language_model().train())
    with pytest.raises(ValueError, match=r"^fuse: another model is trained than the one that was given"):
        loss(language_model().train()(input_ids=labels), labels)


def test_several_labels_a_sample() -> None:
    """Trainer counts the entries of a table of labels as items."""
    logits, labels = torch.randn(6, 3), torch.randint(2, (6, 3)).float()
    loss = SubsetAccuracyLoss()
    found = TrainerLoss(loss)(SequenceClassifierOutput(logits=logits), labels, torch.tensor(36))
    torch.testing.assert_close(found, loss(logits, labels) / 2)


def test_tables_of_labels_are_counted_as_trainer_counts_them() -> None:
    """torch's own loss of a table is a mean over entries, those here over rows."""
    logits, labels = torch.randn(4, 3), torch.randint(2, (4, 3)).float()
    entries = torch.nn.BCEWithLogitsLoss()
    found = TrainerLoss(entries)(SequenceClassifierOutput(logits=logits), labels, torch.tensor(12))
    torch.testing.assert_close(found, entries(logits, labels))
    partly = labels.long()
    partly[1] = partly[2, 0] = -100
    loss, outputs = SubsetAccuracyLoss(), SequenceClassifierOutput(logits=logits)
    torch.testing.assert_close(TrainerLoss(loss)(outputs, partly), loss(logits, partly))
    with pytest.raises(ValueError, match=r"^labels: −100 in a table[^\n]*gradient_accumulation_steps=1"):
        TrainerLoss(loss)(outputs, partly, torch.tensor(8))
    counts = FBetaLoss(task="multilabel")
    torch.testing.assert_close(TrainerLoss(counts)(outputs, partly, torch.tensor(8)), counts(logits, partly))


def test_one_score_a_row() -> None:
    logits, labels = torch.randn(9, 1), torch.arange(9) % 2
    for loss in (AUCLoss(), FBetaLoss(average="binary")):
        found = TrainerLoss(loss)(SequenceClassifierOutput(logits=logits), labels, torch.tensor(9))
        torch.testing.assert_close(found, loss(logits.squeeze(1), labels))


def test_whether_to_shift_is_asked_where_no_name_tells() -> None:
    class OtherOutput(CausalLMOutput):
        pass

    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    loss = AccuracyLoss()
    ahead = loss(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))
    same = loss(logits.reshape(-1, 7), labels.reshape(-1))
    for outputs in (OtherOutput(logits=logits), {"logits": logits}, (logits,)):
        with pytest.raises(ValueError, match=r"^shift: cannot tell from \w+ whether [^\n]*; pass shift=True"):
            TrainerLoss(loss)(outputs, labels)
        torch.testing.assert_close(TrainerLoss(loss, shift=True)(outputs, labels), ahead)
        torch.testing.assert_close(TrainerLoss(loss, shift=False)(outputs, labels), same)


def test_the_loss_is_the_one_that_was_given() -> None:
    """A schedule of it, or its own dials, move what is trained."""
    loss = AccuracyLoss(q=0.5)
    wrapped, outputs, labels = TrainerLoss(loss), SequenceClassifierOutput(logits=torch.randn(5, 3)), torch.arange(5) % 3
    loss.q = 0.0
    torch.testing.assert_close(wrapped(outputs, labels), AccuracyLoss(q=0)(outputs.logits, labels))


def test_the_loss_of_a_router_is_left_out_aloud() -> None:
    outputs = MoeCausalLMOutputWithPast(logits=torch.randn(2, 5, 7), aux_loss=torch.ones(()))
    with pytest.warns(UserWarning, match="^outputs: the router's auxiliary loss is left out"):
        TrainerLoss(AccuracyLoss())(outputs, torch.randint(7, (2, 5)))


def test_a_padded_vocabulary_is_cut() -> None:
    logits, labels = torch.randn(2, 5, 12), torch.randint(9, (2, 5))
    found = TrainerLoss(AccuracyLoss(), num_classes=9)(CausalLMOutput(logits=logits), labels)
    torch.testing.assert_close(found, TrainerLoss(AccuracyLoss())(CausalLMOutput(logits=logits[..., :9]), labels))
    with pytest.raises(ValueError, match=r"^target: expected class indices from 0 to 8, got"):
        TrainerLoss(AccuracyLoss(), num_classes=9)(CausalLMOutput(logits=logits), labels + 5)


def test_a_padded_vocabulary_is_cut_from_a_fused_layer() -> None:
    model, labels = language_model(tied=False).train(), torch.randint(40, (2, 9))
    expected = TrainerLoss(AccuracyLoss(), num_classes=40)(model(input_ids=labels), labels, 16)
    found = TrainerLoss(AccuracyLoss(), num_classes=40, fuse=model)(model(input_ids=labels), labels, 16)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for slope, other in zip(*(torch.autograd.grad(x, list(model.parameters())) for x in (found, expected)), strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-9, atol=1e-14)


def test_where_no_label_counts_the_loss_is_0_and_says_so() -> None:
    logits = torch.randn(2, 5, 7, requires_grad=True)
    labels = torch.full((2, 5), -100)
    with pytest.warns(UserWarning, match=r"^labels: none of a micro-batch counts[^\n]*max_length"):
        loss = TrainerLoss(AccuracyLoss())(CausalLMOutput(logits=logits), labels)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


class Capped(torch.nn.Module):
    """A model whose logits are not what its last layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.layer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=30 * torch.tanh(self.layer(self.table(input_ids)) / 30))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainerLoss(torch.nn.Linear(2, 2)), r"^loss: expected a loss module with a reduction, got Linear"),
        (lambda: TrainerLoss(AccuracyLoss(scale=torch.nn.Parameter(torch.ones(())))), "^loss: has a learned scale"),
        (lambda: TrainerLoss(LinearAccuracyLoss(3, 2)), "^loss: LinearAccuracyLoss takes the last layer along"),
        (lambda: TrainerLoss(FBetaLoss(memory=9)), "^memory: expected none, rows of an evaluation"),
        (lambda: TrainerLoss(AccuracyLoss(ignore_index=0)), "^ignore_index: expected -100, which Trainer leaves out, got 0"),
        (
            lambda: TrainerLoss(AccuracyLoss())(CausalLMOutput(logits=torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3)),
            r"^labels: expected shape \(1, 2\) for logits \(1, 2, 3\), got \(1, 2, 3\)",
        ),
        (lambda: TrainerLoss(FBetaLoss(), fuse=language_model()), "^fuse: takes AccuracyLoss"),
        (lambda: TrainerLoss(AccuracyLoss(label_smoothing=0.1), fuse=language_model()), "^fuse: takes AccuracyLoss"),
        (lambda: TrainerLoss(AccuracyLoss(), fuse=Capped()), "^fuse: the logits of Capped are not its last layer's scores"),
        (
            lambda: TrainerLoss(AccuracyLoss(), fuse=torch.nn.Linear(2, 2)),
            "^fuse: expected a language model whose output embeddings are torch.nn.Linear, got Linear",
        ),
        (lambda: TrainerLoss(AccuracyLoss())(CausalLMOutput(logits=torch.zeros(1, 2, 3)), None), "^labels: the batch has none"),
        (lambda: TrainerLoss(AccuracyLoss())({"last": torch.zeros(1, 2, 3)}, torch.zeros(1, 2)), "^outputs: expected logits"),
        (
            lambda: TrainerLoss(AccuracyLoss())(CausalLMOutput(logits=torch.zeros(1, 2, 3)), torch.zeros(1, 4).long()),
            r"^labels: expected shape \(1, 2\) for logits \(1, 2, 3\), got \(1, 4\)",
        ),
        (lambda: TrainerLoss(AccuracyLoss(), fuse=True), "^fuse: expected the model, got True"),
        (lambda: LossSchedule(TrainerLoss(AccuracyLoss()), q=0.5), r"^q: expected \(start, end\), got 0.5"),
        (lambda: LossSchedule(TrainerLoss(AccuracyLoss())), "^q, scale: expected"),
        (lambda: LossSchedule(TrainerLoss(AccuracyLoss()), q=(1.0, math.inf)), "^end: expected a finite q"),
    ],
)
def test_what_does_not_fit_is_one_line(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as error:
        make()
    assert "\n" not in str(error.value)
