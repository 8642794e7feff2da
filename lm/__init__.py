"""lm: a small language model's whole life, from raw text to stories."""

__version__ = "0.1.0"
