"""The command line: a table of commands, each imported only when it runs, and one-line errors.

`fit` and `validate` are Lightning's own command line with a few keys added; the other commands are the plain
functions of lm.commands, whose signatures and docstrings jsonargparse turns into options and help.
"""

import argparse
import errno
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from lm.terminal import PrintableFormatter, printable

COMMANDS = {
    "fit": "train a model: text, tokenizer, tokens, training, validation and a story, in one go",
    "validate": "validation loss of a run's best checkpoint (of the newest run, without further words)",
    "generate": "write text with a run's best checkpoint (of the newest run, without further words)",
    "score": "loss, perplexity and bits per byte of any text or token file",
    "evaluate": "run tasks of EleutherAI's lm-evaluation-harness on a run",
    "sweep": "run a study: many trainings that differ in a few keys",
    "report": "compare runs: one HTML page, Markdown with figures, and a CSV table",
    "prepare": "make the text, the tokenizer and the token files of a source, without training",
    "train-tokenizer": "train a byte-level BPE tokenizer on texts",
    "count": "count the pre-tokens of a text or a shard of it, to train a tokenizer on many machines",
    "encode": "turn a text file, or a shard of it, into a file of token ids",
    "join-tokens": "put the token files of a text's shards together",
    "tokenizer-stats": "bytes per token, longest tokens and speed of tokenizers on texts",
    "verify": "check every byte of runs and token files against their digests",
    "export": "write a run as a folder that Hugging Face transformers opens",
    "export-tokenizer": "write a tokenizer for Hugging Face transformers or tiktoken",
    "import": "make a run of a Llama-style folder of Hugging Face transformers",
    "import-tokenizer": "make a tokenizer folder of tokenizer.json, vocab.json and merges.txt, or a tiktoken rank file",
    "account": "parameters, FLOPs, memory and time of a model, worked out without running it",
}
# Where in lm.commands each command is; fit and validate are in lm.training.
FUNCTIONS = {
    "generate": "generation.generate",
    "score": "generation.score",
    "evaluate": "generation.evaluate",
    "sweep": "experiments.sweep",
    "report": "experiments.report",
    "prepare": "data.prepare",
    "train-tokenizer": "data.train_tokenizer",
    "count": "data.count",
    "encode": "data.encode",
    "join-tokens": "data.join_tokens",
    "tokenizer-stats": "data.tokenizer_stats",
    "verify": "verification.verify",
    "export": "export.export",
    "export-tokenizer": "export.export_tokenizer",
    "import": "export.import_model",
    "import-tokenizer": "export.import_tokenizer",
    "account": "accounting.account",
}
# What signatures do not make: lists of words without an option's name, and options without a value.
LISTS = {
    "train-tokenizer": ("texts", "UTF-8 texts, files of counts, or both"),
    "count": ("texts", "UTF-8 texts"),
    "join-tokens": ("parts", "the shards' token files, in order"),
    "tokenizer-stats": ("texts", "UTF-8 texts"),
    "generate": ("prompts", "texts to continue; none: a new document"),
    "evaluate": ("tasks", "names of the harness's tasks, for example lambada_openai"),
    "report": ("runs", "run folders, or folders of runs, such as a study's"),
    "verify": ("paths", "run folders, checkpoints or folders of token files; none: the newest run"),
    "account": ("models", "a preset, a YAML configuration or a run folder, then overlays; none: tinystories"),
}
SWITCHES = {
    "tokenizer-stats": {"json": "print JSON instead of a table"},
    "generate": {
        "json": "print a line of JSON for each text",
        "logprobs": "add token ids and their log-probabilities under the model to the JSON",
        "interactive": "read prompts from the terminal, a line each, until Ctrl-D; Ctrl-C ends a text",
    },
    "score": {"json": "print JSON instead of a line"},
    "evaluate": {"json": "print JSON instead of a table"},
    "account": {
        "checkpointing": "keep each block's input only, and compute the block again in the backward pass",
        "json": "print JSON instead of a table",
    },
}
PACKAGE = Path(__file__).parent
ADVICE = {  # what to do about an error that the system names
    errno.ENOSPC: "make room on the disk, then give the command again",
    errno.EDQUOT: "delete files or raise the quota, then give the command again",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), then give the command again",
    errno.EACCES: "get the right to it, or name another place",
    errno.EROFS: "name a place that can be written",
}
USAGE_ERROR = 2
INTERRUPTED = 130
TERMINATED = 143


