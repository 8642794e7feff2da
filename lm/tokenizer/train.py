"""The BPE trainer (Sennrich et al. 2016, on bytes as in GPT-2), with incremental pair counts."""

import heapq
import logging
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from lm.tokenizer.layout import LOAD_FROM
from lm.tokenizer.pretokenize import (
    COUNTS,
    PRE_TOKEN,
    Errors,
    Span,
    SpecialTokens,
    checked_workers,
    read_text,
    text_file,
)

log = logging.getLogger("lm")

Pair = tuple[int, int]
NUM_BYTES = 256
_COMPLEMENT = bytes(range(255, -1, -1))


def train_bpe(
    input_path: str | Path | list[str | Path] | list[str] | list[Path],
    vocab_size: int,
    special_tokens: list[str],
    num_workers: int | None = None,
    progress: bool = False,
    errors: Errors = "strict",
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Train a byte-level BPE tokenizer.

    The most frequent pair of tokens within pre-tokens is merged first; of equally frequent ones the lexicographically
    greater pair of byte strings. Special tokens split the text and are not counted.

    Args:
        input_path: a UTF-8 text file, or several; each is a document border. Files that end in .counts hold counted
            pre-tokens of others (command `count`) and are added.
        vocab_size: 256 bytes, the special tokens and the merges together.
        special_tokens: each gets an id and is never merged.
        num_workers: threads that count the pre-tokens of large texts; by default one a core.
        progress: show a bar for counting and one for merging.
        errors: strict refuses bytes that are not UTF-8; replace puts U+FFFD in their place.

    Returns:
        vocab: id to bytes: 0 to 255 the bytes, then the special tokens as given, then the merges in order.
        merges: the pairs, first merged first. Fewer than asked for, with a warning, if the text has no more pairs.

    Raises:
        ValueError: vocab_size is too small, a special token is empty, doubled or one byte long, or a file is not UTF-8.
        FileNotFoundError: there is no such file.
    """
    specials = SpecialTokens(special_tokens)
    smallest = NUM_BYTES + len(special_tokens)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but 256 bytes and {len(special_tokens)} special tokens need "
            f"at least {smallest}; raise it"
        )
    for token in special_tokens:
        if len(token.encode()) == 1:
            raise ValueError(f"special token {token!r} is a single byte, which has an id already; make it longer")
    paths = [text_file(path) for path in (input_path if isinstance(input_path, list) else [input_path])]
    tokens = [bytes([byte]) for byte in range(NUM_BYTES)] + [token.encode() for token in special_tokens]
    num_threads = checked_workers(num_workers)
    if any(path.suffix == COUNTS for path in paths) or _is_fast(sum(path.stat().st_size for path in paths)):
        from lm.tokenizer.fast import train

        merges = train(paths, tokens, vocab_size, specials, num_threads, progress, errors)
    else:
        counts = _count_pre_tokens(paths, specials, progress, errors)
        merges = _merge(counts, tokens, vocab_size, progress)
    if len(tokens) < vocab_size:
        log.warning("the text has no more pairs to merge: asked for %d tokens, reached %d", vocab_size, len(tokens))
    return dict(enumerate(tokens)), merges


def _is_fast(num_bytes: int) -> bool:
    """Whether compiled code is at hand for so much text, or worth being compiled."""
    if num_bytes < LOAD_FROM:
        return False
    from lm.tokenizer import native

    return native.ready(num_bytes)


def _count_pre_tokens(paths: list[Path], specials: SpecialTokens, progress: bool, errors: Errors) -> Counter[str]:
    from tqdm import tqdm  # not to encode a sentence

    counts: Counter[str] = Counter()
    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, desc="counting", unit="B", unit_scale=True, disable=not progress) as bar:
        for path in paths:
            for piece in specials.stream(read_text(Span(path, 0, path.stat().st_size), errors)):
                for text in specials.split(piece)[::2]:
                    counts.update(PRE_TOKEN.findall(text))
                bar.update(len(piece.encode()))
    return counts


def _merge(counts: Counter[str], tokens: list[bytes], vocab_size: int, progress: bool) -> list[tuple[bytes, bytes]]:
    """Merge until there are vocab_size tokens or no pairs; adds to `tokens` and returns the merges."""
    from tqdm import tqdm

    words = [list(pre_token.encode()) for pre_token in counts]
    frequencies = list(counts.values())
    pair_counts: defaultdict[Pair, int] = defaultdict(int)
    # Words that hold a pair, or did: looking at one in vain does no harm.
    pair_words: defaultdict[Pair, list[int]] = defaultdict(list)
    for index, (word, frequency) in enumerate(zip(words, frequencies, strict=True)):
        for pair in pairwise(word):
            pair_counts[pair] += frequency
        for pair in set(pairwise(word)):
            pair_words[pair].append(index)

    keys = [_descending(token) for token in tokens]
    # Old counts only fall while merging, so an entry of the heap is never too low: one that is out of date
    # goes back with its present count when it comes to the top. Pairs with a new token get an entry at once.
    heap = [(-count, keys[a], keys[b], (a, b)) for (a, b), count in pair_counts.items()]
    heapq.heapify(heap)
    merges: list[tuple[bytes, bytes]] = []
    with tqdm(total=vocab_size - len(tokens), desc="merging", unit="merge", disable=not progress) as bar:
        while heap and len(tokens) < vocab_size:
            entry = heapq.heappop(heap)
            pair = entry[3]
            count = pair_counts.get(pair, 0)
            if count != -entry[0]:
                if count:
                    heapq.heappush(heap, (-count, *entry[1:]))
                continue
            left, right = tokens[pair[0]], tokens[pair[1]]
            merges.append((left, right))
            # Always a new token: equal bytes between the same borders have gone through the same merges.
            product = len(tokens)
            tokens.append(left + right)
            keys.append(_descending(left + right))
            bar.update()
            changed: set[Pair] = set()
            for index in pair_words.pop(pair):
                word = _merge_word(words[index], pair, product, frequencies[index], pair_counts, changed)
                if len(word) < len(words[index]):
                    words[index] = word
                    for new_pair in set(pairwise(word)):
                        if product in new_pair:
                            pair_words[new_pair].append(index)
            pair_counts.pop(pair, None)
            for a, b in changed:
                if pair_counts[a, b]:
                    heapq.heappush(heap, (-pair_counts[a, b], keys[a], keys[b], (a, b)))
    return merges


def _merge_word(
    word: list[int], pair: Pair, product: int, frequency: int, pair_counts: defaultdict[Pair, int], changed: set[Pair]
) -> list[int]:
    """The word with every occurrence of the pair replaced; keeps the counts, and notes the pairs that gained."""
    a, b = pair
    merged: list[int] = []
    position, last = 0, len(word) - 1
    while position <= last:
        if position < last and word[position] == a and word[position + 1] == b:
            if merged:
                pair_counts[merged[-1], a] -= frequency
                pair_counts[merged[-1], product] += frequency
                changed.add((merged[-1], product))
            if position + 1 < last:
                follower = word[position + 2]
                pair_counts[b, follower] -= frequency
                pair_counts[product, follower] += frequency
                changed.add((product, follower))
            merged.append(product)
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged


def _descending(token: bytes) -> str:
    """A key that sorts tokens from the greatest to the least, for a heap that yields the least key first.

    The bytes' complements, and an end above them all, as of two tokens that begin alike the longer is the greater.
    """
    return token.translate(_COMPLEMENT).decode("latin-1") + "\u0100"
