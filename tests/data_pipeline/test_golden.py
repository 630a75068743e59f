"""What every stage makes of a fixed input, by digest, with the VERSION it was made by.

A digest that changes under the same VERSION means that finished work of users would be used again although it is no
longer right. After raising VERSION:

    python -m tests.data_pipeline.test_golden --update [STAGE ...]
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain
from data_pipeline.document import SCHEMA, Documents, record_id
from data_pipeline.engines.local import LocalEngine
from data_pipeline.report.statistics import StageStatistics
from data_pipeline.stages import STAGES, LocalStage, apply_local
from tests.data_pipeline.stage_settings import letter_models, settings_of

GOLDEN = Path(__file__).with_name("golden.json")

SIGNIFICANT_DIGITS = 5  # of a score: its last bits may differ between processors

PROSE = (
    "It was the first day of the year, and the people of the town have come to the river with bread and wine. "
    "They that had been there before told the others of the old stone bridge. Nobody knew who had built it."
)
GERMAN = "Der Zug nach Süden fährt heute um zehn Uhr ab, und wer mitfahren möchte, soll bitte nicht zu spät kommen."
TEXTS = [
    (PROSE, "en", "http://a.example/1", "2020-01-01"),
    (PROSE.replace(" ", "  "), "en", "https://www.a.example/1/", "2021-01-01"),
    (PROSE.replace("bread", "cheese"), "en", "http://b.example/", None),
    (GERMAN, "de", None, None),
    (GERMAN + "\n" + PROSE, None, "http://c.example/x?y=1", "2022-02-02"),
    ("one two three\n" * 30, "en", None, None),
    (
        "click here to read more...\nlorem ipsum dolor {\njavascript is off\n" + PROSE,
        "en",
        "http://c.example/x?y=1",
        None,
    ),
    ("- a point\n- another point\n" * 8, "en", None, None),
    ("字が並ぶだけの文章です。単語の間に空白はありません。" * 6, "ja", None, None),
    (
        "Mail to jane.doe@mail.example or call +1 212 555 0123; server 8.8.8.8, card 4111 1111 1111 1111. " + PROSE,
        "en",
        None,
        None,
    ),
    ("\n\n".join([PROSE, GERMAN, PROSE, "Short.", PROSE]), "en", None, "2020-05-05"),
    ("العربية تكتب من اليمين إلى اليسار وهذه جملة قصيرة جدا في وثيقة صغيرة.", "ar", None, None),
    ("   ", None, None, None),
]


def documents() -> Documents:
    """Return the fixed input: every text in two sources, so that there are copies."""
    rows = [
        {"source": source, "file": f"CC-MAIN-2020-1{place}", "row": row, "text": text, "language": language, "url": url}
        | {"date": date, "record_id": record_id(source, "f", row, url, date), "copies": 1, "published": row == 4}
        for place, source in enumerate(("web", "books"))
        for row, (text, language, url, date) in enumerate(TEXTS)
    ]
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in SCHEMA]
    return Documents(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))


def digest(name: str, folder: Path) -> str:
    """Return the digest of the documents that a stage keeps, with their scores, and of its statistics."""
    stage = STAGES[name]
    settings = settings_of(name, folder / "settings")
    whole = documents()
    if isinstance(stage, LocalStage):
        statistics = StageStatistics(name)
        with letter_models():
            kept = [apply_local(stage, whole, settings, statistics, 0).batch]
        counted = [statistics]
    else:
        blocks = [
            block
            for start in range(0, len(whole), 10)
            for block in write_documents(folder / f"{start:06d}.arrow", Documents(whole.batch.slice(start, 10)))
        ]
        with LocalEngine(1) as engine:
            left, counted = stage.run(Chain(folder / "work", engine, Console(quiet=True), 0), blocks, settings)
        kept = [load_documents(block).batch for block in left]
    rows = [_plain(row) for batch in kept for row in batch.to_pylist()]
    told = [{key: value for key, value in each.to_json().items() if key != "cpu_milliseconds"} for each in counted]
    return hashlib.sha256(json.dumps([rows, told], sort_keys=True).encode()).hexdigest()


def _plain(row: dict) -> dict:
    exact = {key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()}
    return {
        key: f"{value:.{SIGNIFICANT_DIGITS}g}" if isinstance(value, float) else value for key, value in exact.items()
    }


def compare(golden: dict[str, dict], name: str, version: int, found: str) -> str | None:
    """Return what is wrong, if anything."""
    update = f"python -m tests.data_pipeline.test_golden --update {name}"
    if name not in golden:
        return f"{name} has no golden digest yet: {update}"
    before = golden[name]
    if version < before["version"]:
        return f"VERSION of {name} fell from {before['version']} to {version}; it only ever rises"
    if version > before["version"]:
        return f"VERSION of {name} rose from {before['version']} to {version}: keep its new digest with {update}"
    if found != before["digest"]:
        return (
            f"{name} keeps or writes something else than before, and its VERSION is still {version}: raise it, so that "
            f"finished work is not used again, then {update}"
        )
    return None


def read_golden() -> dict[str, dict]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", STAGES)
def test_output_changes_only_with_the_version(name, tmp_path):
    problem = compare(read_golden(), name, STAGES[name].version, digest(name, tmp_path))
    assert problem is None, problem


def test_there_is_no_digest_of_a_stage_that_is_gone():
    assert read_golden().keys() <= STAGES.keys()


def test_each_kind_of_change_asks_for_what_it_needs():
    golden = {"a": {"version": 3, "digest": "x"}}
    assert compare(golden, "a", 3, "x") is None
    assert "VERSION is still 3: raise it" in compare(golden, "a", 3, "y")
    assert "rose from 3 to 4: keep its new digest" in compare(golden, "a", 4, "y")
    assert "fell from 3 to 2" in compare(golden, "a", 2, "x")
    assert "no golden digest yet" in compare(golden, "b", 1, "x")


def update(names: list[str]) -> None:
    """Write the digests of the named stages, or of all."""
    golden = read_golden() if GOLDEN.exists() else {}
    golden = {name: golden[name] for name in STAGES if name in golden}
    for name in names or STAGES:
        with tempfile.TemporaryDirectory() as folder:
            golden[name] = {"version": STAGES[name].version, "digest": digest(name, Path(folder))}
    GOLDEN.write_text(json.dumps({name: golden[name] for name in STAGES if name in golden}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--update"]:
        sys.exit(f"usage: python {sys.argv[0]} --update [STAGE ...]")
    update(sys.argv[2:])
