"""`vocab.json` and `merges.txt` in GPT-2's form, in which every byte is written as a printable character.

The first line of merges.txt, which other tools pass over, holds the sha256 of the vocabulary and the merges.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

VOCAB = "vocab.json"
MERGES = "merges.txt"
VERSION = "#version: 0.2"
_MARK = f"{VERSION} sha256:"


def _printable_bytes() -> dict[int, str]:
    """GPT-2's `bytes_to_unicode`: Latin-1's printable characters stand for themselves, the rest from U+0100 on."""
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in itself else next(others)) for byte in range(256)}


_TO_TEXT = _printable_bytes()
_TO_BYTE = {character: byte for byte, character in _TO_TEXT.items()}


def write(folder: Path, vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]]) -> None:
    """Write both files. A new folder appears with both in it; in an old one they are replaced one after the other."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        entries = {_to_text(vocab[id_]): id_ for id_ in sorted(vocab)}
        vocabulary = json.dumps(entries, ensure_ascii=False, indent=0) + "\n"
        pairs = "".join(f"{_to_text(left)} {_to_text(right)}\n" for left, right in merges)
        first = f"{_MARK}{_sha256(vocabulary, pairs)}\n"
        (temporary / VOCAB).write_text(vocabulary, encoding="utf-8", newline="\n")
        (temporary / MERGES).write_text(first + pairs, encoding="utf-8", newline="\n")
        if not folder.exists():
            os.replace(temporary, folder)
            return
        for name in (MERGES, VOCAB):
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_digest(folder: Path) -> None:
    """Raises ValueError where the files are not what `write` wrote. Files of other tools, without a digest, pass."""
    first, _, pairs = _read(folder / MERGES).partition("\n")
    if first.startswith(_MARK) and first != _MARK + _sha256(_read(folder / VOCAB), pairs):
        raise ValueError(
            f"the tokenizer in {folder} changed since it was written, its sha256 differs; fetch or train it again, or "
            f"put {VERSION!r} in the first line of {MERGES} if the change is meant"
        )


def read_vocab(path: Path) -> dict[int, bytes]:
    """Id to bytes.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a JSON object of distinct tokens and distinct ids.
    """
    try:
        entries = json.loads(_read(path), object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}); fetch or train it again") from None
    if not isinstance(entries, _Object):
        raise ValueError(f"{path} is not a JSON object of tokens and ids; fetch or train it again")
    vocab: dict[int, bytes] = {}
    seen: set[str] = set()
    for text, id_ in entries:
        if type(id_) is not int or id_ < 0:
            raise ValueError(f"{path}: token {text!r} has the id {id_!r}; ids are whole numbers from 0")
        if text in seen:
            raise ValueError(f"{path}: token {text!r} is there twice; keep one")
        if id_ in vocab:
            raise ValueError(f"{path}: id {id_} is given twice, the second time to {text!r}; keep one")
        seen.add(text)
        try:
            vocab[id_] = _to_bytes(text)
        except KeyError as error:
            raise _not_a_byte(str(path), error, text) from None
    return vocab


def read_merges(path: Path) -> list[tuple[bytes, bytes]]:
    """Pairs of tokens, in order.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line is not two tokens with a space between them.
    """
    return list(_merge_lines(path))


def _merge_lines(path: Path) -> Iterator[tuple[bytes, bytes]]:
    tokens = _Tokens()
    for number, line in enumerate(_read(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not two tokens with one space between them; "
                "fetch or train it again"
            )
        try:
            yield tokens[left], tokens[right]
        except KeyError as error:
            token = left if error.args[0] in left else right
            raise _not_a_byte(f"{path}, line {number}", error, token) from None


def special_tokens(vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]]) -> list[str]:
    """The entries that are neither single bytes nor made by a merge, by id. Raises ValueError if one is not text."""
    made = {left + right for left, right in merges}
    tokens = [vocab[id_] for id_ in sorted(vocab) if len(vocab[id_]) != 1 and vocab[id_] not in made]
    try:
        return [token.decode() for token in tokens]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"token {error.object!r} of the vocabulary is not a byte, not made by a merge, and not text; "
            "the vocabulary and the merges do not belong together"
        ) from None


class _Object(list[tuple[str, object]]):
    """A JSON object as its entries, so that doubled keys show."""


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no tokenizer file {path}; check the path, or train a tokenizer first")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at offset {error.start}; fetch or train it again") from None


def _sha256(vocabulary: str, pairs: str) -> str:
    return hashlib.sha256((vocabulary + pairs).encode()).hexdigest()


def _to_text(token: bytes) -> str:
    return "".join([_TO_TEXT[byte] for byte in token])


def _to_bytes(text: str) -> bytes:
    return bytes([_TO_BYTE[character] for character in text])


class _Tokens(dict[str, bytes]):
    """Tokens by GPT-2's form; merges name the same ones again and again."""

    def __missing__(self, text: str) -> bytes:
        self[text] = token = _to_bytes(text)
        return token


def _not_a_byte(where: str, error: KeyError, text: str) -> ValueError:
    return ValueError(
        f"{where}: {error.args[0]!r} in {text!r} stands for no byte in GPT-2's form; fetch or train it again"
    )
