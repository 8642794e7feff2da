"""Every bad input of checks/bad_inputs.py gets one line and exit code 2, changes no file, and is in the docs."""

import os
import sys
from collections.abc import Iterator

import pytest

from checks.bad_inputs import COMMANDS, NO_NETWORK, PAGE, Answer, Workshop, ask_all, page

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # Lightning 2.6 on torch 2.13


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Answer]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lm"])
        for name, value in NO_NETWORK.items():
            patch.setenv(name, value)
        workshop = Workshop(tmp_path_factory.mktemp("bad_inputs"))
        before = workshop.files()
        environment = dict(os.environ)
        yield ask_all(workshop)
        for name in os.environ.keys() - environment.keys():  # Lightning's ranks, from strategies of several processes
            del os.environ[name]
        assert {path: changed for path, changed in workshop.files().items() if path in before} == before


@pytest.mark.parametrize("command", COMMANDS)
def test_one_line_and_exit_code_2(command: str, answers: dict[str, Answer]) -> None:
    answer = answers[command]
    assert answer.code == 2, answer
    assert len(answer.errors) == 1, answer
    assert answer.errors[0].isprintable()
    assert "Traceback" not in answer.said


def test_the_page_shows_these_messages(answers: dict[str, Answer]) -> None:
    assert len(set(COMMANDS)) == len(COMMANDS) >= 60
    assert page(answers) == PAGE.read_text(encoding="utf-8"), "run python -m checks.bad_inputs"
