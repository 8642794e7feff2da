"""The commands that are plain functions; their signatures are their options (see cli.py)."""

import sys
from pathlib import Path
from typing import Any, Literal

from lm.accounting import Precision, TrainingPrecision
from lm.data.sources import SourceName, StoryCorpus
from lm.experiments.study import Study
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


def prepare(
    source: SourceName = "stories",
    train_text: Path | None = None,
    valid_text: Path | None = None,
    vocab_size: int = 10_000,
    tokenizer: Path | None = None,
    data_dir: Path = Path("data"),
    tokenizers_dir: Path = Path("tokenizers"),
    stories: StoryCorpus = StoryCorpus(),
    workers: int | None = None,
) -> None:
    """Make what `fit` needs, without training: the text, the tokenizer and the token files.

    Args:
        source: stories (embedded generator), tinystories or openwebtext (downloaded), or text (your files).
        train_text: UTF-8 training text for source text; documents separated by lines <|endoftext|>.
        valid_text: UTF-8 validation text for source text.
        vocab_size: ids of a newly trained tokenizer.
        tokenizer: folder of a tokenizer to use, trained there first if the folder is missing.
        data_dir: folder for text and token files.
        tokenizers_dir: folder for trained tokenizers.
        stories: size and seeds of source stories.
        workers: processes for counting and encoding; by default one a core.
    """
    from lm.data.prepare import prepare as prepare_data
    from lm.data.tokens import TokenFiles

    prepared = prepare_data(
        source, train_text, valid_text, vocab_size, tokenizer, data_dir, tokenizers_dir, stories, workers
    )
    meta = TokenFiles(prepared.tokens).meta
    print(f"tokenizer: {prepared.tokenizer} ({meta.vocab_size:,} ids)")
    for name, split in (("train", meta.train), ("valid", meta.valid)):
        line = f"{name}: {prepared.tokens / name}.npy ({split.tokens:,} tokens, {split.bytes_per_token:.3f} bytes each)"
        if split.irreducible is not None:
            line += f", irreducible loss {split.irreducible:.4f} nats per token"
        print(line)


def train_tokenizer(
    text: Path,
    output: Path,
    vocab_size: int = 10_000,
    special_tokens: list[str] | None = None,
    workers: int | None = None,
) -> None:
    """Train a byte-level BPE tokenizer and save vocab.json and merges.txt.

    Args:
        text: UTF-8 text; documents separated by lines <|endoftext|>.
        output: folder to write, for example tokenizers/mine; it must not hold a tokenizer yet.
        vocab_size: 256 bytes, the special tokens and the merges together.
        special_tokens: tokens that split the text and never merge; by default <|endoftext|>.
        workers: processes for counting; by default one a core.
    """
    from lm.tokenizer import Tokenizer, train_bpe

    if (output / "vocab.json").exists():
        raise FileExistsError(f"{output} already holds a tokenizer; name another folder, or delete it first")
    specials = special_tokens or [END_OF_TEXT]
    vocab, merges = train_bpe(text, vocab_size, specials, num_workers=workers, progress=True)
    Tokenizer(vocab, merges, specials).save(output)
    longest = max(vocab.values(), key=len)
    print(f"{output}: {len(vocab):,} tokens, {len(merges):,} merges, longest {longest.decode(errors='replace')!r}")


def encode(tokenizer: Path, text: Path, output: Path, workers: int | None = None) -> None:
    """Turn a text file into a .npy file of token ids (uint16 up to 65,536 ids, else uint32).

    Args:
        tokenizer: folder with vocab.json and merges.txt.
        text: UTF-8 text.
        output: the .npy file to write.
        workers: processes; by default one a core.
    """
    from lm.data.encode import encode_file
    from lm.tokenizer import Tokenizer

    if output.suffix != ".npy":
        raise ValueError(f"the output {output} must end in .npy")
    encoded = encode_file(Tokenizer.from_folder(tokenizer), text, output, num_workers=workers, progress=True)
    ratio = encoded.bytes / encoded.tokens
    print(f"{output}: {encoded.tokens:,} tokens, {encoded.documents:,} documents, {ratio:.3f} bytes per token")


