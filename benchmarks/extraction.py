"""How well the stage `extract` finds the body of an article, against pages labelled by hand.

    python benchmarks/extraction.py FOLDER [--readability FOLDER]

FOLDER is a checkout of github.com/scrapinghub/article-extraction-benchmark (ground-truth.json, html/*.html.gz);
--readability takes a checkout of github.com/mozilla/readability (test/test-pages/*/source.html and expected.html; the
text of expected.html counts as the truth). Precision, recall and F1 are those of the first: shingles of four tokens
(\\w+) counted with multiplicity, each page's counts divided by their sum, precision and recall averaged over the pages
where they are defined, F1 their harmonic mean. CPU-seconds are of the extraction alone, one thread.
"""

import argparse
import gzip
import json
import re
import time
from collections import Counter
from pathlib import Path

from resiliparse.extract.html2text import extract_plain_text

from data_pipeline.extract.extract import EncodingRepair, Extract, Extractor, extract_text

SHINGLE_TOKENS = 4


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """Return how often each run of four tokens occurs; a shorter text is one run."""
    tokens = re.findall(r"\w+", text)
    runs = (tuple(tokens[i : i + SHINGLE_TOKENS]) for i in range(max(1, len(tokens) - SHINGLE_TOKENS + 1)))
    return Counter(run for run in runs if run)


def score(truths: list[str], answers: list[str]) -> tuple[float, float, float]:
    """Return (precision, recall, F1) over pages."""
    precisions, recalls = [], []
    for truth, answer in zip(truths, answers, strict=True):
        expected, found = shingles(truth), shingles(answer)
        both = (expected & found).total()
        if found:
            precisions.append(both / found.total())
        if expected:
            recalls.append(both / expected.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return precision, recall, 2 * precision * recall / (precision + recall)


def article_pages(folder: Path) -> tuple[list[str], list[str]]:
    """Return (HTML, article body) of every page of the article extraction benchmark."""
    truth = json.loads((folder / "ground-truth.json").read_text())
    pages = [gzip.decompress((folder / "html" / f"{key}.html.gz").read_bytes()).decode() for key in truth]
    return pages, [each.get("articleBody", "") for each in truth.values()]


def readability_pages(folder: Path) -> tuple[list[str], list[str]]:
    """Return (HTML, text of the expected article) of every test page of Readability."""
    cases = sorted((folder / "test" / "test-pages").glob("*/source.html"))
    pages = [path.read_text(errors="replace") for path in cases]
    truths = [
        extract_plain_text(path.with_name("expected.html").read_text(errors="replace"), list_bullets=False)
        for path in cases
    ]
    return pages, truths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--readability", type=Path)
    arguments = parser.parse_args()
    sets = {"article-extraction-benchmark": article_pages(arguments.folder)}
    if arguments.readability:
        sets["readability test pages"] = readability_pages(arguments.readability)
    plain = {"encoding_repair": EncodingRepair.none, "list_bullets": False}
    systems = {
        "all text of the page": Extract(main_content=False, **plain),
        "resiliparse": Extract(**plain),
        "trafilatura": Extract(extractor=Extractor.trafilatura, **plain),
        "trafilatura, precision": Extract(extractor=Extractor.trafilatura, favor_precision=True, **plain),
    }
    extract_text("<p>trafilatura is loaded here</p>", systems["trafilatura"])
    for name, (pages, truths) in sets.items():
        megabytes = sum(len(page.encode()) for page in pages) / 1e6
        print(f"{name}: {len(pages)} pages, {megabytes:.1f} MB of HTML")
        for system, settings in systems.items():
            started = time.process_time()
            answers = [extract_text(page, settings) or "" for page in pages]
            seconds = time.process_time() - started
            precision, recall, f1 = score(truths, answers)
            print(
                f"  {system:22}  precision {precision:.3f}  recall {recall:.3f}  F1 {f1:.3f}  "
                f"{megabytes / seconds:6.1f} MB/CPU-s"
            )


if __name__ == "__main__":
    main()
