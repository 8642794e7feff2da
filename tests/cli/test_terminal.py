"""Text from a model, a file or an error never reaches the terminal as a command to it."""

import json
import logging
import unicodedata
from types import SimpleNamespace

import pytest

from lm.cli import main
from lm.terminal import PrintableFormatter, printable, printable_json, say


def test_controls_are_spelled_out_and_all_else_stays() -> None:
    assert printable("a\x1b[2Jb\x07\r\x9b31m\x7f\x00") == "a\\x1b[2Jb\\x07\\r\\x9b31m\\x7f\\x00"
    assert printable("\u202eevil\u2066") == "\\u202eevil\\u2066"
    assert printable(b"caf\xe9.txt".decode(errors="surrogateescape")) == "caf\\udce9.txt"
    text = "Größe\t小猫 😀\n\u00a0\u3000\u200d"
    assert printable(text) == text


def test_no_control_character_gets_through() -> None:
    everything = "".join(map(chr, range(0x110000)))
    passed = {c for c in printable(everything) if unicodedata.category(c) == "Cc"}
    assert passed == {"\n", "\t"}


def test_json_says_the_same_without_controls() -> None:
    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    shown = printable_json({"text": everything})
    assert printable(shown) == shown
    assert json.loads(shown) == {"text": everything}


def test_names_and_log_lines_hold_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    say("runs/\x1b[2J/best.ckpt: whole")
    assert capsys.readouterr().out == "runs/\\x1b[2J/best.ckpt: whole\n"
    record = logging.LogRecord("lm", logging.WARNING, "", 0, "the checkpoint had %s", ("\x1b]0;owned\x07",), None)
    assert PrintableFormatter("%(message)s").format(record) == "the checkpoint had \\x1b]0;owned\\x07"


def test_error_lines_hold_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "\x1b]0;owned\x07"]) == 2
    error = capsys.readouterr().err
    assert "\\x1b]0;owned" in error
    assert "\x1b" not in error


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]], ids=["streamed", "several"])
def test_models_text_holds_no_escape_sequences(
    prompts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\x1b[31mred\n"
    run = SimpleNamespace(
        run=SimpleNamespace(checkpoint="best.ckpt"),
        stream=lambda rows, *options: iter([(0, text)]),
        complete=lambda rows, *options: [SimpleNamespace(text=text) for _ in rows],
    )
    monkeypatch.setattr("lm.loaded.load", lambda *arguments: run)
    assert main(["generate", *prompts]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b[31mred\n" in shown
    assert "\x1b" not in shown
