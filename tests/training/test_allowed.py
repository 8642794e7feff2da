"""A configuration from elsewhere builds Lightning's parts and nothing else, and a checkpoint from elsewhere nothing."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.cli import main

EXECUTED = "executed"
POPEN = f"{{class_path: subprocess.Popen, init_args: {{args: [touch, {EXECUTED}]}}}}"
LAMBDA = "{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_fit_start: %s}}"
MOCK = "{class_path: unittest.mock.Mock, dict_kwargs: {name: x}}"
HOSTILE = {
    **{name: f"trainer: {{{name}: {POPEN}}}" for name in ("callbacks", "logger", "profiler", "strategy", "plugins")},
    "list of callbacks": f"trainer: {{callbacks: [{POPEN}]}}",
    "any function": f"trainer: {{callbacks: [{LAMBDA % 'os.system'}]}}",
    "any class with a call": f"trainer: {{callbacks: [{LAMBDA % MOCK}]}}",
    "any class in another callback": (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.BackboneFinetuning, "
        f"init_args: {{lambda_func: {MOCK}}}}}]}}"
    ),
    "model": f"model: {{net: {POPEN}}}",
    "data": f"data: {{stories: {POPEN}}}",
    "tag": f'trainer: !!python/object/apply:os.system ["touch {EXECUTED}"]',
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lm"])
    return tmp_path


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_configuration(folder: Path, tiny_config: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (folder / "hostile.yaml").write_text(text, encoding="utf-8")
    assert main(["fit", "--config", str(tiny_config), "--config", "hostile.yaml", "--trainer.max_steps", "1"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert [path.name for path in folder.iterdir()] == ["hostile.yaml"]


def test_lightnings_own_callbacks_are_allowed(folder: Path, tiny_config: Path) -> None:
    text = "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/loss}}], max_steps: 1}"
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    assert main(["fit", "--config", str(tiny_config), "--config", "own.yaml"]) == 0


class Hostile:
    """Runs a shell command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {EXECUTED}",)


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "--resume"),
        ("fit", "--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"),
        ("validate",),
        ("generate",),
        ("verify",),
        ("export", "out"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_hostile_checkpoint(
    folder: Path, tiny_config: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], form: str
) -> None:
    run = folder / "lightning_logs/version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(tiny_config.read_text(encoding="utf-8"), encoding="utf-8")
    path, content = run / "checkpoints/last.ckpt", {"lm": {"format": 1}, "global_step": 1, "callbacks": Hostile()}
    if form == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert main([*arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert not list(folder.rglob(EXECUTED))
