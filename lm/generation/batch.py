"""Several rows under way: their cache, and the loop of reading a token and drawing the next.

Shape letters: N steps, B batch, T time, D d_model, V vocabulary.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lm.generation.decoder import Decoder
from lm.generation.draft import Speculation
from lm.generation.sampling import SamplingConfig, Uniforms, draw
from lm.model import KVCache, TransformerLM

log = logging.getLogger("lm")

# Steps between two looks of the host at what was drawn: few enough to show text as it comes.
LONG_BURST, BURST = 32, 8


class Batch:
    """Rows that are read and drawn together; all of it stays on the device between two bursts of steps.

    With a decoder on a CUDA device, one step is a CUDA graph: recorded once, then started as a whole. There the next
    burst runs while the caller reads the last one.

    Args:
        model: reads token by token through its forward pass (the reference), or as a decoder (fast).
        batch_size: rows B.
        slots: tokens that the cache holds for each row.
        sampling: how ids are drawn.
        vocab_size: ids from this on are never drawn.
        logprobs: also give each drawn id's log-probability under the model itself, whatever the sampling.
    """

    def __init__(
        self,
        model: TransformerLM | Decoder,
        batch_size: int,
        slots: int,
        sampling: SamplingConfig,
        vocab_size: int,
        logprobs: bool,
    ) -> None:
        self.decoder = model if isinstance(model, Decoder) else None
        self.model = model.model if isinstance(model, Decoder) else model
        self.sampling, self.vocab_size = sampling, vocab_size
        weight = self.model.lm_head.weight
        self.device = device = weight.device
        if self.decoder is not None:
            self.dtype = self.decoder.dtype
        else:
            autocast = torch.is_autocast_enabled(device.type)
            self.dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        self.cache = KVCache(self.model.config, batch_size, slots, device, self.dtype)
        self.cache.is_empty = False  # filled by _prefill, through a smaller cache
        self.held = [0] * batch_size
        self.tokens_B = self._tensor([0] * batch_size)
        self.advance_B = self._tensor([0] * batch_size)
        self.step_1 = self._tensor([0])
        self.speculation = None
        native = None if self.decoder is None else self.decoder.native
        if self.decoder is not None and native and batch_size == 1 and (rounded := self.decoder.rounded):
            self.speculation = Speculation(native, rounded, sampling, vocab_size)
        self.burst = LONG_BURST if self.speculation or device.type == "cuda" else BURST
        self.ids_NB = torch.zeros(self.burst, batch_size, device=device, dtype=torch.long)
        self.logprobs_NB = torch.zeros(self.burst, batch_size, device=device) if logprobs else None
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.uniforms_NB = torch.zeros(self.burst, batch_size, device=device, dtype=wide)
        self.seen_BV = None
        if sampling.repetition_penalty != 1:
            self.seen_BV = torch.zeros(batch_size, vocab_size, device=device, dtype=torch.bool)
        self.moving: list[int] = []  # rows that each step takes one token further
        self.ahead = 0  # steps of the next burst that are under way
        self.graph: torch.cuda.CUDAGraph | None = None
        self.may_record = device.type == "cuda" and self.decoder is not None

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], seeds: list[int]) -> None:
        """Forget everything; the rows will draw by `seeds`, and the penalty concerns what is in `prompts`."""
        if self.sampling.temperature > 0:
            self.uniforms = Uniforms(seeds)
        self.held = [0] * len(prompts)
        self.ahead = 0
        if self.seen_BV is not None:
            self.seen_BV.zero_()
            for row, prompt in enumerate(prompts):
                self.seen_BV[row, [token for token in set(prompt) if token < self.vocab_size]] = True

    @torch.inference_mode()
    def run(self, windows: list[list[int]], active: list[int], limit: int) -> tuple[list[list[int]], list[list[float]]]:
        """Read the last tokens of the active rows' windows, draw, and so on for some steps.

        Args:
            windows: all that each row's model is to see. Rows whose window is not what the cache holds and one token
                more are read anew; then there is one step.
            active: rows that count; the others' ids are of no meaning.
            limit: steps at most.

        Returns:
            The ids and, if asked for, the log-probabilities: (steps, B).
        """
        steps = self.ahead or self._begin(windows, active, limit)
        for row in active:
            self.held[row] = len(windows[row]) + steps - 1
        ids_NB = self.ids_NB[:steps].tolist()
        logprobs_NB = [] if self.logprobs_NB is None else self.logprobs_NB[:steps].tolist()
        self.ahead = 0
        if self.graph is not None and self.moving == active:
            room = min(self.model.config.context_length - self.held[row] for row in active)
            self.ahead = min(limit - steps, self.burst, room)
            self._advance(self.ahead, self.cache.max_length)
        return ids_NB, logprobs_NB

    def _begin(self, windows: list[list[int]], active: list[int], limit: int) -> int:
        """Start a burst, or read whole windows and draw once; see `run`. Returns the steps."""
        grown = [row for row in active if len(windows[row]) == self.held[row] + 1 > 1]
        fresh = [row for row in active if row not in grown]
        room = min(self.model.config.context_length - self.held[row] for row in active)
        steps = 1 if fresh else min(limit, self.burst, room)
        self.moving = grown
        # Rows that are not read come along in slot 0, which is filled anew or never read again.
        rows = range(len(windows))
        self.tokens_B.copy_(self._tensor([windows[row][-1] for row in rows]))
        self.cache.lengths.copy_(self._tensor([self.held[row] if row in grown else 0 for row in rows]))
        self.advance_B.copy_(self._tensor([int(row in grown) for row in rows]))
        used = 1 + max((self.held[row] for row in grown), default=0)
        if not fresh:
            self._advance(steps, used)
            return steps
        self._prepare(steps)
        logits_BV = self._read(used) if grown else None
        fresh_BV = self._prefill([windows[row] for row in fresh], fresh)
        if logits_BV is None:
            logits_BV = fresh_BV.new_zeros(len(windows), self.vocab_size)
        logits_BV[fresh] = fresh_BV
        self._draw(logits_BV)
        return steps

    def _prepare(self, steps: int) -> None:
        """Random numbers for some steps, and the first of them is next."""
        if self.sampling.temperature > 0:
            self.uniforms_NB[:steps] = self.uniforms.next(steps).to(self.uniforms_NB)
        self.step_1.zero_()

    def _prefill(self, windows: list[list[int]], rows: list[int]) -> Tensor:
        """Read whole windows into the cache's `rows`; logits after each."""
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
        return logits_BV[:, : self.vocab_size]

    def _read(self, used: int) -> Tensor:
        """Read `tokens_B`; logits (B, V) after them. `used` slots hold all that the rows attend to."""
        if self.decoder is not None:
            return self.decoder.step(self.tokens_B, self.cache, used)[:, : self.vocab_size]
        # Not through the module's call: a model compiled for training would be compiled anew for these shapes.
        return self.model.forward(self.tokens_B[:, None], self.cache)[:, 0, : self.vocab_size]

    def _draw(self, logits_BV: Tensor) -> None:
        """The next tokens, kept under the number of the step."""
        uniform_B = self.uniforms_NB.index_select(0, self.step_1)[0]
        self.tokens_B.copy_(draw(logits_BV, self.sampling, uniform_B, self.seen_BV))
        self.ids_NB.index_copy_(0, self.step_1, self.tokens_B[None])
        if self.logprobs_NB is not None:
            self.logprobs_NB.index_copy_(0, self.step_1, _logprobs(logits_BV, self.tokens_B)[None])
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, self.tokens_B[:, None], True)
        self.step_1 += 1

    def _step(self, used: int) -> None:
        self._draw(self._read(used))
        self.cache.lengths += self.advance_B

    def _advance(self, steps: int, used: int) -> None:
        self._prepare(steps)
        if self.speculation is not None:
            self._speculate(self.speculation, steps)
            return
        if self.may_record and self.graph is None:
            self._record()
        for index in range(steps):
            if self.graph is not None:
                self.graph.replay()
            else:
                self._step(used + index)

    def _speculate(self, speculation: Speculation, steps: int) -> None:
        """The same steps for one row, some at a time."""
        done = 0
        while done < steps:
            uniforms_N = self.uniforms_NB[done:steps, 0]
            ids, logits_NV = speculation(int(self.tokens_B), self.cache, uniforms_N, self.seen_BV)
            end = done + len(ids)
            ids_N = self.ids_NB[done:end, 0] = self._tensor(ids)
            if self.logprobs_NB is not None:
                self.logprobs_NB[done:end, 0] = _logprobs(logits_NV, ids_N)
            if self.seen_BV is not None:
                self.seen_BV[0, ids_N] = True
            self.tokens_B[0] = ids[-1]
            self.cache.lengths += len(ids)
            done = end

    def _record(self) -> None:
        """Record a step as a CUDA graph; it attends to all slots, since its shapes stay as they are recorded."""
        state = [self.tokens_B, self.cache.lengths, self.step_1]
        state += [] if self.seen_BV is None else [self.seen_BV]
        before = [tensor.clone() for tensor in state]
        graph = torch.cuda.CUDAGraph()
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries make their workspaces before the recording
                for _ in range(2):
                    self._step(self.cache.max_length)
                    self._restore(state, before)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                self._step(self.cache.max_length)
            self.graph = graph
        except RuntimeError as error:
            log.warning("no CUDA graph (%s); generation goes on without", str(error).splitlines()[0])
            self.may_record = False
        self._restore(state, before)

    @staticmethod
    def _restore(state: list[Tensor], before: list[Tensor]) -> None:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)

    def _tensor(self, values: Sequence[int] | Sequence[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def _logprobs(logits_BV: Tensor, ids_B: Tensor) -> Tensor:
    return logits_BV.float().log_softmax(-1).gather(-1, ids_B[:, None])[:, 0]
