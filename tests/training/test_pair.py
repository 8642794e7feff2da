"""Two GPUs that send each other gradients beside the backward pass get a collective's means, bit by bit."""

import ctypes
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from lm.model import ModelConfig, TransformerLM
from lm.training import data_parallel
from lm.training.data_parallel import AverageAfterPass, DataParallel
from lm.training.graph import RecordedStep
from lm.training.pair import PairExchange, have_atomics

NET = ModelConfig(vocab_size=300, context_length=64, d_model=64, num_layers=2, num_heads=2, tie_embeddings=True)


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


@pytest.mark.parametrize(("gpus", "atomics", "is_pair"), [(2, True, True), (2, False, False), (1, True, False)])
def test_exchange(gpus: int, atomics: bool, is_pair: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = object()
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(data_parallel, "mean_over_processes", lambda tensor: tensor)
    monkeypatch.setattr(data_parallel, "have_atomics", lambda *numbers: numbers == (0, 1) and atomics)
    monkeypatch.setattr(data_parallel, "PairExchange", lambda parameters: made)
    monkeypatch.setattr(DataParallel, "root_device", torch.device("cpu"))
    strategy = DataParallel(parallel_devices=[torch.device("cuda", index) for index in range(gpus)])
    exchange = strategy.exchange([torch.zeros(3)])
    assert exchange is made if is_pair else isinstance(exchange, AverageAfterPass)


def test_exchange_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(parameters: list[Tensor]) -> None:
        raise RuntimeError("pidfd_getfd: Operation not permitted")

    monkeypatch.setattr(data_parallel, "mean_over_processes", lambda tensor: tensor)
    monkeypatch.setattr(data_parallel, "PairExchange", refuse)
    monkeypatch.setattr(DataParallel, "root_device", torch.device("cpu"))
    monkeypatch.setattr(DataParallel, "_is_pair", lambda strategy: True)
    with pytest.warns(UserWarning, match=r"by NCCL, .* pidfd_getfd: Operation not permitted"):
        assert isinstance(DataParallel().exchange([torch.zeros(3)]), AverageAfterPass)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_pair(tmp_path: Path) -> None:
    if not have_atomics(0, 1):
        pytest.skip("needs two GPUs with NVLink")
    spawn(in_process, (tmp_path,), 2)
