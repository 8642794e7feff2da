"""Token files: `train.npy` and `valid.npy`, memory-mapped, with `meta.json` beside them."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lm.data.digests import file_sha256, sampled_sha256

Split = Literal["train", "valid"]
FORMAT = 2


@dataclass(frozen=True)
class SplitMeta:
    """What one token file holds.

    Args:
        tokens: ids.
        bytes: of the text, without end-of-text tokens.
        documents: pieces of text between end-of-text tokens.
        source_sha256: of the text file.
        sha256: of the token file.
        sampled_sha256: of its size and of samples of it, see `lm.data.digests`.
        largest_id: in the token file.
        nats: exact -ln p of the text, where the source knows it.

    Raises:
        ValueError: a count is not a whole number from 1 (documents: from 0), or nats is no number from 0.
    """

    tokens: int
    bytes: int
    documents: int
    source_sha256: str
    sha256: str
    sampled_sha256: str
    largest_id: int
    nats: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("bytes", 1), ("documents", 0), ("largest_id", 0)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise ValueError(f"{name} of a text is {value!r}; it must be a whole number from {least}")
        if self.nats is not None and not (isinstance(self.nats, int | float) and 0 <= self.nats < math.inf):
            raise ValueError(f"nats of a text is {self.nats!r}; it must be a number from 0")

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    @property
    def irreducible(self) -> float | None:
        """The loss of a perfect model on this text, in nats per token; None where it is not known."""
        return None if self.nats is None else self.nats / self.tokens

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss in nats per token, in bits per byte of text: independent of the tokenizer."""
        return nats_per_token / math.log(2) / self.bytes_per_token


@dataclass(frozen=True)
class TokenMeta:
    """Contents of `meta.json`. `valid_in_train` counts documents of the validation text that are in both texts."""

    name: str
    tokenizer: str
    tokenizer_digest: str
    vocab_size: int
    train: SplitMeta
    valid: SplitMeta
    valid_in_train: int = 0
    format: int = FORMAT

    @property
    def overlap(self) -> str | None:
        """A line about validation documents that the training text holds too; None without such."""
        if not self.valid_in_train:
            return None
        return (
            f"{self.valid_in_train:,} of {self.valid.documents:,} validation documents are in the training text too: "
            f"the validation loss flatters the model"
        )

    def save(self, folder: Path) -> None:
        temporary = folder / "meta.json.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "meta.json")

    @classmethod
    def load(cls, folder: Path) -> "TokenMeta":
        """Raises FileNotFoundError without the file, ValueError where it is not what `save` writes."""
        path = folder / "meta.json"
        if not path.is_file():
            raise FileNotFoundError(f"no token files in {folder}: meta.json is missing; run `python -m lm prepare`")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']}, this version reads {FORMAT}")
            return cls(**{**fields, "train": SplitMeta(**fields["train"]), "valid": SplitMeta(**fields["valid"])})
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} cannot be read ({reason}); delete the folder and run again") from None


class TokenFiles:
    """A folder of prepared tokens.

    Args:
        folder: holds `train.npy`, `valid.npy` and `meta.json`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or disagrees with `meta.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._anew = f"delete {folder} and run again"
        self.meta = TokenMeta.load(folder)
        self.train = self._open("train")
        self.valid = self._open("valid")

    def _open(self, split: Split) -> npt.NDArray[np.unsignedinteger]:
        path = self.folder / f"{split}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {self._anew}")
        try:
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception:  # whatever a damaged header leads numpy's parser to
            raise ValueError(f"{path} is damaged or no .npy file; {self._anew}") from None
        expected: SplitMeta = getattr(self.meta, split)
        if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32) or len(tokens) != expected.tokens:
            raise ValueError(
                f"{path} holds {tokens.dtype} of shape {tokens.shape}, meta.json says {expected.tokens} tokens; "
                + self._anew
            )
        if sampled_sha256(path) != expected.sampled_sha256:
            raise ValueError(f"{path} changed since it was written, its sha256 differs; {self._anew}")
        return tokens

    def verify(self) -> None:
        """Raises ValueError where any byte of either file is not what was written (reads both whole)."""
        for split in ("train", "valid"):
            path = self.folder / f"{split}.npy"
            if file_sha256(path) != getattr(self.meta, split).sha256:
                raise ValueError(f"{path} changed since it was written, its sha256 differs; {self._anew}")

    def check_ids(self, vocab_size: int) -> None:
        """Raises ValueError where a token id does not fit a model of `vocab_size` ids."""
        for split in ("train", "valid"):
            largest = getattr(self.meta, split).largest_id
            if largest >= vocab_size:
                raise ValueError(
                    f"{self.folder / split}.npy holds token id {largest}, the model's vocabulary ends at "
                    f"{vocab_size - 1}; set model.net.vocab_size to at least {largest + 1}"
                )


def largest_id(path: Path) -> int:
    """The largest id of a token file, which is read whole."""
    tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    return max(int(tokens[i : i + (1 << 24)].max()) for i in range(0, len(tokens), 1 << 24))
