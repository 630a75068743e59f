"""What a model makes of a task from a file: its metrics, and the texts that were generated for them.

Answers are taken out of generated texts as lm-evaluation-harness does where it has the task (EleutherAI/
lm-evaluation-harness 0.4.13: lm_eval/tasks/gsm8k/gsm8k.yaml, lm_eval/tasks/humaneval/humaneval.yaml).
"""

import math
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llama_train.evaluate.run_code import passes
from llama_train.evaluate.score import Generation, Scorer
from llama_train.evaluate.task_files import ANSWER_IS, Task, gsm8k_prompt

MAX_NEW_TOKENS = {"generation": 32, "reasoning": 256, "gsm8k": 256, "code": 1024}
"""Of one generated text, by kind; the harness' for the last two."""

UNTIL = {
    "generation": ("\n",),
    "reasoning": ("\n\n", "Question:"),  # LLM Foundry's, scripts/eval/yamls/tasks_v0.3.yaml
    "gsm8k": ("Question:", "</s>", "<|im_end|>"),
    "code": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"),  # Chen et al. 2021, section 3.2
}
"""Where a generated text ends, by kind; the end is left out."""

_STRICT_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_ANY_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


@dataclass(frozen=True)
class TaskResult:
    """How a model did on a task."""

    numbers: dict[str, float | int | str]  # kind, examples, shots, metrics and their standard errors
    samples: list[dict[str, str]] = field(default_factory=list)  # what was generated, if anything, for each example


def run_task(task: Task, scorer: Scorer, execute_code: bool = False) -> TaskResult:
    """Ask the model all examples; every rank gets the same answer.

    `acc` is the share of examples that are right. Of multiple choice, `acc_norm` compares log-likelihoods per
    character of the choice, as lm-evaluation-harness does. `perplexity` is exp of the mean loss per continuation.
    `pass@1` is the share of programs that pass their test.

    Args:
        execute_code: run the programs of a code task; without it, they are only generated.
    """
    samples = [] if task.kind not in UNTIL else _generated(task, scorer)
    numbers: dict[str, float | int | str] = {
        "kind": task.kind,
        "examples": len(task.examples),
        "shots": task.shots,
    }
    if task.kind == "code":
        metrics = {"pass@1": _passed(task, samples, scorer)} if execute_code else {}
    elif samples:
        metrics = FROM_TEXTS[task.kind](task.examples, [sample["completion"] for sample in samples])
    else:
        metrics = FROM_LIKELIHOODS[task.kind](task, scorer)
    for name, values in metrics.items():
        mean = sum(values) / len(values)
        if name == "perplexity":
            numbers[name] = math.exp(-mean) if -mean < 700 else math.inf
            continue
        numbers[name] = mean
        if len(values) > 1:
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            numbers[f"{name}_stderr"] = math.sqrt(variance / len(values))
    return TaskResult(numbers, samples)


def _multiple_choice(task: Task, scorer: Scorer) -> dict[str, list[float]]:
    pairs = [(task.before(e) + e["query"] + task.delimiter, choice) for e in task.examples for choice in e["choices"]]
    scores = iter(scorer.likelihoods(pairs))
    right, right_normed = [], []
    for example in task.examples:
        values = [next(scores).log_likelihood for _ in example["choices"]]
        normed = [value / max(len(choice), 1) for value, choice in zip(values, example["choices"], strict=True)]
        right.append(float(_best(values) == example["gold"]))
        right_normed.append(float(_best(normed) == example["gold"]))
    return {"acc": right, "acc_norm": right_normed}


def _schema(task: Task, scorer: Scorer) -> dict[str, list[float]]:
    pairs = [
        (task.before(e) + context + task.delimiter, e["continuation"])
        for e in task.examples
        for context in e["context_options"]
    ]
    scores = iter(scorer.likelihoods(pairs))
    values = [[next(scores).log_likelihood for _ in e["context_options"]] for e in task.examples]
    return {"acc": [float(_best(v) == e["gold"]) for v, e in zip(values, task.examples, strict=True)]}


