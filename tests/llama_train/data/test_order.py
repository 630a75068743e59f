"""The order: the same on every layout, each window once an epoch, exact mixtures, jumps and segments."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_foundation.errors import ConfigError, DataError
from llama_train.config import DataConfig, Segment
from llama_train.data.amendments import Amendment
from llama_train.data.order import TokenOrder, check_vocabulary
from llama_train.data.windows import Windows


@dataclass
class FakeSet:
    shard_tokens: list[int]


@dataclass
class FakeCounts:
    """What the arithmetic needs, without a file."""

    train: dict[str, list[int]]
    fingerprint: str = "counts"
    opened: dict = field(default_factory=dict)

    def sources(self, split):
        return sorted(self.train) if split == "train" else []

    def open(self, split, source):
        return FakeSet(self.train[source])


def settings_of(**changes):
    return replace(DataConfig(shards="nowhere", sequence_length=8, batch_size=4), **changes)


def order_of(counts, steps=10, seed=0, amendments=(), **changes):
    return TokenOrder(settings_of(**changes), steps, seed, amendments, FakeCounts(counts))


def samples_of(order, steps):
    return [order.locate(step, sample) for step in steps for sample in order.samples(step)]


def span(sample):
    """Where a window begins in its shard, and where it ends, the last label included."""
    [(start, length)] = sample.pieces
    return start, start + length + 1


def rows(micro_batches):
    return torch.cat([micro_batch.tokens for micro_batch in micro_batches]).tolist()


# The same batch on every layout


def test_a_batch_is_the_same_on_every_layout(root):
    order = TokenOrder(settings_of(batch_size=24, sequence_length=16), 3, seed=0, root=root)
    for step in range(3):
        whole = rows(order.local_micro_batches(step, 0, 1, 24))
        assert len(whole) == 24
        for world in (1, 2, 3, 4, 6, 8, 12, 24):
            for micro in (1, 2, 3, 4, 6, 8, 12, 24):
                if 24 % (world * micro):
                    continue
                parts = [order.local_micro_batches(step, rank, world, micro) for rank in range(world)]
                assert {len(part) for part in parts} == {24 // world // micro}
                assert [row for part in parts for row in rows(part)] == whole


def test_tokens_are_those_at_the_place_that_locate_gives(root):
    order = TokenOrder(settings_of(batch_size=6, sequence_length=16), 5, seed=3, root=root)
    for step in range(5):
        [micro_batch] = order.local_micro_batches(step, 0, 1, 6)
        for row, sample_id in enumerate(order.samples(step)):
            sample = order.locate(step, sample_id)
            shards = root.open("train", sample.source)
            first = {"books": 0, "web": 20000}[sample.source] + sum(shards.shard_tokens[: sample.shard])
            first += span(sample)[0]
            assert micro_batch.tokens[row].tolist() == list(range(first, first + 16))


def test_a_fresh_order_gives_the_same_batches_in_any_sequence_of_steps(root):
    def batch(order, step):
        return rows(order.local_micro_batches(step, 0, 1, 4))

    forward = TokenOrder(settings_of(), 20, seed=0, root=root)
    expected = [batch(forward, step) for step in range(20)]
    backward = TokenOrder(settings_of(), 20, seed=0, root=root)
    assert [batch(backward, step) for step in reversed(range(20))] == expected[::-1]


# Windows and epochs


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(0, 60), min_size=1, max_size=5), length=st.integers(1, 20))
def test_windows_are_those_found_by_cutting_by_hand(tokens, length):
    expected = []
    for shard, count in enumerate(tokens):
        start = 0
        while start + length + 1 <= count:
            expected.append((shard, start))
            start += length
    windows = Windows(tokens, length)
    assert windows.count == len(expected)
    located = [windows.locate(window) for window in range(windows.count)]
    assert located == [(shard, ((start, length),)) for shard, start in expected]


def test_each_window_comes_exactly_once_per_epoch():
    counts = {"books": [50, 9, 8, 101], "web": [40, 41]}
    order = order_of(counts, batch_size=4, sequence_length=8)
    seen: dict[str, list] = {"books": [], "web": []}
    for sample in samples_of(order, range(200)):
        seen[sample.source].append(sample)
    for source, samples in seen.items():
        everything = {
            (shard, start) for shard, tokens in enumerate(counts[source]) for start in range(0, tokens - 8, 8)
        }
        epochs = len(samples) // len(everything)
        assert epochs > 20
        orders = set()
        for epoch in range(epochs):
            part = samples[epoch * len(everything) : (epoch + 1) * len(everything)]
            assert {sample.epoch for sample in part} == {epoch}
            assert {(sample.shard, span(sample)[0]) for sample in part} == everything
            orders.add(tuple(sample.window for sample in part))
        assert len(orders) > epochs / 2  # shuffled anew


def test_epochs_tell_how_often_each_source_was_gone_through():
    counts = {"books": [50, 9, 8, 101], "web": [40, 41]}
    order = order_of(counts)
    used: Counter = Counter()
    for step in range(60):
        assert order.epochs(step) == {"books": used["books"] / 19, "web": used["web"] / 9}
        used.update(sample.source for sample in samples_of(order, [step]))


def test_empty_weights_mean_in_proportion_to_tokens():
    order = order_of({"books": [30000], "web": [10000]}, batch_size=4096)
    counts = Counter(sample.source for sample in samples_of(order, [0]))
    assert counts == {"books": 3072, "web": 1024}


def test_mixture_counts_are_exact():
    order = order_of({"a": [10**6], "b": [10**6], "c": [10**6]}, batch_size=1024, sources={"a": 6, "b": 1, "c": 1})
    for first in (0, 4, 1000):
        counts = Counter(sample.source for sample in samples_of(order, range(first, first + 4)))
        assert counts == {"a": 3072, "b": 512, "c": 512}


def test_a_source_with_weight_0_is_not_used_and_may_be_too_short():
    order = order_of({"a": [1000], "b": [3]}, sources={"a": 1, "b": 0})
    assert {sample.source for sample in samples_of(order, range(10))} == {"a"}
    assert order.epochs(5) == {"a": 20 / 124}


def test_the_order_of_the_names_does_not_matter():
    first = order_of({"a": [1000], "b": [900]}, sources={"a": 1, "b": 2})
    second = order_of({"b": [900], "a": [1000]}, sources={"b": 2, "a": 1})
    assert samples_of(first, range(20)) == samples_of(second, range(20))


def test_another_seed_is_another_order():
    counts = {"a": [1000], "b": [900]}
    assert samples_of(order_of(counts, seed=0), range(5)) != samples_of(order_of(counts, seed=1), range(5))


# Scale


def test_fifteen_trillion_tokens_are_sought_in_place():
    # 3,750 shard files of 4 * 10**9 tokens; step 10**6 of batches of 2,048 sequences of 8,192 is 1.7 * 10**13 tokens.
    counts = {"books": [4 * 10**9] * 750, "web": [4 * 10**9] * 3000}
    order = order_of(counts, steps=10**6 + 1, batch_size=2048, sequence_length=8192)
    step = 10**6
    assert order.samples(step) == range(2048 * 10**6, 2048 * (10**6 + 1))
    samples = samples_of(order, [step])
    windows_per_shard = (4 * 10**9 - 1) // 8192
    assert len({(sample.source, sample.epoch, sample.window) for sample in samples}) == 2048
    for sample in samples:
        assert sample.shard == sample.window // windows_per_shard
        assert span(sample)[0] == sample.window % windows_per_shard * 8192
        assert span(sample)[1] <= 4 * 10**9
        assert sample.epoch == 1
    assert order.epochs(step)["web"] == pytest.approx(2048 * 10**6 / (3750 * windows_per_shard), rel=1e-6)


# Amendments


def test_after_a_jump_the_batches_are_those_further_on():
    counts = {"a": [1000], "b": [900]}
    plain = order_of(counts)
    jumped = order_of(counts, amendments=[Amendment(at_step=3, jump=2), Amendment(at_step=5, jump=10)])
    sources = [0, 1, 2, 5, 6, 17, 18]
    for step, batch in enumerate(sources):
        assert jumped.samples(step) == plain.samples(batch)
        assert samples_of(jumped, [step]) == samples_of(plain, [batch])


def test_a_jump_moves_on_through_the_segments_too():
    counts = {"a": [10000]}
    segments = [Segment(from_step=4, batch_size=8)]
    plain = order_of(counts, segments=segments)
    jumped = order_of(counts, segments=segments, amendments=[Amendment(at_step=2, jump=1)])
    assert [jumped.batch_size(step) for step in range(5)] == [4, 4, 4, 8, 8]
    assert samples_of(jumped, [3]) == samples_of(plain, [4])


@pytest.mark.parametrize(("at_step", "jump"), [(-1, 1), (0, 0), (3, -2), (3, 1.5)])
def test_an_impossible_amendment_is_refused(at_step, jump):
    with pytest.raises(ConfigError, match="must be a whole number of at least"):
        Amendment(at_step, jump)


# Segments


def test_segments_change_batch_size_length_and_weights():
    segments = [
        Segment(from_step=2, batch_size=6),
        Segment(from_step=4, sequence_length=16, sources={"b": 1.0}),
        Segment(from_step=6, sources={"a": 1.0, "b": 1.0}, sequence_length=8),
    ]
    order = order_of({"a": [4000], "b": [4000]}, steps=8, segments=segments, sources={"a": 1.0})
    assert [order.batch_size(step) for step in range(8)] == [4, 4, 6, 6, 6, 6, 6, 6]
    assert [order.sequence_length(step) for step in range(8)] == [8, 8, 8, 8, 16, 16, 8, 8]
    assert [order.tokens_per_step(step) for step in range(8)] == [32, 32, 48, 48, 96, 96, 48, 48]
    first_ids = [order.samples(step).start for step in range(8)]
    assert first_ids == [0, 4, 8, 14, 20, 26, 32, 38]
    for step in range(4):
        assert {sample.source for sample in samples_of(order, [step])} == {"a"}
    for step in (4, 5):
        assert {(sample.source, sample.pieces[0][1]) for sample in samples_of(order, [step])} == {("b", 16)}
    assert {sample.source for sample in samples_of(order, [6, 7])} == {"a", "b"}


def test_a_ramped_batch_size_repeats_nothing_within_an_epoch():
    counts = {"a": [999, 500], "b": [700]}
    segments = [Segment(from_step=3, batch_size=6), Segment(from_step=7, batch_size=10)]
    order = order_of(counts, segments=segments)
    samples = samples_of(order, range(24))
    epoch = [(sample.source, sample.window) for sample in samples if sample.epoch == 0]
    assert len(epoch) > 190
    assert len(set(epoch)) == len(epoch)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 5))
def test_sequence_lengths_never_share_a_token_within_an_epoch(data, seed):
    counts = {name: data.draw(st.lists(st.integers(400, 900), min_size=1, max_size=3)) for name in ("a", "b")}
    lengths = data.draw(st.lists(st.sampled_from([4, 8, 16]), min_size=2, max_size=3))
    steps = 12
    segments = [
        Segment(from_step=4 * number, sequence_length=length, sources={"a": 1.0 + number, "b": 1.0})
        for number, length in enumerate(lengths[1:], start=1)
    ]
    order = order_of(counts, steps=steps, seed=seed, segments=segments, sequence_length=lengths[0])
    input_users: dict = {}
    for step in range(steps):
        for sample_id in order.samples(step):
            sample = order.locate(step, sample_id)
            assert span(sample)[0] >= 0
            assert span(sample)[1] <= counts[sample.source][sample.shard]
            for token in range(span(sample)[0], span(sample)[1] - 1):
                users = input_users.setdefault((sample.source, sample.shard, token), [])
                users.append((sample.pieces[0][1], sample.epoch))
    assert input_users
    for users in input_users.values():
        assert len({length for length, _ in users}) == 1
        assert len(set(users)) == len(users)


def test_lengths_share_a_shard_by_the_tokens_they_take():
    # Length 8 takes 6 steps * 4 * 8 = 192 tokens, length 16 takes 4 * 4 * 16 = 256: 3 and 4 sevenths of every file.
    order = order_of({"a": [700, 1401]}, steps=10, segments=[Segment(from_step=6, sequence_length=16)])
    short = [(s.shard, *span(s)) for s in samples_of(order, range(6))]
    long = [(s.shard, *span(s)) for s in samples_of(order, range(6, 10))]
    borders = {0: 300, 1: 600}
    assert all(stop <= borders[shard] for shard, _, stop in short)
    assert all(start >= borders[shard] for shard, start, _ in long)
    assert {start for _, start, _ in long} <= {300 + 16 * i for i in range(25)} | {600 + 16 * i for i in range(51)}


def test_each_source_is_shared_by_what_the_lengths_take_of_it():
    # Of a, length 8 takes 3/4 of 6 * 4 * 8 = 144 tokens and length 16 takes 1/4 of 3 * 4 * 16 = 48: 3 to 1.
    # Of b, they take 48 and 144: 1 to 3.
    segments = [Segment(from_step=6, sequence_length=16, sources={"a": 1.0, "b": 3.0})]
    order = order_of({"a": [1000], "b": [1000]}, steps=9, segments=segments, sources={"a": 3.0, "b": 1.0})
    borders = {"a": 750, "b": 250}
    assert all(span(s)[1] <= borders[s.source] for s in samples_of(order, range(6)))
    long = samples_of(order, range(6, 9))
    assert {s.source: (span(s)[0] - borders[s.source]) % 16 for s in long} == {"a": 0, "b": 0}
    assert all(span(s)[0] >= borders[s.source] for s in long)


def test_a_length_that_returns_goes_on_where_it_stopped():
    segments = [Segment(from_step=3, sequence_length=16), Segment(from_step=6, sequence_length=8)]
    order = order_of({"a": [4000]}, steps=9, segments=segments)
    short = [sample.window for sample in samples_of(order, [0, 1, 2, 6, 7, 8])]
    assert len(set(short)) == len(short) == 24


def test_epochs_of_several_lengths_weigh_tokens():
    order = order_of({"a": [2001]}, steps=10, segments=[Segment(from_step=5, sequence_length=16)])
    # shares of 5*4*8=160 and 5*4*16=320 tokens: 667 and 1334 tokens, 83 windows of 8 and 83 of 16.
    assert order.epochs(5) == {"a": 20 * 8 / (83 * 8 + 83 * 16)}
    assert order.epochs(7) == {"a": (20 * 8 + 8 * 16) / (83 * 8 + 83 * 16)}


def test_a_segment_after_the_last_step_takes_no_tokens():
    order = order_of({"a": [1000]}, steps=5, segments=[Segment(from_step=5, sequence_length=16)])
    assert samples_of(order, range(5)) == samples_of(order_of({"a": [1000]}, steps=5), range(5))


# Fingerprint


def test_the_fingerprint_is_that_of_data_settings_and_seed_alone():
    counts = {"a": [1000], "b": [900]}
    first = order_of(counts).fingerprint
    assert order_of(counts, steps=99).fingerprint == first
    assert order_of(counts, shards="elsewhere").fingerprint == first
    changed = [
        order_of(counts, seed=1),
        order_of(counts, batch_size=8),
        order_of(counts, sequence_length=16),
        order_of(counts, sources={"a": 1}),
        order_of(counts, segments=[Segment(from_step=3, batch_size=8)]),
        TokenOrder(settings_of(), 10, 0, (), FakeCounts(counts, fingerprint="others")),
    ]
    assert len({first, *(order.fingerprint for order in changed)}) == 7


def test_the_steps_count_only_where_lengths_share_the_tokens():
    segments = [Segment(from_step=3, sequence_length=16)]
    short = order_of({"a": [1000]}, steps=10, segments=segments)
    long = order_of({"a": [1000]}, steps=20, segments=segments)
    assert short.fingerprint != long.fingerprint


# Errors


def test_a_weight_of_zero_leaves_out_a_source_that_the_shards_may_lack():
    order = order_of({"web": [4000]}, sources={"books": 0.0, "web": 1.0})
    assert set(order.epochs(3)) == {"web"}


def test_an_unknown_source_names_the_closest():
    with pytest.raises(
        ConfigError, match=r"data.sources.book is not a source .* did you mean books\? Known: books, web"
    ):
        order_of({"books": [100], "web": [100]}, sources={"book": 1})
    with pytest.raises(ConfigError, match=r"data.segments\[0\].sources.wep"):
        order_of({"web": [100]}, segments=[Segment(from_step=3, sources={"wep": 1.0})])


def test_a_source_without_a_window_is_refused_with_its_tokens():
    with pytest.raises(DataError, match=r"source web has 15 tokens in 2 shard files.*data.sequence_length=8.*takes 9"):
        order_of({"books": [1000], "web": [8, 7]})


def test_fewer_tokens_than_one_batch_are_refused_with_both_numbers():
    with pytest.raises(
        DataError, match=r"have 31 tokens, 3 sequences .* data.batch_size=4 takes 33 tokens; use data.batch_size=3"
    ):
        order_of({"a": [31]})
    assert order_of({"a": [33]}).samples(0) == range(4)


def test_no_training_tokens_are_refused():
    with pytest.raises(DataError, match="hold no tokens"):
        order_of({})


def test_a_batch_that_does_not_divide_is_refused_with_the_choices():
    order = order_of({"a": [1000]}, batch_size=12, segments=[Segment(from_step=3, batch_size=20)])
    order.check_layout(4, 1)
    with pytest.raises(ConfigError) as raised:
        order.check_layout(4, 2)
    assert str(raised.value) == (
        "data.batch_size=12 does not divide into micro-batches of layout.micro_batch_size=2 on 4 data-parallel ranks; "
        "use data.batch_size=8 or 16, or layout.micro_batch_size=1, 3"
    )
    with pytest.raises(
        ConfigError, match=r"data.segments\[0\].batch_size=20 .* use data.segments\[0\].batch_size=18 or 24"
    ):
        order.check_layout(6, 1)
    with pytest.raises(ConfigError, match=r"data.batch_size=12"):
        order.local_micro_batches(0, 0, 5, 1)


def test_a_vocabulary_larger_than_the_models_is_refused(root):
    check_vocabulary(root, 60000)
    check_vocabulary(root, 64000, "f" * 64)
    with pytest.raises(DataError, match=r"has 60000 tokens, but model.vocab_size=32000"):
        check_vocabulary(root, 32000)
    with pytest.raises(DataError, match="trained with tokenizer eee"):
        check_vocabulary(root, 64000, "eee")


# Documents


def test_documents_are_those_that_the_inputs_come_from(root):
    order = TokenOrder(settings_of(batch_size=6, sequence_length=16), 20, seed=3, root=root)
    row_of = {}
    for source, first in (("books", 0), ("web", 20000)):
        shards = root.open("train", source)
        lengths = np.concatenate([np.diff(shards.document_starts(shard)) for shard in range(len(shards.shard_tokens))])
        owners = np.repeat(np.arange(len(lengths)), lengths)
        row_of |= {first + position: (source, row) for position, row in enumerate(owners.tolist())}
    for step in range(20):
        expected: dict = {}
        for sample_id, tokens in zip(order.samples(step), rows(order.local_micro_batches(step, 0, 1, 6)), strict=True):
            for token in tokens:
                expected.setdefault(row_of[token], set()).add(sample_id)
        documents = order.documents(step)
        assert {(document.source, document.row): set(document.samples) for document in documents} == expected
        for document in documents:
            assert document.file == f"{document.source}.jsonl"
            assert document.url == f"https://example.org/{document.source}/{document.row}"
            assert document.first_words.startswith(f"[{document.source}] document number {document.row} ")


def test_documents_can_be_limited_to_the_first(root):
    order = TokenOrder(settings_of(batch_size=6, sequence_length=16), 5, seed=3, root=root)
    short, whole = order.documents(2, limit=3), order.documents(2)
    assert len(short) == 3 < len(whole)
    assert [document.row for document in short] == [document.row for document in whole[:3]]
