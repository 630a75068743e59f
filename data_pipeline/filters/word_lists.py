"""Lists of words that the user gives, one file per language, counted in documents of that language."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipeline.document import Documents
from data_pipeline.text.characters import lowered
from data_pipeline.text.patterns import Patterns, compile_patterns, count_whole
from llama_foundation.errors import ConfigError


def count_listed(documents: Documents, lists: dict[str, str]) -> np.ndarray:
    """Return float64 [documents]: occurrences of listed words, NaN where the document's language has no list."""
    counts = np.full(len(documents), np.nan)
    for language, path in sorted(lists.items()):
        rows = np.flatnonzero(documents.in_languages([language]))
        if len(rows):
            counts[rows] = count_whole(documents.texts.select(rows), _compiled(path))
    return counts


def check_lists(setting: str, lists: dict[str, str]) -> None:
    """Refuse files that cannot be used.

    Raises:
        ConfigError: names the setting, the language and the file.
    """
    for language, path in lists.items():
        try:
            if not read_list(path):
                raise ConfigError(f"{setting}.{language}={path} holds no words; write one word or phrase per line")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{setting}.{language}={path} cannot be read: {error}; give a UTF-8 file of one word or phrase per line"
            ) from error


def read_list(path: str) -> list[str]:
    """Return the different phrases of a file, one per line, in lower case; blank lines and # comments are none."""
    rows = (line.strip() for line in Path(path).read_text("utf-8").splitlines())
    return list(dict.fromkeys(lowered(row) for row in rows if row and not row.startswith("#")))


@lru_cache(maxsize=64)
def _compiled(path: str) -> Patterns:
    return compile_patterns(read_list(path))
