"""The merges of unique words, without hash tables.

Each position of the words knows the index of the pair that begins there. A pair's occurrences are listed once: when
its newer token comes into being. Which pairs a merge brings forth is found by two arrays over tokens, one for the
neighbour on the left and one for that on the right. Only pairs whose count reaches a falling threshold are in the
heap. Arrays that grow come with room for at least one merge more; `merge_words` returns when that is used up.
"""

from typing import Any

import numpy as np

from lm.tokenizer.kernels.bits import U, inline, kernel
from lm.tokenizer.layout import (
    ABOVE,
    FALL,
    FIRST_FALL,
    HEAP,
    LISTED,
    MERGED,
    NONE,
    NUM_BYTES,
    PAIRS,
    REFILL,
    THRESHOLD,
    WANTED_HEAP,
    WANTED_LISTS,
    WANTED_PAIRS,
    WANTED_TEXT,
)


@inline
def compare(a: Any, b: Any, arena: Any, starts: Any) -> Any:
    """1, 0 or -1 as token a's bytes are greater than, equal to or less than token b's."""
    if a == b:
        return 0
    size_a, size_b = starts[U(a + 1)] - starts[U(a)], starts[U(b + 1)] - starts[U(b)]
    for offset in range(min(size_a, size_b)):
        byte_a, byte_b = arena[U(starts[U(a)] + offset)], arena[U(starts[U(b)] + offset)]
        if byte_a != byte_b:
            return 1 if byte_a > byte_b else -1
    return 1 if size_a > size_b else -1


@inline
def comes_before(
    count: Any, pair: Any, other_count: Any, other: Any, lefts: Any, rights: Any, arena: Any, starts: Any
) -> Any:
    """Whether a pair is merged before another: the greater count, then the greater pair of byte strings."""
    if count != other_count:
        return count > other_count
    order = compare(lefts[U(pair)], lefts[U(other)], arena, starts)
    if order == 0:
        order = compare(rights[U(pair)], rights[U(other)], arena, starts)
    return order > 0


@inline
def sift_up(
    i: Any, count: Any, pair: Any, heap_counts: Any, heap_pairs: Any, lefts: Any, rights: Any, arena: Any, starts: Any
) -> None:
    """Put an entry into the heap's free place i, or where it belongs above."""
    while i > 0:
        parent = (i - 1) >> 1
        above, above_pair = heap_counts[U(parent)], heap_pairs[U(parent)]
        if not comes_before(count, pair, above, above_pair, lefts, rights, arena, starts):
            break
        heap_counts[U(i)], heap_pairs[U(i)] = above, above_pair
        i = parent
    heap_counts[U(i)], heap_pairs[U(i)] = count, pair


@inline
def sift_down(
    size: Any, count: Any, pair: Any, heap_counts: Any, heap_pairs: Any, lefts: Any, rights: Any, arena: Any,
    starts: Any,
) -> None:  # fmt: skip
    """Put an entry into the heap's free top, or where it belongs below."""
    i = np.int64(0)
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        below, below_pair = heap_counts[U(child)], heap_pairs[U(child)]
        if child + 1 < size:
            count_2, pair_2 = heap_counts[U(child + 1)], heap_pairs[U(child + 1)]
            if comes_before(count_2, pair_2, below, below_pair, lefts, rights, arena, starts):
                child, below, below_pair = child + 1, count_2, pair_2
        if not comes_before(below, below_pair, count, pair, lefts, rights, arena, starts):
            break
        heap_counts[U(i)], heap_pairs[U(i)] = below, below_pair
        i = child
    heap_counts[U(i)], heap_pairs[U(i)] = count, pair


@kernel("int64(uint8[::1], int64[::1], int32[::1], int32[::1], int32[::1])")
def place_words(flat: Any, word_starts: Any, token_at: Any, pair_at: Any, word_at: Any) -> Any:
    """Write the words' bytes, each word apart by an empty position, as the first tokens."""
    at = np.int64(1)
    token_at[0] = pair_at[0] = NONE
    for word in range(word_starts.size - 1):
        for i in range(word_starts[U(word)], word_starts[U(word + 1)]):
            token_at[U(at)] = flat[U(i)]
            word_at[U(at)] = word
            pair_at[U(at)] = NONE
            at += 1
        token_at[U(at)] = pair_at[U(at)] = NONE
        at += 1
    return at


