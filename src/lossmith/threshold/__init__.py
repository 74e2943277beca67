"""The engine: a metric of the noisy classifier as one integral over a threshold."""
