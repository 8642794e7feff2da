"""The whole language model.

Shape letters: B batch, T time, S slots of the cache, D d_model, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lm.model.attention import KVCache
from lm.model.block import Stream, TransformerBlock
from lm.model.config import ModelConfig
from lm.model.fast import add_norm, fast_block, fast_embedding
from lm.model.functional import cross_entropy_loss
from lm.model.layers import Embedding, Linear, RMSNorm
from lm.model.loss import linear_cross_entropy
from lm.model.rope import RotaryPositionEmbedding

FastBlock = Callable[[TransformerBlock, Stream], Stream]


class TransformerLM(nn.Module):
    """Decoder-only Transformer: token ids in, logits of each next token out.

    With pre-norm, `ln_final` stands before the output projection; with post-norm the last block ends in a norm
    already, and with norm none there is none, so these models have no `ln_final.weight`.

    Tied embeddings are one parameter under both names, drawn by the output projection's rule: rows of length
    sqrt(d_model), as an embedding alone has, would give logits of that size and a first loss far above ln V.

    Args:
        config: shape and switches.

    Attributes:
        checkpointing: keep each block's input only, and compute the block again in the backward pass.
        is_fast: whether passes without a cache take the fast path.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.is_fast = False
        self._is_compiled = False
        self._training_block: FastBlock = fast_block
        self._block: FastBlock = fast_block
        rope = None
        if config.position == "rope":
            rope = RotaryPositionEmbedding(config.rope_theta, config.head_width, config.context_length)
        has_final_norm = config.norm == "rmsnorm" and config.norm_position == "pre"
        self.token_embeddings = Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerBlock(config, rope) for _ in range(config.num_layers))
        self.ln_final = RMSNorm(config.d_model) if has_final_norm else nn.Identity()
        self.lm_head = Linear(config.d_model, config.vocab_size)
        if config.tie_embeddings:
            self.token_embeddings.weight = self.lm_head.weight

    def speed_up(self, compiled: bool = False, packed: bool = True) -> None:
        """From now on passes without a cache take the fast path: `lm.model.fast` and `lm.model.loss`.

        Under autocast its residual stream has the narrow type as well, which the readable path keeps in float32.

        Args:
            compiled: let torch.compile compile one block, once for all of them, for passes with a gradient. The others
                are few, and compiling for them would take longer than they do.
            packed: see `fast_block`; not for sharded parameters, whose memory packed copies would take up again.
        """

        def block(layer: TransformerBlock, stream: Stream) -> Stream:
            return fast_block(layer, stream, packed)

        self.is_fast, self._is_compiled = True, compiled
        self._block = block
        self._training_block = torch.compile(block, dynamic=False) if compiled else block

    def forward(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each one given; arguments and errors as in `hidden`."""
        return self.lm_head(self.hidden(token_ids, cache))

    def loss(self, token_ids: Tensor, targets: Tensor, gradient_scale: float | None = None) -> Tensor:
        """Mean of -ln p(target) over all tokens, in nats; both (B, T), in [0, V).

        With `gradient_scale`, on the fast path, nothing may be done with it but to differentiate it, and its gradients
        come out times this: see `linear_cross_entropy`.
        """
        if self.is_fast:
            x_BTD, weight_VD = self.hidden(token_ids), self.lm_head.weight
            return linear_cross_entropy(x_BTD, weight_VD, targets, self._is_compiled, gradient_scale)
        assert gradient_scale is None
        return cross_entropy_loss(self.forward(token_ids), targets)

    def hidden(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the output projection reads; apart, for callers that need few of the logits at a time.

        Args:
            token_ids: (B, T), in [0, V).
            cache: what each row has read before; takes the new keys and values. The caller advances its `lengths`.

        Returns:
            (B, T, D).

        Raises:
            ValueError: T exceeds the context or the cache, or the cache has another number of rows.
        """
        batch_size, time = token_ids.shape
        if time > self.config.context_length:
            raise ValueError(
                f"a sequence of {time} tokens exceeds the model's context_length {self.config.context_length}; "
                f"cut it, or train with a longer context"
            )
        if cache is None and self.is_fast:
            return self._fast_hidden(token_ids)
        positions = torch.arange(time, device=token_ids.device)
        mask = None
        if cache is not None:
            if cache.batch_size != batch_size or cache.max_length < time:
                raise ValueError(
                    f"{batch_size} rows of {time} tokens do not fit a cache of {cache.batch_size} rows "
                    f"of {cache.max_length}; make the cache for them"
                )
            positions = cache.lengths[:, None] + positions
            if not cache.is_empty:
                slots_S = torch.arange(cache.max_length, device=token_ids.device)
                mask = slots_S <= positions[:, None, :, None]
            cache.is_empty = False

        def run(layer: nn.Module, x_BTD: Tensor, index: int) -> Tensor:
            return layer(x_BTD, positions, cache.layer(index) if cache is not None else None, mask)

        x_BTD = self.dropout(self.token_embeddings(token_ids))
        for index, layer in enumerate(self.layers):
            x_BTD = self._run(run, layer, x_BTD, index)
        return self.ln_final(x_BTD)

    def _fast_hidden(self, token_ids: Tensor) -> Tensor:
        block = self._training_block if torch.is_grad_enabled() else self._block
        x_BTD = self.dropout(fast_embedding(self.token_embeddings, token_ids))
        # Blocks hand on an addition that is pending; without one the first would be compiled by itself.
        hands_on = self._is_compiled and self.config.norm_position == "pre"
        stream: Stream = x_BTD, torch.zeros_like(x_BTD, requires_grad=x_BTD.requires_grad) if hands_on else None
        for layer in self.layers:
            assert isinstance(layer, TransformerBlock)
            stream = self._run(layer.run, block, stream)
        return add_norm(self.ln_final, stream)[1]

    def _run(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """`run(*arguments)`; where the backward pass is to compute it again, it keeps its arguments only."""
        if self.checkpointing and torch.is_grad_enabled():
            keeps_random = self.config.dropout > 0
            return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=keeps_random)
        return run(*arguments)
