"""The data sets that scikit-learn carries in its own package: no network, no files to fetch."""

from __future__ import annotations

import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

_LOADERS = {"breast-cancer": load_breast_cancer, "wine": load_wine, "iris": load_iris, "digits": load_digits}

NAMES = tuple(_LOADERS)


def read(name: str) -> pd.DataFrame:
    """Return the set ``name``: its features under their own names, and its class names in the column ``target``."""
    bunch = _LOADERS[name](as_frame=True)
    labels = [str(label) for label in bunch.target_names]
    frame: pd.DataFrame = bunch.frame.assign(target=[labels[code] for code in bunch.target])
    return frame
