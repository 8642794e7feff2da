"""From text to text: prompts, whole characters, end of text, stop strings."""

import codecs
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from lm.generation.decoder import Decoder
from lm.generation.generate import Token, generate, row_seeds
from lm.generation.sampling import SamplingConfig
from lm.model import TransformerLM
from lm.tokenizer import END_OF_TEXT, Tokenizer


@dataclass
class Completion:
    """What one row has written.

    Attributes:
        seed: the row's own: it writes the same text alone.
        text: up to a stop string and without it.
        tokens: everything drawn, the end-of-text token excepted; a stop string's tokens are among them.
        finish: why the row ended; None while it goes on.
    """

    seed: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Literal["length", "end of text", "stop string"] | None = None


class StopStrings:
    """Finds the first of some strings in text that comes in pieces, and holds back what may be its beginning."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = strings
        self.held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Text that may be shown, and whether a string was found; the text ends before it."""
        text = self.held + piece
        if found := [index for string in self.strings if (index := text.find(string)) >= 0]:
            self.held = ""
            return text[: min(found)], True
        most = max((len(string) - 1 for string in self.strings), default=0)
        ends = range(max(0, len(text) - most), len(text))
        start = next((i for i in ends if any(s.startswith(text[i:]) for s in self.strings)), len(text))
        self.held = text[start:]
        return text[:start], False


def stream_text(
    model: TransformerLM | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    seed: int | None = None,
    stop: Sequence[str] = (),
    logprobs: bool = False,
    completions: list[Completion] | None = None,
) -> Iterator[tuple[int, str]]:
    """Continue texts, giving out each piece as soon as its characters are whole and no part of a stop string.

    Args:
        model: on any device; a decoder is the faster.
        tokenizer: the one the model was trained with.
        prompts: an empty one starts from the end-of-text token, as a document does.
        max_new_tokens: tokens at most for each prompt; end-of-text stops earlier.
        sampling: how tokens are drawn.
        seed: see `generate`.
        stop: strings that end a row and are not part of it.
        logprobs: see `generate`.
        completions: an empty list, which will hold each row's text, tokens and reason to end.

    Yields:
        (row, piece): text to append to that row's prompt, never empty. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        ValueError: see `generate`; an empty stop string; or an empty prompt where the tokenizer has no end-of-text
            token.
    """
    if "" in stop:
        raise ValueError("a stop string is empty; leave it out, or give at least one character")
    end_of_text = tokenizer.special_ids.get(END_OF_TEXT)
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    if end_of_text is not None:
        encoded = [ids or [end_of_text] for ids in encoded]
    stop_ids = frozenset() if end_of_text is None else frozenset({end_of_text})
    seeds = row_seeds(seed, len(encoded))
    ended: set[int] = set()
    steps = generate(
        model,
        encoded,
        max_new_tokens,
        sampling,
        stop_ids,
        seeds[0] if seeds else None,
        tokenizer.vocab_size,
        ended,
        logprobs,
    )
    rows = completions if completions is not None else []
    rows += [Completion(seed) for seed in seeds]
    return _pieces(tokenizer, steps, max_new_tokens, rows, stop, ended)


def _pieces(
    tokenizer: Tokenizer,
    steps: Generator[list[Token | None]],
    max_new_tokens: int,
    rows: list[Completion],
    stop: Sequence[str],
    ended: set[int],
) -> Iterator[tuple[int, str]]:
    decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in rows]
    stops = [StopStrings(stop) for _ in rows]
    with closing(steps):
        for step in steps:
            for row, token in enumerate(step):
                if token is None:
                    continue
                rows[row].tokens.append(token)
                piece, found = stops[row].feed(decoders[row].decode(tokenizer.decode_bytes([token.id])))
                if found:
                    ended.add(row)
                    rows[row].finish = "stop string"
                if piece:
                    rows[row].text += piece
                    yield row, piece
    for row, completion in enumerate(rows):
        if completion.finish is None:
            completion.finish = "length" if len(completion.tokens) == max_new_tokens else "end of text"
            piece, found = stops[row].feed(decoders[row].decode(b"", final=True))
            if piece := piece if found else piece + stops[row].held:
                completion.text += piece
                yield row, piece


def complete(
    model: TransformerLM | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    seed: int | None = None,
    stop: Sequence[str] = (),
    logprobs: bool = False,
) -> list[Completion]:
    """What each prompt's row writes; arguments and errors as in `stream_text`."""
    rows: list[Completion] = []
    for _ in stream_text(model, tokenizer, prompts, max_new_tokens, sampling, seed, stop, logprobs, rows):
        pass
    return rows


def generate_text(
    model: TransformerLM | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> list[str]:
    """The continuation of each prompt, without the prompt; arguments and errors as in `stream_text`."""
    return [row.text for row in complete(model, tokenizer, prompts, max_new_tokens, sampling, seed, stop)]
