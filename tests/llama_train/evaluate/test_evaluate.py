"""Held-out loss, tasks in files and lm-evaluation-harness, against transformers and sums by hand."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.shards.reader import open_root
from data_pipeline.shards.writer import ShardSetWriter, write_root
from data_pipeline.tokenize import load_tokenizer
from llama_foundation.errors import DataError
from llama_train.evaluate.held_out import held_out_loss
from llama_train.evaluate.score import Generation, Scorer, rolling_windows
from tests.llama_train.evaluate.made_up_tasks import EXAMPLES, TEXT, likelihood_by_hand, log_probabilities, run_main


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


@pytest.fixture
def everything(exported: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    shards = tmp_path_factory.mktemp("shards")
    write_documents(shards, exported / "tokenizer.model")
    (task_files / "code.jsonl").write_text('{"prompt": "def f():", "test": "f()"}\n')  # of no kind
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
