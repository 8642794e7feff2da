"""The model in a form that reads one token a row quickly: matrices that read the same input are one.

Shape letters: L layers, B batch, D d_model, F width of the feed-forward, H heads, K head width, S slots, V vocabulary.
"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.model import KVCache, RMSNorm, RotaryPositionEmbedding, TransformerLM
from lm.model.kernels import has_triton

if TYPE_CHECKING:
    from lm.generation import native

# Bytes of weights from which on a rounded copy guesses tokens; fewer stay in a processor's cache, where reading them
# costs no more than the arithmetic does.
LARGE = 32 * 2**20


class Decoder:
    """Decodes for a model, whose forward pass stays what reads prompts, and the reference of what this computes.

    Each layer's query, key and value projections lie in one matrix, and so do the two that open a SwiGLU. In the
    weights' own type, the model's parameters become views of these matrices, so that no memory is used twice.

    Args:
        model: in eval mode, on the device to decode on.
        dtype: type of the matrix products and of the cache; by default the weights'. Sums stay in the weights' type.
    """

    def __init__(self, model: TransformerLM, dtype: torch.dtype | None = None) -> None:
        self.model = model
        self.config = model.config
        weight = model.lm_head.weight
        self.device, self.dtype = weight.device, dtype or weight.dtype
        layers = list(model.layers)
        ffns = [layer.get_submodule("ffn") for layer in layers]
        opening = ("w1", "w3") if self.config.ffn == "swiglu" else ("w1",)
        self.qkv_LPD = self._pack([[layer.get_submodule(f"attn.{x}_proj") for x in "qkv"] for layer in layers])
        self.output_LDD = self._pack([[layer.get_submodule("attn.output_proj")] for layer in layers])
        self.opening_LFD = self._pack([[ffn.get_submodule(name) for name in opening] for ffn in ffns])
        self.w2_LDF = self._pack([[ffn.get_submodule("w2")] for ffn in ffns])
        self.head_VD = weight.detach().to(self.dtype)
        self.embeddings_VD = model.token_embeddings.weight.detach()
        self.norms = [(_rmsnorm(layer.get_submodule("ln1")), _rmsnorm(layer.get_submodule("ln2"))) for layer in layers]
        self.ln_final = _rmsnorm(model.ln_final)
        ropes = (part for part in layers[0].modules() if isinstance(part, RotaryPositionEmbedding))
        self.rope = next(ropes, None)
        self.batches: dict[Any, Any] = {}  # of the last generation, for the next of the same kind
        self.native = self.kernels = None
        if self.device.type == "cpu" and self.dtype == weight.dtype == torch.float32:
            from lm.generation.native import Step  # imports numba, which only this needs

            self.native = Step(self)
        elif has_triton(self.device) and self.config.norm_position == "pre":
            from lm.generation.kernels import Step

            self.kernels = Step(self)

    def _pack(self, groups: list[list[nn.Module]]) -> Tensor:
        """One matrix a group of projections, all in one tensor."""
        parts = [[linear.get_parameter("weight") for linear in group] for group in groups]
        packed = torch.stack([torch.cat([weight.detach() for weight in group]) for group in parts]).to(self.dtype)
        for whole, group in zip(packed, parts, strict=True):
            if group[0].dtype == self.dtype:
                for weight, rows in zip(group, whole.split([len(weight) for weight in group]), strict=True):
                    weight.data = rows
        return packed

    @cached_property
    def rounded(self) -> "native.Step | None":
        """The compiled step with the weights in int8, where that is much faster: for large models on a CPU."""
        packed = (self.qkv_LPD, self.output_LDD, self.opening_LFD, self.w2_LDF, self.head_VD)
        if self.native is None or sum(matrix.nbytes for matrix in packed) < LARGE:
            return None
        return type(self.native)(self, is_rounded=True)

    @torch.inference_mode()
    def step(self, tokens_B: Tensor, cache: KVCache, used: int) -> Tensor:
        """Read one token a row into slot `cache.lengths[row]`.

        Args:
            tokens_B: (B,) ids.
            cache: of this decoder's type; the caller advances its lengths.
            used: slots that hold all that is attended to, above each of the lengths.

        Returns:
            (B, V) logits of the tokens after these; on a CPU valid until the next step.
        """
        if self.native is not None and len(tokens_B) == 1:
            return self.native(tokens_B.tolist(), int(cache.lengths), cache)
        if self.kernels is not None:
            return self.kernels(tokens_B, cache)
        positions_B = cache.lengths
        future_BS = torch.arange(used, device=self.device) > positions_B[:, None]
        mask_B11S = torch.zeros_like(future_BS, dtype=self.dtype).masked_fill(future_BS, -torch.inf)[:, None, None]
        turn_B1HK = None
        if self.rope is not None:
            turn_B1HK = torch.complex(self.rope.cos[positions_B], self.rope.sin[positions_B])[:, None, None]
        x_BD = F.embedding(tokens_B, self.embeddings_VD)
        for index, (ln1, ln2) in enumerate(self.norms):
            x_BD = self._sublayer(x_BD, ln1, lambda x, i=index: self._attend(i, x, cache, turn_B1HK, mask_B11S))
            x_BD = self._sublayer(x_BD, ln2, lambda x, i=index: self._feed_forward(i, x))
        return F.linear(_norm(self.ln_final, x_BD).to(self.dtype), self.head_VD)

    def _sublayer(self, x_BD: Tensor, norm: RMSNorm | None, function: Callable[[Tensor], Tensor]) -> Tensor:
        if self.config.norm_position == "post":
            return _norm(norm, x_BD + function(x_BD.to(self.dtype)))
        return x_BD + function(_norm(norm, x_BD).to(self.dtype))

    def _attend(self, index: int, x_BD: Tensor, cache: KVCache, turn_B1HK: Tensor | None, mask_B11S: Tensor) -> Tensor:
        qkv_B3HK = F.linear(x_BD, self.qkv_LPD[index]).unflatten(-1, (3, self.config.num_heads, -1))
        q_BHK, k_BHK, v_BHK = qkv_B3HK.unbind(1)
        if turn_B1HK is not None:
            pairs = torch.view_as_complex(qkv_B3HK[:, :2].float().unflatten(-1, (-1, 2)))
            q_BHK, k_BHK = torch.view_as_real(pairs * turn_B1HK).flatten(-2).to(self.dtype).unbind(1)
        layer = cache.layer(index)
        layer.write(k_BHK[:, :, None], v_BHK[:, :, None], cache.lengths[:, None])
        used = mask_B11S.shape[-1]
        heads_BH1K = F.scaled_dot_product_attention(
            q_BHK[:, :, None], layer.keys_BHSK[:, :, :used], layer.values_BHSK[:, :, :used], attn_mask=mask_B11S
        )
        return F.linear(heads_BH1K.flatten(1), self.output_LDD[index])

    def _feed_forward(self, index: int, x_BD: Tensor) -> Tensor:
        opened = F.linear(x_BD, self.opening_LFD[index])
        if self.config.ffn == "swiglu":
            gate_BF, value_BF = opened.chunk(2, -1)
            return F.linear(F.silu(gate_BF) * value_BF, self.w2_LDF[index])
        return F.linear(F.silu(opened), self.w2_LDF[index])


def _rmsnorm(module: nn.Module) -> RMSNorm | None:
    return module if isinstance(module, RMSNorm) else None


def _norm(norm: RMSNorm | None, x_BD: Tensor) -> Tensor:
    """RMSNorm by torch's kernel; x as it is where there is none."""
    return x_BD if norm is None else F.rms_norm(x_BD, norm.weight.shape, norm.weight, norm.eps)
