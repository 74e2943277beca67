"""scikit-learn classifiers that are trained for the metric which is reported.

``MetricClassifierCV`` starts from logistic regression and stays there unless training for the metric is surely better on inner
folds; ``MetricClassifier`` is one point of its path. They need ``pip install 'lossmith[compare]'``.
"""

from lossmith.estimators.display import MetricPathDisplay
from lossmith.estimators.linear import MetricClassifier, MetricClassifierCV
from lossmith.estimators.network import MetricNetworkClassifier
from lossmith.estimators.path import Point
from lossmith.estimators.selection import Selection

__all__ = ["MetricClassifier", "MetricClassifierCV", "MetricNetworkClassifier", "MetricPathDisplay", "Point", "Selection"]
