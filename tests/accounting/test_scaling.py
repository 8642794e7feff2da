"""Many GPUs: formulas against figures worked out by hand, and against torch's own FSDP2 on a backend without peers."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lm.accounting import PRESETS, Cluster, Links, Sent, Sharded, Workload, count_parameters, moments, sharded_account
from lm.accounting.devices import host_links
from lm.accounting.scaling import LINK_SHARE
from lm.cli import main
from lm.model import ModelConfig, TransformerLM
from lm.optim import AdamW

NET = ModelConfig(vocab_size=512, context_length=32, d_model=64, num_layers=3, num_heads=4, d_ff=256)
SMALL = Workload("small", NET, 2, "bf16-mixed")


def test_presets_have_the_published_numbers_of_parameters() -> None:
    """Of 7B and 13B those of Llama; 1B and 70B by the same sum."""
    numbers = {name: count_parameters(PRESETS[f"llama-{name}"].net).total for name in ("1b", "7b", "13b", "70b")}
    one = 2 * 32_000 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 5504 + 2 * 2048) + 2048
    seventy = 2 * 32_000 * 8192 + 80 * (4 * 8192**2 + 3 * 8192 * 24_576 + 2 * 8192) + 8192
    assert numbers == {"1b": one, "7b": 6_738_415_616, "13b": 13_015_864_320, "70b": seventy}


def test_by_hand() -> None:
    """16 GPUs, matrices split in two: a block has (4 · 64² + 3 · 64 · 256) / 2 + 2 · 64 = 32,896 parameters a rank,
    the rest 2 · 512 · 64 / 2 + 64 = 32,832, all 131,520, over 8 data-parallel ranks."""
    sharded = Sharded(SMALL, Cluster(16, 2))
    assert (sharded.block, sharded.outside, sharded.parameters) == (32_896, 32_832, 131_520)
    memory = sharded.memory()
    assert (memory["parameters"], memory["gradients"], memory["optimizer_state"]) == (65_760, 65_760, 131_520)
    # In bfloat16: 32,832 outside, two blocks and one block's gradients; in float32 these gradients again.
    assert memory["gathered"] == 2 * 131_520 + 4 * 32_896
    assert memory["activations"] == 2 * sharded.activations()
    assert memory["peak"] == 4 * 65_760 + memory["gathered"] + memory["activations"]
    # 7/8 of what is gathered or scattered. A partial sum, 2 · 32 · 64 in bfloat16, goes round its pair once: 8,192
    # bytes; seven times forward (two a block, embeddings), seven backward (two a block, output projection).
    assert sharded.sent() == Sent(230_160, 172_704, 460_320, 57_344, 57_344)
    assert sharded.sent().total == 977_872
    # With checkpointing attention's once more in each block; with dropout, where all is computed again, both.
    assert Sharded(SMALL, Cluster(16, 2), True).sent().tensor_backward == (7 + 3) * 8192
    dropped = replace(SMALL, net=replace(NET, dropout=0.1))
    assert Sharded(dropped, Cluster(16, 2), True).sent().tensor_backward == (7 + 6) * 8192


def test_time_by_hand() -> None:
    """One pass forward: (3 · 2 · 32 · (4 · 64² + 3 · 64 · 256) + 3 · 4 · 32² · 64 + 2 · 32 · 64 · 512) · 2 / 2
    = 15,466,496 operations a GPU; links of 100 bytes a µs inside a host and 10 outside, at LINK_SHARE of that."""
    sharded, links = Sharded(SMALL, Cluster(16, 2)), Links(100e6, 10e6)
    fast = sharded.seconds(links, 15_466_496e3)  # a pass a millisecond: far faster than the links
    assert fast["computing"] == pytest.approx(3e-3)
    assert fast["tensor_parallel"] == pytest.approx(114_688 / (LINK_SHARE * 100e6))
    # Four GPUs of a host share a ring over the hosts, so that its rate is that of four adapters.
    assert fast["sharding"] == pytest.approx((230_160 + 172_704 + 460_320) / (LINK_SHARE * 40e6))
    assert fast["step"] == pytest.approx(fast["sharding"])
    assert fast["not_hidden"] == pytest.approx(fast["step"] - 3e-3)
    slow = sharded.seconds(links, 15_466_496)  # a pass a second hides all but the partial sums
    assert slow["not_hidden"] == pytest.approx(slow["tensor_parallel"])
    again = Sharded(SMALL, Cluster(16, 2), True).seconds(links, 15_466_496)
    ffn_out = 3 * 2 * 32 * 64 * 256
    head = 2 * 32 * 64 * 512
    assert again["computing"] == pytest.approx(3 + (15_466_496 - head - ffn_out) / 15_466_496)


def test_rates_of_rings() -> None:
    links = host_links("H100")
    rate = {
        (gpus, parts): Cluster(gpus, parts).sharding_rate(links) / LINK_SHARE
        for gpus, parts in ((2, 1), (8, 4), (16, 1), (1024, 2), (1024, 8))
    }
    assert rate == {(2, 1): 450e9, (8, 4): 450e9, (16, 1): 400e9, (1024, 2): 200e9, (1024, 8): 50e9}


def test_one_gpu_is_the_plain_account() -> None:
    for checkpointing in (False, True):
        sharded = Sharded(SMALL, Cluster(1), checkpointing)
        at = moments(NET, NET.context_length, "bf16-mixed", checkpointing)
        assert sharded.activations() == max(line.per_sequence for line in at.values())
        assert sharded.sent().total == 0
        assert sharded.memory()["gathered"] == 0
    report = sharded_account(Sharded(SMALL, Cluster(1)), utilisation=0.4)
    assert report["utilisation"] == {"computing": 0.4, "expected": pytest.approx(0.4)}


def test_tensor_parallelism_leaves_a_whole_part_of_the_activations() -> None:
    one, two, four = (Sharded(SMALL, Cluster(8, parts)).activations() for parts in (1, 2, 4))
    assert one - two == 2 * (two - four) > 0
    inputs = NET.num_layers * 4 * NET.context_length * NET.d_model  # of the blocks, on every rank
    assert inputs < 2 * two - one < four
    again = [Sharded(SMALL, Cluster(8, parts), True).activations() for parts in (1, 2, 4)]
    assert again == sorted(again, reverse=True)
    assert inputs < again[-1] < four


def test_largest_batch_fits_and_the_next_does_not() -> None:
    for workload, cluster in ((PRESETS["llama-7b"], Cluster(64, 2)), (PRESETS["llama-70b"], Cluster(1024, 8))):
        sharded = Sharded(workload, cluster, True)
        batch = sharded.largest_batch(80 * 10**9)
        peaks = [
            Sharded(replace(workload, batch_size=size), cluster, True).memory()["peak"] for size in (batch, batch + 1)
        ]
        assert peaks[0] <= 80 * 10**9 < peaks[1]
    assert Sharded(PRESETS["llama-70b"], Cluster(8)).largest_batch(80 * 10**9) == 0


class Collectives(TorchDispatchMode):
    """Notes the bytes of the whole tensor of each collective."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
            self.sizes[func.overloadpacket.__name__] += max(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def sixteen_ranks() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=16)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
