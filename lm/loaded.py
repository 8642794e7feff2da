"""A run ready for use from Python: `lm.load`."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch

from lm.generation import Completion, Decoder, SamplingConfig, complete, stream_text
from lm.generation.score import Ids, Score, score_ids, score_text
from lm.training.runs import Run, find_run

Device = Literal["auto", "cpu", "cuda", "mps"]


class LoadedRun:
    """A run's model and tokenizer, on a device: on a GPU with products in bfloat16, elsewhere all in float32."""

    def __init__(self, run: Run, device: str) -> None:
        self.run, self.device = run, device
        self.tokenizer = self.run.load_tokenizer()
        self.model = self.run.load_model(self.device)
        # Tried on CPUs and CUDA only, so Apple's GPUs go the plain way.
        self.reader = (
            self.model if device == "mps" else Decoder(self.model, torch.bfloat16 if device == "cuda" else None)
        )

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 256,
        seed: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> str:
        """The continuation of a prompt, by default at temperature 1; `sampling` are SamplingConfig's fields."""
        return self.complete([prompt], max_new_tokens, SamplingConfig(**sampling), seed, stop)[0].text

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 256,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: bool = False,
    ) -> list[Completion]:
        """What each prompt's row writes; arguments and errors as in `lm.generation.stream_text`."""
        with self.precision():
            return complete(self.reader, self.tokenizer, prompts, max_new_tokens, sampling, seed, stop, logprobs)

    def stream(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 256,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[tuple[int, str]]:
        """(row, piece) as they come; see `lm.generation.stream_text`."""
        with self.precision():
            yield from stream_text(self.reader, self.tokenizer, prompts, max_new_tokens, sampling, seed, stop)

    def score(self, text: str, stride: int | None = None) -> Score:
        """Loss, perplexity and bits per byte of a text; see `lm.generation.score.token_logprobs`."""
        with self.precision():
            return score_text(self.model, self.tokenizer, text, stride)

    def score_ids(self, ids: Ids, stride: int | None = None) -> Score:
        """The same for token ids."""
        with self.precision():
            return score_ids(self.model, self.tokenizer, ids, stride)

    def precision(self) -> AbstractContextManager[Any]:
        """What to run the model in."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")


def load(run: str | Path | None = None, device: Device = "auto") -> LoadedRun:
    """A run's model and tokenizer.

    Args:
        run: run folder or checkpoint file; by default the newest run's best checkpoint.
        device: auto takes a GPU where there is one.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: there is no such device, or the checkpoint is damaged.
    """
    where = _device(device)
    return LoadedRun(find_run(None if run is None else Path(run)), where)


def _device(name: Device) -> str:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        raise ValueError(f"there is no {name} device here; use --device cpu or auto")
    return name
