"""scikit-learn classifiers that are trained for the metric which is reported.

``MetricClassifierCV`` starts from logistic regression and stays there unless training for the metric is surely better on inner
folds; ``MetricClassifier`` is one point of its path. They need ``pip install 'lossmith[compare]'``.
"""

from lossmith.errors import need

need("sklearn", "compare")
from lossmith.estimators.display import MetricPathDisplay  # noqa: E402
from lossmith.estimators.linear import MetricClassifier, MetricClassifierCV  # noqa: E402
from lossmith.estimators.network import MetricNetworkClassifier  # noqa: E402
from lossmith.estimators.path import Point  # noqa: E402
from lossmith.estimators.selection import Selection  # noqa: E402

__all__ = ["MetricClassifier", "MetricClassifierCV", "MetricNetworkClassifier", "MetricPathDisplay", "Point", "Selection"]
