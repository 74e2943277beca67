"""Tasks of the studies of networks: rows to fit on and rows to score, of images, texts and tables, and wrong labels."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossmith.compare.encode import encode
from lossmith.compare.plan import Plan
from lossmith.data import Dataset, keel, load, public
from lossmith.data.images import images
from lossmith.data.reviews import reviews
from lossmith.experiments.nets import BUCKETS, LENGTH, VOCABULARY
from lossmith.experiments.study import derive

IMAGES = ("fashion-mnist", "mnist")
TEXT_TEST = 4000  # reviews to score; the others are to draw from
TEXT_READ = 80  # characters of a review that n-grams are made of
Codes = npt.NDArray[np.int64]


class Task(NamedTuple):
    """Features (n, d), float32 or int64, and class codes (n,) of both parts."""

    fit_x: Tensor
    fit_y: Tensor
    score_x: Tensor
    score_y: Tensor
    classes: int


@lru_cache(maxsize=4)
def task(data: str, model: str, rows: int, seed: int, tuning: bool = False, noise: str = "none") -> Task:
    """A task.

    Args:
        data: "fashion-mnist", "mnist", "reviews", or what ``lossmith.data.load`` takes for a table.
        model: a name of ``NETS``; texts are n-grams for "ngrams", else characters.
        rows: training rows, drawn by the seed; of tables nine tenths of four fifths of at most so many.
        seed: of the draw.
        tuning: whether the rows to score are a fifth of the training rows instead of the test's.
        noise: of the labels of the training rows: see ``wrong_labels``. Where it is tuned, the rows to score have it too.
    """
    fit_x, fit_y, score_x, score_y, classes = _parts(data, model, rows, seed)
    fit_y = wrong_labels(fit_y, classes, noise, derive(data, noise, seed))
    if tuning:
        order = np.random.default_rng(derive("tuning", data, seed)).permutation(len(fit_y))
        held, fitted = order[: len(order) // 5], order[len(order) // 5 :]
        fit_x, fit_y, score_x, score_y = fit_x[fitted], fit_y[fitted], fit_x[held], fit_y[held]
    tensors = [torch.from_numpy(array) for array in (fit_x, fit_y, score_x, score_y)]
    return Task(tensors[0], tensors[1], tensors[2], tensors[3], classes)


def wrong_labels(target: Codes, classes: int, noise: str, seed: int) -> Codes:
    """Labels of which a share is replaced.

    Args:
        target: (n,) class codes.
        classes: how many there are.
        noise: "none"; "symmetric-40": 40 % of the rows get another class, each as likely; "pairwise-20": 20 % get the next one.
        seed: of the choice.
    """
    kind, _, share = noise.partition("-")
    if kind == "none":
        return target
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(target))[: round(int(share) / 100 * len(target))]
    step = random.integers(1, classes, len(chosen)) if kind == "symmetric" else 1
    found = target.copy()
    found[chosen] = (found[chosen] + step) % classes
    return found


def _parts(data: str, model: str, rows: int, seed: int) -> tuple[Any, Codes, Any, Codes, int]:
    if data in IMAGES:
        pool_x, pool_y, score_x, score_y = _images(data)
        drawn = np.random.default_rng(derive("rows", data, seed)).permutation(len(pool_y))[:rows]
        return pool_x[drawn], pool_y[drawn], score_x, score_y, 10
    if data == "reviews":
        features, target = _texts(model == "ngrams")
        order = np.random.default_rng(derive("test", data)).permutation(len(target))
        test, pool = order[:TEXT_TEST], order[TEXT_TEST:]
        drawn = pool[np.random.default_rng(derive("rows", data, seed)).permutation(len(pool))[:rows]]
        return features[drawn], target[drawn], features[test], target[test], 2
    return _table(data, rows, seed)


@lru_cache(maxsize=1)
def _images(data: str) -> tuple[Any, Codes, Any, Codes]:
    """Pixels from 0 to 1, minus their mean."""
    (fit_x, fit_y), (score_x, score_y) = images(data, "train"), images(data, "test")
    flat = [(x.reshape(len(x), -1) / np.float32(255)).astype(np.float32) for x in (fit_x, score_x)]
    mean = flat[0].mean()
    return flat[0] - mean, fit_y, flat[1] - mean, score_y


@lru_cache(maxsize=2)
def _texts(ngrams: bool) -> tuple[Codes, Codes]:
    texts, target = reviews()
    if ngrams:
        rows = [_hashed(text[:TEXT_READ]) for text in texts]
        width = 2 * TEXT_READ - 1
    else:
        known = _characters(texts)
        rows = [[known.get(character, 1) for character in text[:LENGTH]] for text in texts]
        width = LENGTH
    features = np.zeros((len(texts), width), dtype=np.int64)
    for row, values in zip(features, rows, strict=True):
        row[: len(values)] = values
    return features, target


def _hashed(text: str) -> list[int]:
    """Characters and pairs of neighbours as numbers from 1 to ``BUCKETS`` − 1."""
    grams = [*text, *(a + b for a, b in pairwise(text))]
    return [1 + crc32(gram.encode()) % (BUCKETS - 1) for gram in grams]


def _characters(texts: list[str]) -> dict[str, int]:
    """A number for each of the most frequent characters, from 2 on. No label is looked at."""
    counts: dict[str, int] = {}
    for text in texts:
        for character in text[:LENGTH]:
            counts[character] = counts.get(character, 0) + 1
    frequent = sorted(counts, key=lambda c: (-counts[c], c))[: VOCABULARY - 2]
    return {character: number for number, character in enumerate(frequent, 2)}


def _table(data: str, rows: int, seed: int) -> tuple[Any, Codes, Any, Codes, int]:
    """A fixed fifth of a table's rows to score; of the others, nine tenths are drawn by the seed."""
    plan = Plan(limited(data, rows), methods=(), seed=0)
    train, test = plan.split(0, 0)
    drawn = np.random.default_rng(derive("rows", data, seed)).permutation(train)[: len(train) * 9 // 10]
    part = encode(plan, drawn, test)
    return part.fit_x, part.fit_y, part.score_x, part.score_y, len(plan.data.classes)


def tables_of(set_name: str) -> list[str]:
    """What ``load`` takes for each table of a set; none where it was not fetched."""
    if public.folder(set_name) is None:
        return []
    return [f"{set_name}/{name}" for name in keel.names(set_name)]


@lru_cache(maxsize=2)
def limited(data: str, rows: int, least: int = 10) -> Dataset:
    """A table with at most so many rows, drawn without order, and without the classes of fewer than ``least`` of them."""
    found = load(data)
    order = np.random.default_rng(derive("rows", data)).permutation(len(found.target))[:rows]
    counts = np.bincount(found.target[order], minlength=len(found.classes))
    large = np.flatnonzero(counts >= least)
    order = np.sort(order[np.isin(found.target[order], large)])
    target = np.searchsorted(large, found.target[order])
    classes = tuple(found.classes[code] for code in large)
    return replace(found, features=found.features.iloc[order].reset_index(drop=True), target=target, classes=classes)
