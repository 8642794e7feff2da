"""Training over many GPUs: memory, communication and time of one step, from formulas.

FSDP2 (`torch.distributed.fsdp.fully_shard` around each block, then around the model) shards parameters, gradients and
optimizer state over all GPUs, which is ZeRO's third stage (Rajbhandari et al. 2020): a block is gathered before its
forward and again before its backward pass, and its gradients are reduced and scattered. What is outside the blocks
stays gathered in between. Tensor parallelism (Shoeybi et al. 2019, section 3) splits heads, the feed-forward's width
and the vocabulary over GPUs of one host, whose partial sums are all-reduced twice a block in either direction.

Bytes are those that each GPU sends in ring algorithms: (n - 1)/n of the tensor for an all-gather or a reduce-scatter
over n GPUs, twice that for an all-reduce (Rajbhandari et al. 2020, section 7.1).
"""

from dataclasses import asdict, dataclass, replace

from lm.accounting.devices import Links
from lm.accounting.flops import forward_flops, recomputed_flops
from lm.accounting.memory import WIDE, moments, saved_activations
from lm.accounting.parameters import count_block_parameters, count_parameters, has_final_norm
from lm.accounting.presets import Workload

HOST = 8  # GPUs that NVLink joins
LINK_SHARE = 0.8  # of a link's datasheet rate that large messages reach: docs/scaling.md


@dataclass(frozen=True)
class Cluster:
    """GPUs in hosts of eight.

    Args:
        gpus: all of them.
        tensor_parallel: GPUs, of one host, that split each matrix.

    Raises:
        ValueError: the numbers do not fit each other.
    """

    gpus: int
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.gpus < 1 or (self.gpus > HOST and self.gpus % HOST):
            raise ValueError(f"gpus is {self.gpus}; it must be 1 to {HOST}, or a multiple of {HOST} (whole hosts)")
        in_host = min(self.gpus, HOST)
        if self.tensor_parallel < 1 or in_host % self.tensor_parallel:
            raise ValueError(f"tensor_parallel is {self.tensor_parallel}; it must divide a host's {in_host} GPUs")

    @property
    def data_parallel(self) -> int:
        """Ranks that read different sequences, and shard among them what each rank of tensor parallelism holds."""
        return self.gpus // self.tensor_parallel

    def sharding_rate(self, links: Links) -> float:
        """Bytes per second that each GPU sends in a ring over its data-parallel group.

        Of such a group a host holds HOST / tensor_parallel GPUs, and their network adapters share what leaves it.
        """
        if self.gpus <= HOST:
            return LINK_SHARE * links.nvlink
        return LINK_SHARE * min(links.nvlink, links.network * HOST / self.tensor_parallel)


