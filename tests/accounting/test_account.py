"""`python -m lm account`: presets, configurations, runs, JSON, mistakes, and how fast it answers."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm.accounting import PRESETS, Workload, count_parameters, full_account, read_workload
from lm.cli import main
from lm.model import ModelConfig

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["account", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"gpt2-small", "gpt2-xl", "llama-1b", "llama-70b", "tinystories"} <= set(PRESETS)
    for name, workload in PRESETS.items():
        found = report(capsys, name)
        assert found["parameters"]["total"] == count_parameters(workload.net).total
    assert report(capsys)["workload"] == report(capsys, "tinystories")["workload"]


def test_the_preset_is_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    preset, config = report(capsys, "tinystories"), report(capsys, CONFIGS / "tinystories.yaml")
    assert config["workload"].pop("name") == str(CONFIGS / "tinystories.yaml")
    preset["workload"].pop("name")
    assert preset == config


def test_time_of_the_write_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Problem adamwAccounting (d): 400K steps of 1024 sequences on one A100; its 6ND alone gives 6,363 days."""
    tokens = 400_000 * 1024 * 1024
    options = ("--device", "A100", "--products", "float32", "--tokens", tokens)
    found = report(capsys, "gpt2-xl", "--batch_size", 1024, *options)
    assert round(found["time"]["seconds"] / 86_400) == 6584
    assert found["time"]["peak_flops"] == 19.5e12
    assert round(6 * tokens * 2.13e9 / 9.75e12 / 86_400) == 6363
    assert round(6 * tokens * found["parameters"]["total"] / 9.75e12 / 86_400) == 6354


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    plain = report(capsys, "gpt2-xl")
    long = report(capsys, "gpt2-xl", "--net.context_length", 16_384)
    assert long["flops"]["forward_per_sequence"]["total"] == 149_522_795_724_800
    assert long["workload"]["net"]["context_length"] == 16_384
    recomputed = report(capsys, "gpt2-xl", "--checkpointing", "--precision", "bf16-mixed", "--batch_size", 8)
    assert recomputed["memory"]["activations_total"]["bytes"] < 8 * plain["memory"]["activations_total"]["bytes"] / 4
    assert recomputed["flops"]["recomputed_per_step"] > 0
    assert recomputed["time"]["products"] == "bfloat16"
    again = recomputed["flops"]["training_per_step"] + recomputed["flops"]["recomputed_per_step"]
    rate = recomputed["time"]["peak_flops"] * recomputed["time"]["utilisation"]
    assert recomputed["time"]["tokens_per_second"] == pytest.approx(8 * 1024 * rate / again)
    small = report(capsys, "gpt2-xl", "--memory_gb", 40)
    assert small["memory"]["largest_batch"] == {"memory": 40 * 10**9, "batch_size": 0}
    peak = plain["memory"]["peak"]
    assert peak["bytes"] == peak["per_sequence"] + peak["fixed"]


def test_the_optimizer_of_a_configuration_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "muon.yaml"
    overlay.write_text("model: {optimizer: {algorithm: muon}}", encoding="utf-8")
    with_adamw, with_muon = report(capsys, "gpt2-small"), report(capsys, "gpt2-small", overlay)
    in_blocks = with_adamw["parameters"]["attention"] + with_adamw["parameters"]["ffn"]
    saved = 4 * in_blocks
    assert with_adamw["memory"]["optimizer_state"] - with_muon["memory"]["optimizer_state"] == saved
    overlay.write_text("model: {optimizer: {algorithm: lion}}", encoding="utf-8")
    assert main(["account", "gpt2-small", str(overlay)]) == 2
    assert "adamw, muon" in capsys.readouterr().err


def test_overlays_win_key_by_key(capsys: pytest.CaptureFixture[str]) -> None:
    overlay = CONFIGS / "ablations" / "silu.yaml"
    found = report(capsys, CONFIGS / "tinystories.yaml", overlay, "--net.num_layers", 2)["workload"]
    net = ModelConfig(**found["net"])
    assert net == ModelConfig(ffn="silu", d_ff=2016, num_layers=2)
    assert (found["batch_size"], found["precision"], found["tokens"]) == (128, "bf16-mixed", 327_680_000)
    assert report(capsys, "tinystories", overlay)["workload"]["net"]["ffn"] == "silu"


