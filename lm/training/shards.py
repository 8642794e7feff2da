"""Checkpoints in shards: one small file, and beside it a file of each process with its rows of the tensors.

`last.ckpt` has a tensor without content (of torch's meta device) in each sharded tensor's place and names a folder in
`last.ckpt.shards/`. The files 0.pt, 1.pt, ... there hold these tensors' rows, in the order in which `walk` meets them.
Every save has a folder of its own, and `last.ckpt` is replaced when all files are whole: until then the checkpoint
before it stays as it was. torch.distributed.checkpoint's index is a pickle, which can run code; these files hold
tensors and primitives only.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEY = "shards"


@dataclass(frozen=True)
class Pieces:
    """A tensor cut along its first dimension; some pieces may have no rows."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((sum(map(len, self.parts)), *self.parts[0].shape[1:]))

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, as far as there are any; of the pieces only these are read."""
        found, first = [], 0
        for part in self.parts:
            found.append(part[max(0, start - first) : max(0, stop - first)])
            first += len(part)
        return torch.cat(found)


def walk(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The tree of dicts and lists with `function` applied to everything that is neither."""
    if isinstance(tree, dict):
        return {key: walk(value, function) for key, value in tree.items()}
    return [walk(value, function) for value in tree] if isinstance(tree, list) else function(tree)


def put_together(tree: Any) -> Any:
    """The tree with whole tensors for `Pieces`."""
    return walk(tree, lambda leaf: torch.cat(leaf.parts) if isinstance(leaf, Pieces) else leaf)


def cut(checkpoint: dict[str, Any], is_sharded: Callable[[Any], bool]) -> tuple[dict[str, Any], list[Any]]:
    """The checkpoint with empty tensors in the sharded ones' places, and these."""
    sharded: list[Any] = []

    def leave_out(leaf: Any) -> Any:
        if not is_sharded(leaf):
            return leaf
        sharded.append(leaf)
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

    return walk(checkpoint, leave_out), sharded


def shards_folder(path: Path) -> Path:
    """Where the shards of the checkpoint `path` lie, a folder for each save."""
    return path.with_name(f"{path.name}.shards")


def shard_files(path: Path) -> list[Path]:
    """The files of a checkpoint's shards; none where it is one file."""
    return _files(path, _load(path))


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, mapped into memory: tensors and primitives, and `Pieces` for sharded tensors."""
    checkpoint = _load(path)
    parts = [_load(file)["tensors"] for file in _files(path, checkpoint)]
    if not parts:
        return checkpoint
    pieces = zip(*parts, strict=True)
    del checkpoint[KEY]
    return walk(checkpoint, lambda x: Pieces(next(pieces)) if isinstance(x, Tensor) and x.is_meta else x)


def remove_others(path: Path, kept: str | None = None) -> None:
    """Remove the shards of `path` that its file does not name: those of other saves than `kept`."""
    folder = shards_folder(path)
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name != kept:
            shutil.rmtree(other, ignore_errors=True)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _files(path: Path, checkpoint: Any) -> list[Path]:
    named = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if named is None:
        return []
    folder = shards_folder(path) / Path(named["folder"]).name
    return [folder / f"{process}.pt" for process in range(named["count"])]
