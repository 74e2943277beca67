"""Studies: each a grid and a page."""
