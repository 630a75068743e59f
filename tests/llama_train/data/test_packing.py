"""Training on packs: each once an epoch, alike on every layout, and the loss that the documents have one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.shards.pack_writer import write_packs
from data_pipeline.shards.reader import open_root
from llama_foundation import compose
from llama_foundation.errors import ConfigError, DataError
from llama_train.config import DataConfig, ModelConfig, Packing, Segment, TrainConfig
from llama_train.data.batches import IGNORE, make_packed_micro_batch
from llama_train.data.order import TokenOrder
from llama_train.model.initialize import initial_values
from llama_train.model.llama import Llama
from llama_train.prove.harness import make_shards

LENGTH = 32


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Two sources packed for 32 and for 16 tokens, in blocks of 10 documents."""
    directory = tmp_path_factory.mktemp("packed")
    make_shards(directory, 101, 4_000)
    root = open_root(directory)
    for source in ("even", "odd"):
        for length in (LENGTH, 16):
            write_packs(root.open("train", source), length, block_documents=10)
    return root


def settings_of(**changes):
    plain = DataConfig(shards="nowhere", sequence_length=LENGTH, batch_size=6, packing=Packing.best_fit)
    return replace(plain, **changes)


def located(order, steps):
    return [order.locate(step, sample) for step in steps for sample in order.samples(step)]


def test_a_pack_becomes_rows_by_hand():
    packs = [
        [np.array([1, 7, 2], np.uint16), np.array([1, 2], np.uint16)],
        [np.array([5, 6, 7, 8, 9, 2, 1], np.uint16)],
        [np.array([2], np.uint16), np.array([1, 4, 4, 2], np.uint16), np.array([1, 2], np.uint16)],
    ]
    batch = make_packed_micro_batch(packs, 7)
    assert batch.tokens.tolist() == [[1, 7, 2, 1, 2, 0, 0], [5, 6, 7, 8, 9, 2, 1], [2, 1, 4, 4, 2, 1, 2]]
    no = IGNORE
    assert batch.labels.tolist() == [
        [7, 2, no, 2, no, no, no],
        [6, 7, 8, 9, 2, 1, no],
        [no, 4, 4, 2, no, 2, no],
    ]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1, 2, 2], [0] * 7, [0, 1, 1, 1, 1, 2, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1], list(range(7)), [0, 0, 1, 2, 3, 0, 1]]
    assert {part.dtype for part in vars(batch).values()} == {torch.int32}


def test_the_loss_of_a_pack_is_that_of_its_pieces_one_by_one():
    model_config = ModelConfig("tiny", 101, 16, 2, 2, 1, 24, 64, initial_std=0.3)
    model = Llama(model_config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            start = (0,) * len(shape)
            parameter.copy_(initial_values(0, name, shape, start, shape, model_config, torch.float64))
    random = np.random.default_rng(0)
    pieces = [random.integers(3, 101, length) for length in (9, 4, 1, 13)]
    batch = make_packed_micro_batch([pieces], LENGTH)
    loss, count = model(batch.tokens, batch.labels, batch.document_ids, batch.positions)
    alone = 0.0
    for piece in pieces:
        ids = torch.tensor(piece)[None]
        if ids.shape[1] > 1:
            alone += float(torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="sum").detach())
    assert int(count) == 8 + 3 + 0 + 12
    assert float(loss.detach()) == pytest.approx(alone, abs=1e-10)


def test_each_pack_comes_exactly_once_per_epoch_and_holds_every_token(packed):
    order = TokenOrder(settings_of(), 100, seed=0, root=packed)
    for source in ("even", "odd"):
        shards = packed.open("train", source)
        seen: dict[int, list] = {}
        for sample in located(order, range(100)):
            if sample.source == source:
                seen.setdefault(sample.epoch, []).append(sample)
        packs = len(seen[0])
        assert len(seen) >= 3
        for epoch in (0, 1):
            assert sorted(sample.window for sample in seen[epoch]) == list(range(packs))
            used = [
                (sample.shard, token)
                for sample in seen[epoch]
                for start, length in sample.pieces
                for token in range(start, start + length)
            ]
            every = [(shard, token) for shard, n in enumerate(shards.shard_tokens) for token in range(n)]
            assert sorted(used) == every
        assert [s.window for s in seen[0]] != [s.window for s in seen[1]]


def test_a_batch_of_packs_is_the_same_on_every_layout(packed):
    order = TokenOrder(settings_of(batch_size=12), 3, seed=0, root=packed)
    for step in range(3):
        [whole] = order.local_micro_batches(step, 0, 1, 12)
        for world, micro in ((1, 1), (2, 3), (3, 4), (12, 1)):
            parts = [b for rank in range(world) for b in order.local_micro_batches(step, rank, world, micro)]
            for name, tensor in vars(whole).items():
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), tensor)


