"""The stretches of a run with one batch size, one sequence length and one mixture."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from llama_foundation.errors import ConfigError, DataError
from llama_train.config import DataConfig
from llama_train.data.mixture import BLOCK, Mixture


@dataclass(frozen=True)
class Stretch:
    """A stretch of batches with one batch size, one sequence length and one mixture."""

    setting: str  # how messages name it
    first_batch: int
    first_sample: int
    batch_size: int
    sequence_length: int
    sources: tuple[str, ...]
    mixture: Mixture
    before: Mapping[str, int]  # samples of each source and this sequence length in earlier segments


def stretches(data: DataConfig, steps: int, seed: int, shard_tokens: Mapping[str, list[int]]) -> list[Stretch]:
    """The stretches that the run reaches, with their first batches and samples."""
    stages = [("data.", 0, data)]
    stages += [(f"data.segments[{n}].", s.from_step, s) for n, s in enumerate(data.segments) if s.from_step < steps]
    batch_size, sequence_length, weights = data.batch_size, data.sequence_length, data.sources
    segments: list[Stretch] = []
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
            Stretch(
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