def _language_modeling(task: Task, scorer: Scorer) -> dict[str, list[float]]:
    pairs = [(task.before(e) + e["context"] + task.delimiter, e["continuation"]) for e in task.examples]
    scores = scorer.likelihoods(pairs)
    return {"acc": [float(s.greedy) for s in scores], "perplexity": [s.log_likelihood for s in scores]}


FROM_LIKELIHOODS: dict[str, Callable[[Task, Scorer], dict[str, list[float]]]] = {
    "multiple_choice": _multiple_choice,
    "schema": _schema,
    "language_modeling": _language_modeling,
}


def _generated(task: Task, scorer: Scorer) -> list[dict[str, str]]:
    prompts = [task.before(example) + _prompt(task, example) for example in task.examples]
    limit = task.max_new_tokens or MAX_NEW_TOKENS[task.kind]
    texts = scorer.generate([Generation(prompt, UNTIL[task.kind], limit) for prompt in prompts])
    if task.kind == "code":  # HumanEval's own format
        return [{"task_id": e["task_id"], "completion": t} for e, t in zip(task.examples, texts, strict=True)]
    return [{"prompt": prompt, "completion": text} for prompt, text in zip(prompts, texts, strict=True)]


def _prompt(task: Task, example: dict[str, Any]) -> str:
    """Return what a text is generated after. A space at its end would keep the model from beginning a word."""
    if task.kind == "code":
        return example["prompt"]
    return gsm8k_prompt(example) if task.kind == "gsm8k" else (example["context"] + task.delimiter).rstrip(" ")


def _answers(examples: list[dict[str, Any]], texts: list[str]) -> dict[str, list[float]]:
    accepted = [{normalized(a) for a in [e["answer"], *e.get("aliases", [])]} for e in examples]
    return {"exact_match": [float(normalized(t) in a) for t, a in zip(texts, accepted, strict=True)]}


def _reasoned(examples: list[dict[str, Any]], texts: list[str]) -> dict[str, list[float]]:
    found = [text.split(ANSWER_IS)[-1].strip() for text in texts]
    return {"exact_match": [_equal(f, e["answer"]) for f, e in zip(found, examples, strict=True)]}


def _gsm8k(examples: list[dict[str, Any]], texts: list[str]) -> dict[str, list[float]]:
    strict = [next(iter(_STRICT_NUMBER.findall(text)), "[invalid]") for text in texts]
    flexible = [next(reversed(_ANY_NUMBER.findall(text)), "[invalid]") for text in texts]
    return {
        "exact_match": [_equal(f, e["answer"]) for f, e in zip(strict, examples, strict=True)],
        "exact_match_flexible": [_equal(f, e["answer"]) for f, e in zip(flexible, examples, strict=True)],
    }


FROM_TEXTS: dict[str, Callable[[list[dict[str, Any]], list[str]], dict[str, list[float]]]] = {
    "generation": _answers,
    "reasoning": _reasoned,
    "gsm8k": _gsm8k,
}


def _passed(task: Task, samples: list[dict[str, str]], scorer: Scorer) -> list[float]:
    peers = scorer.peers
    passed = {
        number: float(passes(f"{e['prompt']}{samples[number]['completion']}\n{e['test']}\ncheck({e['entry_point']})\n"))
        for number, e in enumerate(task.examples)
        if number % peers.size == peers.rank
    }
    return peers.share(passed)


def normalized(answer: str) -> str:
    """Lower case, without punctuation, articles and repeated spaces (Rajpurkar et al. 2016, SQuAD's evaluation)."""
    plain = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _equal(found: str, expected: str) -> float:
    return float(_plain(found) == _plain(expected))


def _plain(answer: str) -> str:
    """Drop what the harness drops before it compares numbers: reasoning, commas, dollar signs, a full stop, case."""
    return re.sub(r"\.$", "", re.sub(r"(?s).*#### ", "", re.sub(r"[,$]", "", answer))).lower()


def _best(values: list[float]) -> int:
    return values.index(max(values))
