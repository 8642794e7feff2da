"""`generate` and `score` on a tiny run."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lm
from lm.cli import main
from lm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(tiny_config), "--trainer.max_steps", "3"]) == 0
    return folder


@pytest.fixture
def say(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(folder)

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        assert code != 2 or not captured.out
        return captured.err if code else captured.out

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines(say: Any) -> None:
    options = ("--json", "--num_samples", 2, "--max_new_tokens", 12, "--top_p", 0.9, "--min_p", 0.01)
    rows = lines(say("generate", "Once", "The cat", *options, "--seed", 5, "--logprobs"))
    assert [row["prompt"] for row in rows] == ["Once", "Once", "The cat", "The cat"]
    assert [row["seed"] for row in rows] == [5, 6, 7, 8]
    for row in rows:
        assert row["tokens"] == len(row["ids"]) == len(row["logprobs"])
        assert all(x < 0 for x in row["logprobs"])
        assert row["finish"] == ("length" if row["tokens"] == 12 else "end of text")
    alone = lines(say("generate", "Once", "--json", *options[3:], "--seed", 6))
    assert alone[0]["text"] == rows[1]["text"]
    assert "ids" not in alone[0]
    penalized = lines(say("generate", "Once", "--json", "--temperature", 0, "--repetition_penalty", 100, "--logprobs",
                          "--max_new_tokens", 20))[0]  # fmt: skip
    assert len(set(penalized["ids"])) == len(penalized["ids"])


def test_stop_strings(say: Any) -> None:
    options = ("--json", "--seed", 3, "--max_new_tokens", 30)
    whole = lines(say("generate", "Once", *options))[0]["text"]
    stop = whole[5:8]
    row = lines(say("generate", "Once", *options, "--stop", json.dumps([stop, "never said"])))[0]
    assert row["text"] == whole[: whole.index(stop)]
    assert row["finish"] == "stop string"
    assert say("generate", "Once", *options[1:], "--stop", stop) == "Once" + row["text"] + "\n"


def test_interactive(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Once\nThe cat\n"))
    shown = say("generate", "--interactive", "--max_new_tokens", 5, "--seed", 1)
    assert shown.startswith("Once")
    assert shown.index("The cat") > 4
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert say("generate", "--interactive") == ""


def test_interrupting_ends_a_text_and_not_the_session(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(self: object, prompts: list[str], *options: object) -> Any:
        yield 0, "!"
        if prompts == ["Once"]:
            raise KeyboardInterrupt
        yield 0, "?"

    monkeypatch.setattr("lm.loaded.LoadedRun.stream", stream)
    monkeypatch.setattr("sys.stdin", io.StringIO("Once\nThe cat\n"))
    assert say("generate", "--interactive") == "Once!\nThe cat!?\n"
    assert say("generate", "Once", code=130).splitlines()[-1] == "interrupted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num_samples", 0), "num_samples is 0"),
        (("--logprobs",), "add --json"),
        (("--interactive", "--json"), "leave out"),
        (("--stop", '[""]'), "stop string is empty"),
        (("--min_p", 2), "min_p is 2"),
        (("--max_new_tokens", 0), "max_new_tokens is 0"),
    ],
)
def test_generate_refuses(say: Any, options: tuple[object, ...], message: str) -> None:
    error = say("generate", "Once", *options, code=2).splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_score(say: Any, folder: Path) -> None:
    text = folder / "some.txt"
    text.write_text("Once there was a cat. She saw a red ball and was very happy.\n" * 5, encoding="utf-8")
    figures = json.loads(say("score", text, "--json"))
    assert figures["bytes"] == text.stat().st_size
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["bits_per_byte"] == pytest.approx(
        figures["loss"] * figures["tokens"] / figures["bytes"] / math.log(2)
    )
    tokens = folder / "some.npy"
    say("encode", folder / "lightning_logs/version_0/tokenizer", text, tokens)
    assert json.loads(say("score", tokens, "--json", "--stride", 32)) == pytest.approx(figures)
    near = json.loads(say("score", tokens, "--json", "--stride", 4))
    assert near["tokens"] == figures["tokens"]
    assert near["loss"] != figures["loss"]
    assert f"loss {figures['loss']:.4f} nats per token" in say("score", text)


def test_score_equals_a_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    loaded = lm.load()
    text = "Once there was a cat."
    ids = [loaded.tokenizer.special_ids["<|endoftext|>"], *loaded.tokenizer.encode(text)]
    assert len(ids) <= loaded.model.config.context_length
    with torch.no_grad():
        logprobs = loaded.model(torch.tensor([ids]))[0].log_softmax(-1)
    expected = -sum(float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1))
    assert loaded.score(text).nats == pytest.approx(expected, rel=1e-5)


def test_score_refuses(say: Any, folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "bad.npy").write_bytes(b"no array")
    np.save(folder / "floats.npy", np.zeros(5))
    for name, message in {
        "gone.txt": "gone.txt",
        "gone.npy": "gone.npy",
        "empty.txt": "is empty",
        "bad.npy": "bad.npy is not a whole file of token ids; make it with encode",
        "floats.npy": "holds float64",
    }.items():
        assert message in say("score", name, code=2).splitlines()[-1]
    (folder / "some.txt").write_text("A cat.")
    assert "stride is 33; it must be 1 to the model's context_length, 32" in say(
        "score", "some.txt", "--stride", 33, code=2
    )
    np.save(folder / "large.npy", np.array([1, 2, 999], np.uint16))
    assert "token id 999" in say("score", "large.npy", code=2)


def test_tokenizer_of_the_run_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    loaded = lm.load("lightning_logs/version_0")
    assert isinstance(loaded.tokenizer, Tokenizer)
    texts = loaded.complete(["Once", "A"], max_new_tokens=9, seed=2)
    assert loaded.generate("A", max_new_tokens=9, seed=3) == texts[1].text
    assert "".join(piece for _, piece in loaded.stream(["A"], 9, seed=3)) == texts[1].text
