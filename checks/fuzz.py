"""Fuzzes everything that reads bytes from outside, with hypothesis and with atheris, and round-trips byte strings.

    python -m checks.fuzz --minutes 60 --strings 10000000 --output fuzz.json

Each target of checks/fuzz_targets.py runs in a process of its own, half of its time under each engine: hypothesis
changes valid files by a few bytes or a few values, atheris (where it is installed) looks for new paths through our
code. An input that is neither handled nor refused in one line is kept under --failures.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported late, so that atheris can instrument lm
    from checks.fuzz_targets import Ground, Target

ENGINES = ("hypothesis", "atheris")
EXAMPLES = 500  # of hypothesis between two looks at the clock
MOST_SHRINKING_S = 60


@dataclass
class Outcome:
    """What one engine did with one target."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    bug: str | None = None
    culprit: bytes = b""

    def add(self, target: "Target", ground: "Ground", data: bytes) -> None:
        """Try one more input. Raises BugError where the target neither works nor refuses it."""
        from checks.fuzz_targets import BugError, check

        self.inputs += 1
        try:
            self.accepted += check(target, ground, data)
        except BugError as error:
            self.bug, self.culprit = str(error), data
            raise

    def report(self, target: "Target", failures: Path) -> None:
        """Keep the input that failed, and print the rest as a line of JSON."""
        figures = asdict(self)
        if culprit := figures.pop("culprit"):
            failures.mkdir(parents=True, exist_ok=True)
            path = failures / f"{target.name}-{sha256(culprit).hexdigest()[:12]}"
            path.write_bytes(culprit)
            figures["bug"] = f"{path}: {self.bug}"
        print(json.dumps(figures), flush=True)


def fuzz_with_hypothesis(target: "Target", ground: "Ground", seconds: float, examples: int = EXAMPLES) -> Outcome:
    """Changed valid inputs until the time is over or a bug is found, which is then made small."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from checks.fuzz_targets import BugError
    from checks.mutated import mutations

    outcome = Outcome()
    began = time.perf_counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(mutations(list(target.seeds(ground)), target.form))
    def attempt(data: bytes) -> None:
        if time.perf_counter() - began < seconds + MOST_SHRINKING_S:
            outcome.add(target, ground, data)

    for round_ in range(1 << 40):
        with contextlib.suppress(BugError):
            seed(round_)(attempt)()
        outcome.seconds = time.perf_counter() - began
        if outcome.bug or outcome.seconds >= seconds:
            break
    return outcome


def fuzz_with_atheris(name: str, seconds: float, failures: Path) -> None:
    """libFuzzer's loop over our instrumented code; ends the process."""
    atheris = import_module("atheris")
    with atheris.instrument_imports(include=["lm"]):
        from checks.fuzz_targets import TARGETS, BugError, Ground

    target, folder = TARGETS[name], Path(tempfile.mkdtemp())
    ground, outcome = Ground(folder), Outcome()
    corpus = folder / "corpus"
    corpus.mkdir()
    seeds = list(target.seeds(ground))
    for index, data in enumerate(seeds):
        (corpus / str(index)).write_bytes(data)

    def attempt(data: bytes) -> None:
        outcome.seconds = time.perf_counter() - began
        if outcome.seconds < seconds:
            with contextlib.suppress(BugError):
                outcome.add(target, ground, data)
                return
        outcome.report(target, failures)
        os._exit(0)

    began = time.perf_counter()
    longest = max(256, 2 * max(map(len, seeds)))
    failures.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], str(corpus), f"-max_len={longest}", f"-artifact_prefix={failures}/"], attempt)
    atheris.Fuzz()


