"""Held-out loss, tasks in files and lm-evaluation-harness, against transformers and sums by hand."""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.shards.reader import open_root
from data_pipeline.shards.writer import ShardSetWriter, write_root
from data_pipeline.tokenize import load_tokenizer, train_sentencepiece
from llama_foundation.errors import ConfigError, DataError
from llama_train.checkpoint.huggingface import export_huggingface
from llama_train.checkpoint.load import load_model, open_weights
from llama_train.evaluate.__main__ import main
from llama_train.evaluate.harness import HarnessModel, generation
from llama_train.evaluate.held_out import held_out_loss
from llama_train.evaluate.score import Generation, Scorer, rolling_windows
from llama_train.evaluate.task_files import find_tasks, normalized, read_task, run_task
from llama_train.peers import Peers

TEXT = "The miller's daughter counted 17 lanterns, and then the river took them all. Where did it go? Größe 日本 " * 20

EXAMPLES = {
    "choice": [
        {"query": "The river took", "choices": ["them all", "17 lanterns and more", "it"], "gold": 0},
        {"query": "Where did ", "choices": ["it go?", "the river"], "gold": 1},
        {"query": "The miller's daughter " * 12, "choices": ["counted", "took"], "gold": 0},  # longer than the context
    ],
    "schema": [
        {"context_options": ["The miller", "The river"], "continuation": "took them all.", "gold": 1},
        {"context_options": ["17", "all of them", "it"], "continuation": "lanterns", "gold": 0},
    ],
    "language": [
        {"context": "The river took", "continuation": "them all."},
        {"context": "", "continuation": "The river"},
    ],
    "answers": [
        {"context": "Where did the river go?", "answer": "nowhere", "aliases": ["all"]},
        {"context": "Who counted?", "answer": "the daughter"},
    ],
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama as llama-convert exports it."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=330,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=48,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.save_pretrained(directory / "plain")
    train_sentencepiece([TEXT], directory / "plain" / "tokenizer.model", 330)
    return export_huggingface(open_weights(directory / "plain"), directory / "exported")


@pytest.fixture(scope="module")
def theirs(exported: Path) -> tuple:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float64).eval()
    return model, transformers.AutoTokenizer.from_pretrained(exported)


@pytest.fixture(scope="module")
def scorer(exported: Path) -> Scorer:
    model, config, directory = load_model(exported)
    return Scorer(model.eval(), config.context, load_tokenizer(directory), Peers(), batch_size=3)


