"""Reports say what run.json says, lose no run, and need no network."""

import csv
import json
import math
import statistics
from pathlib import Path

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from lm.cli import main
from lm.experiments.compare import compare
from lm.experiments.curves import read_run
from lm.experiments.figures import _lines

SAMPLE = "<b>Tom & Lily</b> found a ``` box."


def make_run(folder: Path, rate: float, seed: int, loss: float, status: str = "finished") -> Path:
    folder.mkdir(parents=True)
    config = {"seed_everything": seed, "model": {"optimizer": {"max_learning_rate": rate}}, "run_folder": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    facts = {"status": status, "device": "x86_64 CPU", "devices": 1, "parameters": 1234}
    if status == "finished":
        result = {"val/loss": loss, "val/perplexity": 7.5, "val/bits_per_byte": loss / 3}
        facts |= {"step": 40, "tokens_seen": 4000, "training_seconds": 8.0, "best_loss": loss, "result": result}
        with SummaryWriter(str(folder)) as writer:
            for step in range(1, 41):
                writer.add_scalar("train/loss", loss + 4 / step, step)
                writer.add_scalar("train/loss_vs_seconds", loss + 4 / step, step // 5)
                writer.add_scalar("train/tokens_seen", 100 * step, step)
            writer.add_scalar("val/loss", loss, 40)
            writer.add_scalar("val/loss_vs_seconds", loss, 8)
            writer.add_text("sample", SAMPLE, 40)
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    losses = {0.001: (2.0, 2.1, 2.4), 0.01: (1.7, 1.8, 1.9)}
    for rate, values in losses.items():
        for seed, loss in enumerate(values):
            make_run(folder / f"rate_{rate}_{seed}", rate, seed, loss)
    make_run(folder / "lost", 1.0, 0, float("nan"), "diverged")
    return folder


def test_tables_groups_and_diverged_runs(study: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    assert main(["report", str(study), "--output", str(output), "--title", "A & <B>"]) == 0
    with (output / "runs.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert len(rows) == 7
    assert rows["lost"]["status"] == "diverged"
    for name in rows.keys() - {"lost"}:
        facts = json.loads((study / name / "run.json").read_text())
        assert float(rows[name]["final_loss"]) == facts["result"]["val/loss"]
        assert float(rows[name]["best_loss"]) == facts["best_loss"]
        assert float(rows[name]["bits_per_byte"]) == facts["result"]["val/bits_per_byte"]
        assert int(rows[name]["tokens_seen"]) == 4000
    assert "model.optimizer.max_learning_rate" in rows["lost"]
    assert "run_folder" not in rows["lost"]
    markdown = (output / "report.md").read_text()
    for values in ((2.0, 2.1, 2.4), (1.7, 1.8, 1.9)):
        assert f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}" in markdown
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_runs_tried_anew_count_once(study: Path, tmp_path: Path) -> None:
    make_run(study / "killed", 0.01, 0, float("nan"), "running")
    cut = make_run(study / "cut", 0.01, 1, 9.0)
    facts = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**facts, "status": "interrupted"}))
    alone = json.loads((make_run(study / "alone", 0.1, 0, 3.0) / "run.json").read_text())
    (study / "alone" / "run.json").write_text(json.dumps({**alone, "status": "interrupted"}))
    assert main(["report", str(study), "--output", str(tmp_path / "report")]) == 0
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| 0.01 | 3 | 0 | 1.8000 ± 0.1000 |" in markdown
    assert "| 0.1 | 1 | 0 | 3.0000 ± – |" in markdown
    assert "Hollow points: runs that did not train to their end." in markdown
    comparison = compare([read_run(folder) for folder in study.iterdir()])
    (line,) = [line for line in _lines(comparison)[0] if line.label == "0.01"]
    assert sorted(run.folder.name for run in line.runs) == ["rate_0.01_0", "rate_0.01_1", "rate_0.01_2"]


def test_series_named_by_a_number_come_in_its_order(tmp_path: Path) -> None:
    folders = []
    for batch in (16, 4, 1024):
        for rate in (0.1, 0.2, 0.3, 0.4, 0.5):
            folder = make_run(tmp_path / f"{batch}-{rate}", rate, 0, 2.0)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            (folder / "config.yaml").write_text(yaml.safe_dump({**config, "data": {"batch_size": batch}}))
            folders.append(folder)
    make_run(tmp_path / "full", 0.1, 0, math.nan, "interrupted")
    config = {**config, "data": {"batch_size": 4096}}
    (tmp_path / "full" / "config.yaml").write_text(yaml.safe_dump(config))
    comparison = compare([read_run(folder) for folder in [*folders, tmp_path / "full"]])
    assert [line.label for line in _lines(comparison)[0]] == ["4 (0.1)", "16 (0.1)", "1024 (0.1)"]
    assert comparison.series_title() == "batch_size"


def test_kinds_are_named_by_what_is_unusual(tmp_path: Path) -> None:
    def kind(name: str, norm: str, position: str, rate: float) -> Path:
        folder = make_run(tmp_path / name, rate, 0, 2.0)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["model"]["net"] = {"norm": norm, "position": position}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    kinds = {"a": ("rms", "rope"), "b": ("none", "rope"), "c": ("rms", "none")}
    folders = [kind(f"{name}{rate}", *values, rate) for name, values in kinds.items() for rate in (0.1, 0.2, 0.3)]
    comparison = compare([read_run(folder) for folder in folders])
    assert comparison.sweep_key == "model.optimizer.max_learning_rate"
    keys = ["model.net.norm", "model.net.position"]
    labels = dict.fromkeys(comparison.label(group.values, keys) for group in comparison.groups)
    assert list(labels) == ["baseline", "norm none", "position none"]


def test_page_stands_alone_and_escapes(study: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    for _ in range(2):  # an earlier report is replaced
        assert main(["report", str(study), "--output", str(output), "--title", "A & <B>"]) == 0
    page = (output / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert page.count("<svg") == 4
    assert "<h1>A &amp; &lt;B&gt;</h1>" in page
    assert "&lt;b&gt;Tom &amp; Lily&lt;/b&gt;" in page
    assert "````text" in (output / "report.md").read_text()
    assert not list(output.glob("*.tmp"))


def test_bad_input_is_one_line(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = make_run(tmp_path / "silent", 0.1, 0, 1.0, "unknown")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    cases = [
        ([str(tmp_path / "gone"), "--output", str(tmp_path / "a")], "gone is neither"),
        ([str(silent), "--output", str(tmp_path / "a")], "no training losses"),
        ([str(study), "--output", str(other)], "is not a report"),
        (["--output", str(tmp_path / "a")], "no run is named"),
    ]
    for arguments, message in cases:
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "a").exists()
