"""Numbers of trained parameters."""

from dataclasses import dataclass

from lm.model.config import ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Numbers of trained parameters by component; a tied output projection counts as token embeddings only."""

    token_embeddings: int
    attention: int
    ffn: int
    norms: int
    lm_head: int

    @property
    def total(self) -> int:
        return self.token_embeddings + self.attention + self.ffn + self.norms + self.lm_head

    @property
    def non_embedding(self) -> int:
        """All but the token embeddings; an untied output projection is included."""
        return self.total - self.token_embeddings


def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters of `TransformerLM(config)`."""
    width, layers = config.d_model, config.num_layers
    embeddings = config.vocab_size * width
    return Parameters(
        token_embeddings=embeddings,
        attention=layers * 4 * width**2,
        ffn=layers * ffn_matrices(config) * width * config.ff_width,
        norms=count_norms(config) * width,
        lm_head=0 if config.tie_embeddings else embeddings,
    )


def count_block_parameters(config: ModelConfig) -> int:
    """Parameters in the blocks: neither embeddings, nor output projection, nor the norm before it."""
    counted = count_parameters(config)
    return counted.attention + counted.ffn + counted.norms - has_final_norm(config) * config.d_model


def count_norms(config: ModelConfig) -> int:
    """RMSNorms of the model: two a block, and with pre-norm one after the last (post-norm blocks end in one)."""
    if config.norm == "none":
        return 0
    return 2 * config.num_layers + has_final_norm(config)


def has_final_norm(config: ModelConfig) -> bool:
    """Whether a norm stands between the last block and the output projection."""
    return config.norm == "rmsnorm" and config.norm_position == "pre"


def ffn_matrices(config: ModelConfig) -> int:
    """Matrices of one feed-forward: SwiGLU has a gate beside the two of SiLU."""
    return 3 if config.ffn == "swiglu" else 2
