"""A table's preprocessing and a ``MetricClassifierCV`` in one, and its file.

Numbers: missing ones become the training rows' median, with a column that says so; all are standardised. Text and categories:
one column for each value that ten training rows have, one for the rest; a value that is new counts as none of them. The file is
skops', without pickle: opening it builds objects of the types in TRUSTED and of scikit-learn only.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from lossmith import __version__
from lossmith.data import Dataset
from lossmith.errors import InputError
from lossmith.estimators.linear import MetricClassifierCV

FORMAT = 1  # of the file
RARE = 10  # rows that a value needs for a column of its own
TRUSTED = (
    "lossmith.estimators.linear.MetricClassifierCV",
    "lossmith.estimators.path.Point",
    "lossmith.estimators.selection.Selection",
    "numpy.dtype",
)
NUMBER, TEXT = "number", "text"


@dataclass
class TableModel:
    """What ``lossmith train`` makes.

    Attributes:
        columns: name and kind, NUMBER or TEXT, of each feature.
        classes: labels in the order of the classifier's codes; for a metric of one class, that class is the last.
        target: the name of the column of classes.
        encoder: from features to numbers. classifier: from numbers to codes.
    """

    columns: dict[str, str]
    classes: list[str]
    target: str
    encoder: Any
    classifier: MetricClassifierCV

    @classmethod
    def train(cls, data: Dataset, metric: Any, cv: int, caution: float | None, n_jobs: int, random_state: int) -> TableModel:
        """Fit to a table.

        Args:
            data: the table. The metric of one of two classes is that of the last.
            metric, cv, caution, n_jobs, random_state: of ``MetricClassifierCV``.

        Raises:
            InputError: the metric is not for so many classes.
        """
        columns = {str(name): _kind(column) for name, column in data.features.items()}
        numbers = [name for name, kind in columns.items() if kind == NUMBER]
        texts = [name for name, kind in columns.items() if kind == TEXT]
        of_numbers = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
        )
        of_texts = make_pipeline(
            OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE, sparse_output=False),
            StandardScaler(with_std=False),
        )
        encoder = ColumnTransformer([("numbers", of_numbers, numbers), ("texts", of_texts, texts)])
        classifier = MetricClassifierCV(metric, cv=cv, caution=caution, n_jobs=n_jobs, random_state=random_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about columns that are empty
            X = encoder.fit_transform(_typed(data.features, columns, data.name))
        try:
            classifier.fit(X, data.target)
        except ValueError as error:
            raise InputError(f"{data.name}: {error}") from None
        return cls(columns, list(data.classes), data.target_name, encoder, classifier)

    def predict(self, frame: pd.DataFrame, where: str) -> pd.DataFrame:
        """The label of each row, and the probability of each class.

        Columns that the model does not know are passed over.

        Raises:
            InputError: a column is missing, or holds text where the model had numbers.
        """
        if missing := [name for name in self.columns if name not in frame.columns]:
            raise InputError(f"{where}: expected the columns that the model was trained on, but there is no {missing[0]!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that are new
            X = self.encoder.transform(_typed(frame, self.columns, where))
        p = self.classifier.predict_proba(X)
        labels = np.array(self.classes, dtype=object)[self.classifier.predict(X)]
        return pd.DataFrame({"prediction": labels, **{f"p({label})": p[:, k] for k, label in enumerate(self.classes)}})

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        from skops.io import dump

        content = {"lossmith": __version__, "format": FORMAT, **vars(self)}
        new = path.with_name(path.name + ".new")
        dump(content, new)
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> TableModel:
        """Open a file.

        Raises:
            InputError: it is no such file, of another format, or holds types that are not trusted.
        """
        from skops.io import get_untrusted_types
        from skops.io import load as load_trusted

        wrong = f"{path}: expected a model of lossmith train"
        if not path.is_file():
            raise InputError(f"{wrong}, but there is no such file")
        try:
            others = sorted(set(get_untrusted_types(file=path)) - set(TRUSTED))
            if others:
                raise InputError(f"{wrong}, but it holds {others[0]}, which is not trusted; train it again")
            content = load_trusted(path, trusted=list(TRUSTED))
        except InputError:
            raise
        except Exception as error:  # whatever a file of another kind or a damaged one leads to
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{wrong}, got something else ({text[:100]})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise InputError(f"{wrong} of format {FORMAT}, got {found}; train it again with lossmith {__version__}")
        return cls(*(content[name] for name in ("columns", "classes", "target", "encoder", "classifier")))


def _kind(column: pd.Series[Any]) -> str:
    return NUMBER if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column) else TEXT


def _text(value: Any) -> str:
    """A column of whole numbers is read as floats where a value is missing: 1.0 is the text 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _typed(frame: pd.DataFrame, columns: dict[str, str], where: str) -> pd.DataFrame:
    """The columns in their order: numbers as float64 (dates as seconds), text as str, None where there is no value."""
    found = {}
    for name, kind in columns.items():
        column = frame[name]
        if kind == TEXT:
            found[name] = column.astype(object).map(_text, na_action="ignore").where(column.notna(), None)
        elif pd.api.types.is_datetime64_any_dtype(column):
            found[name] = (column - pd.Timestamp(0, tz=getattr(column.dt, "tz", None))).dt.total_seconds()
        else:
            numbers = pd.to_numeric(column, errors="coerce").astype("float64")
            bad = (numbers.isna() & column.notna()).to_numpy()
            if bad.any():
                row = int(bad.argmax())
                raise InputError(
                    f"{where}: expected numbers in the column {name!r}, got {column.iloc[row]!r} in data row {row + 1}"
                )
            found[name] = numbers
    return pd.DataFrame(found)
