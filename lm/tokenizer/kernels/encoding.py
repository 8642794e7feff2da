"""Ids of text: pre-tokens met before are looked up, others are merged and remembered."""

from typing import Any

import numpy as np

from lm.tokenizer.kernels.bits import ALL, ZERO, U, inline, kernel, store4, store8
from lm.tokenizer.kernels.scanner import find_special, run_end, scan
from lm.tokenizer.kernels.tables import (
    MULTIPLIER,
    find_long,
    find_short,
    long_hash,
    look_up_batch,
    shift_for,
    short_hash,
)
from lm.tokenizer.layout import (
    ARENA_USED,
    COUNT_SHIFT,
    DOCUMENTS,
    ID_BITS,
    IDS,
    IN_DOCUMENT,
    INLINE_NARROW,
    INLINE_WIDE,
    KEY_BYTES,
    LONG,
    LONG_USED,
    LONG_WORD,
    LONGEST_MERGED,
    LOOK_AHEAD,
    MORE_ROOM,
    MORE_TEXT,
    NO_PAIR,
    NO_RANK,
    RANK_BITS,
    SHORT,
    SHORT_USED,
    SPACE,
    STARTS,
    STATUS,
    TEXT_BYTES,
    WIDE_BITS,
    WORD_END,
)

FREE = U(NO_PAIR)
RANK_MASK = U((1 << RANK_BITS) - 1)


@inline
def pair_slot(pairs: Any, left: Any, right: Any) -> Any:
    """Where the pair's entry is, or the free one where it would go."""
    key = U(left) << U(ID_BITS) | U(right)
    mask = pairs.size - 1
    slot = np.int64((key * MULTIPLIER) >> shift_for(pairs, 1))
    while pairs[U(slot)] != FREE and pairs[U(slot)] >> U(RANK_BITS) != key:
        slot = (slot + 1) & mask
    return slot


@kernel("int64(int32[::1], int32[::1], uint64[::1])")
def fill_pairs(lefts: Any, rights: Any, pairs: Any) -> Any:
    """Enter the pairs in the order of their ranks: the ids of both sides and the rank in one number."""
    for rank in range(lefts.size):
        left, right = np.int64(lefts[rank]), np.int64(rights[rank])
        key = U(left) << U(ID_BITS) | U(right)
        pairs[U(pair_slot(pairs, left, right))] = key << U(RANK_BITS) | U(rank)
    return 0


@inline
def rank_of(pairs: Any, left: Any, right: Any) -> Any:
    entry = pairs[U(pair_slot(pairs, left, right))]
    return np.int64(NO_RANK) if entry == FREE else np.int64(entry & RANK_MASK)


@inline
def merge_word(data: Any, at: Any, size: Any, byte_ids: Any, pairs: Any, products: Any, ids: Any, ranks: Any) -> Any:
    """Merge by lowest rank, the leftmost first; `ids` becomes the ids, whose number is returned."""
    for i in range(size):
        ids[U(i)] = byte_ids[U(data[U(at + i)])]
    number = size
    for i in range(number - 1):
        ranks[U(i)] = rank_of(pairs, ids[U(i)], ids[U(i + 1)])
    while number > 1:
        best, place = np.int64(NO_RANK), np.int64(0)
        for i in range(number - 1):
            rank = np.int64(ranks[U(i)])
            if rank < best:
                best, place = rank, np.int64(i)
        if best == NO_RANK:
            break
        ids[U(place)] = products[U(best)]
        number -= 1
        for i in range(place + 1, number):
            ids[U(i)] = ids[U(i + 1)]
            ranks[U(i - 1)] = ranks[U(i)]
        if place > 0:
            ranks[U(place - 1)] = rank_of(pairs, ids[U(place - 1)], ids[U(place)])
        if place < number - 1:
            ranks[U(place)] = rank_of(pairs, ids[U(place)], ids[U(place + 1)])
    return number


@inline
def write_id(out: Any, place: Any, wide: Any, id_: Any) -> Any:
    """Write one id; returns where the next goes. Up to 8 bytes beyond may be overwritten."""
    if wide:
        store4(out, place, U(id_))
        return place + 4
    store8(out, place, U(id_))
    return place + 2


@inline
def write_value(value: Any, arena: Any, out: Any, place: Any, wide: Any) -> Any:
    """Write the ids that a table's value stands for."""
    count = np.int64(value >> U(COUNT_SHIFT))
    if not wide and count <= INLINE_NARROW:
        store8(out, place, value)
        return place + 2 * count
    if wide and count <= INLINE_WIDE:
        store4(out, place, value & U((1 << WIDE_BITS) - 1))
        store4(out, place + 4, (value >> U(WIDE_BITS)) & U((1 << WIDE_BITS) - 1))
        return place + 4 * count
    begin = np.int64(value & (ALL >> U(64 - COUNT_SHIFT)))
    for i in range(count):
        place = write_id(out, place, wide, arena[U(begin + i)])
    return place


