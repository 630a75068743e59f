import numpy
from hypothesis import given
from hypothesis import strategies as st

from llama_train.checkpoint.index import covers_exactly, is_safe_name


@st.composite
def tilings(draw):
    """A shape and rectangles that tile it, made by cutting again and again; then maybe spoilt."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    boxes = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6))):
        offsets, lengths = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        cut = draw(st.integers(0, lengths[axis]))
        for begin, size in ((0, cut), (cut, lengths[axis] - cut)):
            if size:
                boxes.append(
                    (
                        (*offsets[:axis], offsets[axis] + begin, *offsets[axis + 1 :]),
                        (*lengths[:axis], size, *lengths[axis + 1 :]),
                    )
                )
    spoil = draw(st.sampled_from(["none", "drop", "double", "shift", "grow"]))
    position = draw(st.integers(0, len(boxes) - 1))
    offsets, lengths = boxes[position]
    axis = draw(st.integers(0, len(shape) - 1))
    if spoil == "drop":
        boxes.pop(position)
    elif spoil == "double":
        boxes.append((offsets, lengths))
    elif spoil == "shift" and offsets[axis]:
        boxes[position] = ((*offsets[:axis], offsets[axis] - 1, *offsets[axis + 1 :]), lengths)
    elif spoil == "grow" and offsets[axis] + lengths[axis] < shape[axis]:
        boxes[position] = (offsets, (*lengths[:axis], lengths[axis] + 1, *lengths[axis + 1 :]))
    return shape, boxes


@given(tilings())
def test_coverage_agrees_with_counting_every_element(case):
    shape, boxes = case
    count = numpy.zeros(shape, dtype=int)
    for offsets, lengths in boxes:
        count[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))] += 1
    offsets = numpy.array([box[0] for box in boxes], dtype=numpy.int64).reshape(-1, len(shape))
    lengths = numpy.array([box[1] for box in boxes], dtype=numpy.int64).reshape(-1, len(shape))
    assert covers_exactly(shape, offsets, lengths) == bool((count == 1).all())


def test_coverage_of_scalars_and_empty_tensors():
    none, one = numpy.zeros((0, 0), dtype=numpy.int64), numpy.zeros((1, 0), dtype=numpy.int64)
    assert covers_exactly((), one, one)
    assert not covers_exactly((), none, none)
    assert covers_exactly((0, 5), numpy.zeros((0, 2), dtype=numpy.int64), numpy.zeros((0, 2), dtype=numpy.int64))


def test_names_that_leave_the_directory_are_not_safe():
    assert is_safe_name("tokenizer/tokenizer.model")
    for name in ("", ".", "..", "/a", "a/../b", "../a", "a//b", "a/", "./a", ".hidden", "a/.b", "a\\b", "a\0b"):
        assert not is_safe_name(name), name
