"""The studies by name."""

from __future__ import annotations

from lossmith.experiments import boosting, default, imbalance, noise, tabular, text, vision
from lossmith.experiments.study import Study

MODULES = (tabular, imbalance, boosting, vision, text, noise, default)
STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in MODULES}
