"""Models held against Hugging Face transformers, the only test module that imports it (which takes seconds)."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lm.cli import main
from lm.export.from_huggingface import import_model, model_config
from lm.export.to_huggingface import write_llama
from lm.generation import SamplingConfig, generate_text
from lm.model import ModelConfig, TransformerLM
from lm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe
from lm.training.resume import FORMAT
from lm.training.runs import Run, find_run
from tests import preloaded

TEXT = f"Once upon a time there was a fox. „Grüß Gott!“, said the fox: 你好 🦊\n\t  The end.\n{END_OF_TEXT}\n" * 4
CONFIG = ModelConfig(300, context_length=256, d_model=48, num_layers=3, num_heads=4, d_ff=80, rope_theta=5000.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return Tokenizer(*train_bpe(path, 290, [END_OF_TEXT], num_workers=1), [END_OF_TEXT])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_run(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> Run:
    """A run folder with random weights, norms included, as `fit` leaves it."""
    torch.manual_seed(0)
    model = TransformerLM(config)
    for name, weight in model.named_parameters():
        if "ln" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.special_ids[END_OF_TEXT]] = 0  # never the likeliest, so that texts go on
    tokenizer.save(folder / "tokenizer")
    (folder / "checkpoints").mkdir()
    state = {f"net.{name}": weight for name, weight in model.state_dict().items()}
    identity = {"format": FORMAT, "net": asdict(config)}
    torch.save({"lm": identity, "state_dict": state}, folder / "checkpoints" / "best.ckpt")
    return find_run(folder)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_export_is_the_same_model_and_comes_back_bit_equal(tmp_path: Path, tokenizer: Tokenizer, tied: bool) -> None:
    run = make_run(tmp_path / "run", replace(CONFIG, tie_embeddings=tied), tokenizer)
    assert main(["export", str(tmp_path / "hf"), "--run", str(run.folder)]) == 0
    ours, theirs = run.load_model(), AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert isinstance(theirs, LlamaForCausalLM)
    assert theirs.dtype == torch.float32
    ids = torch.randint(CONFIG.vocab_size, (4, CONFIG.context_length), generator=torch.manual_seed(1))
    torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), atol=1e-5, rtol=0)

    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert their_tokenizer.model_max_length == CONFIG.context_length
    assert their_tokenizer.eos_token == END_OF_TEXT
    text = TEXT[:200] + END_OF_TEXT
    assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)
    assert their_tokenizer.decode(tokenizer.encode(text)) == text
    for settings in (theirs.config, theirs.generation_config):
        ids_of_end = [settings.bos_token_id, settings.eos_token_id, settings.pad_token_id]
        assert ids_of_end == [tokenizer.special_ids[END_OF_TEXT]] * 3

    assert main(["import", str(tmp_path / "hf"), "--run_folder", str(tmp_path / "back")]) == 0
    back = find_run(tmp_path / "back").load_model()
    assert back.config == ours.config
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, back.state_dict()[name]), name
    assert (back.lm_head.weight is back.token_embeddings.weight) == tied
    assert Tokenizer.from_folder(tmp_path / "back" / "tokenizer").digest == tokenizer.digest


def test_without_end_of_text_no_id_of_another_llama_is_taken(tmp_path: Path) -> None:
    write_llama(TransformerLM(CONFIG), Tokenizer({i: bytes([i]) for i in range(256)}, []), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    for settings in (theirs.config, theirs.generation_config):
        assert settings.bos_token_id is settings.eos_token_id is settings.pad_token_id is None
    assert AutoTokenizer.from_pretrained(tmp_path)("ab")["input_ids"] == [97, 98]


def test_greedy_text_is_the_same_for_200_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    run = make_run(tmp_path / "run", replace(CONFIG, vocab_size=tokenizer.vocab_size), tokenizer)
    assert main(["export", str(tmp_path / "hf"), "--run", str(run.folder)]) == 0
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    inputs = their_tokenizer("Once upon", return_tensors="pt")
    out = theirs.generate(**inputs, max_new_tokens=200, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    ours = generate_text(run.load_model(), tokenizer, ["Once upon"], 200, SamplingConfig(temperature=0))[0]
    ids = [int(i) for i in out]
    assert len(ids) == 200
    assert len(set(ids)) > 10
    assert ours == tokenizer.decode(ids)


def llama(folder: Path, tokenizer: Tokenizer, **changes: Any) -> LlamaForCausalLM:
    """A random Llama of transformers, saved as its users save it, beside a tokenizer.json of ours."""
    from lm.export.tokenizer_formats import export_huggingface

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    export_huggingface(tokenizer, folder)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 2},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}},
        {"dtype": torch.bfloat16},
    ],
    ids=["plain", "tied", "grouped heads", "theta", "bfloat16"],
)
def test_their_model_comes_in_with_the_same_logits(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, Any]
) -> None:
    theirs = llama(tmp_path / "hf", tokenizer, **changes)
    run = find_run(import_model(tmp_path / "hf", tmp_path / "run"))
    ids = torch.randint(300, (2, 64), generator=torch.manual_seed(1))
    theirs = theirs.float()
    torch.testing.assert_close(logits(run.load_model(), ids), logits(theirs, ids), atol=1e-5, rtol=1e-5)


def test_weights_in_several_files_come_in(tmp_path: Path, tokenizer: Tokenizer) -> None:
    theirs = llama(tmp_path / "hf", tokenizer)
    (tmp_path / "hf" / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    run = find_run(import_model(tmp_path / "hf", tmp_path / "run"))
    ids = torch.arange(64)[None]
    torch.testing.assert_close(logits(run.load_model(), ids), logits(theirs, ids), atol=1e-5, rtol=1e-5)


def test_imported_run_generates_validates_and_trains(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    llama(tmp_path / "hf", tokenizer)
    assert main(["import", "hf"]) == 0
    assert "lightning_logs/version_0" in capsys.readouterr().out
    assert main(["generate", "Once", "--max_new_tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("Once")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    texts = ["--data.train_text", "text.txt", "--data.valid_text", "text.txt", "--data.workers", "1"]
    validated = preloaded.run(tmp_path, "validate", *texts, "--trainer.accelerator", "cpu")
    assert "validation loss" in validated.stdout, validated.stderr
    options = ["--trainer.max_steps", 2, "--data.batch_size", 2, "--trainer.enable_progress_bar", "false"]
    weights = ["--weights", "lightning_logs/version_0", "--trainer.accelerator", "cpu"]
    trained = preloaded.run(tmp_path, "fit", *weights, *texts, *options)
    assert "lightning_logs/version_1" in trained.stdout, trained.stderr
    assert main(["import", "hf"]) == 0
    assert Path("lightning_logs/version_2/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_position": "post"}, "norm_position is post (a Llama has pre)"),
        ({"position": "none"}, "position is none (a Llama has rope)"),
        ({"norm": "none"}, "norm is none (a Llama has rmsnorm)"),
        ({"ffn": "silu"}, "ffn is silu (a Llama has swiglu)"),
    ],
)
def test_what_a_llama_cannot_express_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    run = make_run(tmp_path / "run", replace(CONFIG, **change), tokenizer)
    assert main(["export", str(tmp_path / "hf"), "--run", str(run.folder)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope type is 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type is 'linear'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"hidden_size": None}, "hidden_size is None"),
    ],
)
def test_what_ours_cannot_express_is_refused(change: dict[str, Any], message: str) -> None:
    description = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-5,
    }
    assert model_config(description).context_length == 2048
    with pytest.raises(ValueError, match="is") as caught:
        model_config(description | change)
    assert message in str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    llama(tmp_path / "hf", tokenizer)
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    bias = "model.layers.0.self_attn.q_proj.bias"

    def refused(message: str, **changes: torch.Tensor | None) -> None:
        named = {key.replace("__", "."): value for key, value in changes.items()}
        save_file({key: value for key, value in (weights | named).items() if value is not None}, path)
        with pytest.raises(ValueError, match=message):
            import_model(tmp_path / "hf", tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused(f"no place for 1 weights, the first {bias}", **{bias: torch.zeros(32)})
    refused("the weights lack model.norm.weight", model__norm__weight=None)
    refused(r"model.norm.weight has the shape \(8,\), config.json says \(32,\)", model__norm__weight=torch.ones(8))
    path.write_bytes(b"12345678901234567890")
    with pytest.raises(ValueError, match="is damaged"):
        import_model(tmp_path / "hf", tmp_path / "run")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        import_model(tmp_path / "hf", tmp_path / "run")


def test_tokenizer_of_another_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    llama(tmp_path / "hf", tokenizer, vocab_size=280)
    with pytest.raises(ValueError, match="the tokenizer has 290 ids, the model 280"):
        import_model(tmp_path / "hf", tmp_path / "run")


def test_card_has_the_results(tmp_path: Path, tokenizer: Tokenizer) -> None:
    run = make_run(tmp_path / "run", CONFIG, tokenizer)
    result = {"val/loss": 3.0, "val/perplexity": 20.1, "val/bits_per_byte": 1.5}
    facts: dict[str, Any] = {"result": result, "best_loss": 2.0, "tokens_seen": 12345, "training_seconds": 6.7}
    facts |= {"devices": 1, "device": "a CPU", "precision": "32-true", "lm": "1", "torch": "2", "started": "now"}
    (run.folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    assert main(["export", str(tmp_path / "hf"), "--run", str(run.folder)]) == 0
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    for row in ("nats per token | 2.0000 |", "perplexity | 7.39 |", "per byte | 1.0000 |", "| 12,345 |", "| 1 x a CPU"):
        assert row in card
