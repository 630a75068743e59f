"""llama-quality, as a user runs it, and the stage that applies its model."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import zstandard

from data_pipeline import quality as command
from data_pipeline.filters import quality
from data_pipeline.filters.quality import Quality
from llama_foundation.errors import ConfigError
from tests.data_pipeline.conftest import make_documents


def sentences(word, count, seed):
    generator = np.random.default_rng(seed)
    return [
        f"{word} {' '.join(f'w{n}' for n in generator.integers(0, 200, 9))} {word}{number % 7}"
        for number in range(count)
    ]


@pytest.fixture
def corpora(tmp_path):
    good, plain = sentences("scholar", 150, 1), sentences("casino", 150, 2)
    with gzip.open(tmp_path / "good.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in good)
    (tmp_path / "plain.txt.zst").write_bytes(zstandard.compress("\n".join(plain).encode()))
    return tmp_path


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["llama-quality", *arguments])
    status = command.main()
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def standard(folder, **changes):
    settings = {
        "positive": f"[{folder}/good.jsonl.gz]",
        "negative": f"[{folder}/plain.txt.zst]",
        "output": folder / "model.safetensors",
        "bits": 14,
        "held_out": 0.3,
    }
    return [f"{key}={value}" for key, value in (settings | changes).items()]


def documents(texts, languages):
    return make_documents([{"text": t, "language": language} for t, language in zip(texts, languages, strict=True)])


def test_it_trains_prints_how_good_it_is_and_the_stage_applies_it(corpora, monkeypatch, capsys):
    status, output, error = run(monkeypatch, capsys, *standard(corpora))
    assert (status, error) == (0, "")
    assert "AUC 1.0000" in output  # one word tells the classes apart
    counts = [int(word) for word in output.replace(",", "").split() if word.isdigit()]
    assert sum(counts[:4]) == 300
    model = str(corpora / "model.safetensors")
    batch = documents(["a scholar of w1", "casino w1 w2", "scholar", "..."], ["en", "en-US", "de", "en"])
    settings = Quality(model=model, keep_fraction=0.1, languages=["en"])
    settings.check()
    scores = quality.measure(batch, settings).scores["score"]
    assert np.isnan(scores).tolist() == [False, False, True, True]
    [rule] = quality.rules(settings)
    assert scores[0] > rule.minimum > scores[1]
    assert quality.rules(Quality(model=model)) == []


def test_neither_the_order_of_files_nor_threads_change_a_byte(corpora, monkeypatch, capsys):
    lines = gzip.decompress((corpora / "good.jsonl.gz").read_bytes()).decode().splitlines(keepends=True)
    (corpora / "b.jsonl").write_text("".join(lines[:70]))
    (corpora / "a.jsonl").write_text("".join(reversed(lines[70:])))
    assert run(monkeypatch, capsys, *standard(corpora))[0] == 0
    changes = {"positive": f"[{corpora}/a.jsonl,{corpora}/b.jsonl]", "output": corpora / "other.safetensors"}
    arguments = [sys.executable, "-m", "data_pipeline.quality", *standard(corpora, **changes)]
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    subprocess.run(arguments, check=True, capture_output=True, env=environment, timeout=120)
    assert (corpora / "model.safetensors").read_bytes() == (corpora / "other.safetensors").read_bytes()


def test_copies_count_once_and_texts_of_both_classes_not_at_all(corpora, monkeypatch, capsys):
    (corpora / "more.txt").write_text("casino twice\ncasino twice\n\nboth of them\n")
    (corpora / "good.txt").write_text("both of them\n")
    changes = {"negative": f"['{corpora}/*.txt.zst','{corpora}/more.txt']"}
    changes["positive"] = f"[{corpora}/good.jsonl.gz,{corpora}/good.txt]"
    status, output, _ = run(monkeypatch, capsys, *standard(corpora, **changes))
    assert status == 0
    assert "negative: 1 of 153 texts left out: copies of others" in output
    assert "1 texts left out: they are both positive and negative" in output


def test_the_area_under_the_curve_counts_pairs():
    generator = np.random.default_rng(3)
    scores, positive = generator.integers(0, 8, 60) / 8, generator.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert command.area_under_curve(scores, positive) == pytest.approx(np.mean(pairs), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "model.bin"}, "output=model.bin must end in .safetensors"),
        ({"positive": "[]"}, "positive is empty"),
        ({"positive": "[none/*.jsonl]"}, "positive: none/*.jsonl matches no file"),
        ({"held_out": 1.0}, "held_out=1.0 must be between 0 and 0.9"),
        ({"held_out": 0.0001}, "the held-out part has 0 positive and 0 negative"),
        ({"bits": 99}, "bits=99 must be between 8 and 26"),
        ({"text_column": "body"}, "line 1: has no usable text in column 'body'"),
        ({"positive": "[{folder}/torn.jsonl.zst]"}, "torn.jsonl.zst: cannot be read to its end: Truncated"),
        ({"positive": "[{folder}/bad.jsonl]"}, "bad.jsonl, line 2: has no usable text in column 'text'"),
        ({"positive": "[{folder}/bad.csv]"}, "bad.csv: is neither .jsonl, .ndjson nor .txt"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(corpora, monkeypatch, capsys, changes, message):
    torn = zstandard.compress(b"".join(json.dumps({"text": str(n)}).encode() + b"\n" for n in range(50_000)))
    (corpora / "torn.jsonl.zst").write_bytes(torn[:-900])
    (corpora / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    (corpora / "bad.csv").write_text("text\n")
    changes = {key: str(value).format(folder=corpora) for key, value in changes.items()}
    status, _, error = run(monkeypatch, capsys, *standard(corpora, **changes))
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
    assert not (corpora / "model.safetensors").exists()


def test_a_finished_model_is_not_replaced_by_accident(corpora, monkeypatch, capsys):
    (corpora / "model.safetensors").write_bytes(b"precious")
    status, _, error = run(monkeypatch, capsys, *standard(corpora))
    assert (status, "overwrite=true" in error) == (2, True)
    assert (corpora / "model.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"threshold": 0.5, "keep_fraction": 0.1}, "give one of both"), ({"threshold": 2.0}, "quality.threshold=2.0")],
)
def test_cuts_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        Quality(model="m", **changes).check()
    assert message in str(error.value)
