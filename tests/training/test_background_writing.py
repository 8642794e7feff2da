"""Checkpoints that a thread writes: what was saved is what the disk gets, and what fails is said."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lm.model import ModelConfig
from lm.training import LanguageModel
from lm.training.files import Packed, SaveError, check_digest
from lm.training.runs import load
from lm.training.stopping import CheckpointFiles, LastCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # Lightning 2.6 on torch 2.13

NET = ModelConfig(vocab_size=280, context_length=16, d_model=16, num_layers=1, num_heads=2)


@pytest.fixture
def files() -> Iterator[CheckpointFiles]:
    files = CheckpointFiles()
    yield files
    files.teardown()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Closed, it holds back what is to be written."""
    gate, write = threading.Event(), Packed.write

    def hold_back(packed: Packed, *arguments: Any) -> None:
        assert gate.wait(60)
        write(packed, *arguments)

    monkeypatch.setattr(Packed, "write", hold_back)
    return gate


def fail(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_checkpoint(step: int, weight: torch.Tensor) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": weight}}


def weight_of(path: Path) -> float:
    check_digest(path)
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"][0])


def test_training_goes_on_and_the_file_has_what_was_saved(
    files: CheckpointFiles, gate: threading.Event, tmp_path: Path
) -> None:
    path, weight = tmp_path / "last.ckpt", torch.ones(1000)
    files.save_checkpoint(make_checkpoint(1, weight), path)
    weight.fill_(2)
    files.check()
    assert not path.exists()
    gate.set()
    files.check(wait=True)
    assert weight_of(path) == 1


def test_second_save_leaves_the_first_its_memory(files: CheckpointFiles, gate: threading.Event, tmp_path: Path) -> None:
    weight = torch.ones(1000)
    files.save_checkpoint(make_checkpoint(1, weight), tmp_path / "best.ckpt")
    weight.fill_(2)
    threading.Timer(0.05, gate.set).start()
    files.save_checkpoint(make_checkpoint(2, weight), tmp_path / "last.ckpt")
    files.check(wait=True)
    assert [weight_of(tmp_path / name) for name in ("best.ckpt", "last.ckpt")] == [1, 2]


def test_same_checkpoint_is_packed_once(
    files: CheckpointFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, pack = [], Packed.pack
    monkeypatch.setattr(Packed, "pack", lambda self, checkpoint: (packed.append(1), pack(self, checkpoint)))
    weight = torch.ones(1000)
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    for path in (best, last):
        files.save_checkpoint(make_checkpoint(1, weight), path)
    files.check(wait=True)
    assert len(packed) == 1
    assert best.read_bytes() == last.read_bytes()
    files.save_checkpoint(make_checkpoint(2, weight), last)
    assert len(packed) == 2
    weight.fill_(2)
    files.save_checkpoint(make_checkpoint(2, weight), last)
    files.check(wait=True)
    assert (len(packed), weight_of(last)) == (3, 2)
    with torch.inference_mode():
        files.save_checkpoint(make_checkpoint(3, torch.ones(1)), last)


def test_smaller_checkpoint_leaves_nothing_of_a_larger_one(files: CheckpointFiles, tmp_path: Path) -> None:
    for size in (1000, 10):
        files.save_checkpoint(make_checkpoint(1, torch.ones(size)), tmp_path / f"{size}.ckpt")
    files.check(wait=True)
    files.save_checkpoint(make_checkpoint(1, torch.ones(10)), tmp_path / "again.ckpt")
    files.check(wait=True)
    assert (tmp_path / "again.ckpt").stat().st_size < 4000
    assert weight_of(tmp_path / "again.ckpt") == 1


def test_failure_is_raised_once_and_keeps_the_next_file_from_being_written(
    files: CheckpointFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fsync", fail)
    weight = torch.ones(10)
    for name in ("best.ckpt", "last.ckpt"):
        files.save_checkpoint(make_checkpoint(1, weight), tmp_path / name)
    with pytest.raises(SaveError, match=r"best\.ckpt \(No space left on device\)"):
        files.check(wait=True)
    files.check(wait=True)
    files.teardown()
    assert not caplog.text
    assert not [*tmp_path.iterdir()]
    files.save_checkpoint(make_checkpoint(2, torch.ones(10)), tmp_path / "last.ckpt")
    files.teardown()
    assert "cannot save the checkpoint" in caplog.text


class FullDisk(Callback):
    """From a step on, counted from 0, nothing can be written; `seen` is the newest step."""

    def __init__(self, step: int, files: CheckpointFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step, self.files, self.monkeypatch, self.seen = step, files, monkeypatch, 0
        self.failed = threading.Event()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen = batch_idx
        if batch_idx == self.step:
            self.files.check(wait=True)
            self.monkeypatch.setattr(os, "fsync", self.fail)
        if batch_idx > self.step:
            self.failed.wait(10)
            time.sleep(0.02)

    def fail(self, *arguments: Any) -> None:
        self.failed.set()
        fail()


@pytest.mark.parametrize(("full_from", "every", "saved", "ends_by"), [(3, 2, 2, 5), (11, 6, 6, 17), (23, 6, 18, 23)])
def test_full_disk_ends_training_soon(
    full_from: int,
    every: int,
    saved: int,
    ends_by: int,
    data: Callable[..., Any],
    trainer: Callable[..., Trainer],
    files: CheckpointFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the next save, and at the last one too, which no step follows."""
    seed_everything(0, verbose=False)
    disk = FullDisk(full_from, files, monkeypatch)
    run = trainer(disk, LastCheckpoint(every, files), plugins=[files], saves=True, max_steps=24)
    with pytest.raises(SaveError, match=r"last\.ckpt \(No space left on device\); the one before it is whole"):
        run.fit(LanguageModel(NET), datamodule=data())
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == saved
    assert disk.seen < ends_by or disk.seen == full_from


def test_end_of_training_waits(
    data: Callable[..., Any], trainer: Callable[..., Trainer], files: CheckpointFiles, gate: threading.Event
) -> None:
    """The disk has the last step before callbacks hear that training is over."""

    class Over(Callback):
        step = 0

        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.step = load(Path(trainer.log_dir or "") / "checkpoints/last.ckpt")["global_step"]

    over = Over()
    threading.Timer(0.5, gate.set).start()
    run = trainer(over, LastCheckpoint(2, files), plugins=[files], saves=True, max_steps=2)
    run.fit(LanguageModel(NET), datamodule=data())
    assert over.step == 2
