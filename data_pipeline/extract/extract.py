"""HTML to text: the main content of a page, without menus, advertisements and scripts.

Two extractors: resiliparse (Bevendorff et al. 2018, "Elastic ChatNoir"), a C++ parser with rules on tags and class
names, and trafilatura (Barbaresi 2021, ACL demo), slower, with fallbacks. How well each does is measured by
`benchmarks/extraction.py`. Documents that are not HTML pass as they are.
"""

import html as entities
import re
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pyarrow as pa
from resiliparse.extract.html2text import extract_plain_text

from data_pipeline.document import Documents
from data_pipeline.extract.repair import repair_mojibake
from data_pipeline.filters.measure import Measurement, Rule
from llama_foundation.errors import ConfigError

NAME = "extract"
VERSION = 1

_HTML = "text/html"
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_HEAD_CHARACTERS = 64 * 1024
MAX_DEPTH = 2000
"""Elements inside of each other; browsers stop at 512, and the time of an extractor grows with the square."""

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
_NOT_CLOSED = (  # by many authors, or ever
    "area base br col dd dt embed hr img input li link meta option p param source tbody td tfoot th thead tr track wbr"
)
_OFTEN_NOT_CLOSED = frozenset(_NOT_CLOSED.split())


class Extractor(Enum):
    resiliparse = "resiliparse"
    trafilatura = "trafilatura"


class EncodingRepair(Enum):
    none = "none"
    mojibake = "mojibake"  # UTF-8 that was read as Windows-1252
    ftfy = "ftfy"  # all that ftfy mends; needs the extra [ftfy]


@dataclass
class Extract:
    """How a page becomes text. Both extractors know the first group; each the one of its name besides."""

    extractor: Extractor = Extractor.resiliparse
    main_content: bool = True  # resiliparse: leave out navigation, headers, footers ...; trafilatura always does
    title: bool = False  # put the page's title in front
    links: bool = False  # keep the addresses of links
    comments: bool = False  # readers' comments below an article
    min_characters: int = 1  # of text; less is dropped as extract.too_short
    encoding_repair: EncodingRepair = EncodingRepair.mojibake
    # resiliparse
    preserve_formatting: bool = True  # paragraphs and lists stay lines
    list_bullets: bool = True
    alt_texts: bool = False  # of images
    post_meta: bool = False  # author, date and the like beside an article
    form_fields: bool = False
    noscript: bool = False  # what a page shows without JavaScript
    hidden_elements: bool = False
    # trafilatura
    tables: bool = True
    favor_precision: bool = False
    favor_recall: bool = False

    def check(self) -> None:
        if self.min_characters < 0:
            raise ConfigError(f"extract.min_characters={self.min_characters} must be at least 0")
        if self.favor_precision and self.favor_recall:
            raise ConfigError("extract.favor_precision and favor_recall are both true; choose one of them")
        if self.extractor is Extractor.trafilatura:
            _library("trafilatura", "extract.extractor=trafilatura")
        if self.encoding_repair is EncodingRepair.ftfy:
            _library("ftfy", "extract.encoding_repair=ftfy")


def rules(settings: Extract) -> list[Rule]:
    """Return no thresholds: what becomes no text is dropped by name."""
    return []


def measure(documents: Documents, settings: Extract) -> Measurement:
    """Extract a batch; a page without text, and one that the extractor cannot take, is dropped with its reason."""
    batch = documents.batch
    texts = batch["text"].to_pylist()
    kinds = batch["content_type"].to_pylist()
    shares = np.full(len(texts), np.nan)
    drops: dict[str, np.ndarray] = {}
    for row, (kind, text) in enumerate(zip(kinds, texts, strict=True)):
        reason, texts[row] = _extracted(text, kind == _HTML, settings)
        if reason is not None:
            drops.setdefault(reason, np.zeros(len(texts), bool))[row] = True
        if kind == _HTML and reason is None:
            shares[row] = len(texts[row]) / max(len(text), 1)
            kinds[row] = "text/plain"
    return Measurement(
        {"text_share": shares},
        texts=pa.array(texts, pa.large_string()),
        columns={"content_type": pa.array(kinds, pa.string())},
        drops=drops,
    )


def _extracted(text: str, is_html: bool, settings: Extract) -> tuple[str | None, str]:
    """Return why a document is dropped, or None, and its text."""
    if is_html and nested_too_deep(text):
        return "nested_too_deep", text
    try:
        found = extract_text(text, settings) if is_html else _repaired(text, settings)
    except (ValueError, RuntimeError, RecursionError, MemoryError):
        return "failed", text
    if found is None:
        return "no_main_text", text
    if is_html and len(found) < settings.min_characters:
        return "too_short", text
    return None, found


def nested_too_deep(html: str) -> bool:
    """Whether more than `MAX_DEPTH` elements are open at once, by counting tags that need an end."""
    if html.count("<") <= MAX_DEPTH:
        return False
    depth = 0
    for closing, name in _TAG.findall(html):
        if name.lower() not in _OFTEN_NOT_CLOSED:
            depth = max(0, depth - 1) if closing else depth + 1
            if depth > MAX_DEPTH:
                return True
    return False


def extract_text(html: str, settings: Extract) -> str | None:
    """Return the text of a page, None where it has none.

    Raises:
        ConfigError: the library of a chosen extra is not installed.
    """
    if settings.extractor is Extractor.trafilatura:
        text = _with_trafilatura(html, settings)
    else:
        text = extract_plain_text(
            html,
            preserve_formatting=settings.preserve_formatting,
            main_content=settings.main_content,
            list_bullets=settings.list_bullets,
            alt_texts=settings.alt_texts,
            links=settings.links,
            form_fields=settings.form_fields,
            noscript=settings.noscript,
            comments=settings.comments,
            post_meta=settings.post_meta,
            hidden_elements=settings.hidden_elements,
        )
    if not text or not text.strip():
        return None
    if settings.title and (found := _TITLE.search(html, 0, _HEAD_CHARACTERS)):
        title = " ".join(entities.unescape(found[1]).split())
        text = f"{title}\n\n{text}" if title else text
    return _repaired(text.strip(), settings)


def _with_trafilatura(html: str, settings: Extract) -> str | None:
    return _library("trafilatura", "extract.extractor=trafilatura").extract(
        html,
        include_comments=settings.comments,
        include_links=settings.links,
        include_tables=settings.tables,
        favor_precision=settings.favor_precision,
        favor_recall=settings.favor_recall,
    )


def _repaired(text: str, settings: Extract) -> str:
    if settings.encoding_repair is EncodingRepair.ftfy:
        return _library("ftfy", "extract.encoding_repair=ftfy").fix_text(text, unescape_html=False)
    return repair_mojibake(text) if settings.encoding_repair is EncodingRepair.mojibake else text


def _library(name: str, setting: str):
    try:
        return __import__(name)
    except ImportError as error:
        raise ConfigError(f"{setting} needs {name} ({error}): pip install 'llama-train[{name}]'") from error
