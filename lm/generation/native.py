"""One step of a decoder for one row on a CPU, compiled by numba: as fast as the weights can be read from memory.

What torch does in some fifteen calls a layer is one call here, without temporaries. Float32 only. A step reads one
token, or some that follow each other.

Shape letters: N tokens, L layers, P rows of query, key and value projections, D d_model, F width of the feed-forward,
H heads, K head width, S slots, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from lm.generation.products import MOST, multiply
from lm.model import KVCache, RMSNorm

if TYPE_CHECKING:
    from lm.generation.decoder import Decoder

# Sums may be taken in another order, as for vector instructions they must; infinities and NaN stay what they are.
OPTIONS = {"cache": True, "fastmath": {"reassoc", "contract", "nsz"}, "nogil": True}
ROUND = np.float32(1.5 * 2**23)  # added to a small number, leaves the nearest integer in its lowest bits
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(np.log(2) - 0.693359375)  # n * LN2_HIGH is exact


@njit(**OPTIONS)
def _normalize(x_D, weight_D, eps, out_D):
    """RMSNorm; without a weight, x as it is."""
    if not len(weight_D):
        out_D[:] = x_D
        return
    squares = np.float32(0)
    for d in range(len(x_D)):
        squares += x_D[d] * x_D[d]
    scale = np.float32(1 / np.sqrt(squares / np.float32(len(x_D)) + eps))
    for d in range(len(x_D)):
        out_D[d] = x_D[d] * scale * weight_D[d]


@njit(**OPTIONS)
def _rotate(x_D, cos, sin, width):
    for start in range(0, len(x_D), width):
        for i in range(width // 2):
            even, odd = x_D[start + 2 * i], x_D[start + 2 * i + 1]
            x_D[start + 2 * i] = even * cos[i] - odd * sin[i]
            x_D[start + 2 * i + 1] = even * sin[i] + odd * cos[i]


@njit(cache=True, fastmath=False, nogil=True)  # in this order: the rounding is the method
def _exp(x):
    """exp in float32, of 88 for x above 88 and of -87 below -87: 2^n exp(r) by its series, with x = n ln 2 + r.

    numba's own is a call for each number; loops over this one become vector instructions.
    """
    x = np.float32(-87) if x < np.float32(-87) else x  # NaN stays NaN
    x = np.float32(88) if x > np.float32(88) else x
    shifted = x * np.float32(1 / np.log(2)) + ROUND
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    series = np.float32(1 / 5040)
    for inverse in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * r + np.float32(inverse)
    bits = np.float32(shifted).view(np.int32)
    return series * np.int32((bits + 127) << 23).view(np.float32)


@njit(**OPTIONS)
def _attend(qkv_NP, position, keys_HSK, values_HSK, scores_S, out_ND):
    """Causal attention of the tokens from `position` on, whose keys and values are in their slots."""
    heads, _, width = keys_HSK.shape
    scale = np.float32(1 / np.sqrt(width))
    for h in range(heads):
        for n in range(len(qkv_NP)):
            q, out = qkv_NP[n, h * width : (h + 1) * width], out_ND[n, h * width : (h + 1) * width]
            largest = np.float32(-np.inf)
            for s in range(position + n + 1):
                score = np.float32(0)
                for k in range(width):
                    score += q[k] * keys_HSK[h, s, k]
                scores_S[s] = score * scale
                largest = max(largest, scores_S[s])
            total = np.float32(0)
            for s in range(position + n + 1):
                scores_S[s] = _exp(scores_S[s] - largest)
                total += scores_S[s]
            out[:] = 0
            for s in range(position + n + 1):
                weight = scores_S[s] / total
                for k in range(width):
                    out[k] += weight * values_HSK[h, s, k]


@njit(**OPTIONS)
def _open(opened_NF, gated, hidden_NF):
    """The hidden layer: SiLU, and for SwiGLU its product with the other half."""
    width = hidden_NF.shape[1]
    for n in range(len(hidden_NF)):
        for f in range(width):
            hidden_NF[n, f] = opened_NF[n, f] / (np.float32(1) + _exp(-opened_NF[n, f]))
        if gated:
            for f in range(width):
                hidden_NF[n, f] *= opened_NF[n, width + f]


@njit(**OPTIONS)
def _step(position, x_ND, weights, norms, switches, cos, sin, keys_LHSK, values_LHSK, buffers, logits_NV):
    """Every layer, and the head. x_ND holds the tokens' embeddings; it becomes the residual stream."""
    qkv_LPD, output_LDD, opening_LFD, w2_LDF, head_1VD = weights
    ln1_LD, ln2_LD, ln_final_D, eps = norms
    is_post, has_rope, is_gated = switches
    count, model_width = x_ND.shape
    qkv_NP, normed_ND, heads_ND, added_ND, opened_NF, hidden_NF, scores_S = buffers
    qkv_NP, normed_ND, heads_ND, added_ND = qkv_NP[:count], normed_ND[:count], heads_ND[:count], added_ND[:count]
    opened_NF, hidden_NF = opened_NF[:count], hidden_NF[:count]
    width = keys_LHSK.shape[3]
    for layer in range(len(ln1_LD)):
        for n in range(count):
            if is_post:
                normed_ND[n] = x_ND[n]
            else:
                _normalize(x_ND[n], ln1_LD[layer], eps, normed_ND[n])
        multiply(qkv_LPD[0][layer], qkv_LPD[1][layer], normed_ND, qkv_NP)
        for n in range(count):
            if has_rope:
                _rotate(qkv_NP[n, : 2 * model_width], cos[position + n], sin[position + n], width)
            keys_LHSK[layer, :, position + n] = qkv_NP[n, model_width : 2 * model_width].reshape((-1, width))
            values_LHSK[layer, :, position + n] = qkv_NP[n, 2 * model_width :].reshape((-1, width))
        _attend(qkv_NP, position, keys_LHSK[layer], values_LHSK[layer], scores_S, heads_ND)
        multiply(output_LDD[0][layer], output_LDD[1][layer], heads_ND, added_ND)
        x_ND += added_ND
        for n in range(count):
            if is_post:
                _normalize(x_ND[n], ln1_LD[layer], eps, x_ND[n])
                normed_ND[n] = x_ND[n]
            else:
                _normalize(x_ND[n], ln2_LD[layer], eps, normed_ND[n])
        multiply(opening_LFD[0][layer], opening_LFD[1][layer], normed_ND, opened_NF)
        _open(opened_NF, is_gated, hidden_NF)
        multiply(w2_LDF[0][layer], w2_LDF[1][layer], hidden_NF, added_ND)
        x_ND += added_ND
        if is_post:
            for n in range(count):
                _normalize(x_ND[n], ln2_LD[layer], eps, x_ND[n])
    for n in range(count):
        _normalize(x_ND[n], ln_final_D, eps, normed_ND[n])
    multiply(head_1VD[0][0], head_1VD[1][0], normed_ND, logits_NV)


