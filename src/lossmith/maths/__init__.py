"""Mathematics without the library: special functions, scans, the q-logarithm."""
