"""Retrieval: find what a function's documentation goes on to say by its first sentence.

Real texts, from the packages that are installed; an encoder whose trained weights come in a package (`pip install wordllama`,
MIT, 19 MB): static embeddings of 32,000 tokens. Trained by cross-entropy over the batch, and by accuracies nearer the metric.

    python examples/retrieval.py          a minute: scikit-learn's documentation, one pass
    python examples/retrieval.py full     six packages, learning rates chosen on a fifth of the training pairs, five seeds
"""

import hashlib
import importlib
import inspect
import pkgutil
import statistics
import sys
import warnings
from pathlib import Path

import torch
import wordllama
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from lossmith import AccuracyLoss, TopKAccuracyLoss
from lossmith.integrations.sentence_transformers import InBatchLoss

FULL = sys.argv[1:] == ["full"]
PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "sklearn", "torch") if FULL else ("sklearn",)
RATES = (0.01, 0.03, 0.1) if FULL else (0.03,)
SEEDS, EPOCHS = (5, 6) if FULL else (1, 2)
LOSSES = {
    "cross-entropy over the batch": AccuracyLoss("gumbel", q=1),  # MultipleNegativesRankingLoss
    "q = 0.9": AccuracyLoss(),
    "q = 0.5": AccuracyLoss(q=0.5),
    "recall at 5": TopKAccuracyLoss(5, "gumbel"),
}
FILES = Path(wordllama.__file__).parent


def pairs() -> list[tuple[str, str]]:
    """First sentences of docstrings, and what follows them."""
    found = {}
    warnings.simplefilter("ignore")  # of modules that are there for old names
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.", lambda name: None):
            if "test" in module.name or "._" in module.name or module.name.count(".") > 3:
                continue
            try:
                names = vars(importlib.import_module(module.name))
            except Exception:  # a module that needs what is not installed
                continue
            for name, of in sorted(names.items()):
                if not name.startswith("_") and callable(of) and str(getattr(of, "__module__", "")).startswith(package):
                    first, _, rest = (inspect.getdoc(of) or "").partition("\n\n")
                    if 5 <= len(first.split()) <= 30 and len(rest.split()) > 30:
                        found[" ".join(rest.split())[:600]] = " ".join(first.split())
    return sorted({first: rest for rest, first in found.items()}.items())


def encoder() -> SentenceTransformer:
    """Wordllama's weights, ready to be trained."""
    weights = load_file(FILES / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].float()
    tokens = Tokenizer.from_file(str(FILES / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    return SentenceTransformer(modules=[StaticEmbedding(tokens, embedding_weights=weights)], device="cpu")


def recall(model: SentenceTransformer, held: list[tuple[str, str]], k: int) -> float:
    """Share of first sentences whose own text is among the k nearest of all held-out texts."""
    queries, texts = (
        torch.tensor(model.encode(list(column), normalize_embeddings=True, show_progress_bar=False))
        for column in zip(*held, strict=True)
    )
    scores = queries @ texts.T
    return float(((scores > scores.diagonal()[:, None]).sum(1) < k).double().mean())


def trained(loss: torch.nn.Module, rows: list[tuple[str, str]], rate: float, seed: int) -> SentenceTransformer:
    """The encoder after a few epochs in batches of 256."""
    torch.manual_seed(seed)
    model = encoder()
    in_batch = InBatchLoss(model, loss)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows)).split(256):
            features = [model.preprocess([rows[row][column] for row in batch]) for column in (0, 1)]
            optimizer.zero_grad()
            in_batch(features).backward()
            optimizer.step()
    return model


def part_of(first: str) -> int:
    """A fifth to which a pair belongs, whatever else is installed."""
    return hashlib.sha256(first.encode()).digest()[0] % 5


def main() -> None:
    """Print recall at 1 of each loss, and at last what training has brought."""
    rows = pairs()
    held, rest = [row for row in rows if part_of(row[0]) == 0], [row for row in rows if part_of(row[0])]
    tuning, fitted = [row for row in rest if part_of(row[0]) == 1], [row for row in rest if part_of(row[0]) > 1]
    before = recall(encoder(), held, 1)
    print(f"{len(rest)} pairs to train on, {len(held)} held out; recall at 1 as it comes {before:.3f}")
    for name, loss in LOSSES.items():
        rate = max(RATES, key=lambda rate: recall(trained(loss, fitted, rate, 0), tuning, 1)) if len(RATES) > 1 else RATES[0]
        models = [trained(loss, rest, rate, seed) for seed in range(SEEDS)]
        ones, fives = ([recall(model, held, k) for model in models] for k in (1, 5))
        spread = f" ± {statistics.stdev(ones) / SEEDS**0.5:.3f}" if SEEDS > 1 else ""
        print(
            f"{name}: recall at 1 {statistics.mean(ones):.3f}{spread}, at 5 {statistics.mean(fives):.3f} (rate {rate:g})",
            flush=True,
        )
        after = statistics.mean(ones)
    print(f"recall at 1: {before:.3f} → {after:.3f}")


if __name__ == "__main__":
    main()
