"""benchmarks/memory.py, on the CPU: predictions beside real steps, and a table that survives a failing row."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import memory


@pytest.mark.parametrize("row", memory.small_rows(), ids=lambda row: f"{row.name} {row.precision}")
def test_predictions_hold(row: memory.Row) -> None:
    result = memory.measure(row, torch.device("cpu"), repetitions=1)
    assert result["predicted_bytes"] == pytest.approx(result["measured_bytes"], rel=0.07)
    assert result["predicted_flops"] == result["counted_flops"]
    assert result["tokens_per_second"] > 0


def test_a_failing_row_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = replace(memory.small_rows()[0], net=replace(memory.small_rows()[0].net, context_length=16))
    monkeypatch.setattr(memory, "small_rows", lambda: [replace(good, batch_size=-1), good])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    memory.main(tmp_path / "memory.json", 1)
    saved = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert ["error" in result for result in saved["results"]] == [True, False]
    assert "RuntimeError" in capsys.readouterr().out


def test_the_rows_of_a_gpu_fit_and_differ() -> None:
    rows = memory.rows(80 * 10**9)
    assert len(rows) >= 8
    assert {row.precision for row in rows} == {"float32", "bf16-mixed"}
    for row in rows:
        if row.fast:
            predicted = memory.fast_moments(row.net, row.net.context_length, row.batch_size)
        else:
            lines = memory.moments(row.net, row.net.context_length, row.precision, row.checkpointing)
            predicted = {name: line.at(row.batch_size) for name, line in lines.items()}
        assert max(predicted.values()) < 80e9