def round_trips(count: int, seed: int = 0) -> dict[str, Any]:
    """Random byte strings, through encode and decode of a trained tokenizer.

    Half are random bytes, each taken as a character U+0000 to U+00FF; half are UTF-8 of characters of any plane. Many
    strings, between special tokens, are encoded in one call, by plain Python and by compiled code in turn.
    """
    import numpy as np

    from checks.fuzz_targets import Ground
    from lm.tokenizer import END_OF_TEXT

    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
    tokenizer = ground.tokenizer
    rng, done, num_bytes, began = np.random.default_rng(seed), 0, 0, time.perf_counter()
    end = tokenizer.special_ids[END_OF_TEXT]
    while done < count:
        lengths = rng.integers(0, 12, size=min(10_000, count - done))
        highest = (0x100, 0x11_0000 - 0x800)[rng.integers(2)]
        points = rng.integers(0, highest, size=int(lengths.sum()))
        points += 0x800 * (points >= 0xD800)  # surrogates are no characters
        text = points.astype("<u4").tobytes().decode("utf-32-le")
        strings = [text[a:b] for a, b in pairwise(np.concatenate([[0], lengths.cumsum()]).tolist())]
        encoder = (ground.tokenizer, ground.compiled)[rng.integers(2)]
        ids = np.array(encoder.encode("".join(string + END_OF_TEXT for string in strings)))
        ends = np.flatnonzero(ids == end).tolist()
        if len(ends) != len(strings):
            raise SystemExit(f"{len(strings)} strings came back as {len(ends)}")
        for string, first, last in zip(strings, [-1, *ends], ends, strict=False):
            data = string.encode()
            if tokenizer.decode_bytes(ids[first + 1 : last].tolist()) != data:
                raise SystemExit(f"{data!r} does not come back")
            num_bytes += len(data)
        done += len(strings)
    return {"strings": done, "bytes": num_bytes, "seconds": round(time.perf_counter() - began, 1)}


def run_apart(engine: str, name: str, seconds: float, failures: Path) -> dict[str, Any]:
    """One engine on one target, in a process of its own; a process that dies is a bug as well."""
    command = [sys.executable, "-m", "checks.fuzz", "--engine", engine, "--only", name]
    command += ["--seconds", str(seconds), "--failures", str(failures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, errors="replace")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return {**asdict(Outcome(bug=f"ended with {done.returncode}: {last}")), "culprit": ""}
    return json.loads(lines[-1])


def campaign(names: list[str], options: argparse.Namespace) -> int:
    """All targets under all engines that are there, then the round trips; returns the exit code."""
    from benchmarks.machine import save

    engines = [engine for engine in ENGINES if find_spec(engine)]
    seconds = options.minutes * 60 / (len(engines) * len(names))
    results: dict[str, Any] = {"targets": {}}
    for name in names:
        for engine in engines:
            result = results["targets"][f"{name} {engine}"] = run_apart(engine, name, seconds, options.failures)
            figures = f"{result['inputs']:>9,} inputs, {result['accepted']:>8,} accepted, {result['seconds']:.0f} s"
            print(f"{name:16} {engine:10} {figures}: {result['bug'] or 'no bug'}", flush=True)
    if options.strings:
        results["round_trips"] = round_trips(options.strings)
        print(f"round trips: {results['round_trips']}")
    if options.output:
        save(options.output, results)
    return 1 if any(result["bug"] for result in results["targets"].values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m checks.fuzz", description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1, help="for all targets and engines together")
    parser.add_argument("--strings", type=int, default=100_000, help="byte strings to round-trip")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"), help="folder for inputs that fail")
    parser.add_argument("--only", nargs="*", help="names of targets; by default all")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine == "atheris":
        fuzz_with_atheris(options.only[0], options.seconds, options.failures)

    from checks.fuzz_targets import TARGETS, Ground

    if options.engine == "hypothesis":
        target = TARGETS[options.only[0]]
        with tempfile.TemporaryDirectory() as folder:
            fuzz_with_hypothesis(target, Ground(Path(folder)), options.seconds).report(target, options.failures)
        return 0
    return campaign(options.only or list(TARGETS), options)


if __name__ == "__main__":
    sys.exit(main())
