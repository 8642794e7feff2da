"""Memory of training: what is kept, and how high it piles up.

Activations are what autograd keeps for the backward pass of the model as it stands in lm/model, run eagerly: the
tensors that each operation's derivative reads. They are counted operation by operation, and
tests/accounting/test_memory.py holds them to the byte to `torch.autograd.graph.saved_tensors_hooks`. torch.compile
keeps fewer, as it fuses operations and computes some again.

Backends differ in little; benchmarks/memory.py measures on either. In float32, CUDA's fused attention is the
memory-efficient kernel, whose output lies token by token, so that output_proj reads it without a copy, and whose
logarithms are padded to a multiple of 32 rows. CUDA keeps dropout masks as bytes, the CPU as floats. On CUDA, cuBLAS
holds a workspace for each of the two threads of a step. The allocator's rounding (512 bytes a tensor, up to 1 MiB
where a cached block is reused) is left out.

Parameters, gradients, the optimizer's state and the residual stream are float32. Under bf16-mixed, matrix products and
what lies between them are bfloat16, and every product makes a bfloat16 copy of its input and of its matrix; norms and
loss stay float32.

Letters: T time, D d_model, F d_ff, H heads, K head width, V vocabulary, L layers.
"""

from dataclasses import dataclass
from typing import Literal

from lm.accounting.parameters import count_norms, count_parameters, ffn_matrices, has_final_norm
from lm.model.config import ModelConfig

TrainingPrecision = Literal["float32", "bf16-mixed"]
Backend = Literal["cuda", "cpu"]
Algorithm = Literal["adamw", "muon"]
WIDE = 4  # bytes of a float32
CUBLAS_WORKSPACES = 2 * 32 * 2**20  # of the forward and the backward thread; on Hopper, 8 MiB each before
ID = 8  # bytes of a token id in a batch, int64


@dataclass(frozen=True)
class Line:
    """Bytes as a linear function of the batch: per_sequence · batch + fixed."""

    per_sequence: int
    fixed: int = 0

    def at(self, batch_size: int) -> int:
        return self.per_sequence * batch_size + self.fixed

    def __add__(self, other: "Line") -> "Line":
        return Line(self.per_sequence + other.per_sequence, self.fixed + other.fixed)

    def __mul__(self, times: int) -> "Line":
        return Line(self.per_sequence * times, self.fixed * times)


def saved_activations(
    config: ModelConfig,
    sequence_length: int,
    precision: TrainingPrecision,
    checkpointing: bool = False,
    backend: Backend = "cuda",
) -> dict[str, Line]:
    """Bytes that autograd keeps from the forward to the backward pass, by component.

    Args:
        config: the model.
        sequence_length: T in tokens.
        precision: of the training run, as in `trainer.precision`.
        checkpointing: keep each block's input only and compute the block again in the backward pass (Chen et al.
            2016), as `torch.utils.checkpoint` around each block does.
        backend: whose kernels run.
    """
    time, width, layers = sequence_length, config.d_model, config.num_layers
    saved = {"token ids and targets": Line(2 * time * ID)}
    if config.dropout:
        saved["dropout of the embeddings"] = _dropout_mask(config, time, WIDE, backend)
    if checkpointing:
        saved["inputs of the blocks"] = Line(layers * time * width * WIDE)  # the residual stream
    else:
        saved |= {name: line * layers for name, line in _block(config, time, precision, backend).items()}
    if has_final_norm(config):
        saved["final norm"] = _norm(config, time)
    saved["lm_head"] = _product_input(config, time, precision, 1) + _narrow_copies(width * config.vocab_size, precision)
    # Shifted logits (which gather keeps for their shape alone), their exponentials, and the sums under the logarithm.
    saved["cross-entropy"] = Line(2 * time * config.vocab_size * WIDE + time * WIDE)
    return saved


