"""The commands that are plain functions; their signatures are their options (see cli.py)."""
