"""Training on large texts by compiled code; gives exactly what `lm.tokenizer.train` defines in plain Python."""

from pathlib import Path

from tqdm import tqdm

from lm.tokenizer.counting import count_files
from lm.tokenizer.merging import merge_words
from lm.tokenizer.pretokenize import COUNTS, Errors, SpecialTokens


def train(
    paths: list[Path],
    tokens: list[bytes],
    vocab_size: int,
    specials: SpecialTokens,
    num_threads: int,
    progress: bool,
    errors: Errors,
) -> list[tuple[bytes, bytes]]:
    """Count texts, add files of counts, and merge until there are vocab_size tokens or no pairs.

    Adds to `tokens` and returns the merges.

    Raises:
        ValueError: a text is not UTF-8, or a file of counts does not fit.
    """
    texts = [path for path in paths if path.suffix != COUNTS]
    counts = count_files(texts, specials, num_threads, progress, errors=errors)
    for path in paths:
        if path.suffix == COUNTS:
            counts.load(path, specials.tokens)
    wanted = vocab_size - len(tokens)
    with tqdm(total=wanted, desc="merging", unit="merge", disable=not progress) as bar:
        pairs = merge_words(*counts.words(), len(tokens), wanted, bar.update)
    merges = []
    for left, right in pairs.tolist():
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return merges
