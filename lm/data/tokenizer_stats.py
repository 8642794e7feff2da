"""What a tokenizer makes of a text: the write-up's tokenizer experiments."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lm.data.encode import encode_file
from lm.tokenizer import Tokenizer, files
from lm.tokenizer.pretokenize import text_file

PILE_BYTES = 825 * 10**9  # Gao et al. 2020; the write-up asks how long it takes
LONGEST = 5


def statistics(texts: list[Path], folder: Path) -> list[dict[str, Any]]:
    """For each tokenizer of a folder (or that it holds itself): its longest tokens, and for each text bytes per token,
    MB/s and hours for The Pile.

    Encodes every text once with every tokenizer, by all cores; the token files are thrown away.

    Raises:
        FileNotFoundError, ValueError: a text or a tokenizer is missing or damaged.
    """
    found: list[dict[str, Any]] = []
    folders = sorted(path.parent for path in folder.glob(f"*/{files.VOCAB}"))
    if (folder / files.VOCAB).exists():
        folders = [folder]
    if not folders:
        raise FileNotFoundError(f"there is no tokenizer in {folder}; train one with `train-tokenizer`")
    for folder in folders:
        tokenizer = Tokenizer.from_folder(folder)
        special = set(tokenizer.special_ids.values())
        ordinary = [token for id_, token in tokenizer.vocab.items() if id_ not in special]
        longest = sorted(ordinary, key=len, reverse=True)[:LONGEST]
        for text in texts:
            size = text_file(text).stat().st_size
            tokenizer.encoders(size)  # loading is not encoding
            with TemporaryDirectory() as temporary:
                start = time.perf_counter()
                encoded = encode_file(tokenizer, text, Path(temporary) / "ids.npy", progress=True)
                seconds = time.perf_counter() - start
            found.append(
                {
                    "tokenizer": str(folder),
                    "vocab_size": tokenizer.vocab_size,
                    "text": str(text),
                    "bytes": size,
                    "tokens": encoded.tokens,
                    "bytes_per_token": encoded.bytes / max(encoded.tokens, 1),
                    "megabytes_per_second": size / seconds / 1e6,
                    "hours_for_the_pile": PILE_BYTES / (size / seconds) / 3600,
                    "longest_tokens": [token.decode(errors="replace") for token in longest],
                }
            )
    return found


def as_table(found: list[dict[str, Any]]) -> str:
    """What `statistics` found, for a terminal."""
    header = ["tokenizer", "ids", "text", "bytes/token", "MB/s", "The Pile, h"]
    rows = [
        [
            row["tokenizer"], f"{row['vocab_size']:,}", row["text"], f"{row['bytes_per_token']:.3f}",
            f"{row['megabytes_per_second']:.0f}", f"{row['hours_for_the_pile']:.2f}",
        ]
        for row in found
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(map(str.ljust, line, widths)) for line in [header, *rows]]
    longest = {row["tokenizer"]: row["longest_tokens"] for row in found}
    lines += [f"longest tokens of {name}: {', '.join(map(repr, tokens))}" for name, tokens in longest.items()]
    return "\n".join(line.rstrip() for line in lines)
