"""The Megatron indexed dataset, against bytes laid out by hand from its description."""

import struct
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.shards.format import parse_index, token_dtype, write_index
from llama_foundation.errors import DataError

PATH = Path("by-hand.idx")

# Two documents of 3 and 2 tokens, uint16: 6 and 4 bytes in the .bin file.
TWO_DOCUMENTS = (
    b"MMIDIDX\x00\x00"
    + struct.pack("<Q", 1)  # version
    + struct.pack("<B", 8)  # uint16
    + struct.pack("<Q", 2)  # sequences
    + struct.pack("<Q", 3)  # document indices
    + struct.pack("<ii", 3, 2)  # lengths in tokens
    + struct.pack("<qq", 0, 6)  # byte offsets
    + struct.pack("<qqq", 0, 1, 2)  # first sequence of each document, and the end
)


def by_hand(
    magic=b"MMIDIDX\x00\x00", version=1, code=8, lengths=(3, 2), pointers=(0, 6), entries=(0, 1, 2), counts=None
):
    sequences, documents = counts or (len(lengths), len(entries))
    return memoryview(
        magic
        + struct.pack("<QBQQ", version, code, sequences, documents)
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(pointers)}q", *pointers)
        + struct.pack(f"<{len(entries)}q", *entries)
    )


def test_the_index_is_written_as_the_format_says():
    written = bytearray()
    write_index(written.extend, np.dtype("<u2"), np.array([3, 2], dtype=np.int32))
    assert bytes(written) == TWO_DOCUMENTS


def test_int32_tokens_have_dtype_code_4_and_offsets_of_4_bytes():
    written = bytearray()
    write_index(written.extend, np.dtype("<i4"), np.array([3, 2], dtype=np.int32))
    assert written[17] == 4
    assert struct.unpack_from("<qq", written, 34 + 8) == (0, 12)


def test_an_index_made_by_hand_is_read():
    index = parse_index(PATH, memoryview(TWO_DOCUMENTS), bin_bytes=10)
    assert index.dtype == np.uint16
    assert index.documents == 2
    assert index.lengths.tolist() == [3, 2]
    assert index.document_starts().tolist() == [0, 3, 5]


def test_documents_of_several_sequences_are_read():
    index = parse_index(PATH, by_hand(lengths=(3, 2, 4), pointers=(0, 6, 10), entries=(0, 2, 3)), bin_bytes=18)
    assert index.documents == 2
    assert index.document_starts().tolist() == [0, 5, 9]
    assert [index.document_at(token) for token in range(9)] == [0] * 5 + [1] * 4
    assert index.document_starts_within(0, 9).tolist() == [0, 5]
    assert index.document_starts_within(1, 5).tolist() == []
    assert index.document_starts_within(5, 6).tolist() == [5]


def test_binary_search_agrees_with_the_whole_list():
    lengths = np.random.default_rng(0).integers(1, 9, 400).astype(np.int32)
    written = bytearray()
    write_index(written.extend, np.dtype("<u2"), lengths)
    index = parse_index(PATH, memoryview(written), bin_bytes=2 * int(lengths.sum()))
    owner = np.repeat(np.arange(400), lengths)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    assert index.document_starts().tolist() == starts.tolist()
    for token in range(int(lengths.sum())):
        assert index.document_at(token) == owner[token]
        for count in (1, 7, 700, 10_000):
            inside = (starts[:-1] >= token) & (starts[:-1] < token + count)
            assert index.document_starts_within(token, token + count).tolist() == starts[:-1][inside].tolist()


@pytest.mark.parametrize(("vocabulary_size", "expected"), [(65499, np.uint16), (65500, np.int32), (128256, np.int32)])
def test_token_type_follows_the_vocabulary(vocabulary_size, expected):
    assert token_dtype(vocabulary_size) == expected


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (by_hand(magic=b"MMIDIDY\x00\x00"), "not a Megatron index"),
        (by_hand(version=2), "version 2"),
        (by_hand(code=6), "dtype code 6"),
        (memoryview(TWO_DOCUMENTS[:20]), "truncated"),
        (memoryview(TWO_DOCUMENTS[:-1]), "take 82 bytes, but the file has 81"),
        (memoryview(TWO_DOCUMENTS + b"\x00"), "but the file has 83"),
        (by_hand(counts=(2**60, 2**60 + 1)), "claims 1152921504606846976 sequences"),
        (by_hand(lengths=(3, -2)), "negative length -2"),
        (by_hand(pointers=(0, 4)), "sequence 1 starts at byte 4"),
        (by_hand(lengths=(3, 3)), "take 12 bytes, but the .bin file has 10"),
        (by_hand(entries=(0, 1, 3)), "do not run from 0 to 2"),
        (by_hand(lengths=(3, 1, 1), pointers=(0, 6, 8), entries=(0, 2, 1, 3)), "do not increase"),
    ],
)
def test_a_damaged_index_is_refused_by_name(data, complaint):
    with pytest.raises(DataError, match=complaint) as raised:
        parse_index(PATH, data, bin_bytes=10)
    assert "by-hand.idx" in str(raised.value)
