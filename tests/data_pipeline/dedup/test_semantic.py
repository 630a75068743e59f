"""Semantic deduplication against cosines computed one by one."""

import itertools
import random
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_pipeline.batches import load_documents, write_documents
from data_pipeline.chain import Chain
from data_pipeline.dedup import embed, semantic
from data_pipeline.dedup.embed import Embedder, quantise
from data_pipeline.dedup.semantic import Keep, SemanticDedup, keepers, nearest
from data_pipeline.engines.local import LocalEngine
from llama_foundation.errors import ConfigError
from tests.data_pipeline.conftest import make_documents

VECTOR = st.lists(st.integers(-3, 3), min_size=3, max_size=3)


def run(folder, rows, own, cuts=(), workers=1):
    """record id -> (cluster, copies) of what stays, and the statistics."""
    bounds = [0, *cuts, len(rows)]
    blocks = []
    for start, end in itertools.pairwise(bounds):
        blocks += write_documents(folder / f"{start}.arrow", make_documents(rows[start:end]))
    with LocalEngine(workers) as engine:
        blocks, statistics = semantic.run(Chain(folder / "work", engine, Console(quiet=True), 0), blocks, own)
    kept = [row for block in blocks for row in load_documents(block).batch.to_pylist()]
    return {row["record_id"]: (row["cluster"], row["copies"]) for row in kept}, statistics[0]


@settings(deadline=None)
@given(st.lists(VECTOR, max_size=12), st.sampled_from([0.5, 0.9, 1.0]), st.integers(1, 5))
def test_a_document_goes_if_any_before_it_is_similar(vectors, threshold, tile):
    vectors = quantise(np.array(vectors, np.float64).reshape(-1, 3))
    whole = [[int(value) for value in vector] for vector in vectors]
    expected = []
    for place, one in enumerate(whole):
        keeper = place
        for before in range(place):
            other = whole[before]
            product = sum(a * b for a, b in zip(one, other, strict=True))
            lengths = sum(a * a for a in one) * sum(b * b for b in other)
            if product > 0 and product * product >= threshold * threshold * lengths:
                keeper = expected[before]
                break
        expected.append(keeper)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "TILE", tile)
        assert keepers(vectors, threshold).tolist() == expected


@settings(deadline=None)
@given(st.lists(VECTOR, min_size=1, max_size=9), st.lists(VECTOR, min_size=1, max_size=7), st.integers(1, 4))
def test_the_nearest_centroid_is_the_first_with_the_greatest_product(vectors, centroids, tile):
    vectors, centroids = (quantise(np.array(each, np.float64)) for each in (vectors, centroids))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "TILE", tile)
        found = nearest(vectors, centroids)[0].tolist()
    exact = vectors.astype(np.int64) @ centroids.astype(np.int64).T
    assert found == [max(range(len(row)), key=lambda place: (row[place], -place)) for row in exact.tolist()]


def test_products_of_stored_vectors_are_exact_in_float32():
    generator = np.random.default_rng(0)
    vectors = quantise(generator.normal(size=(50, 1024)) ** 5)
    exact = vectors.astype(np.int64) @ vectors.astype(np.int64).T
    assert np.array_equal((vectors.astype(np.float32) @ vectors.astype(np.float32).T).astype(np.int64), exact)
    assert np.abs(vectors.astype(np.int64)).sum(1).max() * 2048 > 2**24  # a worst case by absolute values would not be


def corpus():
    generator = random.Random(5)
    vocabulary = [f"word{number}" for number in range(400)]
    rows = []
    for place in range(60):
        said = generator.choices(vocabulary, k=80)
        rows.append({"record_id": bytes([place]) * 16, "text": " ".join(said)})
        if place % 3 == 0:
            said[40] = "changed"
            rows.append({"record_id": bytes([100 + place]) * 16, "text": " ".join(said).upper(), "copies": 2})
    return rows


def test_near_copies_go_and_nothing_depends_on_blocks_or_workers(tmp_path):
    rows = corpus()
    own = SemanticDedup(threshold=0.85, clusters=4)
    kept, statistics = run(tmp_path / "a", rows, own)
    assert set(kept) == {bytes([place]) * 16 for place in range(60)}
    assert kept[bytes([3]) * 16] == (bytes([3]) * 16, 3)
    assert kept[bytes([4]) * 16] == (None, 1)
    assert statistics.cluster_sizes == {"2": 20}
    assert statistics.reasons()["semantic_dedup.semantic_duplicate"][0] == 20
    random.Random(0).shuffle(rows)
    assert run(tmp_path / "b", rows, own, [7, 50], workers=2)[0] == kept


def test_texts_without_words_are_not_copies_of_each_other(tmp_path):
    rows = [{"text": "!"}, {"text": "?"}, {"text": "one two"}]
    assert len(run(tmp_path, rows, SemanticDedup())[0]) == 3


class FakeModel:
    """Stands for a model of sentence-transformers: two numbers that the text names."""

    def __init__(self, path, local_files_only, trust_remote_code):
        assert local_files_only
        assert not trust_remote_code

    def encode(self, texts, batch_size, show_progress_bar):
        return np.array([[float(value) for value in text.split()] for text in texts], np.float32)


@pytest.fixture
def model(monkeypatch, tmp_path):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeModel
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    embed.load_model.cache_clear()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "modules.json").write_text("[]")
    yield str(tmp_path / "model")
    embed.load_model.cache_clear()


def test_a_model_by_path_and_the_least_typical_stays(tmp_path, model):
    rows = [{"record_id": bytes([n]) * 16, "text": text} for n, text in enumerate(["10 2", "10 1", "10 0", "0 1"])]
    given_ = {"embedder": Embedder.sentence_transformers, "model": model, "clusters": 1, "threshold": 0.97}
    assert set(run(tmp_path / "a", rows, SemanticDedup(**given_))[0]) == {b"\0" * 16, b"\3" * 16}
    own = SemanticDedup(keep=Keep.farthest_from_centroid, **given_)
    # the centroid lies between "10 2" and "0 1", so "10 0" is the farthest of the three that are similar
    assert set(run(tmp_path / "b", rows, own)[0]) == {b"\2" * 16, b"\3" * 16}
    rows[1]["published"] = True
    assert set(run(tmp_path / "c", rows, own)[0]) == {b"\1" * 16, b"\3" * 16}
    before = embed.model_fingerprint(tmp_path / "model")
    (tmp_path / "model" / "modules.json").write_text("[1]")
    assert embed.model_fingerprint(tmp_path / "model") != before


def test_what_cannot_work_is_refused(monkeypatch, tmp_path):
    for own, message in (
        (SemanticDedup(threshold=0), "threshold=0 must be above 0"),
        (SemanticDedup(model="somewhere"), "embedder=sentence_transformers needs a model"),
        (SemanticDedup(embedder=Embedder.sentence_transformers, model="nowhere"), "nowhere is no directory"),
        (
            SemanticDedup(embedder=Embedder.sentence_transformers, model="minilm"),
            r"pip install 'llama-train\[minilm\]'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            own.check()
    monkeypatch.setattr(semantic.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'llama-train\[semantic\]'"):
        SemanticDedup().check()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    embed.load_model.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'llama-train\[sentence-transformers\]'"):
        embed.load_model(str(tmp_path))