@torch.no_grad()
def log_probabilities(theirs: tuple, ids: list[int]) -> list[float]:
    """Of every token but the first, by transformers in float64, without batch or padding."""
    logits = theirs[0](torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return [float(row[token]) for row, token in zip(logits, ids[1:], strict=True)]


def likelihood_by_hand(theirs: tuple, context: str, continuation: str) -> float:
    ids = theirs[1](context + continuation)["input_ids"]
    before = len(theirs[1](context.rstrip())["input_ids"])
    values = log_probabilities(theirs, ids[-49:])
    return sum(values[-(len(ids) - before) :])


@pytest.fixture
def task_files(tmp_path: Path) -> Path:
    for name, examples in EXAMPLES.items():
        text = "".join(json.dumps(example) + "\n" for example in examples)
        if name == "schema":
            (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def test_likelihoods_are_those_of_transformers(scorer: Scorer, theirs: tuple) -> None:
    pairs = [(example["query"] + " ", choice) for example in EXAMPLES["choice"] for choice in example["choices"]] + [
        ("", "The river"),
        ("a\n\n", "b"),
        ("x  ", "日本"),
    ]
    for (context, continuation), ours in zip(pairs, scorer.likelihoods(pairs), strict=True):
        expected = likelihood_by_hand(theirs, context, continuation)
        assert ours.log_likelihood == pytest.approx(expected, abs=1e-4), (context, continuation)


@torch.no_grad()
def test_a_continuation_is_greedy_where_its_tokens_are_the_likeliest(scorer: Scorer, theirs: tuple) -> None:
    found = []
    for context in ("The river took", "Where did", "17", "a", "counted all", "lanterns"):
        ids = theirs[1](context)["input_ids"]
        likeliest = int(theirs[0](torch.tensor([ids])).logits[0, -1].argmax())
        pairs = []
        for token in range(259, 330):  # those whose text, behind the context, is cut into them again
            text = theirs[1].decode([*ids, token], skip_special_tokens=True)
            if text.startswith(context) and theirs[1](text)["input_ids"] == [*ids, token]:
                pairs.append((token, text.removeprefix(context)))
        scores = scorer.likelihoods([(context, text) for _, text in pairs])
        for (token, _), score in zip(pairs, scores, strict=True):
            assert score.greedy == (token == likeliest)
            found.append(score.greedy)
    assert {True, False} == set(found)


def test_rolling_windows_predict_every_token_once_after_a_full_context() -> None:
    # the example in lm-evaluation-harness, api/model.py: 10 tokens, a context of 4
    windows = list(rolling_windows(list(range(10)), -1, 4))
    assert windows == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]


def test_a_generation_ends_before_its_stop_text_and_keeps_its_context_short(scorer: Scorer) -> None:
    [free] = scorer.generate([Generation(TEXT, (), 20)])
    _, stopped = scorer.generate([Generation(TEXT, (), 20), Generation(TEXT, ("no", free[5:7]), 20)])
    assert stopped == free.split(free[5:7])[0]
    with pytest.raises(DataError, match="max_new_tokens=48 leaves no room"):
        scorer.generate([Generation("a", (), 48)])


@pytest.mark.parametrize(
    ("pair", "message"), [(("a", ""), "has no tokens"), (("a", " river" * 50), "more than the model's context of 48")]
)
def test_a_continuation_that_cannot_be_scored_is_refused(pair, message, scorer: Scorer) -> None:
    with pytest.raises(DataError, match=message):
        scorer.likelihoods([("fine", "fine"), pair])


def test_tasks_in_files_score_as_by_hand(task_files: Path, scorer: Scorer, theirs: tuple) -> None:
    results = {
        name: run_task(read_task(name, path, " "), scorer) for name, path in find_tasks(str(task_files), []).items()
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


def write_documents(directory: Path, tokenizer_file: Path) -> dict[tuple[str, str | None], list[str]]:
    """Shards of a few documents of two sources and languages; returns their texts."""
    tokenizer = load_tokenizer(tokenizer_file)
    texts = {
        ("books", "de"): ["Größe 日本 and then", "The river " * 40],
        ("books", None): ["17"],
        ("web", "de"): ["Where did it go?"],
        ("web", "en"): ["The miller's daughter counted 17 lanterns, and then the river took them all."],
    }
    for source in ("books", "web"):
        with ShardSetWriter(directory / "validation" / source, tokenizer.fingerprint, 330) as writer:
            for (where, language), mine in texts.items():
                for row, text in enumerate(mine if where == source else []):
                    ids = [tokenizer.bos_id, *tokenizer.encode_batch([text])[0].tolist(), tokenizer.eos_id]
                    writer.add(
                        np.array(ids),
                        {
                            "record_id": f"{row:032x}",
                            "source": source,
                            "file": "f",
                            "row": row,
                            "url": None,
                            "language": language,
                            "first_words": "",
                        },
                    )
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    about = {
        "file": "tokenizer/tokenizer.model",
        "fingerprint": tokenizer.fingerprint,
        "vocabulary_size": 330,
        "bos_id": 1,
        "eos_id": 2,
    }
    write_root(directory, about, {"validation": ["books", "web"]})
    return texts


def test_loss_and_bits_per_byte_are_those_computed_by_hand(
    exported: Path, scorer: Scorer, theirs: tuple, tmp_path: Path
) -> None:
    texts = write_documents(tmp_path, exported / "tokenizer.model")
    found = held_out_loss(scorer, open_root(tmp_path), "validation")
    sums: dict[str, list[float]] = {}
    for (source, language), mine in texts.items():
        for text in mine:
            ids = [*theirs[1](text)["input_ids"], 2]
            values: list[float] = []
            for begin in range(0, len(ids) - 1, 48):  # the model's context
                values += log_probabilities(theirs, ids[begin : begin + 49])
            assert len(values) == len(ids) - 1
            for key in ("all", f"source {source}", f"language {language or 'unknown'}"):
                old = sums.setdefault(key, [0, 0, 0, 0, 0])
                new = [1, len(values), len(text.encode()), -sum(values), -sum(values[:-1])]
                sums[key] = [a + b for a, b in zip(old, new, strict=True)]
    ours = {"all": found.total}
    ours |= {f"source {name}": value for name, value in found.by_source.items()}
    ours |= {f"language {name}": value for name, value in found.by_language.items()}
    assert ours.keys() == sums.keys()
    for key, (documents, tokens, size, loss, text_loss) in sums.items():
        numbers = ours[key].numbers()
        assert (numbers["documents"], numbers["tokens"], numbers["bytes"]) == (documents, tokens, size)
        assert numbers["loss"] == pytest.approx(loss / tokens, rel=1e-5)
        assert numbers["bits_per_byte"] == pytest.approx(text_loss / math.log(2) / size, rel=1e-5)
    assert held_out_loss(scorer, open_root(tmp_path), "validation", documents=1).total.documents == 2
    with pytest.raises(DataError, match="no documents in split=test; known: validation"):
        held_out_loss(scorer, open_root(tmp_path), "test")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llama-evaluate", *arguments])
    return main()


@pytest.fixture
def everything(exported: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    shards = tmp_path_factory.mktemp("shards")
    write_documents(shards, exported / "tokenizer.model")
    (task_files / "code.jsonl").write_text('{"prompt": "def f():", "test": "f()"}\n')
    return [f"checkpoint={exported}", f"shards={shards}", f"task_files={task_files}", "device=cpu", "batch_size=2"]


def test_the_command_prints_tables_and_writes_json(everything: list[str], monkeypatch, capsys, tmp_path) -> None:
    assert run_main(monkeypatch, *everything, f"output={tmp_path}/out.json") == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["tasks"].keys() == EXAMPLES.keys()
    assert written["skipped"].keys() == {"code"}
    assert "not evaluated: code" in printed
    assert f"{written['held_out']['all']['bits_per_byte']:.4f}" in printed
    assert f"{written['tasks']['choice']['acc_norm']:.4f}" in printed


def test_two_ranks_with_a_sharded_model_give_the_numbers_of_one(
    everything: list[str], monkeypatch, tmp_path: Path
) -> None:
    assert run_main(monkeypatch, *everything, f"output={tmp_path}/one.json") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "llama_train.evaluate", *everything, f"output={tmp_path}/two.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert_same_numbers(one, two)


def assert_same_numbers(one, two) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same_numbers(one[key], two[key])
    else:
        assert two == (pytest.approx(one, rel=1e-5) if isinstance(one, float) else one)


def test_refusals_name_the_setting(exported: Path, task_files: Path, monkeypatch, capsys, tmp_path) -> None:
    for arguments, message in (
        ([], "nothing to evaluate; give shards=DIR"),
        (["tasks=[choise]", f"task_files={task_files}"], "choise is not a task of"),
        (["task_files=nowhere"], "task_files=nowhere is not a directory"),
        (["tasks=[arc_eazy]"], "arc_eazy is not a task of lm-evaluation-harness; did you mean arc_easy?"),
    ):
        assert run_main(monkeypatch, f"checkpoint={exported}", *arguments) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((exported / name).read_bytes())
    assert run_main(monkeypatch, f"checkpoint={bare}", f"task_files={task_files}") == 2
    assert f"checkpoint={bare} has no tokenizer with it; add tokenizer=FILE" in capsys.readouterr().err


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
