"""AdamW against torch's own and against the one-tensor reference."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm.optim import AdamW, Muon, adamw_update, clipping_factor, gradient_clipping, parameter_groups

SHAPES = [(4, 3), (5,), (2, 3, 2), ()]


def tensors(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": parameters[:2], "lr": 3e-2, "weight_decay": 0.3},
        {"params": parameters[2:], "betas": (0.8, 0.95), "eps": 1e-3},
    ]


def set_gradients(parameters: list[nn.Parameter], step: int, skip: int | None = None) -> None:
    """Gradients that depend on the step only; the parameter number `skip` gets none."""
    generator = torch.Generator().manual_seed(100 + step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.grad = None if index == skip else gradient * 10.0 ** (step % 5 - 2)


def test_the_first_step_leaves_the_number_of_threads_alone() -> None:
    code = """
import torch
from lm.optim import AdamW
torch.set_num_threads(1)
parameter = torch.nn.Parameter(torch.ones(4))
parameter.grad = torch.ones(4)
AdamW([parameter]).step()
assert "numba" in __import__("sys").modules
raise SystemExit(torch.get_num_threads() != 1)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_equals_torch_over_many_steps_with_groups_and_skipped_parameters() -> None:
    ours, theirs = tensors(torch.float64), tensors(torch.float64)
    optimizer = AdamW(groups(ours), lr=1e-2)
    reference = torch.optim.AdamW(groups(theirs), lr=1e-2, foreach=False)
    for step in range(200):
        skip = step % 7 if step % 3 == 0 else None
        for parameters, stepper in ((ours, optimizer), (theirs, reference)):
            set_gradients(parameters, step, skip)
            stepper.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_defaults_are_torchs() -> None:
    defaults = AdamW([torch.zeros(1)]).defaults
    assert defaults == {key: torch.optim.AdamW([torch.zeros(1)]).defaults[key] for key in defaults}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_equals_the_one_tensor_reference(dtype: torch.dtype, tolerance: float) -> None:
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours, plain = tensors(dtype), tensors(dtype)
    optimizer = AdamW(ours, **settings)
    moments = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in plain]
    for step in range(1, 101):
        set_gradients(ours, step)
        optimizer.step()
        with torch.no_grad():
            for mine, parameter, (mean, square) in zip(ours, plain, moments, strict=True):
                assert mine.grad is not None
                adamw_update(parameter, mine.grad, mean, square, step=step, **settings)
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


def test_first_step_by_hand() -> None:
    # The corrected means of the first step are g and g², so it moves by lr, whatever the gradient's size.
    parameter = nn.Parameter(torch.tensor([2.0, -4.0], dtype=torch.float64))
    parameter.grad = torch.tensor([1e-3, 50.0], dtype=torch.float64)
    AdamW([parameter], lr=0.1, eps=0.0, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach().tolist(), [2 * 0.95 - 0.1, -4 * 0.95 - 0.1])


def test_resumes_bit_equal_from_a_safe_checkpoint() -> None:
    straight = tensors(torch.float32)
    optimizer = AdamW(groups(straight), lr=1e-2)
    for step in range(10):
        set_gradients(straight, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "parameters": [p.detach() for p in straight]}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(tensor) for tensor in loaded["parameters"]]
    continued = AdamW(groups(resumed), lr=99.0)
    continued.load_state_dict(loaded["optimizer"])
    for step in range(10, 20):
        for parameters, stepper in ((straight, optimizer), (resumed, continued)):
            set_gradients(parameters, step)
            stepper.step()
    for one, other in zip(straight, resumed, strict=True):
        assert torch.equal(one, other)


def test_torch_continues_from_our_state() -> None:
    ours = tensors(torch.float64)
    optimizer = AdamW(groups(ours))
    for step in range(5):
        set_gradients(ours, step)
        optimizer.step()
    theirs = copy.deepcopy(ours)
    reference = torch.optim.AdamW(groups(theirs))
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameters, stepper in ((ours, optimizer), (theirs, reference)):
        set_gradients(parameters, 5)
        stepper.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_never_waits_for_the_device() -> None:
    # Meta tensors have no values, so whatever would read one on the host raises.
    parameter = nn.Parameter(torch.zeros(3, 2, device="meta"))
    optimizer = AdamW([parameter])
    for _ in range(2):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert optimizer.state[parameter]["step"] == 2


