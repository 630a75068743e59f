"""Semantic duplicates: documents whose vectors point nearly the same way (SemDeDup; Abbas et al. 2023).

Vectors are clustered by k-means, and only documents of a cluster are compared. In the order of whom to keep, a
document goes if any before it has a cosine of at least `threshold`, also one that goes itself, as in the paper.

    frequencies -> embed -> centroids -> assign -> decide -> drop

k-means is trained once, on the documents with the smallest keyed hashes, on one thread; its centroids are an input of
what follows, by their checksum. Comparisons are exact (`embed`), so the survivors do not depend on the cut of the
input. With a neural model they do as far as its numbers do: keep batch_size=1, because padding changes them.

Memory per worker: a block and 2 bytes per dimension of each document in it; for k-means 12 bytes per dimension of each
of `sample` documents; in a bucket 6 bytes per dimension and 200 more for each of about DOCUMENTS_PER_BUCKET documents,
or of the largest cluster. Clusters are compared in tiles of TILE documents.
"""

import importlib.util
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.batches import load_documents
from data_pipeline.chain import Chain, all_blocks, block_label
from data_pipeline.dedup import embed
from data_pipeline.dedup.embed import Embedder
from data_pipeline.dedup.survivors import DECISION_SCHEMA, KeepOrder, by_block, plain, rank, sort_keys, take_out
from data_pipeline.document import keyed_hashes
from data_pipeline.engines.work import Block, Commit, Task, group_blocks, read_block, write_blocks
from data_pipeline.report.statistics import StageStatistics
from llama_foundation.errors import ConfigError

NAME = "semantic_dedup"
VERSION = 1

DOCUMENTS_PER_BUCKET = 200_000
DOCUMENTS_PER_CLUSTER = 1000
SAMPLE_PER_CLUSTER = 256
TILE = 1024
ITERATIONS = 20

_VECTORS, _SAMPLE = "vectors", "sample"


class Keep(Enum):
    """Of similar documents, keep ..."""

    order = "order"  # ... the first in the order that all deduplications have
    farthest_from_centroid = "farthest_from_centroid"  # ... the least typical (Abbas et al.), after published ones


