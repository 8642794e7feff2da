"""The DataModule: prepares, checks, and serves the batches of the sampler under a Trainer's circumstances."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from lm.data import TokenDataModule
from lm.data.prepare import PreparedData, prepare
from lm.data.sources import StoryCorpus

CORPUS = StoryCorpus(train_bytes=20_000, valid_bytes=4_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datamodule")


def module(folder: Path, rank: int = 0, world_size: int = 1, accumulate: int = 1, **changes: Any) -> TokenDataModule:
    options: dict[str, Any] = {"vocab_size": 270, "context_length": 16, "batch_size": 8, "valid_batch_size": 3}
    places = {"data_dir": folder / "data", "tokenizers_dir": folder / "tokenizers"}
    data = TokenDataModule(stories=CORPUS, workers=1, **{**options, **places, **changes})
    circumstances = SimpleNamespace(global_rank=rank, world_size=world_size, accumulate_grad_batches=accumulate)
    data.trainer = cast(Any, circumstances)
    return data


def ready(folder: Path, **changes: Any) -> TokenDataModule:
    data = module(folder, **changes)
    data.prepare_data()
    data.setup("fit")
    return data


def test_text_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def counted(**options: Any) -> PreparedData:
        calls.append(options["data_dir"])
        return prepare(**options)

    monkeypatch.setattr("lm.data.datamodule.prepare", counted)
    data = ready(folder)
    assert calls == [folder / "data"]
    assert data.tokenizer is data.tokenizer
    other = module(folder)  # of a process that does not prepare
    other.setup("fit")
    assert other.files.meta == data.files.meta


def test_training_batches_are_windows_of_the_text(folder: Path) -> None:
    data = ready(folder)
    text = data.files.train
    windows = {tuple(text[i : i + 17].tolist()) for i in range(len(text) - 16)}
    for inputs, targets in itertools.islice(data.train_dataloader(), 3):
        assert inputs.shape == targets.shape == (8, 16)
        for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
            assert (*row, target[-1]) in windows
            assert row[1:] == target[:-1]


def test_devices_and_accumulation_share_the_same_global_batch(folder: Path) -> None:
    whole = next(iter(ready(folder).train_dataloader()))[0]
    parts = []
    for micro, rank in itertools.product(range(2), range(2)):
        loader = ready(folder, rank=rank, world_size=2, accumulate=2).train_dataloader()
        parts.append(next(itertools.islice(loader, micro, None))[0])
    assert torch.equal(torch.cat(parts), whole)
    with pytest.raises(ValueError, match="multiple of 6"):
        ready(folder, world_size=3, accumulate=2).train_dataloader()


def test_validation_reads_the_text_once_in_order(folder: Path) -> None:
    data = ready(folder)
    tokens = torch.cat([inputs.flatten() for inputs, _ in data.val_dataloader()]).numpy()
    np.testing.assert_array_equal(tokens, data.files.valid[: len(tokens)])
    assert 0 <= len(data.files.valid) - 1 - len(tokens) < 16


def test_identity_changes_with_all_that_changes_batches(folder: Path) -> None:
    first = ready(folder).identity()
    assert ready(folder, valid_batch_size=5).identity() == first
    changes: list[dict[str, Any]] = [{"seed": 1}, {"batch_size": 16}, {"context_length": 8}, {"vocab_size": 280}]
    for change in changes:
        assert ready(folder, **change).identity() != first
    assert all(isinstance(value, str | int) for value in first.values())


def test_tokenizer_is_the_one_of_the_tokens(folder: Path) -> None:
    data = ready(folder)
    story = data.tokenizer.decode(data.files.valid[:200].tolist())
    assert (folder / "data" / CORPUS.name / "valid.txt").read_text(encoding="utf-8").startswith(story)
    assert data.valid_meta == data.files.meta.valid


@pytest.mark.parametrize("name", ["batch_size", "valid_batch_size"])
def test_no_sequences_at_all_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"data.{name} is 0"):
        module(folder, **{name: 0})


def test_context_longer_than_the_text_is_refused(folder: Path) -> None:
    data = ready(folder, context_length=5_000)
    with pytest.raises(ValueError, match="the validation text holds .* needs at least 5001"):
        data.val_dataloader()
