"""Floating-point operations of the model and of its optimizer.

Only matrix products count for the model, as PaLM does for its utilisation (Chowdhery et al. 2022, appendix B): norms,
softmax and activations are well below 1 % of them.
"""

from dataclasses import dataclass

from lm.accounting.parameters import count_norms, count_parameters, ffn_matrices
from lm.model.config import ModelConfig


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by component; `attention_scores` are both products with the T×T weights."""

    attention_projections: int
    attention_scores: int
    ffn: int
    lm_head: int

    @property
    def total(self) -> int:
        return self.blocks + self.lm_head

    @property
    def blocks(self) -> int:
        """All but the output projection."""
        return self.attention_projections + self.attention_scores + self.ffn


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
        ffn=layers * 2 * length * ffn_matrices(config) * width * config.ff_width,
        lm_head=2 * length * width * config.vocab_size,
    )


def recomputed_flops(config: ModelConfig, sequence_length: int | None = None) -> int:
    """Operations that activation checkpointing does a second time: the blocks.

    `torch.utils.checkpoint` stops as soon as all that was kept is there again: in a pre-norm block without dropout,
    before the feed-forward's last product.
    """
    flops = forward_flops(config, sequence_length)
    result_is_kept = config.dropout > 0 or (config.norm == "rmsnorm" and config.norm_position == "post")
    return flops.blocks - (0 if result_is_kept else flops.ffn // ffn_matrices(config))


def norm_flops(config: ModelConfig, sequence_length: int | None = None) -> int:
    """The norms of one forward pass at one multiply-add (two operations) an element: the squares and their sum.

    That is how CS336's assignment 1 counts them; the two products with the scale and the gain are left out. No matrix
    product, so not in `forward_flops`.
    """
    length = config.context_length if sequence_length is None else sequence_length
    return count_norms(config) * 2 * length * config.d_model


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


@dataclass(frozen=True)
class OptimizerStep:
    """One step of `lm.optim.AdamW` over all parameters, in float32.

    `bytes_moved` are the reads and writes of its eight multi-tensor operations, `bytes_moved_fused` those of a kernel
    that does them in one pass: the memory's rate, not the operations', sets the time of a step.
    """

    flops: int
    bytes_moved: int
    bytes_moved_fused: int


def optimizer_step(config: ModelConfig) -> OptimizerStep:
    """Cost of one step (Loshchilov and Hutter 2019, algorithm 2), clipping and gradient excluded."""
    count = count_parameters(config).total
    return OptimizerStep(
        flops=count * sum(flops for flops, _ in _ADAMW),
        bytes_moved=count * 4 * sum(tensors for _, tensors in _ADAMW),
        # Parameter, gradient and both moments in; parameter and both moments out.
        bytes_moved_fused=count * 4 * (4 + 3),
    )


# Operations, and tensors read or written, of each step in lm/optim/adamw.py for one parameter; a root or a quotient
# counts as one operation.
_ADAMW = [
    (3, 3),  # m += (1 - beta1) (g - m)
    (1, 2),  # v *= beta2
    (3, 3),  # v += (1 - beta2) g g
    (1, 2),  # d = sqrt(v)
    (1, 2),  # d /= sqrt(1 - beta2^t)
    (1, 2),  # d += eps
    (1, 2),  # p *= 1 - lr weight_decay
    (3, 4),  # p += -lr / (1 - beta1^t) m / d
]
