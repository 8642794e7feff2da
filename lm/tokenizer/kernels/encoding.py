"""Ids of text: pre-tokens met before are looked up, others are merged and remembered."""

from typing import Any

import numpy as np

from lm.tokenizer.kernels.bits import ZERO, U, inline, kernel, store4, store8, trailing_zeros
from lm.tokenizer.kernels.scanner import find_special, run_end, scan
from lm.tokenizer.kernels.tables import (
    MULTIPLIER,
    enter_long,
    enter_short,
    find_long,
    find_short,
    is_full,
    long_slot,
    look_up_batch,
    shift_for,
    short_slot,
)
from lm.tokenizer.layout import (
    ARENA_USED,
    DOCUMENTS,
    ENTRY,
    ID_BITS,
    IN_DOCUMENT,
    INLINE_NARROW,
    INLINE_WIDE,
    LONG_USED,
    LONG_WORD,
    LONGEST_KEPT,
    LONGEST_MERGED,
    LOOK_AHEAD,
    MANY_USED,
    MORE_ROOM,
    MORE_TEXT,
    NO_PAIR,
    NO_RANK,
    OUT_USED,
    RANK_BITS,
    SHORT_USED,
    SPACE,
    STARTS,
    STATUS,
    TEXT_BYTES,
    WORD_END,
)

RANK_MASK = (1 << RANK_BITS) - 1
TAG_SHIFT = U(20)  # of the hash's bits, those that a slot does not show


@inline
def rank_of(pairs: Any, pair_keys: Any, left: Any, right: Any) -> Any:
    """The rank of a pair of ids; NO_RANK if they do not merge."""
    key = U(left) << U(ID_BITS) | U(right)
    hashed = key * MULTIPLIER
    tag = np.int64(hashed >> TAG_SHIFT & U(0xFF))
    mask = pairs.size - 1
    slot = np.int64(hashed >> (U(64) - U(trailing_zeros(U(pairs.size)))))
    while True:
        entry = np.int64(pairs[U(slot)])
        if entry == NO_PAIR:
            return np.int64(NO_RANK)
        rank = entry & RANK_MASK
        if entry >> RANK_BITS == tag and pair_keys[U(rank)] == key:
            return rank
        slot = (slot + 1) & mask


@kernel("int64(int32[::1], int32[::1], int32[::1], uint32[::1], uint64[::1], int32[::1])")
def fill_pairs(lefts: Any, rights: Any, byte_ids: Any, pairs: Any, pair_keys: Any, byte_ranks: Any) -> Any:
    """Enter pairs in the order of their ranks: a byte of the hash with the rank; and the ranks of pairs of bytes."""
    shift = U(64) - U(trailing_zeros(U(pairs.size)))
    mask = pairs.size - 1
    for rank in range(lefts.size):
        key = U(lefts[U(rank)]) << U(ID_BITS) | U(rights[U(rank)])
        hashed = key * MULTIPLIER
        slot = np.int64(hashed >> shift)
        while pairs[U(slot)] != NO_PAIR:
            slot = (slot + 1) & mask
        pair_keys[U(rank)] = key
        pairs[U(slot)] = np.uint32(np.int64(hashed >> TAG_SHIFT & U(0xFF)) << RANK_BITS | rank)
    for two in range(byte_ranks.size):
        byte_ranks[U(two)] = rank_of(pairs, pair_keys, byte_ids[U(two >> 8)], byte_ids[U(two & 0xFF)])
    return lefts.size


