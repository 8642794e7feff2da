"""How likely a model finds a text: loss, perplexity and bits per byte, with windows that may overlap.

Shape letters: B windows of a batch, T time, D d_model, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lm.model import TransformerLM
from lm.tokenizer import END_OF_TEXT, Tokenizer

Ids = Sequence[int] | npt.NDArray[np.integer]
WINDOWS = 8  # read at once


@dataclass(frozen=True)
class Score:
    """A text under a model.

    Attributes:
        tokens: that were scored.
        bytes: of these tokens' text; special tokens have none.
        nats: -ln p of all of them.
    """

    tokens: int
    bytes: int
    nats: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer; infinite for special tokens alone."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.inf


def token_logprobs(
    model: TransformerLM, ids: Ids, stride: int | None = None, before: int | None = None
) -> Iterator[Tensor]:
    """Natural logarithms of each token's probability after those before it, in order, in pieces.

    Windows as long as the context begin every `stride` tokens, and each scores what the one before did not. So every
    token is scored once, and beyond the first window with at least context_length - stride tokens before it. A stride
    as long as the context (the default) reads each token once; 1 gives every token all the context there is.

    Args:
        model: in eval mode.
        ids: tokens, at least 2, or 1 with `before`.
        stride: tokens, 1 to the context length.
        before: an id to put before the first, which is then scored as well.

    Raises:
        ValueError: the stride is out of its range, there are too few ids, or ids the model does not know (from the
            iterator).
    """
    context = model.config.context_length
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride is {stride}; it must be 1 to the model's context_length, {context}")
    targets = len(ids) - (before is None)
    if targets < 1:
        raise ValueError(f"{len(ids)} tokens leave nothing to score; give a longer text")
    return _pieces(model, ids, targets, stride, before)


@torch.inference_mode()
def _pieces(model: TransformerLM, ids: Ids, targets: int, stride: int, before: int | None) -> Iterator[Tensor]:
    context = model.config.context_length
    yield _logprobs(model, [_slice(ids, before, 0, context + 1)], context)[:targets]
    starts = range(stride, targets - context + stride, stride)
    for first in range(0, len(starts), WINDOWS):
        windows = [_slice(ids, before, start, start + context + 1) for start in starts[first : first + WINDOWS]]
        missing = context + 1 - len(windows[-1])  # the text's end; what fills it up is not looked at
        windows[-1] = np.pad(windows[-1], (0, missing))
        logprobs = _logprobs(model, windows, stride)
        yield logprobs[: len(logprobs) - missing]


def _slice(ids: Ids, before: int | None, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Ids start to stop of `before` and `ids` together."""
    if before is None:
        return np.asarray(ids[start:stop], np.int64)
    part = np.asarray(ids[max(start - 1, 0) : stop - 1], np.int64)
    return part if start else np.concatenate([[before], part])


def _logprobs(model: TransformerLM, windows: list[npt.NDArray[np.int64]], last: int) -> Tensor:
    """Of the last tokens of each window, on the CPU in float64."""
    batch = np.stack(windows)
    limit = model.config.vocab_size
    if (worst := int(batch.max())) >= limit or (worst := int(batch.min())) < 0:
        raise ValueError(f"there is a token id {worst}, the model knows 0 to {limit - 1}; use its own tokenizer")
    ids_BT = torch.from_numpy(batch).to(model.lm_head.weight.device)
    hidden_BTD = model.hidden(ids_BT[:, :-1])[:, -last:]
    targets_BT = ids_BT[:, 1:][:, -last:]
    logits_BTV = model.lm_head(hidden_BTD).float()
    chosen_BT = logits_BTV.gather(-1, targets_BT[..., None])[..., 0]
    return (chosen_BT - logits_BTV.logsumexp(-1)).flatten().cpu().double()


def score_ids(model: TransformerLM, tokenizer: Tokenizer, ids: Ids, stride: int | None = None) -> Score:
    """Score tokens; the first after an end-of-text token, where the tokenizer has one, and else not at all.

    Raises ValueError as `token_logprobs`.
    """
    end = tokenizer.special_ids.get(END_OF_TEXT)
    starts_document = len(ids) > 0 and ids[0] == end
    before = None if starts_document else end
    nats = -sum(float(piece.sum()) for piece in token_logprobs(model, ids, stride, before))
    scored = ids if before is not None else ids[1:]
    return Score(len(scored), _num_bytes(tokenizer, scored), nats)


def _num_bytes(tokenizer: Tokenizer, ids: Ids) -> int:
    specials = set(tokenizer.special_ids.values())
    sizes = np.zeros(max(tokenizer.vocab) + 1, np.int64)
    for token, text in tokenizer.vocab.items():
        sizes[token] = 0 if token in specials else len(text)
    part = 1 << 20
    return sum(int(sizes[np.asarray(ids[i : i + part], np.int64)].sum()) for i in range(0, len(ids), part))


def score_text(model: TransformerLM, tokenizer: Tokenizer, text: str, stride: int | None = None) -> Score:
    """Score a text as a document, from its first token on; arguments and errors as in `token_logprobs`."""
    return score_ids(model, tokenizer, tokenizer.encode(text), stride)
