"""Which tokens a step sees: a pure function of (data settings, seed, amendments, step), with no state and no rank.

    step → batch → sample ids → (source, how many of that source came before) → (epoch, window) → (shard, token)

Every arrow is arithmetic: the memory needed does not grow with the tokens, and any step is found at once.
docs/order.md tells it with examples.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from data_pipeline.shards.packs import PackSet
from data_pipeline.shards.reader import ShardRoot, open_root
from llama_foundation.errors import DataError
from llama_train.config import DataConfig, Packing
from llama_train.data.amendments import Amendment
from llama_train.data.batch_size import check_divides
from llama_train.data.permutation import permutation_key, permute
from llama_train.data.segments import Stretch, stretches
from llama_train.data.windows import Packs, Piece, Windows

if TYPE_CHECKING:
    from llama_train.data.batches import MicroBatch

_key = functools.lru_cache(maxsize=256)(permutation_key)


@dataclass(frozen=True)
class Sample:
    """One sequence: the pieces of a shard file that its inputs are; `window` is the number of the window or pack."""

    source: str
    epoch: int
    shard: int
    window: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Document:
    """A document behind a step, and the ids of the samples it occurs in."""

    source: str
    file: str
    row: int
    url: str | None
    record_id: str
    first_words: str
    samples: tuple[int, ...]


class Counted(Protocol):
    """How many tokens each shard file of a source has."""

    shard_tokens: Sequence[int]


class Counts(Protocol):
    """All that the arithmetic needs of the shards; `ShardRoot` is one."""

    fingerprint: str

    def sources(self, split: str) -> list[str]: ...

    def open(self, split: str, source: str) -> Counted: ...


class TokenOrder:
    """The order of a run's tokens.

    A jump moves on in the list of batches, segments included: they are counted in batches of that list.

    Args:
        data: the settings.
        steps: optimizer steps of the whole run; matters only where several sequence lengths share the tokens.
        seed: of all shuffling.
        amendments: what was changed on the way.
        root: the opened shards; by default those at `data.shards`. Anything with `Counts` will do where no token is
            read.

    Raises:
        ConfigError: an unknown source, or no source with a weight.
        DataError: a source without a single window, fewer tokens than one batch takes, or no packs of a length.
    """

    def __init__(
        self,
        data: DataConfig,
        steps: int,
        seed: int,
        amendments: Sequence[Amendment] = (),
        root: ShardRoot | Counts | None = None,
    ) -> None:
        self.root = open_root(data.shards) if root is None else root
        self._data, self._seed = data, seed
        self._amendments = tuple(amendments)
        self._shard_tokens = {
            source: list(self.root.open("train", source).shard_tokens) for source in self.root.sources("train")
        }
        self._segments = stretches(data, steps, seed, self._shard_tokens)
        shares = _shares(self._segments, steps)
        self._windows: dict[tuple[str, int], Windows | Packs]
        packed: dict[str, str] = {}
        if data.packing is Packing.best_fit:
            sets = {(source, length): PackSet(self.root.open("train", source), length) for source, length in shares}
            _check_same_blocks(sets)
            self._windows = {key: Packs(sets[key], share) for key, share in shares.items()}
            packed = {f"{source}/{length}": each.manifest_checksum for (source, length), each in sets.items()}
        else:
            self._windows = {
                (source, length): Windows(self._shard_tokens[source], length, share)
                for (source, length), share in shares.items()
            }
        for segment in self._segments:
            _check_enough(segment, self._windows, self._shard_tokens, data.packing)
        settings = {key: value for key, value in asdict(data).items() if key != "shards"}
        settings["packing"] = data.packing.name
        lengths = {segment.sequence_length for segment in self._segments}
        identity = [self.root.fingerprint, settings, seed, steps if len(lengths) > 1 else None, packed]
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        """Equal fingerprints and amendments mean equal batches, step by step."""

    def batch_size(self, step: int) -> int:
        """Return the sequences of a step."""
        return self._segment_of_batch(self._batch(step)).batch_size

    def sequence_length(self, step: int) -> int:
        """Return the tokens of a sequence of a step."""
        return self._segment_of_batch(self._batch(step)).sequence_length

    def tokens_per_step(self, step: int) -> int:
        """Return the input tokens of a step."""
        return self.batch_size(step) * self.sequence_length(step)

    def samples(self, step: int) -> range:
        """Return the ids of a step's samples."""
        batch = self._batch(step)
        segment = self._segment_of_batch(batch)
        first = segment.first_sample + (batch - segment.first_batch) * segment.batch_size
        return range(first, first + segment.batch_size)

    def locate(self, step: int, sample_id: int) -> Sample:
        """Return where a sample of a step lies."""
        assert sample_id in self.samples(step), (step, sample_id)
        return self._locate(self._segment_of_batch(self._batch(step)), sample_id)

    def local_micro_batches(
        self, step: int, data_rank: int, data_world: int, micro_batch_size: int
    ) -> "list[MicroBatch]":
        """Read one rank's part of a step: slice `data_rank` of the `data_world` equal slices of the batch.

        Raises:
            ConfigError: the batch does not divide into micro-batches of all ranks.
            DataError: a shard is damaged.
        """
        from llama_train.data import batches  # torch: where a step is found needs none of it

        self.check_layout(data_world, micro_batch_size, step)
        samples, segment = self.samples(step), self._segment_of_batch(self._batch(step))
        length = segment.sequence_length
        share = len(samples) // data_world
        own = samples[data_rank * share : (data_rank + 1) * share]
        micro_batches = []
        memories = batches.row_blocks(share, length, micro_batch_size)
        for first, memory in zip(range(0, share, micro_batch_size), memories, strict=True):
            located = [self._locate(segment, sample_id) for sample_id in own[first : first + micro_batch_size]]
            read = [(self.root.open("train", sample.source), sample) for sample in located]
            if self._data.packing is Packing.best_fit:
                packs = [batches.read_pack(shards, sample.shard, sample.pieces) for shards, sample in read]
                micro_batches.append(batches.make_packed_micro_batch(packs, length, memory))
            else:
                windows = [
                    batches.read_window(shards, sample.shard, sample.pieces[0][0], length + 1)
                    for shards, sample in read
                ]
                micro_batches.append(batches.make_micro_batch(windows, self._data.document_masks, memory))
        return micro_batches

    def check_layout(self, data_world: int, micro_batch_size: int, step: int | None = None) -> None:
        """Check that every batch (of `step`, if given) divides into micro-batches of all ranks.

        Raises:
            ConfigError: naming the batch size, the layout, and the values that would do.
        """
        segments = self._segments if step is None else [self._segment_of_batch(self._batch(step))]
        for segment in segments:
            check_divides(f"{segment.setting}batch_size", segment.batch_size, data_world, micro_batch_size)

    def epochs(self, step: int) -> dict[str, float]:
        """Return how often each source has been gone through before `step`, jumped batches included."""
        first = self.samples(step).start
        used: dict[tuple[str, int], int] = {}
        for number, segment in enumerate(self._segments):
            stop = self._segments[number + 1].first_sample if number + 1 < len(self._segments) else first
            counts = segment.mixture.counts(max(min(first, stop) - segment.first_sample, 0))
            for source, count in zip(segment.sources, counts, strict=True):
                key = (source, segment.sequence_length)
                used[key] = used.get(key, 0) + count
        seen = dict.fromkeys(sorted({source for source, _ in used}), 0)
        whole = dict(seen)
        for (source, length), count in used.items():
            seen[source] += count * length
            whole[source] += self._windows[source, length].count * length
        return {source: seen[source] / whole[source] for source in seen}

    def documents(self, step: int, limit: int | None = None) -> list[Document]:
        """Return the documents that a step's inputs come from, by first sample; at most `limit` of them.

        Raises:
            DataError: a shard is damaged.
        """
        found: dict[tuple[str, int, int], list[int]] = {}
        for sample_id in self.samples(step):
            sample = self.locate(step, sample_id)
            shards = self.root.open("train", sample.source)
            for start, length in sample.pieces:
                for document in shards.documents_within(sample.shard, start, length):
                    key = (sample.source, sample.shard, document)
                    if key in found or limit is None or len(found) < limit:
                        found.setdefault(key, []).append(sample_id)
        described = {}
        for source, shard, document in sorted(found):  # in the order of the files, so that each part is read once
            origin = self.root.open("train", source).provenance(shard, document)
            described[source, shard, document] = Document(
                source=source,
                file=origin["file"],
                row=origin["row"],
                url=origin["url"],
                record_id=origin["record_id"],
                first_words=origin["first_words"],
                samples=tuple(found[source, shard, document]),
            )
        return [described[key] for key in found]

    def _locate(self, segment: Stretch, sample_id: int) -> Sample:
        number, rank = segment.mixture.locate(sample_id - segment.first_sample)
        source = segment.sources[number]
        windows = self._windows[source, segment.sequence_length]
        epoch, index = divmod(segment.before[source] + rank, windows.count)
        window = permute(index, windows.count, _key(self._seed, source, epoch))
        shard, pieces = windows.locate(window)
        return Sample(source, epoch, shard, window, pieces)

    def _batch(self, step: int) -> int:
        """The number of a step's batch in the list of all batches."""
        assert step >= 0, step
        return step + sum(amendment.jump for amendment in self._amendments if amendment.at_step <= step)

    def _segment_of_batch(self, batch: int) -> Stretch:
        return next(segment for segment in reversed(self._segments) if segment.first_batch <= batch)


