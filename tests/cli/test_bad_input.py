"""A user's mistake gets one line with the value, the limit and the fix, a non-zero exit code, and changes nothing."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lm.cli import main

STORY = "Once there was a small red cat. It sat on a mat and sang to the moon.\n<|endoftext|>\n" * 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with some text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text(STORY, encoding="utf-8")
    (tmp_path / "valid.txt").write_text(STORY, encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait\n" * 50)
    (tmp_path / "noise.ckpt").write_bytes(b"no checkpoint at all")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    return tmp_path


def files(folder: Path) -> set[str]:
    """Everything of value on disk: locks and memories of digests do not count."""
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return {n for n in names if not re.search(r"\.lock$|digests\.json$", n)}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lm"])
    return main([str(a) for a in arguments])


TEXT = ("--data.source", "text", "--data.train_text", "train.txt", "--data.valid_text", "valid.txt")
CASES = {
    "config missing": (("--config", "none.yaml"), "none.yaml"),
    "unknown key": (("--model.net.d_modle", 3), "d_modle"),
    "not a number": (("--model.net.d_model", "wide"), "d_model"),
    "width not divisible by heads": (("--model.net.d_model", 20, "--model.net.num_heads", 3), r"20.*3"),
    "odd head width": (("--model.net.d_model", 6, "--model.net.num_heads", 2), r"3.*even|even.*3"),
    "unknown switch": (("--model.net.ffn", "relu"), "relu"),
    "dropout": (("--model.net.dropout", 1.5), "1.5"),
    "learning rates": (("--model.optimizer.min_learning_rate", 1.0), "min_learning_rate 1.0"),
    "vocabulary too small": ((*TEXT, "--model.net.vocab_size", 100), r"100.*257"),
    "missing text": ((*TEXT, "--data.train_text", "gone.txt"), "gone.txt"),
    "no text named": (("--data.source", "text"), "train_text"),
    "empty text": ((*TEXT, "--data.train_text", "empty.txt"), r"empty\.txt"),
    "not UTF-8": ((*TEXT, "--data.train_text", "latin.txt"), r"latin\.txt.*3"),
    "context longer than the data": ((*TEXT, "--model.net.context_length", 100_000), r"needs at least 100001"),
    "batch that does not divide": (
        (*TEXT, "--data.batch_size", 7, "--trainer.accumulate_grad_batches", 2),
        "multiple of 2",
    ),
    "no batch": ((*TEXT, "--data.batch_size", 0), "at least 1"),
    "no checkpoint there": ((*TEXT, "--ckpt_path", "gone.ckpt"), r"gone\.ckpt"),
    "not a checkpoint": ((*TEXT, "--ckpt_path", "noise.ckpt"), r"noise\.ckpt"),
    "not our checkpoint": ((*TEXT, "--ckpt_path", "foreign.ckpt"), "not written by"),
    "unknown accelerator": ((*TEXT, "--trainer.accelerator", "gpuu"), "gpuu"),
    "sharded strategy": ((*TEXT, "--trainer.strategy", "fsdp"), "requires a GPU accelerator"),
    "no evaluation": ((*TEXT, "--eval_every", 0), "eval_every is 0"),
}


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES.keys())
def test_fit(
    folder: Path,
    tiny_config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    assert run(monkeypatch, "fit", "--config", tiny_config, *arguments) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not [name for name in files(folder) if name.endswith((".tmp", ".ckpt.tmp"))]


TOOLS = {
    "no run": (("generate",), "no run with a checkpoint"),
    "run missing": (("generate", "--run", "runs/1"), "runs/1"),
    "validate without a run": (("validate",), "no run with a checkpoint"),
    "no such device": (("generate", "--run", "noise.ckpt", "--device", "mps"), "no mps device"),
    "top_p": (("generate", "--top_p", 2), "top_p"),
    "tokenizer missing": (("encode", "tokenizers/none", "train.txt", "out.npy"), "tokenizers/none"),
    "tokenizer text missing": (("train-tokenizer", "gone.txt", "tokenizers/x"), r"gone\.txt"),
    "tokenizer too small": (("train-tokenizer", "train.txt", "tokenizers/x", "--vocab_size", 10), r"10.*257"),
    "missing argument": (("train-tokenizer",), "text"),
    "hub out of reach": (("prepare", "--source", "tinystories"), "quickstart"),
}


@pytest.mark.parametrize(("arguments", "message"), TOOLS.values(), ids=TOOLS.keys())
def test_tools(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    before = files(folder)
    assert run(monkeypatch, *arguments) != 0
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert files(folder) == before


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
