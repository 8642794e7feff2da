"""Cross-entropy together with the output projection: never more than a part of the logits at a time.

Shape letters: N tokens, R tokens of one part, D d_model, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lm.model.functional import widen
from lm.model.kernels import has_triton
from lm.model.products import wide_product

CPU_PART, GPU_PART = 64 * 2**20, 2 * 2**30  # bytes of logits at a time
IntoGradient = Callable[[Tensor, Tensor, int, float], Tensor]
ALIGNMENT = 8  # ids; rows of bfloat16 logits of whole 16 bytes, without which products run at half speed


def linear_cross_entropy(
    x: Tensor, weight_VD: Tensor, targets: Tensor, compiled: bool = False, gradient_scale: float | None = None
) -> Tensor:
    """`cross_entropy_loss(x @ weight.T, targets)`, with its gradients worked out in the same pass.

    A part's logits are computed, and their gradients take their place and are multiplied out at once, as in Wijmans et
    al. 2024 and Hsu et al. 2024. The products run in the type of x; sums of exponentials in float32 or wider.

    Args:
        x: (..., D), what the output projection reads.
        weight_VD: the output projection.
        targets: (...), ids in [0, V).
        compiled: whether loss and gradient of the logits run as one compiled function, where there is no kernel for
            them.
        gradient_scale: if given, nothing is done with the loss but to differentiate it, which saves a pass over the
            gradients, and these come out times this.
    """
    if not torch.is_grad_enabled():
        weight_VD = weight_VD.detach()  # a parameter's gradient would be worked out whether it is wanted or not
    x_ND, targets_N = x.flatten(0, -2).contiguous(), targets.flatten().contiguous()
    loss: Tensor = _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, compiled, gradient_scale)  # pyright: ignore
    return loss


def loss_into_gradient(logits_RV: Tensor, targets_R: Tensor, vocab_size: int, scale: float) -> Tensor:
    """Sum of the losses of rows of logits; their gradients, times `scale`, take the logits' place.

    Columns beyond V get zeros.
    """
    real_RV = logits_RV[:, :vocab_size]
    wide_RV = widen(real_RV)
    sums_R1 = wide_RV.logsumexp(-1, keepdim=True)
    targets_R1 = targets_R[:, None]
    loss = (sums_R1 - wide_RV.gather(1, targets_R1)).sum()
    is_target = torch.arange(vocab_size, device=targets_R.device) == targets_R1
    real_RV.copy_(((wide_RV - sums_R1).exp() - is_target.to(wide_RV.dtype)) * scale)
    logits_RV[:, vocab_size:] = 0
    return loss


@cache
def _compiled() -> IntoGradient:
    return torch.compile(loss_into_gradient, dynamic=False)


def _logits_gradient(
    x_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, vocab_size: int, scale: float, compiled: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sum of the losses, their gradient by the logits, (R, V), times `scale`, and a factor that its rows still lack."""
    if has_triton(x_RD.device):
        from lm.model.kernels.cross_entropy import loss_into_gradient as into_gradient
        from lm.model.kernels.hopper import fits

        if fits(x_RD, weight_VD):
            from lm.model.kernels.exponentials import exponentials

            return exponentials(x_RD, weight_VD, targets_R, vocab_size, scale)
    else:
        into_gradient = _compiled() if compiled else loss_into_gradient
    logits_RV = wide_product(x_RD, weight_VD.T, x_RD.dtype)
    return into_gradient(logits_RV, targets_R, vocab_size, scale), logits_RV, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, compiled: bool, gradient_scale: float | None
    ) -> Tensor:
        vocab_size, wide = len(weight_VD), torch.promote_types(weight_VD.dtype, torch.float32)
        padded = -(-vocab_size // ALIGNMENT) * ALIGNMENT
        narrow_VD = weight_VD.to(x_ND.dtype).contiguous()
        if padded > vocab_size:
            narrow_VD = F.pad(narrow_VD, (0, 0, 0, padded - vocab_size))
        part = CPU_PART if x_ND.device.type == "cpu" else GPU_PART
        parts = -(-len(x_ND) * padded * x_ND.element_size() // part) or 1
        rows = -(-len(x_ND) // parts) or 1
        needs_gradient = any(ctx.needs_input_grad)
        scale = (1.0 if gradient_scale is None else gradient_scale) / len(targets_N)
        losses, x_gradient_ND = [], torch.empty_like(x_ND) if needs_gradient else x_ND
        weight_gradient_VD: Tensor | None = None
        parts_of = (x_ND.split(rows), targets_N.split(rows), x_gradient_ND.split(rows))
        for x_RD, targets_R, x_gradient_RD in zip(*parts_of, strict=True):
            loss, gradient_RV, factors_R = _logits_gradient(x_RD, narrow_VD, targets_R, vocab_size, scale, compiled)
            losses.append(loss)
            if needs_gradient:
                torch.mm(gradient_RV, narrow_VD, out=x_gradient_RD)
                if factors_R is not None:
                    from lm.model.kernels.exponentials import scaled

                    scaled(x_gradient_RD, factors_R, x_gradient_RD)
                    x_RD = scaled(x_RD, factors_R)
                part_VD = wide_product(gradient_RV.T, x_RD, wide)[:vocab_size]
                weight_gradient_VD = part_VD if weight_gradient_VD is None else weight_gradient_VD.add_(part_VD)
            del gradient_RV
        if needs_gradient:
            ctx.save_for_backward(x_gradient_ND, weight_gradient_VD)
        ctx.is_scaled = gradient_scale is not None
        return (losses[0] if len(losses) == 1 else torch.stack(losses).sum()) / len(targets_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x_gradient_ND, weight_gradient_VD = ctx.saved_tensors
        if not ctx.is_scaled:
            x_gradient_ND, weight_gradient_VD = x_gradient_ND * gradients[0], weight_gradient_VD * gradients[0]
        return x_gradient_ND, weight_gradient_VD, None, None, None
