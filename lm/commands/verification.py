"""Files held to the digests that were written with them."""

from pathlib import Path

from lm.terminal import say


def verify(paths: list[str]) -> None:
    """Check every byte of runs and of token files; the first that is not as it was written is named.

    Args:
        paths: run folders, checkpoint files, or folders of token files; none: the newest run.
    """
    from lm.training.runs import find_run

    for path in map(Path, paths or [str(find_run().folder)]):
        if (path / "meta.json").is_file():
            _verify_tokens(path)
        else:
            _verify_run(path)


def _verify_run(path: Path) -> None:
    import json

    from lm.training.runs import Run, find_run

    found = find_run(path)
    checkpoints = [found.checkpoint] if path.is_file() else sorted((path / "checkpoints").glob("*.ckpt"))
    for checkpoint in checkpoints:
        run = Run(found.folder, checkpoint)
        run.load_tokenizer()
        run.load_model()
        say(f"{checkpoint}: whole, at step {run.contents['global_step']}, with its tokenizer")
    record = found.folder / "run.json"
    tokens = json.loads(record.read_text(encoding="utf-8")).get("tokens_folder") if record.is_file() else None
    if tokens is not None and Path(tokens).is_dir():
        _verify_tokens(Path(tokens))


def _verify_tokens(folder: Path) -> None:
    from lm.data.tokens import TokenFiles

    TokenFiles(folder).verify()
    say(f"{folder}: train.npy and valid.npy are as they were written")
