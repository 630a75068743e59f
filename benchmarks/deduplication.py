"""Speed, recall, growth and memory of the deduplications, against rensa and datatrove in one run.

    python benchmarks/deduplication.py [--megabytes N] [--rensa-python PYTHON] [--datatrove-python PYTHON] PATH ...

A PATH is a JSONL file (a `text` column; plain, .gz or .zst), a text file (plain or .gz), or a folder of them. Texts are
cut at line ends into documents of about --document-bytes, documents that occur twice are left out, and near-copies are
planted: one document in five gets a copy in which each word is replaced, dropped or doubled with a probability of 1, 2,
3, 5 or 8 %. Speeds are megabytes of text per CPU-second of one process, medians of --rounds, from blocks of documents
on disk to the blocks that stay. rensa (in memory, shingles as strings) and datatrove (all four steps, on the first
--datatrove-megabytes) get the same documents, each in the interpreter that has it (rensa: this one unless another is
named); which of them is missing is said. A planted pair counts as found where not both of it stay.
"""

import argparse
import gzip
import hashlib
import io
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

RATES = (0.01, 0.02, 0.03, 0.05, 0.08)
BLOCK_BYTES = 32 * 1024 * 1024
FINEWEB = {"bands": 14, "rows": 8}
CANDIDATES = {**FINEWEB, "min_jaccard": 0, "fold_digits": True}  # nothing verified, digits as datatrove has them
STAGES = ("url_dedup", "exact_dedup", "line_dedup", "substring_dedup", "minhash_dedup")


class PeerError(Exception):
    """A peer cannot do its part; ours goes on."""


PEERS = {"rensa": "rensa", "datatrove": "datatrove.pipeline.dedup"}
"""Package -> what is imported of it."""

DATATROVE = """
import json, sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
folder = sys.argv[1]
steps = [
    [JsonlReader(folder + "/in"), MinhashDedupSignature(folder + "/sig")],
    [MinhashDedupBuckets(folder + "/sig", folder + "/buckets")],
    [MinhashDedupCluster(folder + "/buckets", folder + "/remove")],
    [JsonlReader(folder + "/in"), MinhashDedupFilter(folder + "/remove"),
     JsonlWriter(folder + "/out", compression=None)],
]
list(JsonlReader(folder + "/in", limit=1)())
started = time.process_time()
for number, (pipeline, tasks) in enumerate(zip(steps, (1, 14, 1, 1))):
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=f"{folder}/log{number}").run()
print("SECONDS", time.process_time() - started)
"""


RENSA = """
import json, sys, time
import rensa
folder = sys.argv[1]
texts = [json.loads(line)["text"] for line in open(folder + "/in/documents.jsonl")]
started = time.process_time()
signatures = []
for start in range(0, len(texts), 1000):
    shingles = []
    for text in texts[start : start + 1000]:
        words = text.lower().split()
        shingles.append([" ".join(words[place : place + 5]) for place in range(max(1, len(words) - 4))])
    signatures += rensa.RMinHash.from_token_sets(shingles, 112, 1)
index = rensa.RMinHashLSH(0.7, 112, 14)
parents = list(range(len(texts)))
def root(row):
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row
index.insert_many(signatures)
for row, signature in enumerate(signatures):
    for other in index.query(signature):
        one, two = root(row), root(other)
        parents[max(one, two)] = min(one, two)
print("SECONDS", time.process_time() - started)
json.dump([row for row in range(len(texts)) if root(row) == row], open(folder + "/kept.json", "w"))
"""


def read(paths: list[Path]) -> Iterator[str]:
    """Yield the texts of all files."""
    import zstandard

    for path in paths:
        if path.is_dir():
            yield from read(sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink()))
            continue
        with path.open("rb") as file:
            stream: io.BufferedIOBase = file
            if path.suffix == ".gz":
                stream = gzip.GzipFile(fileobj=file)
            elif path.suffix == ".zst":
                stream = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file)
            if ".jsonl" in path.suffixes:
                for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n"):
                    yield json.loads(line)["text"]
                continue
            data = stream.read()
            if b"\0" not in data:
                yield data.decode("utf-8", "replace")


