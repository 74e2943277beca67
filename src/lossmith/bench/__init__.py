"""Measures the library against stored values and beside other software."""
