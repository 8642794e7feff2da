"""The merges of unique words, compiled and without hash tables.

Each position of the words knows the index of the pair that begins there. A pair's occurrences are listed once: when
its newer token comes into being. Which pairs a merge brings forth is found by two arrays over tokens, one for the
neighbour on the left and one for that on the right. Only pairs whose count reaches a falling threshold are in the
heap.
"""

from typing import Any

import numpy as np

from lm.tokenizer.compiled import jit

NONE = -1
FALL = 4  # the threshold falls by this factor whenever the heap is empty
FIRST_FALL = 64  # and starts so far below the largest count
NUM_BYTES = 256


@jit
def compare(a: Any, b: Any, arena: Any, starts: Any) -> Any:
    """1, 0 or -1 as token a's bytes are greater than, equal to or less than token b's."""
    if a == b:
        return 0
    size_a, size_b = starts[a + 1] - starts[a], starts[b + 1] - starts[b]
    for offset in range(min(size_a, size_b)):
        byte_a, byte_b = arena[starts[a] + offset], arena[starts[b] + offset]
        if byte_a != byte_b:
            return 1 if byte_a > byte_b else -1
    return 1 if size_a > size_b else -1


@jit
def comes_before(
    i: Any, j: Any, heap_counts: Any, heap_pairs: Any, lefts: Any, rights: Any, arena: Any, starts: Any
) -> Any:
    """Whether the heap's entry i is merged before entry j: the greater count, then the greater pair of byte strings."""
    if heap_counts[i] != heap_counts[j]:
        return heap_counts[i] > heap_counts[j]
    a, b = heap_pairs[i], heap_pairs[j]
    order = compare(lefts[a], lefts[b], arena, starts)
    if order == 0:
        order = compare(rights[a], rights[b], arena, starts)
    return order > 0


@jit
def swap(array: Any, i: Any, j: Any) -> None:
    kept = array[i]
    array[i] = array[j]
    array[j] = kept


@jit
def sift_up(i: Any, heap_counts: Any, heap_pairs: Any, lefts: Any, rights: Any, arena: Any, starts: Any) -> None:
    while i > 0:
        parent = (i - 1) >> 1
        if not comes_before(i, parent, heap_counts, heap_pairs, lefts, rights, arena, starts):
            return
        swap(heap_counts, i, parent)
        swap(heap_pairs, i, parent)
        i = parent


@jit
def sift_down(size: Any, heap_counts: Any, heap_pairs: Any, lefts: Any, rights: Any, arena: Any, starts: Any) -> None:
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        if child + 1 < size and comes_before(child + 1, child, heap_counts, heap_pairs, lefts, rights, arena, starts):
            child += 1
        if not comes_before(child, i, heap_counts, heap_pairs, lefts, rights, arena, starts):
            return
        swap(heap_counts, i, child)
        swap(heap_pairs, i, child)
        i = child


