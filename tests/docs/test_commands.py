"""Commands of README and the handbook, carried out one after the other beside a small run."""

import gc
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.tools import blocks
from lm.cli import main

SMALL_NET = {"vocab_size": 300, "context_length": 16, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32}
STORY = "Once upon a time there was a {}. The {} saw a dog.\n<|endoftext|>\n"
BLOCKS = [block for page in blocks.PAGES for block in blocks.blocks(page) if block.is_carried_out]


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of seconds, with every key of the one given that says what is done and not how much."""
    config["eval_every"] = config["checkpoint_every"] = 2
    config["trainer"] |= {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False}
    config["data"] |= {"batch_size": 4, "workers": 1}
    config["model"]["net"] |= SMALL_NET
    if config["data"]["source"] == "stories":
        config["data"]["stories"] = {"train_bytes": 20_000, "valid_bytes": 4_000}
    return config


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what readers have: small configurations, texts, a finished run, one cut off, and a Llama."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copytree(blocks.ROOT / "configs", folder / "configs")
    for path in (folder / "configs").glob("*.yaml"):
        config = shrink(yaml.safe_load(path.read_text(encoding="utf-8")))
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
    texts = {"train": "cat mouse bird horse", "valid": "goat sheep"}
    for split, animals in texts.items():
        text = "".join(STORY.format(animal, animal) * 20 for animal in animals.split())
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
        there = folder / "data" / "tinystories" / f"TinyStoriesV2-GPT4-{split}.txt"  # as if downloaded
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit = ["fit", "--config", "configs/quickstart.yaml", "--data.tokenizer", "tokenizers/mine", "--run_folder"]
        for number in (0, 3):
            assert main([*fit, f"lightning_logs/version_{number}"]) == 0
        assert main(["export", "some-llama", "--run", "lightning_logs/version_0"]) == 0
        cut_off = Path("lightning_logs/version_3/config.yaml")
        cut_off.write_text(cut_off.read_text(encoding="utf-8").replace("max_steps: 2", "max_steps: 3"))
    return folder


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page.relative_to(blocks.ROOT)}:{block.line}")
def test_commands_are_carried_out(
    block: blocks.Block,
    workshop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(workshop, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    if "train-tokenizer" in block.code:  # into a new folder
        shutil.rmtree("tokenizers/mine")
    for command in block.commands:
        shortened = re.sub(r"(--trainer\.max_steps) \d+", r"\1 4", command)
        capsys.readouterr()
        gc.collect()  # a run's lock is held until its process ends, or what trained is gone
        try:
            code = main(shlex.split(shortened)[3:])
        except SystemExit as stop:  # of --print_config
            code = stop.code
        assert not code, f"{command}\n{capsys.readouterr().err}"
