"""Accounting against the real model, torch's FLOP counter, the write-up's figures and hand calculation."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lm.accounting import count_parameters, forward_flops, model_flop_utilisation, peak_flops, training_flops_per_token
from lm.model import ModelConfig, TransformerLM


def gpt2(num_layers: int, d_model: int, num_heads: int) -> ModelConfig:
    """A GPT-2 shape as the write-up computes it: every size keeps the largest one's feed-forward width."""
    return ModelConfig(
        vocab_size=50_257,
        context_length=1024,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=6400,
    )


GPT2 = {
    "small": gpt2(12, 768, 12),
    "medium": gpt2(24, 1024, 16),
    "large": gpt2(36, 1280, 20),
    "xl": gpt2(48, 1600, 25),
}


def component(name: str) -> str:
    """Component of a parameter, by its name in the state dict."""
    for part, found in (("attn", "attention"), ("ffn", "ffn"), ("ln", "norms"), ("lm_head", "lm_head")):
        if part in name:
            return found
    return "token_embeddings"


@pytest.mark.parametrize(
    ("norm", "norm_position", "ffn", "tie_embeddings", "d_ff"),
    list(itertools.product(["rmsnorm", "none"], ["pre", "post"], ["swiglu", "silu"], [False, True], [None, 40])),
)
def test_parameters_are_the_models(norm, norm_position, ffn, tie_embeddings, d_ff) -> None:
    config = ModelConfig(
        vocab_size=300,
        context_length=16,
        d_model=32,
        num_layers=3,
        num_heads=2,
        norm=norm,
        norm_position=norm_position,
        ffn=ffn,
        tie_embeddings=tie_embeddings,
        d_ff=d_ff,
    )
    counted = count_parameters(config)
    model = TransformerLM(config)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    by_component = dict.fromkeys(vars(counted), 0)
    for name, parameter in model.named_parameters():
        by_component[component(name)] += parameter.numel()
    assert vars(counted) == by_component
    assert counted.non_embedding == counted.total - 300 * 32


def test_parameters_of_the_write_up() -> None:
    """Problem transformer_accounting (a)."""
    counted = count_parameters(GPT2["xl"])
    assert vars(counted) == {
        "token_embeddings": 80_411_200,
        "attention": 491_520_000,
        "ffn": 1_474_560_000,
        "norms": 153_600 + 1_600,
        "lm_head": 80_411_200,
    }
    assert counted.total == 2_127_057_600


def test_parameters_of_the_tinystories_model() -> None:
    counted = count_parameters(ModelConfig(d_ff=1344))
    assert counted.total == 22_696_448
    assert counted.non_embedding == 17_576_448


@pytest.mark.parametrize(
    ("size", "total"),
    [
        ("small", 538_111_377_408),
        ("medium", 1_381_104_615_424),
        ("large", 2_620_333_752_320),
        ("xl", 4_513_654_374_400),
    ],
)
def test_flops_of_the_write_up(size: str, total: int) -> None:
    """Problem transformer_accounting (b) and (d); the write-up adds 2·D a token for each norm, no matrix product."""
    config = GPT2[size]
    norms = (2 * config.num_layers + 1) * 2 * config.d_model * config.context_length
    assert forward_flops(config).total == total - norms


def test_flops_of_the_write_up_by_component() -> None:
    flops = forward_flops(GPT2["xl"])
    assert flops.total == 4_513_336_524_800
    assert round((flops.attention_projections + flops.attention_scores) / 1e9, 2) == 1328.76
    assert round(flops.ffn / 1e9, 2) == 3019.90
    assert round(flops.lm_head / 1e9, 2) == 164.68


@pytest.mark.parametrize("ffn", ["swiglu", "silu"])
@pytest.mark.parametrize(("tie_embeddings", "length"), [(False, 16), (True, 11)])
def test_flops_are_those_that_torch_counts(ffn, tie_embeddings: bool, length: int) -> None:
    config = ModelConfig(
        vocab_size=300,
        context_length=16,
        d_model=32,
        num_layers=3,
        num_heads=4,
        ffn=ffn,
        tie_embeddings=tie_embeddings,
        attention="manual",
    )
    model = TransformerLM(config)
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros((2, length), dtype=torch.long))
    assert counter.get_total_flops() == 2 * forward_flops(config, length).total
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * forward_flops(config, length).total


def test_training_takes_three_forward_passes() -> None:
    config = ModelConfig()
    assert training_flops_per_token(config) * 256 == 3 * forward_flops(config).total
    assert training_flops_per_token(config, 64) * 64 == 3 * forward_flops(config, 64).total
    # Without attention scores it would be 6 operations a parameter that multiplies: all but embeddings and norms.
    counted = count_parameters(config)
    scores = 3 * 4 * config.num_layers * 64 * config.d_model
    assert training_flops_per_token(config, 64) == 6 * (counted.non_embedding - counted.norms) + scores


def test_refuses_a_sequence_without_tokens() -> None:
    with pytest.raises(ValueError, match="sequence_length is 0"):
        forward_flops(ModelConfig(), 0)


def test_utilisation() -> None:
    config = ModelConfig()
    rate = 0.4 * 989.4e12 / training_flops_per_token(config)
    assert model_flop_utilisation(rate, config, 989.4e12) == pytest.approx(0.4)
    assert model_flop_utilisation(rate, config, 989.4e12, sequence_length=128) < 0.4


@pytest.mark.parametrize(
    ("name", "float32", "tf32", "bfloat16"),
    [
        ("NVIDIA H200", 66.9, 494.7, 989.4),
        ("NVIDIA H200 NVL", 60, 417.5, 835.5),
        ("NVIDIA H100 80GB HBM3", 66.9, 494.7, 989.4),
        ("NVIDIA H100 PCIe", 51.2, 378, 756),
        ("NVIDIA GH200 480GB", 66.9, 494.7, 989.4),
        ("NVIDIA A100-SXM4-80GB", 19.5, 156, 312),
        ("NVIDIA A100-PCIE-40GB", 19.5, 156, 312),
        ("NVIDIA A100 80GB PCIe", 19.5, 156, 312),
        ("NVIDIA GeForce RTX 4090", 82.6, 82.6, 165.2),
        ("NVIDIA L4", 30.3, 60, 121),
        ("Tesla V100-SXM2-16GB", 15.7, None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None, None),
        ("NVIDIA H20", None, None, None),
        ("NVIDIA A10G", None, None, None),
        ("Apple M3 Max", None, None, None),
        ("cpu", None, None, None),
    ],
)
def test_peaks_by_device_name(name: str, float32: float, tf32: float, bfloat16: float) -> None:
    found = (peak_flops(name, "float32"), peak_flops(name, "tf32"), peak_flops(name, "bfloat16"))
    expected = tuple(None if rate is None else pytest.approx(rate * 1e12) for rate in (float32, tf32, bfloat16))
    assert found == expected


def test_needs_no_torch() -> None:
    code = "import sys, lm.accounting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
