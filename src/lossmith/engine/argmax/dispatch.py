"""Which kernel computes log P(the target wins), chosen call by call.

"cpu" and "cuda" serve float32, and half types computed in float32, on their device, for noise that ``tables`` can follow;
"reference" serves everything. Under Triton's interpreter (TRITON_INTERPRET=1) "cuda" serves tensors on the CPU, to be tested.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.argmax.kernels.tables import Tables, tables
from lossmith.engine.runtime.select import KERNELS, asked, broken
from lossmith.noise import Noise


def choose(scores: Tensor, noise: Noise) -> str:
    """The kernel for scores (rows, C) in the type they are computed in."""
    name = asked()
    if name is None:
        fast = fast_kernel(scores)
        return "reference" if obstacle(fast, scores, noise) else fast
    if against := obstacle(name, scores, noise):
        able = ", ".join(other for other in KERNELS if not obstacle(other, scores, noise))
        raise ValueError(f"kernel: {name!r} cannot serve this call ({against}); expected one of: {able}")
    return name


def fast_kernel(scores: Tensor) -> str:
    """The kernel other than the reference for tensors where the scores are; interpreted, either serves on the CPU."""
    if scores.device.type == "cuda":
        return "cuda"
    return "cuda" if interpreted() and asked() != "cpu" else "cpu"


@lru_cache(maxsize=1)
def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU; that is settled when it is loaded."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def obstacle(kernel: str, scores: Tensor, noise: Noise) -> str:
    """Why a kernel cannot serve; empty if it can."""
    if kernel == "reference":
        return ""
    if scores.device.type != kernel and not (kernel == "cuda" and scores.device.type == "cpu" and interpreted()):
        return f"scores on {scores.device.type}"
    if scores.dtype != torch.float32:
        return f"scores of {scores.dtype}"
    if kernel == "cuda" and not _has_triton():
        return "triton is not installed"
    if kernel in broken:
        return f"it failed before: {broken[kernel]}"
    if tables_of(noises.key(noise)) is None:
        return f"{noise} has kinks, far tails or narrow peaks"
    return ""


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None  # without loading it


@lru_cache(maxsize=64)
def tables_of(key: str) -> Tables | None:
    """The tables of the noise with that ``noises.key``."""
    return tables(noises.by_key(key))
