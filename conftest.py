"""What pytest has to know before it collects: which files need what is not installed, and where asserts are explained."""

from importlib.util import find_spec

import pytest
import torch

pytest.register_assert_rewrite("support")


@pytest.fixture(autouse=True)
def _names_of_examples(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch  # which every example may use


NEEDED = {  # by files whose examples are run
    "src/lossmith/engine/argmax/kernels/cuda.py": "triton",  # comes for few systems
    "src/lossmith/integrations/lightgbm.py": "lightgbm",
    "src/lossmith/integrations/lightning.py": "lightning",
    "src/lossmith/integrations/sentence_transformers.py": "sentence_transformers",
    "src/lossmith/integrations/transformers.py": "transformers",
    "src/lossmith/integrations/trl.py": "trl",
}
collect_ignore = [path for path, package in NEEDED.items() if not find_spec(package)]
