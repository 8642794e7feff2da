"""What is fuzzed: each target takes any bytes, and must either work or refuse them as a user's mistake.

A refusal is a ValueError or OSError raised by code of lm, with one line. Anything else is a bug: another
exception, a crash, or a result that disagrees with an independent one.
"""

import contextlib
import io
import json
import random
import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import tiktoken

import lm
from lm.cli import main
from lm.data.encode import encode_file
from lm.data.sampler import get_batch
from lm.data.tokens import TokenFiles
from lm.export.tokenizer_formats import GPT2_PATTERN, export_huggingface, export_tiktoken, read_tokenizer
from lm.terminal import printable
from lm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe
from lm.tokenizer.bpe import WARM_FROM
from lm.tokenizer.layout import COMPILE_FROM
from lm.training.runs import find_run

PACKAGE = Path(lm.__file__).parent
CONFIG = """
trainer: {accelerator: cpu, max_steps: 1, enable_progress_bar: false}
data: {stories: {train_bytes: 20000, valid_bytes: 3000}, batch_size: 2, workers: 1}
model:
  net: {vocab_size: 280, context_length: 8, d_model: 8, num_layers: 1, num_heads: 2, rope_theta: 1.0e+4}
  optimizer: {max_learning_rate: 1.0e-3, warmup_iters: 0, betas: [0.9, 0.95]}
"""
SAMPLE = f"Once they'd seen 12 boats.\n\n  Größe 小猫 😀{END_OF_TEXT}end"


class BugError(AssertionError):
    """A target did something that is neither right nor a refusal."""


@dataclass
class Ground:
    """A folder with one valid file of each kind, and a place for mutated ones."""

    folder: Path
    tokenizer: Tokenizer = field(init=False)
    compiled: Tokenizer = field(init=False)
    rival: tiktoken.Encoding = field(init=False)
    originals: dict[Path, bytes] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Trains a model for one step, which makes every kind of file."""
        config = self.folder / "config.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()):
            code = main(["fit", "--config", str(config)])
        if code:
            raise BugError(f"the fuzzer's own training ended with exit code {code}")
        self.tokenizer = Tokenizer.from_folder(self.run / "tokenizer")
        merges = self.run / "tokenizer/merges.txt"  # without its digest, which no change gets past
        merges.write_text(re.sub(" sha256:.*", "", merges.read_text(encoding="utf-8")), encoding="utf-8")
        self.compiled = Tokenizer.from_folder(self.run / "tokenizer")
        self.compiled.encoders(COMPILE_FROM)  # from now on it encodes all but short texts by compiled code
        export_huggingface(self.tokenizer, self.folder / "huggingface")
        export_tiktoken(self.tokenizer, self.folder / "own.tiktoken")
        specials = self.tokenizer.special_ids
        ranks = {token: id_ for id_, token in self.tokenizer.vocab.items() if id_ not in specials.values()}
        self.rival = tiktoken.Encoding("own", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=specials)

    @property
    def run(self) -> Path:
        return self.folder / "lightning_logs" / "version_0"

    @property
    def tokens(self) -> Path:
        return next(self.folder.glob("data/*/tokens-*"))

    def original(self, path: Path) -> bytes:
        """The valid contents of a file."""
        return self.originals.setdefault(path, path.read_bytes())

    @contextlib.contextmanager
    def mutated(self, path: Path, data: bytes):
        """The file with other contents, for a while."""
        before = self.original(path)
        path.write_bytes(data)
        try:
            yield path
        finally:
            path.write_bytes(before)


def is_refusal(error: BaseException) -> bool:
    """Whether an exception is a user's mistake told in one line by code of lm."""
    origin = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, ValueError | OSError) and PACKAGE in origin.parents and len(str(error).splitlines()) == 1


def check(target: "Target", ground: Ground, data: bytes) -> bool:
    """Run a target; returns whether it worked (False: it refused).

    Raises:
        BugError: it did neither.
    """
    try:
        return target.run(ground, data) is not False
    except BugError:
        raise
    except Exception as error:
        if is_refusal(error):
            return False
        raise BugError(f"{target.name}: {type(error).__name__}: {error}") from error


