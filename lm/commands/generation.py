"""Text from a model."""

import sys
from pathlib import Path
from typing import Literal

from lm.tokenizer import END_OF_TEXT


def generate(
    prompts: list[str],
    run: Path | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> None:
    """Continue prompts, or write new documents, streaming to the terminal.

    Args:
        prompts: texts to continue; none writes a new document.
        run: run folder or checkpoint file; by default the newest run's best checkpoint.
        max_new_tokens: most tokens to write for each prompt.
        temperature: below 1 plays safe, above 1 takes risks; 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest tokens that hold this share of the probability.
        seed: repeats the same text; by default every call differs.
        device: where to run; auto takes a GPU where there is one.
    """
    import torch

    from lm.generation import SamplingConfig, stream_text
    from lm.training.runs import find_run

    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    where = _device(device)
    found = find_run(run)
    print(f"generating with {found.checkpoint}", file=sys.stderr)
    tokenizer = found.load_tokenizer()
    model = found.load_model(where)
    prompts = prompts or [""]
    with torch.autocast(where, torch.bfloat16, enabled=where == "cuda"):
        pieces = stream_text(model, tokenizer, prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        if len(prompts) == 1:
            print(prompts[0], end="", flush=True)
            for _, piece in pieces:
                print(piece, end="", flush=True)
            print()
            return
        texts = list(prompts)
        for row, piece in pieces:
            texts[row] += piece
    print(f"\n{END_OF_TEXT}\n".join(text.strip() for text in texts))


def _device(name: str) -> str:
    import torch

    if name != "auto":
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available[name]:
            raise ValueError(f"there is no {name} device here; use --device cpu or auto")
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