def documents_of(texts: Iterator[str], document_bytes: int, most_bytes: int) -> list[str]:
    """Return distinct documents of up to about `document_bytes`, together up to `most_bytes`, in a shuffled order."""
    found: dict[bytes, str] = {}
    size = 0
    for text in texts:
        lines: list[str] = []
        length = 0
        for line in [*text.split("\n"), None]:
            if line is None or length + len(line) > document_bytes:
                document = "\n".join(lines).strip()
                if len(document.split()) >= 20:
                    key = hashlib.sha256(document.encode()).digest()
                    size += 0 if key in found else len(document.encode())
                    found[key] = document
                lines, length = [], 0
            if line is not None:
                lines.append(line)
                length += len(line)
        if size >= most_bytes:
            break
    documents = list(found.values())
    random.Random(0).shuffle(documents)
    return documents


def plant(documents: list[str], seed: int) -> tuple[list[str], list[tuple[int, int, float]]]:
    """Return the documents with copies of every fifth behind them, and (document, copy, edit rate) of each copy."""
    generator = random.Random(seed)
    vocabulary = sorted({word for document in documents[:200] for word in document.split()})
    copies, pairs = [], []
    for number in range(0, len(documents), 5):
        rate = RATES[number // 5 % len(RATES)]
        parts = re.split(r"(\s+)", documents[number])
        for place in range(0, len(parts), 2):
            if generator.random() < rate:
                word = parts[place]
                parts[place] = generator.choice([generator.choice(vocabulary), "", f"{word} {word}"])
        copy = "".join(parts)
        if copy != documents[number]:
            pairs.append((number, len(documents) + len(copies), rate))
            copies.append(copy)
    return documents + copies, pairs


def write_blocks_of(folder: Path, texts: list[str]) -> None:
    """Write documents to blocks, as `read` does, each with a URL of its own but for every tenth."""
    import pyarrow as pa

    from data_pipeline.batches import write_documents
    from data_pipeline.document import SCHEMA, Documents, record_id

    folder.mkdir()
    blocks, start, size = [], 0, 0
    for end, text in enumerate([*texts, None]):
        if text is None or size >= BLOCK_BYTES:
            rows = range(start, end)
            urls = [f"https://example.org/{row - row % 10 if row % 10 == 1 else row}" for row in rows]
            columns = {
                "record_id": [record_id("s", "f", row, None, None) for row in rows],
                "source": ["web"] * len(rows),
                "file": ["f"] * len(rows),
                "row": list(rows),
                "url": urls,
                "published": [False] * len(rows),
                "copies": [1] * len(rows),
                "text": texts[start:end],
            }
            arrays = [pa.array(columns.get(field.name, [None] * len(rows)), field.type) for field in SCHEMA]
            batch = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
            blocks += write_documents(folder / f"{len(blocks):06d}.arrow", Documents(batch))
            start, size = end, 0
        if text is not None:
            size += len(text.encode())
    (folder / "blocks.json").write_text(json.dumps([vars(block) for block in blocks]))


def measure(stage: str, folder: Path, warm: Path, changes: dict) -> dict:
    """Run a stage with changed settings here; return CPU-seconds, peak MiB, its counts, and the rows that stay."""
    from rich.console import Console

    from data_pipeline.batches import load_documents
    from data_pipeline.chain import Chain
    from data_pipeline.config import PipelineConfig
    from data_pipeline.engines.local import LocalEngine
    from data_pipeline.engines.work import Block
    from data_pipeline.stages import STAGES

    settings = replace(getattr(PipelineConfig(name="", stages=[]), stage), **changes)

    def once(source: Path) -> tuple[float, list[Block], dict]:
        blocks = [Block(**each) for each in json.loads((source / "blocks.json").read_text())]
        with tempfile.TemporaryDirectory(dir=source) as work, LocalEngine(1) as engine:
            chain = Chain(Path(work), engine, Console(file=io.StringIO()), 0)
            started = time.process_time()
            kept, counted = STAGES[stage].run(chain, blocks, settings)
            seconds = time.process_time() - started
            rows = [row for block in kept for row in load_documents(block).batch["row"].to_pylist()]
        return seconds, rows, counted[0].to_json()

    once(warm)
    seconds, rows, counts = once(folder)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of the process that started this one
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"seconds": seconds, "rows": rows, "peak": peak, "pairs": counts["pairs"], "edits": counts["edits"]}


