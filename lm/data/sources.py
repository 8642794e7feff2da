"""Where raw text comes from: the embedded stories, downloads, or the user's own files."""

import gzip
import json
import logging
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lm.data.hub import download
from lm.data.locks import locked

log = logging.getLogger("lm")

SourceName = Literal["stories", "tinystories", "openwebtext", "text"]


@dataclass(frozen=True)
class TextFiles:
    """Text of one source, UTF-8.

    Args:
        name: names the folder of the data directory that holds everything made from this text.
        splits: the files, by "train" and "valid".
        nats: exact information of each file, -ln of its probability, where the source knows it.
    """

    name: str
    splits: dict[str, Path]
    nats: dict[str, float] | None = None


@dataclass(frozen=True)
class StoryCorpus:
    """Size and seed of the generated stories.

    Args:
        train_bytes: bytes of training text.
        valid_bytes: bytes of validation text.
        train_seed: seed of the training text.
        valid_seed: seed of the validation text; must differ, or both would tell the same stories.
    """

    train_bytes: int = 10_000_000
    valid_bytes: int = 500_000
    train_seed: int = 0
    valid_seed: int = 1

    def __post_init__(self) -> None:
        for name in ("train_bytes", "valid_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.train_seed == self.valid_seed:
            raise ValueError(f"train_seed and valid_seed are both {self.train_seed}; give them different values")

    @property
    def name(self) -> str:
        """Folder name; other parameters get another one, so that they never meet each other's files."""
        if self == StoryCorpus():
            return "stories"
        return f"stories-{self.train_bytes}-{self.valid_bytes}-{self.train_seed}-{self.valid_seed}"


@dataclass(frozen=True)
class _HubFiles:
    repo: str
    splits: dict[str, str]


_HUB = {
    "tinystories": _HubFiles(
        "roneneldan/TinyStories",
        {"train": "TinyStoriesV2-GPT4-train.txt", "valid": "TinyStoriesV2-GPT4-valid.txt"},
    ),
    "openwebtext": _HubFiles(
        "stanford-cs336/owt-sample",
        {"train": "owt_train.txt.gz", "valid": "owt_valid.txt.gz"},
    ),
}


def resolve_source(
    source: SourceName,
    data_dir: Path,
    train_text: Path | None = None,
    valid_text: Path | None = None,
    corpus: StoryCorpus = StoryCorpus(),
) -> TextFiles:
    """Make whatever text of a source is missing, once however many processes ask, and say where it lies.

    Files that already lie under their names in `data_dir/<source>` are taken as they are, without network.

    Args:
        source: stories (generated), tinystories or openwebtext (downloaded), or text (your files).
        data_dir: folder that gets a folder for each source.
        train_text: training text for source text.
        valid_text: validation text for source text.
        corpus: size and seed for source stories.

    Raises:
        ValueError: an unknown source, a file that is empty or no file, or files given to another source than text.
        FileNotFoundError: a file of source text does not exist.
        OSError: a download failed (ConnectionError) or is damaged.
    """
    if source not in get_args(SourceName):
        raise ValueError(f"source is {source!r}, it must be one of {', '.join(get_args(SourceName))}")
    own = {"train": train_text, "valid": valid_text}
    if source == "text":
        return _own_files(own)
    for split, path in own.items():
        if path is not None:
            raise ValueError(f"{split}_text is {path}, but source {source} brings its own text; set source to text")
    name = corpus.name if source == "stories" else source
    folder = data_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(data_dir / f".{name}.lock", folder):
        if source == "stories":
            return _stories(folder, corpus)
        hub = _HUB[source]
        return TextFiles(name, {split: _hub_file(hub.repo, file, folder) for split, file in hub.splits.items()})


def _own_files(paths: dict[str, Path | None]) -> TextFiles:
    splits: dict[str, Path] = {}
    for split, path in paths.items():
        if path is None:
            raise ValueError(f"{split}_text is not set; source text needs train_text and valid_text, two UTF-8 files")
        splits[split] = _check(path)
    # The prefix keeps a file named stories.txt out of the folder of source stories.
    return TextFiles(f"text-{splits['train'].stem}", splits)


def _check(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"text file {path} does not exist; give the path of a UTF-8 text file")
    if not path.is_file():
        raise ValueError(f"{path} is a folder or a device; give the path of a UTF-8 text file")
    if path.stat().st_size == 0:
        raise ValueError(f"text file {path} is empty; put UTF-8 text into it, or delete it")
    return path


def _hub_file(repo: str, name: str, folder: Path) -> Path:
    text, remote = folder / name.removesuffix(".gz"), folder / name
    if text.exists():
        return _check(text)
    by_hand = remote.exists()
    if not by_hand:
        log.info("downloading %s from data set %s", name, repo)
        download(repo, name, remote)
    if remote != text:
        log.info("decompressing %s", remote)
        _decompress(remote, text)
        if not by_hand:
            remote.unlink()
    return _check(text)


def _decompress(archive: Path, text: Path) -> None:
    part = text.with_name(f"{text.name}.part")
    try:
        with gzip.open(archive) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        part.unlink()
        raise OSError(f"{archive} is damaged ({error}); delete it and run again") from error
    os.replace(part, text)


def _stories(folder: Path, corpus: StoryCorpus) -> TextFiles:
    wanted = {
        "train": (corpus.train_bytes, corpus.train_seed),
        "valid": (corpus.valid_bytes, corpus.valid_seed),
    }
    splits = {split: folder / f"{split}.txt" for split in wanted}
    nats = {split: _story_file(splits[split], *wanted[split]) for split in wanted}
    return TextFiles(folder.name, splits, nats)


def _story_file(text: Path, num_bytes: int, seed: int) -> float:
    """Nats of the stories in `text`, which are written first if they are not there, or not as they were written."""
    from lm.data.stories import RULES_DIGEST, generate_stories

    record = text.with_suffix(".json")
    if text.exists() and record.exists():
        written = json.loads(record.read_text(encoding="utf-8"))
        if written["bytes"] == text.stat().st_size and written.get("rules") == RULES_DIGEST:
            return written["nats"]
    log.info("writing stories to %s", text)
    part = text.with_name(f"{text.name}.part")
    nats = generate_stories(part, num_bytes, seed, progress=True)
    record_part = record.with_name(f"{record.name}.part")
    facts = {"bytes": part.stat().st_size, "seed": seed, "rules": RULES_DIGEST, "nats": nats}
    record_part.write_text(json.dumps(facts), encoding="utf-8")
    # The text comes last: where it lies under its name, its record does too.
    os.replace(record_part, record)
    os.replace(part, text)
    return nats