def test_closure_is_run_with_gradients() -> None:
    parameter = nn.Parameter(torch.tensor(3.0))
    optimizer = AdamW([parameter], lr=0.1)

    def closure() -> Tensor:
        loss = parameter**2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() < 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, "betas"),
        ({"eps": -1e-8}, "eps is -1e-08"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_refuses_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamW([torch.zeros(1)], **settings)
    with pytest.raises(ValueError, match=message):
        AdamW([{"params": [torch.zeros(1)], **settings}])


def test_parameter_groups_spare_vectors_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4, bias=False), nn.Linear(4, 3, bias=False))
    decayed, spared = parameter_groups(model.named_parameters(), 0.1)
    assert [p.shape for p in decayed["params"]] == [(5, 4), (3, 4)]
    assert decayed["weight_decay"] == 0.1
    assert [p.shape for p in spared["params"]] == [(4,)]
    assert spared["weight_decay"] == 0.0
    model[1].requires_grad_(False)
    assert len(parameter_groups(model.named_parameters(), 0.1)) == 1


def test_tensors_in_several_pieces_are_the_same_step() -> None:
    whole, strided = tensors(torch.float32), tensors(torch.float32)
    strided[0] = nn.Parameter(strided[0].detach().T.contiguous().T)
    for parameters in (whole, strided):
        optimizer = AdamW(parameters, lr=1e-2)
        for step in range(3):
            set_gradients(parameters, step)
            optimizer.step()
    torch.testing.assert_close(strided, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_the_gradients_factor_clips_one_step(kind: type[AdamW], dtype: torch.dtype) -> None:
    scaled, clipped = tensors(dtype), tensors(dtype)
    optimizers = []
    for parameters in (scaled, clipped):
        first: dict[str, Any] = {"params": parameters[:1]} | ({"orthogonal": True} if kind is Muon else {})
        optimizers.append(kind([first, {"params": parameters[1:]}], lr=1e-2))
    for step in range(3):
        for parameters in (scaled, clipped):
            set_gradients(parameters, step)
        if step != 1:
            norm, optimizers[0].gradient_factor = clipping_factor(scaled, 0.1)
            torch.testing.assert_close(norm, gradient_clipping(clipped, 0.1))
        for optimizer in optimizers:
            optimizer.step()
        assert optimizers[0].gradient_factor is None
        torch.testing.assert_close(scaled, clipped)


def check_kernel(device: str) -> None:
    """Triton's kernel against the reference; runs on a GPU, or in Triton's interpreter on the CPU."""
    from lm.optim.kernels import update

    check_update(update, device)


def check_update(update: Callable[..., None], device: str) -> None:
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    generator = torch.Generator().manual_seed(0)
    shapes = [(70, 90), (5,), (), (4096,)]
    parameters, means, squares = (
        [torch.rand(shape, generator=generator).to(device) for shape in shapes] for _ in range(3)
    )
    expected = [[tensor.clone() for tensor in column] for column in (parameters, means, squares)]
    for step in (7, 8):
        gradients = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        factor = torch.tensor(0.3, device=device) if step == 8 else None
        update(parameters, gradients, means, squares, step=step, **settings, gradient_factor=factor)
        for row in zip(expected[0], gradients, *expected[1:], strict=True):
            adamw_update(row[0], row[1] * (0.3 if step == 8 else 1), *row[2:], step=step, **settings)
    torch.testing.assert_close([parameters, means, squares], expected, rtol=1e-5, atol=1e-6)


def test_compiled_for_the_cpu() -> None:
    from lm.optim.native import update

    check_update(update, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs an NVIDIA GPU")
def test_kernel() -> None:
    check_kernel("cuda")


if __name__ == "__main__":
    check_kernel("cuda" if torch.cuda.is_available() else "cpu")
