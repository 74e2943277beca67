"""P(the target wins) for float32 rows, compiled: for the CPU by numba, for GPUs by Triton."""
