"""Studies over many runs, and reports on them."""
