"""lm-evaluation-harness over a model of ours: its `LM` interface, and its tasks by name.

Needs the extra `evaluate`. On several ranks each of them runs the harness over all examples, and the requests are
dealt out below it, in `score.py`: to the harness it looks like one process, and its results are the same everywhere.
"""

import logging
from dataclasses import dataclass
from typing import Any

from llama_foundation.errors import ConfigError
from llama_train.evaluate.score import Generation, Scorer
from llama_train.evaluate.task_files import unknown_task

try:
    from lm_eval.api.model import LM
except ImportError as error:
    raise ConfigError(
        "tasks of lm-evaluation-harness need its package: pip install 'llama-train[evaluate]'; "
        f"tasks in files (task_files=DIR) do not ({error})"
    ) from error

MAX_NEW_TOKENS = 256
"""Of a generation whose task sets no limit, as in the harness' Hugging Face backend."""

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {"until", "do_sample", "temperature", "top_p", *_LIMITS}


@dataclass
class HarnessModel(LM):
    """What the harness asks, answered by a `Scorer`."""

    scorer: Scorer
    seed: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        answers = self.scorer.likelihoods([request.args for request in requests])
        return [(answer.log_likelihood, answer.greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        return self.scorer.rolling_likelihoods([request.args[0] for request in requests])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return self.scorer.generate(
            [generation(*request.args, self.seed + number) for number, request in enumerate(requests)]
        )


def generation(context: str, settings: dict[str, Any], seed: int) -> Generation:
    """Turn a harness request into ours.

    Raises:
        ConfigError: the task sets something that is not known here.
    """
    unknown = sorted(settings.keys() - _KNOWN)
    if unknown:
        raise ConfigError(f"generation_kwargs: {', '.join(unknown)} is not known; known: {', '.join(sorted(_KNOWN))}")
    until = settings.get("until") or []
    temperature = float(settings.get("temperature", 0.0))
    limit = next((settings[name] for name in _LIMITS if settings.get(name) is not None), MAX_NEW_TOKENS)
    return Generation(
        context,
        (until,) if isinstance(until, str) else tuple(until),
        int(limit),
        temperature if settings.get("do_sample", temperature > 0) else 0.0,
        float(settings.get("top_p", 1.0)),
        seed,
    )


def run_harness(
    scorer: Scorer, names: list[str], directory: str | None, limit: int, shots: int | None
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness by name.

    Args:
        directory: of more tasks, as YAML files; None: only those that come with the harness.
        limit: examples of each task; 0: all.
        shots: examples shown before each; None: what each task says.

    Returns:
        task or group → metric → value.

    Raises:
        ConfigError: there is no such task.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    manager = TaskManager(include_path=directory)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(unknown_task(name, list(manager.all_tasks), "lm-evaluation-harness"))
    results = simple_evaluate(
        HarnessModel(scorer),
        tasks=list(names),
        task_manager=manager,
        num_fewshot=shots,
        limit=limit or None,
        bootstrap_iters=0,
        log_samples=False,
    )
    assert results is not None, "every rank is rank 0 to the harness"
    return {name: _numbers(reported) for name, reported in results["results"].items()}


def _numbers(reported: dict[str, Any]) -> dict[str, float]:
    """Name metrics as in `task_files.py`: the harness writes "acc,none" and "acc_stderr,none"."""
    return {
        name.removesuffix(",none"): float(value) for name, value in reported.items() if isinstance(value, int | float)
    }
