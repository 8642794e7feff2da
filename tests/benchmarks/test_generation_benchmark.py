"""The benchmark of generation: what it prints is what was drawn, and a rival's error does not end it."""

from pathlib import Path

import pytest
import torch

from benchmarks import generation
from lm.model import ModelConfig


def test_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generation, "SHAPES", {"tiny": ModelConfig(300, 64, d_model=16, num_layers=1, num_heads=2)})
    monkeypatch.setattr(generation, "MODES", ("eager", "static cache"))
    cells = generation.cells(["tiny"], [1, 3], torch.device("cpu"), tmp_path)
    results = generation.compare(cells, new=12, repeats=1, limit=60)
    assert len(results) == 8
    assert [row["equal"] for row in results] == ["all"] * 8
    assert all(row["times_ours"] > 0 for row in results if row["mode"].startswith("transformers"))
    assert len(capsys.readouterr().out.splitlines()) == 9
    (tmp_path / "tiny" / "config.json").write_text("{")
    results = generation.compare(cells[:1], new=3, repeats=1, limit=60)
    assert "error" not in results[1]
    assert "error" in results[2]
    assert generation.compare(cells[:1], 3, 1, limit=0)[2]["error"] == "skipped: no time left"


def test_equal_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generation, "SHAPES", {"tiny": ModelConfig(300, 64, d_model=16, num_layers=1, num_heads=2)})
    (cell,) = generation.cells(["tiny"], [2], torch.device("cpu"), tmp_path)
    with torch.no_grad():
        logits_V = cell.model(torch.tensor([[*cell.prompts[1], 3]]))[0, -1]
    gap = f"{abs(float(logits_V[5] - logits_V[4])):.1e}"
    assert generation.equal_tokens([[1, 2], [3, 4]], [[1, 2], [3, 4]], cell) == "all"
    expected = f"1 of 2 rows, others from 1 on, by logits at most {gap} apart"
    assert generation.equal_tokens([[1, 2], [3, 5]], [[1, 2], [3, 4]], cell) == expected
