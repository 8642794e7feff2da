"""Mistakes that need a history, each told in one line; for the others see test_bad_input_table.py."""

import errno
import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from lightning.pytorch.loggers import TensorBoardLogger

from lm.cli import main

STORY = "Once there was a small red cat. It sat on a mat and sang to the moon.\n<|endoftext|>\n" * 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with some text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text(STORY, encoding="utf-8")
    (tmp_path / "valid.txt").write_text(STORY, encoding="utf-8")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lm"])
    return main([str(a) for a in arguments])


TEXT = ("--data.source", "text", "--data.train_text", "train.txt", "--data.valid_text", "valid.txt")


def test_changed_token_file(
    folder: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            monkeypatch,
            "prepare",
            "--source",
            "text",
            "--train_text",
            "train.txt",
            "--valid_text",
            "valid.txt",
            "--vocab_size",
            300,
        )
        == 0
    )
    (tokens,) = folder.glob("data/*/tokens-*")
    damaged = np.load(tokens / "train.npy")
    damaged[5] = 4000
    np.save(tokens / "train.npy", damaged)
    capsys.readouterr()
    assert run(monkeypatch, "fit", "--config", tiny_config, *TEXT) == 2
    assert "train.npy changed since it was written" in capsys.readouterr().err


def test_checkpoint_of_another_shape_or_tokenizer(
    folder: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "fit", "--config", tiny_config, *TEXT, "--trainer.max_steps", 2) == 0
    saved = folder / "lightning_logs/version_0/checkpoints/best.ckpt"
    capsys.readouterr()
    assert run(monkeypatch, "fit", "--config", tiny_config, *TEXT, "--model.net.d_model", 32, "--ckpt_path", saved) == 2
    assert "net.d_model is 16 in the checkpoint and 32 here" in capsys.readouterr().err
    (folder / "train.txt").write_text(STORY.replace("cat", "dog"), encoding="utf-8")
    assert run(monkeypatch, "fit", "--config", tiny_config, *TEXT, "--ckpt_path", saved) == 2
    assert "data.tokenizer is" in capsys.readouterr().err
    saved.write_bytes(saved.read_bytes()[:5000])
    assert run(monkeypatch, "generate", "--run", saved) == 2
    assert "not a whole checkpoint" in capsys.readouterr().err


def test_a_run_trains_in_one_process_at_a_time(
    folder: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ("fit", "--config", tiny_config, *TEXT, "--trainer.max_steps", 2)
    assert run(monkeypatch, *fit) == 0
    saved = (folder / "lightning_logs/version_0/checkpoints/last.ckpt").read_bytes()
    gc.collect()  # the run above has its lock for as long as its callbacks live
    with FileLock(folder / "lightning_logs/version_0/.lock"):
        assert run(monkeypatch, "fit", "--resume", "--trainer.max_steps", 4) == 2
    assert "error: another process trains in lightning_logs/version_0; wait" in capsys.readouterr().err
    assert (folder / "lightning_logs/version_0/checkpoints/last.ckpt").read_bytes() == saved


def test_a_new_run_whose_number_was_taken_takes_the_next(
    folder: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(folder: Path | None, checkpoint: str | None) -> TensorBoardLogger:
        return TensorBoardLogger(".", name="lightning_logs", version=0)  # as counted before the other process began

    monkeypatch.setattr("lm.training.lightning_cli._logger", first)
    other = folder / "lightning_logs/version_0"
    other.mkdir(parents=True)
    with FileLock(other / ".lock"):
        assert run(monkeypatch, "fit", "--config", tiny_config, *TEXT, "--trainer.max_steps", 2) == 0
    assert not {"config.yaml", "run.json", "checkpoints"} & {path.name for path in other.iterdir()}
    made = {path.name.split(".")[0] for path in (folder / "lightning_logs/version_1").iterdir()}
    assert made >= {"config", "run", "tokenizer", "checkpoints", "events"}


@pytest.mark.parametrize(
    ("number", "name", "line"),
    [
        (errno.EFBIG, None, "File too large; raise the limit of a file's size"),
        (errno.ENOSPC, "made.npy", "No space left on device: made.npy; make room on the disk"),
        (errno.EACCES, "data", "Permission denied: data; get the right to it"),
        (errno.EACCES, b"events", "Permission denied: events; get the right to it"),
        (errno.ENOTDIR, "train.txt/made", "Not a directory: train.txt/made\n"),
    ],
)
def test_errors_of_the_system_say_what_to_do(
    number: int,
    name: str | bytes | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(command: str, arguments: list[str]) -> int:
        raise OSError(number, os.strerror(number), name) if name else OSError(number, os.strerror(number))

    monkeypatch.setattr("lm.cli.run_tool", fail)
    assert main(["verify"]) == 2
    assert f"error: {line}" in capsys.readouterr().err
