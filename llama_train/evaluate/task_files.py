"""Tasks in JSONL files, one example per line, as LLM Foundry's evaluation gauntlet, GSM8K and HumanEval keep them.

The kind of a task is seen from the fields of its first line:

    multiple_choice    query, choices, gold               which choice is the likeliest after the query
    schema             context_options, continuation, gold    after which context the continuation is the likeliest
    language_modeling  context, continuation              is the continuation what greedy decoding gives
    reasoning          context, chain_of_thought, answer  does what is generated end in the answer
    generation         context, answer, aliases           does the greedy continuation, up to a newline, answer it
    gsm8k              question, answer ("... #### 18")   does what is generated end in the number
    code               task_id, prompt, entry_point, test does the program that is generated pass its test
"""

import difflib
import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_foundation.errors import ConfigError, DataError

SUFFIXES = (".jsonl", ".jsonl.gz")

SHOT_DELIMITER = "\n\n"
"""Behind every example that is shown with its answer, as in lm-evaluation-harness."""

ANSWER_IS = "The answer is "
"""Between reasoning and answer, in what is shown and in what is generated, as LLM Foundry's gauntlet has it."""

WORKED = "#### "
"""Before the number that ends an answer of GSM8K (Cobbe et al. 2021)."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_some_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_options(value: Any) -> bool:
    return _are_texts(value) and len(value) > 1


def _is_index(value: Any) -> bool:
    return type(value) is int


KINDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "multiple_choice": {"query": _is_text, "choices": _are_options, "gold": _is_index},
    "schema": {"context_options": _are_options, "continuation": _is_text, "gold": _is_index},
    "language_modeling": {"context": _is_text, "continuation": _is_some_text},
    "reasoning": {"context": _is_text, "chain_of_thought": _is_text, "answer": _is_some_text},
    "generation": {"context": _is_text, "answer": _is_some_text},
    "gsm8k": {"question": _is_text, "answer": lambda value: isinstance(value, str) and WORKED in value},
    "code": {"task_id": _is_some_text, "prompt": _is_text, "entry_point": _is_some_text, "test": _is_text},
}
"""The fields that an example of each kind must have; the first kind that fits counts."""


class UnknownKindError(DataError):
    """The examples of a file are of no kind that can be run here."""


@dataclass(frozen=True)
class Task:
    """The examples of one file, and what is shown before them."""

    name: str
    kind: str
    examples: list[dict[str, Any]]
    delimiter: str  # between what is asked and what is scored
    shots: int = 0  # examples shown with their answers before each
    shown: tuple[dict[str, Any], ...] = ()  # what they are taken from
    max_new_tokens: int | None = None  # of what is generated; None: what its kind says

    def before(self, example: dict[str, Any]) -> str:
        """Return what is shown before `example`: the first `shots` others with their answers."""
        others = []
        for other in self.shown:
            if len(others) == self.shots:
                break
            if other != example:
                others.append(self._solved(other) + SHOT_DELIMITER)
        return "".join(others)

    def _solved(self, example: dict[str, Any]) -> str:
        if self.kind == "multiple_choice":
            return example["query"] + self.delimiter + example["choices"][example["gold"]]
        if self.kind == "schema":
            return example["context_options"][example["gold"]] + self.delimiter + example["continuation"]
        if self.kind == "language_modeling":
            return example["context"] + self.delimiter + example["continuation"]
        if self.kind == "reasoning":
            return f"{example['context']}{self.delimiter}{example['chain_of_thought']} {ANSWER_IS}{example['answer']}"
        if self.kind == "generation":
            return example["context"] + self.delimiter + example["answer"]
        assert self.kind == "gsm8k", self.kind
        return gsm8k_prompt(example) + " " + example["answer"]


def gsm8k_prompt(example: dict[str, Any]) -> str:
    """Ask a question of GSM8K as lm-evaluation-harness does."""
    return f"Question: {example['question']}\nAnswer:"


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


def read_task(
    name: str,
    path: Path,
    delimiter: str,
    limit: int = 0,
    shots: int = 0,
    shots_path: Path | None = None,
    max_new_tokens: int | None = None,
) -> Task:
    """Read the examples of a file, the first `limit` of them unless that is 0.

    Args:
        shots: examples shown before each; programs (kind code) are asked for without any.
        shots_path: the file they are from; None: the task's own, without the example that is asked.

    Raises:
        DataError: a file cannot be read, is of no kind that is known, or has too few examples to show; names the line.
    """
    kind, examples = _read_examples(path, 0 if shots and shots_path is None else limit)
    shown: list[dict[str, Any]] = []
    if kind == "code":
        shots = 0
    if shots:
        shown_kind, shown = (kind, examples) if shots_path is None else _read_examples(shots_path, 0)
        if shown_kind != kind:
            raise DataError(f"{shots_path}: is a {shown_kind} task, and cannot be shown before {path}, a {kind} task")
        if len(shown) < shots + (shots_path is None):
            raise DataError(f"{shots_path or path}: has {len(shown)} examples, too few to show shots={shots} of others")
    return Task(name, kind, examples[:limit] if limit else examples, delimiter, shots, tuple(shown), max_new_tokens)


def _read_examples(path: Path, limit: int) -> tuple[str, list[dict[str, Any]]]:
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
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: line {number} is not JSON: {error}") from error
    if not examples:
        raise DataError(f"{path}: holds no example")
    return kind, examples


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


def _check_example(example: Any, kind: str, where: str) -> None:
    for name, good in KINDS[kind].items():
        if not isinstance(example, dict) or name not in example or not good(example[name]):
            found = example.get(name, "missing") if isinstance(example, dict) else example
            raise DataError(f"{where}: {name} is {str(found)[:80]!r}, which a {kind} example cannot have")
    options = example.get("choices") or example.get("context_options")
    if "gold" in KINDS[kind] and not 0 <= example["gold"] < len(options):
        raise DataError(f"{where}: gold is {example['gold']}, but there are {len(options)} to choose from")
    if not _are_texts(example.get("aliases", [])):
        raise DataError(f"{where}: aliases is not a list of texts")
    if kind == "code" and example.get("language", "python") != "python":
        raise DataError(f"{where}: language is {str(example['language'])[:80]!r}; only python programs can be tested")
