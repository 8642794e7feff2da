"""The kinds of characters that the GPT-2 pattern tells apart."""

import numpy as np
import numpy.typing as npt
import regex

from lm.tokenizer.layout import LETTER, NUM_CHARACTERS, NUMBER, OTHER, SPACE


def character_kinds() -> npt.NDArray[np.uint8]:
    """Kind by code point, of the `regex` package's own categories: (NUM_CHARACTERS,)."""
    kinds = np.full(NUM_CHARACTERS, OTHER, np.uint8)
    everything = "".join(map(chr, range(NUM_CHARACTERS)))
    for pattern, kind in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE)):
        for match in regex.finditer(pattern, everything):
            kinds[match.start() : match.end()] = kind
    return kinds
