"""Data sets that need no network: those that scikit-learn carries in its own package, and one made from its rule."""

from __future__ import annotations

from itertools import product

import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

_LOADERS = {"breast-cancer": load_breast_cancer, "wine": load_wine, "iris": load_iris, "digits": load_digits}

NAMES = (*_LOADERS, "monks-3")


def read(name: str) -> pd.DataFrame:
    """Return the set ``name``: its features under their own names, and its class names in the column ``target``."""
    if name == "monks-3":
        return monks_3()
    bunch = _LOADERS[name](as_frame=True)
    labels = [str(label) for label in bunch.target_names]
    frame: pd.DataFrame = bunch.frame.assign(target=[labels[code] for code in bunch.target])
    return frame


def monks_3() -> pd.DataFrame:
    """The third MONK's problem: all 432 robots, their attributes numbered as in the original.

    A robot is of the class where its jacket is green (3) and it holds a sword (1), or its jacket is not blue (4) and its body
    not an octagon (3). Source: Thrun et al., "The MONK's problems", CMU-CS-91-197, 1991; here without its noise.
    """
    sizes = {"head_shape": 3, "body_shape": 3, "is_smiling": 2, "holding": 3, "jacket_color": 4, "has_tie": 2}
    frame = pd.DataFrame(product(*(range(1, size + 1) for size in sizes.values())), columns=list(sizes))
    jacket = frame["jacket_color"]
    of_class = ((jacket == 3) & (frame["holding"] == 1)) | ((jacket != 4) & (frame["body_shape"] != 3))
    return frame.assign(target=of_class.map({True: "yes", False: "no"}))
