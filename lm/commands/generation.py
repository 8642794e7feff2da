"""Text from a model, and what a model thinks of text."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lm.terminal import printable, printable_json, say
from lm.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from lm.generation import Completion

Device = Literal["auto", "cpu", "cuda", "mps"]


def generate(
    prompts: list[str],
    run: Path | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: list[str] | str | None = None,
    num_samples: int = 1,
    seed: int | None = None,
    json: bool = False,
    logprobs: bool = False,
    interactive: bool = False,
    device: Device = "auto",
) -> None:
    """Continue prompts, or write new documents, streaming to the terminal.

    Args:
        prompts: texts to continue; none writes a new document.
        run: run folder or checkpoint file; by default the newest run's best checkpoint.
        max_new_tokens: most tokens to write for each prompt.
        temperature: below 1 plays safe, above 1 takes risks; 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest tokens that hold this share of the probability.
        min_p: sample among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: above 1, tokens that were read or written before become less likely (CTRL's rule).
        stop: a string that ends a text and is not part of it, or several: '["\\n\\n", "The end"]'.
        num_samples: texts for each prompt.
        seed: of the first text, the second has the next one and so on; the same seed repeats a text. By default every
            call differs.
        json: print a line of JSON for each text.
        logprobs: add token ids and their log-probabilities under the model to the JSON.
        interactive: read prompts from the terminal, a line each, until Ctrl-D; Ctrl-C ends a text.
        device: where to run; auto takes a GPU where there is one.
    """
    from lm.generation import SamplingConfig
    from lm.loaded import load

    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    if logprobs and not json:
        raise ValueError("logprobs go into the JSON; add --json")
    if interactive and (prompts or json or num_samples > 1):
        raise ValueError("interactive takes prompts from the terminal; leave out prompts, json and num_samples")
    stops = [stop] if isinstance(stop, str) else stop or ()
    loaded = load(run, device)
    say(f"generating with {loaded.run.checkpoint}", file=sys.stderr)
    for given in _lines() if interactive else [prompts or [""]]:
        rows = [prompt for prompt in given for _ in range(num_samples)]
        if json:
            _print_json(rows, loaded.complete(rows, max_new_tokens, sampling, seed, stops, logprobs), logprobs)
        elif len(rows) == 1:
            pieces = loaded.stream(rows, max_new_tokens, sampling, seed, stops)
            with suppress(KeyboardInterrupt) if interactive else nullcontext():  # ends the text, not the session
                _stream(rows[0], pieces)
            print()
        else:
            completions = loaded.complete(rows, max_new_tokens, sampling, seed, stops)
            texts = [prompt + row.text for prompt, row in zip(rows, completions, strict=True)]
            print(printable(f"\n{END_OF_TEXT}\n".join(text.strip() for text in texts)))


def _stream(prompt: str, pieces: Iterator[tuple[int, str]]) -> None:
    first = next(pieces, (0, ""))[1]  # before anything is printed, so that a mistake is told alone
    print(printable(prompt + first), end="", flush=True)
    for _, piece in pieces:
        print(printable(piece), end="", flush=True)


def _lines() -> Iterator[list[str]]:
    """Prompts typed one a line, until the end of input."""
    while True:
        try:
            yield [input("> " if sys.stdin.isatty() else "")]
        except EOFError:
            return


def _print_json(prompts: list[str], completions: "list[Completion]", logprobs: bool) -> None:
    for prompt, row in zip(prompts, completions, strict=True):
        line = {"prompt": prompt, "text": row.text, "seed": row.seed, "finish": row.finish, "tokens": len(row.tokens)}
        if logprobs:
            line |= {"ids": [token.id for token in row.tokens], "logprobs": [token.logprob for token in row.tokens]}
        print(printable_json(line), flush=True)


def score(
    text: Path, run: Path | None = None, stride: int | None = None, json: bool = False, device: Device = "auto"
) -> None:
    """Print a model's loss, perplexity and bits per byte on any text, or on a file of its tokens.

    Args:
        text: UTF-8 text, or a .npy file that encode made with the run's tokenizer.
        run: run folder or checkpoint file; by default the newest run's best checkpoint.
        stride: tokens between the starts of windows as long as the context: fewer give more context and take longer.
            By default the context's length, with which windows do not overlap.
        json: print JSON instead of a line.
        device: where to run; auto takes a GPU where there is one.
    """
    import tempfile
    from json import dumps

    import numpy as np

    from lm.data.encode import encode_file
    from lm.loaded import load

    loaded = load(run, device)
    say(f"scoring with {loaded.run.checkpoint}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        tokens = text
        if text.suffix != ".npy":
            tokens = Path(folder) / "tokens.npy"
            encode_file(loaded.tokenizer, text, tokens)
        try:
            ids = np.load(tokens, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            raise ValueError(f"{text} is not a whole file of token ids; make it with encode") from None
        if ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
            raise ValueError(f"{text} holds {ids.dtype} of shape {ids.shape}, not token ids; make it with encode")
        result = loaded.score_ids(ids, stride)
        del ids  # some systems do not delete a file that is mapped
    if json:
        figures = {name: getattr(result, name) for name in ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")}
        print(dumps(figures))
        return
    print(
        f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.2f}, "
        f"{result.bits_per_byte:.4f} bits per byte; {result.tokens:,} tokens, {result.bytes:,} bytes"
    )


def evaluate(
    tasks: list[str],
    run: Path | None = None,
    few_shots: int | None = None,
    limit: int | None = None,
    task_folder: Path | None = None,
    json: bool = False,
    device: Device = "auto",
) -> None:
    """Run tasks of EleutherAI's lm-evaluation-harness on a run.

    Args:
        tasks: names of the harness's tasks, for example lambada_openai.
        run: run folder or checkpoint file; by default the newest run's best checkpoint.
        few_shots: worked examples in each prompt; by default the task's own number.
        limit: questions of each task; by default all.
        task_folder: folder with YAML files of tasks, which are taken instead of the harness's own.
        json: print JSON instead of a table.
        device: where to run; auto takes a GPU where there is one.
    """
    from importlib.util import find_spec
    from json import dumps

    if find_spec("lm_eval") is None:
        raise ValueError('this needs the package lm_eval; install it: pip install -e ".[eval]"')
    if not tasks:
        raise ValueError("there are 0 tasks; name at least one")
    from lm_eval.utils import make_table

    from lm.export.harness import evaluate
    from lm.loaded import load

    loaded = load(run, device)
    say(f"evaluating {loaded.run.checkpoint}", file=sys.stderr)
    results = evaluate(loaded, tasks, few_shots, limit, task_folder)
    print(dumps(results["results"], indent=2) if json else make_table(results))