def main(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else USAGE_ERROR
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"error: there is no command {command!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE_ERROR
    said = logging.StreamHandler()
    said.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[said], level=logging.WARNING)
    logging.getLogger("lm").setLevel(logging.INFO)
    threading.excepthook = _thread_failed
    try:
        _check_encoding(rest)
        return run_lightning(command, rest) if command not in FUNCTIONS else run_tool(command, rest)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left, as `| head` does
        return 0
    except (ValueError, OSError, argparse.ArgumentError) as error:
        if not _is_users_mistake(error):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m lm COMMAND [OPTIONS]",
            "",
            "A small language model's whole life, from raw text to stories.",
            "",
            *lines,
            "",
            "python -m lm COMMAND --help explains a command's options.",
            "First run: python -m lm fit --config configs/quickstart.yaml",
        ]
    )


def _check_encoding(arguments: list[str]) -> None:
    """Raises ValueError for a configuration that is not UTF-8, over which the option parser would stumble."""
    for name, value in pairwise([*arguments, ""]):
        if name == "--config" or name.startswith("--config="):
            path = Path(value if name == "--config" else name.removeprefix("--config="))
            try:
                if path.is_file():
                    path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 at offset {error.start}; save it as UTF-8") from None


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread hands a full disk's error on to whoever logs next, who is told in one line."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _is_users_mistake(error: BaseException) -> bool:
    """Whether our code or the option parser raised the error on purpose, or the system did, as for a full disk.

    Anything else is a bug, shown in full.
    """
    if os.environ.get("LM_TRACEBACK"):
        return False
    origin = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    of_a_path = str(error) == "embedded null byte"  # the system's word on a file name
    return isinstance(error, argparse.ArgumentError | OSError) or of_a_path or PACKAGE in origin.parents


def _one_line(error: BaseException) -> str:
    """The message, in one line, without characters that a terminal would obey."""
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        message = f"{error.strerror}: {name}" if name else error.strerror
        if error.errno in ADVICE:
            message += f"; {ADVICE[error.errno]}"
    else:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = "; ".join(lines).replace(":;", ":") if lines else type(error).__name__
    return printable(message)


def run_tool(command: str, arguments: list[str]) -> int:
    """Parse a command's options from the function's signature, and call it."""
    from jsonargparse import ArgumentParser

    module, name = FUNCTIONS[command].split(".")
    function = getattr(_import(f"lm.commands.{module}"), name)
    parser = ArgumentParser(prog=f"python -m lm {command}", description=COMMANDS[command], exit_on_error=False)
    switches = SWITCHES.get(command, {})
    added: set[str | int] = set(switches)
    if command in LISTS:
        name, text = LISTS[command]
        added.add(name)
        parser.add_argument(name, nargs="*", type=str, default=[], help=text)
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=added)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    options = parser.instantiate_classes(parser.parse_args(arguments)).as_dict()
    options.pop("config", None)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        function(**options)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _terminate(number: int, frame: object) -> NoReturn:
    """Leave as after an error, so that files half written are removed."""
    raise SystemExit(TERMINATED)


def run_lightning(command: str, arguments: list[str]) -> int:
    """`fit` or `validate`, through LightningCLI."""
    return _import("lm.training.lightning_cli").run(command, arguments, COMMANDS[command])


def _import(name: str) -> ModuleType:
    """The module. What an import makes stays to the end, and is not searched for garbage: neither now nor at exit."""
    if name in sys.modules:
        return sys.modules[name]
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()
