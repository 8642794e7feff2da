"""Generation with a KV cache, several prompts at once, beyond the context by sliding.

Shape letters: B batch, T time, V vocabulary.
"""

import codecs
import secrets
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from lm.generation.sampling import SamplingConfig, sample_next
from lm.model import KVCache, TransformerLM
from lm.tokenizer import END_OF_TEXT, Tokenizer


def fit_window(ids: list[int], context_length: int) -> list[int]:
    """What the model sees of `ids`: all of them, or the last half context where they exceed the context.

    Cutting to a half, not to one less than the context, leaves room for many tokens before the next cut, each of
    which costs a new pass over the window.
    """
    return ids if len(ids) <= context_length else ids[-max(1, context_length // 2) :]


def generate(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    stop_ids: Collection[int] = frozenset(),
    seed: int | None = None,
    vocab_size: int | None = None,
) -> Generator[list[int | None]]:
    """Continue each prompt, one token a step.

    What a row gets depends on its prompt, the seed and its row number, not on the other prompts (up to the rounding
    of floats, which batching changes). A row whose tokens exceed the context goes on from the last half context, see
    `fit_window`; so does a prompt that is too long. The model is in eval mode until the iterator ends or is closed,
    and then as it was. Under torch.autocast the cache has autocast's type.

    Args:
        model: on any device.
        prompts: ids, at least one a prompt (for no prompt, the end-of-text id).
        max_new_tokens: steps at most.
        sampling: how ids are drawn.
        stop_ids: end a row and are not part of it.
        seed: 0 or above; the same seed gives the same ids. None for a random one.
        vocab_size: ids from this on are never drawn: for a model with more ids than its tokenizer.

    Yields:
        The new id of each row, None for rows that have stopped. Ends when all have.

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
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    windows = [fit_window(list(prompt), model.config.context_length) for prompt in prompts]
    generators = _generators(secrets.randbits(63) if seed is None else seed, len(prompts))
    return _steps(model, windows, max_new_tokens, sampling, stop_ids, generators, vocab_size)


def _generators(seed: int, rows: int) -> list[torch.Generator]:
    streams = (np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0] for row in range(rows))
    return [torch.Generator().manual_seed(int(stream >> np.uint64(1))) for stream in streams]


def _steps(
    model: TransformerLM,
    windows: list[list[int]],
    max_new_tokens: int,
    sampling: SamplingConfig,
    stop_ids: Collection[int],
    generators: list[torch.Generator],
    vocab_size: int | None,
) -> Generator[list[int | None]]:
    context = model.config.context_length
    was_training = model.training
    model.eval()
    try:
        reader = _Reader(model, len(windows), min(context, max(map(len, windows)) + max_new_tokens))
        active = list(range(len(windows)))
        for _ in range(max_new_tokens):
            logits_BV = reader.read(windows, active)[:, :vocab_size]
            drawn = sample_next(logits_BV, sampling, generators).tolist()
            active = [row for row in active if drawn[row] not in stop_ids]
            if not active:
                return
            step: list[int | None] = [None] * len(windows)
            for row in active:
                step[row] = drawn[row]
                windows[row] = fit_window([*windows[row], drawn[row]], context)
            yield step
    finally:
        model.train(was_training)


class _Reader:
    """Gives the logits after each window, reading only what its cache does not hold."""

    def __init__(self, model: TransformerLM, batch_size: int, max_length: int) -> None:
        self.model = model
        weight = model.lm_head.weight
        kind = weight.device.type
        self.device = weight.device
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        self.cache = KVCache(model.config, batch_size, max_length, self.device, self.dtype)
        self.cache.is_empty = False  # filled by _prefill, through a smaller cache
        self.held = [0] * batch_size

    @torch.inference_mode()
    def read(self, windows: list[list[int]], active: list[int]) -> Tensor:
        """Logits (B, V) after the last id of each active row's window; other rows' are of no meaning."""
        grown = {row for row in active if len(windows[row]) == self.held[row] + 1 > 1}
        fresh = [row for row in active if row not in grown]
        logits_BV = self._decode(windows, grown) if grown else None
        if fresh:
            fresh_logits = self._prefill([windows[row] for row in fresh], fresh)
            if logits_BV is None:
                logits_BV = fresh_logits.new_zeros(len(windows), fresh_logits.shape[-1])
            logits_BV[fresh] = fresh_logits
        assert logits_BV is not None
        for row in active:
            self.held[row] = len(windows[row])
        return logits_BV

    def _decode(self, windows: list[list[int]], grown: set[int]) -> Tensor:
        """One more token for the rows `grown`. The others come along with any token, in slot 0 of a row that is
        refilled or never read again, so that the shapes stay the same."""
        rows = range(len(windows))
        lasts_B1 = self._tensor([[window[-1]] for window in windows])
        self.cache.lengths = self._tensor([self.held[row] if row in grown else 0 for row in rows])
        # Not through the module's call: a model compiled for training would be compiled anew for these shapes.
        return self.model.forward(lasts_B1, self.cache)[:, 0]

    def _prefill(self, windows: list[list[int]], rows: list[int]) -> Tensor:
        """Read whole windows into the cache's `rows`."""
        time = max(map(len, windows))
        part = KVCache(self.model.config, len(rows), time, self.device, self.dtype)
        padded = [window + [0] * (time - len(window)) for window in windows]
        hidden_BTD = self.model.hidden(self._tensor(padded), part)
        self.cache.keys_LBHSK[:, rows, :, :time] = part.keys_LBHSK
        self.cache.values_LBHSK[:, rows, :, :time] = part.values_LBHSK
        lasts = self._tensor([len(window) - 1 for window in windows])
        logits_BV = self.model.lm_head(hidden_BTD[torch.arange(len(rows), device=self.device), lasts])
        if not logits_BV.isfinite().all():
            raise ValueError("the model's logits are not finite: its training diverged; use an earlier checkpoint")
        return logits_BV

    def _tensor(self, values: Sequence[int] | Sequence[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def stream_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    seed: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Continue texts, giving out each piece as soon as its characters are whole.

    Args:
        model: on any device.
        tokenizer: the one the model was trained with.
        prompts: an empty one starts from the end-of-text token, as a document does.
        max_new_tokens: tokens at most for each prompt; end-of-text stops earlier.
        sampling: how tokens are drawn.
        seed: see `generate`.

    Yields:
        (row, piece): text to append to that row's prompt, never empty. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        ValueError: see `generate`; or an empty prompt where the tokenizer has no end-of-text token.
    """
    end_of_text = tokenizer.special_ids.get(END_OF_TEXT)
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    if end_of_text is not None:
        encoded = [ids or [end_of_text] for ids in encoded]
    stop_ids = frozenset() if end_of_text is None else frozenset({end_of_text})
    steps = generate(model, encoded, max_new_tokens, sampling, stop_ids, seed, tokenizer.vocab_size)
    return _pieces(tokenizer, steps, len(encoded))


def _pieces(tokenizer: Tokenizer, steps: Generator[list[int | None]], rows: int) -> Iterator[tuple[int, str]]:
    decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(rows)]
    with closing(steps):
        for step in steps:
            for row, new_id in enumerate(step):
                if new_id is not None and (piece := decoders[row].decode(tokenizer.decode_bytes([new_id]))):
                    yield row, piece
    for row, decoder in enumerate(decoders):
        if piece := decoder.decode(b"", final=True):
            yield row, piece


def generate_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    seed: int | None = None,
) -> list[str]:
    """The continuation of each prompt, without the prompt; arguments and errors as in `stream_text`."""
    texts = [""] * len(prompts)
    for row, piece in stream_text(model, tokenizer, prompts, max_new_tokens, sampling, seed):
        texts[row] += piece
    return texts
