"""The merges of unique words by compiled code (lm.tokenizer.kernels.merging), which this gives room and progress."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lm.tokenizer.layout import (
    HEAP,
    LISTED,
    MERGED,
    NONE,
    NUM_BYTES,
    PAIRS,
    WANTED_HEAP,
    WANTED_LISTS,
    WANTED_PAIRS,
    WANTED_TEXT,
)
from lm.tokenizer.native import kernels

FIRST_PAIRS = 1 << 17  # more than there are pairs of bytes
FIRST_HEAP = 1 << 17
FIRST_TEXT = 1 << 16
STEP = 512  # merges between two looks at the progress bar and at Ctrl-C


def merge_words(
    flat: npt.NDArray[np.uint8], word_starts: np.ndarray, counts: np.ndarray, first_product: int, num_merges: int,
    progress: Callable[[int], object],
) -> np.ndarray:  # fmt: skip
    """Pairs of ids in the order in which they are merged, (M, 2); the bytes are 0 to 255.

    Args:
        flat, word_starts, counts: words as bytes in one array, where each begins (and the last ends), and their counts.
        first_product: the id of the first merge's token.
        num_merges: how many are wanted; there are fewer if the words have no more pairs.
        progress: called with a number of further merges.
    """
    num_positions, num_tokens = int(word_starts[-1]) + len(counts) + 1, first_product + num_merges
    token_at, pair_at, word_at = (np.empty(num_positions, np.int32) for _ in range(3))
    kernels().place_words(flat, word_starts, token_at, pair_at, word_at)
    lefts, rights = np.empty(FIRST_PAIRS, np.int32), np.empty(FIRST_PAIRS, np.int32)
    pair_counts, listed = np.zeros(FIRST_PAIRS, np.int64), np.zeros(FIRST_PAIRS, np.int64)
    list_starts = np.empty(FIRST_PAIRS, np.int64)
    lists = np.empty(num_positions + num_positions // 2, np.int32)
    state = np.zeros(16, np.int64)
    kernels().list_pairs(
        token_at, pair_at, word_at, counts, np.full(NUM_BYTES**2, NONE, np.int32), lefts, rights, pair_counts, listed,
        list_starts, lists, state,
    )  # fmt: skip
    heap_counts, heap_pairs = np.empty(FIRST_HEAP, np.int64), np.empty(FIRST_HEAP, np.int32)
    pair_left, pair_right = np.full(num_tokens, NONE, np.int32), np.full(num_tokens, NONE, np.int32)
    new_at, new_pair = np.empty(FIRST_PAIRS, np.int32), np.empty(FIRST_PAIRS, np.int32)
    starts, text = np.empty(num_tokens + 1, np.int64), np.empty(FIRST_TEXT, np.uint8)
    starts[: first_product + 1] = np.minimum(np.arange(first_product + 1), NUM_BYTES)
    text[:NUM_BYTES] = np.arange(NUM_BYTES)
    merges = np.empty(2 * num_merges, np.int32)
    merged = 0
    while merged < num_merges:
        now = kernels().merge_words(
            first_product, min(merged + STEP, num_merges), token_at, pair_at, word_at, counts, lefts, rights,
            pair_counts, listed, list_starts, lists, heap_counts, heap_pairs, pair_left, pair_right, new_at, new_pair,
            starts, text, merges, state,
        )  # fmt: skip
        progress(now - merged)
        if now == merged and not state[[WANTED_PAIRS, WANTED_LISTS, WANTED_HEAP, WANTED_TEXT]].any():
            break
        merged = now
        pairs, listed_now = int(state[PAIRS]), int(state[LISTED])
        more_pairs = int(state[WANTED_PAIRS])
        lefts, rights = _grown(lefts, more_pairs, pairs), _grown(rights, more_pairs, pairs)
        pair_counts, listed = _grown(pair_counts, more_pairs, pairs), _grown(listed, more_pairs, pairs)
        list_starts = _grown(list_starts, more_pairs, pairs)
        new_at, new_pair = _grown(new_at, more_pairs - pairs, 0), _grown(new_pair, more_pairs - pairs, 0)
        lists = _grown(lists, int(state[WANTED_LISTS]), listed_now)
        heap_size, more_heap = int(state[HEAP]), int(state[WANTED_HEAP])
        heap_counts, heap_pairs = _grown(heap_counts, more_heap, heap_size), _grown(heap_pairs, more_heap, heap_size)
        text = _grown(text, int(state[WANTED_TEXT]), int(starts[first_product + merged]))
    return merges[: 2 * int(state[MERGED])].reshape(-1, 2)


def _grown(array: np.ndarray, size: int, used: int) -> np.ndarray:
    """The array, or, if it is shorter than `size`, a longer one with its first `used` elements."""
    if size <= len(array):
        return array
    longer = np.empty(size + size // 2, array.dtype)
    longer[:used] = array[:used]
    return longer
