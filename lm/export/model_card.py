"""The README.md of an exported model."""

import json
import math
from pathlib import Path
from typing import Any

from lm.model import TransformerLM
from lm.tokenizer import END_OF_TEXT, Tokenizer
from lm.training.runs import Run

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {title}

A small language model trained from scratch with `lm`, in the form of a Llama: {layers} layers, width {d_model}, {heads}
heads, {parameters:,} parameters in float32, a context of {context:,} tokens.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{title}")
model = AutoModelForCausalLM.from_pretrained("{title}")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.8)[0]))
```

## Results

{results}

## Tokenizer

Byte-level BPE with GPT-2's pattern, {ids:,} ids. {documents}

## Limits

The model has seen the text of its training and nothing else: it follows no instructions, knows no facts beyond that
text, and nothing was done against harmful output.
"""


def model_card(run: Run, model: TransformerLM, tokenizer: Tokenizer, title: str) -> str:
    """Markdown: shape, results as far as the run's run.json has them, use and limits."""
    config = model.config
    separated = f"Documents begin after and end with `{END_OF_TEXT}`."
    return _CARD.format(
        title=title,
        layers=config.num_layers,
        d_model=config.d_model,
        heads=config.num_heads,
        context=config.context_length,
        parameters=sum(p.numel() for p in model.parameters()),
        results=_results(run),
        ids=tokenizer.vocab_size,
        documents=separated if END_OF_TEXT in tokenizer.special_ids else "It has no end-of-text token.",
    )


def _results(run: Run) -> str:
    facts = _facts(run.folder / "run.json")
    if "result" not in facts:
        return "No record of training came with the model."
    result = facts["result"]
    loss = result["val/loss"]
    if run.checkpoint.name == "best.ckpt":
        loss = facts.get("best_loss", loss)
    rows = {
        "validation loss, nats per token": f"{loss:.4f}",
        "perplexity": f"{math.exp(min(loss, 20)):.2f}",
        "bits per byte": f"{result['val/bits_per_byte'] * loss / result['val/loss']:.4f}",
        "tokens seen in training": f"{facts['tokens_seen']:,}",
        "seconds of training": f"{facts['training_seconds']:.0f}",
        "hardware": f"{facts['devices']} x {facts['device']}, precision {facts['precision']}",
        "software": f"lm {facts['lm']}, torch {facts['torch']}",
        "started": facts["started"],
    }
    if "val/irreducible_loss" in result:
        rows["loss of a perfect model of this text"] = f"{result['val/irreducible_loss']:.4f}"
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _facts(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
