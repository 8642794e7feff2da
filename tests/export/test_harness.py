"""The harness on a run, against its own backend for transformers on the run's export. Needs the extra `eval`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.cli import main
from lm.export.to_huggingface import export_run
from lm.loaded import LoadedRun, load

pytest.importorskip("lm_eval", reason='the extra eval is not installed: pip install -e ".[eval]"')
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness's own libraries

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
WRITING = """
task: tiny_writing
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e", "zz"], max_gen_toks: 9, do_sample: false}
metric_list: [{metric: exact_match}]
"""
QUESTIONS = [
    {
        "question": f"Once there was a {animal}. The",
        "choices": [f" {animal} ran.", " moon", " x y"],
        "answer": 0,
        "text": f"Once there was a {animal} who saw a ball. " * (index + 1),
    }
    for index, animal in enumerate(("cat", "dog", "bird", "fox", "frog"))
]


@pytest.fixture(scope="module")
def loaded(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(tiny_config)]) == 0
    return load(folder / "lightning_logs" / "version_0", "cpu")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks whose questions lie in it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder, questions = tmp_path / "tasks", tmp_path / "questions.jsonl"
    folder.mkdir()
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS), encoding="utf-8")
    for name, text in {"choice": CHOICE, "rolling": ROLLING, "writing": WRITING}.items():
        (folder / f"{name}.yaml").write_text(text.replace("QUESTIONS", str(questions)), encoding="utf-8")
    return folder


def of_transformers(folder: Path) -> Any:
    from lm_eval.models import huggingface

    backend: Any = huggingface.HFLM
    return backend(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)


def figures(results: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {
        (task, name): value for task, row in results.items() for name, value in row.items() if isinstance(value, float)
    }


def test_equals_the_harness_on_the_export(
    loaded: LoadedRun, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = ["tiny_choice", "tiny_rolling", "tiny_writing"]
    options = ["--run", str(loaded.run.folder), "--task_folder", str(tasks), "--json", "--device", "cpu"]
    assert main(["evaluate", *names, *options]) == 0
    ours = figures(json.loads(capsys.readouterr().out))
    export_run(loaded.run, tmp_path / "hf")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results: Any = simple_evaluate(of_transformers(tmp_path / "hf"), tasks=list(names), task_manager=manager)
    theirs = figures(results["results"])
    assert len(theirs) >= 5
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_requests_one_by_one_equal_those_of_transformers(loaded: LoadedRun, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance

    from lm.export.harness import HarnessModel

    def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
        return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]

    export_run(loaded.run, tmp_path / "hf")
    theirs = of_transformers(tmp_path / "hf")
    ours = HarnessModel(loaded)
    long = "The cat saw the dog and the bird. " * 5
    pairs = requests("loglikelihood", ("Once ", "there"), ("", "A cat"), (long, "ran home."), ("The cat", " e"))
    for (a, greedy_a), (b, greedy_b) in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert (a, greedy_a) == (pytest.approx(b, rel=1e-5), greedy_b)
    texts = requests("loglikelihood_rolling", (long,), ("A",), (long[:70],))
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-5)
    options = {"until": ["zz", "."], "max_gen_toks": 8, "do_sample": False}
    prompts = requests("generate_until", ("Once", options), ("The cat", options), ("A", options | {"max_gen_toks": 3}))
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)
    following = loaded.model(torch.tensor([loaded.tokenizer.encode("Once there")]))[0, -1].argmax()
    greedy = requests("loglikelihood", ("Once there", loaded.tokenizer.decode([int(following)])))
    assert ours.loglikelihood(greedy)[0][1]


def test_refusals(loaded: LoadedRun, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lm.export.harness import HarnessModel

    assert main(["evaluate", "--run", str(loaded.run.folder)]) == 2
    assert "0 tasks" in capsys.readouterr().err
    assert main(["evaluate", "gone", "--task_folder", str(tasks), "--run", str(loaded.run.folder)]) == 2
    assert "tasks has no task gone" in capsys.readouterr().err
    ids = loaded.tokenizer.encode("The cat saw the dog. " * 20)
    with pytest.raises(ValueError, match="more than the model's context_length 32"):
        HarnessModel(loaded)._loglikelihood_tokens([(None, [1], ids)])
