"""Two GPUs that send each other gradients beside the backward pass get a collective's means, bit by bit."""

import ctypes
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from lm.model import ModelConfig, TransformerLM
from lm.training.data_parallel import AverageAfterPass
from lm.training.graph import RecordedStep
from lm.training.pair import PairExchange, have_atomics

NET = ModelConfig(vocab_size=300, context_length=64, d_model=64, num_layers=2, num_heads=2)


def compare(rank: int) -> None:
    """Passes over several batches, with either exchange."""
    torch.manual_seed(0)
    model = TransformerLM(NET).cuda()
    model.speed_up()
    steps = RecordedStep(model, PairExchange), RecordedStep(model, lambda parameters: AverageAfterPass())
    generator = torch.Generator().manual_seed(rank)
    for _ in range(20):
        ids = torch.randint(0, NET.vocab_size, (4, 65), generator=generator).cuda()
        found: list[list[Tensor]] = []
        for step in steps:
            with torch.autocast("cuda", torch.bfloat16):
                loss = step(ids[:, :-1], ids[:, 1:])
            model.zero_grad()
            step.deliver()
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            found.append([x.clone() for x in (loss, *gradients)])
        assert all(map(torch.equal, *found))
        for gradient in found[0][1:]:
            theirs = gradient.clone()
            dist.broadcast(theirs, 0)
            assert torch.equal(gradient, theirs)


def in_process(rank: int, folder: Path) -> None:
    """One of two."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", f"file://{folder}/store", rank=rank, world_size=2)
    compare(rank)
    dist.destroy_process_group()


def test_no_atomics_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not have_atomics(0, 1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_pair(tmp_path: Path) -> None:
    if not have_atomics(0, 1):
        pytest.skip("needs two GPUs with NVLink")
    spawn(in_process, (tmp_path,), 2)
