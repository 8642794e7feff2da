"""ModelConfig: defaults and refusals."""

import re
import subprocess
import sys
from typing import Any

import pytest

from lm.model.config import ModelConfig


def test_feed_forward_widths():
    assert ModelConfig(d_model=512).ff_width == 1408  # 8/3 * 512 = 1365.3, up to 22 * 64
    assert ModelConfig(d_model=96, num_heads=2).ff_width == 256  # 8/3 * 96 is a multiple already
    assert ModelConfig(d_model=512, ffn="silu").ff_width == 2048
    assert ModelConfig(d_model=512, d_ff=1344).ff_width == 1344
    assert ModelConfig(d_model=512, d_ff=100, ffn="silu").ff_width == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"context_length": -1}, "context_length is -1"),
        ({"d_model": 0}, "d_model is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"d_ff": 0}, "d_ff is 0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"d_model": 100, "num_heads": 16}, "d_model 100 is not divisible by num_heads 16"),
        ({"d_model": 12, "num_heads": 4}, "head width d_model / num_heads is 3"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"norm": "layernorm"}, "norm is 'layernorm'; choose from rmsnorm, none"),
        ({"norm_position": "mid"}, "choose from pre, post"),
        ({"position": "alibi"}, "choose from rope, none"),
        ({"ffn": "gelu"}, "choose from swiglu, silu"),
        ({"attention": "flash"}, "choose from fused, manual"),
    ],
)
def test_refusals_are_one_line(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ModelConfig(**change)
    assert "\n" not in str(caught.value)


def test_odd_head_width_is_fine_without_rope():
    assert ModelConfig(d_model=12, num_heads=4, position="none").head_width == 3


def test_config_imports_without_torch():
    code = "import sys, lm.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
