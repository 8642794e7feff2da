"""A configuration's bf16-mixed is for devices that multiply in bfloat16; other CPUs train in float32."""

from typing import Any

import pytest
import torch
from llvmlite import binding

from lm.training import lightning_cli, precision
from lm.training.lightning_cli import LMCommandLine
from lm.training.precision import multiplies_in_bfloat16, settle_precision


@pytest.mark.parametrize(
    ("features", "has_library", "expected"),
    [
        ({"avx512bf16": True, "amx-bf16": False}, True, True),
        ({"avx512bf16": False, "amx-bf16": True}, True, True),
        ({"avx512f": True, "avx512bf16": False}, True, False),
        ({"neon": True, "bf16": True}, True, True),
        ({"neon": True, "bf16": True}, False, False),
        ({}, True, False),
    ],
)
def test_instructions(
    features: dict[str, bool], has_library: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_library)
    assert multiplies_in_bfloat16() == expected


NARROW, WIDE = "bf16-mixed", "32-true"


@pytest.mark.parametrize(
    ("accelerator", "wanted", "option", "has_gpu", "has_instructions", "expected"),
    [
        ("auto", NARROW, None, False, False, WIDE),
        ("cpu", NARROW, None, True, False, WIDE),
        ("auto", NARROW, None, False, True, NARROW),
        ("auto", NARROW, None, True, False, NARROW),
        ("gpu", NARROW, None, False, False, NARROW),  # Lightning says that there is none
        ("auto", NARROW, ["--trainer.precision", NARROW], False, False, NARROW),
        ("auto", NARROW, [f"--trainer.precision={NARROW}"], False, False, NARROW),
        ("auto", "64-true", None, False, False, "64-true"),
        ("auto", None, None, False, False, None),
    ],
)
def test_settled(
    accelerator: str, wanted: str | None, option: list[str] | None, has_gpu: bool, has_instructions: bool,
    expected: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    monkeypatch.setattr(precision, "multiplies_in_bfloat16", lambda: has_instructions)
    monkeypatch.setattr("sys.argv", ["lm", "fit", *(option or [])])
    trainer: dict[str, Any] = {"accelerator": accelerator, "precision": wanted}
    settle_precision(trainer)
    assert trainer["precision"] == expected
    assert ("32-true in place of bf16-mixed" in capsys.readouterr().out) == (expected != wanted)


@pytest.mark.parametrize(
    ("command", "option", "expected"),
    [
        ("fit", [], ["bf16-mixed"]),
        ("fit", ["--ckpt_path", "run.ckpt"], []),  # what goes on keeps its precision
        ("validate", ["--ckpt_path", "run.ckpt"], ["bf16-mixed"]),
    ],
)
def test_asked_where_nothing_goes_on(
    command: str, option: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[str] = []
    monkeypatch.setattr(lightning_cli, "settle_precision", lambda trainer: settled.append(trainer["precision"]))
    monkeypatch.setattr(lightning_cli, "load", lambda path: None)
    monkeypatch.setattr(LMCommandLine, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(LMCommandLine, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr("sys.argv", ["lm", command, "--trainer.precision", "bf16-mixed", *option])
    LMCommandLine(command, "")
    assert settled == expected
