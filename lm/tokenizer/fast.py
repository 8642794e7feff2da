"""Training on large texts by compiled code; gives exactly what `lm.tokenizer.train` defines in plain Python."""

from pathlib import Path
from threading import Lock

from tqdm import tqdm

from lm.tokenizer.counting import SPANS_A_THREAD, count_spans
from lm.tokenizer.merging import merge_words
from lm.tokenizer.pretokenize import SPAN, SpecialTokens


def train(
    paths: list[Path], tokens: list[bytes], vocab_size: int, specials: SpecialTokens, num_threads: int, progress: bool
) -> list[tuple[bytes, bytes]]:
    """Count and merge until there are vocab_size tokens or no pairs; adds to `tokens` and returns the merges.

    Raises:
        ValueError: a file is not UTF-8.
    """
    total = sum(path.stat().st_size for path in paths)
    size = max(SPAN, total // (num_threads * SPANS_A_THREAD))
    spans = [span for path in paths for span in specials.spans(path, size)]
    lock = Lock()
    with tqdm(total=total, desc="counting", unit="B", unit_scale=True, disable=not progress) as bar:

        def advance(num_bytes: int) -> None:
            with lock:
                bar.update(num_bytes)

        words = count_spans(spans, specials.tokens, num_threads, advance).words()
    wanted = vocab_size - len(tokens)
    with tqdm(total=wanted, desc="merging", unit="merge", disable=not progress) as bar:
        pairs = merge_words(*words, len(tokens), wanted, bar.update)
    merges = []
    for left, right in pairs.tolist():
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return merges
