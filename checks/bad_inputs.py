"""Bad inputs to every command, and the page of the one-line messages that they get.

    python -m checks.bad_inputs

writes docs/bad_inputs.md. tests/cli/test_bad_input_table.py runs the same cases and compares.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from lm.cli import main as lm

PAGE = Path(__file__).parent.parent / "docs" / "bad_inputs.md"
NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:9"}
LONGEST = 400  # characters of a message on the page
STORY = "Once there was a small red cat. It sat on a mat and sang to the moon.\n<|endoftext|>\n" * 60
CONFIG = """
eval_every: 2
checkpoint_every: 2
trainer: {accelerator: cpu, max_steps: 2, enable_progress_bar: false}
data: {source: text, train_text: train.txt, valid_text: valid.txt, batch_size: 2, workers: 1}
model:
  net: {vocab_size: 280, context_length: 8, d_model: 8, num_layers: 1, num_heads: 2}
  optimizer: {max_learning_rate: 1.0e-3, warmup_iters: 0}
"""
FILES = {
    "config.yaml": CONFIG,
    "train.txt": STORY,
    "valid.txt": STORY,
    "other.txt": STORY.replace("cat", "dog"),
    "empty.txt": "",
    "separators.txt": "<|endoftext|>" * 40,
    "list.yaml": "[1, 2]\n",
    "null.yaml": 'trainer: "\\0"\n',
    "broken.yaml": "model: {net: [\n",
    "study.yaml": "study: {name: a/b, base: [config.yaml], search: {}}\n",
    "no_values.yaml": "study: {name: x, base: [config.yaml], search: {data.seed: {low: 1, high: 2}}}\n",
    "broken/checkpoints/noise.ckpt": "no checkpoint at all",
    "noise.tiktoken": "no ranks\n",
    "llama/config.json": "{",
    "gpt2/config.json": json.dumps({"model_type": "gpt2", "hidden_size": 8, "num_attention_heads": 2}),
    "unigram/tokenizer.json": json.dumps({"model": {"type": "Unigram"}, "added_tokens": []}),
    "half/vocab.json": "{}",
    "half/merges.txt": "#version: 0.2\na\n",
    "no_json/vocab.json": "{'a': 1}",
    "no_json/merges.txt": "",
}
GENERAL = [
    "fit --config none.yaml",
    "fit --config latin.txt",
    "fit --config broken.yaml",
    "fit --config list.yaml",
    "fit --config null.yaml",
]
FIT = [
    "--model.net.d_modle 3",
    "--model.net.d_model wide",
    "--model.net.d_model 0",
    "--model.net.d_model 20 --model.net.num_heads 3",
    "--model.net.d_model 6 --model.net.num_heads 2",
    "--model.net.ffn relu",
    "--model.net.dropout 1.5",
    "--model.net.context_length 100000",
    "--model.net.vocab_size 100",
    "--model.optimizer.min_learning_rate 1.0",
    "--model.optimizer.max_l2_norm 0",
    "--model.optimizer.warmup_iters -1",
    "--model.optimizer.weight_decay -1",
    "--model.optimizer.betas [0.9,1.5]",
    "--data.source wiki",
    "--data.source stories",
    "--data.train_text gone.txt",
    "--data.train_text .",
    "--data.train_text empty.txt",
    "--data.train_text latin.txt",
    "--data.train_text separators.txt",
    "--data.train_text null",
    "--data.source stories --data.stories.train_seed 1",
    "--data.batch_size 0",
    "--data.valid_batch_size 0",
    "--data.batch_size 7 --trainer.accumulate_grad_batches 2",
    "--data.tokenizer half",
    "--data.workers 0",
    "--eval_every 0",
    "--checkpoint_every 0",
    "--run_folder lightning_logs/version_0",
    "--trainer.max_steps 0",
    "--trainer.devices 0",
    "--trainer.precision 8",
    "--trainer.strategy fsdp --model.optimizer.algorithm muon",
    "--trainer.logger os.system",
    "--trainer.callbacks subprocess.Popen",
    "--ckpt_path gone.ckpt",
    "--ckpt_path broken/checkpoints/noise.ckpt",
    "--ckpt_path broken/checkpoints/foreign.ckpt",
    "--ckpt_path broken/checkpoints/cut.ckpt",
    f"--ckpt_path {(best := 'lightning_logs/version_0/checkpoints/best.ckpt')}",
    f"--ckpt_path {best} --trainer.max_steps 4 --model.net.d_model 16",
    f"--ckpt_path {best} --trainer.max_steps 4 --data.train_text other.txt",
    f"--ckpt_path {best} --trainer.max_steps 4 --seed_everything 5",
]
OTHERS = [
    "fit --resume --run_folder gone",
    "fit --resume --run_folder empty_run",
    "fit --resume --ckpt_path broken/checkpoints/cut.ckpt",
    "validate --run runs/1",
    "validate --ckpt_path broken/checkpoints/cut.ckpt",
    "generate --run runs/1",
    "generate --run broken/checkpoints/noise.ckpt",
    "generate --run empty_run",
    "generate --device cuda:9",
    "generate --top_p 2",
    "generate --top_k 0",
    "generate --temperature -1",
    "generate --min_p 2",
    "generate --repetition_penalty 0",
    "generate --num_samples 0",
    "generate --logprobs",
    "generate --max_new_tokens 0",
    "generate --seed -1",
    "score gone.txt",
    "score empty.txt",
    "score latin.txt",
    "score train.txt --stride 0",
    "score train.txt --run empty_run",
    "prepare --source wiki",
    "prepare --source text",
    "prepare --source text --train_text train.txt --valid_text gone.txt",
    "prepare --source tinystories",
    "prepare --source text --train_text train.txt --valid_text valid.txt --vocab_size 10",
    "train-tokenizer",
    "train-tokenizer gone.txt made",
    "train-tokenizer empty.txt made",
    "train-tokenizer latin.txt made",
    "train-tokenizer train.txt lightning_logs/version_0/tokenizer",
    "train-tokenizer train.txt made --vocab_size 10",
    "train-tokenizer train.txt made --workers 0",
    "train-tokenizer train.txt made --special_tokens [x]",
    "train-tokenizer train.txt made --special_tokens ['<a>','<a>']",
    "train-tokenizer train.txt train.txt/made",
    "count gone.txt made.counts",
    "count train.txt made.counts --shard 3 --shards 2",
    "join-tokens gone.npy made.npy",
    "join-tokens noise.tiktoken made.npy",
    "tokenizer-stats gone.txt",
    "tokenizer-stats train.txt --tokenizers empty_run",
    "encode gone train.txt made.npy",
    "encode half train.txt made.npy",
    "encode no_json train.txt made.npy",
    "encode lightning_logs/version_0/tokenizer gone.txt made.npy",
    "encode lightning_logs/version_0/tokenizer empty.txt made.npy",
    "encode lightning_logs/version_0/tokenizer latin.txt made.npy",
    "encode lightning_logs/version_0/tokenizer train.txt made.txt",
    "encode lightning_logs/version_0/tokenizer train.txt train.txt/made.npy",
    "export made --run runs/1",
    "export llama",
    "export-tokenizer gone made",
    "export-tokenizer lightning_logs/version_0/tokenizer llama",
    "export-tokenizer lightning_logs/version_0/tokenizer made --format yaml",
    "import gone",
    "import llama",
    "import gpt2",
    "import-tokenizer gone made",
    "import-tokenizer noise.tiktoken made",
    "import-tokenizer unigram made",
    "import-tokenizer lightning_logs/version_0/tokenizer llama",
    "account gpt5",
    "account list.yaml",
    "account broken.yaml",
    "account --device abacus",
    "account llama-7b --gpus 12",
    "account llama-7b --gpus 32 --tensor_parallel 16",
    "account llama-7b --tensor_parallel 2",
    "account --batch_size 0",
    "account --memory_gb -1",
    "account --utilisation 2",
    "account --net.d_modle 3",
    "account --net.d_model 20 --net.num_heads 3",
    "sweep --config gone.yaml",
    "sweep --config study.yaml",
    "sweep --config no_values.yaml",
]
COMMANDS = [*GENERAL, *(f"fit --config config.yaml {options}" for options in FIT), *OTHERS]


@dataclass(frozen=True)
class Answer:
    """What a command said and did."""

    code: int | str | None
    errors: list[str]
    said: str


class Workshop:
    """A folder with texts, damaged files and one small run, in which every command of the table fails.

    Args:
        folder: empty; the commands run in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        for name, text in FILES.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (self.folder / "latin.txt").write_bytes(b"caf\xe9 au lait\n" * 50)
        (self.folder / "empty_run").mkdir()
        torch.save({"state_dict": {}}, self.folder / "broken/checkpoints/foreign.ckpt")
        trained = self.run("fit --config config.yaml")
        assert trained.code == 0, trained
        whole = (self.folder / "lightning_logs/version_0/checkpoints/best.ckpt").read_bytes()
        (self.folder / "broken/checkpoints/cut.ckpt").write_bytes(whole[: len(whole) // 2])

    def run(self, command: str) -> Answer:
        """Run one command in the folder, in this process."""
        said = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                code = lm(shlex.split(command))
            except SystemExit as stop:
                code = stop.code
        text = said.getvalue().replace(f"{self.folder}/", "").replace(str(self.folder), ".")
        return Answer(code, [line for line in text.splitlines() if line.startswith("error: ")], text)

    def files(self) -> dict[str, int]:
        """Everything that matters on disk, with its time of change."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): path.stat().st_mtime_ns for path in paths if path.suffix not in (".lock", ".json")}


def page(answers: dict[str, Answer]) -> str:
    """The table, in Markdown."""
    rows = [
        f"| `{command}` | {_cell(answer.errors[0].removeprefix('error: '))} |" for command, answer in answers.items()
    ]
    return "\n".join(
        [
            "# Bad inputs",
            "",
            "What a mistake gets: one line on standard error, exit code 2, and no file changed. This page is made by",
            "`python -m checks.bad_inputs`; a test runs the same commands and compares. They run in a folder with a",
            "small run (`lightning_logs/version_0`, 2 steps) and damaged files of all kinds.",
            "",
            "| `python -m lm ...` | `error: ...` |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def _cell(text: str) -> str:
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    return shown.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def ask_all(workshop: Workshop) -> dict[str, Answer]:
    """Every command's answer, in the order of the page."""
    return {command: workshop.run(command) for command in COMMANDS}


def main() -> int:
    argparse.ArgumentParser(prog="python -m checks.bad_inputs", description=str(__doc__).splitlines()[0]).parse_args()
    os.environ.update(NO_NETWORK)
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(ask_all(Workshop(Path(folder)))), encoding="utf-8")
    print(f"{PAGE}: {len(COMMANDS)} bad inputs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
