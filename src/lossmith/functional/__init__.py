"""The noisy argmax, the rankings it expects, and what makes a loss of a metric, as functions.

Scores are raw model outputs: never probabilities. Half types compute in float32 and return their own type.
"""

from lossmith.functional.argmax import argmax_log_prob, argmax_log_probs, standardize_scores, topk_log_prob
from lossmith.functional.linear import linear_argmax_log_prob
from lossmith.functional.ranking import expected_auc, expected_average_precision
from lossmith.maths.qlog import neg_log_q

__all__ = [
    "argmax_log_prob",
    "argmax_log_probs",
    "expected_auc",
    "expected_average_precision",
    "linear_argmax_log_prob",
    "neg_log_q",
    "standardize_scores",
    "topk_log_prob",
]
