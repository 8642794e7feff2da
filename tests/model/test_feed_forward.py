"""SwiGLU's kernels for Hopper compute what `lm.model.SwiGLU` does, and its gradients."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lm.model import SwiGLU

NAMES = "w1.weight", "w3.weight", "w2.weight"


def tensors(
    leading: tuple[int, ...], d_model: int, d_ff: int, device: str, dtype: torch.dtype
) -> tuple[SwiGLU, Tensor, Tensor]:
    """A feed-forward, its input and the gradient of its output."""
    torch.manual_seed(0)
    ffn = SwiGLU(d_model, d_ff).to(device)
    x, gradient = torch.randn(2, *leading, d_model).to(device, dtype)
    return ffn, x.requires_grad_(), gradient


def check_feed_forward(device: str) -> None:
    """The kernels against the plain arithmetic; runs on a Hopper GPU, or in Triton's interpreter on the CPU."""
    from lm.model.kernels import feed_forward as kernels

    is_gpu = device == "cuda"
    if not is_gpu:
        kernels.multiprocessors = lambda device: 2
    dtypes = [torch.bfloat16] if is_gpu else [torch.float16, torch.float32]
    # Whole blocks and ragged ones, fewer tiles than programs and more.
    shapes = [((2, 128), 64, 128), ((3, 100), 48, 80), ((1,), 24, 40), ((3, 129), 80, 208)]
    shapes += [((4, 1030), 512, 1344)] * is_gpu
    for (leading, d_model, d_ff), dtype in product(shapes, dtypes):
        ffn, x, gradient = tensors(leading, d_model, d_ff, device, dtype)
        weights = [ffn.get_parameter(name) for name in NAMES]
        with torch.autocast(device, torch.bfloat16, enabled=is_gpu):
            out = kernels.feed_forward(x, *weights)
        ours = out, *torch.autograd.grad(out, (x, *weights), gradient)

        wide_x, wide = x.detach().double().requires_grad_(), deepcopy(ffn).double()
        out = wide(wide_x)
        wide_weights = [wide.get_parameter(name) for name in NAMES]
        exact = out, *torch.autograd.grad(out, (wide_x, *wide_weights), gradient.double())
        for mine, theirs, like in zip(ours, exact, (x, x, *weights), strict=True):
            assert mine.dtype == like.dtype
            assert mine.shape == like.shape
            assert (mine - theirs).norm() < max(torch.finfo(dtype).eps, 1e-6) * theirs.norm()


def check_graph() -> None:
    """Both passes within a CUDA graph."""
    from lm.model.kernels.feed_forward import feed_forward
    from lm.model.kernels.hopper import fits

    ffn, x, gradient = tensors((2, 1024), 512, 1344, "cuda", torch.bfloat16)
    inputs = [x, *(ffn.get_parameter(name) for name in NAMES)]
    assert fits(*inputs)
    assert not fits(x[:1], *inputs[1:])
    assert not fits(x.float(), *inputs[1:])

    def passes() -> tuple[Tensor, ...]:
        out = feed_forward(*inputs)
        return out.detach(), *torch.autograd.grad(out, inputs, gradient)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        passes()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        recorded = passes()
    with torch.no_grad():
        x.copy_(2 * x)
    graph.replay()
    for mine, theirs in zip(recorded, passes(), strict=True):
        assert_close(mine, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
def test_feed_forward():
    check_feed_forward("cuda")
    check_graph()


if __name__ == "__main__":
    check_feed_forward("cuda" if torch.cuda.is_available() else "cpu")