def moments(
    config: ModelConfig,
    sequence_length: int,
    precision: TrainingPrecision,
    checkpointing: bool = False,
    backend: Backend = "cuda",
    algorithm: Algorithm = "adamw",
) -> dict[str, Line]:
    """Bytes in use when a training step of one micro-batch may be at its peak; the largest is the peak.

    Parameters, the optimizer's state, rotary tables and workspaces are always there. Arguments as in
    `saved_activations` and `optimizer_state`.

    - loss: all activations are kept, and the loss is being computed: the logits, and under bf16-mixed their float32
      copy, lie beside the two tensors of that size that are kept. The gradients of the step before are still there, as
      Lightning clears them after the forward pass (and as micro-batches of one step need them).
    - backward, last block: the gradients are gone but for the output projection's; the last block's activations are
      still all there (computed again, with checkpointing), with the gradients that flow through its feed-forward.
    - backward, first block: the gradients of all above it are there, and one block's activations.
    - optimizer: all gradients, and what the step makes: nothing for AdamW, and Muon's iteration on the largest stack of
      like matrices.
    """
    counted = count_parameters(config)
    total = counted.total
    tables = WIDE * config.context_length * config.head_width if config.position == "rope" else 0
    state = optimizer_state(config, algorithm)
    resident = Line(0, WIDE * total + state + tables + (CUBLAS_WORKSPACES if backend == "cuda" else 0))
    gradients = Line(0, WIDE * total)
    saved = saved_activations(config, sequence_length, precision, checkpointing, backend)
    everything = _sum(saved)
    above = _sum({name: saved[name] for name in ("final norm", "lm_head", "cross-entropy") if name in saved})
    below_top = Line(everything.per_sequence - above.per_sequence, everything.fixed - above.fixed)
    block = _sum(_block(config, sequence_length, precision, backend))
    flowing = _flowing(config, sequence_length, precision)
    logits = sequence_length * config.vocab_size
    below = (counted.attention + counted.ffn) // config.num_layers  # the block's own gradients, and what is below it
    if not config.tie_embeddings:
        below += counted.token_embeddings
    head = Line(0, WIDE * config.vocab_size * config.d_model)
    recomputed = block if checkpointing else Line(0)
    return {
        "loss": resident + gradients + everything + Line(logits * (WIDE if precision == "float32" else 2 + WIDE)),
        "backward, last block": resident + head + below_top + recomputed + flowing,
        "backward, first block": resident + Line(0, WIDE * (total - below)) + block + flowing,
        "optimizer": resident + gradients + Line(0, _made_by_optimizer(config, backend, algorithm)),
    }


def optimizer_state(config: ModelConfig, algorithm: Algorithm = "adamw") -> int:
    """Bytes of AdamW's two moments; with `lm.optim.Muon` the blocks' matrices have one momentum instead."""
    counted = count_parameters(config)
    in_muon = counted.attention + counted.ffn if algorithm == "muon" else 0
    return WIDE * (2 * counted.total - in_muon)


def _made_by_optimizer(config: ModelConfig, backend: Backend, algorithm: Algorithm) -> int:
    if algorithm == "adamw":
        return 0
    counted = count_parameters(config)
    width, inner = config.d_model, config.ff_width
    opening = config.num_layers * (ffn_matrices(config) - 1) * width * inner
    stacks = [(counted.attention, 1.0), (opening, min(width, inner) / max(width, inner))]
    if inner == width:  # all are alike
        stacks = [(counted.attention + counted.ffn, 1.0)]
    # The stack itself, the iteration's matrices before and after a round, and two squares of their shorter side.
    narrow = 2 if backend == "cuda" else WIDE
    return max(round(count * (WIDE + narrow * (2 + 2 * ratio))) for count, ratio in stacks)


def largest_batch(at_moments: dict[str, Line], capacity: int) -> int:
    """Most sequences whose every moment fits into `capacity` bytes; 0 if none does."""
    fits = [
        (capacity - line.fixed) // line.per_sequence if line.per_sequence else capacity
        for line in at_moments.values()
        if capacity >= line.fixed
    ]
    return max(0, min(fits)) if len(fits) == len(at_moments) else 0


def _sum(lines: dict[str, Line]) -> Line:
    return sum(lines.values(), Line(0))


def _product_bytes(precision: TrainingPrecision) -> int:
    """Bytes of an element of what a matrix product returns."""
    return WIDE if precision == "float32" else 2


