import logging
import re
from copy import deepcopy
from typing import Any

import pytest

import lm
from lm.training.resume import FORMAT, check_resume, code_version

IDENTITY: dict[str, Any] = {
    "format": FORMAT,
    "version": "0.1.0",
    "net": {"d_model": 64, "dropout": 0.0},
    "optimizer": {"max_learning_rate": 1e-3, "betas": (0.9, 0.95)},
    "data": {"tokenizer": "abc", "seed": 0, "batch_size": 8, "valid_text": "v"},
    "run": {"code": "0.1.0 at abc", "torch": "2.13.0", "precision": "32-true", "devices": 1},
    "trainer": {"accumulate_grad_batches": 1},
    "max_steps": 100,
}
SAVED: dict[str, Any] = {"lm": IDENTITY, "global_step": 40, "optimizer_states": []}


def changed(**parts: Any) -> dict[str, Any]:
    now = deepcopy(IDENTITY)
    for part, value in parts.items():
        now[part] = {**now[part], **value} if isinstance(value, dict) else value
    return now


def test_same_run_passes_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    saved = changed(optimizer={"betas": [0.9, 0.95]})  # lists and tuples are the same thing in a checkpoint
    check_resume({**SAVED, "lm": saved}, IDENTITY, training=True)
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": {"d_model": 128}}, "net.d_model is 64 in the checkpoint and 128 here"),
        ({"optimizer": {"algorithm": "muon"}}, "optimizer.algorithm is adamw in the checkpoint and muon here"),
        ({"data": {"seed": 1}}, "data.seed is 0 in the checkpoint and 1 here"),
        ({"data": {"tokenizer": "xyz"}}, "data.tokenizer is abc"),
        ({"data": {"batch_size": 16}}, "data.batch_size is 8"),
        ({"trainer": {"accumulate_grad_batches": 2}}, "trainer.accumulate_grad_batches is 1 in the checkpoint and 2"),
    ],
)
def test_conflicts_are_refused_with_both_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_resume(SAVED, changed(**change), training=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": 200}, "trainer.max_steps: 200 now, the checkpoint had 100"),
        ({"optimizer": {"max_learning_rate": 2e-3}}, "optimizer.max_learning_rate: 0.002 now"),
        ({"net": {"dropout": 0.1}}, "net.dropout: 0.1 now"),
        ({"data": {"valid_text": "w"}}, "data.valid_text: w now, the checkpoint had v"),
        ({"run": {"code": "0.1.0 at def+"}}, "run.code: 0.1.0 at def+ now, the checkpoint had 0.1.0 at abc"),
        ({"run": {"torch": "2.14.0"}}, "run.torch: 2.14.0 now, the checkpoint had 2.13.0"),
        ({"run": {"precision": "bf16-mixed", "devices": 2}}, "run.devices: 2 now, the checkpoint had 1"),
    ],
)
def test_allowed_changes_are_said(change: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lm"):
        check_resume(SAVED, changed(**change), training=True)
    assert message in caplog.text


def test_validation_asks_for_the_model_and_the_tokenizer_only(caplog: pytest.LogCaptureFixture) -> None:
    now = changed(data={"seed": 1, "batch_size": 3}, trainer={"accumulate_grad_batches": 4}, max_steps=5)
    check_resume(SAVED, now, training=False)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"data\.tokenizer"):
        check_resume(SAVED, changed(data={"tokenizer": "xyz"}), training=False)


@pytest.mark.parametrize("max_steps", [40, 39])
def test_training_that_is_over_is_not_resumed(max_steps: int) -> None:
    with pytest.raises(ValueError, match=f"at step 40 and trainer.max_steps is {max_steps}; raise trainer.max_steps"):
        check_resume(SAVED, changed(max_steps=max_steps), training=True)


@pytest.mark.parametrize("checkpoint", [{}, {"lm": 3}, {"lm": {"format": 99}}])
def test_foreign_checkpoints_are_refused(checkpoint: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not written by this version"):
        check_resume(checkpoint, IDENTITY, training=True)


def test_checkpoints_of_weights_alone_are_no_start_for_training() -> None:
    weights = {"lm": IDENTITY, "global_step": 0}
    check_resume(weights, IDENTITY, training=False)
    with pytest.raises(ValueError, match="weights only"):
        check_resume(weights, IDENTITY, training=True)


def test_older_checkpoints_that_lack_a_fact_say_nothing_about_it(caplog: pytest.LogCaptureFixture) -> None:
    older = {key: value for key, value in IDENTITY.items() if key != "run"}
    older["data"] = {key: value for key, value in IDENTITY["data"].items() if key != "valid_text"}
    check_resume({**SAVED, "lm": older}, IDENTITY, training=True)
    assert not caplog.records


def test_code_version_names_the_commit_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(rf"{re.escape(lm.__version__)}( at [0-9a-f]{{12,40}}\+?)?", code_version())
    code_version.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert code_version() == lm.__version__
    code_version.cache_clear()
