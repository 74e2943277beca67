"""Expected AUC on the CPU, compiled by numba."""