def require(condition: bool, message: str) -> None:
    if not condition:
        raise BugError(message)


def _same_as_rival(ground: Ground, text: str) -> None:
    ids = ground.tokenizer.encode(text)
    require(ids == ground.rival.encode(text, allowed_special="all"), f"ids of {text!r} are not tiktoken's")
    require(ground.tokenizer.decode(ids) == text, f"{text!r} does not come back")
    rng = random.Random(len(text))
    cuts = [0, *sorted(rng.randrange(len(text) + 1) for _ in range(3)), len(text)]
    pieces = (text[a:b] for a, b in pairwise(cuts))
    require(list(ground.tokenizer.encode_iterable(pieces)) == ids, f"pieces of {text!r} have other ids")


def _text(ground: Ground, data: bytes) -> None:
    _same_as_rival(ground, data.decode("utf-8", errors="replace"))


def _compiled(ground: Ground, data: bytes) -> None:
    text = data.decode("utf-8", errors="replace") or "x"
    text *= 2 + WARM_FROM // len(text)
    ids = ground.rival.encode(text, allowed_special="all")
    require(ground.compiled.encode(text) == ids, f"compiled code's ids of {data!r} are not tiktoken's")


def _surrogates(ground: Ground, data: bytes) -> None:
    text = data.decode("utf-8", errors="surrogateescape")
    ids = ground.tokenizer.encode(text)
    require(not any(0xD800 <= ord(c) < 0xE000 for c in text), "a lone surrogate was encoded")
    require(ground.tokenizer.decode(ids) == text, f"{text!r} does not come back")


