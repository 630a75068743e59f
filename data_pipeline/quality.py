"""llama-quality positive=[FILES] negative=[FILES] output=MODEL.safetensors: train a text classifier and measure it.

Also `python -m data_pipeline.quality`. The stages `quality` and `nsfw` apply the model.
"""

import glob
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from omegaconf import MISSING
from rich.console import Console
from rich.table import Table

from data_pipeline.filters.linear import (
    LARGEST_BITS,
    MOST_NGRAMS,
    QUANTILES,
    Features,
    LinearModel,
    Training,
    save_model,
    train,
)  # fmt: skip
from llama_foundation import compose
from llama_foundation.errors import ConfigError, DataError
from llama_foundation.files import publish

KEEP_FRACTIONS = (0.01, 0.1, 0.3, 0.5)


@dataclass
class QualityConfig:
    """Which texts, and how the model is made of them."""

    positive: list[str] = MISSING  # files or globs of texts to prefer: .jsonl, .ndjson, .txt, also .gz and .zst
    negative: list[str] = MISSING  # the same of ordinary texts
    output: str = MISSING  # a file that ends in .safetensors
    text_column: str = "text"  # of JSON lines
    text_per_line: bool = True  # of .txt files, each line is a text; false: each file is one
    ngrams: int = 2  # words, at most
    bits: int = 20  # 2**bits weights of 4 bytes
    max_bytes: int = 20_000  # of a text, from its start; 0: all
    epochs: int = 10
    learning_rate: float = 0.5
    weight_decay: float = 1e-5
    held_out: float = 0.1  # share of the texts, by hash, that is not trained on: what the table is about
    seed: int = 0  # of the held-out texts and of the order
    overwrite: bool = False  # replace the output where it exists

    def check(self) -> None:
        for name in ("positive", "negative"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give files or globs: {name}=[pages/*.jsonl.zst]")
        if not self.output.endswith(".safetensors"):
            raise ConfigError(f"output={self.output} must end in .safetensors")
        limits = (
            ("ngrams", 1, MOST_NGRAMS),
            ("bits", 8, LARGEST_BITS),
            ("max_bytes", 0, 2**31),
            ("epochs", 1, 1000),
            ("learning_rate", 1e-6, 100),
            ("weight_decay", 0, 1),
            ("held_out", 0, 0.9),
            ("seed", 0, 2**63 - 1),
        )
        for name, least, most in limits:
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)} must be between {least} and {most}")


@dataclass
class Sample:
    """Texts of both classes in the order of their hashes, so that the order of the files does not matter."""

    texts: pa.LargeStringArray
    positive: np.ndarray  # bool [texts]
    hashes: np.ndarray  # uint64 [texts]

    def part(self, chosen: np.ndarray) -> "Sample":
        return Sample(self.texts.filter(pa.array(chosen)), self.positive[chosen], self.hashes[chosen])


def main() -> int:
    """Run llama-quality; return the exit status."""
    return compose.main("quality", QualityConfig, run)


def run(config: QualityConfig) -> None:
    """Train, write the model and print how it does on texts that it has not seen.

    Raises:
        ConfigError: a pattern matches no file, or the output exists.
        DataError: a file cannot be read, or a class has too few texts.
    """
    output = Path(config.output)
    if output.exists() and not config.overwrite:
        raise ConfigError(f"output={output} exists; name another file, or add overwrite=true")
    console = Console()
    sample, remarks = _sample(config)
    held_out = sample.hashes < np.uint64(int(config.held_out * 2**64))
    training, unseen = sample.part(~held_out), sample.part(held_out)
    for name, part in (("training", training), ("held-out", unseen)):
        positive = int(part.positive.sum())
        remarks.append(f"{name}: {positive:,} positive and {len(part.positive) - positive:,} negative texts")
        if (name == "training" or config.held_out) and positive in (0, len(part.positive)):
            raise DataError(
                f"of {len(sample.positive)} different texts the {name} part has {positive} positive and "
                f"{len(part.positive) - positive} negative ones; it needs both: give more texts or change held_out"
            )
    features = Features(config.ngrams, config.bits, config.max_bytes)
    settings = Training(config.epochs, config.learning_rate, config.weight_decay, config.seed)
    model = train(training.texts, training.positive, features, settings)
    scores = model.scores(unseen.texts)
    if len(scores):
        ordinary = scores[~unseen.positive & ~np.isnan(scores)]
        model = replace(model, ordinary=np.quantile(ordinary, np.linspace(0, 1, QUANTILES)))
    about = {"training": asdict(settings), "texts": len(training.positive), "held_out": config.held_out}
    with publish(output) as file:
        file.write(save_model(model, about))
    for remark in remarks:
        console.print(remark, highlight=False, markup=False)
    if len(scores):
        known = ~np.isnan(scores)
        _print_table(console, model, scores[known], unseen.positive[known])
    console.print(f"in {output}", highlight=False, markup=False, soft_wrap=True)


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive text scores above a negative one, ties counting half."""
    values, inverse = np.unique(scores, return_inverse=True)
    ups = np.bincount(inverse[positive], minlength=len(values))
    downs = np.bincount(inverse[~positive], minlength=len(values))
    below = np.cumsum(downs) - downs
    return float((ups * (below + downs / 2)).sum() / (ups.sum() * downs.sum()))


def _print_table(console: Console, model: LinearModel, scores: np.ndarray, positive: np.ndarray) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for heading in ("cut", "threshold", "precision", "recall", "negatives kept"):
        table.add_column(heading, justify="left" if heading == "cut" else "right")
    cuts = [("score", 0.5)] + [
        (f"keep {share:.0%} of negatives", model.threshold_for(share)) for share in KEEP_FRACTIONS
    ]
    for name, threshold in cuts:
        kept = scores >= threshold
        precision = f"{positive[kept].mean():.3f}" if kept.any() else "-"
        shares = f"{kept[positive].mean():.3f}", f"{kept[~positive].mean():.3f}"
        table.add_row(name, f"{threshold:.4f}", precision, *shares)
    console.print(f"On the held-out texts: AUC {area_under_curve(scores, positive):.4f}", highlight=False)
    console.print(table)


def _sample(config: QualityConfig) -> tuple[Sample, list[str]]:
    """Read both classes; a text counts once, and not at all where it is in both."""
    classes = {}
    remarks = []
    for name in ("positive", "negative"):
        texts = {}
        read = 0
        for path in _expand(name, getattr(config, name)):
            for text in _texts(path, config):
                read += 1
                texts[xxhash.xxh3_128_digest(text.encode(), config.seed)] = text
        if read > len(texts):
            remarks.append(f"{name}: {read - len(texts):,} of {read:,} texts left out: copies of others")
        classes[name] = texts
    both = classes["positive"].keys() & classes["negative"].keys()
    if both:
        remarks.append(f"{len(both):,} texts left out: they are both positive and negative")
    merged = [
        (digest, text, name == "positive")
        for name, texts in classes.items()
        for digest, text in texts.items()
        if digest not in both
    ]
    merged.sort(key=lambda each: each[0])
    hashes = np.array([int.from_bytes(digest[:8], "big") for digest, _, _ in merged], np.uint64)
    texts = pa.array([text for _, text, _ in merged], pa.large_string())
    return Sample(texts, np.array([positive for _, _, positive in merged], bool), hashes), remarks


def _expand(name: str, patterns: list[str]) -> list[str]:
    paths = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        if not found:
            raise ConfigError(f"{name}: {pattern} matches no file")
        paths += found
    return sorted(set(paths))


def _texts(path: str, config: QualityConfig) -> Iterator[str]:
    suffixes = [suffix for suffix in Path(path).suffixes if suffix not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    if kind not in (".jsonl", ".ndjson", ".txt"):
        raise DataError(f"{path}: is neither .jsonl, .ndjson nor .txt (plain, .gz or .zst)")
    try:
        with _opened(path) as lines:
            if kind == ".txt" and not config.text_per_line:
                yield from filter(str.strip, [lines.read()])
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(line, path, number, config.text_column) if kind != ".txt" else line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}") from error


def _text_of(line: str, path: str, number: int, column: str) -> str:
    try:
        text = json.loads(line)[column]
        if not isinstance(text, str):
            raise TypeError(f"it is {type(text).__name__}, not text")
        text.encode()
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: has no usable text in column {column!r} ({type(error).__name__}: {error}); "
            "mend the file or set text_column"
        ) from error
    return text


def _opened(path: str) -> io.TextIOBase:
    # not the zstandard package: it ends a file that is cut short in silence
    return io.TextIOWrapper(io.BufferedReader(pa.input_stream(path, compression="detect")), "utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())
