"""The examples of docs/python.md, run one after the other on a tiny run."""

from pathlib import Path
from typing import Any

import pytest

from docs.tools import blocks
from lm.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_every_example_runs(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(tiny_config), "--trainer.max_steps", "3"]) == 0
    Path("train.txt").write_text("Once upon a time there was a cat. The cat saw the dog.\n" * 40, encoding="utf-8")
    capsys.readouterr()
    names: dict[str, Any] = {}
    examples = blocks.blocks(PAGE)
    assert len(examples) == 6
    for example in examples:
        assert example.language == "python"
        assert len(example.code.splitlines()) <= 5
        exec(compile(example.code, f"python.md:{example.line}", "exec"), names)
    shown = capsys.readouterr().out
    assert shown.startswith("Once upon a time\nModelConfig(")
    assert "nats per token" in shown
    assert Path("tokenizers/mine/merges.txt").is_file()
    assert isinstance(names["text"], str)
