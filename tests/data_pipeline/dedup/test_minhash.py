import io
import random
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_pipeline.chain import Chain
from data_pipeline.dedup import bands, components, minhash, verify
from data_pipeline.dedup.minhash import MinHashDedup
from data_pipeline.dedup.survivors import Prefer, Scope
from data_pipeline.engines.local import LocalEngine
from data_pipeline.engines.work import Commit, write_blocks
from tests.data_pipeline.conftest import make_documents
from tests.data_pipeline.dedup.conftest import run_stage, shuffled

WORDS = [f"w{number}" for number in range(40)]


def near_copies(generator, families, copies, words=60, edits=6):
    """Return documents in families: each a text and copies of it with some words replaced."""
    rows = []
    for _ in range(families):
        base = [generator.choice(WORDS) for _ in range(words)]
        for _ in range(generator.randint(1, copies)):
            text = list(base)
            for _ in range(generator.randint(0, edits)):
                text[generator.randrange(words)] = generator.choice(WORDS)
            source = generator.choice(["web", "books"])
            rows.append({"text": " ".join(text), "source": source, "copies": generator.choice([1, 1, 3])})
    return make_documents(rows)


def shingle_set(text, size=5):
    words = text.split()
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def by_definition(documents, order):
    """All pairs: near-copies share a band key and have a Jaccard similarity of at least `min_jaccard`."""
    rows = documents.batch.to_pylist()
    keys, _ = bands.keys_of(documents, order)
    sets = [shingle_set(row["text"]) for row in rows]
    parents = list(range(len(rows)))

    def root(row):
        while parents[row] != row:
            row = parents[row]
        return row

    for one in range(len(rows)):
        for other in range(one):
            if not (keys[one] == keys[other]).any():
                continue
            if len(sets[one] & sets[other]) / len(sets[one] | sets[other]) >= order.min_jaccard:
                parents[root(one)] = root(other)
    clusters = {}
    for row in range(len(rows)):
        clusters.setdefault(root(row), []).append(rows[row])
    kept = []
    for cluster in clusters.values():
        best = min(cluster, key=lambda row: (order.source_priority.index(row["source"]), row["record_id"]))
        copies = sum(row["copies"] for row in cluster)
        kept.append({**best, "copies": copies, "cluster": best["record_id"] if len(cluster) > 1 else None})
    return sorted(kept, key=lambda row: row["record_id"]), sorted(map(len, clusters.values()))


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), max_size=6), st.sampled_from([0.0, 0.4, 0.6, 0.9]))
def test_survivors_are_those_of_all_pairs_for_any_cut_and_order(tmp_path_factory, seed, cuts, min_jaccard):
    generator = random.Random(seed)
    documents = near_copies(generator, families=8, copies=5)
    order = MinHashDedup(source_priority=["books", "web"], bands=6, rows=3, min_jaccard=min_jaccard)
    folder = tmp_path_factory.mktemp("minhash")
    expected, sizes = by_definition(documents, order)
    kept, statistics = run_stage(folder / "a", minhash.run, order, shuffled(documents, generator), cuts)
    assert kept == expected
    found = {int(size): count for size, count in statistics[0].cluster_sizes.items()}
    assert found == {size: sizes.count(size) for size in set(sizes) if size > 1}
    assert sum(row["copies"] for row in kept) == sum(documents.batch["copies"].to_pylist())
    again, statistics_again = run_stage(folder / "b", minhash.run, order, documents)
    assert (again, statistics_again) == (kept, statistics)


def test_workers_and_buckets_change_nothing(tmp_path, monkeypatch):
    documents = near_copies(random.Random(5), families=25, copies=5)
    order = MinHashDedup(source_priority=["books", "web"])
    plain = run_stage(tmp_path / "plain", minhash.run, order, documents)
    assert run_stage(tmp_path / "workers", minhash.run, order, documents, range(0, 80, 20), workers=2) == plain
    monkeypatch.setattr(minhash, "ROWS_PER_BUCKET", 300)
    monkeypatch.setattr(minhash, "SHINGLES_PER_BUCKET", 1000)
    monkeypatch.setattr(verify, "SPILL_BYTES", 1000)
    assert run_stage(tmp_path / "buckets", minhash.run, order, documents, range(0, 80, 20)) == plain
    assert 0 < len(plain[0]) < len(documents)


