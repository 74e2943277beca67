"""Sums over all pairs of scores: expected AUC, average precision."""
