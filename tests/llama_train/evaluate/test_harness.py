"""lm-evaluation-harness: its tasks and its interface over our model, and its Hugging Face backend against us."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from llama_foundation.errors import ConfigError
from llama_train.evaluate.harness import HarnessModel, generation
from llama_train.evaluate.score import Generation, Scorer
from llama_train.evaluate.task_files import read_task
from llama_train.evaluate.task_scores import run_task
from tests.llama_train.evaluate.harness_tasks import harness_task
from tests.llama_train.evaluate.made_up_tasks import likelihood_by_hand, log_probabilities, run_main

HARNESS_TASK = """
task: made_up
dataset_path: json
dataset_kwargs: {{data_files: "{file}"}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def test_the_harness_runs_its_tasks_on_our_model(exported: Path, task_files: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    harness = tmp_path / "harness"
    harness.mkdir()
    (harness / "made_up.yaml").write_text(HARNESS_TASK.format(file=task_files / "choice.jsonl"))
    files = [f"task_files={task_files}", "tasks=[choice]", f"output={tmp_path}/ours.json"]
    assert run_main(monkeypatch, f"checkpoint={exported}", "device=cpu", *files) == 0
    theirs = ["tasks=[made_up]", f"harness_tasks={harness}", f"output={tmp_path}/theirs.json"]
    assert run_main(monkeypatch, f"checkpoint={exported}", "device=cpu", *theirs) == 0
    ours = json.loads((tmp_path / "ours.json").read_text())["tasks"]["choice"]
    numbers = json.loads((tmp_path / "theirs.json").read_text())["tasks"]["made_up"]
    assert (numbers["acc"], numbers["acc_norm"]) == (ours["acc"], ours["acc_norm"])


def test_a_harness_generation_that_is_not_known_is_refused() -> None:
    assert generation("a", {"until": "x", "max_gen_toks": 3, "do_sample": False, "temperature": 1.0}, 5) == Generation(
        "a", ("x",), 3, 0.0, 1.0, 5
    )
    with pytest.raises(ConfigError, match="generation_kwargs: num_beams is not known"):
        generation("a", {"until": [], "num_beams": 4}, 0)


def test_the_harness_interface_answers_in_the_order_of_the_requests(scorer: Scorer, theirs: tuple) -> None:
    class Request:
        def __init__(self, *args: object) -> None:
            self.args = args

    model = HarnessModel(scorer)
    pairs = [("a", " b"), ("The river", " took them all"), ("x", " y z")]
    for (context, continuation), (value, _) in zip(
        pairs, model.loglikelihood([Request(*pair) for pair in pairs]), strict=True
    ):
        assert value == pytest.approx(likelihood_by_hand(theirs, context, continuation), abs=1e-4)
    texts = ["The river", "a " * 70]
    for text, value in zip(texts, model.loglikelihood_rolling([Request(text) for text in texts]), strict=True):
        ids = [1, *theirs[1](text)["input_ids"]]
        expected = sum(log_probabilities(theirs, ids[:49]))
        for begin in range(48, len(ids) - 1, 48):
            stop = min(begin + 48, len(ids) - 1)
            expected += sum(log_probabilities(theirs, ids[stop - 48 : stop + 1])[-(stop - begin) :])
        assert value == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("shots", [0, 1])
def test_task_files_give_the_numbers_of_the_hugging_face_backend(
    shots: int, exported: Path, scorer: Scorer, theirs: tuple, task_files: Path, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    right = [generated_by_transformers(theirs, text) for text in ("Where did the river go?", "Who counted?")]
    answers = [("Where did the river go?", right[0]), ("Who counted?", "nobody"), ("Who counted?", right[1])]
    write(task_files / "answers.jsonl", [{"context": context, "answer": answer} for context, answer in answers])
    write(task_files / "school.jsonl", [{"question": f"{n}+1?", "answer": f"So\n#### {n + 1}"} for n in range(3)])
    reasoned = {"chain_of_thought": "17 and one", "answer": "18"}
    write(task_files / "reasoned.jsonl", [reasoned | {"context": text} for text in ("How many?", "The river")])
    write(task_files / "programs.jsonl", [PROGRAM])
    model = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32),
        tokenizer=theirs[1],
        batch_size=1,
    )
    for path in sorted(task_files.glob("*.jsonl*")):
        name = path.name.split(".jsonl")[0]
        ours = run_task(read_task(name, path, " ", shots=shots, max_new_tokens=8), scorer)
        # One by one: the backend mixes up requests of one call that are the same text cut in two places.
        reported = simple_evaluate(
            model,
            tasks=[harness_task(path, " ", 0 if name == "programs" else shots, 8)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
        numbers = reported["results"][name]
        for metric in METRICS[name]:
            assert ours.numbers[metric] == pytest.approx(numbers[f"{metric},none"], rel=1e-4), (name, metric)
        if ours.samples:
            texts = {sample["doc_id"]: sample["resps"][0][0] for sample in reported["samples"][name]}
            assert [sample["completion"] for sample in ours.samples] == [texts[n] for n in range(len(texts))], name
        if name == "answers":
            assert ours.numbers["exact_match"] == numbers["exact_match,stripped"]
            assert shots or numbers["exact_match,stripped"] == pytest.approx(2 / 3)
        if name == "school":
            assert ours.numbers["exact_match"] == numbers["exact_match,strict"]
            assert ours.numbers["exact_match_flexible"] == numbers["exact_match,flexible"]


METRICS = {
    "choice": ("acc", "acc_norm"),
    "schema": ("acc",),
    "language": ("acc", "perplexity"),
    "answers": (),
    "reasoned": (),
    "school": (),
    "programs": (),
}

PROGRAM = {"task_id": "T/0", "prompt": "def the_river():", "entry_point": "the_river", "test": "def check(f): pass"}


def write(path: Path, examples: list[dict]) -> None:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))


@torch.no_grad()
def generated_by_transformers(theirs: tuple, text: str) -> str:
    """The greedy continuation of at most 8 tokens, up to a newline."""
    model, tokenizer = theirs
    ids = tokenizer(text, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True).split("\n")[0]
