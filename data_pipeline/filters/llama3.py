"""Llama 3's heuristics (Dubey et al. 2024, arXiv:2407.21783, section 3.1.1, "Heuristic filtering").

The paper names three rules and no numbers; ours are assumed.
- Duplicated n-gram coverage (after Rae et al. 2021) removes lines that repeat themselves, such as logs and error
  messages, which are long and unique and so escape the deduplication of lines: a line goes when too large a share of
  the characters of its words is in n-grams that occurred before in the same line.
- Dirty words (after Raffel et al. 2020) find adult pages that are on no block list: occurrences per word, from lists
  of your own, one file per language; without a list the rule abstains.
- The distance of a document's words from the corpus' is a stage of its own, token_kl, as it must see the corpus first.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.document import Documents
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.word_lists import count_listed
from data_pipeline.filters.words import WordRules, share
from data_pipeline.text import Texts
from data_pipeline.text.edits import join_lines
from data_pipeline.text.ngrams import LARGEST, PAPER, ngram_shares
from data_pipeline.text.spans import total

NAME = "llama3"
VERSION = 1


@dataclass
class Llama3(WordRules):
    """Numbers are ours: the paper gives none."""

    line_ngram: int = 5  # words, 5 to 10
    max_line_coverage: float = 0.5  # share of a line's characters in n-grams that occurred before in it
    dirty_word_lists: dict[str, str] = field(default_factory=dict)  # language -> file, a word or phrase per line
    max_dirty_words: float = 0.01  # per word


def files(settings: Llama3) -> list[Path]:
    """Return the files whose content decides what is kept."""
    return [Path(file) for file in settings.dirty_word_lists.values()]


def rules(settings: Llama3) -> list[Rule]:
    """Return the thresholds."""
    return [
        Rule("dirty_words", "dirty_words", maximum=settings.max_dirty_words),
        Rule("no_lines_left", "lines", minimum=1),
    ]


def measure(documents: Documents, settings: Llama3) -> Measurement:
    """Measure a batch; lines that repeat themselves are taken out."""
    assert 5 <= settings.line_ngram <= LARGEST
    texts = documents.texts
    lines = texts.lines.compact()
    asked = np.repeat(settings.applies(texts), lines.counts)
    each_line = Texts(texts.data, lines.starts, lines.ends)
    words = settings.spans(each_line)
    columns = words.starts, words.ends, words.characters, words.hashes, words.first, words.last
    shares = ngram_shares(texts.data, *columns, lines.characters.astype(np.int64), PAPER, settings.line_ngram)
    removed = asked & (shares[settings.line_ngram] > settings.max_line_coverage)
    return Measurement(
        {
            "dirty_words": share(
                count_listed(documents, settings.dirty_word_lists),
                texts.word_counts(settings.words, settings.unspaced),
            ),
            "lines": total(~removed, lines.first, lines.last).astype(np.float64),
        },
        join_lines(texts, lines, ~removed) if removed.any() else None,
        counts={"repetitive_line": int(removed.sum())},
    )
