"""Writes docs/recipes.md: `lossmith.check_recipe` over every loss. Run by `make figures`."""

from pathlib import Path

import torch
from torch import nn

from lossmith import (
    AccuracyLoss,
    AUCLoss,
    AveragePrecisionLoss,
    BalancedAccuracyLoss,
    CostLoss,
    FBetaLoss,
    JaccardLoss,
    SubsetAccuracyLoss,
    TopKAccuracyLoss,
    metric,
    recipe,
    surrogates,
)

EYE = torch.eye(2, dtype=torch.float64)
CLASSES = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "AccuracyLoss()": AccuracyLoss(),
    "AccuracyLoss(q=1)": AccuracyLoss(q=1.0),
    "AccuracyLoss(q=0.5)": AccuracyLoss(q=0.5),
    "AccuracyLoss(q=0), smooth accuracy": AccuracyLoss(q=0.0),
    "AccuracyLoss(q=2)": AccuracyLoss(q=2.0),
    'AccuracyLoss("normal", q=1), multinomial probit': AccuracyLoss("normal", q=1.0),
    'AccuracyLoss("normal", q=0), EXACT': AccuracyLoss("normal", q=0.0),
    'AccuracyLoss("normal", q=1, over="batch")': AccuracyLoss("normal", q=1.0, over="batch"),
    'AccuracyLoss("logistic", q=1)': AccuracyLoss("logistic", q=1.0),
    'AccuracyLoss("laplace", q=1)': AccuracyLoss("laplace", q=1.0),
    "AccuracyLoss(q=1, margin=1)": AccuracyLoss(q=1.0, margin=1.0),
    "TopKAccuracyLoss(2), of three classes": TopKAccuracyLoss(2, "gumbel"),
    "BalancedAccuracyLoss()": BalancedAccuracyLoss(),
    "CostLoss(1 − I)": CostLoss(1 - EYE),
    "FBetaLoss()": FBetaLoss(),
    "JaccardLoss()": JaccardLoss(),
    "metric(G-mean)": metric(lambda tp, fp, fn, tn: (tp / (tp + fn) * tn / (tn + fp)).sqrt()).loss,
    "HingeLoss()": surrogates.HingeLoss(),
    "SigmoidLoss()": surrogates.SigmoidLoss(),
    "PolynomialLoss()": surrogates.PolynomialLoss(),
    "BetaBernoulliLoss()": surrogates.BetaBernoulliLoss(),
    "PolyLoss()": surrogates.PolyLoss(),
    "GammaCrossEntropyLoss()": surrogates.GammaCrossEntropyLoss(),
    "EMOLoss(I)": surrogates.EMOLoss(EYE),
    "SparsemaxLoss()": surrogates.SparsemaxLoss(),
    "Entmax15Loss()": surrogates.Entmax15Loss(),
}
LABELS = {
    "binary cross-entropy": nn.BCEWithLogitsLoss(),
    "SubsetAccuracyLoss(), of two labels": SubsetAccuracyLoss(),
    'FBetaLoss(task="multilabel")': FBetaLoss(task="multilabel"),
    "ZLPRLoss()": surrogates.ZLPRLoss(),
    "F1WeightedCrossEntropyLoss()": surrogates.F1WeightedCrossEntropyLoss(),
}
BINARY = {"AUCLoss()": AUCLoss(), "AveragePrecisionLoss()": AveragePrecisionLoss()}


def main() -> None:
    """Write the table."""
    three = {name: loss for name, loss in CLASSES.items() if "three" in name}
    two = {name: loss for name, loss in CLASSES.items() if name not in three}
    head, *_ = lines = recipe.table(two).splitlines()
    body = [*lines[2:], *recipe.table(three, num_classes=3).splitlines()[2:]]
    body += recipe.table(LABELS, task="multilabel").splitlines()[2:]
    body += recipe.table(BINARY, task="binary").splitlines()[2:]
    text = f"""# What each loss does

`lossmith.check_recipe(loss)` asks of any loss what a good one should do: bound or approximate the error smoothly, agree with
the expected error where the model is surely right, and grow without bound where it is surely wrong. It feeds batches in which
every target leads its rivals by the same t, of two classes unless the table says otherwise. This is its answer, made by
`make figures`.

{head}
{lines[1]}
{chr(10).join(body)}
"""
    Path(__file__).with_name("recipes.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