class Step:
    """The compiled step with a decoder's weights and its buffers.

    Args:
        decoder: of float32 weights on a CPU.
        is_rounded: use the matrices rounded to int8, a quarter of the bytes, with a scale a row.
    """

    most = MOST  # tokens a call

    def __init__(self, decoder: "Decoder", is_rounded: bool = False) -> None:
        config = decoder.config
        weights = (decoder.qkv_LPD, decoder.output_LDD, decoder.opening_LFD, decoder.w2_LDF, decoder.head_VD[None])
        self.weights = tuple((_rounded if is_rounded else _exact)(weight.contiguous()) for weight in weights)
        self.embeddings_VD = decoder.embeddings_VD.numpy()
        firsts, seconds = zip(*decoder.norms, strict=True)
        eps = np.float32(0 if firsts[0] is None else firsts[0].eps)
        self.norms = (_weights(firsts), _weights(seconds), _weights([decoder.ln_final])[0], eps)
        self.switches = (config.norm_position == "post", config.position == "rope", config.ffn == "swiglu")
        empty = torch.empty(0, 0)
        rope = (empty, empty) if decoder.rope is None else (decoder.rope.cos, decoder.rope.sin)
        self.cos, self.sin = (table.numpy() for table in rope)
        widths = (decoder.qkv_LPD.shape[1], config.d_model, config.d_model, config.d_model)
        widths += (decoder.opening_LFD.shape[1], config.ff_width)
        buffers = tuple(np.zeros((MOST, width), np.float32) for width in widths)
        self.buffers = (*buffers, np.zeros(config.context_length, np.float32))
        self.logits_NV = torch.zeros(MOST, config.vocab_size)

    def __call__(self, tokens: list[int], position: int, cache: KVCache) -> Tensor:
        """Read up to `most` tokens into the slots from `position` on of a cache of one row.

        Returns:
            (N, V) logits after each, valid until the next call; to the same bits however many are read at once.
        """
        keys_LHSK, values_LHSK = cache.keys_LBHSK[:, 0].numpy(), cache.values_LBHSK[:, 0].numpy()
        logits_NV = self.logits_NV[: len(tokens)]
        _step(
            position, self.embeddings_VD[tokens], self.weights, self.norms, self.switches, self.cos, self.sin,
            keys_LHSK, values_LHSK, self.buffers, logits_NV.numpy(),
        )  # fmt: skip
        return logits_NV


def _exact(matrix_LRC: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return matrix_LRC.numpy(), np.zeros((len(matrix_LRC), 0), np.float32)


def _rounded(matrix_LRC: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The matrix in int8, and the scale of each row, whose largest element becomes 127 or -127."""
    scales_LR1 = matrix_LRC.abs().amax(-1, keepdim=True) / 127
    rounded_LRC = (matrix_LRC / scales_LR1.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return rounded_LRC.to(torch.int8).numpy(), scales_LR1[..., 0].numpy()


def _weights(norms: Sequence[RMSNorm | None]) -> np.ndarray[Any, Any]:
    """Weights (L, D) of norms; (L, 0) where there are none."""
    empty = np.zeros(0, np.float32)
    return np.stack([empty if norm is None else norm.weight.detach().numpy() for norm in norms])
