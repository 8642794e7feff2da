"""Plants deliberate faults, one at a time, in a copy of the repository, and sees whether the tests notice.

    python -m checks.mutations --output mutations.json

The faults are those of checks/planted.py; each names the tests that must fail. Exit code 1 if a fault survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import save
from checks.planted import FAULTS, Fault

ROOT = Path(__file__).parent.parent
COPIED = ("lm", "tests", "checks", "benchmarks", "configs", "docs", "README.md", "pyproject.toml")


def copy_repository(folder: Path) -> None:
    """What the tests need, without anything compiled."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def planted(fault: Fault, root: Path = ROOT) -> str:
    """The file's text with the fault. Raises ValueError unless what it replaces is there exactly once."""
    text = (root / "lm" / fault.file).read_text(encoding="utf-8")
    if (found := text.count(fault.old)) != 1:
        raise ValueError(f"{fault.old!r} is {found} times in lm/{fault.file}; a fault needs one place")
    return text.replace(fault.old, fault.new)


def run_tests(folder: Path, tests: str, cache: Path) -> tuple[bool, str]:
    """Whether the tests pass in the copy (compiled kernels are made before), and the last line they print."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(cache)}
    compile_first = [sys.executable, "-c", "from lm.tokenizer import native; native.kernels()"]
    subprocess.run(compile_first, cwd=folder, env=environment, capture_output=True)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{tests}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, (failed or done.stdout.splitlines() or [done.stderr])[-1]


def campaign(faults: list[tuple[str, Fault]], folder: Path) -> list[dict[str, Any]]:
    """What happened to each fault. Raises SystemExit where the tests fail without one."""
    copy_repository(folder)
    cache = folder / "cache"
    for tests in sorted({fault.tests for _, fault in faults}):
        passed, last = run_tests(folder, tests, cache)
        if not passed:
            raise SystemExit(f"tests/{tests} fails without any fault: {last}")
    rows = []
    for kind, fault in faults:
        path = folder / "lm" / fault.file
        whole = path.read_text(encoding="utf-8")
        began = time.perf_counter()
        path.write_text(planted(fault, folder), encoding="utf-8")
        try:
            passed, last = run_tests(folder, fault.tests, cache)
        finally:
            path.write_text(whole, encoding="utf-8")
        seconds = round(time.perf_counter() - began, 1)
        rows.append({"kind": kind, **fault._asdict(), "caught": not passed, "by": last, "seconds": seconds})
        print(f"{'SURVIVED' if passed else 'caught  '} {seconds:5} s  {fault.file}: {fault.new!r}: {last}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m checks.mutations", description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", choices=FAULTS, default=list(FAULTS), help="kinds of faults; by default all"
    )
    parser.add_argument("--file", help="only faults in files whose path holds this")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    faults = [(kind, fault) for kind in options.only for fault in FAULTS[kind] if (options.file or "") in fault.file]
    with tempfile.TemporaryDirectory() as folder:
        rows = campaign(faults, Path(folder))
    survived = [row for row in rows if not row["caught"]]
    print(f"{len(rows)} faults, {len(rows) - len(survived)} caught, {len(survived)} survived")
    if options.output:
        save(options.output, rows)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