@inline
def value_of(ids: Any, number: Any, arena: Any, used: Any, wide: Any) -> Any:
    """A table's value for these ids: up to three narrow or two wide ones themselves, else their place in the arena."""
    value = U(number) << U(COUNT_SHIFT)
    if number <= (INLINE_WIDE if wide else INLINE_NARROW):
        for i in range(number):
            value |= U(ids[U(i)]) << U(i * (WIDE_BITS if wide else 16))
        return value
    begin = used[ARENA_USED]
    for i in range(number):
        arena[U(begin + i)] = ids[U(i)]
    used[ARENA_USED] += number
    return value | U(begin)


@kernel(
    "int64(uint8[::1], int64, int64, int64, int64, uint8[::1], uint8[::1], uint8[::1], int64[::1], int64[::1], int64, "
    "int32[::1], uint64[::1], int32[::1], int64[::1], uint64[::1], int64[::1], int32[::1], int32[::1], uint64[::1], "
    "uint64[::1], int32[::1], uint8[::1], int64, int64[::1])"
)
def encode_block(
    data: Any, at: Any, filled: Any, is_final: Any, longest: Any, kinds: Any, special_firsts: Any, special_bytes: Any,
    special_starts: Any, special_ids: Any, end_of_text: Any, byte_ids: Any, pairs: Any, products: Any, starts: Any,
    keys: Any, slots: Any, ids: Any, ranks: Any, short: Any, long: Any, arena: Any, out: Any, wide: Any, used: Any,
) -> Any:  # fmt: skip
    """Write the ids of text from `at` on; returns where it stopped, and says in `used` for want of what."""
    limit = filled if is_final else max(at, filled - longest - LOOK_AHEAD)
    while at < limit:
        end, special = find_special(data, at, limit, filled, special_firsts, special_bytes, special_starts)
        is_open = special < 0 and not is_final
        while at < end:
            number = scan(data, at, end, is_open, kinds, starts)
            if number == 0:
                used[STATUS] = MORE_TEXT
                return at
            if (
                SHORT * 2 * (used[SHORT_USED] + STARTS) > short.size
                or LONG * 2 * (used[LONG_USED] + STARTS) > long.size
                or used[ARENA_USED] + KEY_BYTES * STARTS > arena.size
            ):
                used[STATUS] = MORE_ROOM
                return at
            after = starts[U(number)]
            if not used[IN_DOCUMENT] and run_end(data, at, after, kinds, SPACE) < after:
                used[IN_DOCUMENT] = 1
                used[DOCUMENTS] += 1
            look_up_batch(data, starts, number, short, long, keys, slots)
            place = used[IDS]
            for i in range(number):
                slot = slots[U(i)]
                if slot >= 0:
                    key = keys[U(2 * i)]
                    entry = find_short(short, slot, key)
                    if short[U(entry)] == ZERO:
                        begin = starts[U(i)]
                        size = starts[U(i + 1)] - begin
                        count = merge_word(data, begin, size, byte_ids, pairs, products, ids, ranks)
                        short[U(entry)] = key
                        short[U(entry + 1)] = value_of(ids, count, arena, used, wide)
                        used[SHORT_USED] += 1
                    place = write_value(short[U(entry + 1)], arena, out, place, wide)
                    continue
                begin = starts[U(i)]
                size = starts[U(i + 1)] - begin
                if size <= KEY_BYTES:
                    entry = find_long(long, -1 - slot, keys[U(2 * i)], keys[U(2 * i + 1)], size)
                    if long[U(entry + 3)] == ZERO:
                        count = merge_word(data, begin, size, byte_ids, pairs, products, ids, ranks)
                        long[U(entry)], long[U(entry + 1)] = keys[U(2 * i)], keys[U(2 * i + 1)]
                        long[U(entry + 2)] = value_of(ids, count, arena, used, wide)
                        long[U(entry + 3)] = U(size)
                        used[LONG_USED] += 1
                    place = write_value(long[U(entry + 2)], arena, out, place, wide)
                elif size <= LONGEST_MERGED:
                    count = merge_word(data, begin, size, byte_ids, pairs, products, ids, ranks)
                    for j in range(count):
                        place = write_id(out, place, wide, ids[U(j)])
                else:
                    used[IDS], used[WORD_END] = place, starts[U(i + 1)]
                    used[TEXT_BYTES] += starts[U(i + 1)] - at
                    used[STATUS] = LONG_WORD
                    return begin
            used[IDS] = place
            used[TEXT_BYTES] += after - at
            at = after
        if special >= 0:
            used[IDS] = write_id(out, used[IDS], wide, special_ids[U(special)])
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
    """Enter what smaller tables hold."""
    short_shift, long_shift = shift_for(short, SHORT), shift_for(long, LONG)
    for old in range(0, from_short.size, SHORT):
        key = from_short[U(old)]
        if key != ZERO:
            entry = find_short(short, np.int64(short_hash(key) >> short_shift), key)
            short[U(entry)], short[U(entry + 1)] = key, from_short[U(old + 1)]
    for old in range(0, from_long.size, LONG):
        size = from_long[U(old + 3)]
        if size != ZERO:
            key, key_2 = from_long[U(old)], from_long[U(old + 1)]
            slot = np.int64(long_hash(key, key_2, np.int64(size)) >> long_shift)
            entry = find_long(long, slot, key, key_2, np.int64(size))
            for i in range(LONG):
                long[U(entry + i)] = from_long[U(old + i)]
    return 0