def account(
    models: list[str],
    net: dict[str, Any] | None = None,
    batch_size: int | None = None,
    precision: TrainingPrecision | None = None,
    tokens: int | None = None,
    checkpointing: bool = False,
    memory_gb: float = 80.0,
    device: str = "H100",
    products: Precision | None = None,
    utilisation: float = 0.5,
    json: bool = False,
) -> None:
    """Print what a model costs, by component, without running it.

    Args:
        models: a preset, a YAML configuration or a run folder, then overlays; none is tinystories.
        net: fields of the model that win over those, for example --net.context_length 16384.
        batch_size: sequences of a micro-batch on one device; by default the configuration's, else 1.
        precision: float32 or bf16-mixed; by default the configuration's, else float32.
        tokens: tokens to train on; by default the configuration's.
        checkpointing: keep each block's input only, and compute the block again in the backward pass.
        memory_gb: memory for the largest batch, in GB of 10^9 bytes.
        device: a device by name, for example A100; list prints those it knows, with their peaks.
        products: type of the matrix products; by default bfloat16 for bf16-mixed, else tf32 where the device has it.
        utilisation: share of the device's peak that training reaches.
        json: print JSON instead of a table.
    """
    from json import dumps

    from lm import accounting

    if device == "list":
        print(dumps(accounting.devices(), indent=2) if json else accounting.devices_table())
        return
    workload = accounting.read_workload(models, net).changed(batch_size, precision, tokens)
    report = accounting.full_account(workload, checkpointing, round(memory_gb * 1e9), device, products, utilisation)
    print(dumps(report, indent=2) if json else accounting.as_table(report))


def sweep(study: Study) -> None:
    """Run a study: many trainings that differ in a few keys. Stopped, it goes on where it was.

    Args:
        study: what varies and how; see configs/sweeps.
    """
    from lm.experiments.sweep import run_study

    rows = run_study(study)
    columns = ["trial", "outcome", "loss", *study.search]
    widths = [max(len(name), *(len(_cell(row.get(name))) for row in rows)) for name in columns] if rows else []
    for cells in [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


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
    print(f"{output}: {found.checkpoint} for transformers' AutoModelForCausalLM and AutoTokenizer")


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
        print(f"{output}: open it with transformers.AutoTokenizer.from_pretrained")
        return
    export_tiktoken(loaded, output)
    print(f"{output}: open it with\n")
    print("import tiktoken")
    print(f"ranks = tiktoken.load.load_tiktoken_bpe({str(output)!r})")
    print(f'tiktoken.Encoding({output.stem!r}, pat_str=r"{GPT2_PATTERN}",')
    print(f"                  mergeable_ranks=ranks, special_tokens={loaded.special_ids})")


def import_model(folder: Path, run_folder: Path | None = None) -> None:
    """Make a run of a Llama-style folder of Hugging Face transformers, for generate and validate.

    Args:
        folder: holds config.json, safetensors and a tokenizer with GPT-2's pattern.
        run_folder: the run folder to make; by default the next lightning_logs/version_N.
    """
    from lm.export.from_huggingface import import_model

    made = import_model(folder, run_folder)
    print(f"run folder:  {made}")
    print(f'text:        python -m lm generate --run {made} "Once upon a time"')
    print(f"loss:        python -m lm validate --run {made} --data.train_text TEXT --data.valid_text TEXT")


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
    print(f"{output}: {len(tokenizer.vocab):,} tokens, special tokens {tokenizer.special_ids}")


def _cell(value: object) -> str:
    return (
        f"{value:.4f}"
        if isinstance(value, float) and value >= 0.1
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


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
