"""Generation with a KV cache, several prompts at once, beyond the context by sliding.

Shape letters: B batch.
"""

import secrets
from collections.abc import Collection, Generator, Sequence
from typing import NamedTuple

from lm.generation.batch import Batch
from lm.generation.decoder import Decoder
from lm.generation.sampling import SamplingConfig
from lm.model import TransformerLM

SLOTS = 64  # caches come in multiples, so that a decoder can use them again


class Token(NamedTuple):
    """A drawn id, and its log-probability in nats under the model itself where that was asked for."""

    id: int
    logprob: float | None = None


def fit_window(ids: list[int], context_length: int) -> list[int]:
    """What the model sees of `ids`: all of them, or the last half context where they exceed the context.

    Cutting to a half, not to one less than the context, leaves room for many tokens before the next cut, each of
    which costs a new pass over the window.
    """
    return ids if len(ids) <= context_length else ids[-max(1, context_length // 2) :]


def row_seeds(seed: int | None, rows: int) -> list[int]:
    """seed, seed + 1, ...; from a random one on for None. Raises ValueError for a negative seed."""
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    first = secrets.randbits(32) if seed is None else seed
    return [first + row for row in range(rows)]


def generate(
    model: TransformerLM | Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    stop_ids: Collection[int] = frozenset(),
    seed: int | None = None,
    vocab_size: int | None = None,
    ended: Collection[int] = frozenset(),
    logprobs: bool = False,
) -> Generator[list[Token | None]]:
    """Continue each prompt, one token a step.

    Row r draws by its own seed, `seed` + r: what it gets depends on that and on its prompt, not on its place or its
    neighbours (up to the rounding of floats, which batching changes). A row whose tokens exceed the context goes on
    from the last half context, see `fit_window`; so does a prompt that is too long. The model is in eval mode until
    the iterator ends or is closed, and then as it was. Under torch.autocast the cache has autocast's type.

    Args:
        model: on any device; a decoder is the faster.
        prompts: ids, at least one a prompt (for no prompt, the end-of-text id).
        max_new_tokens: steps at most.
        sampling: how ids are drawn.
        stop_ids: end a row and are not part of it.
        seed: of the first row, 0 or above. None for a random one.
        vocab_size: ids from this on are never drawn: for a model with more ids than its tokenizer.
        ended: rows that are over; the caller may add to it between steps.
        logprobs: give log-probabilities too.

    Yields:
        The new token of each row, None for rows that have stopped. Ends when all have.

    Raises:
        ValueError: no prompts, an empty one, ids the model does not know, or a number out of its range; from the
            iterator, logits that are not finite.
    """
    limit = model.config.vocab_size
    if not prompts:
        raise ValueError("there are 0 prompts; give at least one")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {row} has 0 tokens; give at least one, such as the end-of-text id")
        if (worst := max(prompt)) >= limit or (worst := min(prompt)) < 0:
            raise ValueError(f"prompt {row} has token id {worst}, the model knows 0 to {limit - 1}; use its tokenizer")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    seeds = row_seeds(seed, len(prompts))
    vocab_size = min(limit, vocab_size or limit)
    return _steps(model, prompts, max_new_tokens, sampling, stop_ids, seeds, vocab_size, ended, logprobs)


def _steps(
    model: TransformerLM | Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig,
    stop_ids: Collection[int],
    seeds: list[int],
    vocab_size: int,
    ended: Collection[int],
    logprobs: bool,
) -> Generator[list[Token | None]]:
    context = model.config.context_length
    windows = [fit_window(list(prompt), context) for prompt in prompts]
    slots = min(context, -(-(max(map(len, windows)) + max_new_tokens) // SLOTS) * SLOTS)
    module = model.model if isinstance(model, Decoder) else model
    was_training = module.training
    module.eval()
    kind = (len(windows), slots, sampling, vocab_size, logprobs)
    batch = (model.batches.pop(kind, None) if isinstance(model, Decoder) else None) or Batch(model, *kind)
    active = list(range(len(windows)))
    remaining = max_new_tokens
    try:
        batch.start(prompts, seeds)
        while remaining:
            ids_NB, logprobs_NB = batch.run(windows, active, remaining)
            remaining -= len(ids_NB)
            for step, ids_B in enumerate(ids_NB):
                active = [row for row in active if ids_B[row] not in stop_ids and row not in ended]
                if not active:
                    return
                tokens: list[Token | None] = [None] * len(windows)
                for row in active:
                    tokens[row] = Token(ids_B[row], logprobs_NB[step][row] if logprobs else None)
                    windows[row].append(ids_B[row])
                yield tokens
            windows = [fit_window(window, context) for window in windows]
    finally:
        if isinstance(model, Decoder):
            model.batches = {kind: batch}
        module.train(was_training)
