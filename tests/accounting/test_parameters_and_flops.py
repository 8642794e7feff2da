"""Accounting against the real model, torch's FLOP counter, the write-up's figures and hand calculation."""

import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lm.accounting import (
    PRESETS,
    count_parameters,
    forward_flops,
    model_flop_utilisation,
    norm_flops,
    optimizer_step,
    peak_flops,
    training_flops_per_token,
)
from lm.accounting.parameters import count_block_parameters
from lm.model import ModelConfig, TransformerLM
from lm.optim import AdamW

# Every size as the write-up computes it, with the largest one's feed-forward width.
GPT2 = {name: replace(PRESETS[f"gpt2-{name}"].net, d_ff=6400) for name in ("small", "medium", "large", "xl")}


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
    assert forward_flops(config).total + norm_flops(config) == total


@pytest.mark.parametrize(
    ("size", "shares"),
    [
        ("small", (17.96, 67.34, 14.69)),
        ("medium", (22.39, 69.97, 7.63)),
        ("large", (25.82, 69.15, 5.03)),
        ("xl", (29.44, 66.91, 3.65)),
    ],
)
def test_shares_of_the_write_up(size: str, shares: tuple[float, float, float]) -> None:
    """Its table of attention, feed-forward and output projection, in percent of its total."""
    flops = forward_flops(GPT2[size])
    total = flops.total + norm_flops(GPT2[size])
    parts = (flops.attention_projections + flops.attention_scores, flops.ffn, flops.lm_head)
    assert tuple(round(100 * part / total, 2) for part in parts) == shares


def test_long_context() -> None:
    """Problem transformer_accounting (e): scores grow with the square and become most of the work."""
    short, long = (forward_flops(PRESETS["gpt2-xl"].net, length) for length in (1024, 16_384))
    assert long.attention_scores == 256 * short.attention_scores
    assert long.ffn == 16 * short.ffn
    assert long.total == 149_522_795_724_800
    assert round(long.attention_scores / long.total, 4) == 0.5515


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


def test_flops_by_component_are_those_that_torch_counts() -> None:
    # torch's counter has no rule for the CPU's fused kernel, so the manual one.
    config = ModelConfig(vocab_size=300, context_length=16, d_model=32, num_layers=3, num_heads=4, attention="manual")
    with FlopCounterMode(display=False, depth=4) as counter:
        TransformerLM(config)(torch.zeros((2, 16), dtype=torch.long))
    counts = {name: sum(by_operation.values()) for name, by_operation in counter.get_flop_counts().items()}
    expected = forward_flops(config)
    layers = [f"TransformerLM.layers.{index}" for index in range(3)]
    assert sum(counts[f"{layer}.ffn"] for layer in layers) == 2 * expected.ffn
    attention_flops = 2 * (expected.attention_projections + expected.attention_scores)
    assert sum(counts[f"{layer}.attn"] for layer in layers) == attention_flops
    assert counts["TransformerLM.lm_head"] == 2 * expected.lm_head


class Traffic(TorchDispatchMode):
    """Sums reads, writes and arithmetic of AdamW's multi-tensor operations."""

    FLOPS: ClassVar = {"lerp": 3, "mul": 1, "addcmul": 3, "sqrt": 1, "div": 1, "add": 1, "addcdiv": 3}

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name.startswith("_foreach"):
            read = {t.data_ptr(): t.nbytes for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
            written = sum(t.nbytes for t in args[0])  # in place, or into as many new ones
            self.bytes += sum(read.values()) + written
            self.flops += self.FLOPS[name.removeprefix("_foreach_").rstrip("_")] * sum(t.numel() for t in args[0])
        return out


def test_optimizer_step_is_what_its_operations_move_and_compute() -> None:
    config = ModelConfig(vocab_size=300, context_length=16, d_model=32, num_layers=3, num_heads=4)
    model = TransformerLM(config).double()  # for float32 there is one compiled operation
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with Traffic() as traffic:
        AdamW(model.parameters()).step()
    expected = optimizer_step(config)
    assert (traffic.flops, traffic.bytes) == (expected.flops, 2 * expected.bytes_moved)
    assert expected.bytes_moved_fused == 28 * count_parameters(config).total


def test_parameters_in_blocks() -> None:
    for position in ("pre", "post"):
        config = ModelConfig(vocab_size=300, d_model=32, num_layers=3, num_heads=4, norm_position=position)
        model = TransformerLM(config)
        assert count_block_parameters(config) == sum(p.numel() for p in model.layers.parameters())


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
