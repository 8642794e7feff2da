"""Data modules and Trainers for runs of a moment, with models of 280 ids and a context of 16 tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger

from lm.data import TokenDataModule
from lm.data.sources import StoryCorpus


class Memory(Logger):
    """Keeps every figure that is logged, by name and step."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, dict[int, float]] = {}

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        for name, value in metrics.items():
            self.figures.setdefault(name, {})[step] = value


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training_data")


@pytest.fixture
def data(data_folder: Path) -> Callable[..., TokenDataModule]:
    """Makes a data module; options as for TokenDataModule."""

    def make(**changes: Any) -> TokenDataModule:
        options: dict[str, Any] = {
            "stories": StoryCorpus(train_bytes=20_000, valid_bytes=3_000),
            "vocab_size": 280,
            "context_length": 16,
            "batch_size": 8,
            "data_dir": data_folder / "data",
            "tokenizers_dir": data_folder / "tokenizers",
            "workers": 1,
        }
        return TokenDataModule(**{**options, **changes})

    return make


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a Trainer that logs to a Memory and writes nothing, or that saves checkpoints in its folder."""
    torch.set_num_threads(1)

    def make(
        *callbacks: Callback, max_steps: int = 6, eval_every: int = 100, saves: bool = False, **options: Any
    ) -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=max_steps,
            max_epochs=-1,
            val_check_interval=eval_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=saves,
            logger=not saves and Memory(),
            callbacks=[*callbacks],
            default_root_dir=tmp_path,
            **options,
        )

    return make
