"""Decontamination against cases counted by hand and against n-grams compared one by one."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_pipeline import decontaminate
from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain
from data_pipeline.decontaminate.benchmarks import read_examples
from data_pipeline.decontaminate.cut import cut
from data_pipeline.decontaminate.settings import Action, Decontaminate, Definition
from data_pipeline.engines.local import LocalEngine
from llama_foundation.errors import ConfigError, DataError
from tests.data_pipeline.conftest import make_documents

LLAMA3 = {"definition": Definition.llama3}
LLAMA2 = {"definition": Definition.llama2}


def words(first, last, prefix="w"):
    return " ".join(f"{prefix}{number}" for number in range(first, last))


def decontaminated(folder, texts, examples, blocks=1, **own):
    """The texts that stay by their number in `texts`, the statistics, and the report of the benchmark `probe`."""
    folder.mkdir(exist_ok=True)
    path = folder / "probe.jsonl"
    path.write_text("".join(json.dumps({"text": example}) + "\n" for example in examples))
    rows = [{"row": row, "record_id": row.to_bytes(16, "big"), "text": text} for row, text in enumerate(texts)]
    written = []
    for number in range(blocks):
        written += write_documents(folder / f"{number}.arrow", make_documents(rows[number::blocks]))
    with LocalEngine(1) as engine:
        chain = Chain(folder / "work", engine, Console(quiet=True), 0)
        kept, statistics = decontaminate.run(chain, written, Decontaminate({"probe": str(path)}, **own))
    left = {row["row"]: row["text"] for block in kept for row in load_documents(block).batch.to_pylist()}
    return left, statistics[0], json.loads((folder / "decontamination.json").read_text())["benchmarks"]["probe"]


def test_llama3_counts_words_in_8_grams_that_occur(tmp_path):
    texts = [f"x {words(0, 8)} y", f"x {words(0, 7)} y", f"{words(8, 16)} x", f"{words(0, 4)} {words(4, 8)}"]
    examples = [words(0, 10), words(8, 26), words(100, 107)]
    left, statistics, told = decontaminated(tmp_path, texts, examples, **LLAMA3)
    assert sorted(left) == [1, 2]  # 8 of 10 words is half at least; 7 are no 8-gram; 8 of 18 words are too few
    assert statistics.reasons() == {"decontaminate.contaminated": [2, len(texts[0]) + len(texts[3])]}
    assert {key: told[key] for key in ("examples", "words", "too_short")} == {
        "examples": 3,
        "words": 35,
        "too_short": 1,
    }
    assert told["before"] == {"contaminated": 1, "clean": 1, "dirty": 1, "matched_words": 16}
    assert told["after"] == {"contaminated": 0, "clean": 2, "dirty": 0, "matched_words": 8}


@pytest.mark.parametrize(
    ("changed", "matched"),
    [
        ([], 20),
        ([10, 12, 14, 16], 20),  # four words may differ
        ([10, 12, 14, 16, 18], 18),  # the fifth ends the match, which does not end with one that differs
        ([18, 19], 18),
        ([11, 12, 13, 14, 15], 11),
        ([9], 10),  # not among the first ten of a match, so it begins behind: words 10 to 19
        ([5], 14),  # words 6 to 19
        ([5, 14], 0),  # 8 words in a row are none
    ],
)
def test_llama2_extends_10_grams_over_four_words_that_differ(tmp_path, changed, matched):
    said = words(0, 20).split()
    for place in changed:
        said[place] = "other"
    left, _, told = decontaminated(tmp_path, [" ".join(said)], [words(0, 20)], **LLAMA2)
    assert told["before"]["matched_words"] == matched
    assert bool(left) == (matched < 16)  # 80 % of 20


def test_gpt3_cuts_200_characters_around_13_words_without_case_and_punctuation(tmp_path):
    before, after = "a" * 500, "z" * 450
    said = "W0, w1 w2 -- w3; w4 w5 w6 w7 (w8) w9 w10 w11 w12!"
    left, statistics, told = decontaminated(tmp_path, [f"{before} {said} {after}", words(0, 12)], [words(0, 30)])
    # the window is 200 characters from the first letter of W0 and the last of w12: a blank or "!" and 199 others
    assert left == {0: "a" * 301 + "\n\n" + "z" * 252, 1: words(0, 12)}
    assert statistics.edits["decontaminate.cut_documents"] == 1
    assert told["before"]["contaminated"] == 1
    assert told["after"]["contaminated"] == 0


def test_pieces_between_cuts():
    own = Decontaminate(window_characters=2, min_piece_characters=3, max_pieces=3)
    text = "äöüß0123456789"
    found = cut(text, [(12, 13)], own)  # the digit 4: characters 8 to 9
    assert (found.text, found.ranges) == ("äöüß01\n\n789", [(0, 10), (15, 18)])
    assert cut(text, [(10, 13)], own).text == "äöüß\n\n789"
    assert cut(text, [(8, 18)], own).reason == "nothing_left"
    many = Decontaminate(window_characters=0, min_piece_characters=1, max_pieces=2)
    assert cut("abcde", [(1, 2)], many).text == "a\n\ncde"
    assert cut("abcde", [(1, 2), (3, 4)], many).reason == "too_many_pieces"


def test_common_phrases_are_ignored_and_counted_over_all_blocks(tmp_path):
    own = {"window_characters": 0, "min_piece_characters": 1, "max_documents": 3}
    texts = [f"x{number} {words(0, 13)}" for number in range(4)] + [f"y {words(20, 33)}"]
    left, _, told = decontaminated(tmp_path / "a", texts, [words(0, 13), words(20, 33)], blocks=2, **own)
    assert left == {**dict(enumerate(texts[:4])), 4: "y"}
    assert told["before"]["contaminated"] == 1
    left, _, _ = decontaminated(tmp_path / "b", texts[1:], [words(0, 13), words(20, 33)], blocks=2, **own)
    assert left == {0: "x1", 1: "x2", 2: "x3", 3: "y"}


def test_report_alone_changes_nothing(tmp_path):
    left, statistics, told = decontaminated(tmp_path, [words(0, 30)], [words(0, 30)], action=Action.report, **LLAMA3)
    assert left == {0: words(0, 30)}
    assert not statistics.dropped
    assert told["before"] == told["after"] == {"contaminated": 1, "clean": 0, "dirty": 1, "matched_words": 30}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=1, max_size=5),
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.4, 1.0]),
)
def test_shares_are_those_of_the_definition(tmp_path_factory, texts, examples, blocks, min_share):
    n = 3

    def covered(example, said):
        grams = {tuple(text[i : i + n]) for text in said for i in range(len(text) - n + 1)}
        return {
            place
            for i in range(len(example) - n + 1)
            if tuple(example[i : i + n]) in grams
            for place in range(i, i + n)
        }

    bad = {
        row
        for row, text in enumerate(texts)
        for example in examples
        if (found := covered(example, [text])) and len(found) >= min_share * len(example)
    }
    folder = tmp_path_factory.mktemp("probe")
    own = {"ngram": n, "min_share": min_share, **LLAMA3}
    lines = [" ".join(text) for text in texts]
    left, _, told = decontaminated(folder, lines, [" ".join(each) for each in examples], blocks, **own)
    assert left == {row: text for row, text in enumerate(lines) if row not in bad}
    assert told["before"]["matched_words"] == sum(len(covered(example, texts)) for example in examples)
    stay = [text for row, text in enumerate(texts) if row not in bad]
    assert told["after"]["matched_words"] == sum(len(covered(example, stay)) for example in examples)


def test_fields_of_a_record_are_joined_and_lists_are_read(tmp_path):
    (tmp_path / "qa.jsonl").write_text(json.dumps({"q": "Who is?", "choices": ["one", {"b": "two"}], "n": 3}) + "\n")
    read = read_examples
    assert read("qa", tmp_path / "qa.jsonl", ["q", "choices", "n"]) == ["Who is? one two 3"]
    (tmp_path / "lines.txt").write_text("first\n\nsecond\n")
    assert read("qa", tmp_path / "lines.txt", ["q"]) == ["first", "second"]
    with pytest.raises(DataError, match=r"line 1 has none of .*fields=.*it has q, choices, n"):
        read("qa", tmp_path / "qa.jsonl", ["question"])
    (tmp_path / "qa.jsonl").write_text("\n{broken\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read("qa", tmp_path / "qa.jsonl", ["q"])
    (tmp_path / "qa.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no examples"):
        read("qa", tmp_path / "qa.jsonl", ["q"])


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="benchmarks is empty"):
        Decontaminate().check()
    with pytest.raises(ConfigError, match="min_share=2"):
        Decontaminate({"a": "b"}, min_share=2).check()
    with pytest.raises(ConfigError, match="ngram=1 must be at least 2"):
        Decontaminate({"a": "b"}, ngram=1).check()
    chain = Chain(tmp_path, None, Console(quiet=True), 0)
    with pytest.raises(DataError, match=r"benchmarks.a=.*cannot be read"):
        decontaminate.run(chain, [], Decontaminate({"a": str(tmp_path / "no.jsonl")}))
