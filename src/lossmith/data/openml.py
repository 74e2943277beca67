"""Tables of OpenML, through scikit-learn, which keeps them in the cache folder."""

from __future__ import annotations

import warnings
from http.client import HTTPException

import pandas as pd
from sklearn.datasets import fetch_openml

from lossmith.data import public, tables
from lossmith.errors import InputError

__all__ = ["read"]


def read(name: str) -> tuple[pd.DataFrame, str | None, str]:
    """The columns of the table with this name or number, its target if it names one, and its own name.

    Raises:
        InputError: OpenML cannot be reached, or it has no such table.
    """
    where = f"openml/{tables.one_line(name)}"
    wanted = {"data_id": int(name)} if name.isascii() and name.isdigit() else {"name": name}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of several versions OpenML's active one is taken
            bunch = fetch_openml(**wanted, as_frame=True, data_home=str(public.cache() / "openml"), n_retries=1)
    except (OSError, HTTPException) as error:
        reason = tables.one_line(error) or type(error).__name__
        raise InputError(
            f"{where}: OpenML cannot be reached, or the cache folder cannot be written ({reason}); "
            "check the network, or export the table to a file"
        ) from None
    except ValueError as error:
        raise InputError(f"{where}: expected a table of OpenML, got {tables.one_line(error)}; look its name up there") from None
    frame: pd.DataFrame = bunch.frame
    targets = list(bunch.target_names or [])
    own = str(bunch.details.get("name", name))
    return frame, targets[0] if len(targets) == 1 else None, own
