"""Tasks in JSONL files, one example per line, as LLM Foundry's evaluation gauntlet keeps them.

The kind of a task is seen from the fields of its first line:

    multiple_choice    query, choices, gold               which choice is the likeliest after the query
    schema             context_options, continuation, gold    after which context the continuation is the likeliest
    language_modeling  context, continuation              is the continuation what greedy decoding gives
    generation         context, answer, aliases           does the greedy continuation, up to a newline, answer it
"""

import difflib
import gzip
import json
import math
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_foundation.errors import ConfigError, DataError
from llama_train.evaluate.score import Generation, Scorer

SUFFIXES = (".jsonl", ".jsonl.gz")

ANSWER_TOKENS = 32
"""New tokens of an answer that is generated."""

KINDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "multiple_choice": {
        "query": lambda value: isinstance(value, str),
        "choices": lambda value: _texts(value) and len(value) > 1,
        "gold": lambda value: type(value) is int,
    },
    "schema": {
        "context_options": lambda value: _texts(value) and len(value) > 1,
        "continuation": lambda value: isinstance(value, str),
        "gold": lambda value: type(value) is int,
    },
    "language_modeling": {
        "context": lambda value: isinstance(value, str),
        "continuation": lambda value: isinstance(value, str) and value != "",
    },
    "generation": {
        "context": lambda value: isinstance(value, str),
        "answer": lambda value: isinstance(value, str),
    },
}
"""The fields that an example of each kind must have."""


class UnknownKindError(DataError):
    """The examples of a file are of no kind that can be run here."""


@dataclass(frozen=True)
class Task:
    """The examples of one file."""

    name: str
    kind: str
    examples: list[dict[str, Any]]
    delimiter: str  # between what is asked and what is scored


def find_tasks(directory: str, names: list[str]) -> dict[str, Path]:
    """Return the file of every task in `names`, of all tasks below `directory` if there are no names.

    Raises:
        ConfigError: there is no such directory or task, or two files have one name.
    """
    if not Path(directory).is_dir():
        raise ConfigError(f"task_files={directory} is not a directory")
    found: dict[str, Path] = {}
    for path in sorted(Path(directory).rglob("*.jsonl*")):
        if not path.name.endswith(SUFFIXES):
            continue
        name = path.name.split(".jsonl")[0]
        if name in found:
            raise ConfigError(f"task_files={directory}: {found[name]} and {path} are both the task {name}; rename one")
        found[name] = path
    if not found:
        raise ConfigError(f"task_files={directory}: holds no .jsonl or .jsonl.gz file")
    for name in names:
        if name not in found:
            raise ConfigError(unknown_task(name, list(found), f"task_files={directory}"))
    return {name: found[name] for name in names} if names else found