def test_copies_of_other_scopes_stay(tmp_path):
    text = " ".join(WORDS)
    documents = make_documents([{"text": text, "source": source} for source in ("a", "a", "b", "b", "c")])
    kept, _ = run_stage(tmp_path, minhash.run, MinHashDedup(scope=Scope.source), documents)
    assert sorted((row["source"], row["copies"]) for row in kept) == [("a", 2), ("b", 2), ("c", 1)]


def test_published_wins_then_the_longest(tmp_path):
    text = " ".join(WORDS)
    rows = [{"text": text}, {"text": text + " more"}, {"text": text, "published": True}]
    order = MinHashDedup(prefer=Prefer.longest)
    kept, statistics = run_stage(tmp_path / "a", minhash.run, order, make_documents(rows))
    assert [row["published"] for row in kept] == [True]
    assert statistics[0].reasons() == {"minhash_dedup.near_duplicate": [2, len(text) * 2 + 5]}
    kept, _ = run_stage(tmp_path / "b", minhash.run, order, make_documents(rows[:2]))
    assert [row["text"] for row in kept] == [text + " more"]


def test_a_band_key_of_all_documents_costs_a_comparison_for_each(tmp_path):
    documents = make_documents([{"text": " ".join(WORDS)} for _ in range(3000)])
    started = time.process_time()
    kept, statistics = run_stage(tmp_path, minhash.run, MinHashDedup(), documents, range(0, 3000, 500))
    assert [row["copies"] for row in kept] == [3000]
    assert statistics[0].pairs == {
        "candidate_documents": 3000,
        "candidate_components": 1,
        "compared_pairs": 2999,
        "verified_pairs": 2999,
    }
    assert time.process_time() - started < 20


def test_texts_without_words_are_no_copies(tmp_path):
    documents = make_documents([{"text": "..."}, {"text": ""}, {"text": "!?"}, {"text": "one"}, {"text": "One."}])
    kept, _ = run_stage(tmp_path, minhash.run, MinHashDedup(), documents)
    assert sorted(row["copies"] for row in kept) == [1, 1, 1, 2]


def test_nothing_to_compare_leaves_everything(tmp_path):
    documents = make_documents([{"text": f"{number} is a text of its own"} for number in range(3)])
    kept, statistics = run_stage(tmp_path, minhash.run, MinHashDedup(), documents)
    assert len(kept) == 3
    assert statistics[0].pairs == {}


@pytest.mark.parametrize("buckets", [1, 3])
def test_components_of_a_long_path_and_random_graphs(tmp_path, buckets):
    for seed in range(4):
        generator = random.Random(seed)
        if seed == 0:
            edges = [(node, node + 1) for node in range(200)]  # the longest way for labels to travel
        else:
            edges = [(generator.randrange(150), generator.randrange(150)) for _ in range(90)]
            edges = [(one, other) for one, other in edges if one != other]
        generator.shuffle(edges)
        assert _components(tmp_path / str(seed), edges, buckets) == _components_by_definition(edges)


def _components(folder, edges, buckets):
    folder.mkdir()
    with LocalEngine(1) as engine:
        chain = Chain(folder, engine, Console(file=io.StringIO()), 0)
        commits = []
        for number, part in enumerate((edges[: len(edges) // 2], edges[len(edges) // 2 :])):
            nodes, neighbours = np.array(part).T
            groups = components.edge_groups(nodes, neighbours, buckets)
            commits.append(Commit(write_blocks(folder / f"{number}.arrow", groups)))
        stars = components.components(chain, "test", commits, buckets)
    found = {}
    for commit in stars:
        for block in commit.blocks:
            found.setdefault(block.group, []).append(block)
    labels = {}
    for blocks in found.values():
        labels.update(zip(*(each.tolist() for each in components.star_labels(blocks)), strict=True))
    return labels


def _components_by_definition(edges):
    labels = {node: node for edge in edges for node in edge}
    while True:
        changed = False
        for one, other in edges:
            smallest = min(labels[one], labels[other])
            changed |= labels[one] != smallest or labels[other] != smallest
            labels[one] = labels[other] = smallest
        if not changed:
            return labels
