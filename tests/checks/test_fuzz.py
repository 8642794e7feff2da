"""The short form of checks/fuzz.py; its long form runs for an hour."""

import pytest

from checks.fuzz import fuzz_with_hypothesis, round_trips
from checks.fuzz_targets import TARGETS, BugError, Ground, Target, check

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # Lightning 2.6 on torch 2.13


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_damaged_input_is_handled_or_refused_in_one_line(target: Target, ground: Ground) -> None:
    outcome = fuzz_with_hypothesis(target, ground, seconds=0, examples=30)
    assert outcome.bug is None, outcome
    assert outcome.inputs >= 30


@pytest.mark.parametrize(("name", "data"), [("config", 'trainer: {"\\uD7FC": 1}')], ids=["no character, no control"])
def test_what_once_failed(name: str, data: str, ground: Ground) -> None:
    assert not check(TARGETS[name], ground, data.encode())


def test_a_bug_is_found_and_made_small(ground: Ground) -> None:
    def refuses_nothing(ground: Ground, data: bytes) -> None:
        if b"x" in data:
            raise KeyError(data)

    outcome = fuzz_with_hypothesis(Target("buggy", lambda ground: [b"abcdefgh" * 9], refuses_nothing), ground, 5)
    assert outcome.culprit == b"x"
    assert outcome.bug is not None
    assert "KeyError" in outcome.bug
    assert issubclass(BugError, AssertionError)


def test_byte_strings_come_back() -> None:
    assert round_trips(20_000)["strings"] == 20_000