def unknown_task(name: str, known: list[str], where: str) -> str:
    """Return what to say of a task that does not exist."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    listed = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "")
    return f"tasks: {name} is not a task of {where}; {hint}Known: {listed}"


def read_task(name: str, path: Path, delimiter: str, limit: int = 0) -> Task:
    """Read the examples of a file, the first `limit` of them unless that is 0.

    Raises:
        DataError: the file cannot be read, or is of no kind that is known; names the line.
    """
    examples: list[dict[str, Any]] = []
    kind = ""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if limit and len(examples) == limit:
                    break
                if not line.strip():
                    continue
                example = json.loads(line)
                kind = kind or kind_of(example, f"{path}: line {number}")
                _check_example(example, kind, f"{path}: line {number}")
                examples.append(example)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{path}: line {number} is not JSON: {error}") from error
    if not examples:
        raise DataError(f"{path}: holds no example")
    return Task(name, kind, examples, delimiter)


def kind_of(example: Any, where: str) -> str:
    """Return the kind of task that has examples like this one.

    Raises:
        UnknownKindError: none has.
    """
    for kind, fields in KINDS.items():
        if isinstance(example, dict) and fields.keys() <= example.keys():
            return kind
    wanted = "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in KINDS.items())
    found = ", ".join(example) if isinstance(example, dict) else str(example)[:80]
    raise UnknownKindError(f"{where}: has the fields {found}, which no kind of task has ({wanted})")


def run_task(task: Task, scorer: Scorer) -> dict[str, float | int | str]:
    """Return the kind of the task, the number of its examples, its metrics, and their standard errors.

    `acc` is the share of examples that are right. Of multiple choice, `acc_norm` compares log-likelihoods per
    character of the choice, as lm-evaluation-harness does. `perplexity` is exp of the mean loss per continuation.
    """
    numbers: dict[str, float | int | str] = {"kind": task.kind, "examples": len(task.examples)}
    for name, values in METRICS[task.kind](task, scorer).items():
        mean = sum(values) / len(values)
        if name == "perplexity":
            numbers[name] = math.exp(-mean) if -mean < 700 else math.inf
            continue
        numbers[name] = mean
        if len(values) > 1:
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            numbers[f"{name}_stderr"] = math.sqrt(variance / len(values))
    return numbers


def _multiple_choice(task: Task, scorer: Scorer) -> dict[str, list[float]]:
    pairs = [(e["query"] + task.delimiter, choice) for e in task.examples for choice in e["choices"]]
    scores = iter(scorer.likelihoods(pairs))
    right, right_normed = [], []
    for example in task.examples:
        values = [next(scores).log_likelihood for _ in example["choices"]]
        normed = [value / max(len(choice), 1) for value, choice in zip(values, example["choices"], strict=True)]
        right.append(float(_best(values) == example["gold"]))
        right_normed.append(float(_best(normed) == example["gold"]))
    return {"acc": right, "acc_norm": right_normed}


def _schema(task: Task, scorer: Scorer) -> dict[str, list[float]]:
    pairs = [(c + task.delimiter, e["continuation"]) for e in task.examples for c in e["context_options"]]
    scores = iter(scorer.likelihoods(pairs))
    values = [[next(scores).log_likelihood for _ in e["context_options"]] for e in task.examples]
    return {"acc": [float(_best(v) == e["gold"]) for v, e in zip(values, task.examples, strict=True)]}


def _language_modeling(task: Task, scorer: Scorer) -> dict[str, list[float]]:
    scores = scorer.likelihoods([(e["context"] + task.delimiter, e["continuation"]) for e in task.examples])
    return {"acc": [float(s.greedy) for s in scores], "perplexity": [s.log_likelihood for s in scores]}


def _generation(task: Task, scorer: Scorer) -> dict[str, list[float]]:
    requests = [Generation(e["context"] + task.delimiter, ("\n",), ANSWER_TOKENS) for e in task.examples]
    texts = scorer.generate(requests)
    answers = [{normalized(a) for a in [e["answer"], *e.get("aliases", [])]} for e in task.examples]
    return {"exact_match": [float(normalized(t) in a) for t, a in zip(texts, answers, strict=True)]}


METRICS: dict[str, Callable[[Task, Scorer], dict[str, list[float]]]] = {
    "multiple_choice": _multiple_choice,
    "schema": _schema,
    "language_modeling": _language_modeling,
    "generation": _generation,
}


def normalized(answer: str) -> str:
    """Lower case, without punctuation, articles and repeated spaces (Rajpurkar et al. 2016, SQuAD's evaluation)."""
    plain = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _best(values: list[float]) -> int:
    return values.index(max(values))


def _check_example(example: Any, kind: str, where: str) -> None:
    for name, good in KINDS[kind].items():
        if not isinstance(example, dict) or name not in example or not good(example[name]):
            found = example.get(name, "missing") if isinstance(example, dict) else example
            raise DataError(f"{where}: {name} is {str(found)[:80]!r}, which a {kind} example cannot have")
    options = example.get("choices") or example.get("context_options")
    if "gold" in KINDS[kind] and not 0 <= example["gold"] < len(options):
        raise DataError(f"{where}: gold is {example['gold']}, but there are {len(options)} to choose from")
    if not _texts(example.get("aliases", [])):
        raise DataError(f"{where}: aliases is not a list of texts")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
