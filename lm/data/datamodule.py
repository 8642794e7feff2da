"""The LightningDataModule: prepares the data once and serves memory-mapped batches."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lm.data.prepare import PreparedData, prepare
from lm.data.sampler import Order, Slice, TrainBatches, ValidWindows
from lm.data.sources import SourceName, StoryCorpus
from lm.data.tokens import SplitMeta, TokenFiles
from lm.data.transfer import PromptBatches
from lm.tokenizer import Tokenizer

log = logging.getLogger("lm")


class TokenDataModule(PromptBatches):
    """Text to batches of token ids.

    Args:
        source: stories (embedded generator, needs no network), tinystories or openwebtext (downloaded once), or
            text (your own files, named by train_text and valid_text).
        train_text: training text for source text: UTF-8, documents separated by lines <|endoftext|>.
        valid_text: validation text for source text.
        tokenizer: folder with vocab.json and merges.txt; trained there if missing. By default a folder of
            tokenizers/ named after the source, the vocabulary size and the text.
        vocab_size: ids of a newly trained tokenizer; on the command line taken from model.net.vocab_size.
        context_length: tokens a sequence; on the command line taken from model.net.context_length.
        batch_size: sequences per optimizer step, over all devices and accumulated batches together.
        valid_batch_size: sequences per validation batch on each device; changes memory, never the loss.
        seed: draws the training windows; on the command line taken from seed_everything.
        order: random draws every training window anywhere; shuffled reads every token once an epoch, in windows cut
            anew for each and shuffled, for a text that is read several times.
        data_dir: folder for text and token files.
        tokenizers_dir: folder for trained tokenizers.
        stories: size and seeds of source stories.
        workers: processes for tokenizing; by default one a core.
    """

    def __init__(
        self,
        source: SourceName = "stories",
        train_text: Path | None = None,
        valid_text: Path | None = None,
        tokenizer: Path | None = None,
        vocab_size: int = 10_000,
        context_length: int = 256,
        batch_size: int = 128,
        valid_batch_size: int = 32,
        seed: int = 0,
        order: Order = "random",
        data_dir: Path = Path("data"),
        tokenizers_dir: Path = Path("tokenizers"),
        stories: StoryCorpus = StoryCorpus(),
        workers: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "valid_batch_size": valid_batch_size, "workers": workers}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"data.{name} is {value}, it must be at least 1")
        self._preparation: dict[str, Any] = {
            "source": source,
            "train_text": train_text,
            "valid_text": valid_text,
            "vocab_size": vocab_size,
            "tokenizer": tokenizer,
            "data_dir": data_dir,
            "tokenizers_dir": tokenizers_dir,
            "stories": stories,
            "workers": workers,
        }
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.batch_size = batch_size
        self.valid_batch_size = valid_batch_size
        self.seed = seed
        self.order: Order = order
        self.prepared: PreparedData | None = None
        self._files: TokenFiles | None = None

    def prepare_data(self) -> None:
        """Download, train the tokenizer and encode whatever is missing (one process a machine)."""
        self.setup("fit")
        self.files.check_ids(self.vocab_size)
        if line := self.files.meta.overlap:
            log.warning(line)

    def setup(self, stage: str) -> None:
        """Open the token files, once."""
        if self._files is None:
            self.prepared = prepare(**self._preparation)
            self._files = TokenFiles(self.prepared.tokens)

    @property
    def files(self) -> TokenFiles:
        assert self._files is not None, "setup() comes first"
        return self._files

    @property
    def valid_meta(self) -> SplitMeta:
        return self.files.meta.valid

    @cached_property
    def tokenizer(self) -> Tokenizer:
        assert self.prepared is not None, "setup() comes first"
        return Tokenizer.from_folder(self.prepared.tokenizer)

    def identity(self) -> dict[str, Any]:
        """What makes two runs see the same batches: kept in checkpoints and compared on resume."""
        meta = self.files.meta
        return {
            "tokenizer": meta.tokenizer_digest,
            "train_text": meta.train.source_sha256,
            "valid_text": meta.valid.source_sha256,
            "batch_size": self.batch_size,
            "context_length": self.context_length,
            "seed": self.seed,
            "order": self.order,
        }

    def train_dataloader(self) -> TrainBatches:
        assert self.trainer is not None
        part = Slice.of(
            self.batch_size,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.trainer.accumulate_grad_batches,
        )
        return TrainBatches(
            self.files.train,
            self.batch_size,
            self.context_length,
            self.seed,
            part,
            torch.cuda.is_available(),
            self.order,
        )

    def val_dataloader(self) -> ValidWindows:
        assert self.trainer is not None
        return ValidWindows(
            self.files.valid,
            self.valid_batch_size,
            self.context_length,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
