"""Small networks that two processor cores train in seconds: for tables, images and texts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LENGTH = 48  # characters of a text that sequence models read
VOCABULARY = 3000  # of characters; 0 pads, 1 is any other
BUCKETS = 1 << 14  # of hashed character n-grams


class ConvNet(nn.Module):
    """Two convolutions of 3 × 3, 8 and 16 channels, each halved by a maximum, and a linear layer; images (n, 784)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Linear(16 * 49, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on processors

    def forward(self, x: Tensor) -> Tensor:
        z = x.view(-1, 1, 28, 28).contiguous(memory_format=torch.channels_last)
        for layer in (self.first, self.second):
            z = nn.functional.max_pool2d(layer(z).relu(), 2)
        scores: Tensor = self.last(z.flatten(1))
        return scores


class NgramBag(nn.Module):
    """A linear model of the share of each hashed n-gram; (n, length) int64, 0 pads."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weights = nn.EmbeddingBag(BUCKETS, classes, mode="sum", padding_idx=0)
        nn.init.zeros_(self.weights.weight)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        length = (x > 0).sum(-1, keepdim=True).clamp(min=1)
        # √length: between the sum, which long texts dominate, and the mean, which learns slowly.
        return self.weights(x) / length.sqrt() + self.bias


class TextConvNet(nn.Module):
    """Character embeddings, convolutions of widths 2, 3 and 4, their maxima, dropout, a linear layer (Kim, EMNLP 2014)."""

    def __init__(self, classes: int, size: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size, padding_idx=0)
        self.layers = nn.ModuleList(nn.Conv1d(size, size, width) for width in (2, 3, 4))
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(3 * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.embedding(x).transpose(1, 2)
        maxima = torch.cat([layer(z).relu().amax(-1) for layer in self.layers], 1)
        scores: Tensor = self.last(self.dropout(maxima))
        return scores


class AttentionBlock(nn.Module):
    """A layer of a Transformer with the norm first. Written out: torch's own takes three times as long at this size."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.inner, self.outer = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, size))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        rows, length, size = x.shape
        q, k, v = self.inner(self.norms[0](x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (size // self.heads) ** 0.5).masked_fill(padding, -torch.inf).softmax(-1)
        x = x + self.outer((weights @ v).transpose(1, 2).reshape(rows, length, size))
        moved: Tensor = x + self.feed(self.norms[1](x))
        return moved


class Transformer(nn.Module):
    """Characters, two ``AttentionBlock``s, the mean over the characters that are there, a linear layer."""

    def __init__(self, classes: int, size: int = 32, heads: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, size))
        self.blocks = nn.ModuleList(AttentionBlock(size, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(size)
        self.last = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        present = (x > 0).float()
        present[:, 0] = 1  # a text without any character still has a mean
        z = self.embedding(x) + self.position[: x.shape[1]]
        for block in self.blocks:
            z = block(z, (present == 0)[:, None, None, :])
        mean = (self.norm(z) * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        scores: Tensor = self.last(mean)
        return scores


def _mlp(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, classes))


# From the number of features and of classes to a network; its weights come from torch's random state.
NETS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "mlp": _mlp,
    "cnn": lambda features, classes: ConvNet(classes),
    "ngrams": lambda features, classes: NgramBag(classes),
    "textcnn": lambda features, classes: TextConvNet(classes),
    "transformer": lambda features, classes: Transformer(classes),
}
