"""Muon against the singular value decomposition, AdamW and its own formula."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from lm.model import ModelConfig, TransformerLM
from lm.optim import AdamW, Muon, muon_groups, orthogonalize


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly_orthogonal(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16), (1, 7)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    # Well apart from zero: what lies below a hundredth of the norm takes more rounds than five.
    u, _, vh = torch.linalg.svd(random(3, *shape), full_matrices=False)
    values = torch.linspace(0.3, 1.0, min(shape), dtype=torch.float64)
    matrices = u * values @ vh * torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64)[:, None, None]
    near = orthogonalize(matrices)
    for before, after in zip(matrices, near, strict=True):
        assert torch.linalg.matrix_norm(after - exactly_orthogonal(before), 2) < 0.35
        product = after @ before.mT  # symmetric only if both have the same singular vectors
        assert torch.linalg.matrix_norm(product - product.mT) < 1e-5 * torch.linalg.matrix_norm(product)


def test_zero_gradients_give_zero_updates() -> None:
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


def test_steps_follow_the_formula_and_the_scale_of_each_shape() -> None:
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5)]
    parameters = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    expected = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros_like(parameter) for parameter in expected]
    optimizer = Muon([{"params": parameters, "orthogonal": True}], lr=0.1, weight_decay=0.3, momentum=0.9)
    for step in range(5):
        for i, parameter in enumerate(parameters):
            gradient = parameter.grad = random(*shapes[i], seed=10 * step + i)
            momenta[i] = 0.9 * momenta[i] + 0.1 * gradient
            update = orthogonalize((0.1 * gradient + 0.9 * momenta[i])[None])[0]
            expected[i] = expected[i] * (1 - 0.1 * 0.3) - 0.1 * 0.2 * math.sqrt(max(shapes[i])) * update
        optimizer.step()
    torch.testing.assert_close([parameter.detach() for parameter in parameters], expected)


def test_an_update_is_as_large_as_adamws_and_independent_of_the_gradients_scale() -> None:
    steps = []
    for scale in (1e-3, 1e3):
        parameter = nn.Parameter(torch.zeros(64, 32, dtype=torch.float64))
        parameter.grad = random(64, 32) * scale
        Muon([{"params": [parameter], "orthogonal": True}], lr=1.0).step()
        steps.append(parameter.detach())
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-4)
    assert float(steps[0].square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_other_groups_take_adamws_step() -> None:
    ours, theirs = (nn.Parameter(random(4, 3)) for _ in range(2))
    optimizer, reference = Muon([ours], lr=0.1, weight_decay=0.2), AdamW([theirs], lr=0.1, weight_decay=0.2)
    for step in range(3):
        for parameter, stepper in ((ours, optimizer), (theirs, reference)):
            parameter.grad = random(4, 3, seed=step)
            stepper.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_groups_of_a_model(tied: bool) -> None:
    model = TransformerLM(ModelConfig(vocab_size=40, d_model=8, num_layers=2, num_heads=2, tie_embeddings=tied))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = muon_groups(model.named_parameters(), 0.1)
    kinds = [(group.get("orthogonal", False), group["weight_decay"]) for group in groups]
    assert kinds == [(True, 0.1), (False, 0.1), (False, 0.0)]
    matrices, tokens, vectors = ({names[id(p)] for p in group["params"]} for group in groups)
    assert matrices == {
        n for n in names.values() if n.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight"))
    }
    assert tokens == {"token_embeddings.weight"} | (set() if tied else {"lm_head.weight"})
    assert len(matrices) + len(tokens) + len(vectors) == len(names)
    model.token_embeddings.weight.requires_grad_(False)
    assert sum(len(g["params"]) for g in muon_groups(model.named_parameters(), 0.1)) == len(names) - 1


def test_resumes_bit_equal_from_a_safe_checkpoint() -> None:
    def train(parameters: list[nn.Parameter], optimizer: Muon, first: int, last: int) -> None:
        for step in range(first, last):
            for i, parameter in enumerate(parameters):
                parameter.grad = random(*parameter.shape, seed=100 * step + i).float()
            optimizer.step()

    def make(parameters: list[nn.Parameter]) -> Muon:
        return Muon([{"params": parameters[:2], "orthogonal": True}, {"params": parameters[2:]}], lr=1e-2)

    straight = [nn.Parameter(random(*shape).float()) for shape in ((4, 3), (3, 4), (5,))]
    optimizer = make(straight)
    train(straight, optimizer, 0, 4)
    resumed = copy.deepcopy(straight)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = make(resumed)
    again.load_state_dict(torch.load(file, weights_only=True))
    train(straight, optimizer, 4, 8)
    train(resumed, again, 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_parameters_without_gradients_are_left_alone() -> None:
    still, moving = (nn.Parameter(random(3, 3)) for _ in range(2))
    moving.grad = random(3, 3, seed=1)
    Muon([{"params": [still, moving], "orthogonal": True}], weight_decay=0.5).step()
    assert torch.equal(still, random(3, 3))
    assert not torch.equal(moving, random(3, 3))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"momentum is 1.0, it must be at least 0 and below 1"):
        Muon([torch.zeros(2, 2)], momentum=1.0)
    with pytest.raises(ValueError, match="matrices"):
        Muon([{"params": [torch.zeros(2)], "orthogonal": True}])
    with pytest.raises(ValueError, match="lr is -1"):
        Muon([torch.zeros(2, 2)], lr=-1)
