"""Byte-level BPE: training, encoding and decoding, and the files that hold a tokenizer."""

from lm.tokenizer.bpe import Tokenizer
from lm.tokenizer.pretokenize import END_OF_TEXT
from lm.tokenizer.train import train_bpe

__all__ = ["END_OF_TEXT", "Tokenizer", "train_bpe"]