def test_micro_batch_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    content = {
        "trainer": {"accumulate_grad_batches": 4, "devices": 2, "max_steps": 10, "precision": None},
        "data": {"batch_size": 64},
        "model": {"net": {"context_length": 128, "rope_theta": "1e4", "d_ff": None}},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    expected = Workload(str(tmp_path), ModelConfig(context_length=128), 8, "float32", 10 * 64 * 128)
    assert read_workload([str(tmp_path)]) == expected  # the folder of a run
    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    assert read_workload([str(checkpoint)]).net == expected.net


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_has_an_account(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    workload = read_workload([str(path)])
    assert workload.net == ModelConfig(**content["model"]["net"])
    assert full_account(workload)["time"]["tokens"] == (
        content["trainer"]["max_steps"] * content["data"]["batch_size"] * workload.net.context_length
    )


def test_table_says_what_the_report_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "gpt2-xl", "--device", "A100", "--tokens", "1000000"]) == 0
    table = capsys.readouterr().out
    for words in (
        "2,127,057,600",
        "4,513,336,524,800",
        "4,513,654,374,400",
        "66.91%",
        "largest batch in 80 GB",
        "days",
    ):
        assert words in table
    assert max(map(len, table.splitlines())) <= 120


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    known = report(capsys, "--device", "list")
    assert known["A100"] == {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12}
    assert known["T4"]["tf32"] is None
    assert main(["account", "--device", "list"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^A100 +19\.5 +156 +312$", table, re.MULTILINE)
    assert len(table.splitlines()) == 1 + len(known)


MISTAKES = {
    "unknown preset": (
        ("gpt3",),
        r"gpt3 is no preset.*gpt2-small, gpt2-medium, gpt2-large, gpt2-xl, llama-1b.*tinystories",
    ),
    "no YAML": (("broken.yaml",), r"broken\.yaml is not a YAML"),
    "list": (("list.yaml",), r"list\.yaml is not a configuration"),
    "no section": (("flat.yaml",), r"flat\.yaml: model is 3"),
    "overlay missing": (("gpt2-xl", "gone.yaml"), r"gone\.yaml"),
    "unknown key": (("gpt2-xl", "--net.d_modle", 3), r"'d_modle'.*d_model"),
    "not whole": (("gpt2-xl", "--net.num_layers", 1.5), r"num_layers is 1\.5.*whole"),
    "not a number": (("gpt2-xl", "--net.rope_theta", "wide"), "rope_theta is 'wide'"),
    "not a switch": (("gpt2-xl", "--net.tie_embeddings", 3), r"tie_embeddings is 3.*true or false"),
    "heads": (("gpt2-xl", "--net.num_heads", 7), r"1600.*7"),
    "batch": (("gpt2-xl", "--batch_size", 0), "batch_size is 0"),
    "precision": (("gpt2-xl", "--precision", "fp8"), "fp8"),
    "precision of a file": (("fp8.yaml",), r"trainer\.precision is fp8.*float32, bf16-mixed"),
    "utilisation": (("gpt2-xl", "--utilisation", 50), r"50.*at most 1"),
    "tokens": (("gpt2-xl", "--tokens", 0), "tokens is 0"),
    "memory": (("gpt2-xl", "--memory_gb", 0), "memory is 0"),
    "device": (("gpt2-xl", "--device", "abacus"), r"'abacus'.*A100"),
    "products": (("gpt2-xl", "--device", "T4", "--products", "bfloat16"), "T4 has no bfloat16"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("broken", "a: [1"),
        ("list", "- 1"),
        ("flat", "model: 3"),
        ("fp8", "trainer: {precision: fp8}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    assert main(["account", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


def test_answers_at_once_and_without_torch() -> None:
    code = (
        "import sys; from lm.cli import main; main(sys.argv[1:]); "
        "sys.exit(bool({'torch', 'lightning', 'numpy'} & {*sys.modules}))"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        arguments = [sys.executable, "-c", code, "account", str(CONFIGS / "tinystories.yaml")]
        subprocess.run(arguments, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1  # 0.15 s alone; a busy machine takes longer