def _block(config: ModelConfig, time: int, precision: TrainingPrecision, backend: Backend) -> dict[str, Line]:
    """What autograd keeps of one block."""
    width, inner, narrow = config.d_model, config.ff_width, _product_bytes(precision)
    matrices = ffn_matrices(config)
    saved: dict[str, Line] = {}
    if count_norms(config):
        saved["norms"] = _norm(config, time) * 2
    saved["attention projections"] = (
        _product_input(config, time, precision, 3)  # q_proj, k_proj, v_proj; what output_proj reads is below
        + _narrow_copies(4 * width**2, precision)
    )
    saved["attention"] = _attention(config, time, narrow, backend)
    # SwiGLU: w1 x, its sigmoid, silu, w3 x and their product for w2. Without the gate, silu is what w2 reads.
    saved["ffn"] = (
        _product_input(config, time, precision, matrices - 1)
        + Line((5 if config.ffn == "swiglu" else 3) * time * inner * narrow)
        + _narrow_copies(matrices * width * inner, precision)
    )
    if config.dropout:
        saved["dropout"] = _dropout_mask(config, time, narrow, backend) * 2
    return saved


def _dropout_mask(config: ModelConfig, time: int, element: int, backend: Backend) -> Line:
    """CUDA's kernel keeps a byte an element, the CPU's path the noise in the type of its input."""
    return Line(time * config.d_model * (1 if backend == "cuda" else element))


def _norm(config: ModelConfig, time: int) -> Line:
    """RMSNorm: its input (for the square), input · scale (for the gain), and the scale, one a token."""
    return Line((2 * time * config.d_model + time) * WIDE)


def _attention(config: ModelConfig, time: int, narrow: int, backend: Backend) -> Line:
    heads, stream = config.num_heads, time * config.d_model * narrow
    saved = Line(3 * stream)  # queries, keys (rotated) and values
    if config.position == "rope":  # sines and cosines of T positions and K/2 frequencies, for queries and for keys
        saved += Line(0, 4 * time * (config.head_width // 2) * WIDE)
    if config.attention == "fused":
        # The output, and the logarithm of each row's sum (Dao et al. 2022, section 3.1).
        if backend == "cuda" and narrow == WIDE:
            return saved + Line(stream + heads * -(-time // 32) * 32 * WIDE)
        # The output is laid out as the queries are: rope leaves them head by head, so that output_proj reads a copy.
        return saved + Line((2 if config.position == "rope" else 1) * stream + heads * time * WIDE)
    # T×T exponentials in float32, the weights that multiply the values, each row's sum, and what output_proj reads;
    # two inverted masks of bytes.
    per_sequence = heads * time**2 * (WIDE + narrow) + heads * time * WIDE + stream
    return saved + Line(per_sequence, 2 * time**2)


def _product_input(config: ModelConfig, time: int, precision: TrainingPrecision, readers: int) -> Line:
    """One tensor for all matrices that read it; autocast makes a bfloat16 copy for each of them."""
    elements = time * config.d_model
    return Line(elements * WIDE if precision == "float32" else elements * 2 * readers)


def _narrow_copies(matrix_elements: int, precision: TrainingPrecision) -> Line:
    """Autocast's bfloat16 copies of matrices, which the products keep; float32 products keep the parameters."""
    return Line(0, 0 if precision == "float32" else 2 * matrix_elements)


def _flowing(config: ModelConfig, time: int, precision: TrainingPrecision) -> Line:
    """Gradients in flight in a block's backward pass, at its worse moment, beyond what the block keeps."""
    narrow, residual = _product_bytes(precision), time * config.d_model * WIDE
    inner = time * config.ff_width * narrow
    in_ffn = residual + 2 * inner  # of both factors of the gate's product
    if config.attention == "fused":
        return Line(in_ffn)
    # The quotient in softmax has six float32 tensors of T×T at once, in place of exponentials and weights; what the
    # feed-forward kept is gone by then.
    squares = config.num_heads * time**2 * (6 * WIDE - WIDE - narrow)
    return Line(max(in_ffn, residual + squares - (5 if config.ffn == "swiglu" else 3) * inner))
