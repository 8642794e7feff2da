"""Two GPUs that send each other gradients beside the backward pass get a collective's means, bit by bit."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from lm.model import ModelConfig, TransformerLM
from lm.training.data_parallel import AverageAfterPass
from lm.training.graph import RecordedStep
from lm.training.pair import PairExchange

NET = ModelConfig(vocab_size=300, context_length=64, d_model=64, num_layers=2, num_heads=2)


def train(rank: int, folder: Path) -> None:
    """Passes over several batches, with either exchange."""
    torch.cuda.set_device(rank)
    store = f"file://{folder}/store"
    dist.init_process_group("nccl", store, rank=rank, world_size=2, device_id=torch.device("cuda", rank))
    torch.manual_seed(0)
    model = TransformerLM(NET).cuda()
    model.speed_up()
    steps = RecordedStep(model, PairExchange), RecordedStep(model, lambda parameters: AverageAfterPass())
    generator = torch.Generator().manual_seed(rank)
    for _ in range(20):
        ids = torch.randint(0, NET.vocab_size, (4, 65), generator=generator).cuda()
        found = []
        for step in steps:
            with torch.autocast("cuda", torch.bfloat16):
                loss = step(ids[:, :-1], ids[:, 1:])
            model.zero_grad()
            step.deliver()
            found.append([loss.clone(), *(parameter.grad.clone() for parameter in model.parameters())])  # pyright: ignore
        assert all(map(torch.equal, *found))
        for gradient in found[0][1:]:
            theirs = gradient.clone()
            dist.broadcast(theirs, 0)
            assert torch.equal(gradient, theirs)
    del steps
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_pair(tmp_path: Path) -> None:
    spawn(train, (tmp_path,), 2)
