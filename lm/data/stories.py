"""The embedded data source: children's stories from a grammar that knows the probability of each.

A model of this text can be compared with a perfect one: the text's exact information content, and so the loss that no
model can beat, comes with it.
"""

import hashlib
import os
from pathlib import Path
from random import Random

from tqdm.auto import tqdm

from lm.data.grammar import Grammar
from lm.data.story_rules import RULES
from lm.tokenizer import END_OF_TEXT

STORIES = Grammar(RULES, "story")
RULES_DIGEST = hashlib.sha256(repr(sorted(RULES.items())).encode()).hexdigest()


def generate_stories(path: Path, num_bytes: int, seed: int, progress: bool = False) -> float:
    """Write stories, each followed by a line `<|endoftext|>`, until the file has at least `num_bytes` bytes.

    The same arguments give the same bytes on every machine. The file gets its name when it is whole.

    Args:
        path: file to write, UTF-8.
        num_bytes: size to reach, at least 1.
        seed: draws the stories.
        progress: show a bar.

    Returns:
        -ln of the probability of everything written, in nats.

    Raises:
        ValueError: num_bytes is below 1.
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes is {num_bytes}, it must be at least 1")
    rng = Random(seed)
    nats = 0.0
    written = 0
    temporary = path.with_name(path.name + ".tmp")
    try:
        with (
            temporary.open("wb") as file,
            tqdm(desc="writing", total=num_bytes, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            while written < num_bytes:
                story, cost = STORIES.tell(rng)
                nats += cost
                written += (size := file.write(f"{story}\n{END_OF_TEXT}\n".encode()))
                bar.update(size)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return nats
