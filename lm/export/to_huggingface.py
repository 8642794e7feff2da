"""A run as a folder that Hugging Face transformers opens as LlamaForCausalLM."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lm.export.files import new_folder, write_json
from lm.export.llama import ROTATED, halves_from_pairs, llama_name
from lm.export.model_card import model_card
from lm.export.tokenizer_formats import write_huggingface
from lm.model import ModelConfig, RMSNorm, TransformerLM
from lm.tokenizer import END_OF_TEXT, Tokenizer
from lm.training.runs import Run

WEIGHTS = "model.safetensors"
_A_LLAMA_HAS = {"norm": "rmsnorm", "norm_position": "pre", "position": "rope", "ffn": "swiglu"}


def export_run(run: Run, output: Path) -> None:
    """Write weights, configuration, tokenizer and model card of a run's checkpoint.

    Args:
        run: a run folder and the checkpoint chosen in it.
        output: the folder to make.

    Raises:
        FileExistsError: the output is there already.
        ValueError: the model has a part that a Llama has not, or safetensors is not installed.
    """
    model, tokenizer = run.load_model(), run.load_tokenizer()
    with new_folder(output) as folder:
        write_llama(model, tokenizer, folder)
        card = model_card(run, model, tokenizer, output.resolve().name)
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def write_llama(model: TransformerLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything but the model card into an existing folder. Raises ValueError as `export_run`."""
    config = model.config
    require_llama(config)
    weights: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if config.tie_embeddings and name == "lm_head.weight":
            continue  # transformers makes it from the embeddings
        if ROTATED.fullmatch(name):
            weight = halves_from_pairs(weight, config.num_heads)
        weights[llama_name(name)] = weight.contiguous()
    (folder / WEIGHTS).write_bytes(safetensors().save(weights, metadata={"format": "pt"}))
    end = tokenizer.special_ids.get(END_OF_TEXT)
    # Written even where they are null: transformers would take Llama's own ids instead.
    special_ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    write_json(folder / "config.json", _llama_config(config) | special_ids)
    write_json(folder / "generation_config.json", special_ids)
    write_huggingface(tokenizer, folder, config.context_length)


def require_llama(config: ModelConfig) -> None:
    """Raises ValueError that names every switch with which the model is no Llama."""
    others = [
        f"{name} is {getattr(config, name)} (a Llama has {value})"
        for name, value in _A_LLAMA_HAS.items()
        if getattr(config, name) != value
    ]
    if others:
        raise ValueError(f"transformers' Llama cannot express this model: {', '.join(others)}; export another run")


def safetensors() -> Any:
    """The module safetensors.torch. Raises ValueError where it is not installed."""
    try:
        return import_module("safetensors.torch")
    except ModuleNotFoundError:
        raise ValueError('this needs the package safetensors; install it: pip install -e ".[export]"') from None


def _llama_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": RMSNorm(1).eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
        "use_cache": True,
    }
