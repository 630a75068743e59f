from collections import Counter
from math import log
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain
from data_pipeline.engines.local import LocalEngine
from data_pipeline.filters import token_kl
from data_pipeline.filters.token_kl import TokenKL
from data_pipeline.report.statistics import total
from tests.data_pipeline.conftest import make_documents

TEXTS = ["the cat sat on the mat"] * 8 + ["the dog sat on the log", "xq zz xq zz xq zz xq", ""]
CELLS = 2**18


def plain(text):
    """KL by the formula, over exact words: no two of them share a cell here."""
    corpus = Counter(word for each in TEXTS for word in each.split())
    words = text.split()
    whole = corpus.total() + CELLS
    return sum(
        count / len(words) * log(count / len(words) * whole / (corpus[word] + 1))
        for word, count in Counter(words).items()
    )


def run(folder: Path, cuts: list[int], settings: TokenKL):
    pieces = np.split(np.arange(len(TEXTS)), cuts)
    blocks = [
        block
        for number, rows in enumerate(pieces)
        for block in write_documents(
            folder / f"in-{number}.arrow", make_documents([{"text": TEXTS[row], "file": str(row)} for row in rows])
        )
    ]
    with LocalEngine(1) as engine:
        chain = Chain(folder / "work", engine, Console(quiet=True), seed=0)
        kept, statistics = token_kl.run(chain, blocks, settings)
    documents = [load_documents(block).batch for block in kept]
    scores = {
        file: score
        for batch in documents
        for file, score in zip(batch["file"].to_pylist(), batch["token_kl.divergence"].to_pylist(), strict=True)
    }
    return scores, statistics


def test_divergence_is_the_formula_whatever_the_cut(tmp_path):
    for name, cuts in (("one", []), ("three", [2, 9])):
        scores, _ = run(tmp_path / name, cuts, TokenKL(max_divergence=100))
        assert len(scores) == len(TEXTS)
        for row, text in enumerate(TEXTS):
            if text:
                assert scores[str(row)] == pytest.approx(plain(text), rel=1e-6)  # stored as float32
            else:
                assert scores[str(row)] is None


def test_documents_of_other_words_are_dropped_and_counted(tmp_path):
    limit = (plain(TEXTS[9]) + plain(TEXTS[8])) / 2
    scores, statistics = run(tmp_path, [4], TokenKL(max_divergence=limit))
    assert set(scores) == {str(row) for row in range(len(TEXTS)) if row != 9}
    assert statistics[0].reasons()["token_kl.unlike_the_corpus"] == [1, len(TEXTS[9])]
    assert total(statistics[0].seen)[0] == len(TEXTS)
    assert statistics[0].abstained == {"token_kl.divergence": 1}
