"""The metric on the rows that folds hold out, fair to likelihood: after its decision rule, tuned on other rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lossmith.estimators.metrics.means import LogLoss
from lossmith.estimators.metrics.trained_metric import Codes, Floats, Rows, TrainedMetric
from lossmith.estimators.rule import decision_rule
from lossmith.estimators.selection import first_of_best


class Judge:
    """The counted metric on held-out rows, after the decision rule where there is one, and likelihood's penalty.

    Args:
        metric: what is counted.
        rows: all rows, weighted for judging.
        held: the rows that each fold holds out.
        rule: whether there is a decision rule.
    """

    def __init__(self, metric: TrainedMetric, rows: Rows, held: list[Codes], rule: bool) -> None:
        self.metric, self.rows, self.held, self.rule = metric, rows, held, rule

    def one(self, scores: Floats, held: Codes) -> float:
        """The metric of scores of the rows ``held``, as they are; 0 if these weigh nothing."""
        rows = self.rows.at(held)
        return self.metric.counted(scores, rows) if rows.weight.any() else 0.0

    def plain_scores(self, of_folds: Sequence[Floats]) -> list[float]:
        """The metric of each fold, as the scores are."""
        return [self.one(scores, held) for scores, held in zip(of_folds, self.held, strict=True)]

    def scores(self, of_folds: Sequence[Floats]) -> list[float]:
        """The metric of each fold; with a decision rule, one that is tuned on the rows of the other folds alone."""
        if not self.rule:
            return self.plain_scores(of_folds)
        found = []
        for j, (scores, held) in enumerate(zip(of_folds, self.held, strict=True)):
            others = [i for i in range(len(self.held)) if i != j]
            found.append(self.one(scores + self.offsets(of_folds, others, held), held))
        return found

    def best_likelihood(self, candidates: Sequence[Sequence[Floats]], scores: Floats, trained: Rows) -> int:
        """Which of several fits by likelihood to go on from: the one of the highest metric.

        For F1 and other ratios of counts with their decision rule, the one of the lowest cross-entropy: where a class is rare,
        a fold's F1 hangs on a row or two, and to choose by it cost 2 points of F1 on 100 tables. For balanced accuracy it
        brought 1 point there.

        Args:
            candidates: of each the scores of each fold's held-out rows.
            scores: (J, candidates), their metric.
            trained: all rows, weighted for training.
        """
        if not self.rule or self.metric.additive:
            return first_of_best(scores.mean(0), np.arange(len(candidates)))
        rows, likelihood = [trained.at(held) for held in self.held], LogLoss()
        mean = [
            np.mean([likelihood.counted(z, own) if own.weight.any() else 0.0 for z, own in zip(of_folds, rows, strict=True)])
            for of_folds in candidates
        ]
        return first_of_best(np.array(mean), np.arange(len(candidates)))

    def offsets(self, of_folds: Sequence[Floats], among: list[int] | None = None, without: Codes | None = None) -> Floats:
        """The decision rule, (K,), on the held-out scores of the folds ``among`` all, ``without`` some rows."""
        chosen = list(range(len(self.held))) if among is None else among
        if not chosen:
            return np.zeros(of_folds[0].shape[1])
        held = np.concatenate([self.held[i] for i in chosen])
        scores = np.concatenate([of_folds[i] for i in chosen])
        if without is not None:
            kept = ~np.isin(held, without)
            held, scores = held[kept], scores[kept]
        return decision_rule(self.metric, scores, self.rows.at(held))
