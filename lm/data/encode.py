"""From a text file to a file of token ids."""

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from lm.tokenizer import END_OF_TEXT, Tokenizer
from lm.tokenizer.pretokenize import (
    BLANK,
    EncodedChunk,
    Errors,
    Span,
    SpecialTokens,
    checked_workers,
    read_text,
    text_file,
)

MOST_UINT16_IDS = 1 << 16
CACHE_SIZE = 1 << 16  # pre-tokens that plain Python remembers; some 10 MB
tqdm.set_lock(RLock())  # its own is for processes too, and takes 5 ms to import
SPAN = 4 << 20  # bytes that a thread takes at a time, or fewer of a small file
SMALL_SPAN = 1 << 18
SPANS_A_THREAD = 4


@dataclass(frozen=True)
class EncodedFile:
    """What was encoded.

    Attributes:
        tokens: ids in the file.
        bytes: UTF-8 bytes of the text without its special tokens.
        documents: pieces between end-of-text tokens that hold more than whitespace.
    """

    tokens: int
    bytes: int
    documents: int


def encode_file(
    tokenizer: Tokenizer,
    text_path: str | Path,
    npy_path: str | Path,
    num_workers: int | None = None,
    progress: bool = False,
    errors: Errors = "strict",
    shard: tuple[int, int] = (0, 1),
) -> EncodedFile:
    """Encode a UTF-8 file just as `tokenizer.encode` would encode its text, in bounded memory.

    Several threads share the file, cut at end-of-text tokens. The result appears under its name when it is whole.

    Args:
        tokenizer: if it lacks the end-of-text token, one thread does all, and the file is one document.
        text_path: raw text; nothing is stripped, newlines stay as they are.
        npy_path: a one-dimensional array, uint16 up to 65,536 ids, else uint32.
        num_workers: by default one a core.
        progress: show a bar.
        errors: replace puts U+FFFD where bytes are not UTF-8.
        shard: encode only one of several parts of the file, given as its index and their number; their ids one after
            the other are those of the file.

    Raises:
        FileNotFoundError: there is no such text.
        ValueError: the text is empty or not UTF-8, or there is no such shard.
    """
    text_path, npy_path = text_file(text_path), Path(npy_path)
    if not text_path.stat().st_size:
        raise ValueError(f"{text_path} is empty; give a file with text in it")
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= MOST_UINT16_IDS else "<u4")
    span = SpecialTokens(tokenizer.special_ids).shard(text_path, *shard)
    chunks = _encode_spans(tokenizer, span, checked_workers(num_workers), errors)
    tokens = text_bytes = documents = 0
    npy_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = npy_path.with_name(f".{npy_path.name}.{os.getpid()}.tmp")
    try:
        with (
            temporary.open("wb") as file,
            closing(chunks),
            tqdm(total=span.size, desc="encoding", unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            # The number of ids comes last; numpy pads the header so that one of another length fits its place.
            start = _write_header(file, dtype, 0)
            for chunk in chunks:
                file.write(chunk.ids.data)
                tokens += len(chunk.ids)
                text_bytes += chunk.text_bytes
                documents += chunk.documents
                bar.update(chunk.num_bytes)
            file.seek(0)
            assert _write_header(file, dtype, tokens) == start
        os.replace(temporary, npy_path)
    finally:
        temporary.unlink(missing_ok=True)
    return EncodedFile(tokens, text_bytes, documents)


def _encode_spans(
    tokenizer: Tokenizer, whole: Span, num_workers: int, errors: Errors
) -> Generator[EncodedChunk, None, None]:
    """Ids of a span of a file: by threads and compiled code, or, where that does not pay, by plain Python."""
    specials = SpecialTokens(tokenizer.special_ids)
    if pool := tokenizer.encoders(whole.size):
        spans = [whole]
        if num_workers > 1:
            size = min(SPAN, max(SMALL_SPAN, whole.size // (SPANS_A_THREAD * num_workers)))
            spans = list(specials.spans(whole, size))
        yield from pool.encode_spans(spans, num_workers, errors)
        return
    caching = Tokenizer(tokenizer.vocab, tokenizer.merges, specials.tokens, CACHE_SIZE)
    yield from _encode_span(caching, whole, errors)


def join_token_files(parts: list[Path], npy_path: Path) -> int:
    """Put token files one after the other into one; returns the number of ids.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: there are no parts, or a part is no token file, or of another width than the first.
    """
    if not parts:
        raise ValueError("there are no parts to join; name them, then the output")
    arrays = []
    for part in parts:
        try:
            arrays.append(np.load(text_file(part), mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError):
            raise ValueError(f"{part} is damaged or no .npy file; encode that shard again") from None
        if arrays[-1].ndim != 1 or arrays[-1].dtype != arrays[0].dtype or arrays[-1].dtype.kind != "u":
            raise ValueError(f"{part} holds {arrays[-1].dtype} in {arrays[-1].ndim} dimensions, not ids as {parts[0]}")
    temporary = npy_path.with_name(f".{npy_path.name}.{os.getpid()}.tmp")
    total = sum(map(len, arrays))
    npy_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            _write_header(file, arrays[0].dtype, total)
            for array in arrays:
                file.write(array.data)
        os.replace(temporary, npy_path)
    finally:
        temporary.unlink(missing_ok=True)
    return total


def _write_header(file: BinaryIO, dtype: np.dtype[np.unsignedinteger], length: int) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _encode_span(tokenizer: Tokenizer, span: Span, errors: Errors) -> Generator[EncodedChunk, None, None]:
    """The definition of what a file's ids, text bytes and documents are."""
    specials = SpecialTokens(tokenizer.special_ids)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= MOST_UINT16_IDS else "<u4")
    in_document = span.start > 0  # cut within one, or before an end-of-text token, which says so
    for piece in specials.stream(read_text(span, errors)):
        num_bytes = text_bytes = documents = 0
        for index, part in enumerate(specials.split(piece)):
            if part == END_OF_TEXT and index % 2:
                in_document = False
                continue
            if not in_document and part and (index % 2 or not BLANK.fullmatch(part)):
                in_document = True
                documents += 1
            if index % 2 == 0:
                text_bytes += len(part.encode())
        num_bytes = len(piece.encode())
        yield EncodedChunk(np.array(tokenizer.encode(piece), dtype), num_bytes, text_bytes, documents)
