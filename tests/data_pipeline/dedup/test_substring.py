"""Substring deduplication against its definition, word by word."""

import random
import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain
from data_pipeline.dedup import substring
from data_pipeline.dedup.spans_cut import join
from data_pipeline.dedup.substring import SubstringDedup
from data_pipeline.dedup.survivors import Scope
from data_pipeline.dedup.windows import minimizers, window_hashes
from data_pipeline.dedup.word_spans import word_spans
from data_pipeline.engines.local import LocalEngine
from llama_foundation.errors import ConfigError
from tests.data_pipeline.conftest import make_documents

HAN = "一二三"
TEXT = st.text(alphabet=[*"ab", *HAN, " ", "\n", "é", "\U0001f600"], max_size=60)


def plain_words(text):
    return re.findall(f"[{HAN}]|[^{HAN}\\s]+", text)


def defined(texts, length, keep_first=True):
    """The words that stay of each text, best text first; by comparing every window with every other."""
    words = [plain_words(text) for text in texts]
    windows = [(t, i) for t, own in enumerate(words) for i in range(len(own) - length + 1)]
    cut = set()
    for t, i in windows:
        for u, j in windows:
            better = (u, j) < (t, i) if keep_first else (u, j) != (t, i)
            if better and words[t][i : i + length] == words[u][j : j + length]:
                cut |= {(t, place) for place in range(i, i + length)}
                break
    return [[word for place, word in enumerate(own) if (t, place) not in cut] for t, own in enumerate(words)]


def deduplicated(folder, rows, own, cuts=(), workers=1):
    """record id -> text of what stays; the rows are cut into blocks at `cuts`."""
    whole = make_documents(rows).batch
    bounds = [0, *sorted(cuts), whole.num_rows]
    blocks = []
    for number, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            piece = pa.Table.from_batches([whole.slice(start, end - start)]).combine_chunks().to_batches()[0]
            blocks += write_documents(folder / f"in{number}.arrow", type(make_documents(rows))(piece))
    with LocalEngine(workers) as engine:
        chain = Chain(folder / "work", engine, Console(quiet=True), 0)
        blocks, statistics = substring.run(chain, blocks, own)
    kept = [row for block in blocks for row in load_documents(block).batch.to_pylist()]
    return {row["record_id"]: row["text"] for row in kept}, statistics[0]


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXT, min_size=1, max_size=6), st.integers(2, 5), st.booleans(), st.randoms(), st.data())
def test_what_stays_is_what_the_definition_says(tmp_path_factory, texts, length, keep_first, shuffler, data):
    rows = [{"record_id": bytes([place]) * 16, "text": text} for place, text in enumerate(texts)]
    expected = {bytes([place]) * 16: words for place, words in enumerate(defined(texts, length, keep_first))}
    shuffler.shuffle(rows)
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=3))
    found, statistics = deduplicated(
        tmp_path_factory.mktemp("dedup"), rows, SubstringDedup(min_words=length, keep_first=keep_first), cuts
    )
    whole = {row["record_id"]: row["text"] for row in rows}
    for record_id, words in expected.items():
        if words == plain_words(whole[record_id]):
            assert found.pop(record_id) == whole[record_id]  # not a byte of it changed
        elif words:
            assert plain_words(found.pop(record_id)) == words
    assert not found
    dropped = sum(1 for record_id, words in expected.items() if not words and plain_words(whole[record_id]))
    assert sum(tally[0] for tally in statistics.reasons().values()) == dropped


def test_survivors_do_not_depend_on_blocks_order_or_workers(tmp_path):
    generator = random.Random(1)
    shared = [" ".join(generator.choices("abcdefgh", k=30)) for _ in range(4)]
    rows = [
        {
            "record_id": bytes([place]) * 16,
            "text": " ".join(
                [*generator.choices("ijklmn", k=20), generator.choice(shared), *generator.choices("op", k=9)]
            ),
        }
        for place in range(40)
    ]
    own = SubstringDedup(min_words=12)
    first = deduplicated(tmp_path / "a", rows, own)[0]
    generator.shuffle(rows)
    assert deduplicated(tmp_path / "b", rows, own, [3, 17, 30], workers=2)[0] == first


