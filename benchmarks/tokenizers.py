"""Speed of encode_batch against the libraries themselves, with equal ids, in one run.

    python benchmarks/tokenizers.py [--ranks FILE] [--sentencepiece FILE] [--megabytes N] [FILE.jsonl.zst ...]

The inputs are JSONL files with a `text` column, examples/corpus by default. Without tokenizer files, one of each kind
is trained on the input. Each pair runs alternately, A B A B A B, one thread, on CPU-seconds; printed are the medians.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # read when tokenizers is loaded
sys.path[0] = str(Path(__file__).parents[1])  # not this directory, where this file would hide the tokenizers library

import sentencepiece
import tiktoken
import tokenizers
import zstandard
from tiktoken.load import load_tiktoken_bpe

from data_pipeline.tokenize import load_tokenizer, train_byte_level, train_sentencepiece
from data_pipeline.tokenize.tiktoken import SPLIT_PATTERN
from llama_train.checkpoint.huggingface_tokenizer import build_tokenizer

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
ROUNDS = 3

Encode = Callable[[list[str]], Sequence]


def read(paths: list[Path], most_bytes: int) -> list[str]:
    """Return texts from all files in turn, up to `most_bytes` of UTF-8."""
    texts, size = [], 0
    files = [_rows(path) for path in paths]
    while files and size < most_bytes:
        for rows in list(files):
            row = next(rows, None)
            if row is None:
                files.remove(rows)
                continue
            texts.append(json.loads(row)["text"])
            size += len(texts[-1].encode())
    return texts


def _rows(path: Path):
    with path.open("rb") as file, zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file) as stream:
        yield from io.TextIOWrapper(stream, encoding="utf-8", newline="\n")


def compare(name: str, texts: list[str], ours: Encode, theirs: Encode) -> None:
    """Print the speed of both, their ratio, and whether the ids are equal."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    speeds: tuple[list[float], list[float]] = ([], [])
    found: list[Sequence] = [(), ()]
    for _ in range(ROUNDS):
        for side, encode in enumerate((ours, theirs)):
            start = time.process_time()
            found[side] = encode(texts)
            speeds[side].append(megabytes / (time.process_time() - start))
    mine, other = map(statistics.median, speeds)
    different = sum(list(a) != list(b) for a, b in zip(*found, strict=True))
    first = speeds[0][0] / speeds[1][0]
    print(
        f"{name:<30} ours {mine:6.2f}  theirs {other:6.2f} MB/CPU-s  ratio {mine / other:5.2f} (first {first:5.2f})"
        f"  texts with other ids: {different} of {len(texts)}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--ranks", type=Path, help="tiktoken ranks, such as Llama 3's tokenizer.model")
    parser.add_argument("--sentencepiece", type=Path, help="a sentencepiece model, such as Llama 2's tokenizer.model")
    parser.add_argument("--megabytes", type=float, default=8.0)
    arguments = parser.parse_args()
    texts = read(arguments.files or sorted(CORPUS.glob("*.jsonl.zst")), int(arguments.megabytes * 1e6))
    print(f"{len(texts)} texts, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB, one thread")
    with tempfile.TemporaryDirectory() as directory:
        ranks = arguments.ranks or train_byte_level(texts, Path(directory) / "ranks", 32_256)
        model = arguments.sentencepiece or train_sentencepiece(texts, Path(directory) / "pieces", 32_000)
        byte_level, pieces = load_tokenizer(ranks), load_tokenizer(model)
        plain = tiktoken.Encoding(
            "plain", pat_str=SPLIT_PATTERN, mergeable_ranks=load_tiktoken_bpe(str(ranks)), special_tokens={}
        )
        compare("ranks: tiktoken", texts, byte_level.encode_batch, lambda each: list(map(plain.encode_ordinary, each)))
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        compare(
            "sentencepiece: sentencepiece",
            texts,
            pieces.encode_batch,
            lambda each: processor.encode(each, num_threads=1),
        )
        fast: tokenizers.Tokenizer = build_tokenizer(model)
        fast.encode_special_tokens = True
        compare(
            "sentencepiece: tokenizers",
            texts,
            pieces.encode_batch,
            lambda each: [found.ids for found in fast.encode_batch_fast(each, add_special_tokens=False)],
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