def check_vocabulary(root: ShardRoot, vocab_size: int, tokenizer: str | None = None) -> None:
    """Check that the shards' token ids fit the model.

    Args:
        vocab_size: of the model.
        tokenizer: the fingerprint of the tokenizer that the weights were trained with, where that is known.

    Raises:
        DataError: the shards' vocabulary is larger than the model's, or another tokenizer made them.
    """
    found = root.tokenizer
    if found.vocabulary_size > vocab_size:
        raise DataError(
            f"{root.path}: its tokenizer has {found.vocabulary_size} tokens, but model.vocab_size={vocab_size}; use a "
            f"model with model.vocab_size={found.vocabulary_size} or more, or shards of a smaller tokenizer"
        )
    if tokenizer is not None and tokenizer != found.fingerprint:
        raise DataError(
            f"{root.path}: made by tokenizer {found.fingerprint}, but the weights were trained with tokenizer "
            f"{tokenizer}; use shards of that one"
        )


def _shares(segments: Sequence[Stretch], steps: int) -> dict[tuple[str, int], tuple[int, int, int]]:
    """The share of every source and sequence length; lengths share a source by the tokens they take of it."""
    taken: dict[str, dict[int, int]] = {}
    for number, segment in enumerate(segments):
        stop = segments[number + 1].first_batch if number + 1 < len(segments) else steps
        tokens = (stop - segment.first_batch) * segment.batch_size * segment.sequence_length
        for source, quota in zip(segment.sources, segment.mixture.quotas.tolist(), strict=True):
            by_length = taken.setdefault(source, {})
            by_length[segment.sequence_length] = by_length.get(segment.sequence_length, 0) + tokens * quota
    shares = {}
    for source, by_length in taken.items():
        low, whole = 0, sum(by_length.values())
        for length, amount in by_length.items():
            shares[source, length] = (low, low + amount, whole)
            low += amount
    return shares


