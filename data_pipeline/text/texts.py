"""A column of texts, and what was found in them: each once, on first use, for all filters."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.text import census, lines, sentences, word_break, words
from data_pipeline.text.characters import properties

UNSPACED_SHARE = 0.1
"""Words are not marked by spaces in a text of which more than this share of visible characters is of such a script."""


class Segmenter(Enum):
    """What a word is."""

    whitespace = "whitespace"  # what stands between white space, punctuation included
    uax29 = "uax29"  # Unicode's default word boundaries (UAX #29), where there is a letter, digit or underscore


class Unspaced(Enum):
    """What a rule on words does with a text whose script does not mark them with spaces."""

    abstain = "abstain"
    characters = "characters"  # every character of such a script is a word, with the marks on it


@dataclass(frozen=True)
class Spans:
    """Byte ranges in the data of all documents; document i has those from first[i] up to last[i].

    starts, ends  int64 [spans]
    characters    int32 [spans], code points of each
    hashes        uint64 [spans], of the bytes (data_pipeline/text/hashing.py)
    flags         uint8 [spans], of words (words.HAS_LETTER and others), else zeros
    first, last   int64 [documents]

    There may be spans that belong to no document, those of documents that were dropped: `compact` leaves them out.
    """

    starts: np.ndarray
    ends: np.ndarray
    characters: np.ndarray
    hashes: np.ndarray
    flags: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """int64 [documents]."""
        return self.last - self.first

    def compact(self) -> "Spans":
        """Return the same without the spans that belong to no document any more, document by document."""
        counts = self.counts
        last = np.cumsum(counts)
        chosen = np.arange(last[-1] if len(last) else 0) + np.repeat(self.first - (last - counts), counts)
        columns = (self.starts, self.ends, self.characters, self.hashes, self.flags)
        return Spans(*(column[chosen] for column in columns), last - counts, last)

    def replace(self, rows: np.ndarray, others: "Spans", shift: int) -> "Spans":
        """Return the spans with those of the documents `rows` replaced by `others`, `shift` bytes further on."""
        first, last = self.first.copy(), self.last.copy()
        first[rows], last[rows] = others.first + len(self.starts), others.last + len(self.starts)
        return Spans(
            np.concatenate((self.starts, others.starts + shift)),
            np.concatenate((self.ends, others.ends + shift)),
            np.concatenate((self.characters, others.characters)),
            np.concatenate((self.hashes, others.hashes)),
            np.concatenate((self.flags, others.flags)),
            first,
            last,
        )

    def select(self, keep: np.ndarray) -> "Spans":
        """Return the spans of the documents where `keep` (bool or indexes) says so; nothing is copied per span."""
        columns = (self.starts, self.ends, self.characters, self.hashes, self.flags)
        return Spans(*columns, self.first[keep], self.last[keep])


class Texts:
    """Texts as one array of bytes.

    data        uint8 [bytes], UTF-8
    begin, end  int64 [documents], byte ranges
    """

    def __init__(self, data: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        self.data = data.view()
        self.data.flags.writeable = False  # as Arrow's bytes are: kernels are compiled for one kind of array only
        self.begin = begin
        self.end = end
        self._found: dict[Any, Spans | np.ndarray] = {}

    @classmethod
    def from_arrow(cls, array: pa.LargeStringArray) -> "Texts":
        """Return the texts of an array without nulls; the bytes are not copied."""
        _, offsets, data = array.buffers()
        bounds = np.frombuffer(offsets, np.int64, len(array) + 1, 8 * array.offset) if len(array) else np.zeros(1, int)
        bytes_ = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
        return cls(bytes_, bounds[:-1].astype(np.int64), bounds[1:].astype(np.int64))

    def __len__(self) -> int:
        return len(self.begin)

    def select(self, keep: np.ndarray) -> "Texts":
        """Return the texts where `keep` (bool or indexes [documents]) says so, with all that is known of them."""
        selected = Texts(self.data, self.begin[keep], self.end[keep])
        for key, value in self._found.items():
            if isinstance(value, Spans):
                selected._found[key] = value.select(keep)
            else:
                selected._found[key] = value[..., keep]  # documents are the last axis
        return selected

    def replace(self, rows: np.ndarray, texts: "Texts") -> "Texts":
        """Return the texts with those of `rows` (indexes) replaced; lines are split again only in these.

        Nothing else is known of the new texts: to copy all words costs more than most rules gain from them.
        """
        shift = len(self.data)
        begin, end = self.begin.copy(), self.end.copy()
        begin[rows], end[rows] = texts.begin + shift, texts.end + shift
        replaced = Texts(np.concatenate((self.data, texts.data)), begin, end)
        if "lines" in self._found:
            replaced._found["lines"] = self.lines.replace(rows, texts.lines, shift)
        return replaced

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return what is kept under `key`: Spans, or an array whose last axis is documents; compute it if need be."""
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]

    def words(self, segmenter: Segmenter = Segmenter.whitespace, unspaced: Unspaced = Unspaced.abstain) -> Spans:
        """Return the words; `unspaced` changes only documents that are not `spaced`.

        UAX #29 makes characters of most such scripts by itself.
        """

        def find() -> Spans:
            single = ~self.spaced if unspaced is Unspaced.characters else np.zeros(len(self), bool)
            if segmenter is Segmenter.whitespace:
                found = words.whitespace_words(self.data, self.begin, self.end, properties(), single)
            else:
                kinds = word_break.word_break_table()
                found = word_break.uax29_words(self.data, self.begin, self.end, properties(), kinds)
            return Spans(*found)

        return self.once(("words", segmenter, unspaced), find)

    def word_counts(
        self, segmenter: Segmenter = Segmenter.whitespace, unspaced: Unspaced = Unspaced.abstain
    ) -> np.ndarray:
        """Return int64 [documents]: how many words, without finding them where white space is enough."""
        if ("words", segmenter, unspaced) in self._found or segmenter is not Segmenter.whitespace:
            return self.words(segmenter, unspaced).counts
        if unspaced is Unspaced.characters and not self.spaced.all():
            return self.words(segmenter, unspaced).counts
        return self.once("word_counts", lambda: words.count_words(self.data, self.begin, self.end, properties()))

    @property
    def lines(self) -> Spans:
        """What stands between newlines, without the white space around it; blank lines do not exist."""
        return self.once("lines", lambda: self._lines(strip=True))

    @property
    def raw_lines(self) -> Spans:
        """Everything between newlines as it is, blank or not."""
        return self.once("raw_lines", lambda: self._lines(strip=False))

    @property
    def paragraphs(self) -> Spans:
        """What stands between blank lines, without the white space around it."""

        def find() -> Spans:
            own = self.lines
            columns = (own.starts, own.ends, own.characters, own.hashes, own.first, own.last)
            return _without_flags(lines.join_paragraphs(self.data, columns))

        return self.once("paragraphs", find)

    @property
    def sentences(self) -> np.ndarray:
        """int64 [documents]: ends of sentences (data_pipeline/text/sentences.py)."""
        return self.once(
            "sentences", lambda: sentences.count_sentence_ends(self.data, self.begin, self.end, properties())
        )

    @property
    def spaced(self) -> np.ndarray:
        """bool [documents]: whether the script marks words with spaces."""
        return self.census("unspaced") <= UNSPACED_SHARE * self.census("visible")

    def census(self, column: str) -> np.ndarray:
        """Return int64 [documents]: a column of census.COLUMNS."""
        found = self.once("census", lambda: census.census(self.data, self.begin, self.end, properties()))
        return found[census.COLUMNS.index(column)]

    def _lines(self, strip: bool) -> Spans:
        return _without_flags(lines.split_lines(self.data, self.begin, self.end, properties(), strip))


def _without_flags(columns: lines.LineColumns) -> Spans:
    starts, ends, characters, hashes, first, last = columns
    return Spans(starts, ends, characters, hashes, np.zeros(len(starts), np.uint8), first, last)
