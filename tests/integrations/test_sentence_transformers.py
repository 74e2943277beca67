"""Retrieval inside a batch, beside sentence-transformers' own loss."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("sentence_transformers")

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from lossmith import AccuracyLoss, FBetaLoss, LinearAccuracyLoss, TopKAccuracyLoss
from lossmith.integrations.sentence_transformers import InBatchLoss
from support.ranks import Ranks

PAIRS = [("small cat", "a kitten"), ("big dog", "a hound"), ("young horse", "a foal"), ("male cow", "a bull")]
WORDS = ["<unk>", *sorted({word for pair in PAIRS for text in pair for word in text.split()})]


def encoder() -> SentenceTransformer:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=8)], device="cpu")


def columns(count: int = 3, seed: int = 0) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 5, generator=made, dtype=torch.float64).requires_grad_() for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3])
def test_gumbel_q_1_is_multiple_negatives_ranking(count: int) -> None:
    model = encoder()
    own, ours = MultipleNegativesRankingLoss(model), InBatchLoss(model, AccuracyLoss("gumbel", q=1))
    found, expected = columns(count), columns(count)
    value = ours.of_embeddings(found)
    torch.testing.assert_close(value, own.compute_loss_from_embeddings(expected, None))
    slopes = torch.autograd.grad(own.compute_loss_from_embeddings(expected, None), expected)
    for slope, other in zip(torch.autograd.grad(value, found), slopes, strict=True):
        torch.testing.assert_close(slope, other)


def test_sharp_it_is_recall_at_k() -> None:
    model, embeddings = encoder(), columns(2)
    z = torch.nn.functional.normalize(embeddings[0]) @ torch.nn.functional.normalize(embeddings[1]).T
    rank = (z > z.diagonal().unsqueeze(1)).sum(1)
    for k in (1, 2, 4):
        loss = InBatchLoss(model, TopKAccuracyLoss(k, scale=1e-6, q=0.0))
        assert loss.of_embeddings(embeddings).item() == pytest.approx((rank >= k).double().mean().item(), abs=1e-9)


@pytest.mark.filterwarnings("ignore")  # of the trainer's, about what it will rename
@pytest.mark.parametrize("k", [1, 2])
def test_under_its_trainer(k: int, tmp_path: Any) -> None:
    model = encoder()
    rows = Dataset.from_dict({"anchor": [a for a, _ in PAIRS], "positive": [p for _, p in PAIRS]})
    loss = InBatchLoss(model, AccuracyLoss("normal", q=0.5) if k == 1 else TopKAccuracyLoss(k))
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=30,
    )
    SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss).train()
    found = model.similarity(model.encode([a for a, _ in PAIRS]), model.encode([p for _, p in PAIRS]))
    assert ((found >= found.diagonal().unsqueeze(1)).sum(1) <= k).all()
    assert loss.get_config_dict()["similarity_fct"] == "cos_sim"


@pytest.mark.parametrize(("loss", "candidates"), [(AccuracyLoss(), 1), (TopKAccuracyLoss(3), 3)])
def test_a_short_last_batch_counts_as_found(loss: Any, candidates: int) -> None:
    embeddings = [column[:candidates] for column in columns(2)]
    with pytest.warns(UserWarning, match=r"^candidates: a batch of \d, all of which count among \d, teaches nothing"):
        value = InBatchLoss(encoder(), loss).of_embeddings(embeddings)
    value.backward()
    assert value.item() == 0


def of_ranks(group: Any, k: int) -> tuple[float, list[torch.Tensor]]:
    """A rank's loss of its rows, and the gradient, averaged over ranks as by DDP, in the embeddings of all."""
    rank, whole = dist.get_rank(), [column.detach() for column in columns()]
    shared = [column.clone().requires_grad_() for column in whole]
    loss = InBatchLoss(None, TopKAccuracyLoss(k), gather_across_devices=True)  # type: ignore[arg-type]
    value = loss.of_embeddings([column[3 * rank : 3 * rank + 3] for column in shared])
    value.backward()
    for column in shared:
        dist.all_reduce(column.grad)
        column.grad /= 2
    total = value.detach().clone()
    dist.all_reduce(total)
    return total.item() / 2, [column.grad for column in shared]


def test_gathered_it_is_the_loss_of_all_ranks(tmp_path: Any) -> None:
    embeddings = columns()
    order = [0, 3], [3, 6]  # candidates are gathered column by column
    expected = InBatchLoss(None, TopKAccuracyLoss(2)).of_embeddings(embeddings)  # type: ignore[arg-type]
    slopes = torch.autograd.grad(expected, embeddings)
    with Ranks(tmp_path / "store", len(order)) as ranks:
        for value, found in ranks((0, 1), of_ranks, 2):
            assert value == pytest.approx(expected.item(), rel=1e-12)
            for slope, other in zip(found, slopes, strict=True):
                torch.testing.assert_close(slope, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: InBatchLoss(None, FBetaLoss()), TypeError, r"^loss: expected a mean over samples such as"),  # type: ignore[arg-type]
        (lambda: InBatchLoss(None, AccuracyLoss(reduction="none")), TypeError, "^loss: expected one number for a batch"),  # type: ignore[arg-type]
        (lambda: InBatchLoss(None, LinearAccuracyLoss(2, 3)), TypeError, "^loss: expected one number for a batch"),  # type: ignore[arg-type]
        (lambda: InBatchLoss(None, AccuracyLoss(), scale=0.0), ValueError, "^scale: expected a number > 0, got 0.0"),  # type: ignore[arg-type]
        (lambda: InBatchLoss(None, AccuracyLoss()).of_embeddings(columns(1)), ValueError, "^columns: expected anchors and"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_one_line(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