@jit
def grown(array: Any, size: Any) -> Any:
    """The array, or a copy with room for `size` elements and half as many again."""
    if size <= array.size:
        return array
    longer = np.empty(size + size // 2, array.dtype)
    longer[: array.size] = array
    return longer


@jit
def merge_words(flat: Any, word_starts: Any, counts: Any, first_product: Any, num_merges: Any) -> Any:
    """Pairs of ids in the order in which they are merged, (M, 2); the bytes are 0 to 255.

    `first_product` is the id of the first merge's token. Fewer than `num_merges` if the words have no more pairs.
    """
    # Words stand apart by an empty position. A token is written at the first and at the last of its positions, so that
    # both neighbours of a pair are found; `pair_at` holds the pair that begins at a token's first position.
    num_positions = flat.size + counts.size + 1
    token_at = np.full(num_positions, NONE, np.int32)
    pair_at = np.full(num_positions, NONE, np.int32)
    word_at = np.empty(num_positions, np.int32)
    at = 1
    for word in range(counts.size):
        for i in range(word_starts[word], word_starts[word + 1]):
            token_at[at] = flat[i]
            word_at[at] = word
            at += 1
        at += 1

    lefts, rights = np.empty(1 << 16, np.int32), np.empty(1 << 16, np.int32)
    pair_counts, listed, list_starts = (
        np.zeros(1 << 16, np.int64),
        np.zeros(1 << 16, np.int64),
        np.empty(1 << 16, np.int64),
    )
    num_pairs = 0
    pair_of_bytes = np.full(NUM_BYTES * NUM_BYTES, NONE, np.int32)
    for at in range(1, num_positions - 1):
        if token_at[at] == NONE or token_at[at + 1] == NONE:
            continue
        key = token_at[at] * NUM_BYTES + token_at[at + 1]
        if pair_of_bytes[key] == NONE:
            pair_of_bytes[key] = num_pairs
            lefts[num_pairs], rights[num_pairs] = token_at[at], token_at[at + 1]
            num_pairs += 1
        pair = pair_of_bytes[key]
        pair_at[at] = pair
        pair_counts[pair] += counts[word_at[at]]
        listed[pair] += 1
    num_listed = 0
    for pair in range(num_pairs):
        list_starts[pair] = num_listed
        num_listed += listed[pair]
        listed[pair] = 0
    lists = np.empty(num_listed + num_listed // 2, np.int32)
    for at in range(1, num_positions - 1):
        pair = pair_at[at]
        if pair != NONE:
            lists[list_starts[pair] + listed[pair]] = at
            listed[pair] += 1

    num_tokens = first_product + num_merges
    starts = np.empty(num_tokens + 1, np.int64)
    arena = np.empty(1 << 16, np.uint8)
    for token in range(first_product + 1):
        starts[token] = min(token, NUM_BYTES)
    for token in range(NUM_BYTES):
        arena[token] = token

    heap_counts, heap_pairs = np.empty(1 << 16, np.int64), np.empty(1 << 16, np.int32)
    heap_size = 0
    above = np.int64(1) << 62  # pairs with counts from here on have been in the heap
    threshold = max(np.int64(1), pair_counts.max() // FIRST_FALL)
    pair_left, pair_right = np.full(num_tokens, NONE, np.int32), np.full(num_tokens, NONE, np.int32)
    new_at, new_pair = np.empty(1024, np.int32), np.empty(1024, np.int32)
    merges = np.empty((num_merges, 2), np.int32)
    num_merged = 0
    refill = True
    while num_merged < num_merges:
        if refill:
            for pair in range(num_pairs):
                if threshold <= pair_counts[pair] < above:
                    heap_counts, heap_pairs = grown(heap_counts, heap_size + 1), grown(heap_pairs, heap_size + 1)
                    heap_counts[heap_size], heap_pairs[heap_size] = pair_counts[pair], pair
                    sift_up(heap_size, heap_counts, heap_pairs, lefts, rights, arena, starts)
                    heap_size += 1
            refill = False
        if heap_size == 0:
            if threshold == 1:
                break
            above, threshold = threshold, max(np.int64(1), threshold // FALL)
            refill = True
            continue
        pair = heap_pairs[0]
        current = heap_counts[0] == pair_counts[pair]
        if not current and pair_counts[pair] >= threshold:
            # Counts only fall, so an entry is never too low; one that is too high goes back to its place.
            heap_counts[0] = pair_counts[pair]
        else:
            heap_size -= 1
            heap_counts[0], heap_pairs[0] = heap_counts[heap_size], heap_pairs[heap_size]
        sift_down(heap_size, heap_counts, heap_pairs, lefts, rights, arena, starts)
        if not current:
            continue

        a, b, product = lefts[pair], rights[pair], first_product + num_merged
        merges[num_merged, 0], merges[num_merged, 1] = a, b
        num_merged += 1
        size_a, size_b = starts[a + 1] - starts[a], starts[b + 1] - starts[b]
        middle = starts[product] + size_a
        starts[product + 1] = middle + size_b
        arena = grown(arena, middle + size_b)
        arena[starts[product] : middle] = arena[starts[a] : starts[a + 1]]
        arena[middle : middle + size_b] = arena[starts[b] : starts[b + 1]]

        first_new, num_new = num_pairs, 0
        for i in range(list_starts[pair], list_starts[pair] + listed[pair]):
            at = lists[i]
            if pair_at[at] != pair:
                continue  # another merge took one of its tokens
            second, after = at + size_a, at + size_a + size_b
            count = counts[word_at[at]]
            new_at, new_pair = grown(new_at, num_new + 2), grown(new_pair, num_new + 2)
            lefts, rights = grown(lefts, num_pairs + 2), grown(rights, num_pairs + 2)
            pair_counts, listed = grown(pair_counts, num_pairs + 2), grown(listed, num_pairs + 2)
            before = token_at[at - 1]
            if before != NONE:
                place = at - (starts[before + 1] - starts[before])
                if pair_left[before] == NONE:
                    pair_left[before] = num_pairs
                    lefts[num_pairs], rights[num_pairs] = before, product
                    pair_counts[num_pairs] = listed[num_pairs] = 0
                    num_pairs += 1
                made = pair_left[before]
                pair_counts[pair_at[place]] -= count
                pair_counts[made] += count
                listed[made] += 1
                pair_at[place] = made
                new_at[num_new], new_pair[num_new] = place, made
                num_new += 1
            follower = token_at[after]
            pair_at[at] = NONE
            if follower != NONE:
                if pair_right[follower] == NONE:
                    pair_right[follower] = num_pairs
                    lefts[num_pairs], rights[num_pairs] = product, follower
                    pair_counts[num_pairs] = listed[num_pairs] = 0
                    num_pairs += 1
                made = pair_right[follower]
                pair_counts[pair_at[second]] -= count
                pair_counts[made] += count
                listed[made] += 1
                pair_at[at] = made
                new_at[num_new], new_pair[num_new] = at, made
                num_new += 1
            pair_at[second] = NONE
            token_at[at] = token_at[after - 1] = product
        pair_counts[pair] = 0

        list_starts = grown(list_starts, num_pairs)
        lists = grown(lists, num_listed + num_new)
        for made in range(first_new, num_pairs):
            list_starts[made] = num_listed
            num_listed += listed[made]
            listed[made] = 0
        for i in range(num_new):
            made = new_pair[i]
            lists[list_starts[made] + listed[made]] = new_at[i]
            listed[made] += 1
        for made in range(first_new, num_pairs):
            pair_left[lefts[made]] = pair_right[rights[made]] = NONE
            if pair_counts[made] >= threshold:
                heap_counts, heap_pairs = grown(heap_counts, heap_size + 1), grown(heap_pairs, heap_size + 1)
                heap_counts[heap_size], heap_pairs[heap_size] = pair_counts[made], made
                sift_up(heap_size, heap_counts, heap_pairs, lefts, rights, arena, starts)
                heap_size += 1
    return merges[:num_merged]