@inline
def merge_word(
    data: Any,
    at: Any,
    size: Any,
    byte_ids: Any,
    byte_ranks: Any,
    pairs: Any,
    pair_keys: Any,
    first_product: Any,
    products: Any,
    ids: Any,
    ranks: Any,
) -> Any:
    """Merge by lowest rank, the leftmost first; `ids` becomes the ids, whose number is returned."""
    for i in range(size):
        ids[U(i)] = byte_ids[U(data[U(at + i)])]
    number = size
    for i in range(number - 1):
        ranks[U(i)] = byte_ranks[U(data[U(at + i)]) << U(8) | U(data[U(at + i + 1)])]
    while number > 1:
        best, place = np.int64(NO_RANK), np.int64(0)
        for i in range(number - 1):
            rank = np.int64(ranks[U(i)])
            if rank < best:
                best, place = rank, np.int64(i)
        if best == NO_RANK:
            break
        ids[U(place)] = first_product + best if first_product >= 0 else products[U(best)]
        number -= 1
        for i in range(place + 1, number):
            ids[U(i)] = ids[U(i + 1)]
            ranks[U(i - 1)] = ranks[U(i)]
        if place > 0:
            ranks[U(place - 1)] = rank_of(pairs, pair_keys, ids[U(place - 1)], ids[U(place)])
        if place < number - 1:
            ranks[U(place)] = rank_of(pairs, pair_keys, ids[U(place)], ids[U(place + 1)])
    return number


@inline
def write_ids(ids: Any, begin: Any, count: Any, out: Any, place: Any, wide: Any) -> Any:
    """Write ids; returns where the next go. Up to 8 bytes beyond may be overwritten."""
    for i in range(begin, begin + count):
        if wide:
            store4(out, place, U(ids[U(i)]))
            place += 4
        else:
            store8(out, place, U(ids[U(i)]))
            place += 2
    return place


@inline
def keep_ids(ids: Any, count: Any, many: Any, used: Any) -> Any:
    """Append ids to `many`; returns where they begin."""
    begin = used[MANY_USED]
    for i in range(count):
        many[U(begin + i)] = ids[U(i)]
    used[MANY_USED] += count
    return begin


@inline
def packed(ids: Any, count: Any, many: Any, used: Any, wide: Any) -> Any:
    """The value of a short pre-token: up to four narrow or two wide ids themselves, else where they are in `many`."""
    if count > (INLINE_WIDE if wide else INLINE_NARROW):
        return U(keep_ids(ids, count, many, used))
    value = ZERO
    for i in range(count):
        value |= U(ids[U(i)]) << U(i * (32 if wide else 16))
    return value


