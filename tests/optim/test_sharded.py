"""Clipping and AdamW over FSDP2's sharded tensors, on two processes: the weights of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from lm.model import ModelConfig, TransformerLM
from lm.optim import AdamW, clip, gradient_clipping, parameter_groups

NET = ModelConfig(vocab_size=64, context_length=16, d_model=32, num_layers=2, num_heads=2, d_ff=64)
RANKS = 2


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def train(sharded: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Three steps; the norms before clipping, and the weights."""
    torch.manual_seed(0)
    model = TransformerLM(NET)
    if sharded:
        mesh = init_device_mesh("cpu", (RANKS,))
        for block in model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = AdamW(parameter_groups(model.named_parameters(), 0.1))
    ids = torch.arange(2 * NET.context_length).reshape(2, -1)
    norms: list[Tensor] = []
    for _ in range(3):
        optimizer.zero_grad()
        model(ids).square().mean().backward()
        norms.append(whole(gradient_clipping(model.parameters(), 1e-3)))
        optimizer.step()
    return norms, [whole(parameter) for parameter in model.parameters()]


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    clip.takes_kernels = lambda tensors: True  # as on a GPU, whose kernels know this process's rows only
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    results = train(sharded=True)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()  # who leaves first would abort the other
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_sharded_training_gives_the_same_weights(tmp_path: Path) -> None:
    spawn(rank_main, (str(tmp_path),), RANKS)
    norms, weights = torch.load(tmp_path / "results.pt")
    expected_norms, expected_weights = train(sharded=False)
    torch.testing.assert_close(norms, expected_norms)
    torch.testing.assert_close(weights, expected_weights)
