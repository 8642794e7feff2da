"""Studies over configuration keys: every trial is a normal run, in a process of its own.

Optuna keeps the study in SQLite beside the runs, so that it stops and goes on, and spreads over machines that share
the folder. A trial whose process died is noticed by its missing heartbeat and tried again; a run that diverged is a
result, with infinite loss.
"""

import json
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from lm.experiments.study import Space, Study
from lm.training.resume import DIVERGED
from lm.training.runs import LOGS

if TYPE_CHECKING:
    import optuna

HEARTBEAT = 5  # seconds between signs of life of a running trial
GRACE = 20  # seconds without one after which a trial counts as dead
POLL = 0.2
DATABASE = "study.db"
SILENT = "select number from trials where trial_id not in (select trial_id from trial_heartbeats)"


def run_study(definition: Study) -> list[dict[str, Any]]:
    """Run what is missing of a study.

    Returns:
        A row for each finished trial: number, outcome, loss and the searched keys, best first.

    Raises:
        ValueError: Optuna is missing, or a run failed other than by diverging.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError("studies need Optuna, which is not installed; run: pip install -e '.[sweep]'") from None

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed run is raised, in one line
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats are called so
    folder = LOGS / definition.name
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder / DATABASE}",
        engine_kwargs={"connect_args": {"timeout": 60}},
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
    )
    samplers = {"grid": optuna.samplers.RandomSampler, "random": optuna.samplers.RandomSampler}
    study = optuna.create_study(
        study_name=definition.name,
        storage=storage,
        sampler=samplers.get(definition.sampler, optuna.samplers.TPESampler)(seed=0),
        pruner=optuna.pruners.MedianPruner(4) if definition.prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    total = len(definition.grid()) if definition.trials is None else definition.trials
    with tqdm(desc=definition.name, total=total, unit="run", dynamic_ncols=True) as bar:
        while (todo := _queue_missing(study, definition)) or _in_flight(study):
            if todo:
                bar.update(total - todo - bar.n)
                study.optimize(lambda trial: _objective(trial, definition, bar), n_trials=todo, n_jobs=definition.jobs)
            else:
                bar.set_postfix_str(f"waiting for {_in_flight(study)} runs of another process")
                time.sleep(1)
        bar.update(total - bar.n)
    return _rows(study)


def _queue_missing(study: "optuna.Study", definition: Study) -> int:
    """How many runs are still to be started; dead ones are declared failed, and lacking grid points queued."""
    import optuna

    _fail_dead(study, LOGS / definition.name / DATABASE)
    state = optuna.trial.TrialState
    trials = study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED, state.RUNNING, state.WAITING))
    if definition.trials is not None:
        return max(0, definition.trials - sum(trial.state != state.WAITING for trial in trials))
    queued = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
    lacking = [point for point in definition.grid() if point not in queued]
    for point in lacking:
        study.enqueue_trial(point)
    return len(lacking) + sum(trial.state == state.WAITING for trial in trials)


def _fail_dead(study: "optuna.Study", database: Path) -> None:
    """Declare runs failed that give no sign of life. Optuna leaves those alone that died before their first."""
    import optuna

    optuna.storages.fail_stale_trials(study)
    with closing(sqlite3.connect(database, timeout=60)) as stored:
        silent = {number for (number,) in stored.execute(SILENT)}
    latest = datetime.now() - timedelta(seconds=GRACE)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if trial.number in silent and trial.datetime_start is not None and trial.datetime_start < latest:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def _in_flight(study: "optuna.Study") -> int:
    import optuna

    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)))


def _objective(trial: "optuna.Trial", definition: Study, bar: tqdm) -> float:
    """Run `fit` with the trial's values; its best validation loss."""
    import optuna

    values = {key: _suggest(trial, key, space) for key, space in definition.spaces.items()}
    if definition.sampler == "grid" and _is_taken(trial):
        raise optuna.TrialPruned
    folder = LOGS / definition.name / f"trial_{trial.number:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "fit.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            _command(definition, values, folder), stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )
    try:
        step = 0
        while process.poll() is None:
            time.sleep(POLL)
            facts = _facts(folder)
            if "result" in facts and facts["step"] > step:
                step = facts["step"]
                trial.report(facts["result"]["val/loss"], step)
                bar.set_postfix({"run": trial.number, "step": step, "val loss": f"{facts['result']['val/loss']:.4f}"})
                if trial.should_prune():
                    raise optuna.TrialPruned
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
    facts = _facts(folder)
    if facts.get("status") == DIVERGED:
        trial.set_user_attr("outcome", DIVERGED)
        return float("inf")
    if process.returncode != 0 or "best_loss" not in facts:
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        if "out of memory" in lines[-1]:
            trial.set_user_attr("outcome", "out of memory")
            return float("inf")
        raise ValueError(f"run {folder} ended with code {process.returncode}: {lines[-1]} (see {output})")
    return facts["best_loss"]


def _suggest(trial: "optuna.Trial", key: str, space: Space) -> Any:
    if space.values:
        return trial.suggest_categorical(key, space.values)
    assert space.low is not None
    assert space.high is not None
    return trial.suggest_float(key, space.low, space.high, log=space.log)


def _is_taken(trial: "optuna.Trial") -> bool:
    """Whether an earlier trial, perhaps of another machine, has the same values."""
    import optuna

    state = optuna.trial.TrialState
    others = trial.study.get_trials(deepcopy=False, states=(state.COMPLETE, state.RUNNING))
    return any(other.number < trial.number and other.params == trial.params for other in others)


def _command(definition: Study, values: Mapping[str, Any], folder: Path) -> list[str]:
    configs = [part for path in definition.base for part in ("--config", path)]
    keys = {**definition.fixed, **values, "run_folder": str(folder), "trainer.enable_progress_bar": False}
    options = [f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in keys.items()]
    return [sys.executable, "-m", "lm", "fit", *configs, *options]


def _facts(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _rows(study: "optuna.Study") -> list[dict[str, Any]]:
    import optuna

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    rows = [
        {
            "trial": trial.number,
            "outcome": trial.user_attrs.get("outcome", trial.state.name.lower()),
            "loss": trial.value if trial.value is not None else float("inf"),
            **trial.params,
        }
        for trial in study.get_trials(deepcopy=False, states=states)
        if trial.intermediate_values or trial.value is not None
    ]
    return sorted(rows, key=lambda row: row["loss"])
