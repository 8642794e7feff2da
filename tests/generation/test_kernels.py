"""The GPU's step by Triton's interpreter, which runs on CPUs, against the decoder's plain step."""

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lm.generation import Decoder
from lm.model import KVCache, ModelConfig, TransformerLM

MODELS: list[dict[str, Any]] = [
    {},
    {"d_model": 36, "num_heads": 6},
    {"position": "none", "ffn": "silu", "num_heads": 1, "d_model": 33},
    {"norm": "none", "tie_embeddings": True},
]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, as torch for CUDA brings it")
def test_step() -> None:
    # Triton decides when it is imported whether kernels are interpreted, so it has a process of its own.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_step(batch: int, changes: dict[str, Any]) -> None:
    """Logits and caches are equal, whatever the rows have read before."""
    from lm.generation.kernels import Step

    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 48, "num_heads": 2, "num_layers": 2, "d_ff": 72, "context_length": 100}
    model = TransformerLM(ModelConfig(vocab_size=90, **(shape | changes))).eval()
    for name, weight in model.named_parameters():
        if "ln" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    decoder = Decoder(model)
    decoder.native = None
    caches = [KVCache(model.config, batch, 100, "cpu", torch.float32) for _ in range(2)]
    lengths_B = torch.randint(0, 99, (batch,)) if batch > 1 else torch.tensor([75])
    lengths_B[1:2] = 0
    keys, values = torch.randn_like(caches[0].keys_LBHSK), torch.randn_like(caches[0].values_LBHSK)
    for cache in caches:
        cache.lengths.copy_(lengths_B)
        cache.keys_LBHSK.copy_(keys)
        cache.values_LBHSK.copy_(values)
    tokens_B = torch.randint(0, 90, (batch,))
    with torch.inference_mode():
        got, expected = Step(decoder)(tokens_B, caches[0]), decoder.step(tokens_B, caches[1], 100)
    assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert_close(caches[0].keys_LBHSK, caches[1].keys_LBHSK, atol=1e-6, rtol=1e-6)
    assert_close(caches[0].values_LBHSK, caches[1].values_LBHSK, atol=1e-6, rtol=1e-6)


if __name__ == "__main__":
    for changes in MODELS:
        for batch in (1, 3):
            check_step(batch, changes)
    check_step(66, {"num_layers": 1, "num_heads": 1})  # two blocks of rows
