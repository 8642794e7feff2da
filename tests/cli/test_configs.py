"""Every configuration parses through the real parser, builds the model it claims, and explains each group of keys."""

import re
from pathlib import Path

import pytest
import yaml

from lm.accounting import count_parameters
from lm.cli import main
from lm.model.config import ModelConfig

CONFIGS = Path(__file__).parents[2] / "configs"
MAIN = sorted(CONFIGS.glob("*.yaml"))
ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))


def parsed(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict:
    """The whole configuration, as `fit --print_config` shows it."""
    arguments = [part for path in paths for part in ("--config", str(path))]
    assert main(["fit", *arguments, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def tokens(config: dict) -> int:
    return config["trainer"]["max_steps"] * config["data"]["batch_size"] * config["model"]["net"]["context_length"]


def net(config: dict) -> ModelConfig:
    return ModelConfig(**config["model"]["net"])


@pytest.fixture(autouse=True)
def arguments_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lm"])


@pytest.mark.parametrize("path", MAIN, ids=lambda p: p.stem)
def test_configuration_parses_to_what_it_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, config = yaml.safe_load(path.read_text(encoding="utf-8")), parsed(capsys, path)
    for part in ("net", "optimizer"):
        for key, value in written["model"][part].items():
            assert config["model"][part][key] == value, key
    for group in ("trainer", "data"):
        for key, value in written[group].items():
            assert config[group][key] == value, key
    assert count_parameters(net(config)).total > 0


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_ablation_changes_its_own_keys_only(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = parsed(capsys, CONFIGS / "tinystories.yaml")
    config = parsed(capsys, CONFIGS / "tinystories.yaml", path)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["net"]
    assert config["model"]["net"] == base["model"]["net"] | written
    net(config)
    for group in ("trainer", "data"):
        assert config[group] == base[group]


def test_main_run_has_the_courses_shape_and_budget(capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(capsys, CONFIGS / "tinystories.yaml")
    assert count_parameters(net(config)).total == 22_696_448
    assert tokens(config) == 327_680_000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quickstart", 2_457_600),
        ("tinystories_cpu", 40_960_000),
        ("data_efficiency", 40_960_000),
        ("openwebtext", 327_680_000),
    ],
)
def test_budgets_are_those_of_the_readme(name: str, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokens(parsed(capsys, CONFIGS / f"{name}.yaml")) == expected
    row = re.search(rf"^\| `configs/{name}\.yaml` .*$", (CONFIGS.parent / "README.md").read_text("utf-8"), re.M)
    assert row is not None
    assert f"{expected:,}" in row[0]


@pytest.mark.parametrize("path", MAIN, ids=lambda p: p.stem)
def test_keys_are_commented(path: Path) -> None:
    """Every key has a comment of its own right above it."""
    commented = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("#"):
            commented = True
        elif line.strip():
            assert commented, f"{path.name}:{number} has no comment: {line.strip()}"
            commented = False
