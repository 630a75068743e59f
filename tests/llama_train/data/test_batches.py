"""Windows to tensors, against batches written out by hand and a plain loop."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_foundation.errors import DataError
from llama_train.config import DataConfig
from llama_train.data.batches import IGNORE, make_micro_batch, validation_micro_batches


def window(tokens, starts=()):
    return np.array(tokens, dtype=np.uint16), np.array(starts, dtype=np.int64)


def test_documents_positions_and_labels_by_hand():
    # row 0 begins inside a document; another starts at its third token, a third one at the last, the label-only token.
    # row 1 begins with a document.
    batch = make_micro_batch([window([11, 2, 1, 12, 13, 1], [2, 5]), window([1, 7, 8, 2, 1, 9], [0, 4])])
    assert batch.tokens.tolist() == [[11, 2, 1, 12, 13], [1, 7, 8, 2, 1]]
    assert batch.labels.tolist() == [[2, IGNORE, 12, 13, IGNORE], [7, 8, 2, IGNORE, 9]]
    assert batch.document_ids.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    assert {part.dtype for part in (batch.tokens, batch.labels, batch.document_ids, batch.positions)} == {torch.int32}


@pytest.mark.filterwarnings("error")
def test_without_document_masks_a_row_is_one_text():
    batch = make_micro_batch([window([11, 2, 1, 12], [2])], document_masks=False)
    assert batch.tokens.tolist() == [[11, 2, 1]]
    assert batch.labels.tolist() == [[2, 1, 12]]
    assert batch.document_ids is None
    assert batch.positions.tolist() == [[0, 1, 2]]


@given(starts=st.sets(st.integers(0, 12), max_size=6))
def test_a_row_agrees_with_a_plain_loop(starts):
    tokens = list(range(100, 113))
    batch = make_micro_batch([window(tokens, sorted(starts))])
    document = position = 0
    for column in range(12):
        if column and column in starts:
            document, position = document + 1, 0
        assert batch.document_ids[0, column] == document
        assert batch.positions[0, column] == position
        assert batch.labels[0, column] == (IGNORE if column + 1 in starts else tokens[column + 1])
        position += 1


def test_a_batch_shares_no_memory_with_the_shards(root):
    shards = root.open("train", "web")
    tokens = shards.read(0, 0, 9)
    batch = make_micro_batch([(tokens, np.array([], dtype=np.int64))])
    batch.tokens.zero_()
    assert tokens.tolist() == list(range(20000, 20009))


def data(**changes):
    return DataConfig(**{"shards": "nowhere", "sequence_length": 8, "batch_size": 6} | changes)


def validation_rows(root, batches, world=1, micro=6):
    """Every window that counts, of books and then of web, in the order of the passes and ranks."""
    found = []
    for source in ("books", "web"):
        ranks = [list(validation_micro_batches(root, data(), source, batches, n, world, micro)) for n in range(world)]
        for passes in zip(*ranks, strict=True):
            for micro_batch in passes:
                assert micro_batch.tokens.shape == (micro, 8)
                counts = (micro_batch.labels != IGNORE).any(dim=1)
                found += micro_batch.tokens[counts].tolist()
    return found


def windows_by_hand(root, source, first):
    rows = []
    for tokens in root.open("validation", source).shard_tokens:
        rows += [list(range(first + start, first + start + 8)) for start in range(0, tokens - 8, 8)]
        first += tokens
    return rows


def test_validation_takes_every_window_once_in_order_and_in_proportion(root):
    books, web = windows_by_hand(root, "books", 0), windows_by_hand(root, "web", 20000)
    total = len(books) + len(web)
    assert len(validation_rows(root, total // 6)) == total // 6 * 6 > total - 6
    for batches in range(1, total // 6 + 1):
        rows = validation_rows(root, batches)
        share = sum(row[0] < 20000 for row in rows)
        assert rows == books[:share] + web[: batches * 6 - share]
        assert abs(share - batches * 6 * len(books) / total) <= 1


def test_validation_is_the_same_on_every_layout(root):
    whole = validation_rows(root, 3)
    for world, micro in ((1, 1), (2, 3), (3, 2), (6, 1)):
        assert validation_rows(root, 3, world, micro) == whole


def test_validation_is_refused_beyond_the_last_window(root):
    total = len(windows_by_hand(root, "books", 0)) + len(windows_by_hand(root, "web", 20000))
    with pytest.raises(DataError, match=rf"hold {total} sequences .* use validation.batches={total // 6} or less"):
        next(validation_micro_batches(root, data(), "books", total // 6 + 1, 0, 1, 1))