@kernel(
    "int64(int32[::1], int32[::1], int32[::1], uint64[::1], int32[::1], int32[::1], int32[::1], int64[::1], "
    "int64[::1], int64[::1], int32[::1], int64[::1])"
)
def list_pairs(
    token_at: Any, pair_at: Any, word_at: Any, counts: Any, pair_of_bytes: Any, lefts: Any, rights: Any,
    pair_counts: Any, listed: Any, list_starts: Any, lists: Any, state: Any,
) -> Any:  # fmt: skip
    """The pairs of bytes: their counts, and the lists of where they occur."""
    last = token_at.size - 1
    num_pairs = np.int64(0)
    for at in range(1, last):
        left, right = token_at[U(at)], token_at[U(at + 1)]
        if left == NONE or right == NONE:
            continue
        key = left * NUM_BYTES + right
        if pair_of_bytes[U(key)] == NONE:
            pair_of_bytes[U(key)] = num_pairs
            lefts[U(num_pairs)], rights[U(num_pairs)] = left, right
            num_pairs += 1
        pair = pair_of_bytes[U(key)]
        pair_at[U(at)] = pair
        pair_counts[U(pair)] += np.int64(counts[U(word_at[U(at)])])
        listed[U(pair)] += 1
    num_listed = np.int64(0)
    most = np.int64(0)
    for pair in range(num_pairs):
        list_starts[U(pair)] = num_listed
        num_listed += listed[U(pair)]
        listed[U(pair)] = 0
        most = max(most, pair_counts[U(pair)])
    for at in range(1, last):
        pair = pair_at[U(at)]
        if pair != NONE:
            lists[U(list_starts[U(pair)] + listed[U(pair)])] = at
            listed[U(pair)] += 1
    state[PAIRS], state[LISTED] = num_pairs, num_listed
    state[ABOVE], state[THRESHOLD], state[REFILL] = most + 1, max(np.int64(1), most // FIRST_FALL), 1
    return num_pairs


@kernel(
    "int64(int64, int64, int32[::1], int32[::1], int32[::1], uint64[::1], int32[::1], int32[::1], int64[::1], "
    "int64[::1], int64[::1], int32[::1], int64[::1], int32[::1], int32[::1], int32[::1], int32[::1], int32[::1], "
    "int64[::1], uint8[::1], int32[::1], int64[::1])"
)
def merge_words(
    first_product: Any, stop: Any, token_at: Any, pair_at: Any, word_at: Any, counts: Any, lefts: Any, rights: Any,
    pair_counts: Any, listed: Any, list_starts: Any, lists: Any, heap_counts: Any, heap_pairs: Any, pair_left: Any,
    pair_right: Any, new_at: Any, new_pair: Any, starts: Any, arena: Any, merges: Any, state: Any,
) -> Any:  # fmt: skip
    """Merge until there are `stop` merges or no more pairs, as far as there is room; returns how many there are.

    A token is written at the first and at the last of its positions, so that both neighbours of a pair are found;
    `pair_at` holds the pair that begins at a token's first position.
    """
    num_merged, num_pairs, num_listed, heap_size = state[MERGED], state[PAIRS], state[LISTED], state[HEAP]
    above, threshold, refill = state[ABOVE], state[THRESHOLD], state[REFILL]
    state[WANTED_PAIRS] = state[WANTED_LISTS] = state[WANTED_HEAP] = state[WANTED_TEXT] = 0
    while num_merged < stop:
        if refill:
            if heap_size + num_pairs > heap_counts.size:
                state[WANTED_HEAP] = heap_size + num_pairs
                break
            for pair in range(num_pairs):
                count = pair_counts[U(pair)]
                if threshold <= count < above:
                    sift_up(heap_size, count, pair, heap_counts, heap_pairs, lefts, rights, arena, starts)
                    heap_size += 1
            refill = np.int64(0)
        if heap_size == 0:
            if threshold == 1:
                break
            above, threshold, refill = threshold, max(np.int64(1), threshold // FALL), np.int64(1)
            continue
        pair = np.int64(heap_pairs[0])
        count = pair_counts[U(pair)]
        current = heap_counts[0] == count
        if not current and count >= threshold:
            # Counts only fall, so an entry is never too low; one that is too high goes back to its place.
            sift_down(heap_size, count, pair, heap_counts, heap_pairs, lefts, rights, arena, starts)
            continue
        a, b, product = np.int64(lefts[U(pair)]), np.int64(rights[U(pair)]), first_product + num_merged
        size_a, size_b = starts[U(a + 1)] - starts[U(a)], starts[U(b + 1)] - starts[U(b)]
        begin = starts[U(product)]
        if current:
            most_new = 2 * listed[U(pair)]
            if (
                num_pairs + most_new > lefts.size
                or num_listed + most_new > lists.size
                or heap_size + most_new > heap_counts.size
                or most_new > new_at.size
                or begin + size_a + size_b > arena.size
            ):
                state[WANTED_PAIRS], state[WANTED_LISTS] = num_pairs + most_new, num_listed + most_new
                state[WANTED_HEAP], state[WANTED_TEXT] = heap_size + most_new, begin + size_a + size_b
                break
        heap_size -= 1
        sift_down(
            heap_size, heap_counts[U(heap_size)], heap_pairs[U(heap_size)],
            heap_counts, heap_pairs, lefts, rights, arena, starts,
        )  # fmt: skip
        if not current:
            continue
        merges[U(2 * num_merged)], merges[U(2 * num_merged + 1)] = a, b
        num_merged += 1
        for offset in range(size_a):
            arena[U(begin + offset)] = arena[U(starts[U(a)] + offset)]
        for offset in range(size_b):
            arena[U(begin + size_a + offset)] = arena[U(starts[U(b)] + offset)]
        starts[U(product + 1)] = begin + size_a + size_b

        first_new, num_new = num_pairs, np.int64(0)
        for i in range(list_starts[U(pair)], list_starts[U(pair)] + listed[U(pair)]):
            at = np.int64(lists[U(i)])
            if pair_at[U(at)] != pair:
                continue  # another merge took one of its tokens
            second, after = at + size_a, at + size_a + size_b
            weight = np.int64(counts[U(word_at[U(at)])])
            before = np.int64(token_at[U(at - 1)])
            if before != NONE:
                place = at - (starts[U(before + 1)] - starts[U(before)])
                made = np.int64(pair_left[U(before)])
                if made == NONE:
                    made = num_pairs
                    pair_left[U(before)] = made
                    lefts[U(made)], rights[U(made)] = before, product
                    pair_counts[U(made)] = listed[U(made)] = 0
                    num_pairs += 1
                pair_counts[U(pair_at[U(place)])] -= weight
                pair_counts[U(made)] += weight
                listed[U(made)] += 1
                pair_at[U(place)] = made
                new_at[U(num_new)], new_pair[U(num_new)] = place, made
                num_new += 1
            follower = np.int64(token_at[U(after)])
            made = np.int64(NONE)
            if follower != NONE:
                made = np.int64(pair_right[U(follower)])
                if made == NONE:
                    made = num_pairs
                    pair_right[U(follower)] = made
                    lefts[U(made)], rights[U(made)] = product, follower
                    pair_counts[U(made)] = listed[U(made)] = 0
                    num_pairs += 1
                pair_counts[U(pair_at[U(second)])] -= weight
                pair_counts[U(made)] += weight
                listed[U(made)] += 1
                new_at[U(num_new)], new_pair[U(num_new)] = at, made
                num_new += 1
            pair_at[U(at)] = made
            pair_at[U(second)] = NONE
            token_at[U(at)] = token_at[U(after - 1)] = product
        pair_counts[U(pair)] = 0

        for made in range(first_new, num_pairs):
            list_starts[U(made)] = num_listed
            num_listed += listed[U(made)]
            listed[U(made)] = 0
        for i in range(num_new):
            made = np.int64(new_pair[U(i)])
            lists[U(list_starts[U(made)] + listed[U(made)])] = new_at[U(i)]
            listed[U(made)] += 1
        for made in range(first_new, num_pairs):
            pair_left[U(lefts[U(made)])] = pair_right[U(rights[U(made)])] = NONE
            if pair_counts[U(made)] >= threshold:
                sift_up(heap_size, pair_counts[U(made)], made, heap_counts, heap_pairs, lefts, rights, arena, starts)
                heap_size += 1
    state[MERGED], state[PAIRS], state[LISTED], state[HEAP] = num_merged, num_pairs, num_listed, heap_size
    state[ABOVE], state[THRESHOLD], state[REFILL] = above, threshold, refill
    return num_merged
