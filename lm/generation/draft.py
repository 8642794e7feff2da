"""Several tokens a pass for one row on a CPU: a rounded copy of the model guesses them, the model itself decides.

A step of a large model lasts as long as its weights take to come from memory, and a pass that reads a few tokens takes
little longer (speculative decoding, Leviathan et al. 2023; Chen et al. 2023). Here every token is drawn from the
model's own logits with its own random number, so that the text is the same to the last bit; guesses only save time.

Shape letters: N tokens of a pass, C candidates, V vocabulary.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from lm.generation.sampling import SamplingConfig, draw
from lm.model import KVCache

if TYPE_CHECKING:
    from lm.generation.native import Step

GUESS_COST = 0.4  # of a guess and its place in the pass that decides, where a pass of one token costs 1
FORGETTING = 1 / 8  # of what earlier guesses were worth, with each new one
HOPE = 1 / 512  # a step, where guesses are not worth it: some time they are tried again
TRUST = 0.8  # in the first guesses
CANDIDATES = 64


class Speculation:
    """Drafts and decides for one row.

    Args:
        exact: the step that decides.
        rounded: the step that guesses, with the same cache; what it writes there is overwritten.
        sampling: how ids are drawn.
        vocab_size: ids from this on are never drawn.
    """

    def __init__(self, exact: "Step", rounded: "Step", sampling: SamplingConfig, vocab_size: int) -> None:
        self.exact, self.rounded = exact, rounded
        self.sampling, self.vocab_size = sampling, vocab_size
        self.hit_rate = TRUST

    def __call__(
        self, token: int, cache: KVCache, uniforms_N: Tensor, seen_1V: Tensor | None
    ) -> tuple[list[int], Tensor]:
        """Read `token` and draw at least one and at most N tokens; the caller advances the cache by as many.

        Args:
            token: goes to slot `cache.lengths`.
            cache: of one row.
            uniforms_N: a number in [0, 1) for each draw.
            seen_1V: True for tokens that the repetition penalty concerns.

        Returns:
            The ids, and the logits (ids, V) they were drawn from, valid until the next call.
        """
        position = int(cache.lengths)
        tokens = [token]
        count = 1 + min(self.guesses(), len(uniforms_N) - 1)
        seen_NV = None if seen_1V is None else seen_1V.repeat(count, 1)
        for n in range(count - 1):
            logits_1V = self.rounded(tokens[-1:], position + n, cache)
            tokens += self._guess(logits_1V, uniforms_N[n : n + 1], None if seen_NV is None else seen_NV[n : n + 1])
            if seen_NV is not None:
                seen_NV[n + 1 :, tokens[-1]] = True
        logits_NV = self.exact(tokens, position, cache)
        ids = self._draw(logits_NV, uniforms_N[:count], seen_NV)
        hits = 0
        while hits < count - 1 and ids[hits] == tokens[hits + 1]:
            hits += 1
        self._learn(hits, count - 1)
        return ids[: hits + 1], logits_NV[: hits + 1, : self.vocab_size]

    def guesses(self) -> int:
        """How many give the most tokens for their time, if each is right with the same probability.

        Of g guesses, 1 + p + ... + p^g tokens come out on average (Leviathan et al. 2023, equation 1).
        """
        speeds, tokens = [], 0.0
        for guesses in range(self.exact.most):
            tokens += self.hit_rate**guesses
            speeds.append(tokens / (1 + GUESS_COST * guesses))
        return speeds.index(max(speeds))

    def _learn(self, hits: int, guesses: int) -> None:
        """Guesses after the first wrong one say nothing; without any, hope comes back slowly."""
        for index in range(min(hits + 1, guesses)):
            self.hit_rate += FORGETTING * ((index < hits) - self.hit_rate)
        if not guesses:
            self.hit_rate += HOPE

    def _guess(self, logits_1V: Tensor, uniform_1: Tensor, seen_1V: Tensor | None) -> list[int]:
        """A draw; where that would sort all logits, from the likeliest ones alone."""
        if self.sampling.top_k is None and self.sampling.top_p is None:
            return self._draw(logits_1V, uniform_1, seen_1V)
        logits_1V = logits_1V[:, : self.vocab_size]
        ids_1C = logits_1V.topk(min(CANDIDATES, self.vocab_size)).indices.sort().values
        seen_1C = None if seen_1V is None else seen_1V.gather(1, ids_1C)
        place = draw(logits_1V.gather(1, ids_1C), self.sampling, uniform_1, seen_1C)
        return ids_1C[0, place].tolist()

    def _draw(self, logits_NV: Tensor, uniforms_N: Tensor, seen_NV: Tensor | None) -> list[int]:
        return draw(logits_NV[:, : self.vocab_size], self.sampling, uniforms_N, seen_NV).tolist()
