"""Memory of training as `fit` does it on an NVIDIA GPU: the fast path of lm/model/fast.py, in bf16-mixed.

What is kept is what the operations of lm/model/kernels and lm/model/products.py save: a block's input, what its norms
give, the residual stream between its halves, and what its matrices read or give. All of it is bfloat16, and so are the
packed copies of the matrices. benchmarks/memory.py measures how near this comes.

Letters: T time, D d_model, F d_ff, H heads, V vocabulary.
"""

from lm.accounting.memory import CUBLAS_WORKSPACES, ID, WIDE, Algorithm, TrainingPrecision, optimizer_state
from lm.accounting.parameters import count_parameters
from lm.model.config import ModelConfig

NARROW = 2  # bytes of a bfloat16
IN_ORDER = 4 + ID  # bytes of an id in lm/model/kernels/embedding.py, and of its place
LOGITS_PART = 2 * 2**30  # bytes of logits at a time; lm.model.loss.GPU_PART


def covers(config: ModelConfig, precision: TrainingPrecision) -> bool:
    """Whether this account knows such a training."""
    return precision == "bf16-mixed" and config.attention == "fused"


def fast_moments(
    config: ModelConfig,
    sequence_length: int,
    batch_size: int,
    checkpointing: bool = False,
    algorithm: Algorithm = "adamw",
) -> dict[str, int]:
    """Bytes in use when a step in bf16-mixed may be at its peak, as `lm.accounting.moments` for eager steps.

    Raises:
        ValueError: attention is manual, which has no kernels.
    """
    if not covers(config, "bf16-mixed"):
        raise ValueError(f"attention is {config.attention}; the account of the fast path knows fused only")
    counted = count_parameters(config)
    tokens, width, head = batch_size * sequence_length, config.d_model, config.vocab_size * config.d_model
    tables = WIDE * config.context_length * config.head_width if config.position == "rope" else 0
    resident = WIDE * counted.total + optimizer_state(config, algorithm) + tables + CUBLAS_WORKSPACES
    gradients = WIDE * counted.total
    block = _block(config, sequence_length) * batch_size
    blocks = tokens * width * NARROW * config.num_layers if checkpointing else block * config.num_layers
    matrices = NARROW * (counted.attention + counted.ffn)  # packed copies
    # Token ids and targets, and the ids once more in order; input and output of the last norm, and what the loss
    # leaves: its input's gradient.
    saved = blocks + matrices + tokens * (2 * ID + IN_ORDER + 3 * width * NARROW)
    logits = tokens * config.vocab_size * NARROW
    parts = -(-logits // LOGITS_PART)
    summed = WIDE * head if parts > 1 else 0  # the output projection's gradient, of the parts before
    rescaled = tokens * width * NARROW  # the loss's input once more, on Hopper
    flowing = tokens * (2 * config.ff_width + 2 * width) * NARROW
    return {
        "loss": resident + gradients + saved + (logits + rescaled) // parts + NARROW * head + WIDE * head + summed,
        "backward, last block": resident + saved + 2 * WIDE * head + flowing + (block if checkpointing else 0),
        "backward, first block": resident + gradients + block + matrices + flowing,
        "optimizer": resident + gradients,
    }


def largest_fast_batch(
    config: ModelConfig,
    sequence_length: int,
    capacity: int,
    checkpointing: bool = False,
    algorithm: Algorithm = "adamw",
) -> int:
    """Most sequences of a step that fit into `capacity` bytes; 0 if none does."""

    def fits(batch_size: int) -> bool:
        return max(fast_moments(config, sequence_length, batch_size, checkpointing, algorithm).values()) <= capacity

    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _block(config: ModelConfig, time: int) -> int:
    """Bytes that one block keeps of a sequence."""
    width, inner = config.d_model, config.ff_width
    norms = 2 if config.norm == "rmsnorm" else 0
    elements = (2 + norms + 3 + 1) * width + (3 if config.ffn == "swiglu" else 2) * inner
    masks = 2 * width if config.dropout else 0
    return time * (elements * NARROW + masks + (config.num_heads + norms) * WIDE)
