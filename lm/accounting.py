"""What a model costs: parameters, floating-point operations and utilisation, in plain integers, without torch.

One multiply-add counts as two operations. Only matrix products are counted, as PaLM does for its utilisation
(Chowdhery et al. 2022, appendix B): norms, softmax and activations are well below 1 % of them.
"""

import re
from dataclasses import dataclass
from typing import Literal

from lm.model.config import ModelConfig

Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Parameters:
    """Numbers of trained parameters by component; a tied output projection counts as token embeddings only."""

    token_embeddings: int
    attention: int
    ffn: int
    norms: int
    lm_head: int

    @property
    def total(self) -> int:
        return self.token_embeddings + self.attention + self.ffn + self.norms + self.lm_head

    @property
    def non_embedding(self) -> int:
        """All but the token embeddings; an untied output projection is included."""
        return self.total - self.token_embeddings


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by component; `attention_scores` are both products with the T×T weights."""

    attention_projections: int
    attention_scores: int
    ffn: int
    lm_head: int

    @property
    def total(self) -> int:
        return self.attention_projections + self.attention_scores + self.ffn + self.lm_head


def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters of `TransformerLM(config)`."""
    width, layers = config.d_model, config.num_layers
    embeddings = config.vocab_size * width
    norms = 0
    if config.norm == "rmsnorm":  # post-norm blocks end in a norm, so only pre-norm has a final one
        norms = 2 * layers + (1 if config.norm_position == "pre" else 0)
    return Parameters(
        token_embeddings=embeddings,
        attention=layers * 4 * width**2,
        ffn=layers * _ffn_matrices(config) * width * config.ff_width,
        norms=norms * width,
        lm_head=0 if config.tie_embeddings else embeddings,
    )


def forward_flops(config: ModelConfig, sequence_length: int | None = None) -> Flops:
    """Operations of one forward pass over one sequence.

    Every query meets every key, masked or not: a kernel that skips the masked half does fewer, and the convention
    keeps figures comparable.

    Args:
        config: the model.
        sequence_length: T in tokens; by default the context length.

    Raises:
        ValueError: sequence_length is below 1.
    """
    length = config.context_length if sequence_length is None else sequence_length
    if length < 1:
        raise ValueError(f"sequence_length is {length}, it must be at least 1")
    width, layers = config.d_model, config.num_layers
    return Flops(
        attention_projections=layers * 2 * length * 4 * width**2,
        attention_scores=layers * 2 * 2 * length**2 * width,
        ffn=layers * 2 * length * _ffn_matrices(config) * width * config.ff_width,
        lm_head=2 * length * width * config.vocab_size,
    )


def training_flops_per_token(config: ModelConfig, sequence_length: int | None = None) -> int:
    """Operations of forward and backward pass, a token: three forward passes, since the backward pass takes two
    (Kaplan et al. 2020, section 2.1). Recomputed activations do not count."""
    length = config.context_length if sequence_length is None else sequence_length
    return 3 * forward_flops(config, length).total // length


def model_flop_utilisation(
    tokens_per_second: float, config: ModelConfig, peak: float, sequence_length: int | None = None
) -> float:
    """Share of the hardware's peak that the model's own operations use (Chowdhery et al. 2022).

    Args:
        tokens_per_second: measured in training, over all devices together.
        config: the model.
        peak: operations per second, over all devices together; see `peak_flops`.
        sequence_length: tokens of a training sequence; by default the context length.
    """
    return tokens_per_second * training_flops_per_token(config, sequence_length) / peak


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Peak rate of dense matrix products of one device, in operations per second, accumulated in float32.

    NVIDIA's datasheets and architecture whitepapers, without structured sparsity (where they print the sparse rate
    only, half of it), at boost clock. Variants with other rates, such as laptop chips and MIG slices, are unknown.

    Args:
        device_name: as `torch.cuda.get_device_name` prints it, for example "NVIDIA H100 80GB HBM3".
        precision: type of the products.

    Returns:
        The rate, or None where it is unknown or the device lacks the type.
    """
    words = set(re.findall(r"[A-Z0-9]+", device_name.upper()))
    if words & _OTHER_RATES:
        return None
    for needed, *rates in _PEAK_TERAFLOPS:
        if words.issuperset(needed.split()):
            rate = rates[("float32", "tf32", "bfloat16").index(precision)]
            return None if rate is None else rate * 1e12
    return None


# Words of the device's name, then float32, tf32 and bfloat16; the first row that matches counts.
_PEAK_TERAFLOPS: list[tuple[str, float, float | None, float | None]] = [
    ("B200", 75, 1125, 2250),
    ("H200 NVL", 60, 417.5, 835.5),
    ("H200", 66.9, 494.7, 989.4),
    ("GH200", 66.9, 494.7, 989.4),
    ("H100 PCIE", 51.2, 378, 756),
    ("H100 NVL", 60, 417.5, 835.5),
    ("H100", 66.9, 494.7, 989.4),
    ("H800 PCIE", 51.2, 378, 756),
    ("H800", 66.9, 494.7, 989.4),
    ("A100", 19.5, 156, 312),
    ("A800", 19.5, 156, 312),
    ("A30", 10.3, 82, 165),
    ("A40", 37.4, 74.8, 149.7),
    ("A10", 31.2, 62.5, 125),
    ("RTX A6000", 38.7, 77.4, 154.8),
    ("L40S", 91.6, 183, 362),
    ("L4", 30.3, 60, 121),
    ("RTX 3090", 35.6, 35.6, 71),
    ("RTX 4090", 82.6, 82.6, 165.2),
    ("V100 SXM2", 15.7, None, None),
    ("V100 PCIE", 14, None, None),
    ("T4", 8.1, None, None),
]
_OTHER_RATES = {"MIG", "LAPTOP", "TI", "D"}


def _ffn_matrices(config: ModelConfig) -> int:
    return 3 if config.ffn == "swiglu" else 2
