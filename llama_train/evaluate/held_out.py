"""Loss and bits per byte on held-out documents, for every source and language.

Each document is scored by itself: bos is read, and every token after it, eos included, is predicted once. A document
longer than the model's context is cut into windows of that length, each beginning with the last token of the one
before it. Bits per byte (Gao et al. 2020, "The Pile", section 3.1) divide by the UTF-8 bytes of the document's text,
which is what the tokenizer makes of all of its tokens at once; eos has no bytes, and its loss is not counted there.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from data_pipeline.shards.reader import ShardRoot
from llama_foundation.errors import DataError
from llama_train.evaluate.score import Scorer, token_log_probabilities
from llama_train.peers import in_step

UNKNOWN = "unknown"
"""The language of documents whose input did not name one."""

_POOL = 32  # batches of documents read at once, so that windows of like length share a pass


@dataclass
class Sums:
    """What is added up over documents; losses in nats."""

    documents: int = 0
    tokens: int = 0  # predicted: text and eos
    bytes: int = 0  # of text, in UTF-8
    loss: float = 0.0
    text_loss: float = 0.0  # without eos

    def add(self, other: "Sums") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def numbers(self) -> dict[str, float | int | None]:
        """Return counts, the mean loss per token in nats, and bits per byte (None where there are no bytes)."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "loss": self.loss / self.tokens,
            "bits_per_byte": self.text_loss / math.log(2) / self.bytes if self.bytes else None,
        }


@dataclass(frozen=True)
class HeldOut:
    """Sums over all documents, by source, and by language."""

    total: Sums
    by_source: dict[str, Sums]
    by_language: dict[str, Sums]


@dataclass(frozen=True)
class _Window:
    """A part of a document: every token but the first is predicted. `ends`: the last of them is eos."""

    key: str  # "source/language"
    token_ids: list[int]
    ends: bool


def held_out_loss(scorer: Scorer, shards: ShardRoot, split: str, documents: int = 0) -> HeldOut:
    """Score the documents of a split.

    Args:
        documents: of each source, the first in the order of the shards, which is random; 0: all.

    Raises:
        DataError: there is no such split, another tokenizer made the shards, or a shard is damaged.
    """
    if not shards.sources(split):
        raise DataError(f"{shards.path}: has no documents in split={split}; known: {', '.join(shards.splits)}")
    if shards.tokenizer.fingerprint != scorer.tokenizer.fingerprint:
        raise DataError(
            f"{shards.path}: made by tokenizer {shards.tokenizer.fingerprint}, but the checkpoint's is "
            f"{scorer.tokenizer.fingerprint} ({scorer.tokenizer.path}); use shards of that one"
        )
    sums: dict[str, Sums] = {}
    in_step(_passes(scorer, shards, split, documents, sums), scorer.model, scorer.peers)
    everyone = scorer.peers.share({scorer.peers.rank: {key: asdict(value) for key, value in sums.items()}})
    answer = HeldOut(Sums(), {}, {})
    for part in everyone:
        for key, values in part.items():
            source, language = key.split("/", 1)
            answer.total.add(Sums(**values))
            answer.by_source.setdefault(source, Sums()).add(Sums(**values))
            answer.by_language.setdefault(language, Sums()).add(Sums(**values))
    return HeldOut(answer.total, dict(sorted(answer.by_source.items())), dict(sorted(answer.by_language.items())))


def _passes(scorer: Scorer, shards: ShardRoot, split: str, documents: int, sums: dict[str, Sums]) -> Iterator[None]:
    """Score this rank's documents, adding up in `sums` by "source/language"."""
    pool: list[_Window] = []
    for key, ids in _documents(scorer, shards, split, documents):
        text = scorer.tokenizer.decode(ids[1:-1])
        sums.setdefault(key, Sums()).add(Sums(documents=1, tokens=len(ids) - 1, bytes=len(text.encode())))
        for begin in range(0, len(ids) - 1, scorer.context):
            pool.append(_Window(key, ids[begin : begin + scorer.context + 1], begin + scorer.context + 1 >= len(ids)))
        if len(pool) >= _POOL * scorer.batch_size:
            yield from _score(scorer, pool, sums)
            pool = []
    yield from _score(scorer, pool, sums)


def _documents(scorer: Scorer, shards: ShardRoot, split: str, limit: int) -> Iterator[tuple[str, list[int]]]:
    """Yield ("source/language", token ids) of this rank's documents."""
    special = [shards.tokenizer.bos_id, shards.tokenizer.eos_id]
    for source in shards.sources(split):
        opened = shards.open(split, source)
        number = 0
        for shard in range(len(opened.shard_tokens)):
            starts = opened.document_starts(shard)
            for document in range(len(starts) - 1):
                if limit and number == limit:
                    break
                number += 1
                if number % scorer.peers.size != scorer.peers.rank:
                    continue
                begin, end = int(starts[document]), int(starts[document + 1])
                ids = opened.read(shard, begin, end - begin).tolist()
                if len(ids) < 2 or [ids[0], ids[-1]] != special:
                    raise DataError(f"{opened.directory}: document {document} of shard {shard} is not bos ... eos")
                yield f"{source}/{opened.provenance(shard, document)['language'] or UNKNOWN}", ids


def _score(scorer: Scorer, pool: list[_Window], sums: dict[str, Sums]) -> Iterator[None]:
    pool.sort(key=lambda window: -len(window.token_ids))
    for first in range(0, len(pool), scorer.batch_size):
        batch = pool[first : first + scorer.batch_size]
        yield
        rows = token_log_probabilities(scorer.model, [window.token_ids for window in batch])
        for window, (values, _) in zip(batch, rows, strict=True):
            loss = -float(values.double().sum())
            sums[window.key].add(Sums(loss=loss, text_loss=loss + float(values[-1]) if window.ends else loss))
