"""Robustness campaigns, run as `python -m checks.NAME`; their results are in docs/robustness_checks.md."""
