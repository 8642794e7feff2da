"""The tokenizer: text to ids and back, by the merges of a trained vocabulary."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lm.tokenizer import files
from lm.tokenizer.layout import LOAD_FROM, MOST_IDS, MOST_MERGES
from lm.tokenizer.pretokenize import PRE_TOKEN, SpecialTokens

if TYPE_CHECKING:
    from lm.tokenizer.encoder import EncoderPool

NO_TOKEN = -1
WARM_FROM = 1 << 12  # characters of a text that compiled code encodes sooner, once it is loaded


class Tokenizer:
    """Byte-level BPE with special tokens.

    Args:
        vocab: id to bytes; holds the 256 single bytes and what the merges make.
        merges: pairs of tokens, the first merged first.
        special_tokens: strings that split the text and never merge (the longest where they overlap); those that the
            vocabulary lacks get the next ids.
        cache_size: pre-tokens whose ids are remembered, about 150 bytes each.

    Raises:
        ValueError: the vocabulary lacks a byte, a merge's part or its product, or holds something twice; or a special
            token is empty, doubled, a byte or the product of a merge.
    """

    def __init__(
        self,
        vocab: dict[int, bytes],
        merges: list[tuple[bytes, bytes]],
        special_tokens: list[str] | None = None,
        cache_size: int = 4096,
    ) -> None:
        self.vocab = dict(vocab)
        self.merges = list(merges)
        ids = {token: id_ for id_, token in self.vocab.items()}
        if len(ids) < len(self.vocab):
            token = next(token for id_, token in self.vocab.items() if ids[token] != id_)
            raise ValueError(f"token {token!r} has two ids in the vocabulary; keep one")
        self._encoder = PreTokenEncoder(ids, self.merges, cache_size)

        self._specials = SpecialTokens(special_tokens or [])
        made = {left + right for left, right in self.merges}
        self.special_ids: dict[str, int] = {}
        for text in self._specials.tokens:
            token = text.encode()
            if len(token) == 1 or token in made:
                raise ValueError(f"special token {text!r} is an ordinary token of the vocabulary; choose another")
            self.special_ids[text] = ids.setdefault(token, max(self.vocab) + 1)
            self.vocab[self.special_ids[text]] = token
        self._pool: EncoderPool | None = None

    @classmethod
    def from_files(
        cls, vocab_path: str | Path, merges_path: str | Path, special_tokens: list[str] | None = None
    ) -> Self:
        """A tokenizer from `vocab.json` and `merges.txt` in GPT-2's form.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or they do not fit together.
        """
        return cls(files.read_vocab(Path(vocab_path)), files.read_merges(Path(merges_path)), special_tokens)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """A tokenizer that `save` wrote, or any in GPT-2's form. What is neither a byte nor merged is a special token.

        Raises:
            FileNotFoundError, ValueError: as `from_files`; or they changed since `save` wrote them.
        """
        folder = Path(folder)
        vocab, merges = files.read_vocab(folder / files.VOCAB), files.read_merges(folder / files.MERGES)
        files.check_digest(folder)
        try:
            return cls(vocab, merges, files.special_tokens(vocab, merges))
        except ValueError as error:
            raise ValueError(f"the tokenizer in {folder} cannot be used: {error}") from None

    def encoders(self, num_bytes: int) -> "EncoderPool | None":
        """Compiled encoders for so much text; None where they do not pay, or the vocabulary is too large for them."""
        fits = self.vocab_size <= MOST_IDS and len(self.merges) < MOST_MERGES
        if self._pool is None and num_bytes >= LOAD_FROM and fits:
            from lm.tokenizer import native

            if native.ready(num_bytes):
                from lm.tokenizer.encoder import EncoderPool

                self._pool = EncoderPool(self._encoder, self.special_ids, self.vocab)
        return self._pool

    def save(self, folder: str | Path) -> None:
        """Write `vocab.json` and `merges.txt` into the folder, which appears whole if it is new."""
        files.write(Path(folder), self.vocab, self.merges)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.vocab, self.merges, self._specials.tokens, self._encoder.cache_size)

    @property
    def vocab_size(self) -> int:
        """The largest id and one: the rows that an embedding needs."""
        return max(self.vocab) + 1

    @property
    def digest(self) -> str:
        """sha256, in hexadecimal, over all that decides how text is encoded and decoded."""
        lines = [
            *(f"token {id_} {self.vocab[id_].hex()}" for id_ in sorted(self.vocab)),
            *(f"merge {left.hex()} {right.hex()}" for left, right in self.merges),
            *(f"special {id_}" for id_ in sorted(self.special_ids.values())),
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises ValueError if it holds a lone surrogate, which has no UTF-8 form."""
        if len(text) >= WARM_FROM and (pool := self.encoders(len(text))):
            with suppress(UnicodeEncodeError):  # the plain way says where
                return pool.encode(text.encode()).tolist()
        ids: list[int] = []
        for index, part in enumerate(self._specials.split(text)):
            if index % 2:
                ids.append(self.special_ids[part])
            else:
                ids.extend(chain.from_iterable(map(self._encoder.__getitem__, PRE_TOKEN.findall(part))))
        return ids

    def encode_iterable(self, iterable: Iterable[str]) -> Iterator[int]:
        """Ids of the chunks of a text put together, wherever it was cut, without ever holding all of it."""
        for piece in self._specials.stream(iterable):
            yield from self.encode(piece)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids, which may end within a character. Raises ValueError for an unknown id."""
        try:
            return b"".join([self.vocab[id_] for id_ in ids])
        except KeyError as error:
            raise ValueError(
                f"id {error.args[0]} is not in the vocabulary, whose ids are 0 to {self.vocab_size - 1}; "
                "use the tokenizer that made the ids"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, with U+FFFD for malformed UTF-8. Raises ValueError for an unknown id."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class PreTokenEncoder(dict[str, tuple[int, ...]]):
    """Ids by pre-token: those met before are looked up, others are merged and remembered."""

    LONGEST_KEPT = 32  # characters; longer pre-tokens hardly ever come again

    def __init__(self, ids: dict[bytes, int], merges: list[tuple[bytes, bytes]], cache_size: int) -> None:
        super().__init__()
        self.cache_size = cache_size
        missing = [byte for byte in range(256) if bytes([byte]) not in ids]
        if missing:
            raise ValueError(
                f"the vocabulary lacks {len(missing)} single bytes, the first 0x{missing[0]:02x}; add them"
            )
        self.byte_ids = [ids[bytes([byte])] for byte in range(256)]
        self.ranks: dict[tuple[int, int], int] = {}
        self.products: list[int] = []  # by rank
        for rank, (left, right) in enumerate(merges):
            for token in (left, right, left + right):
                if token not in ids:
                    raise ValueError(f"merge {rank + 1}, {left!r} with {right!r}, needs {token!r} in the vocabulary")
            if self.ranks.setdefault((ids[left], ids[right]), rank) != rank:
                raise ValueError(f"merge {rank + 1}, {left!r} with {right!r}, was there before; leave it out")
            self.products.append(ids[left + right])

    def __missing__(self, pre_token: str) -> tuple[int, ...]:
        try:
            ids = tuple(self.merge(pre_token.encode()))
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds U+{ord(pre_token[error.start]):04X}, half a character and not valid Unicode; remove it"
            ) from None
        if len(pre_token) <= self.LONGEST_KEPT:
            if len(self) >= self.cache_size:
                self.clear()
            self[pre_token] = ids
        return ids

    def merge(self, pre_token: bytes) -> list[int]:
        """Merge by lowest rank, the leftmost first, until no pair can be merged.

        With a heap, so that a run of a million letters takes seconds and not hours. A merge keeps the left position
        and empties the right one; the heap's entries for what was there before no longer match their rank.
        """
        ranks, ids = self.ranks, [self.byte_ids[byte] for byte in pre_token]
        heap = [(ranks[pair], position) for position, pair in enumerate(pairwise(ids)) if pair in ranks]
        if not heap:
            return ids
        heapq.heapify(heap)
        end = len(ids)
        ids.append(NO_TOKEN)  # follows the last one, and (at index -1) precedes the first
        following = list(range(1, end + 2))
        preceding = list(range(-1, end))
        while heap:
            rank, here = heapq.heappop(heap)
            right = following[here]
            if ranks.get((ids[here], ids[right])) != rank:
                continue
            ids[here], ids[right] = self.products[rank], NO_TOKEN
            after, before = following[right], preceding[here]
            following[here], preceding[after] = after, here
            if (new := ranks.get((ids[here], ids[after]))) is not None:
                heapq.heappush(heap, (new, here))
            if (new := ranks.get((ids[before], ids[here]))) is not None:
                heapq.heappush(heap, (new, before))
        return [id_ for id_ in ids if id_ != NO_TOKEN]
