"""What is common to the rules on words: which words, where they abstain, whose definition they follow."""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from data_pipeline.text import Segmenter, Spans, Texts, Unspaced


class Definition(Enum):
    """Whose reading of a paper's sentence a rule follows; each filter says where they differ."""

    paper = "paper"  # the paper's words, and ours where it leaves a choice
    datatrove = "datatrove"  # huggingface/datatrove 0.10
    dolma = "dolma"  # allenai/dolma, tagger gopher_v1


@dataclass
class WordRules:
    """Settings of every filter that counts words."""

    words: Segmenter = Segmenter.whitespace
    unspaced: Unspaced = Unspaced.abstain  # what the rules on words do in scripts that have no spaces between them

    def spans(self, texts: Texts) -> Spans:
        """Return the words."""
        return texts.words(self.words, self.unspaced)

    def applies(self, texts: Texts) -> np.ndarray:
        """Return bool [documents]: whether rules on words have a say."""
        return texts.spaced | (self.unspaced is Unspaced.characters)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return float64 `part` / `whole`, NaN where there is no whole: a rule abstains there."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole != 0)


def where(condition: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return float64 `values`, NaN where `condition` is false."""
    return np.where(condition, values, np.nan)
