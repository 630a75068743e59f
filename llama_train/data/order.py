"""Which tokens a step sees: a pure function of (data settings, seed, amendments, step), with no state and no rank.

    step → batch → sample ids → (source, how many of that source came before) → (epoch, window) → (shard, token)

Every arrow is arithmetic: the memory needed does not grow with the tokens, and any step is found at once.
docs/order.md tells it with examples.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from data_pipeline.shards.reader import ShardRoot, open_root
from llama_foundation.errors import ConfigError, DataError
from llama_train.config import DataConfig
from llama_train.data.amendments import Amendment
from llama_train.data.batches import MicroBatch, check_divides, make_micro_batch, read_window
from llama_train.data.mixture import BLOCK, Mixture
from llama_train.data.permutation import permutation_key, permute
from llama_train.data.windows import Windows


@dataclass(frozen=True)
class Sample:
    """One sequence: `length` tokens (inputs and the last label) from token offset `start` of a shard file."""

    source: str
    epoch: int
    shard: int
    window: int
    start: int
    length: int


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


@dataclass(frozen=True)
class _Segment:
    """A stretch of batches with one batch size, one sequence length and one mixture."""

    setting: str  # how messages name it
    first_batch: int
    first_sample: int
    batch_size: int
    sequence_length: int
    sources: tuple[str, ...]
    mixture: Mixture
    before: Mapping[str, int]  # samples of each source and this sequence length in earlier segments


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
        DataError: a source without a single window, or fewer tokens than one batch takes.
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
        self._segments = _segments(data, steps, seed, self._shard_tokens)
        self._windows = _windows(self._segments, steps, self._shard_tokens)
        for segment in self._segments:
            _check_enough(segment, self._windows, self._shard_tokens)
        settings = {key: value for key, value in asdict(data).items() if key != "shards"}
        lengths = {segment.sequence_length for segment in self._segments}
        identity = [self.root.fingerprint, settings, seed, steps if len(lengths) > 1 else None]
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
        segment = self._segment_of_batch(self._batch(step))
        number, rank = segment.mixture.locate(sample_id - segment.first_sample)
        source = segment.sources[number]
        windows = self._windows[source, segment.sequence_length]
        epoch, index = divmod(segment.before[source] + rank, windows.count)
        window = permute(index, windows.count, permutation_key(self._seed, source, epoch))
        shard, start = windows.locate(window)
        return Sample(source, epoch, shard, window, start, segment.sequence_length + 1)

    def local_micro_batches(
        self, step: int, data_rank: int, data_world: int, micro_batch_size: int
    ) -> list[MicroBatch]:
        """Read one rank's part of a step: slice `data_rank` of the `data_world` equal slices of the batch.

        Raises:
            ConfigError: the batch does not divide into micro-batches of all ranks.
            DataError: a shard is damaged.
        """
        self.check_layout(data_world, micro_batch_size, step)
        samples = self.samples(step)
        share = len(samples) // data_world
        own = samples[data_rank * share : (data_rank + 1) * share]
        micro_batches = []
        for first in range(0, share, micro_batch_size):
            windows = []
            for sample_id in own[first : first + micro_batch_size]:
                sample = self.locate(step, sample_id)
                shards = self.root.open("train", sample.source)
                windows.append(read_window(shards, sample.shard, sample.start, sample.length))
            micro_batches.append(make_micro_batch(windows, self._data.document_masks))
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
            for document in shards.documents_within(sample.shard, sample.start, sample.length - 1):
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

    def _batch(self, step: int) -> int:
        """The number of a step's batch in the list of all batches."""
        assert step >= 0, step
        return step + sum(amendment.jump for amendment in self._amendments if amendment.at_step <= step)

    def _segment_of_batch(self, batch: int) -> _Segment:
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


