"""To and from other tools."""

from pathlib import Path
from typing import Literal

from lm.terminal import say


def export(output: Path, run: Path | None = None) -> None:
    """Write a run's model and tokenizer as a folder that Hugging Face transformers opens as LlamaForCausalLM.

    Args:
        output: the folder to make.
        run: run folder or checkpoint file; by default the newest run's best checkpoint.
    """
    from lm.export.to_huggingface import export_run
    from lm.training.runs import find_run

    found = find_run(run)
    export_run(found, output)
    say(f"{output}: {found.checkpoint} for transformers' AutoModelForCausalLM and AutoTokenizer")


def export_tokenizer(tokenizer: Path, output: Path, format: Literal["huggingface", "tiktoken"] = "huggingface") -> None:
    """Write a tokenizer for other tools.

    Args:
        tokenizer: folder with vocab.json and merges.txt.
        output: the folder to make for huggingface, the file for tiktoken, for example mine.tiktoken.
        format: huggingface writes tokenizer.json, tiktoken a rank file.
    """
    from lm.export.tokenizer_formats import GPT2_PATTERN, export_huggingface, export_tiktoken
    from lm.tokenizer import Tokenizer

    loaded = Tokenizer.from_folder(tokenizer)
    if format == "huggingface":
        export_huggingface(loaded, output)
        say(f"{output}: open it with transformers.AutoTokenizer.from_pretrained")
        return
    export_tiktoken(loaded, output)
    say(f"{output}: open it with\n")
    say("import tiktoken")
    say(f"ranks = tiktoken.load.load_tiktoken_bpe({str(output)!r})")
    say(f'tiktoken.Encoding({output.stem!r}, pat_str=r"{GPT2_PATTERN}",')
    say(f"                  mergeable_ranks=ranks, special_tokens={loaded.special_ids})")


def import_model(folder: Path, run_folder: Path | None = None) -> None:
    """Make a run of a Llama-style folder of Hugging Face transformers, for generate, validate and fit.

    Args:
        folder: holds config.json, safetensors and a tokenizer with GPT-2's pattern.
        run_folder: the run folder to make; by default the next lightning_logs/version_N.
    """
    from lm.export.from_huggingface import import_model

    made = import_model(folder, run_folder)
    say(f"run folder:  {made}")
    say(f'text:        python -m lm generate --run {made} "Once upon a time"')
    say(f"loss:        python -m lm validate --run {made} --data.train_text TEXT --data.valid_text TEXT")
    say(f"training:    python -m lm fit --weights {made} --data.train_text TEXT --data.valid_text TEXT")


def import_tokenizer(source: Path, output: Path, special_tokens: dict[str, int] | None = None) -> None:
    """Make a tokenizer folder (vocab.json and merges.txt) out of another tool's files.

    Args:
        source: tokenizer.json, a folder with it or with vocab.json and merges.txt, or a tiktoken rank file.
        output: the folder to make, for example tokenizers/gpt2.
        special_tokens: ids of a rank file's special tokens, which it does not hold; by default <|endoftext|> with the
            first free id.
    """
    from lm.export.files import require_free
    from lm.export.tokenizer_formats import read_tokenizer

    require_free(output)
    tokenizer = read_tokenizer(source, special_tokens)
    tokenizer.save(output)
    say(f"{output}: {len(tokenizer.vocab):,} tokens, special tokens {tokenizer.special_ids}")
