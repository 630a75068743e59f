"""The example corpus is what its README says, and a tokenizer for it can be trained."""

import json
import re
from pathlib import Path

import pytest
import zstandard

from data_pipeline.tokenize import load_tokenizer, train_sentencepiece

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[dict[str, str]]]:
    files = sorted((EXAMPLES / "corpus").glob("*.jsonl.zst"))
    read = {path.name.removesuffix(".jsonl.zst"): zstandard.decompress(path.read_bytes()) for path in files}
    return {name: [json.loads(row) for row in data.decode().split("\n")[:-1]] for name, data in read.items()}


@pytest.fixture(scope="module")
def readme() -> str:
    return (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_the_readme_counts_every_file(corpus, readme: str) -> None:
    table = re.findall(r"^\| (\w+_\w+) \| ([\d,]+) \| ([\d,]+) \| \[", readme, re.M)
    stated = {name: (int(rows.replace(",", "")), int(size.replace(",", ""))) for name, rows, size in table}
    assert stated == {
        name: (len(rows), sum(len(row["text"].encode()) for row in rows)) for name, rows in corpus.items()
    }


def test_every_row_says_what_it_is_and_where_it_is_from(corpus) -> None:
    for name, rows in corpus.items():
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            assert sorted(row) == ["id", "lang", "source", "text", "url"]
            assert all(isinstance(value, str) and value for value in row.values())
            assert row["lang"] == name.split("_")[1]
            assert re.match(r"https://github\.com/[\w-]+/[\w.-]+/blob/[0-9a-f]{40}/\S", row["url"])


def test_the_corpus_is_several_megabytes_in_several_languages_and_small_on_disk(corpus) -> None:
    sizes: dict[str, int] = {}
    for row in (row for rows in corpus.values() for row in rows):
        sizes[row["lang"]] = sizes.get(row["lang"], 0) + len(row["text"].encode())
    assert 6e6 < sum(sizes.values()) < 9e6
    assert len(sizes) == 5
    assert max(sizes, key=sizes.get) == "en"
    assert min(sizes.values()) > 400_000
    assert sum(path.stat().st_size for path in (EXAMPLES / "corpus").iterdir()) < 3e6


def test_duplicates_and_junk_are_as_the_readme_says(corpus, readme: str) -> None:
    texts = [row["text"] for rows in corpus.values() for row in rows]
    english = {row["text"] for row in corpus["docs_en"]}
    plain = " ".join(readme.split())
    assert f"{len(texts) - len(set(texts))} documents are exact copies" in plain
    assert f"{sum(row['text'] in english for row in corpus['docs_de'])} of them are sections of the German" in plain
    assert f"{sum('alias' in row['text'] for row in corpus['commands_fr'])} of the French command pages" in plain
    assert f"{sum(len(text.encode()) < 200 for text in texts)} documents are shorter than 200 bytes" in plain


def test_a_tokenizer_of_4096_tokens_round_trips_the_corpus(corpus, tmp_path: Path) -> None:
    texts = [row["text"] for rows in corpus.values() for row in rows[::4]]
    tokenizer = load_tokenizer(train_sentencepiece(texts, tmp_path / "tokenizer.model", 4096))
    encoded = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert sum(len(text.encode()) for text in texts) / sum(map(len, encoded)) > 2.8  # bytes per token