def _segments(data: DataConfig, steps: int, seed: int, shard_tokens: Mapping[str, list[int]]) -> list[_Segment]:
    """The stretches that the run reaches, with their first batches and samples."""
    stages = [("data.", 0, data)]
    stages += [(f"data.segments[{n}].", s.from_step, s) for n, s in enumerate(data.segments) if s.from_step < steps]
    batch_size, sequence_length, weights = data.batch_size, data.sequence_length, data.sources
    segments: list[_Segment] = []
    used: dict[int, dict[str, int]] = {}
    size_setting = weights_setting = "data."
    for number, (setting, first_batch, stage) in enumerate(stages):
        first_sample = 0
        if segments:
            last = segments[-1]
            samples = (first_batch - last.first_batch) * last.batch_size
            first_sample = last.first_sample + samples
            for source, count in zip(last.sources, last.mixture.counts(samples), strict=True):
                before = used.setdefault(last.sequence_length, {})
                before[source] = before.get(source, 0) + count
        if stage.batch_size is not None:
            batch_size, size_setting = stage.batch_size, setting
        if stage.sources is not None:
            weights, weights_setting = stage.sources, setting
        sequence_length = stage.sequence_length or sequence_length
        chosen = _weights(f"{weights_setting}sources", weights, shard_tokens)
        segments.append(
            _Segment(
                setting=size_setting,
                first_batch=first_batch,
                first_sample=first_sample,
                batch_size=batch_size,
                sequence_length=sequence_length,
                sources=tuple(chosen),
                mixture=Mixture(list(chosen.values()), seed, number),
                before={source: used.get(sequence_length, {}).get(source, 0) for source in chosen},
            )
        )
    return segments


def _weights(setting: str, weights: Mapping[str, float], shard_tokens: Mapping[str, list[int]]) -> dict[str, float]:
    """The weights above 0, by name; without any, the sources' tokens."""
    # A weight of 0 may name any source: that is how a recipe's source is left out on the command line.
    for source, weight in weights.items():
        if weight > 0 and source not in shard_tokens:
            close = difflib.get_close_matches(source, shard_tokens, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"{setting}.{source} is not a source of these shards; {hint}Known: {', '.join(shard_tokens) or 'none'}"
            )
    chosen = weights or {source: sum(tokens) for source, tokens in shard_tokens.items()}
    chosen = {source: chosen[source] for source in sorted(chosen) if chosen[source] > 0}
    if not chosen:
        raise DataError(f"{setting}: the training shards hold no tokens; run llama-data on more documents")
    if len(chosen) > BLOCK:
        raise ConfigError(f"{setting}: {len(chosen)} sources are more than the {BLOCK} that a mixture can hold")
    return chosen


def _windows(
    segments: Sequence[_Segment], steps: int, shard_tokens: Mapping[str, list[int]]
) -> dict[tuple[str, int], Windows]:
    """The windows of every source and sequence length; lengths share a source by the tokens they take of it."""
    taken: dict[str, dict[int, int]] = {}
    for number, segment in enumerate(segments):
        stop = segments[number + 1].first_batch if number + 1 < len(segments) else steps
        tokens = (stop - segment.first_batch) * segment.batch_size * segment.sequence_length
        for source, quota in zip(segment.sources, segment.mixture.quotas.tolist(), strict=True):
            by_length = taken.setdefault(source, {})
            by_length[segment.sequence_length] = by_length.get(segment.sequence_length, 0) + tokens * quota
    windows = {}
    for source, by_length in taken.items():
        low, whole = 0, sum(by_length.values())
        for length, amount in by_length.items():
            windows[source, length] = Windows(shard_tokens[source], length, (low, low + amount, whole))
            low += amount
    return windows


def _check_enough(
    segment: _Segment, windows: Mapping[tuple[str, int], Windows], shard_tokens: Mapping[str, list[int]]
) -> None:
    length = segment.sequence_length
    for source in segment.sources:
        if not windows[source, length].count:
            tokens = shard_tokens[source]
            raise DataError(
                f"source {source} has {sum(tokens)} tokens in {len(tokens)} shard files, not enough for a single "
                f"sequence of data.sequence_length={length}: that takes {length + 1} tokens in one file, in the part "
                f"of it that this length may use; use a shorter length, or leave {source} out with data.sources"
            )
    have = sum(windows[source, length].count for source in segment.sources)
    if have < segment.batch_size:
        tokens = sum(sum(shard_tokens[source]) for source in segment.sources)
        raise DataError(
            f"the training shards have {tokens} tokens, {have} sequences of data.sequence_length={length}, but one "
            f"batch of {segment.setting}batch_size={segment.batch_size} takes {segment.batch_size * length + 1} "
            f"tokens; use data.batch_size={have} or less, a shorter length, or more documents"
        )
