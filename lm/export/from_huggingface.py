"""A Llama of Hugging Face transformers as a run folder of ours.

Heads that share keys and values (grouped heads) become heads with a copy each, which computes the same.
"""

import importlib.metadata
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm import __version__
from lm.export.files import new_folder, read_json, require_free, write_json
from lm.export.llama import ROTATED, llama_name, pairs_from_halves
from lm.export.to_huggingface import WEIGHTS, safetensors
from lm.export.tokenizer_formats import read_tokenizer
from lm.model import ModelConfig, RMSNorm, TransformerLM
from lm.tokenizer import Tokenizer
from lm.training.resume import FORMAT
from lm.training.runs import LOGS

log = logging.getLogger("lm")

# transformers' own values for what config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "quantization_config": None,
}


def import_model(folder: Path, run_folder: Path | None = None) -> Path:
    """Make a run folder with a checkpoint and a tokenizer out of a Llama-style folder of transformers.

    Args:
        folder: holds config.json, safetensors and a tokenizer.
        run_folder: the folder to make; by default the next lightning_logs/version_N.

    Returns:
        The run folder.

    Raises:
        FileNotFoundError: a file is missing.
        FileExistsError: the run folder is there already.
        ValueError: the model or the tokenizer has a part that ours have not, or a file is damaged.
    """
    if run_folder is None:
        run_folder = _next_version()
    require_free(run_folder)
    description = read_json(folder / "config.json")
    try:
        config = model_config(description)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    tokenizer = read_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}; "
            "they do not belong together"
        )
    weights = read_weights(folder, config, description.get("num_key_value_heads") or config.num_heads)
    with new_folder(run_folder) as temporary:
        _write_run(temporary, run_folder, folder, config, weights, tokenizer)
    return run_folder


def model_config(description: dict[str, Any]) -> ModelConfig:
    """Our configuration of what config.json describes.

    Raises:
        ValueError: names the first entry that our model cannot follow, with its value.
    """
    given = _DEFAULTS | description
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    width, heads = _size(given, "hidden_size"), _size(given, "num_attention_heads")
    required = {
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": RMSNorm(1).eps,
        "attention_bias": False,
        "mlp_bias": False,
        "quantization_config": None,
    }
    found = [(name, given.get(name), value) for name, value in required.items()]
    found += [
        ("rope type", rope.get("rope_type", rope.get("type", "default")), "default"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", given.get("partial_rotary_factor", 1)), 1),
        ("head_dim", given.get("head_dim") or width // heads, width // heads),
    ]
    for name, value, ours in found:
        if value != ours:
            raise ValueError(f"{name} is {value!r}; lm can only follow {ours!r}")
    shared = given.get("num_key_value_heads") or heads
    if heads % shared:
        raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {shared}")
    return ModelConfig(
        vocab_size=_size(given, "vocab_size"),
        context_length=_size(given, "max_position_embeddings"),
        d_model=width,
        num_layers=_size(given, "num_hidden_layers"),
        num_heads=heads,
        d_ff=_size(given, "intermediate_size"),
        rope_theta=float(rope.get("rope_theta", given["rope_theta"])),
        tie_embeddings=bool(given["tie_word_embeddings"]),
    )


def read_weights(folder: Path, config: ModelConfig, num_kv_heads: int) -> dict[str, Tensor]:
    """Our state dict in float32, out of the folder's safetensors.

    Raises:
        FileNotFoundError: there are no safetensors.
        ValueError: a weight is missing, unknown or has another shape.
    """
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in TransformerLM(config).state_dict().items()}
    given = {name: weight for name, weight in _tensors(folder) if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings:
        given["lm_head.weight"] = given.get("model.embed_tokens.weight", torch.empty(0))
    weights = {}
    for name, shape in expected.items():
        theirs = llama_name(name)
        if theirs not in given:
            raise ValueError(f"{folder}: the weights lack {theirs}; fetch the folder again")
        weight = given.pop(theirs).float()
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weight = _one_each(weight, config.num_heads, num_kv_heads)
        if tuple(weight.shape) != shape:
            raise ValueError(f"{folder}: {theirs} has the shape {tuple(weight.shape)}, config.json says {shape}")
        weights[name] = pairs_from_halves(weight, config.num_heads) if ROTATED.fullmatch(name) else weight
    if given:
        raise ValueError(f"{folder}: a model of lm has no place for {len(given)} weights, the first {min(given)}")
    if config.tie_embeddings:
        weights["lm_head.weight"] = weights["token_embeddings.weight"]
    return weights


def _one_each(weight: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """Rows of shared keys or values (G * K, D), repeated for each head (H * K, D)."""
    if num_kv_heads == num_heads:
        return weight
    return weight.unflatten(0, (num_kv_heads, -1)).repeat_interleave(num_heads // num_kv_heads, 0).flatten(0, 1)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    index = folder / f"{WEIGHTS}.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; lm reads weights from safetensors only")
        try:
            yield from safetensors().load_file(folder / name).items()
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise ValueError(f"{folder / name} is damaged ({error}); fetch it again") from None


def _size(given: dict[str, Any], name: str) -> int:
    value = given.get(name)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number above 0")
    return value


def _write_run(
    folder: Path, name: Path, origin: Path, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    tokenizer.save(folder / "tokenizer")
    (folder / "checkpoints").mkdir()
    net = asdict(config)
    checkpoint = {
        "lm": {
            "format": FORMAT,
            "version": __version__,
            "net": net,
            "optimizer": {},
            "data": {"tokenizer": tokenizer.digest},
            "max_steps": 0,
        },
        "state_dict": {f"net.{key}": weight for key, weight in weights.items()},
        "pytorch-lightning_version": importlib.metadata.version("lightning"),
        "global_step": 0,
        "epoch": 0,
    }
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    write_json(folder / "run.json", {"status": "imported", "imported_from": str(origin), "lm": __version__})
    # JSON is YAML too. The text to validate on is the user's to name.
    settings = {"model": {"net": net}, "data": {"source": "text", "tokenizer": str(name / "tokenizer")}}
    (folder / "config.yaml").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _next_version() -> Path:
    taken = [p.name.removeprefix("version_") for p in LOGS.glob("version_*")]
    return LOGS / f"version_{max((int(n) for n in taken if n.isdecimal()), default=-1) + 1}"