def test_fsdp2_shards_and_sends_what_the_formulas_say(sixteen_ranks: None, tied: bool) -> None:
    net = replace(NET, tie_embeddings=tied)
    mesh = init_device_mesh("cpu", (16,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = TransformerLM(net)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    with Collectives() as seen:
        model(torch.zeros(2, net.context_length, dtype=torch.long)).float().square().mean().backward()
    optimizer = AdamW(list(model.parameters()))
    optimizer.step()
    sharded = Sharded(replace(SMALL, net=net), Cluster(16))
    held = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    assert sum(parameter.to_local().nbytes for parameter in held) == sharded.memory()["parameters"]
    moments_kept = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(moment.to_local().nbytes for moment in moments_kept) == sharded.memory()["optimizer_state"]
    sent = sharded.sent()
    assert set(seen.sizes) == {"_allgather_base_", "_reduce_scatter_base_"}
    assert seen.sizes["_allgather_base_"] * 15 // 16 == sent.gather_forward + sent.gather_backward
    assert seen.sizes["_reduce_scatter_base_"] * 15 // 16 == sent.reduce_scatter


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "account",
        "llama-7b",
        "--gpus",
        "64",
        "--tensor_parallel",
        "2",
        "--checkpointing",
        "--batch_size",
        "2",
    ]
    assert main([*arguments, "--tokens", "1000000000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    sharded = Sharded(replace(PRESETS["llama-7b"], batch_size=2), Cluster(64, 2), True)
    assert report["memory"] == sharded.memory()
    assert report["sent"] == {**asdict(sharded.sent()), "total": sharded.sent().total}
    assert report["tokens_per_step"] == 32 * 2 * 4096
    step = report["seconds"]["step"]
    assert report["training_seconds"] == pytest.approx(1e9 / (32 * 2 * 4096) * step)
    flops = 6 * 32 * 2 * 4096 * report["parameters"]
    assert report["utilisation"]["expected"] == pytest.approx(flops / (64 * 989.4e12 * step), rel=0.2)  # no attention
    assert main([*arguments, "--network_gbit", "25", "--tokens", "1000000000"]) == 0
    table = capsys.readouterr().out
    assert "6,738,415,616 parameters, on 64 H100" in table
    assert re.search(r"parameters +0\.421\n", table)
    assert "3.125 GB/s (network)" in table
    assert "days" in table
    assert max(map(len, table.splitlines())) <= 120


MISTAKES = {
    "gpus": (("--gpus", 12), r"gpus is 12.*multiple of 8"),
    "no gpus": (("--gpus", 0), "gpus is 0"),
    "across hosts": (("--gpus", 32, "--tensor_parallel", 16), r"tensor_parallel is 16.*8 GPUs"),
    "more than there are": (("--gpus", 2, "--tensor_parallel", 4), r"tensor_parallel is 4.*2 GPUs"),
    "heads": (("--gpus", 8, "--tensor_parallel", 8, "--net.num_heads", 4), r"8 does not divide num_heads 4"),
    "width": (("--gpus", 8, "--tensor_parallel", 8, "--net.d_ff", 1028), r"8 does not divide d_ff 1028"),
    "no cluster": (("--tensor_parallel", 2), "need gpus"),
    "network": (("--gpus", 16, "--network_gbit", 0), "network's rate is 0"),
    "device": (("--gpus", 16, "--device", "T4"), r"links of 'T4' are not known.*H100"),
    "batch": (("--gpus", 16, "--batch_size", 0), "batch_size is 0"),
    "utilisation": (("--gpus", 16, "--utilisation", 2), "utilisation is 2"),
    "products": (("--gpus", 16, "--products", "tf32"), "products"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str) -> None:
    assert main(["account", "llama-7b", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


def test_muon_is_not_for_many_gpus() -> None:
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        Sharded(replace(SMALL, algorithm="muon"), Cluster(8))
