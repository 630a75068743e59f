"""Gopher's repetition rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1, "Repetition removal", table A1).

Where the paper leaves a choice, ours is:
- a line, paragraph or n-gram is a duplicate from its second occurrence on; the first one is not counted;
- lines and paragraphs are compared without the white space around them, blank ones do not exist;
- the shares of characters are taken over the characters of all lines, of all paragraphs, or of all words;
- the most frequent n-gram must occur at least twice; of equally frequent ones the longest in characters counts;
- a word inside several duplicated n-grams is counted once.
The n-gram rules need words and abstain for scripts without spaces, unless `unspaced: characters`.

`definition: datatrove` (0.10) takes all shares of characters over the characters of the whole text, counts the spaces
inside of the most frequent n-gram, takes the first of equally frequent ones even where it occurs once, and goes on
behind an n-gram that is a duplicate. Its words are spaCy's: `words: uax29` is nearest.
`definition: dolma` (gopher_v1) takes all lines, blank ones too, as they are; counts all occurrences of what occurs
more than once, over the characters of all words, for duplicated n-grams over those of all n-grams; it knows no
paragraphs.
"""

from dataclasses import dataclass, field

import numpy as np

from data_pipeline.document import Documents
from data_pipeline.filters.measure import Measurement, Rule
from data_pipeline.filters.words import Definition, WordRules, share, where
from data_pipeline.text import Spans, Texts
from data_pipeline.text.ngrams import DATATROVE, DOLMA, DUPLICATED_SIZES, PAPER, TOP_SIZES, ngram_shares
from data_pipeline.text.spans import repeated, total

NAME = "gopher_repetition"
VERSION = 2

_CODES = {Definition.paper: PAPER, Definition.datatrove: DATATROVE, Definition.dolma: DOLMA}


@dataclass
class GopherRepetition(WordRules):
    """Largest shares allowed, table A1's unless a preset says otherwise."""

    definition: Definition = Definition.paper
    max_lines: float = 0.30
    max_paragraphs: float = 0.30
    max_line_characters: float = 0.20
    max_paragraph_characters: float = 0.20
    max_top_ngrams: list[float] = field(default_factory=lambda: [0.20, 0.18, 0.16])  # of 2, 3, 4 words
    max_duplicated_ngrams: list[float] = field(  # of 5 to 10 words
        default_factory=lambda: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    )


def rules(settings: GopherRepetition) -> list[Rule]:
    """Return the thresholds: lines, paragraphs, most frequent n-grams, duplicated n-grams."""
    top = zip(TOP_SIZES, settings.max_top_ngrams, strict=True)
    duplicated = zip(DUPLICATED_SIZES, settings.max_duplicated_ngrams, strict=True)
    return [
        Rule("duplicate_lines", "lines", maximum=settings.max_lines),
        Rule("duplicate_paragraphs", "paragraphs", maximum=settings.max_paragraphs),
        Rule("duplicate_line_characters", "line_characters", maximum=settings.max_line_characters),
        Rule("duplicate_paragraph_characters", "paragraph_characters", maximum=settings.max_paragraph_characters),
        *(Rule(f"top_{n}_gram", f"top_{n}_gram", maximum=limit) for n, limit in top),
        *(Rule(f"duplicated_{n}_grams", f"duplicated_{n}_grams", maximum=limit) for n, limit in duplicated),
    ]


def measure(documents: Documents, settings: GopherRepetition) -> Measurement:
    """Measure a batch."""
    texts, definition = documents.texts, settings.definition
    words = settings.spans(texts)
    columns = words.starts, words.ends, words.characters, words.hashes, words.first, words.last
    characters = texts.census("characters")
    shares = ngram_shares(texts.data, *columns, characters, _CODES[definition], TOP_SIZES[0])
    applies = settings.applies(texts)
    scores = _piece_scores(texts, words, definition)
    scores |= {f"top_{n}_gram": where(applies, shares[n]) for n in TOP_SIZES}
    scores |= {f"duplicated_{n}_grams": where(applies, shares[n]) for n in DUPLICATED_SIZES}
    return Measurement(scores)


def _piece_scores(texts: Texts, words: Spans, definition: Definition) -> dict[str, np.ndarray]:
    is_dolma = definition is Definition.dolma
    lines = texts.raw_lines if is_dolma else texts.lines
    number, characters = duplicates(texts, lines, with_first=is_dolma)
    if is_dolma:
        nothing = np.full(len(texts), np.nan)
        whole = total(words.characters, words.first, words.last)
        line_scores = {"lines": share(number, lines.counts), "line_characters": share(characters, whole)}
        return line_scores | {"paragraphs": nothing, "paragraph_characters": nothing}
    paragraphs = texts.paragraphs
    paragraph_number, paragraph_characters = duplicates(texts, paragraphs, with_first=False)
    whole = texts.census("characters")
    is_paper = definition is Definition.paper
    line_whole = total(lines.characters, lines.first, lines.last) if is_paper else whole
    paragraph_whole = total(paragraphs.characters, paragraphs.first, paragraphs.last) if is_paper else whole
    return {
        "lines": share(number, lines.counts),
        "paragraphs": share(paragraph_number, paragraphs.counts),
        "line_characters": share(characters, line_whole),
        "paragraph_characters": share(paragraph_characters, paragraph_whole),
    }


def duplicates(texts: Texts, spans: Spans, with_first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [documents]: how many spans are duplicates, and how many characters those have."""
    columns = spans.starts, spans.ends, spans.characters, spans.hashes, spans.first, spans.last
    return repeated(texts.data, *columns, with_first)
