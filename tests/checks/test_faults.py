"""The short forms of checks/faults.py and checks/mutations.py."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checks.faulty_files import FaultyFiles
from checks.mutations import ROOT, planted
from checks.planted import FAULTS, Fault

WRITER = """
import os, sys
from pathlib import Path
from checks.faulty_files import FaultyFiles
layer = FaultyFiles(Path.cwd(), *map(int, sys.argv[1:]))
layer.install()
try:
    Path("new").mkdir()
    Path("new/a.tmp").write_text("1234", encoding="utf-8")
    with open("new/b", "wb") as file:
        file.write(b"56")
        file.flush()
        os.fsync(file.fileno())
    os.replace("new/a.tmp", "new/a")
except OSError as error:
    print(error.errno, os.path.basename(error.filename))
print(layer.operations)
"""
OPERATIONS = [
    "mkdir new",
    "open new/a.tmp",
    "write new/a.tmp",
    "open new/b",
    "write new/b",
    "fsync new/b",
    "rename new/a",
]


def write(folder: Path, *options: int) -> list[str]:
    command = [sys.executable, "-c", WRITER, *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_layer_sees_every_operation_and_spoils_none(tmp_path: Path) -> None:
    (operations,) = write(tmp_path)
    assert operations == str([tuple(operation.split()) for operation in OPERATIONS])
    assert (tmp_path / "new/a").read_text() == "1234"
    assert (tmp_path / "new/b").read_bytes() == b"56"


@pytest.mark.parametrize(("number", "choice", "code"), [(0, 0, errno.EACCES), (2, 0, errno.ENOSPC), (6, 1, errno.EIO)])
def test_the_layer_fails_where_it_is_told_to(tmp_path: Path, number: int, choice: int, code: int) -> None:
    failed, operations = write(tmp_path, number, choice)
    assert failed == f"{code} {OPERATIONS[number].split('/')[-1].split()[-1]}"
    assert operations.count("(") > number
    if number == 2:
        assert (tmp_path / "new/a.tmp").read_text() != "1234"


def test_what_lies_elsewhere_is_left_alone(tmp_path: Path) -> None:
    layer = FaultyFiles(tmp_path)
    assert layer.covers(tmp_path / "a/b")
    assert not layer.covers(tmp_path.parent / "a")
    assert not layer.covers("/dev/null")


def test_killed_and_broken_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "checks.faults", "--kills", "5", "--writes", "3", "--output", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())["results"]
    assert found["problems"] == []
    assert found["kills"]["kills"] >= 5
    assert found["writes"]["faults"] == 3


@pytest.mark.parametrize("fault", [fault for faults in FAULTS.values() for fault in faults])
def test_faults_can_be_planted(fault: Fault) -> None:
    compile(planted(fault), fault.file, "exec")
    assert (ROOT / "tests" / fault.tests.split("::")[0]).exists()
