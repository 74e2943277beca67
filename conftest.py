"""What pytest has to know before it collects: which files need what is not installed, and where asserts are explained."""

from importlib.util import find_spec

import pytest
import torch

pytest.register_assert_rewrite("support")


@pytest.fixture(autouse=True)
def _names_of_examples(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch  # which every example may use


# The kernels for the GPU need Triton, which comes for few systems.
collect_ignore = [] if find_spec("triton") else ["src/lossmith/engine/argmax/kernels/cuda.py"]