@dataclass
class SemanticDedup(KeepOrder):
    """What makes vectors, how similar is too similar, and which document stays."""

    embedder: Embedder = Embedder.lexical
    model: str | None = None  # directory of a sentence-transformers model, or minilm; for sentence_transformers
    batch_size: int = 1  # texts that the model gets at once; above 1 the last bits depend on who is in the batch
    threshold: float = 0.95  # cosine; no published value fits all models: look at what is dropped
    clusters: int = 0  # of k-means; 0: one per 1000 documents
    sample: int = 0  # documents that k-means is trained on; 0: 256 per cluster
    keep: Keep = Keep.order

    def check(self) -> None:
        """Refuse what cannot work, a missing package or model included.

        Raises:
            ConfigError: names the setting.
        """
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"pipeline.{NAME}.threshold={self.threshold} must be above 0 and at most 1")
        for name, low in (("batch_size", 1), ("clusters", 0), ("sample", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"pipeline.{NAME}.{name}={getattr(self, name)} must be at least {low}")
        if (self.embedder is Embedder.sentence_transformers) != (self.model is not None):
            raise ConfigError(
                f"pipeline.{NAME}.embedder={self.embedder.value} and pipeline.{NAME}.model={self.model}: "
                "embedder=sentence_transformers needs a model, and nothing else does"
            )
        if importlib.util.find_spec("faiss") is None:
            raise ConfigError(f"{NAME} needs faiss: pip install 'llama-train[semantic]'")
        if self.model is not None:
            embed.model_path(self.model)


def run(chain: Chain, blocks: list[Block], settings: SemanticDedup) -> tuple[list[Block], list[StageStatistics]]:
    """Keep one of documents that mean the same, as far as the vectors say so."""
    settings.check()
    documents = sum(block.rows for block in blocks)
    clusters = min(settings.clusters or 1 + documents // DOCUMENTS_PER_CLUSTER, max(1, documents))
    sample = max(settings.sample or SAMPLE_PER_CLUSTER * clusters, clusters)
    buckets = min(clusters, 1 + documents // DOCUMENTS_PER_BUCKET)
    model = None if settings.model is None else embed.model_fingerprint(embed.model_path(settings.model))
    chain.advance(NAME, [VERSION, plain(settings), model, clusters, sample, buckets])
    rarity = _rarity(chain, blocks, documents) if settings.embedder is Embedder.lexical else []
    payloads = [(block, rarity, settings, sample, chain.seed) for block in blocks]
    embedded = chain.phase(f"{NAME}.embed", None, _embed_task, payloads, block_label)
    samples = group_blocks(embedded).get(_SAMPLE, [])
    payload = (samples, clusters, sample)
    trained = chain.phase(f"{NAME}.centroids", None, _centroids_task, [payload], lambda _: "training k-means")
    centroids = trained[0].blocks[0]
    payloads = [
        (block, number, vectors, centroids, settings, buckets)
        for number, (block, commit) in enumerate(zip(blocks, embedded, strict=True))
        for vectors in commit.blocks
        if vectors.group == _VECTORS
    ]
    assigned = chain.phase(f"{NAME}.assign", centroids.checksum, _assign_task, payloads, block_label)
    payloads = [(bucket, found, settings) for bucket, found in sorted(group_blocks(assigned).items())]
    decided = chain.phase(f"{NAME}.decide", None, _decide_task, payloads, lambda payload: f"bucket {payload[0]}")
    return take_out(chain, NAME, "semantic_duplicate", blocks, decided)


def _rarity(chain: Chain, blocks: list[Block], documents: int) -> list[Block]:
    """Return one block with the rarity of every feature, from its document frequency in the whole corpus."""
    counted = chain.phase(f"{NAME}.frequencies", None, _frequencies_task, [(block,) for block in blocks], block_label)
    payload = (all_blocks(counted), documents)
    return chain.phase(f"{NAME}.rarity", None, _rarity_task, [payload], lambda _: "document frequencies")[0].blocks


def _frequencies_task(folder: Path, task: Task) -> Commit:
    counts = embed.document_frequencies(load_documents(task.payload[0]).batch)
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", pa.table({"count": counts}))]))


def _rarity_task(folder: Path, task: Task) -> Commit:
    blocks, documents = task.payload
    counts = np.zeros(embed.FREQUENCY_BUCKETS, np.int64)
    for block in blocks:
        counts += read_block(block)["count"].to_numpy()
    table = pa.table({"rarity": embed.rarities(counts, documents)})
    return Commit(write_blocks(folder / f"{task.name}.arrow", [("", table)]))


def _embed_task(folder: Path, task: Task) -> Commit:
    """Write the vectors of a block, and those of its documents with the smallest hashes for k-means."""
    block, rarity, settings, sample, seed = task.payload
    documents = load_documents(block)
    if rarity:
        vectors = embed.embed_lexically(documents.batch, read_block(rarity[0])["rarity"].to_numpy())
    else:
        vectors = embed.embed_with_model(documents.batch["text"].to_pylist(), settings.model, settings.batch_size)
    hashes = keyed_hashes(documents.batch["record_id"].to_pylist(), NAME, seed)
    table = pa.table({"hash": hashes, "record_id": documents.batch["record_id"], "vector": _as_column(vectors)})
    order = np.argsort(hashes, kind="stable")[:sample]
    groups = [(_VECTORS, table.select(["vector"])), (_SAMPLE, table.take(pa.array(order)))]
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups, compression=None))


def _centroids_task(folder: Path, task: Task) -> Commit:
    samples, clusters, sample = task.payload
    table = pa.concat_tables([read_block(each) for each in samples])
    table = table.sort_by([("hash", "ascending"), ("record_id", "ascending")]).slice(0, sample)
    vectors = _as_rows(table["vector"]).astype(np.float32) / embed.SCALE
    return Commit(
        write_blocks(folder / f"{task.name}.arrow", [("", pa.table({"vector": _as_column(train(vectors, clusters))}))])
    )


def train(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """Return int16 [clusters, size], the centroids of spherical k-means."""
    import faiss  # an optional package

    faiss.omp_set_num_threads(1)
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        min(clusters, len(vectors)),
        niter=ITERATIONS,
        seed=1,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    kmeans.train(vectors)
    return embed.quantise(kmeans.centroids)


def _assign_task(folder: Path, task: Task) -> Commit:
    """Send every document to the bucket of its cluster."""
    block, number, vectors, centroids, settings, buckets = task.payload
    documents = load_documents(block)
    column = read_block(vectors)["vector"]
    cluster, similarity = nearest(_as_rows(column), _as_rows(read_block(centroids)["vector"]))
    table = rank(documents, settings).append_column("vector", column.combine_chunks())
    for name, values in {
        "center": cluster,
        "similarity": similarity,
        "copies": documents.batch["copies"].to_numpy(),
        "block": np.full(len(documents), number),
        "row": np.arange(len(documents)),
    }.items():
        table = table.append_column(name, pa.array(values))
    groups = [
        (str(bucket), table.filter(pa.array(cluster % buckets == bucket)))
        for bucket in np.unique(cluster % buckets).tolist()
    ]
    return Commit(write_blocks(folder / f"{task.name}.arrow", groups, compression=None))


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [documents] and float64 [documents]: the centroid with the greatest cosine, the first of equals,
    and that cosine times the length that all centroids have but for rounding."""
    best, value = np.zeros(len(vectors), np.int64), np.full(len(vectors), -np.inf, np.float64)
    for start in range(0, len(centroids), TILE):
        tile = centroids[start : start + TILE].astype(np.float32)
        for first in range(0, len(vectors), TILE):
            rows = slice(first, first + TILE)
            products = vectors[rows].astype(np.float32) @ tile.T
            chosen = products.argmax(1)
            found = products[np.arange(len(products)), chosen]
            better = found > value[rows]
            best[rows] = np.where(better, chosen + start, best[rows])
            value[rows] = np.where(better, found, value[rows])
    return best, value / np.sqrt(np.maximum(_squares(vectors), 1))


def _decide_task(folder: Path, task: Task) -> Commit:
    _, blocks, settings = task.payload
    table = pa.concat_tables([read_block(block) for block in blocks])
    preferred = sort_keys(table)
    if settings.keep is Keep.farthest_from_centroid:
        preferred = [("unpublished", "ascending"), ("similarity", "ascending"), ("record_id", "ascending")]
    table = table.sort_by([("center", "ascending"), ("scope", "ascending"), *preferred])
    center, scope = table["center"].to_numpy(), table["scope"].to_numpy()
    heads = np.flatnonzero(np.r_[True, (center[1:] != center[:-1]) | (scope[1:] != scope[:-1])])
    vectors = _as_rows(table["vector"])
    keeper = np.concatenate(
        [
            start + keepers(vectors[start:end], settings.threshold)
            for start, end in zip(heads.tolist(), [*heads[1:].tolist(), len(center)], strict=True)
        ]
    )
    sizes = np.bincount(keeper, minlength=len(keeper))
    copies = np.bincount(keeper, weights=table["copies"].to_numpy(), minlength=len(keeper)).astype(np.int64)
    decisions = pa.table(
        [
            table["block"],
            table["row"],
            pa.array(keeper != np.arange(len(keeper))),
            table["record_id"].combine_chunks().take(pa.array(keeper)),
            pa.array(copies[keeper]),
        ],
        schema=DECISION_SCHEMA,
    ).filter(pa.array(sizes[keeper] > 1))
    statistics = StageStatistics(NAME)
    found, counts = np.unique(sizes[sizes > 1], return_counts=True)
    statistics.cluster_sizes = {str(size): int(count) for size, count in zip(found, counts, strict=True)}
    return Commit(write_blocks(folder / f"{task.name}.arrow", by_block(decisions)), [statistics])


def keepers(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Return int64 [documents]: who stays for each, itself where nobody before it is similar.

    Args:
        vectors: int16 [documents, size], best document first.
    """
    squares = _squares(vectors)
    first = np.arange(len(vectors))
    for row in range(0, len(vectors), TILE):
        own = vectors[row : row + TILE].astype(np.float32)
        places = np.arange(row, row + len(own))
        for column in range(0, row + len(own), TILE):
            open_ = np.flatnonzero(first[places] == places)
            if not len(open_):
                break
            others = vectors[column : column + TILE].astype(np.float32)
            products = (own[open_] @ others.T).astype(np.float64)
            limits = threshold * threshold * squares[places[open_], None] * squares[None, column : column + len(others)]
            similar = (products > 0) & (products * products >= limits)
            similar &= np.arange(column, column + len(others))[None] < places[open_, None]
            some = similar.any(1)
            first[places[open_[some]]] = column + similar[some].argmax(1)
    for place in np.flatnonzero(first != np.arange(len(first))).tolist():
        first[place] = first[first[place]]
    return first


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.square(vectors, dtype=np.float64).sum(1)


def _as_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def _as_rows(column: pa.ChunkedArray) -> np.ndarray:
    """Return int16 [rows, size] of a column of lists of one length."""
    size = column.type.list_size
    chunks = [chunk.flatten().to_numpy().reshape(-1, size) for chunk in column.chunks]
    return np.concatenate([np.zeros((0, size), np.int16), *chunks])
