"""What temperature and top-p make of a model's text: `python -m docs.tools.sampling RUN`.

24 documents a setting, from the prompt "Once", with seeds from 1; a row of a Markdown table for each setting.
"""

import argparse
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

from lm.cli import main

SETTINGS: list[tuple[float, float | None]] = [
    *((temperature, None) for temperature in (0.4, 0.8, 1.0, 1.3, 1.6, 2.0)),
    *((1.0, top_p) for top_p in (0.95, 0.8, 0.5)),
    (1.6, 0.95),
    (1.6, 0.8),
    (2.0, 0.8),
]
TEXTS = 24


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z']+", text)


def sample(run: str, max_new_tokens: int, temperature: float, top_p: float | None) -> list[dict[str, Any]]:
    """Documents as `generate --json` prints them."""
    options = ["--temperature", str(temperature), *(["--top_p", str(top_p)] if top_p else [])]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(
            [
                "generate",
                "Once",
                "--run",
                run,
                "--num_samples",
                str(TEXTS),
                "--seed",
                "1",
                "--max_new_tokens",
                str(max_new_tokens),
                "--json",
                "--logprobs",
                *options,
            ]
        )
    return [json.loads(line) for line in out.getvalue().splitlines() if line.startswith("{")]


def row(texts: list[dict[str, Any]], known: set[str], temperature: float, top_p: float | None) -> str:
    """A setting with three measures: invented words, surprise, and repeats of five words over all documents."""
    written = [words(text["text"]) for text in texts]
    count = sum(map(len, written))
    invented = sum(word not in known for text in written for word in text) / count
    logprobs = [value for text in texts for value in text["logprobs"]]
    fives = [tuple(text[i : i + 5]) for text in written for i in range(len(text) - 4)]
    repeated = 1 - len(set(fives)) / len(fives)
    cells = f"{temperature:g}", f"{top_p or 1:g}", f"{invented:.1%}", f"{-sum(logprobs) / len(logprobs):.3f}"
    return f"| {' | '.join(cells)} | {repeated:.0%} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("train_text", nargs="?", type=Path, default="data/stories/train.txt")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--texts", type=Path, help="file for the documents, as lines of JSON")
    options = parser.parse_args()
    known = set(words(options.train_text.read_text(encoding="utf-8")))
    print("| temperature | top-p | invented words | surprise, nats per token | repeats |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for setting in SETTINGS:
        texts = sample(options.run, options.max_new_tokens, *setting)
        print(row(texts, known, *setting), flush=True)
        if options.texts:
            with options.texts.open("a", encoding="utf-8") as file:
                for text in texts:
                    file.write(f"{json.dumps({'setting': setting, **text}, ensure_ascii=False)}\n")
