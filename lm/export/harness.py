"""EleutherAI's lm-evaluation-harness on our runs, without an export. Needs the extra `eval`.

Shape letters: B requests of a batch, T time, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lm.generation import SamplingConfig
from lm.loaded import LoadedRun
from lm.tokenizer import END_OF_TEXT

BATCH = 16
MAX_NEW_TOKENS = 256  # where a task names no limit, as the harness's own models


class HarnessModel(TemplateLM):
    """A loaded run as the harness asks for it: likelihoods of continuations, and text up to stop strings.

    Raises:
        ValueError: the tokenizer has no end-of-text token, which stands before the first token of a text.
    """

    def __init__(self, loaded: LoadedRun) -> None:
        super().__init__()
        self.loaded = loaded
        self.context = loaded.model.config.context_length
        if END_OF_TEXT not in loaded.tokenizer.special_ids:
            raise ValueError(f"the tokenizer of {loaded.run.folder} has no {END_OF_TEXT}; take a run that has it")

    @property
    def eot_token_id(self) -> int:
        return self.loaded.tokenizer.special_ids[END_OF_TEXT]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.loaded.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """(-nats, whether greedy decoding would write it) for each (texts, ids before, ids). Long contexts are cut."""
        scores: list[tuple[float, bool]] = []
        with self.loaded.precision(), torch.inference_mode():
            for first in range(0, len(requests), BATCH):
                scores += self._score([(before, ids) for _, before, ids in requests[first : first + BATCH]])
        return scores

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        for _, ids in pairs:
            if len(ids) > self.context:
                raise ValueError(
                    f"a continuation has {len(ids)} tokens, more than the model's context_length {self.context}; "
                    f"leave the task out, or take a run with a longer context"
                )
        rows = [[*before, *ids][-self.context - 1 :] for before, ids in pairs]
        longest = max(map(len, rows)) - 1
        ids_BT = torch.tensor([row[:-1] + [0] * (longest - len(row) + 1) for row in rows], device=self.loaded.device)
        logprobs_BTV = self.loaded.model(ids_BT).float().log_softmax(-1)
        scores = []
        for logprobs_TV, row, (_, ids) in zip(logprobs_BTV, rows, pairs, strict=True):
            there_TV = logprobs_TV[len(row) - 1 - len(ids) : len(row) - 1]
            targets_T = torch.tensor(ids, device=there_TV.device)
            total = float(there_TV.gather(-1, targets_T[:, None]).double().sum())
            scores.append((total, bool((there_TV.argmax(-1) == targets_T).all())))
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        totals = []
        for request in requests:
            ids = self.loaded.tokenizer.encode(request.args[0])
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.context, context_len=1)
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(nats for nats, _ in self._loglikelihood_tokens(parts)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        arguments: list[Any] = [request.args for request in requests]
        for index, (_, options) in enumerate(arguments):
            groups.setdefault(repr(sorted(options.items())), []).append(index)
        for group in groups.values():
            for first in range(0, len(group), BATCH):
                part = group[first : first + BATCH]
                prompts = [arguments[index][0] for index in part]
                for index, text in zip(part, self._continue(prompts, arguments[part[0]][1]), strict=True):
                    texts[index] = text
        return texts

    def _continue(self, prompts: list[str], options: dict[str, Any]) -> list[str]:
        until = options.get("until") or []
        stop = [string for string in ([until] if isinstance(until, str) else until) if string]
        sampled = options.get("do_sample", options.get("temperature", 0) > 0)
        sampling = SamplingConfig(
            temperature=options.get("temperature", 1.0) if sampled else 0,
            top_k=options.get("top_k") if sampled else None,
            top_p=options.get("top_p") if sampled else None,
        )
        limit = options.get("max_gen_toks", MAX_NEW_TOKENS)
        return [row.text for row in self.loaded.complete(prompts, limit, sampling, seed=0, stop=stop)]


def evaluate(
    loaded: LoadedRun, tasks: list[str], few_shots: int | None, limit: int | None, folder: Path | None
) -> dict[str, Any]:
    """The harness's results: under `results`, the figures of each task.

    Args:
        loaded: the run.
        tasks: names of tasks.
        few_shots: worked examples in each prompt; by default the task's own.
        limit: questions of each task; by default all.
        folder: holds YAML files of tasks, which are taken instead of the harness's own.

    Raises:
        ValueError: there is no such task.
    """
    manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        where = folder or "the harness"
        raise ValueError(f"{where} has no task {', '.join(unknown)}; `lm_eval ls tasks` names the harness's")
    results = simple_evaluate(
        HarnessModel(loaded), tasks=list(tasks), num_fewshot=few_shots, limit=limit, task_manager=manager
    )
    assert results is not None  # None is for the other processes of a distributed evaluation
    return dict(results)
