"""How compiled code runs: compilation, threads, choice of a kernel. Knows no mathematics."""
