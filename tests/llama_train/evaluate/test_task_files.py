"""Tasks in JSONL files: what is read, what is refused, and numbers as computed by hand with transformers."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

from llama_foundation.errors import ConfigError, DataError
from llama_train.evaluate.score import Generation, Scorer
from llama_train.evaluate.task_files import Task, find_tasks, read_task
from llama_train.evaluate.task_scores import normalized, run_task
from llama_train.peers import Peers
from tests.llama_train.evaluate.made_up_tasks import EXAMPLES, likelihood_by_hand, run_main


def test_tasks_in_files_score_as_by_hand(task_files: Path, scorer: Scorer, theirs: tuple) -> None:
    results = {
        name: run_task(read_task(name, path, " "), scorer).numbers
        for name, path in find_tasks(str(task_files), []).items()
    }
    right, normed = [], []
    for example in EXAMPLES["choice"]:
        values = [likelihood_by_hand(theirs, example["query"] + " ", choice) for choice in example["choices"]]
        right.append(int(np.argmax(values)) == example["gold"])
        per_character = [v / len(c) for v, c in zip(values, example["choices"], strict=True)]
        normed.append(int(np.argmax(per_character)) == example["gold"])
    assert results["choice"]["acc"] == pytest.approx(sum(right) / 3)
    assert results["choice"]["acc_norm"] == pytest.approx(sum(normed) / 3)
    assert results["choice"]["acc_stderr"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(3))
    right = [
        int(np.argmax([likelihood_by_hand(theirs, c + " ", e["continuation"]) for c in e["context_options"]]))
        == e["gold"]
        for e in EXAMPLES["schema"]
    ]
    assert results["schema"]["acc"] == sum(right) / 2
    losses = [-likelihood_by_hand(theirs, e["context"] + " ", e["continuation"]) for e in EXAMPLES["language"]]
    assert results["language"]["perplexity"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-4)
    assert results["answers"]["exact_match"] == 0
    assert all(numbers["examples"] == len(EXAMPLES[name]) for name, numbers in results.items())


def test_an_answer_is_compared_without_case_articles_and_punctuation() -> None:
    assert normalized(" The  Daughter's, an Answer!") == "daughters answer"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2: query is"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', r"line 2: choices is"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "gold is 2, but there are 2"),
        ('{"query": "a", "choices": ["b", "c"], "gold": true}', "line 2: gold is 'True'"),
    ],
)
def test_a_bad_example_is_refused_by_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read_task("t", tmp_path / "t.jsonl", " ")


def test_an_unknown_task_is_named_with_the_closest(task_files: Path) -> None:
    with pytest.raises(ConfigError, match=r"choise is not a task of .*did you mean choice"):
        find_tasks(str(task_files), ["choise"])
    with pytest.raises(ConfigError, match="is not a directory"):
        find_tasks(str(task_files / "nothing"), [])


SHOWN = {
    "choice": ("The river took them all\n\n", "Where did  the river\n\n"),  # the query brings its own space
    "schema": ("The river took them all.\n\n", "17 lanterns\n\n"),
    "language": ("The river took them all.\n\n", " The river\n\n"),
    "answers": ("Where did the river go? nowhere\n\n", "Who counted? the daughter\n\n"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_first_other_examples_are_shown_with_their_answers(name: str, task_files: Path) -> None:
    path = next(task_files.glob(f"{name}.jsonl*"))
    task = read_task(name, path, " ", limit=2, shots=1)
    assert len(task.examples) == 2
    first, second = SHOWN[name]
    assert [task.before(example) for example in task.examples] == [second, first]
    assert read_task(name, path, " ").before(EXAMPLES[name][0]) == ""


def test_what_is_shown_may_come_from_another_file(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "1+1?", "answer": "It is 2.\\n#### 2"}\n')
    (tmp_path / "train.jsonl").write_text(
        "".join(f'{{"question": "{n}+0?", "answer": "{n}\\n#### {n}"}}\n' for n in range(3))
    )
    task = read_task("test", tmp_path / "test.jsonl", " ", shots=2, shots_path=tmp_path / "train.jsonl")
    assert task.before(task.examples[0]) == (
        "Question: 0+0?\nAnswer: 0\n#### 0\n\nQuestion: 1+0?\nAnswer: 1\n#### 1\n\n"
    )
    with pytest.raises(DataError, match=r"test.jsonl: has 1 examples, too few to show shots=1 of others"):
        read_task("test", tmp_path / "test.jsonl", " ", shots=1)
    (tmp_path / "other.jsonl").write_text('{"context": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match=r"other.jsonl: is a generation task, and cannot be .*a gsm8k task"):
        read_task("test", tmp_path / "test.jsonl", " ", shots=1, shots_path=tmp_path / "other.jsonl")


def test_shots_change_the_numbers_as_by_hand(task_files: Path, scorer: Scorer, theirs: tuple) -> None:
    found = run_task(read_task("language", task_files / "language.jsonl", " ", shots=1), scorer).numbers
    first, second = EXAMPLES["language"]
    losses = [
        -likelihood_by_hand(theirs, " The river\n\nThe river took ", first["continuation"]),
        -likelihood_by_hand(theirs, "The river took them all.\n\n ", second["continuation"]),
    ]
    assert found["shots"] == 1
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-4)


@dataclass(frozen=True)
class Writer:
    """Stands in for a model: gives these texts, and remembers what it was asked."""

    texts: list[str]
    asked: list[Generation] = field(default_factory=list)
    peers: Peers = field(default_factory=Peers)

    def generate(self, requests: list[Generation]) -> list[str]:
        self.asked.extend(requests)
        return self.texts


def write_task(path: Path, examples: list[dict]) -> Task:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return read_task(path.stem, path, " ")


def test_numbers_of_gsm8k_are_taken_out_as_the_harness_does(tmp_path: Path) -> None:
    texts = {
        "so 1,200 + 34\n#### 1,234": (1.0, 1.0),
        "it costs $1234.": (0.0, 1.0),
        "#### 1233 and not 1234": (0.0, 1.0),
        "#### 1234 and not 5": (1.0, 0.0),
        "no number": (0.0, 0.0),
    }
    task = write_task(tmp_path / "t.jsonl", [{"question": "How much?", "answer": "So\n#### 1234"}] * len(texts))
    writer = Writer(list(texts))
    numbers = run_task(task, writer).numbers
    assert writer.asked[0] == Generation("Question: How much?\nAnswer:", ("Question:", "</s>", "<|im_end|>"), 256)
    assert numbers["exact_match"] == pytest.approx(sum(strict for strict, _ in texts.values()) / 5)
    assert numbers["exact_match_flexible"] == pytest.approx(sum(flexible for _, flexible in texts.values()) / 5)
    # one by one, against the harness' own filters and metric
    for text, (strict, flexible) in texts.items():
        for pattern, group, expected in (
            (r"#### (\-?[0-9\.\,]+)", 0, strict),
            (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1, flexible),
        ):
            [[taken]] = RegexFilter(pattern, group).apply([[text]], [{}])
            score = exact_match_hf_evaluate(
                [taken],
                ["So\n#### 1234"],
                regexes_to_ignore=[",", r"\$", "(?s).*#### ", r"\.$"],
                ignore_case=True,
            )
            assert score["exact_match"] == expected, (text, pattern)


def test_reasoning_ends_in_its_answer(tmp_path: Path) -> None:
    example = {"context": "8 and 7?", "chain_of_thought": "( 8 - 7 )", "answer": "-1.5"}
    task = write_task(tmp_path / "t.jsonl", [example] * 4)
    texts = ["7 - 8.5 The answer is -1.5.", "-1.5", "The answer is 15", "The answer is 3 The answer is -1.5"]
    assert run_task(task, Writer(texts)).numbers["exact_match"] == 3 / 4
    shown = read_task("t", tmp_path / "t.jsonl", "\n\nA: ", shots=0)
    assert shown.before(example) == ""
    (tmp_path / "two.jsonl").write_text(json.dumps(example) + "\n" + json.dumps(example | {"context": "What?"}) + "\n")
    task = read_task("two", tmp_path / "two.jsonl", "\n\nA: ", shots=1)
    writer = Writer(["", ""])
    run_task(task, writer)
    assert writer.asked[1].context == "8 and 7?\n\nA: ( 8 - 7 ) The answer is -1.5\n\nWhat?\n\nA:"
    assert writer.asked[1].until == ("\n\n", "Question:")


CODE = [
    {
        "task_id": "T/0",
        "prompt": "def double(x):\n",
        "entry_point": "double",
        "test": "def check(f):\n    assert f(2) == 4\n",
        "language": "python",
    },
    {"task_id": "T/1", "prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"},
]


def test_programs_are_run_only_where_that_is_allowed(tmp_path: Path) -> None:
    task = write_task(tmp_path / "t.jsonl", CODE)
    writer = Writer([f"    open({str(tmp_path / 'ran')!r}, 'w')\n    return 2 * x\n", "    return 2\n"])
    only_written = run_task(task, writer)
    assert only_written.numbers == {"kind": "code", "examples": 2, "shots": 0}
    assert only_written.samples == [
        {"task_id": "T/0", "completion": writer.texts[0]},
        {"task_id": "T/1", "completion": writer.texts[1]},
    ]
    assert not (tmp_path / "ran").exists()
    assert run_task(task, writer, execute_code=True).numbers["pass@1"] == 0.5
    assert (tmp_path / "ran").exists()
    assert writer.asked[0].context == "def double(x):\n"


def test_programs_in_another_language_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: language is 'javascript'; only python"):
        write_task(tmp_path / "t.jsonl", [CODE[0] | {"language": "javascript"}])


def test_the_command_writes_samples_and_refuses_to_run_code_unasked(
    exported: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "files").mkdir()
    write_task(tmp_path / "files" / "human_eval.jsonl", CODE)
    arguments = [f"checkpoint={exported}", "device=cpu", f"task_files={tmp_path}/files", "max_new_tokens=5"]
    assert run_main(monkeypatch, *arguments, "tasks=[human_eval]") == 2
    refusal = capsys.readouterr().err.replace("\n", " ")
    assert "only run with execute_code=true" in refusal and "samples=DIR writes them" in refusal
    assert run_main(monkeypatch, *arguments, f"samples={tmp_path}/samples", f"output={tmp_path}/a.json") == 0
    assert "human_eval: the programs were not run" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "samples" / "human_eval.jsonl").read_text().splitlines()]
    assert [line.keys() for line in lines] == [{"task_id", "completion"}] * 2
    assert run_main(monkeypatch, *arguments, "execute_code=true", f"output={tmp_path}/b.json") == 0
    assert json.loads((tmp_path / "b.json").read_text())["tasks"]["human_eval"]["pass@1"] == 0.0
    assert run_main(monkeypatch, f"checkpoint={exported}", "tasks=[arc_easy]", "execute_code=true") == 2
    assert "execute_code=True is of tasks in files; add task_files=DIR" in capsys.readouterr().err
