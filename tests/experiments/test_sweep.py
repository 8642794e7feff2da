"""Studies run what is missing, survive a kill, and keep diverged runs as results."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from lm.experiments import sweep
from lm.experiments.study import Space, Study
from lm.training.memory import MemoryAdvice

SWEEP = """
import sys
import lm.experiments.sweep as sweep
sweep.HEARTBEAT, sweep.GRACE = 1, 2
from lm.cli import main
sys.exit(main(["sweep", *sys.argv[1:]]))
"""


def study_file(folder: Path, config: Path, rates: list[float]) -> Path:
    path = folder / "study.yaml"
    search = {"model.optimizer.max_learning_rate": {"values": rates}}
    fixed: dict[str, Any] = {"model.optimizer.min_learning_rate": 0.0, "trainer.log_every_n_steps": 1, "eval_every": 3}
    study = {"name": "rates", "base": [str(config)], "search": search, "fixed": fixed}
    path.write_text(json.dumps({"study": study}))
    return path


def start(folder: Path, path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SWEEP, "--config", str(path)]
    return subprocess.Popen(
        command, cwd=folder, stdout=-1, stderr=-1, text=True, env=environment, start_new_session=True
    )


def results(folder: Path) -> list[dict[str, Any]]:
    runs = sorted(folder.glob("lightning_logs/rates/trial_*/run.json"))
    return [json.loads(run.read_text()) for run in runs]


def test_killed_study_goes_on_and_diverged_runs_are_results(tmp_path: Path, tiny_config: Path) -> None:
    path = study_file(tmp_path, tiny_config, [1e-2, 3e-3, 1e6])
    first = start(tmp_path, path)
    while not any(run["status"] == "finished" for run in results(tmp_path)):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    second = start(tmp_path, path)
    shown, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    header, *rows = [line.split() for line in shown.splitlines()]
    assert header == ["trial", "outcome", "loss", "model.optimizer.max_learning_rate"]
    outcomes = {float(row[3]): (row[1], float(row[2])) for row in rows}
    assert len(rows) == 3
    assert outcomes[1e6] == ("diverged", math.inf)
    for rate in (1e-2, 3e-3):
        outcome, loss = outcomes[rate]
        assert outcome == "complete"
        assert 0 < loss < math.log(300)
    again = start(tmp_path, path)
    assert again.communicate(timeout=100)[0] == shown  # nothing left to do


def test_ctrl_c_ends_the_runs_in_flight_and_leaves_them_to_be_tried_again(tmp_path: Path, tiny_config: Path) -> None:
    path = study_file(tmp_path, tiny_config, [1e-2, 3e-3, 1e-3])
    definition = json.loads(path.read_text())
    definition["study"]["jobs"] = 2
    path.write_text(json.dumps(definition))
    study = start(tmp_path, path)
    while not results(tmp_path):
        assert study.poll() is None, study.communicate()
        time.sleep(0.1)
    os.killpg(study.pid, signal.SIGINT)  # as a terminal does
    _, errors = study.communicate(timeout=60)
    assert (study.returncode, errors.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in errors
    with closing(sqlite3.connect(tmp_path / "lightning_logs" / "rates" / "study.db")) as stored:
        states = [state for (state,) in stored.execute("select state from trials")]
    assert len(states) == 3
    assert "FAIL" in states
    assert "RUNNING" not in states  # which would make the next launch wait until they count as dead


def test_failing_run_is_told_in_one_line(tmp_path: Path, tiny_config: Path) -> None:
    path = study_file(tmp_path, tiny_config, [-1.0])
    done = start(tmp_path, path)
    _, errors = done.communicate(timeout=100)
    assert done.returncode == 2
    assert "min_learning_rate 0.0 must lie between 0 and max_learning_rate -1.0" in errors.splitlines()[-1]


@pytest.fixture
def out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run ends so, at once."""
    line = f"error: {MemoryAdvice().line} on cuda:0; lower something"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_command", lambda *_: [sys.executable, "-c", f"import sys; sys.exit({line!r})"])


def test_running_out_of_memory_is_a_result(out_of_memory: None) -> None:
    (row,) = sweep.run_study(Study("full", [], {"data.batch_size": Space([4096])}))
    assert row == {"trial": 0, "outcome": "out of memory", "loss": math.inf, "data.batch_size": 4096}


def test_a_run_that_died_before_its_first_sign_of_life_is_tried_again(
    out_of_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "HEARTBEAT", 1)
    monkeypatch.setattr(sweep, "GRACE", 2)
    folder = tmp_path / "lightning_logs" / "dead"
    folder.mkdir(parents=True)
    dead = optuna.create_study(study_name="dead", storage=f"sqlite:///{folder / 'study.db'}")
    dead.enqueue_trial({"data.batch_size": 8})
    dead.ask()
    (row,) = sweep.run_study(Study("dead", [], {"data.batch_size": Space([8])}))
    assert row["trial"] == 1
    assert [trial.state.name for trial in dead.get_trials()] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "use letters"),
        ({"search": {}}, "search is empty"),
        ({"search": {"x": Space(low=0.0, high=1.0)}}, "needs values"),
        ({"trials": 3}, "give trials for random and tpe only"),
        ({"sampler": "tpe"}, "give trials for random and tpe only"),
        ({"jobs": 0}, "jobs is 0"),
        ({"points": [{"y": 1}, {"z": 1}]}, "the same keys"),
        ({"points": [{"x": 1}]}, "none of search's"),
        ({"points": [{"y": 1}], "sampler": "tpe", "trials": 3}, "use grid for points"),
    ],
)
def test_definitions_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"name": "a", "base": [], "search": {"x": Space(values=[1])}}
    assert Study(**good).grid() == [{"x": 1}]
    with pytest.raises(ValueError, match=message):
        Study(**{**good, **changes})


def test_points_are_run_with_every_combination() -> None:
    points = [{"batch": 1, "steps": 8}, {"batch": 8, "steps": 1}]
    study = Study("a", [], {"rate": Space([0.1, 0.2])}, points)
    assert study.grid() == [{**point, "rate": rate} for point in points for rate in (0.1, 0.2)]
    assert study.spaces == {"batch": Space([1, 8]), "steps": Space([8, 1]), "rate": Space([0.1, 0.2])}
    assert Study("a", [], points=points).grid() == points


@pytest.mark.parametrize("space", [{}, {"values": [1], "low": 0.0, "high": 1.0}, {"low": 2.0, "high": 1.0}])
def test_spaces_that_make_no_sense(space: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either values or low < high"):
        Space(**space)
