"""A table's rows as numbers: an encoder fitted to the rows to train on."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skrub import StringEncoder, TableVectorizer
from torch import Tensor

from lossmith.compare.plan import Indices, Plan


class Part(NamedTuple):
    """Encoded rows to fit on and rows to score on, with their class codes."""

    fit_x: Tensor
    fit_y: Tensor
    score_x: Tensor
    score_y: npt.NDArray[np.int64]


def encode(plan: Plan, fit_rows: Indices, score_rows: Indices) -> Part:
    """The features of both sets of rows as float32, by one encoder that has seen only ``fit_rows``."""
    encoder = make_pipeline(
        # A column that is empty in one part only stays, as zeros.
        TableVectorizer(high_cardinality=StringEncoder(random_state=plan.derive("text")), drop_null_fraction=None),
        SimpleImputer(add_indicator=True, keep_empty_features=True),
        StandardScaler(),
    )
    features, target = plan.data.features, plan.data.target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about columns that are empty or constant in one part of a small table
        fit_x = encoder.fit_transform(features.iloc[fit_rows])
        score_x = encoder.transform(features.iloc[score_rows])
    as_tensor = [torch.from_numpy(np.asarray(x, dtype=np.float32)) for x in (fit_x, score_x)]
    return Part(as_tensor[0], torch.from_numpy(target[fit_rows]), as_tensor[1], target[score_rows])
