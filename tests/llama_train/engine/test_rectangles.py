"""Flat ranges as rectangles."""

import math

import pytest
import torch

from llama_train.engine.deepspeed.partitions import Piece, rectangles


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (1, 5), (5, 1), (3, 4), (4, 3)])
def test_every_range_of_a_tensor_is_cut_into_rectangles_in_its_order(shape: tuple[int, ...]) -> None:
    whole = torch.arange(math.prod(shape)).view(shape)
    for start in range(whole.numel() + 1):
        for stop in range(start, whole.numel() + 1):
            found = list(rectangles(shape, start, stop))
            assert len(found) <= 3
            parts = [
                whole[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))].flatten()
                for offsets, lengths in found
            ]
            assert torch.cat([*parts, torch.empty(0)]).tolist() == list(range(start, stop))


def test_whole_rows_are_one_rectangle() -> None:
    assert list(rectangles((5, 4), 4, 16)) == [((1, 0), (3, 4))]
    assert list(rectangles((5, 4), 2, 17)) == [((0, 2), (1, 2)), ((1, 0), (3, 4)), ((4, 0), (1, 1))]
    assert list(rectangles((5, 4), 5, 7)) == [((1, 1), (1, 2))]


def test_chunks_of_a_piece_are_views_that_can_be_written() -> None:
    flat = torch.zeros(15)
    piece = Piece("w", (5, 4), 2, 15, master=0, position=0)
    for number, chunk in enumerate(piece.chunks("weights/w", flat), start=1):
        chunk.tensor.fill_(number)
    assert flat.tolist() == [1, 1, *[2] * 12, 3]


def test_a_piece_is_found_among_tensors_that_lie_one_after_the_other() -> None:
    placed = [(0, torch.arange(0, 4).view(2, 2)), (4, torch.arange(4, 10)), (10, torch.arange(10, 12))]
    for start, length in ((0, 4), (1, 2), (4, 6), (6, 3), (10, 2)):
        piece = Piece("w", (99,), 0, length, master=0, position=start)
        assert piece.flat_among(placed).tolist() == list(range(start, start + length))