def write_documents_of(folder: Path, texts: list[str]) -> None:
    """Write in/documents.jsonl for the peers."""
    (folder / "in").mkdir()
    with open(folder / "in" / "documents.jsonl", "w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")


def peer_of(name: str, python: str, option: str) -> str | None:
    """Return the version of a package in another interpreter; None, and a line that says so, where it is missing."""
    code = f"import importlib.metadata as m, {PEERS[name]}; print(m.version({name!r}))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"{name} is missing: {option} {python} cannot be started: {error}", flush=True)
        return None
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        print(f"{name} is missing: {option} {python} cannot import {PEERS[name]}: {why}", flush=True)
        return None
    return done.stdout.split()[-1]


def run_peer(name: str, python: str, script: str, folder: Path) -> float:
    """Return the CPU-seconds that a peer's script reports.

    Raises:
        PeerError: it ends with an error.
    """
    done = subprocess.run([python, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{name} is missing: its run failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return float(done.stdout.split("SECONDS")[1])


def rensa_rows(python: str, texts: list[str]) -> tuple[float, set[int]]:
    """Return the CPU-seconds of rensa for shingles as strings, signatures, bands and union-find, and who stays."""
    with tempfile.TemporaryDirectory() as folder:
        write_documents_of(Path(folder), texts)
        seconds = run_peer("rensa", python, RENSA, Path(folder))
        return seconds, set(json.loads((Path(folder) / "kept.json").read_text()))


def datatrove_rows(python: str, texts: list[str]) -> tuple[float, set[int]]:
    """Return the CPU-seconds of datatrove's four steps, as shipped, and who stays."""
    with tempfile.TemporaryDirectory() as folder:
        write_documents_of(Path(folder), texts)
        seconds = run_peer("datatrove", python, DATATROVE, Path(folder))
        kept = set()
        for path in (Path(folder) / "out").iterdir():
            kept |= {int(json.loads(line)["id"]) for line in path.open()}
    return seconds, kept


def jaccard(one: str, other: str) -> float:
    """Return the similarity of two texts by the definition of `shingles`, in plain Python (for spaced scripts)."""
    sets = []
    for text in (one, other):
        words = [kept for word in text.lower().split() if (kept := re.sub(r"[^\w]|_", "", word))]
        sets.append({tuple(words[place : place + 5]) for place in range(max(1, len(words) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def recall(pairs: list[tuple[int, int, float]], kept: set[int], similarities: dict[int, float]) -> str:
    """Return the share of planted pairs found per edit rate, among those of Jaccard similarity 0.6 and more."""
    parts = []
    for rate in RATES:
        asked = [(one, copy) for one, copy, its in pairs if its == rate and similarities[copy] >= 0.6]
        found = sum(not (one in kept and copy in kept) for one, copy in asked)
        parts.append(f"{rate:.0%}: {found / max(1, len(asked)):.3f} of {len(asked)}")
    return "  ".join(parts)


def expected(pairs: list[tuple[int, int, float]], similarities: dict[int, float], bands: int, rows: int) -> str:
    """Return MinHash's mean recall: a pair of similarity J shares a band with probability 1 - (1 - J^rows)^bands."""
    parts = []
    for rate in RATES:
        asked = [similarities[copy] for _, copy, its in pairs if its == rate and similarities[copy] >= 0.6]
        chances = [1 - (1 - similarity**rows) ** bands for similarity in asked]
        parts.append(f"{rate:.0%}: {sum(chances) / max(1, len(chances)):.3f}")
    return "  ".join(parts)


def run_measure(stage: str, folder: Path, warm: Path, changes: dict | None = None) -> dict:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", stage, str(folder), str(warm), json.dumps(changes or {})]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--document-bytes", type=int, default=4000)
    parser.add_argument("--rensa-python", default=sys.executable)
    parser.add_argument("--datatrove-python")
    parser.add_argument("--datatrove-megabytes", type=float, default=4)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    documents = documents_of(read(options.paths), options.document_bytes, int(options.megabytes * 1e6 / 1.2))
    with tempfile.TemporaryDirectory() as folder:
        corpora = {}
        for name, share in (("warm", 64), ("1x", 16), ("4x", 4), ("16x", 1)):
            texts, pairs = plant(documents[: len(documents) // share], options.seed)
            corpora[name] = (Path(folder) / name, sum(len(text.encode()) for text in texts) / 1e6)
            write_blocks_of(corpora[name][0], texts)
        warm, megabytes = corpora["warm"][0], corpora["16x"][1]
        similarities = {copy: jaccard(texts[one], texts[copy]) for one, copy, _ in pairs}
        print(f"{len(texts):,} documents, {megabytes:.1f} MB, {len(pairs):,} of them planted near-copies", flush=True)
        for stage in options.stages:
            results = {name: [] for name in ("1x", "4x", "16x")}
            for _ in range(options.rounds):
                for name, rounds in results.items():
                    rounds.append(run_measure(stage, corpora[name][0], warm))
            seconds = {name: statistics.median(each["seconds"] for each in rounds) for name, rounds in results.items()}
            exponents = [
                math.log(seconds[b] / seconds[a]) / math.log(corpora[b][1] / corpora[a][1])
                for a, b in (("1x", "4x"), ("4x", "16x"))
            ]
            peaks = "/".join(f"{results[name][0]['peak']:.0f}" for name in results)
            print(
                f"{stage:<14} {megabytes / seconds['16x']:6.1f} MB/CPU-s  exponents {exponents[0]:.2f}, "
                f"{exponents[1]:.2f}  peak {peaks} MiB  kept {len(results['16x'][0]['rows']):,}  "
                f"{results['16x'][0]['pairs'] or results['16x'][0]['edits'] or ''}",
                flush=True,
            )
            if stage == "minhash_dedup":
                ours = megabytes / seconds["16x"]
                print("  recall        ", recall(pairs, set(results["16x"][0]["rows"]), similarities), flush=True)
        if "minhash_dedup" not in options.stages:
            return 0
        fineweb = run_measure("minhash_dedup", corpora["16x"][0], warm, FINEWEB)
        told = f"{megabytes / fineweb['seconds']:.1f} MB/CPU-s in one run"
        print(f"minhash_dedup in the shape of FineWeb {FINEWEB}: {told}  {fineweb['pairs']}")
        print("  recall        ", recall(pairs, set(fineweb["rows"]), similarities), flush=True)
        print("  by the formula", expected(pairs, similarities, **FINEWEB), flush=True)
        if its := peer_of("rensa", options.rensa_python, "--rensa-python"):
            try:
                seconds, kept = rensa_rows(options.rensa_python, texts)
                ratio = ours * seconds / megabytes
                print(f"rensa {its} {megabytes / seconds:.1f} MB/CPU-s: ours is {ratio:.2f} times as fast")
                print("  recall        ", recall(pairs, kept, similarities), flush=True)
            except PeerError as error:
                print(error, flush=True)
        if options.datatrove_python is None:
            print("datatrove is missing: no --datatrove-python")
        elif its := peer_of("datatrove", options.datatrove_python, "--datatrove-python"):
            fewer = documents[: int(len(documents) * options.datatrove_megabytes / megabytes)]
            texts, pairs = plant(fewer, options.seed)
            size = sum(len(text.encode()) for text in texts) / 1e6
            similarities = {copy: jaccard(texts[one], texts[copy]) for one, copy, _ in pairs}
            try:
                seconds, kept = datatrove_rows(options.datatrove_python, texts)
            except PeerError as error:
                print(error)
                return 0
            print(f"datatrove {its} {size / seconds:.2f} MB/CPU-s: ours is {ours * seconds / size:.0f} times as fast")
            print("  recall        ", recall(pairs, kept, similarities), flush=True)
            write_blocks_of(Path(folder) / "datatrove", texts)
            for name, changes in (("ours, the same", {}), ("ours, FineWeb ", FINEWEB), ("ours, all     ", CANDIDATES)):
                kept = set(run_measure("minhash_dedup", Path(folder) / "datatrove", warm, changes)["rows"])
                print(f"  {name}", recall(pairs, kept, similarities), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