def test_rows_hold_the_tokens_of_the_pieces(packed):
    order = TokenOrder(settings_of(), 2, seed=3, root=packed)
    [batch] = order.local_micro_batches(1, 0, 1, 6)
    for row, sample in enumerate(located(order, [1])):
        shards = packed.open("train", sample.source)
        expected = [t for start, length in sample.pieces for t in shards.read(sample.shard, start, length).tolist()]
        assert batch.tokens[row, : len(expected)].tolist() == expected
        assert (batch.labels[row, len(expected) :] == IGNORE).all()


def test_sequence_lengths_share_no_token(packed):
    segments = [Segment(from_step=5, sequence_length=16)]
    order = TokenOrder(settings_of(segments=segments), 12, seed=0, root=packed)
    users: dict = {}
    lengths = set()
    for step in range(12):
        for sample in located(order, [step]):
            lengths.add(order.sequence_length(step))
            for start, length in sample.pieces:
                for token in range(start, start + length):
                    key = (sample.source, sample.shard, token)
                    users.setdefault(key, set()).add(order.sequence_length(step))
    assert lengths == {16, 32}
    assert all(len(each) == 1 for each in users.values())


def test_lengths_packed_in_other_blocks_are_refused_with_the_command(packed):
    write_packs(packed.open("train", "odd"), 8, block_documents=11)
    write_packs(packed.open("train", "even"), 8, block_documents=10)
    segments = [Segment(from_step=5, sequence_length=8)]
    with pytest.raises(DataError, match=r"odd/packs-8: .* sequence_length=8 block_documents=10"):
        TokenOrder(settings_of(segments=segments), 12, seed=0, root=packed)


def test_fewer_blocks_than_lengths_are_refused_with_the_fix(tmp_path):
    make_shards(tmp_path, 101, 1_000)
    root = open_root(tmp_path)
    for source in ("even", "odd"):
        for length in (LENGTH, 16):
            write_packs(root.open("train", source), length)
    segments = [Segment(from_step=5, sequence_length=16)]
    with pytest.raises(DataError, match=r"32 has none; run llama-pack for every length with a smaller block_documents"):
        TokenOrder(settings_of(segments=segments), 12, seed=0, root=root)


def test_without_packs_the_run_is_refused_with_the_command(packed):
    with pytest.raises(DataError, match=r"packs-20/.*llama-pack shards=.* sequence_length=20"):
        TokenOrder(settings_of(sequence_length=20), 12, seed=0, root=packed)


def test_a_batch_larger_than_all_packs_is_refused(packed):
    with pytest.raises(DataError, match=r"batch_size=900 takes 900; use data.batch_size=\d+ or less"):
        TokenOrder(settings_of(batch_size=900), 12, seed=0, root=packed)


def test_the_documents_of_a_step_are_those_of_its_pieces(packed):
    order = TokenOrder(settings_of(), 5, seed=0, root=packed)
    expected = set()
    for sample in located(order, [2]):
        starts = packed.open("train", sample.source).document_starts(sample.shard)
        for start, _ in sample.pieces:
            expected.add((sample.source, int(np.flatnonzero(starts <= start)[-1])))
    assert {(document.source, document.row) for document in order.documents(2)} == expected


def test_other_packs_are_another_order(packed, tmp_path):
    make_shards(tmp_path, 101, 4_000)
    root = open_root(tmp_path)
    assert root.fingerprint == packed.fingerprint
    prints = []
    for block_documents in (10, 11):
        for source in ("even", "odd"):
            write_packs(root.open("train", source), LENGTH, block_documents=block_documents)
        prints.append(TokenOrder(settings_of(), 5, 0, (), root).fingerprint)
    prints.append(TokenOrder(settings_of(packing=Packing.concatenate), 5, 0, (), root).fingerprint)
    assert prints[0] == TokenOrder(settings_of(), 5, 0, (), packed).fingerprint
    assert len(set(prints)) == 3


def test_packs_need_document_masks():
    with pytest.raises(ConfigError, match=r"data.packing=best_fit .* needs data.document_masks=true"):
        settings_of(document_masks=False).check()


def test_the_setting_is_composed_and_kept(tmp_path):
    overrides = ["experiment=quickstart", "data.shards=x", "data.packing=best_fit"]
    config = compose.compose("train", TrainConfig, overrides)
    assert config.data.packing is Packing.best_fit
    (tmp_path / "config.yaml").write_text(compose.dump(config))
    assert compose.load(tmp_path / "config.yaml", TrainConfig) == config
    with pytest.raises(ConfigError, match="best_fit"):
        compose.compose("train", TrainConfig, [*overrides[:2], "data.packing=bestfit"])