def _check_same_blocks(sets: Mapping[tuple[str, int], PackSet]) -> None:
    """Lengths share a source by its blocks, so they must have the same."""
    first: dict[str, PackSet] = {}
    for (source, length), packs in sets.items():
        other = first.setdefault(source, packs)
        blocks = (packs.manifest.block_documents, packs.manifest.block_tokens, len(packs.block_ends))
        if blocks != (other.manifest.block_documents, other.manifest.block_tokens, len(other.block_ends)):
            raise DataError(
                f"{packs.directory}: packed in blocks of {blocks[0]} documents, but {other.directory.name} in blocks "
                f"of {other.manifest.block_documents}; a run with several sequence lengths needs the same: run "
                f"llama-pack sequence_length={length} block_documents={other.manifest.block_documents}"
            )


def _check_enough(
    segment: Stretch,
    windows: Mapping[tuple[str, int], Windows | Packs],
    shard_tokens: Mapping[str, list[int]],
    packing: Packing,
) -> None:
    length = segment.sequence_length
    for source in segment.sources:
        if windows[source, length].count:
            continue
        if packing is Packing.best_fit:
            raise DataError(
                f"source {source} has too few blocks of packs for each sequence length of the run to own one: "
                f"{length} has none; run llama-pack for every length with a smaller block_documents, use one "
                f"sequence length, or leave {source} out with data.sources"
            )
        tokens = shard_tokens[source]
        raise DataError(
            f"source {source} has {sum(tokens)} tokens in {len(tokens)} shard files, not enough for a single "
            f"sequence of data.sequence_length={length}: that takes {length + 1} tokens in one file, in the part "
            f"of it that this length may use; use a shorter length, or leave {source} out with data.sources"
        )
    have = sum(windows[source, length].count for source in segment.sources)
    if have < segment.batch_size:
        tokens = sum(sum(shard_tokens[source]) for source in segment.sources)
        takes = f", but one batch of {segment.setting}batch_size={segment.batch_size} takes "
        takes += str(segment.batch_size) if packing is Packing.best_fit else f"{segment.batch_size * length + 1} tokens"
        raise DataError(
            f"the training shards have {tokens} tokens, {have} sequences of data.sequence_length={length}{takes}; use "
            f"data.batch_size={have} or less, a shorter length, or more documents"
        )
