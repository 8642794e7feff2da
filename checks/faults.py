"""Kills and broken writes over the whole line: text, tokenizer, tokens, training with checkpoints and validations.

    python -m checks.faults --kills 200 --writes 60 --output faults.json

Kills: SIGKILL at random times, again and again, until the command that goes on from what is there ends by itself; then
its text, tokenizer, tokens, weights and optimizer state must be, bit for bit, those of a run that was never stopped.
Writes: one file operation fails (no space, no permission, half a write, ...); the command must say one line and end
with another exit code than 0, no file may be damaged, and the next command must come to the same bits.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import save
from checks.faulty_files import FaultyFiles
from checks.line import damaged, fit, fork, is_over, newest_run, outcome, wait


class Campaign:
    """A reference run, and runs that are disturbed.

    Args:
        folder: empty; gets a folder for each run.
        seed: draws times and operations.
        processes: of each run; with several, they train under DDP and are killed together.
    """

    def __init__(self, folder: Path, seed: int, processes: int = 1) -> None:
        self.folder = folder
        self.processes = processes
        self.rng = random.Random(seed)
        self.problems: list[str] = []
        whole = self.new("whole")
        began = time.perf_counter()
        child = fork(fit(whole, processes), whole)
        while stage(whole) not in ("starting", "training") and time.perf_counter() - began < 60:
            time.sleep(0.002)
        self.preparing = time.perf_counter() - began
        if wait(child):
            raise SystemExit(f"the undisturbed run failed: {(whole / 'said.txt').read_text()}")
        self.seconds = time.perf_counter() - began
        self.expected = outcome(whole)

    def new(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path

    def end(self, folder: Path) -> None:
        """Compare a run that has ended with the undisturbed one."""
        found = outcome(folder)
        names = sorted(self.expected.keys() | found.keys())
        if differing := [name for name in names if found.get(name) != self.expected.get(name)]:
            self.problems.append(f"{folder.name}: other bits in {', '.join(differing[:5])}")
        shutil.rmtree(folder)

    def look(self, folder: Path, when: str) -> None:
        self.problems += [f"{folder.name}, {when}: damaged {name}" for name in damaged(folder)]

    def kill(self, kills: int) -> dict[str, Any]:
        """Disturb runs until so many kills have hit; while there are no tokens, mostly before they are made."""
        done = runs = 0
        stages: dict[str, int] = {}
        while done < kills:
            folder = self.new(f"killed-{runs}")
            runs += 1
            while not is_over(folder):
                fresh, began = newest_run(folder) is None, time.perf_counter()
                child = fork(fit(folder, self.processes), folder)
                code = self._wait_or_kill(child, self._moment(folder))
                if code != -signal.SIGKILL:
                    if fresh:
                        self._hurry(time.perf_counter() - began)
                    break
                done += 1
                self.look(folder, "after a kill")
                stages[stage(folder)] = stages.get(stage(folder), 0) + 1
            if is_over(folder):
                self.end(folder)
            else:
                said = (folder / "said.txt").read_text(errors="replace").strip()
                self.problems.append(f"{folder.name}: lost: {said[-300:]}")
        return {"kills": done, "runs": runs, "hit_during": stages}

    def _hurry(self, seconds: float) -> None:
        """A whole run took less than the undisturbed one, on a machine less busy now: kills come earlier with it."""
        share = min(1.0, seconds / self.seconds)
        self.seconds *= share
        self.preparing *= share

    def _moment(self, folder: Path) -> float:
        """Seconds until a kill."""
        if self.processes > 1:  # whose start takes longest
            return self.rng.uniform(0.8 * self.preparing, 1.3 * self.seconds)
        early = stage(folder) not in ("starting", "training") and self.rng.random() < 0.7
        return self.rng.uniform(0, self.preparing if early else 1.6 * self.seconds)

    @staticmethod
    def _wait_or_kill(child: int, seconds: float) -> int:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.killpg(child, signal.SIGKILL)
        return wait(child)

    def break_writes(self, count: int) -> dict[str, Any]:
        """Let so many operations fail, one a run, spread evenly over all that a run does."""
        operations = self._operations()
        # Every kind of operation on every file once, then any.
        first = list({operation: number for number, operation in reversed([*enumerate(operations)])}.values())
        self.rng.shuffle(first)
        kinds: dict[str, int] = {}
        recovered = 0
        for index in range(count):
            number = first[index] if index < len(first) else self.rng.randrange(len(operations))
            kind, path = operations[number]
            kinds[kind] = kinds.get(kind, 0) + 1
            folder = self.new(f"broken-{index}")
            layer = FaultyFiles(folder, number, choice=index, lasting=index % 2 == 1)
            what = f"{kind} {path} (operation {number}, {layer.choice % 2}, {layer.lasting})"
            work = fit(folder)
            code = wait(fork(lambda layer=layer, work=work: layer.install() or work(), folder))
            said = (folder / "said.txt").read_text(errors="replace")
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            if code == 0:
                recovered += 1
            elif len(errors) != 1 or "Traceback" in said or code < 0:
                self.problems.append(f"{what}: exit code {code}, said {said[-600:]!r}")
            self.look(folder, what)
            if code and not is_over(folder) and (code := wait(fork(fit(folder), folder))):
                said = (folder / "said.txt").read_text(errors="replace")
                self.problems.append(f"{what}: lost, then exit code {code}: {said[-300:]!r}")
                continue
            self.end(folder)
        return {
            "faults": count,
            "of_operations": len(operations),
            "on_files": len({path for _, path in operations}),
            "kinds": kinds,
            "recovered": recovered,
        }

    def _operations(self) -> list[tuple[str, str]]:
        folder = self.new("counted")
        layer, work = FaultyFiles(folder), fit(folder)

        def count() -> int:
            layer.install()
            code = work()
            Path("operations.json").write_text(json.dumps(layer.operations))
            return code

        if code := wait(fork(count, folder)):
            raise SystemExit(f"the run with counted operations ended with {code}")
        return [(kind, path) for kind, path in json.loads((folder / "operations.json").read_text())]


def stage(folder: Path) -> str:
    """How far a run has come, by what is there."""
    for name, pattern in (
        ("training", "lightning_logs/version_*/checkpoints/*.ckpt"),
        ("starting", "data/*/tokens-*/meta.json"),
        ("encoding", "tokenizers/*/vocab.json"),
        ("tokenizer", "data/*/valid.txt"),
    ):
        if any(folder.glob(pattern)):
            return name
    return "text"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m checks.faults", description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="processes to kill")
    parser.add_argument("--ddp_kills", type=int, default=0, help="pairs of processes under DDP to kill")
    parser.add_argument("--writes", type=int, default=60, help="file operations that fail")
    parser.add_argument("--seed", type=int, default=0, help="draws times and operations")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    began = time.perf_counter()
    results: dict[str, Any] = {"seed": options.seed}
    problems: list[str] = []
    for name, count, processes in (("kills", options.kills, 1), ("ddp_kills", options.ddp_kills, 2)):
        if count:
            with tempfile.TemporaryDirectory() as folder:
                campaign = Campaign(Path(folder).resolve(), options.seed, processes)
                results[name] = campaign.kill(count)
                problems += campaign.problems
    if options.writes:
        with tempfile.TemporaryDirectory() as folder:
            campaign = Campaign(Path(folder).resolve(), options.seed)
            results["writes"] = campaign.break_writes(options.writes)
            problems += campaign.problems
    results["seconds"] = round(time.perf_counter() - began, 1)
    results["problems"] = problems
    print("\n".join(problems))
    print(json.dumps({**results, "problems": len(problems)}))
    if options.output:
        save(options.output, results)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