@dataclass(frozen=True)
class Sent:
    """Bytes that each GPU sends in a step of one micro-batch."""

    gather_forward: int
    gather_backward: int
    reduce_scatter: int
    tensor_forward: int
    tensor_backward: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Sharded:
    """A workload on a cluster; its micro-batch is that of one data-parallel rank.

    Raises:
        ValueError: the model does not split, or the optimizer needs whole matrices.
    """

    workload: Workload
    cluster: Cluster
    checkpointing: bool = False

    def __post_init__(self) -> None:
        net, parts = self.workload.net, self.cluster.tensor_parallel
        for name, size in (("num_heads", net.num_heads), ("d_ff", net.ff_width)):
            if size % parts:
                raise ValueError(f"tensor_parallel {parts} does not divide {name} {size}")
        if self.workload.algorithm != "adamw":
            raise ValueError(f"{self.workload.algorithm} needs whole matrices; accounts of several GPUs know adamw")

    @property
    def _narrow(self) -> int:
        """Bytes of a gathered parameter and of an element of what a matrix product returns."""
        return 2 if self.workload.precision == "bf16-mixed" else WIDE

    @property
    def block(self) -> int:
        """Parameters of one block that a rank of tensor parallelism holds; norms are whole on each."""
        net, counted = self.workload.net, count_parameters(self.workload.net)
        matrices = counted.attention + counted.ffn
        norms = count_block_parameters(net) - matrices
        return (matrices // self.cluster.tensor_parallel + norms) // net.num_layers

    @property
    def outside(self) -> int:
        """The same outside the blocks: embeddings, output projection, final norm."""
        net, counted = self.workload.net, count_parameters(self.workload.net)
        vocabulary = counted.token_embeddings + counted.lm_head
        return -(-vocabulary // self.cluster.tensor_parallel) + has_final_norm(net) * net.d_model

    @property
    def parameters(self) -> int:
        """Parameters that a rank of tensor parallelism holds, sharded over its data-parallel group."""
        return self.outside + self.workload.net.num_layers * self.block

    def activations(self) -> int:
        """Most bytes of activations at a time, for a sequence, by `moments`.

        A rank computes what a model with a narrower feed-forward and a smaller vocabulary does, and a part of the
        heads; the residual stream, norms and inputs of products are whole on every rank (Korthikanti et al. 2022,
        section 4.2).
        """
        net, precision, parts = self.workload.net, self.workload.precision, self.cluster.tensor_parallel
        rank = replace(net, d_ff=net.ff_width // parts, vocab_size=-(-net.vocab_size // parts))
        at = moments(rank, net.context_length, precision, self.checkpointing)
        attention = saved_activations(rank, net.context_length, precision)["attention"].per_sequence // net.num_layers
        elsewhere = attention - attention // parts
        loss = at["loss"].per_sequence - (0 if self.checkpointing else net.num_layers) * elsewhere
        backward = at["backward, last block"].per_sequence
        return max(loss, backward - (1 if self.checkpointing else net.num_layers) * elsewhere)

    def memory(self) -> dict[str, int]:
        """Bytes of each GPU. `gathered` are whole parameters (all outside the blocks, and two blocks, one of them
        fetched ahead) and one block's whole gradients, with their float32 copy to be reduced. The peak is in the
        forward and backward pass, or in AdamW, which makes denominators of the parameters' size."""
        shard = WIDE * -(-self.parameters // self.cluster.data_parallel)
        gathered = 0
        if self.cluster.data_parallel > 1:
            gathered = self._narrow * (self.outside + 3 * self.block) + WIDE * self.block
        activations = self.activations() * self.workload.batch_size
        return {
            "parameters": shard,
            "gradients": shard,
            "optimizer_state": 2 * shard,
            "gathered": gathered,
            "activations": activations,
            "peak": 4 * shard + max(gathered + activations, shard),
        }

    def largest_batch(self, memory_bytes: int) -> int:
        """Most sequences of a micro-batch that fit; 0 if none does."""
        memory = self.memory()
        kept = 4 * memory["parameters"]
        if kept + memory["parameters"] > memory_bytes:
            return 0
        return max(0, (memory_bytes - kept - memory["gathered"]) // self.activations())

    def sent(self) -> Sent:
        """What each GPU sends. Partial sums are of one product's result: two a block, one of the embeddings, and in the
        backward pass two a block, one of the output projection, and those that checkpointing computes again. The
        vocabulary-parallel loss sends three numbers a token, which are left out."""
        net, parts, ranks = self.workload.net, self.cluster.tensor_parallel, self.cluster.data_parallel

        def ring(size: int, members: int) -> int:
            return size * (members - 1) // members

        sums = 2 * net.num_layers + 1
        again = 0
        if self.checkpointing:  # the last product, and so its sum, only where `recomputed_flops` counts it
            again = (2 if recomputed_flops(net) == forward_flops(net).blocks else 1) * net.num_layers
        partial = 2 * ring(self._narrow * self.workload.batch_size * net.context_length * net.d_model, parts)
        return Sent(
            gather_forward=ring(self._narrow * self.parameters, ranks),
            gather_backward=ring(self._narrow * net.num_layers * self.block, ranks),
            reduce_scatter=ring(WIDE * self.parameters, ranks),
            tensor_forward=sums * partial,
            tensor_backward=(sums + again) * partial,
        )

    def seconds(self, links: Links, flops_per_second: float) -> dict[str, float]:
        """Time of a step of one micro-batch, AdamW's left out.

        Gathers and scatters run beside the pass, which takes as long as the longer of both. Partial sums are needed at
        once, so that they add to the computation.

        Args:
            links: of each GPU.
            flops_per_second: that each GPU reaches while it does not wait.
        """
        net, sent = self.workload.net, self.sent()
        share = self.workload.batch_size / self.cluster.tensor_parallel
        forward = forward_flops(net).total * share / flops_per_second
        again = recomputed_flops(net) * share / flops_per_second if self.checkpointing else 0.0
        sharding_rate, tensor_rate = self.cluster.sharding_rate(links), LINK_SHARE * links.nvlink
        gather = sent.gather_forward / sharding_rate
        gather_and_scatter = (sent.gather_backward + sent.reduce_scatter) / sharding_rate
        computing = 3 * forward + again
        tensor = (sent.tensor_forward + sent.tensor_backward) / tensor_rate
        step = max(forward + sent.tensor_forward / tensor_rate, gather)
        step += max(2 * forward + again + sent.tensor_backward / tensor_rate, gather_and_scatter)
        return {
            "computing": computing,
            "tensor_parallel": tensor,
            "sharding": gather + gather_and_scatter,
            "not_hidden": step - computing,
            "step": step,
        }
