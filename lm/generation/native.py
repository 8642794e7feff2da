"""One step of a decoder for one row on a CPU, compiled by numba: as fast as the weights can be read from memory.

What torch does in some fifteen calls a layer is one call here, without temporaries. Float32 only.

Shape letters: L layers, P rows of query, key and value projections, D d_model, F width of the feed-forward, H heads,
K head width, S slots, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from lm.model import KVCache, RMSNorm

if TYPE_CHECKING:
    from lm.generation.decoder import Decoder

# Sums may be taken in another order, as for vector instructions they must; infinities and NaN stay what they are.
OPTIONS = {"cache": True, "fastmath": {"reassoc", "contract", "nsz"}, "nogil": True}


@njit(**OPTIONS)
def _multiply(matrix_RC, x_C, out_R, add):
    """out = matrix @ x, or out += it. Both halves of the rows at once: memory is read faster from two places."""
    rows, columns = matrix_RC.shape
    half = rows // 2
    for r in range(half):
        upper, lower = np.float32(0), np.float32(0)
        for c in range(columns):
            upper += matrix_RC[r, c] * x_C[c]
            lower += matrix_RC[r + half, c] * x_C[c]
        out_R[r] = out_R[r] + upper if add else upper
        out_R[r + half] = out_R[r + half] + lower if add else lower
    if rows % 2:
        last = np.float32(0)
        for c in range(columns):
            last += matrix_RC[rows - 1, c] * x_C[c]
        out_R[rows - 1] = out_R[rows - 1] + last if add else last


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


@njit(**OPTIONS)
def _attend(q_D, keys_HSK, values_HSK, length, scores_S, out_D):
    """Attention of one query a head to the first `length` slots."""
    heads, _, width = keys_HSK.shape
    scale = np.float32(1 / np.sqrt(width))
    for h in range(heads):
        q, out = q_D[h * width : (h + 1) * width], out_D[h * width : (h + 1) * width]
        largest = np.float32(-np.inf)
        for s in range(length):
            score = np.float32(0)
            for k in range(width):
                score += q[k] * keys_HSK[h, s, k]
            scores_S[s] = score * scale
            largest = max(largest, scores_S[s])
        total = np.float32(0)
        out[:] = 0
        for s in range(length):
            weight = np.exp(scores_S[s] - largest)
            total += weight
            for k in range(width):
                out[k] += weight * values_HSK[h, s, k]
        for k in range(width):
            out[k] /= total


@njit(**OPTIONS)
def _feed_forward(x_D, opening_FD, w2_DF, gated, opened, hidden_F, out_D, add):
    _multiply(opening_FD, x_D, opened, False)
    width = len(hidden_F)
    for f in range(width):
        hidden_F[f] = opened[f] / (np.float32(1) + np.exp(-opened[f]))
    if gated:
        for f in range(width):
            hidden_F[f] *= opened[width + f]
    _multiply(w2_DF, hidden_F, out_D, add)


@njit(**OPTIONS)
def _step(position, x_D, weights, norms, switches, cos, sin, keys_LHSK, values_LHSK, buffers, logits_V):
    """Every layer, and the head. x_D holds the token's embedding; it becomes the residual stream."""
    qkv_LPD, output_LDD, opening_LFD, w2_LDF, head_VD = weights
    ln1_LD, ln2_LD, ln_final_D, eps = norms
    is_post, has_rope, is_gated = switches
    qkv_P, normed_D, heads_D, opened, hidden_F, scores_S = buffers
    width, model_width = keys_LHSK.shape[3], len(x_D)
    for layer in range(len(qkv_LPD)):
        if is_post:
            normed_D[:] = x_D
        else:
            _normalize(x_D, ln1_LD[layer], eps, normed_D)
        _multiply(qkv_LPD[layer], normed_D, qkv_P, False)
        if has_rope:
            _rotate(qkv_P[: 2 * model_width], cos[position], sin[position], width)
        keys_LHSK[layer, :, position] = qkv_P[model_width : 2 * model_width].reshape((-1, width))
        values_LHSK[layer, :, position] = qkv_P[2 * model_width :].reshape((-1, width))
        _attend(qkv_P[:model_width], keys_LHSK[layer], values_LHSK[layer], position + 1, scores_S, heads_D)
        _multiply(output_LDD[layer], heads_D, x_D, True)
        if is_post:
            _normalize(x_D, ln1_LD[layer], eps, x_D)
            normed_D[:] = x_D
        else:
            _normalize(x_D, ln2_LD[layer], eps, normed_D)
        _feed_forward(normed_D, opening_LFD[layer], w2_LDF[layer], is_gated, opened, hidden_F, x_D, True)
        if is_post:
            _normalize(x_D, ln2_LD[layer], eps, x_D)
    _normalize(x_D, ln_final_D, eps, normed_D)
    _multiply(head_VD, normed_D, logits_V, False)


class Step:
    """The compiled step with a decoder's weights and its buffers."""

    def __init__(self, decoder: "Decoder") -> None:
        config = decoder.config
        weights = (decoder.qkv_LPD, decoder.output_LDD, decoder.opening_LFD, decoder.w2_LDF, decoder.head_VD)
        self.weights = tuple(weight.contiguous().numpy() for weight in weights)
        self.embeddings_VD = decoder.embeddings_VD.numpy()
        firsts, seconds = zip(*decoder.norms, strict=True)
        eps = np.float32(0 if firsts[0] is None else firsts[0].eps)
        self.norms = (_weights(firsts), _weights(seconds), _weights([decoder.ln_final])[0], eps)
        self.switches = (config.norm_position == "post", config.position == "rope", config.ffn == "swiglu")
        empty = torch.empty(0, 0)
        rope = (empty, empty) if decoder.rope is None else (decoder.rope.cos, decoder.rope.sin)
        self.cos, self.sin = (table.numpy() for table in rope)
        sizes = (decoder.qkv_LPD.shape[1], config.d_model, config.d_model, decoder.opening_LFD.shape[1])
        sizes += (config.ff_width, config.context_length)
        self.buffers = tuple(np.zeros(size, np.float32) for size in sizes)
        self.logits_1V = torch.zeros(1, config.vocab_size)
        self.logits_V: np.ndarray[Any, Any] = self.logits_1V[0].numpy()

    def __call__(self, token: int, position: int, cache: KVCache) -> Tensor:
        """Logits (1, V) after `token`, whose keys and values go to slot `position` of a cache of one row."""
        keys_LHSK, values_LHSK = cache.keys_LBHSK[:, 0].numpy(), cache.values_LBHSK[:, 0].numpy()
        x_D = self.embeddings_VD[token].copy()
        rotations = (self.cos, self.sin)
        _step(
            position, x_D, self.weights, self.norms, self.switches, *rotations, keys_LHSK, values_LHSK, self.buffers,
            self.logits_V,
        )  # fmt: skip
        return self.logits_1V


def _weights(norms: Sequence[RMSNorm | None]) -> np.ndarray[Any, Any]:
    """Weights (L, D) of norms; (L, 0) where there are none."""
    empty = np.zeros(0, np.float32)
    return np.stack([empty if norm is None else norm.weight.detach().numpy() for norm in norms])
