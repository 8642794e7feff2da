"""What compiled code and Python must agree on: kinds of characters, layouts of tables, places in small arrays."""

LOAD_FROM = 1 << 20  # bytes of text that are worth loading compiled code for
COMPILE_FROM = 16 << 20  # and compiling it, once a machine

PADDING = 128  # bytes that can be read beyond a buffer's content
LOOK_AHEAD = 4  # bytes beyond a pre-token that decide where it ends
OTHER, LETTER, NUMBER, SPACE = range(4)  # kinds of characters
NUM_CHARACTERS = 0x110000

# Pre-tokens are in two open-addressing tables of ENTRY numbers an entry, a power of two of entries, at most three
# quarters of them taken. In the one for short pre-tokens, the first two numbers are the pre-token itself, up to 16
# bytes. Longer ones, and those that begin or end with a zero byte, are in the other: a hash, where the bytes are in the
# arena, and (last) how many. The third number is the value.
ENTRY = 4
SHORT_BYTES = 16

BATCH = 256  # pre-tokens that are looked up together
STARTS = BATCH + 2 * 64  # places that a batch needs room for

# Places in the small array that counting and encoding keep.
(SHORT_USED, LONG_USED, ARENA_USED, STATUS, OUT_USED, DOCUMENTS, IN_DOCUMENT, TEXT_BYTES, WORD_END,
 MANY_USED) = range(10)  # fmt: skip
NUM_USED = 10
MORE_TEXT, MORE_ROOM, LONG_WORD = range(3)  # why a block was left: `STATUS`

# Places in the small array that merging keeps.
(MERGED, PAIRS, LISTED, HEAP, ABOVE, THRESHOLD, REFILL,
 WANTED_PAIRS, WANTED_LISTS, WANTED_HEAP, WANTED_TEXT) = range(11)  # fmt: skip
NONE = -1
NUM_BYTES = 256
FALL = 4  # the heap's threshold falls by this factor whenever it is empty
FIRST_FALL = 64  # and starts so far below the largest count

# A part of the hash of a pair of ids shares a number with its rank. So do up to four ids of 16 bits, or two wider ones.
ID_BITS, RANK_BITS = 20, 24
MOST_IDS, MOST_MERGES = 1 << ID_BITS, 1 << RANK_BITS
NO_PAIR = (1 << 32) - 1
NO_RANK = 1 << 30
INLINE_NARROW, INLINE_WIDE = 4, 2
LONGEST_KEPT = 64  # bytes of a pre-token that is remembered
LONGEST_MERGED = 1024  # bytes of a pre-token whose merges are found by looking at all pairs again and again