def test_scopes_and_the_order_of_whom_to_keep(tmp_path):
    run = " ".join(f"w{number}" for number in range(10))
    rows = [
        {"record_id": b"1" * 16, "source": "web", "text": f"one {run}"},
        {"record_id": b"2" * 16, "source": "books", "text": f"two {run}"},
        {"record_id": b"3" * 16, "source": "web", "text": f"three {run} end"},
        {"record_id": b"4" * 16, "source": "web", "published": True, "text": f"{run} four"},
    ]
    own = SubstringDedup(min_words=10, source_priority=["books"])
    assert [text for _, text in sorted(deduplicated(tmp_path / "a", rows[:3], own)[0].items())] == [
        "one",
        f"two {run}",
        "three end",
    ]
    own = SubstringDedup(min_words=10)
    found, statistics = deduplicated(tmp_path / "b", rows, own)
    assert [text for _, text in sorted(found.items())] == ["one", "two", "three end", f"{run} four"]
    assert statistics.edits == {
        "substring_dedup.cut_documents": 3,
        "substring_dedup.cut_spans": 3,
        "substring_dedup.cut_bytes": 3 * (len(run) + 1),
    }
    own = SubstringDedup(min_words=10, scope=Scope.source)
    assert [text for _, text in sorted(deduplicated(tmp_path / "c", rows[:3], own)[0].items())] == [
        f"one {run}",
        f"two {run}",
        "three end",
    ]


def test_a_text_of_which_too_little_is_left_is_dropped_for_a_reason(tmp_path):
    rows = [
        {"record_id": b"1" * 16, "text": "a b c d e"},
        {"record_id": b"2" * 16, "text": "x a b c d e"},
        {"record_id": b"3" * 16, "text": "x y a b c d e"},
        {"record_id": b"4" * 16, "text": "x"},
    ]
    found, statistics = deduplicated(tmp_path, rows, SubstringDedup(min_words=5, min_words_left=2))
    assert found == {b"1" * 16: "a b c d e", b"3" * 16: "x y", b"4" * 16: "x"}  # what was short before stays
    assert statistics.reasons() == {"substring_dedup.too_little_left": [1, 11]}


@pytest.mark.parametrize(
    ("pieces", "joined"),
    [
        (["a ", " b"], "a b"),
        (["a ", "\nb"], "a\nb"),
        (["a\n\n", "\nb"], "a\n\nb"),
        (["", "  b\n"], "b\n"),
        (["  a\n", ""], "  a"),
        (["a ", "\n", " b"], "a\nb"),
        (["一", "二"], "一二"),
        (["a", "b"], "a b"),
        (["", ""], ""),
    ],
)
def test_what_is_left_still_reads_as_text(pieces, joined):
    assert join(pieces) == joined


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=5))
def test_words_are_those_between_white_space(texts):
    texts = [re.sub("[\ud800-\udfff]", "", text) for text in texts]
    found = word_spans(pa.array(texts, pa.large_string()))
    data = "".join(texts).encode()
    words = [data[start:end].decode() for start, end in zip(found.starts, found.ends, strict=True)]
    expected = [text.split() for text in texts]
    assert "".join(words) == "".join("".join(each) for each in expected)
    if not any(character >= "\u0e00" for character in "".join(texts)):
        assert words == [word for each in expected for word in each]
        assert np.diff(found.offsets).tolist() == [len(each) for each in expected]


def test_folded_words_have_no_case_and_no_punctuation():
    texts = ["Don't STOP -- now", "don t stop", "dont stop now!", "-- ?"]
    found = word_spans(pa.array(texts, pa.large_string()), folded=True)
    own = [found.first[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)]
    assert own[0] == own[2]
    assert [len(each) for each in own] == [3, 3, 3, 0]
    assert own[1][2] == own[0][1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), max_size=40), st.integers(1, 13))
def test_equal_windows_have_equal_hashes_and_choose_the_same_gram(values, length):
    words = np.array(values, np.uint64)
    hashes = window_hashes(words, length)
    windows = [tuple(values[place : place + length]) for place in range(len(values) - length + 1)]
    assert len(hashes) == len(windows)
    assert len(set(hashes.tolist())) == len(set(windows))
    assert len({*zip(hashes.tolist(), windows, strict=True)}) == len(set(windows))
    gram = max(1, length // 2)
    grams = window_hashes(words, gram)
    chosen = minimizers(grams, np.array([0, len(values)]), length, gram)[: len(windows)]
    assert all(place <= choice <= place + length - gram for place, choice in enumerate(chosen))
    relative = {(window, choice - place) for place, (window, choice) in enumerate(zip(windows, chosen, strict=True))}
    assert len(relative) == len(set(windows))


def test_a_window_of_one_word_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"substring_dedup.min_words=1 must be at least 2"):
        deduplicated(tmp_path, [{"text": "a"}], SubstringDedup(min_words=1))
