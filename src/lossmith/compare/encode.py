"""A table's rows as numbers: an encoder fitted to the rows to train on."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skrub import StringEncoder, TableVectorizer

from lossmith.compare.plan import Indices, Plan


class Part(NamedTuple):
    """Encoded rows to fit on and rows to score on, with their class codes."""

    fit_x: npt.NDArray[np.float32]
    fit_y: npt.NDArray[np.int64]
    score_x: npt.NDArray[np.float32]
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
    return Part(np.asarray(fit_x, np.float32), target[fit_rows], np.asarray(score_x, np.float32), target[score_rows])