def _ids(ground: Ground, data: bytes) -> None:
    small = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.int64)
    vocab = ground.tokenizer.vocab
    for ids in (
        small.tolist(),
        (small % len(vocab)).tolist(),
        np.frombuffer(data[: len(data) // 8 * 8], "<i8").tolist(),
    ):
        known = all(id_ in vocab for id_ in ids)
        try:
            result = ground.tokenizer.decode_bytes(ids)
        except ValueError as error:
            require(not known and is_refusal(error), f"{ids} was refused: {error}")
            continue
        require(known and result == b"".join(vocab[id_] for id_ in ids), f"{ids} decode to {result!r}")
        require(ground.tokenizer.decode(ids) == result.decode("utf-8", "replace"), f"{ids}: decode, decode_bytes")


def _text_file(ground: Ground, data: bytes) -> None:
    path, output = ground.folder / "text.txt", ground.folder / "text.npy"
    path.write_bytes(data)
    output.unlink(missing_ok=True)
    try:
        encode_file(ground.tokenizer, path, output, num_workers=1)
    except (ValueError, OSError):
        require(not output.exists(), "a refused text left a token file")
        raise
    text = data.decode("utf-8")
    require(np.load(output).tolist() == ground.tokenizer.encode(text), f"the file of {text!r} has other ids")
    vocab, merges = train_bpe(path, 300, [END_OF_TEXT], num_workers=1)
    own = Tokenizer(vocab, merges, [END_OF_TEXT])
    require(own.decode(own.encode(text)) == text, f"a tokenizer trained on {text!r} loses it")


def _tokenizer_works(tokenizer: Tokenizer) -> None:
    require(tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE, "a tokenizer that was accepted loses text")
    require(len(tokenizer.digest) == 64, "a tokenizer that was accepted has no digest")


def _vocabulary(ground: Ground, data: bytes) -> None:
    folder = ground.run / "tokenizer"
    with ground.mutated(folder / "vocab.json", data):
        _tokenizer_works(Tokenizer.from_folder(folder))


def _merges(ground: Ground, data: bytes) -> None:
    folder = ground.run / "tokenizer"
    with ground.mutated(folder / "merges.txt", data):
        _tokenizer_works(Tokenizer.from_folder(folder))


def _huggingface(ground: Ground, data: bytes) -> None:
    with ground.mutated(ground.folder / "huggingface/tokenizer.json", data) as path:
        _tokenizer_works(read_tokenizer(path))


def _ranks(ground: Ground, data: bytes) -> None:
    with ground.mutated(ground.folder / "own.tiktoken", data) as path:
        _tokenizer_works(read_tokenizer(path))


def _open_tokens(ground: Ground) -> None:
    files = TokenFiles(ground.tokens)
    files.check_ids(ground.tokenizer.vocab_size)
    inputs, targets = get_batch(files.train, 4, 8, "cpu")
    require(int(inputs.min()) >= 0 and int(targets.max()) < ground.tokenizer.vocab_size, "unknown ids in a batch")
    require(files.meta.valid.bits_per_byte(1.0) >= 0, "the meta data make no sense")


def _tokens(ground: Ground, data: bytes) -> None:
    with ground.mutated(ground.tokens / "train.npy", data):
        _open_tokens(ground)


def _meta(ground: Ground, data: bytes) -> None:
    with ground.mutated(ground.tokens / "meta.json", data):
        _open_tokens(ground)


def _checkpoint(ground: Ground, data: bytes) -> None:
    with ground.mutated(ground.run / "checkpoints/best.ckpt", data):
        model = find_run(ground.run).load_model()
        require(model.config.vocab_size > 0, "a model without ids")


def _command(arguments: list[str]) -> bool:
    """Whether a command works; else it says one line and ends with exit code 2."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    require((code, len(lines)) in ((0, 0), (2, 1)), f"exit code {code}, said {said.getvalue()!r}")
    require(all(printable(line) == line for line in lines), f"not printable: {lines}")
    return code == 0


def _config(ground: Ground, data: bytes) -> bool:
    with ground.mutated(ground.folder / "config.yaml", data) as path:
        return _command(["fit", "--config", str(path), "--print_config"])


def _account(ground: Ground, data: bytes) -> bool:
    with ground.mutated(ground.folder / "config.yaml", data) as path:
        return _command(["account", str(path)])


def _file(*parts: str) -> Callable[[Ground], Iterable[bytes]]:
    return lambda ground: [ground.original(ground.folder.joinpath(*parts))]


@dataclass(frozen=True)
class Target:
    """Something that reads bytes from outside: valid inputs, and the check of any."""

    name: str
    seeds: Callable[[Ground], Iterable[bytes]]
    run: Callable[[Ground, bytes], bool | None]
    form: str = "bytes"


_ALL = [
    Target("text", lambda ground: [SAMPLE.encode()], _text),
    Target("compiled", lambda ground: [SAMPLE.encode()], _compiled),
    Target("surrogates", lambda ground: [SAMPLE.encode(), b"\xed\xa0\x80"], _surrogates),
    Target("ids", lambda ground: [np.arange(-2, 20, dtype="<i2").tobytes()], _ids),
    Target("text-file", lambda ground: [SAMPLE.encode() * 3], _text_file),
    Target("vocab.json", lambda ground: [ground.original(ground.run / "tokenizer/vocab.json")], _vocabulary, "json"),
    Target("merges.txt", lambda ground: [ground.original(ground.run / "tokenizer/merges.txt")], _merges),
    Target("tokenizer.json", _file("huggingface", "tokenizer.json"), _huggingface, "json"),
    Target("tiktoken-ranks", _file("own.tiktoken"), _ranks),
    Target("train.npy", lambda ground: [ground.original(ground.tokens / "train.npy")], _tokens),
    Target("meta.json", lambda ground: [ground.original(ground.tokens / "meta.json")], _meta, "json"),
    Target("checkpoint", lambda ground: [ground.original(ground.run / "checkpoints/best.ckpt")], _checkpoint),
    Target("config", lambda ground: [CONFIG.encode(), json.dumps({"model": {}}).encode()], _config, "yaml"),
    Target("account", lambda ground: [CONFIG.encode()], _account, "yaml"),
]
TARGETS = {target.name: target for target in _ALL}
