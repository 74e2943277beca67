"""The kernels for P(a class wins) and for the k highest, and the choice between them, call by call.

"cpu" and "cuda" serve log P(the target wins) of float32 rows, and half types computed in float32, on their device, for noise
that ``tables`` can follow; "reference" serves everything. Under Triton's interpreter (TRITON_INTERPRET=1) "cuda" serves tensors
on the CPU, to be tested.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lossmith import noise as noises
from lossmith.engine.argmax.kernels.tables import DOUBLE, tables_of
from lossmith.engine.runtime.select import REFERENCE, Kernel, asked

OPERATION = "argmax_log_prob"


def fast_kernel(scores: Tensor, noise: str) -> str:
    """The kernel before the reference that can serve, or "reference"; ``noise`` is a ``Noise.key``."""
    kernels = (CPU,) if asked() == "cpu" else (CUDA, CPU)
    return next((kernel.name for kernel in kernels if not kernel.refusal(OPERATION, scores, noise)), REFERENCE.name)


def _without_tables(scores: Tensor, noise: str) -> str:
    if tables_of(noise) is not None:
        return ""
    remedy = "take normal, logistic or Gumbel noise, or smaller batches"
    return f"{noises.by_key(noise)} has kinks, far tails or narrow peaks; {remedy}"


def _without_triton(scores: Tensor, noise: str) -> str:
    if scores.device.type == "cpu" and not interpreted():
        return "scores on cpu"
    return _without_tables(scores, noise) if _has_triton() else "triton is not installed; install it"


def _double_obstacle(scores: Tensor, noise: str) -> str:
    return (
        "" if tables_of(noise, DOUBLE) is not None else "its tables do not serve float64; take normal, logistic or Gumbel noise"
    )


CPU = Kernel("cpu", ("cpu",), (torch.float32,), _without_tables)
CUDA = Kernel("cuda", ("cuda", "cpu"), (torch.float32,), _without_triton)
KERNELS = (CUDA, CPU, REFERENCE)  # on the CPU the first serves under the interpreter only
DOUBLE_KERNELS = (CUDA, Kernel("cpu", CPU.devices, (torch.float64,), _double_obstacle), REFERENCE)


@lru_cache(maxsize=1)
def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU; that is settled when it is loaded."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None  # without loading it
