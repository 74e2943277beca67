"""The studies by name."""

from __future__ import annotations

from lossmith.experiments import default, imbalance, noise, tabular, text, vision
from lossmith.experiments.study import Study

STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in (tabular, imbalance, vision, text, noise, default)}
