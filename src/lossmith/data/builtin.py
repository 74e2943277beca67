"""Data sets that need no network: those that scikit-learn carries in its own package, and those made from their rules."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

_LOADERS = {"breast-cancer": load_breast_cancer, "wine": load_wine, "iris": load_iris, "digits": load_digits}

_MONKS = ("monks-1", "monks-2", "monks-3")

NAMES = (*_LOADERS, *_MONKS, "balance-scale")


def read(name: str) -> pd.DataFrame:
    """Return the set ``name``: its features under their own names, and its class names in the column ``target``."""
    if name in _MONKS:
        return monks(_MONKS.index(name) + 1)
    if name == "balance-scale":
        return balance_scale()
    bunch = _LOADERS[name](as_frame=True)
    labels = [str(label) for label in bunch.target_names]
    frame: pd.DataFrame = bunch.frame.assign(target=[labels[code] for code in bunch.target])
    return frame


def monks(problem: int) -> pd.DataFrame:
    """One of the three MONK's problems: all 432 robots, their attributes numbered as in the original.

    A robot is of the class

    1. where its head and its body have one shape, or its jacket is red (1);
    2. where exactly two of its six attributes have their first value;
    3. where its jacket is green (3) and it holds a sword (1), or its jacket is not blue (4) and its body not an octagon (3).

    Source: Thrun et al., "The MONK's problems", CMU-CS-91-197, 1991; here the third is without its noise.
    """
    sizes = {"head_shape": 3, "body_shape": 3, "is_smiling": 2, "holding": 3, "jacket_color": 4, "has_tie": 2}
    frame = _every(sizes)
    jacket, body = frame["jacket_color"], frame["body_shape"]
    if problem == 1:
        of_class = (frame["head_shape"] == body) | (jacket == 1)
    elif problem == 2:
        of_class = (frame == 1).sum(axis=1) == 2
    else:
        of_class = ((jacket == 3) & (frame["holding"] == 1)) | ((jacket != 4) & (body != 3))
    return frame.assign(target=of_class.map({True: "yes", False: "no"}))


def balance_scale() -> pd.DataFrame:
    """A scale with a weight of 1 to 5 at a distance of 1 to 5 on each side: all 625 cases, and how the scale tips.

    The classes are L (left), B (balanced) and R (right): the side where weight × distance is larger. Source: Siegler, "Three
    aspects of cognitive development", Cognitive Psychology 8, 1976; the rule makes the table of the UCI repository anew.
    """
    frame = _every(dict.fromkeys(("left_weight", "left_distance", "right_weight", "right_distance"), 5))
    lead = frame["left_weight"] * frame["left_distance"] - frame["right_weight"] * frame["right_distance"]
    return frame.assign(target=np.sign(lead).map({1: "L", 0: "B", -1: "R"}))


def _every(sizes: dict[str, int]) -> pd.DataFrame:
    """Every combination of values from 1 to each column's size."""
    return pd.DataFrame(product(*(range(1, size + 1) for size in sizes.values())), columns=list(sizes))
