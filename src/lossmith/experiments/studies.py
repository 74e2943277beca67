"""The studies by name."""

from __future__ import annotations

from lossmith.experiments import default, imbalance, tabular
from lossmith.experiments.study import Study

STUDIES: dict[str, Study] = {study.name: study for study in (tabular.STUDY, imbalance.STUDY, default.STUDY)}
