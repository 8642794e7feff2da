"""A recorded step gives the loss and the gradients of the same passes launched one by one."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.model import ModelConfig, TransformerLM
from lm.training.graph import WARM_UPS, RecordedStep

NET = ModelConfig(vocab_size=300, context_length=64, d_model=64, num_layers=2, num_heads=2, tie_embeddings=True)


def batch(seed: int, rows: int = 4) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, NET.vocab_size, (rows, 65), generator=torch.Generator().manual_seed(seed)).cuda()
    return ids[:, :-1], ids[:, 1:]


class Doubles:
    """Delivers twice the gradients of the loss, which come at half their size."""

    scale = 0.5

    def __init__(self) -> None:
        self.sent: list[Tensor] = []

    def send(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.sent.append(parameter)

    def receive(self, gradients: list[Tensor]) -> list[Tensor]:
        return [4 * gradient for gradient in gradients]


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
def test_recorded_step() -> None:
    torch.manual_seed(0)
    model = TransformerLM(NET).cuda()
    model.speed_up()
    parameters = list(model.parameters())
    exchange = Doubles()
    recorded = RecordedStep(model, lambda parameters: exchange)
    for seed, rows in ((0, 4), (1, 4), (2, 3), (3, 4)):
        with torch.autocast("cuda", torch.bfloat16):
            mine, theirs = recorded(*batch(seed, rows)), model.loss(*batch(seed, rows))
        assert torch.equal(mine, theirs.detach())
        model.zero_grad()
        recorded.deliver()
        found = [parameter.grad / 2 for parameter in parameters if parameter.grad is not None]
        model.zero_grad()
        theirs.backward()
        expected = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-6)
        recorded.deliver(0.25)
        del theirs
        added = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch.testing.assert_close(added, [1.5 * gradient for gradient in found], rtol=1e-2, atol=1e-6)
    passes = 2 * (WARM_UPS + 1)  # of either shape
    assert Counter(map(id, exchange.sent)) == {id(parameter): passes for parameter in parameters}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton needs an NVIDIA GPU")
def test_kernels_compiled_together_run_afterwards() -> None:
    from lm.model.kernels.exponentials import scaled
    from lm.model.kernels.together import compiled_together

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x_RD: Tensor) -> Tensor:
            return scaled(x_RD, twos_R)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return scaled(gradients[0].contiguous(), twos_R, gradient_RD)

    x_RD, twos_R = torch.ones(3, 37, device="cuda", requires_grad=True), torch.full((3,), 2.0, device="cuda")
    gradient_RD = torch.full((3, 37), 7.0, device="cuda")
    with compiled_together():
        Doubled.apply(x_RD).sum().backward()
    assert (gradient_RD == 7).all()
    assert scaled(x_RD.detach(), twos_R).eq(2).all()
    Doubled.apply(x_RD).sum().backward()
    assert (gradient_RD == 2).all()