@kernel(
    "int64(uint8[::1], int64, int64, int64, int64, uint8[::1], uint8[::1], uint8[::1], int64[::1], int64[::1], int64, "
    "int32[::1], int32[::1], uint32[::1], uint64[::1], int64, int32[::1], int64[::1], uint64[::1], int64[::1], "
    "int32[::1], int32[::1], uint64[::1], uint64[::1], uint8[::1], int32[::1], uint8[::1], int64, int64[::1])"
)
def encode_block(
    data: Any, at: Any, filled: Any, is_final: Any, longest: Any, kinds: Any, special_firsts: Any, special_bytes: Any,
    special_starts: Any, special_ids: Any, end_of_text: Any, byte_ids: Any, byte_ranks: Any, pairs: Any,
    pair_keys: Any, first_product: Any, products: Any, starts: Any, keys: Any, slots: Any, ids: Any, ranks: Any,
    short: Any, long: Any, arena: Any, many: Any, out: Any, wide: Any, used: Any,
) -> Any:  # fmt: skip
    """Write the ids of text from `at` on; returns where it stopped, and says in `used` for want of what."""
    limit = filled if is_final else max(at, filled - longest - LOOK_AHEAD)
    inline_ids, width_shift = (INLINE_WIDE, 2) if wide else (INLINE_NARROW, 1)
    while at < limit:
        end, special = find_special(data, at, limit, filled, special_firsts, special_bytes, special_starts)
        is_open = special < 0 and not is_final
        while at < end:
            number = scan(data, at, end, is_open, kinds, starts)
            if number == 0:
                used[STATUS] = MORE_TEXT
                return at
            if (
                is_full(short, used[SHORT_USED])
                or is_full(long, used[LONG_USED])
                or used[ARENA_USED] + LONGEST_KEPT * STARTS > arena.size
                or used[MANY_USED] + LONGEST_KEPT * STARTS > many.size
            ):
                used[STATUS] = MORE_ROOM
                return at
            after = starts[U(number)]
            if not used[IN_DOCUMENT] and run_end(data, at, after, kinds, SPACE) < after:
                used[IN_DOCUMENT] = 1
                used[DOCUMENTS] += 1
            look_up_batch(data, starts, number, short, long, keys, slots)
            place = used[OUT_USED]
            for i in range(number):
                slot, key = slots[U(i)], keys[U(2 * i)]
                if slot >= 0:
                    key_2 = keys[U(2 * i + 1)]
                    entry = find_short(short, slot, key, key_2)
                    if short[U(entry)] == ZERO:
                        begin = starts[U(i)]
                        size = starts[U(i + 1)] - begin
                        count = merge_word(
                            data,
                            begin,
                            size,
                            byte_ids,
                            byte_ranks,
                            pairs,
                            pair_keys,
                            first_product,
                            products,
                            ids,
                            ranks,
                        )
                        enter_short(short, used, entry, key, key_2)
                        short[U(entry + 2)] = packed(ids, count, many, used, wide)
                        short[U(entry + 3)] = U(count)
                    value, count = short[U(entry + 2)], np.int64(short[U(entry + 3)])
                    if count <= inline_ids:
                        store8(out, place, value)
                        place += count << width_shift
                    else:
                        place = write_ids(many, np.int64(value), count, out, place, wide)
                    continue
                begin = starts[U(i)]
                size = starts[U(i + 1)] - begin
                if size <= LONGEST_KEPT:
                    entry = find_long(long, -1 - slot, key, data, begin, size, arena)
                    if long[U(entry + 3)] == ZERO:
                        count = merge_word(
                            data,
                            begin,
                            size,
                            byte_ids,
                            byte_ranks,
                            pairs,
                            pair_keys,
                            first_product,
                            products,
                            ids,
                            ranks,
                        )
                        enter_long(long, used, entry, key, data, begin, size, arena)
                        long[U(entry + 2)] = U(keep_ids(ids, count, many, used)) << U(8) | U(count)
                    value = long[U(entry + 2)]
                    place = write_ids(many, np.int64(value >> U(8)), np.int64(value & U(0xFF)), out, place, wide)
                elif size <= LONGEST_MERGED:
                    count = merge_word(
                        data, begin, size, byte_ids, byte_ranks, pairs, pair_keys, first_product, products, ids, ranks
                    )
                    place = write_ids(ids, 0, count, out, place, wide)
                else:
                    used[OUT_USED], used[WORD_END] = place, starts[U(i + 1)]
                    used[TEXT_BYTES] += starts[U(i + 1)] - at
                    used[STATUS] = LONG_WORD
                    return begin
            used[OUT_USED] = place
            used[TEXT_BYTES] += after - at
            at = after
        if special >= 0:
            used[OUT_USED] = write_ids(special_ids, special, 1, out, used[OUT_USED], wide)
            if special == end_of_text:
                used[IN_DOCUMENT] = 0
            elif not used[IN_DOCUMENT]:
                used[IN_DOCUMENT] = 1
                used[DOCUMENTS] += 1
            at += special_starts[special + 1] - special_starts[special]
    used[STATUS] = MORE_TEXT
    return at


@kernel("int64(uint64[::1], uint64[::1], uint64[::1], uint64[::1])")
def move_entries(from_short: Any, from_long: Any, short: Any, long: Any) -> Any:
    """Enter what smaller tables hold; the arenas stay."""
    shift, long_shift = shift_for(short), shift_for(long)
    for old in range(0, from_short.size, ENTRY):
        key, key_2 = from_short[U(old)], from_short[U(old + 1)]
        if key != ZERO:
            entry = find_short(short, short_slot(key, key_2, shift), key, key_2)
            for i in range(ENTRY):
                short[U(entry + i)] = from_short[U(old + i)]
    mask = long.size // ENTRY - 1
    for old in range(0, from_long.size, ENTRY):
        if from_long[U(old + 3)] != ZERO:
            slot = long_slot(from_long[U(old)], long_shift)
            while long[U(ENTRY * slot + 3)] != ZERO:
                slot = (slot + 1) & mask
            for i in range(ENTRY):
                long[U(ENTRY * slot + i)] = from_long[U(old + i)]
    return 0
