import re

from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.text.characters import UNSPACED_RANGES, lowered
from data_pipeline.text.patterns import compile_patterns, count_between, count_whole, find
from tests.data_pipeline.text.definitions import columns_of

PIECES = st.lists(st.sampled_from([*"abABéÉK\u212a -_日本ȺⱥΣ."]), min_size=1, max_size=4).map("".join)
TEXTS = st.lists(st.sampled_from([*"abABéÉK\u212a -_日本ȺⱥΣ."]), max_size=30).map("".join)
UNSPACED = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in UNSPACED_RANGES) + "]")


def places(text, phrase):
    """Where `phrase` begins, overlapping ones too."""
    return [place for place in range(len(text)) if lowered(text).startswith(phrase, place)]


def is_whole(text, start, end):
    def continues(left, right):
        unspaced = UNSPACED.match(left) and UNSPACED.match(right)
        return all(c.isalnum() or c == "_" for c in left + right) and not unspaced

    before = start > 0 and continues(text[start - 1], text[start])
    return not before and not (end < len(text) and continues(text[end - 1], text[end]))


@given(phrases=st.lists(PIECES, min_size=1, max_size=5, unique_by=lowered), rows=st.lists(TEXTS, max_size=3))
@settings(deadline=None, max_examples=300)
def test_every_occurrence_of_every_phrase_is_found_once(phrases, rows):
    patterns, found = compile_patterns(phrases), columns_of(*rows)
    positions, which = find(found, patterns)
    whole = count_whole(found, patterns)
    for document, text in enumerate(rows):
        hits = {number: places(text, lowered(phrase)) for number, phrase in enumerate(phrases)}
        for number, phrase in enumerate(phrases):
            own = count_between(positions[which == number], found.begin, found.end)
            assert own[document] == len(hits[number])
            ends = [found.begin[document] + len(text[: place + len(phrase)].encode()) for place in hits[number]]
            assert set(ends) <= set(positions[which == number].tolist())
        spans = [(place, place + len(phrases[number])) for number, starts in hits.items() for place in starts]
        assert whole[document] == sum(is_whole(text, *span) for span in spans)
