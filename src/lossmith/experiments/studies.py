"""The studies by name."""

from __future__ import annotations

from lossmith.experiments import default, tabular
from lossmith.experiments.study import Study

STUDIES: dict[str, Study] = {study.name: study for study in (tabular.STUDY, default.STUDY)}
